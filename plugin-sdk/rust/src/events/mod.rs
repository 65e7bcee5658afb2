//! Events: what a handler gets, and the subscriptions that bring it.
//!
//! A subscription reads its stream into a queue of its own and never stops reading for a slow handler:
//! when the queue is full (4,096 events or 4 MiB) the stream is ended and taken up again after the last
//! queued event, once half of the queue has been worked off. So the core's log is the long buffer, and
//! only what has left that log is lost: the core says so, and `on_gap` is called.
//!
//! Events of one subscription are handled one after the other, in the order of the log, and only while
//! the plugin is STARTED. A handler that fails or panics is logged; the next event follows. A broken
//! stream is opened again after the last event queued, with full jitter from 100 ms to 5 s; declared
//! subscriptions go on in the next run after the last event whose handler began.
//!
//! Events wait encoded and are decoded one by one, when their turn comes; texts and data are slices of
//! the message that brought them, so that nothing is copied.

mod event;
mod queue;
mod subscription;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use core_proto::v1;
use futures_util::future::BoxFuture;

use crate::context::Ctx;
use crate::error::Result;

pub use event::Event;
pub use subscription::Subscribed;
pub(crate) use subscription::open;

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The plugin was too slow; they have left the core's log.
    Slow,
    /// The place to go on from is older than the log.
    TooOld,
    /// The core has started anew.
    EpochChanged,
    /// The plugin was not STARTED when they passed.
    Stopped,
    /// A reason that this SDK does not know.
    Other,
}

/// Events were missed at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// First seq that may have been missed.
    pub from_seq: u64,
    /// Last seq that may have been missed.
    pub to_seq: u64,
}

impl From<v1::Gap> for Gap {
    fn from(gap: v1::Gap) -> Self {
        use v1::gap::Reason;
        Self {
            reason: match gap.reason() {
                Reason::Slow => GapReason::Slow,
                Reason::TooOld => GapReason::TooOld,
                Reason::EpochChanged => GapReason::EpochChanged,
                Reason::Stopped => GapReason::Stopped,
                Reason::Unspecified => GapReason::Other,
            },
            from_seq: gap.from_seq,
            to_seq: gap.to_seq,
        }
    }
}

/// Where a new subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Start {
    #[default]
    Live,
    Oldest,
    Since(SystemTime),
}

type EventHandler = Arc<dyn Fn(Ctx, Event) -> BoxFuture<'static, Result<()>> + Send + Sync>;
type GapHandler = Arc<dyn Fn(Ctx, Gap) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// A subscription with its handler. Made with [`Subscribe::to`].
#[derive(Clone)]
pub struct Subscription {
    options: Subscribe,
    on_event: EventHandler,
}

/// A subscription without its handler yet.
#[derive(Clone, Default)]
#[must_use]
pub struct Subscribe {
    patterns: Vec<String>,
    source: String,
    subject: String,
    exclude_own: bool,
    start: Start,
    on_gap: Option<GapHandler>,
}

impl Subscribe {
    /// Events whose topic matches the pattern: `*` is exactly one token, `>` one or more at the end.
    pub fn to(pattern: impl Into<String>) -> Self {
        Self {
            patterns: vec![pattern.into()],
            ..Self::default()
        }
    }

    /// Also events that match this pattern; each event comes once.
    pub fn and(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// Only events of this publisher.
    pub fn source(mut self, plugin: impl Into<String>) -> Self {
        self.source = plugin.into();
        self
    }

    /// Only events with exactly this subject.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = subject.into();
        self
    }

    /// Not the plugin's own events.
    pub fn exclude_own(mut self) -> Self {
        self.exclude_own = true;
        self
    }

    /// Begin with the oldest event in the core's log instead of the next one.
    pub fn from_oldest(mut self) -> Self {
        self.start = Start::Oldest;
        self
    }

    /// Begin with the first event at or after this time.
    pub fn since(mut self, time: SystemTime) -> Self {
        self.start = Start::Since(time);
        self
    }

    /// Calls this when events were missed, in their place among the others. Without it a gap is
    /// logged.
    pub fn on_gap<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(Ctx, Gap) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.on_gap = Some(Arc::new(move |ctx, gap| Box::pin(handler(ctx, gap))));
        self
    }

    /// Sets the handler.
    pub fn handle<F, Fut>(self, handler: F) -> Subscription
    where
        F: Fn(Ctx, Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Subscription {
            options: self,
            on_event: Arc::new(move |ctx, event| Box::pin(handler(ctx, event))),
        }
    }

    fn request(&self, position: Option<v1::Position>) -> v1::EventBusSubscribeRequest {
        use v1::event_bus_subscribe_request::Start as Wire;
        v1::EventBusSubscribeRequest {
            patterns: self.patterns.clone(),
            source: self.source.clone(),
            subject: self.subject.clone(),
            exclude_own: self.exclude_own,
            policy: v1::event_bus_subscribe_request::Policy::Gap.into(),
            start: match (position, self.start) {
                (Some(position), _) => Some(Wire::After(position)),
                (None, Start::Live) => None,
                (None, Start::Oldest) => Some(Wire::Oldest(v1::Oldest {})),
                (None, Start::Since(time)) => Some(Wire::Since(time.into())),
            },
        }
    }
}

impl fmt::Debug for Subscribe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Subscribe")
            .field("patterns", &self.patterns)
            .field("source", &self.source)
            .field("subject", &self.subject)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(formatter)
    }
}
