//! What a context is handling: goes with every request that is made through it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::contract::metadata;
use core_proto::v1::{NewEvent, Request};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::events::Event;

/// What is being handled.
#[derive(Clone, Debug, Default)]
pub(crate) enum Handled {
    /// A task, or a hook.
    #[default]
    Nothing,
    Call(Arc<Call>),
    Event(Event),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) call_id: u64,
    pub(crate) caller: String,
    pub(crate) depth: u32,
    pub(crate) traceparent: String,
}

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    pub(crate) handled: Handled,
    pub(crate) deadline: Option<Instant>,
    /// A hook that the core asked for.
    pub(crate) hook_id: Option<u64>,
}

impl Scope {
    /// Handles nothing: a task.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn event(event: Event) -> Self {
        Self {
            handled: Handled::Event(event),
            ..Self::default()
        }
    }

    pub(crate) fn hook(hook_id: u64, time: Duration) -> Self {
        Self {
            hook_id: Some(hook_id),
            deadline: Instant::now().checked_add(time),
            ..Self::default()
        }
    }

    /// What requests name as their cause, as the contract writes it; empty for nothing. Made into text
    /// only when one is sent.
    pub(crate) fn parent(&self) -> String {
        match &self.handled {
            Handled::Nothing => String::new(),
            Handled::Call(call) => format!("call/{}", call.call_id),
            Handled::Event(event) => format!("event/{}/{}", event.epoch(), event.seq()),
        }
    }

    /// Who called or published; empty for nothing.
    pub(crate) fn caller(&self) -> &str {
        match &self.handled {
            Handled::Nothing => "",
            Handled::Call(call) => &call.caller,
            Handled::Event(event) => event.source(),
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        match &self.handled {
            Handled::Call(call) => call.depth,
            Handled::Nothing | Handled::Event(_) => 0,
        }
    }

    pub(crate) fn traceparent(&self) -> &str {
        match &self.handled {
            Handled::Nothing => "",
            Handled::Call(call) => &call.traceparent,
            Handled::Event(event) => event.traceparent(),
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
            parent: self.parent(),
            traceparent: self.traceparent().to_owned(),
        }
    }

    /// Says of an event what it was published for, where it does not say so itself.
    pub(crate) fn mark(&self, event: &mut NewEvent) {
        if event.parent.is_empty() {
            event.parent = self.parent();
        }
        if event.traceparent.is_empty() {
            self.traceparent().clone_into(&mut event.traceparent);
        }
    }

    /// The trace context as metadata of a unary request.
    pub(crate) fn trace(&self, headers: &mut MetadataMap) {
        if !self.traceparent().is_empty()
            && let Ok(value) = self.traceparent().parse()
        {
            headers.insert(metadata::TRACEPARENT, value);
        }
    }
}
