//! Why a call was not answered by its provider.

use std::time::Duration;

use crate::error::{Classify, ErrorKind, Outcome, Reason};
use crate::service_registry;
use crate::types::{PluginName, ServiceName};

/// Errors of routing: the system's, never the application's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody ever declared it.
    #[error(transparent)]
    NoSuchService(#[from] service_registry::Error),
    /// Known, but its provider is not STARTED.
    #[error(
        "plugin \"{plugin}\", which provides \"{service}\", is not started; start it, or call with wait_for_ready"
    )]
    NoProvider {
        /// What was called.
        service: ServiceName,
        /// Who provides it.
        plugin: PluginName,
        /// When trying again may help.
        retry_after: Option<Duration>,
    },
    /// Its provider is STARTED, but offers it no more.
    #[error(
        "plugin \"{plugin}\" has taken its service \"{service}\" back, or has not registered it again"
    )]
    TakenBack {
        /// What was called.
        service: ServiceName,
        /// Who provided it.
        plugin: PluginName,
    },
    /// It misses heartbeats.
    #[error(
        "plugin \"{plugin}\", which provides \"{service}\", misses heartbeats; try again later"
    )]
    Degraded {
        /// What was called.
        service: ServiceName,
        /// Who provides it.
        plugin: PluginName,
    },
    /// Places and line are full.
    #[error("plugin \"{plugin}\" has {limit} calls waiting for a place; slow down and try again")]
    ProviderBusy {
        /// Who is busy.
        plugin: PluginName,
        /// Length of the line.
        limit: usize,
    },
    /// It does not read its channel fast enough.
    #[error("plugin \"{plugin}\" does not read its channel fast enough; slow down and try again")]
    ProviderNotReading {
        /// Who is slow.
        plugin: PluginName,
    },
    /// The provider went away with the call.
    #[error(
        "plugin \"{plugin}\" went away before it answered \"{service}\"; the call may have taken effect"
    )]
    ProviderLost {
        /// What was called.
        service: ServiceName,
        /// Who went away.
        plugin: PluginName,
    },
    /// Time ran out.
    #[error("\"{service}\" was not answered within its deadline ({})",
        if *dispatched { "the provider has the call" } else { "it was not dispatched" })]
    Expired {
        /// What was called.
        service: ServiceName,
        /// The provider already had it.
        dispatched: bool,
    },
    /// The caller gave up.
    #[error("the call was cancelled by its caller ({})",
        if *dispatched { "the provider had the call" } else { "it was not dispatched" })]
    Cancelled {
        /// The provider already had it.
        dispatched: bool,
    },
    /// The core is stopping.
    #[error("the core is stopping; call again when it is back")]
    ShuttingDown,
    /// Nested too deep.
    #[error(
        "calls are nested deeper than {limit}; look for plugins that call each other in a circle"
    )]
    TooDeep {
        /// The limit.
        limit: u32,
    },
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchService(error) => error.kind(),
            Self::NoProvider { .. }
            | Self::TakenBack { .. }
            | Self::Degraded { .. }
            | Self::ProviderLost { .. }
            | Self::ShuttingDown => ErrorKind::Unavailable,
            Self::ProviderBusy { .. } | Self::ProviderNotReading { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::Expired { .. } => ErrorKind::DeadlineExceeded,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::TooDeep { .. } => ErrorKind::FailedPrecondition,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NoSuchService(error) => error.reason(),
            Self::NoProvider { .. } | Self::TakenBack { .. } => Reason::NoProvider,
            Self::Degraded { .. } => Reason::ProviderDegraded,
            Self::ProviderBusy { .. } | Self::ProviderNotReading { .. } => Reason::ProviderBusy,
            Self::ProviderLost { .. } => Reason::ProviderLost,
            Self::Expired { .. } => Reason::Deadline,
            Self::Cancelled { .. } => Reason::Cancelled,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::TooDeep { .. } => Reason::CallDepth,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NoSuchService(error) => error.metadata(),
            Self::NoProvider {
                service, plugin, ..
            }
            | Self::TakenBack { service, plugin }
            | Self::Degraded { service, plugin }
            | Self::ProviderLost { service, plugin } => {
                vec![
                    ("service", service.to_string()),
                    ("plugin", plugin.to_string()),
                ]
            }
            Self::ProviderBusy { plugin, limit } => {
                vec![("plugin", plugin.to_string()), ("limit", limit.to_string())]
            }
            Self::ProviderNotReading { plugin } => vec![("plugin", plugin.to_string())],
            Self::Expired {
                service,
                dispatched,
            } => {
                vec![
                    ("service", service.to_string()),
                    ("dispatched", dispatched.to_string()),
                ]
            }
            Self::Cancelled { dispatched } => vec![("dispatched", dispatched.to_string())],
            Self::ShuttingDown => Vec::new(),
            Self::TooDeep { limit } => vec![("limit", limit.to_string())],
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoProvider { retry_after, .. } => *retry_after,
            Self::Degraded { .. } => Some(Duration::from_secs(5)),
            Self::ProviderBusy { .. } | Self::ProviderNotReading { .. } => {
                Some(Duration::from_millis(100))
            }
            Self::ProviderLost { .. } => Some(Duration::from_millis(250)),
            _ => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::ProviderLost { .. }
            | Self::Expired {
                dispatched: true, ..
            }
            | Self::Cancelled { dispatched: true } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }
}
