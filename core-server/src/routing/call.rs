//! A call, from what the caller says to its one end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::channel::{CallFrame, Slot};
use crate::error::Failure;
use crate::service_registry::Service;
use crate::types::{Cause, Payload, PluginName, Source};

/// Told the end of a call, exactly once.
pub type OnEnd = Box<dyn FnOnce(Result<Payload, Failure>) + Send>;

/// A call as its caller makes it; names and permissions are checked by then.
#[derive(Debug)]
pub struct Call {
    /// Full name of the service.
    pub service: String,
    /// Arguments.
    pub arguments: Payload,
    /// Time that the caller gives; `None`: the service's default.
    pub timeout: Option<Duration>,
    /// Wait for an absent provider.
    pub wait_for_ready: bool,
    /// Who calls.
    pub caller: Source,
    /// The caller's place among what it may have in flight, kept until the call ends. `None`: it has no
    /// such bound.
    pub slot: Option<Slot>,
    /// What the caller was handling.
    pub cause: Option<Cause>,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}

impl Call {
    pub(super) fn caller_plugin(&self) -> Option<&PluginName> {
        match &self.caller {
            Source::Plugin(plugin) => Some(plugin),
            Source::Operator | Source::Core => None,
        }
    }
}

/// A call that was accepted: it has an id and a deadline.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) frame: CallFrame,
    pub(super) service: Arc<Service>,
    pub(super) wait_for_ready: bool,
    pub(super) slot: Option<Slot>,
    pub(super) accepted_at: Instant,
}

/// A call that has ended, to be told to its caller outside all locks.
pub(super) struct Ended {
    pub(super) on_end: OnEnd,
    pub(super) result: Result<Payload, Failure>,
    pub(super) service: Arc<Service>,
    pub(super) accepted_at: Instant,
    pub(super) slot: Option<Slot>,
}

impl Ended {
    pub(super) fn finish(self) {
        self.service
            .stats
            .ended(self.accepted_at.elapsed(), self.result.is_err());
        drop(self.slot);
        (self.on_end)(self.result);
    }
}
