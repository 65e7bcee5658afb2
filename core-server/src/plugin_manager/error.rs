//! What can go wrong with a request about a plugin, or with an `Open`.

use std::time::Duration;

use crate::channel::handshake::WireVersionMismatch;
use crate::error::{Classify, ErrorKind, Reason};
use crate::supervisor::lifecycle::{Phase, PluginState, Request};
use crate::types::PluginName;

/// Errors of the plugin manager.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no plugin of this name.
    #[error("there is no plugin \"{name}\"{suggestion}")]
    NoSuchPlugin {
        /// What was asked for.
        name: String,
        /// `; did you mean "…"?` or nothing.
        suggestion: String,
    },
    /// The request is impossible in this state.
    #[error(
        "plugin \"{plugin}\" is {}: it cannot {}; possible: {}",
        state.as_str(), request.as_str(), allowed.join(", ")
    )]
    WrongState {
        /// Which.
        plugin: PluginName,
        /// Its state.
        state: PluginState,
        /// What was asked for.
        request: Request,
        /// What could be.
        allowed: &'static [&'static str],
    },
    /// Plugins require each other in a circle.
    #[error(
        "plugins require each other in a circle: {}; take one of these requirements out",
        path_text(path)
    )]
    DependencyCycle {
        /// The circle; its first plugin stands at the end again.
        path: Vec<PluginName>,
    },
    /// A newer request took this one's place.
    #[error("a newer request for plugin \"{plugin}\" took this one's place")]
    Superseded {
        /// Which.
        plugin: PluginName,
    },
    /// The try failed.
    #[error("plugin \"{plugin}\" did not get there ({}): {cause}", phase.as_str())]
    PluginFailed {
        /// Which.
        plugin: PluginName,
        /// Where it is now.
        phase: Phase,
        /// Why.
        cause: String,
    },
    /// Time ran out; what was asked for stands.
    #[error("plugin \"{plugin}\" is still {} ({explanation}); the request stands", phase.as_str())]
    Deadline {
        /// Which.
        plugin: PluginName,
        /// Where it is now.
        phase: Phase,
        /// What goes on.
        explanation: String,
    },
    /// Another process holds the plugin's run.
    #[error(
        "another process is connected as plugin \"{plugin}\": stop it, or give this one a name of its own"
    )]
    AlreadyConnected {
        /// Which.
        plugin: PluginName,
        /// When its run may have ended.
        retry_after: Duration,
    },
    /// It is not to run.
    #[error("plugin \"{plugin}\" is not wanted: {explanation}")]
    NotWanted {
        /// Which.
        plugin: PluginName,
        /// Why.
        explanation: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// It fails too often.
    #[error("plugin \"{plugin}\" failed and must wait before its next run: {explanation}")]
    Backoff {
        /// Which.
        plugin: PluginName,
        /// The failure.
        explanation: String,
        /// How long.
        retry_after: Duration,
    },
    /// Its lines go to the core's log.
    #[error(
        "plugin \"{plugin}\" is embedded: it writes to the log of the program around it, with the level of that"
    )]
    LogShared {
        /// Which.
        plugin: PluginName,
    },
    /// It cannot be upgraded here.
    #[error("plugin \"{plugin}\" cannot be upgraded by the core: {why}")]
    NotUpgradable {
        /// Which.
        plugin: PluginName,
        /// Why, and where it can be.
        why: &'static str,
    },
    /// The new version failed, and the one before was taken back.
    #[error("the new version of plugin \"{plugin}\" failed ({cause}); the one before runs again")]
    RolledBack {
        /// Which.
        plugin: PluginName,
        /// Why.
        cause: String,
    },
    /// It was done, and could not be written down.
    #[error(
        "plugin \"{plugin}\" is as asked for, but that could not be written down ({cause}): it holds until the \
         core ends, and is written as soon as it can be"
    )]
    NotKept {
        /// Which.
        plugin: PluginName,
        /// What the system said.
        cause: String,
    },
    /// Operators have granted it as much as they can.
    #[error(
        "plugin \"{plugin}\" may have {limit} grants of operators; patterns like home.> grant many at once"
    )]
    GrantsFull {
        /// Which.
        plugin: PluginName,
        /// How many there may be.
        limit: usize,
    },
    /// The core stops.
    #[error("the core is stopping")]
    ShuttingDown,
    /// The credential is of an ended run, or of no plugin that connects by itself.
    #[error("the credential is not valid (any more) for plugin \"{plugin}\"")]
    BadCredential {
        /// Which.
        plugin: PluginName,
    },
    /// No common wire version.
    #[error(transparent)]
    WireVersion(#[from] WireVersionMismatch),
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchPlugin { .. } => ErrorKind::NotFound,
            Self::WrongState { .. }
            | Self::DependencyCycle { .. }
            | Self::PluginFailed { .. }
            | Self::LogShared { .. }
            | Self::NotUpgradable { .. }
            | Self::RolledBack { .. } => ErrorKind::FailedPrecondition,
            Self::Superseded { .. } => ErrorKind::Aborted,
            Self::GrantsFull { .. } => ErrorKind::ResourceExhausted,
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
            Self::AlreadyConnected { .. } => ErrorKind::AlreadyExists,
            Self::NotWanted { .. }
            | Self::Backoff { .. }
            | Self::NotKept { .. }
            | Self::ShuttingDown => ErrorKind::Unavailable,
            Self::BadCredential { .. } => ErrorKind::Unauthenticated,
            Self::WireVersion(error) => error.kind(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NoSuchPlugin { .. } => Reason::NoSuchPlugin,
            Self::WrongState { .. } => Reason::WrongState,
            Self::DependencyCycle { .. } => Reason::DependencyCycle,
            Self::Superseded { .. } => Reason::Superseded,
            Self::PluginFailed { .. } => Reason::PluginFailed,
            Self::NotUpgradable { .. } => Reason::UpgradeRefused,
            Self::RolledBack { .. } => Reason::UpgradeRolledBack,
            Self::NotKept { .. } => Reason::NotKept,
            Self::Deadline { .. } => Reason::Deadline,
            Self::AlreadyConnected { .. } => Reason::AlreadyConnected,
            Self::NotWanted { .. } => Reason::NotWanted,
            Self::Backoff { .. } => Reason::Backoff,
            Self::LogShared { .. } => Reason::LogShared,
            Self::GrantsFull { .. } => Reason::GrantsFull,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::BadCredential { .. } => Reason::BadCredential,
            Self::WireVersion(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut facts = match self {
            Self::NoSuchPlugin { name, .. } => vec![("plugin", name.clone())],
            Self::WrongState {
                state,
                request,
                allowed,
                ..
            } => vec![
                ("state", state.as_str().to_owned()),
                ("request", request.as_str().to_owned()),
                ("allowed", allowed.join(",")),
            ],
            Self::DependencyCycle { path } => vec![("path", path_text(path))],
            Self::PluginFailed { phase, cause, .. } => {
                vec![
                    ("phase", phase.as_str().to_owned()),
                    ("cause", cause.clone()),
                ]
            }
            Self::RolledBack { cause, .. } | Self::NotKept { cause, .. } => {
                vec![("cause", cause.clone())]
            }
            Self::GrantsFull { limit, .. } => vec![("limit", limit.to_string())],
            Self::Deadline { phase, .. } => vec![("phase", phase.as_str().to_owned())],
            Self::WireVersion(error) => error.metadata(),
            _ => Vec::new(),
        };
        if let Some(plugin) = self.plugin() {
            facts.push(("plugin", plugin.to_string()));
        }
        facts
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::AlreadyConnected { retry_after, .. }
            | Self::NotWanted { retry_after, .. }
            | Self::Backoff { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }
}

impl Error {
    fn plugin(&self) -> Option<&PluginName> {
        match self {
            Self::WrongState { plugin, .. }
            | Self::Superseded { plugin }
            | Self::PluginFailed { plugin, .. }
            | Self::NotUpgradable { plugin, .. }
            | Self::RolledBack { plugin, .. }
            | Self::NotKept { plugin, .. }
            | Self::Deadline { plugin, .. }
            | Self::AlreadyConnected { plugin, .. }
            | Self::NotWanted { plugin, .. }
            | Self::Backoff { plugin, .. }
            | Self::LogShared { plugin }
            | Self::GrantsFull { plugin, .. }
            | Self::BadCredential { plugin } => Some(plugin),
            Self::NoSuchPlugin { .. }
            | Self::DependencyCycle { .. }
            | Self::ShuttingDown
            | Self::WireVersion(_) => None,
        }
    }
}

/// "a -> b -> a".
pub(super) fn path_text(path: &[PluginName]) -> String {
    path.iter()
        .map(PluginName::as_str)
        .collect::<Vec<_>>()
        .join(" -> ")
}
