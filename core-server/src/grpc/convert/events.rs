//! Events.

use std::sync::Arc;

use core_proto::v1::{self, event_bus_subscribe_request as subscribe_request};

use super::{BadField, time, time_to_proto};
use crate::event_bus::{Delivery, Event, GapReason, NewEvent, Policy, Start, Subscribe};
use crate::security::Caller;
use crate::types::{BadCause, Cause, Epoch, Pattern, Payload, PluginName, Position, Source, Topic};

/// An event as its publisher gives it; what the event does not say, the request does. `topic` is the event's
/// own, where it was parsed before.
pub(in crate::grpc) fn new_event(
    event: v1::NewEvent,
    topic: Option<&Topic>,
    caller: &Caller,
) -> Result<NewEvent, BadField> {
    let cause = match event.parent.as_str() {
        "" => caller.cause,
        parent => Some(parent.parse::<Cause>().map_err(|error: BadCause| error)?),
    };
    let traceparent = match event.traceparent {
        own if own.is_empty() => caller.traceparent.clone(),
        own => own,
    };
    Ok(NewEvent {
        topic: match topic {
            Some(topic) => topic.clone(),
            None => Topic::parse(&event.topic)?,
        },
        subject: event.subject.into(),
        payload: Payload {
            content_type: event.content_type.into(),
            data: event.data,
        },
        id: event.id,
        cause,
        traceparent,
    })
}

/// Appends one wire entry of an event: the bus's encoder.
pub(crate) fn encode(event: &Event<'_>, entries: &mut Vec<u8>) {
    let new = event.new;
    let cause = new.cause.map(|cause| cause.to_string());
    let event = core_proto::encoded::Event {
        topic: new.topic.as_str(),
        source: event.source.as_str(),
        subject: &new.subject,
        content_type: &new.payload.content_type,
        data: &new.payload.data,
        id: &new.id,
        time: time_to_proto(event.time),
        cause: cause.as_deref().unwrap_or_default(),
        traceparent: &new.traceparent,
        epoch: event.position.epoch.0,
        seq: event.position.seq,
    };
    event.append_entry(entries);
}

pub(in crate::grpc) fn patterns(patterns: &[String]) -> Result<Vec<Pattern>, BadField> {
    if patterns.is_empty() {
        return Err(BadField::Missing { field: "patterns" });
    }
    Ok(patterns
        .iter()
        .map(|pattern| Pattern::parse(pattern))
        .collect::<Result<_, _>>()?)
}

fn source(name: &str) -> Result<Option<Source>, BadField> {
    Ok(match name {
        "" => None,
        "core" => Some(Source::Core),
        "operator" => Some(Source::Operator),
        name => Some(Source::Plugin(PluginName::parse(name).map_err(
            |error| BadField::Malformed {
                field: "source",
                why: error.to_string(),
            },
        )?)),
    })
}

pub(in crate::grpc) fn subscribe(
    request: v1::EventBusSubscribeRequest,
    caller: &Caller,
) -> Result<Subscribe, BadField> {
    let policy = match request.policy() {
        subscribe_request::Policy::Unspecified | subscribe_request::Policy::Gap => Policy::Gap,
        subscribe_request::Policy::Disconnect => Policy::Disconnect,
    };
    if subscribe_request::Policy::try_from(request.policy).is_err() {
        let why = format!("{} is not a policy", request.policy);
        return Err(BadField::Malformed {
            field: "policy",
            why,
        });
    }
    let start = match request.start {
        None => Start::Live,
        Some(subscribe_request::Start::After(position)) => Start::After(Position {
            epoch: Epoch(position.epoch),
            seq: position.seq,
        }),
        Some(subscribe_request::Start::Oldest(_)) => Start::Oldest,
        Some(subscribe_request::Start::Since(since)) => Start::Since(time("since", since)?),
    };
    Ok(Subscribe {
        subscriber: caller.source.clone(),
        patterns: patterns(&request.patterns)?,
        source: source(&request.source)?,
        subject: (!request.subject.is_empty()).then(|| Arc::from(request.subject)),
        exclude_own: request.exclude_own,
        start,
        policy,
        gate: caller.run.as_ref().map(|run| run.gate()),
    })
}

pub(in crate::grpc) fn delivery(delivery: Delivery) -> core_proto::encoded::SubscribeResponse {
    use core_proto::encoded::SubscribeResponse;
    use v1::event_bus_subscribe_response::Control;
    SubscribeResponse::Control(match delivery {
        Delivery::Events(pieces) => return SubscribeResponse::Events(pieces),
        Delivery::Subscribed {
            epoch,
            next_seq,
            oldest_seq,
        } => Control::Subscribed(v1::Subscribed {
            epoch: epoch.0,
            next_seq,
            oldest_seq,
        }),
        Delivery::Gap(gap) => Control::Gap(v1::Gap {
            reason: match gap.reason {
                GapReason::Slow => v1::gap::Reason::Slow,
                GapReason::TooOld => v1::gap::Reason::TooOld,
                GapReason::EpochChanged => v1::gap::Reason::EpochChanged,
                GapReason::Stopped => v1::gap::Reason::Stopped,
            }
            .into(),
            from_seq: gap.from,
            to_seq: gap.to,
        }),
        Delivery::Bookmark(position) => Control::Bookmark(v1::Position {
            epoch: position.epoch.0,
            seq: position.seq,
        }),
    })
}
