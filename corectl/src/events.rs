//! `corectl events`: tail, publish.

use core_proto::v1::event_bus_subscribe_request::Start;
use core_proto::v1::event_bus_subscribe_response::Control;
use core_proto::v1::gap::Reason;
use core_proto::v1::{
    Event, EventBusPublishRequest, EventBusSubscribeRequest, Gap, NewEvent, Oldest,
};
use serde::Serialize;

use crate::arguments;
use crate::cli::{EventsCommand, Global, PublishArgs, TailArgs};
use crate::connect::{Core, UNARY_TIMEOUT};
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Tone, end_with_reader, note, now};
use crate::services::content_type;
use crate::time;

/// All topics but the core's advisories.
const EVERYTHING: &str = ">";

/// The JSON shape of a line of `events tail`. `epoch` is an identity, not a number to count with,
/// and needs all of its 64 bits: a string.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum TailView {
    Subscribed {
        epoch: String,
        next_seq: u64,
        oldest_seq: u64,
    },
    Event(Box<EventView>),
    Gap {
        reason: &'static str,
        from_seq: u64,
        to_seq: u64,
    },
}

/// The JSON shape of an event.
#[derive(Debug, Serialize)]
struct EventView {
    topic: String,
    source: String,
    subject: String,
    time: Option<String>,
    seq: u64,
    epoch: String,
    id: String,
    cause: String,
    traceparent: String,
    content_type: String,
    data_encoding: &'static str,
    data: Payload,
}

/// The JSON shape of `events publish`.
#[derive(Debug, Serialize)]
struct PublishedView<'a> {
    topic: &'a str,
    epoch: String,
    seq: u64,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let data = Payload::new(&event.content_type, &event.data);
        Self {
            time: time::rfc3339(event.time.as_ref()),
            topic: event.topic,
            source: event.source,
            subject: event.subject,
            seq: event.seq,
            epoch: event.epoch.to_string(),
            id: event.id,
            cause: event.cause,
            traceparent: event.traceparent,
            content_type: content_type(&event.content_type).to_owned(),
            data_encoding: data.encoding(),
            data,
        }
    }
}

/// Runs a command of this group.
pub(crate) async fn run(
    global: &Global,
    command: &EventsCommand,
    output: &mut Output,
) -> Result<(), Failure> {
    match command {
        EventsCommand::Tail(tail) => self::tail(&Core::connect(global).await?, tail, output).await,
        EventsCommand::Publish(publish) => {
            let data = arguments::of_event(&publish.pairs, publish.data.as_deref())?;
            let core = Core::connect(global).await?;
            self::publish(&core, publish, data, output).await
        }
    }
}

async fn tail(core: &Core, tail: &TailArgs, output: &mut Output) -> Result<(), Failure> {
    let patterns = if tail.patterns.is_empty() {
        vec![EVERYTHING.to_owned()]
    } else {
        tail.patterns.clone()
    };
    let question = EventBusSubscribeRequest {
        patterns,
        source: tail.source.clone().unwrap_or_default(),
        subject: tail.subject.clone().unwrap_or_default(),
        start: tail.since.map(|since| match since.resolve(now()) {
            Some(at) => Start::Since(time::to_wire(at)),
            None => Start::Oldest(Oldest {}),
        }),
        ..Default::default()
    };
    let mut client = core.events();
    let mut stream = core.open("", client.subscribe(question)).await?;
    end_with_reader();
    let mut left = tail.count.unwrap_or(u64::MAX);
    while let Some(response) = core.next("", &mut stream).await? {
        for event in response.events {
            show_event(event, output)?;
            left -= 1;
            if left == 0 {
                return Ok(());
            }
        }
        if let Some(control) = response.control {
            show_control(control, output)?;
        }
        output.flush()?;
    }
    Err(core.stream_ended())
}

fn show_event(event: Event, output: &mut Output) -> Result<(), Failure> {
    match output.form() {
        Form::Json => output.json(&TailView::Event(Box::new(event.into()))),
        Form::Quiet => output.line(&event.topic),
        Form::Table => {
            let data = Payload::new(&event.content_type, &event.data);
            output.cells(&[
                Cell::new(&time::clock(event.time.as_ref()), Tone::Faint),
                Cell::new(&event.topic, Tone::Heading),
                Cell::from(&event.subject),
                data.line(&event.content_type).into(),
                Cell::new(&format!("from {}", event.source), Tone::Faint),
            ])
        }
    }
}

/// What is no event. Loss is data to a program, and never silent to a person.
fn show_control(control: Control, output: &mut Output) -> Result<(), Failure> {
    let json = output.form() == Form::Json;
    match control {
        Control::Subscribed(subscribed) if json => output.json(&TailView::Subscribed {
            epoch: subscribed.epoch.to_string(),
            next_seq: subscribed.next_seq,
            oldest_seq: subscribed.oldest_seq,
        }),
        Control::Subscribed(subscribed) => {
            if output.is_terminal() {
                let next = subscribed.next_seq;
                note(&format!("following from seq {next}; Ctrl-C ends"));
            }
            Ok(())
        }
        Control::Gap(gap) if json => output.json(&TailView::Gap {
            reason: gap_reason(&gap),
            from_seq: gap.from_seq,
            to_seq: gap.to_seq,
        }),
        Control::Gap(gap) => {
            // In its place among the events.
            output.flush()?;
            let most = gap.to_seq.saturating_sub(gap.from_seq).saturating_add(1);
            let why = match gap.reason() {
                Reason::Unspecified => "",
                Reason::Slow => ": this reader was too slow",
                Reason::TooOld => ": the core no longer keeps them",
                Reason::EpochChanged => ": the core was restarted",
                Reason::Stopped => ": the subscriber was not started",
            };
            note(&format!("gap: up to {most} events were missed{why}"));
            Ok(())
        }
        Control::Bookmark(_) => Ok(()),
    }
}

fn gap_reason(gap: &Gap) -> &'static str {
    match gap.reason() {
        Reason::Unspecified => "unknown",
        Reason::Slow => "slow",
        Reason::TooOld => "too_old",
        Reason::EpochChanged => "epoch_changed",
        Reason::Stopped => "stopped",
    }
}

async fn publish(
    core: &Core,
    publish: &PublishArgs,
    data: Vec<u8>,
    output: &mut Output,
) -> Result<(), Failure> {
    let question = EventBusPublishRequest {
        event: Some(NewEvent {
            topic: publish.topic.clone(),
            subject: publish.subject.clone(),
            data: data.into(),
            ..Default::default()
        }),
    };
    let mut client = core.events();
    let receipt = core
        .ask("", UNARY_TIMEOUT, question, |request| {
            client.publish(request)
        })
        .await?;
    match output.form() {
        Form::Json => output.json(&PublishedView {
            topic: &publish.topic,
            epoch: receipt.epoch.to_string(),
            seq: receipt.seq,
        }),
        Form::Quiet => Ok(()),
        Form::Table => output.line(&format!("{}  seq {}", publish.topic, receipt.seq)),
    }
}
