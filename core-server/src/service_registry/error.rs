//! What can go wrong with a registration or a look-up.

use crate::error::{Classify, ErrorKind, Reason};
use crate::types::PluginName;

/// Errors of the registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody ever declared it.
    #[error("service \"{service}\" is not registered{suggestion}")]
    NotFound {
        /// What was asked for.
        service: String,
        /// `; did you mean "…"?` or nothing.
        suggestion: String,
    },
    /// Another plugin has it.
    #[error("service \"{service}\" is registered by plugin \"{owner}\"")]
    Taken {
        /// The name.
        service: String,
        /// Who has it.
        owner: PluginName,
    },
    /// The plugin has as many as it may.
    #[error("a plugin may register at most {limit} services: \"{service}\" is one too many")]
    TooMany {
        /// The one refused.
        service: String,
        /// The limit.
        limit: usize,
    },
    /// The run ended while it asked.
    #[error("service \"{service}\" is not registered: this run of plugin \"{plugin}\" has ended")]
    RunEnded {
        /// The one refused.
        service: String,
        /// Whose run.
        plugin: PluginName,
    },
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::TooMany { .. } => ErrorKind::ResourceExhausted,
            Self::RunEnded { .. } => ErrorKind::FailedPrecondition,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NotFound { .. } => Reason::NoSuchService,
            Self::Taken { .. } => Reason::ServiceTaken,
            Self::TooMany { .. } => Reason::TooManyServices,
            Self::RunEnded { .. } => Reason::StaleRun,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotFound { service, .. } => vec![("service", service.clone())],
            Self::Taken { service, owner } => {
                vec![("service", service.clone()), ("owner", owner.to_string())]
            }
            Self::TooMany { service, limit } => {
                vec![("service", service.clone()), ("limit", limit.to_string())]
            }
            Self::RunEnded { service, plugin } => {
                vec![("service", service.clone()), ("plugin", plugin.to_string())]
            }
        }
    }
}
