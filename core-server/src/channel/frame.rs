//! The frames of a channel as domain types. What each means stands in `plugin_channel.proto`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::handshake::Welcome;
use crate::error::{ApplicationFailure, Failure};
use crate::security::Listed;
use crate::types::{Cause, Payload, PluginName, Source};

/// A lifecycle hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Register, subscribe.
    Load,
    /// Begin background work.
    Start,
    /// End background work.
    Stop,
    /// Release everything and go.
    Unload,
}

impl Hook {
    /// The hook as SDKs name it: "on_load".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "on_load",
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Unload => "on_unload",
        }
    }
}

/// What a plugin sends after its `Hello`.
#[derive(Debug)]
pub enum Inbound {
    /// A hook has ended, `Err` with the plugin's text.
    HookDone {
        /// From the `RunHook`.
        hook_id: u64,
        /// How.
        result: Result<(), String>,
    },
    /// More time for the running hook.
    ExtendDeadline {
        /// From the `RunHook`.
        hook_id: u64,
        /// How much, from now.
        by: Duration,
    },
    /// The answer to a call.
    CallResponse {
        /// From the `CallRequest`.
        call_id: u64,
        /// The result, or the application's error.
        result: Result<Payload, ApplicationFailure>,
    },
    /// The plugin asks the core.
    Request(RequestFrame),
    /// It withdraws a request.
    RequestCancel {
        /// From the `Request`.
        request_id: u64,
    },
    /// It is alive.
    Pong {
        /// From the `Ping`.
        nonce: u64,
    },
    /// Its own report on its health: `Some` text when degraded.
    Health {
        /// Why it is degraded.
        degraded: Option<String>,
    },
    /// What it did with a changed configuration.
    ConfigResult {
        /// From the `ConfigChanged`.
        revision: u64,
        /// Its verdict.
        verdict: Verdict,
    },
    /// It ends by its own will.
    Bye {
        /// For people.
        reason: String,
    },
    /// A kind that this core does not know: ignored and counted.
    Unknown,
}

/// What a plugin did with a changed configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It works with it.
    Applied,
    /// It must be restarted for it, and why.
    RestartNeeded(String),
    /// It will not have it, and why.
    Rejected(String),
}

/// A request of the plugin to the core.
#[derive(Debug)]
pub struct RequestFrame {
    /// Picked by the plugin.
    pub request_id: u64,
    /// "Service/Method".
    pub method: String,
    /// The request message, serialised.
    pub message: Bytes,
    /// Time that is left.
    pub timeout: Option<Duration>,
    /// What the plugin was handling; unparsed.
    pub parent: String,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}

/// What the core sends.
#[derive(Clone, Debug)]
pub enum Outbound {
    /// The `Hello` was accepted.
    Welcome(Box<Welcome>),
    /// Run a hook.
    RunHook {
        /// Which.
        hook: Hook,
        /// Named in the answer.
        hook_id: u64,
        /// Time allowed.
        timeout: Duration,
    },
    /// Somebody calls.
    Call(Box<CallFrame>),
    /// Nobody waits for that call any more.
    CallCancel {
        /// From the call.
        call_id: u64,
    },
    /// The answer to a `Request`: its response message, serialised.
    Response {
        /// From the request.
        request_id: u64,
        /// The message or the error.
        result: Result<Bytes, Failure>,
    },
    /// The answer to a `Request` of `ServiceRegistry/Call`, not yet serialised.
    CallResult {
        /// From the request.
        request_id: u64,
        /// The provider's result or the error.
        result: Result<Payload, Failure>,
    },
    /// Are you alive?
    Ping {
        /// To be sent back.
        nonce: u64,
    },
    /// This channel will be closed.
    GoingAway {
        /// For people.
        reason: String,
    },
    /// The plugin's configuration changed.
    ConfigChanged {
        /// Its number.
        revision: u64,
        /// A JSON object.
        config: Bytes,
    },
    /// A plugin that this one requires or wants came or went.
    DependencyChanged {
        /// Which.
        name: PluginName,
        /// Whether it is STARTED now.
        available: bool,
    },
    /// What the plugin may do has changed: the whole.
    PermissionsChanged(Box<Listed>),
    /// How much the plugin should log.
    LogLevel {
        /// A word of the contract; empty for its own default.
        level: &'static str,
    },
}

/// A call on its way to its provider.
#[derive(Clone, Debug)]
pub struct CallFrame {
    /// Unique in this core, and so on every channel.
    pub call_id: u64,
    /// Full name of the service.
    pub service: Arc<str>,
    /// Arguments.
    pub arguments: Payload,
    /// When the caller stops waiting; travels as the time that is left.
    pub deadline: tokio::time::Instant,
    /// Who calls.
    pub caller: Source,
    /// Nesting depth; 1 outside any handler.
    pub depth: u32,
    /// What the caller was handling.
    pub cause: Option<Cause>,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}

/// Fixed part of what any frame weighs, queue entry included.
const BASE_WEIGHT: usize = 128;

impl CallFrame {
    /// See [`Outbound::weight`].
    #[must_use]
    pub fn weight(&self) -> usize {
        BASE_WEIGHT + self.arguments.data.len() + self.service.len() + self.traceparent.len()
    }
}

fn weight_of(listed: &Listed) -> usize {
    let all = listed.granted.iter().chain(&listed.denied);
    all.map(|permission| permission.resource().len() + BASE_WEIGHT / 4)
        .sum()
}

impl Outbound {
    /// Roughly what the frame weighs in the outbox, in bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let variable = match self {
            Self::Welcome(welcome) => welcome.config.len() + weight_of(&welcome.permissions),
            Self::PermissionsChanged(listed) => weight_of(listed),
            Self::ConfigChanged { config, .. } => config.len(),
            Self::Call(call) => return call.weight(),
            Self::Response {
                result: Ok(message),
                ..
            } => message.len(),
            Self::CallResult {
                result: Ok(payload),
                ..
            } => payload.data.len(),
            Self::Response {
                result: Err(failure),
                ..
            }
            | Self::CallResult {
                result: Err(failure),
                ..
            } => match failure {
                Failure::System(failure) => failure.message.len(),
                Failure::Application(failure) => {
                    failure.message.len()
                        + failure
                            .details
                            .iter()
                            .map(|(_, bytes)| bytes.len())
                            .sum::<usize>()
                }
            },
            Self::GoingAway { reason } => reason.len(),
            Self::RunHook { .. }
            | Self::CallCancel { .. }
            | Self::Ping { .. }
            | Self::LogLevel { .. }
            | Self::DependencyChanged { .. } => 0,
        };
        BASE_WEIGHT + variable
    }

    /// Whether the frame overtakes what is queued (law 5 of the channel).
    #[must_use]
    pub fn overtakes(&self) -> bool {
        matches!(self, Self::Ping { .. } | Self::CallCancel { .. })
    }
}
