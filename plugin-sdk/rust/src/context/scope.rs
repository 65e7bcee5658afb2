//! What a context is handling: goes with every request that is made through it.

use std::time::Duration;

use bytes::Bytes;
use core_proto::contract::metadata;
use core_proto::v1::{NewEvent, Request};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

/// What requests name as their cause. Made into text only when one is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Parent {
    #[default]
    None,
    Call(u64),
    Event {
        epoch: u64,
        seq: u64,
    },
}

impl Parent {
    /// As the contract writes it; empty for nothing.
    pub(crate) fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::Call(call_id) => format!("call/{call_id}"),
            Self::Event { epoch, seq } => format!("event/{epoch}/{seq}"),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub(crate) parent: Parent,
    pub(crate) deadline: Option<Instant>,
    pub(crate) caller: String,
    pub(crate) depth: u32,
    pub(crate) traceparent: String,
    /// A hook that the core asked for.
    pub(crate) hook_id: Option<u64>,
}

impl Scope {
    /// Handles nothing: a task.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn hook(hook_id: u64, time: Duration) -> Self {
        Self {
            hook_id: Some(hook_id),
            deadline: Instant::now().checked_add(time),
            ..Self::default()
        }
    }

    pub(crate) fn time_left(&self) -> Option<Duration> {
        let now = Instant::now();
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(now))
    }

    /// A request frame made while handling this.
    pub(crate) fn frame(
        &self,
        request_id: u64,
        method: &str,
        message: Bytes,
        timeout: Option<Duration>,
    ) -> Request {
        Request {
            request_id,
            method: method.to_owned(),
            message,
            timeout: timeout.and_then(|time| prost_types::Duration::try_from(time).ok()),
            parent: self.parent.text(),
            traceparent: self.traceparent.clone(),
        }
    }

    /// Says of an event what it was published for, where it does not say so itself.
    pub(crate) fn mark(&self, event: &mut NewEvent) {
        if event.parent.is_empty() {
            event.parent = self.parent.text();
        }
        if event.traceparent.is_empty() {
            event.traceparent.clone_from(&self.traceparent);
        }
    }

    /// The trace context as metadata of a unary request.
    pub(crate) fn trace(&self, headers: &mut MetadataMap) {
        if !self.traceparent.is_empty()
            && let Ok(value) = self.traceparent.parse()
        {
            headers.insert(metadata::TRACEPARENT, value);
        }
    }
}
