//! Server streams, read item by item with a bound on each wait.

use std::collections::VecDeque;

use core_proto::v1::event_bus_subscribe_response::Control;
use core_proto::v1::plugin_manager_watch_response::Item;
use core_proto::v1::{self, Event, Gap, PluginInfo, Position, Subscribed};
use serde_json::Value;
use tonic::{Status, Streaming};

use crate::wait::within;

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Box<Event>),
    /// Something was missed.
    Gap(Gap),
    /// Nothing happened; a place to resume from.
    Bookmark(Position),
}

/// A live subscription. Reads only when it is asked to: a test that does not ask is a slow subscriber.
#[derive(Debug)]
pub struct Subscription {
    stream: Streaming<v1::EventBusSubscribeResponse>,
    waiting: VecDeque<Heard>,
    /// The first message.
    pub subscribed: Subscribed,
}

impl Subscription {
    pub(crate) async fn begin(
        mut stream: Streaming<v1::EventBusSubscribeResponse>,
    ) -> Result<Self, Status> {
        let first = within("a subscription begins", stream.message()).await?;
        let first = first.expect("a first message");
        assert!(
            first.events.is_empty(),
            "events before Subscribed: {first:?}"
        );
        let Some(Control::Subscribed(subscribed)) = first.control else {
            panic!("the first message must be Subscribed: {first:?}");
        };
        Ok(Self {
            stream,
            waiting: VecDeque::new(),
            subscribed,
        })
    }

    /// The next thing that is heard.
    ///
    /// # Errors
    /// How the stream ended.
    ///
    /// # Panics
    /// When nothing is heard in time.
    pub async fn next(&mut self) -> Result<Heard, Status> {
        loop {
            if let Some(heard) = self.waiting.pop_front() {
                return Ok(heard);
            }
            let message = within("something is heard", self.stream.message()).await?;
            let Some(message) = message else {
                return Err(Status::ok("the stream ended"));
            };
            match message.control {
                None => self.waiting.extend(
                    message
                        .events
                        .into_iter()
                        .map(|event| Heard::Event(Box::new(event))),
                ),
                Some(_) if !message.events.is_empty() => {
                    panic!("a message with events and a control item")
                }
                Some(Control::Gap(gap)) => self.waiting.push_back(Heard::Gap(gap)),
                Some(Control::Bookmark(at)) => self.waiting.push_back(Heard::Bookmark(at)),
                Some(Control::Subscribed(again)) => panic!("a second Subscribed: {again:?}"),
            }
        }
    }

    /// The next event; bookmarks are passed over.
    ///
    /// # Panics
    /// When a gap or an end comes first.
    pub async fn event(&mut self) -> Event {
        loop {
            match self.next().await {
                Ok(Heard::Event(event)) => return *event,
                Ok(Heard::Bookmark(_)) => {}
                other => panic!("an event is awaited, not {other:?}"),
            }
        }
    }

    /// The next gap; bookmarks are passed over.
    ///
    /// # Panics
    /// When an event or an end comes first.
    pub async fn gap(&mut self) -> Gap {
        loop {
            match self.next().await {
                Ok(Heard::Gap(gap)) => return gap,
                Ok(Heard::Bookmark(_)) => {}
                other => panic!("a gap is awaited, not {other:?}"),
            }
        }
    }

    /// How the stream ends; what is heard before is passed over.
    pub async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// An event's data.
///
/// # Panics
/// When it is no JSON.
#[must_use]
pub fn json(event: &Event) -> Value {
    serde_json::from_slice(&event.data).expect("JSON")
}

/// A watch of all plugins.
#[derive(Debug)]
pub struct PluginWatch {
    stream: Streaming<v1::PluginManagerWatchResponse>,
}

impl PluginWatch {
    pub(crate) fn new(stream: Streaming<v1::PluginManagerWatchResponse>) -> Self {
        Self { stream }
    }

    /// The next item; `None` when the stream has ended, well or not.
    pub async fn next(&mut self) -> Option<Item> {
        match self.stream.message().await {
            Ok(Some(message)) => message.item,
            Ok(None) | Err(_) => None,
        }
    }

    /// Waits until something holds of a plugin.
    ///
    /// # Panics
    /// When it does not in time; the message says what was seen of it last.
    pub async fn until(
        &mut self,
        name: &str,
        what: &str,
        holds: impl Fn(&PluginInfo) -> bool,
    ) -> PluginInfo {
        let mut last = None;
        let seen = async {
            loop {
                match self.next().await {
                    Some(Item::Plugin(plugin)) if plugin.name == name => {
                        if holds(&plugin) {
                            return plugin;
                        }
                        last = Some(plugin);
                    }
                    Some(_) => {}
                    None => panic!("the watch ended before {name}: {what}"),
                }
            }
        };
        match tokio::time::timeout(crate::patience(), seen).await {
            Ok(plugin) => plugin,
            Err(_) => panic!("not in time, plugin {name}: {what}; it shows {last:#?}"),
        }
    }
}
