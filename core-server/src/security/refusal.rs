//! Why a request is not admitted: what the caller can do about it.

use std::time::SystemTime;

use super::credentials::Holder;
use super::permissions::NotGranted;
use crate::error::{Classify, ErrorKind, Reason};
use crate::types::{BadCause, PluginName};

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no credential where one is needed.
    #[error(
        "{method} needs a credential: send the metadata `authorization: Bearer <token>`; a child process has its token in CORE_TOKEN"
    )]
    NoCredential {
        /// What was asked for.
        method: String,
    },
    /// Unknown, revoked, or of an ended run.
    #[error("the credential is not valid: it is unknown, was revoked, or its run has ended")]
    BadCredential,
    /// It was good once.
    #[error("the credential of {holder} expired at {at}{advice}")]
    Expired {
        /// Whose.
        holder: String,
        /// When, in RFC 3339.
        at: String,
        /// What to do.
        advice: &'static str,
    },
    /// Operators' tokens are for networks that nobody else can listen on.
    #[error("operators' tokens are taken over TLS and from this machine's loopback only{advice}")]
    OperatorToken {
        /// What to do instead.
        advice: &'static str,
    },
    /// There is no client certificate where one is needed.
    #[error("{method} needs the client certificate of a plugin; a token renews nothing")]
    NoCertificate {
        /// What was asked for.
        method: String,
    },
    /// The peer's user is not the one the token was made for, or cannot be told.
    #[error("the token was made for another user, or for core.sock alone")]
    WrongUser,
    /// The peer of the operator socket is no operator.
    #[error("uid {uid} is not an operator of this core; add it to `operators` in core.toml")]
    NotOperator {
        /// The peer's user.
        uid: u32,
    },
    /// A plugin's process came through the operator socket.
    #[error("processes of a plugin may not use the operator socket; use CORE_ADDR and CORE_TOKEN")]
    SupervisedPeer,
    /// This kind of caller may not use this RPC.
    #[error("{caller} may not use {method}{advice}")]
    NotAllowed {
        /// What was asked for.
        method: String,
        /// Who asked.
        caller: String,
        /// Where it is to be had.
        advice: &'static str,
    },
    /// A plugin may not use this part of the core's management.
    #[error(transparent)]
    NotManaging(Box<NotGranted>),
    /// The plugin has no live channel.
    #[error("plugin \"{plugin}\" has no live channel: open one (PluginChannel.Open) first")]
    NoRun {
        /// Which.
        plugin: PluginName,
    },
    /// The request names an ended run.
    #[error("run {run} of plugin \"{plugin}\" has ended; use the run of the latest Welcome")]
    StaleRun {
        /// Which plugin.
        plugin: PluginName,
        /// Which run, as it was sent.
        run: String,
    },
    /// `core-parent` cannot be read.
    #[error(transparent)]
    BadParent(#[from] BadCause),
}

impl Error {
    /// The plugin that it is about, if it is known.
    #[must_use]
    pub fn plugin(&self) -> Option<&PluginName> {
        match self {
            Self::NoRun { plugin } | Self::StaleRun { plugin, .. } => Some(plugin),
            Self::NotManaging(missing) => Some(missing.plugin()),
            _ => None,
        }
    }

    /// Whether the caller is known all the same: the credential was valid, the request was not.
    #[must_use]
    pub fn is_told_to_somebody_known(&self) -> bool {
        match self {
            Self::NotAllowed { .. }
            | Self::NotManaging(_)
            | Self::NoRun { .. }
            | Self::StaleRun { .. }
            | Self::BadParent(_) => true,
            Self::NoCredential { .. }
            | Self::BadCredential
            | Self::Expired { .. }
            | Self::OperatorToken { .. }
            | Self::NoCertificate { .. }
            | Self::WrongUser
            | Self::NotOperator { .. }
            | Self::SupervisedPeer => false,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoCredential { .. }
            | Self::BadCredential
            | Self::Expired { .. }
            | Self::OperatorToken { .. }
            | Self::NoCertificate { .. }
            | Self::WrongUser => ErrorKind::Unauthenticated,
            Self::NotOperator { .. }
            | Self::SupervisedPeer
            | Self::NotManaging(_)
            | Self::NotAllowed { .. } => ErrorKind::PermissionDenied,
            Self::NoRun { .. } | Self::StaleRun { .. } => ErrorKind::FailedPrecondition,
            Self::BadParent(_) => ErrorKind::InvalidArgument,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NoCredential { .. }
            | Self::BadCredential
            | Self::Expired { .. }
            | Self::OperatorToken { .. }
            | Self::NoCertificate { .. }
            | Self::WrongUser => Reason::BadCredential,
            Self::NotOperator { .. } | Self::SupervisedPeer | Self::NotAllowed { .. } => {
                Reason::NotAllowed
            }
            Self::NotManaging(_) => Reason::NotGranted,
            Self::NoRun { .. } => Reason::NoRun,
            Self::StaleRun { .. } => Reason::StaleRun,
            Self::BadParent(_) => Reason::BadField,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NoCredential { method } | Self::NoCertificate { method } => {
                vec![("method", method.clone())]
            }
            Self::NotAllowed { method, caller, .. } => {
                vec![("method", method.clone()), ("caller", caller.clone())]
            }
            Self::NoRun { plugin } => vec![("plugin", plugin.to_string())],
            Self::StaleRun { plugin, run } => {
                vec![("plugin", plugin.to_string()), ("run", run.clone())]
            }
            Self::NotManaging(missing) => missing.metadata(),
            Self::BadParent(_) => vec![("field", "core-parent".to_owned())],
            Self::BadCredential
            | Self::Expired { .. }
            | Self::OperatorToken { .. }
            | Self::WrongUser
            | Self::SupervisedPeer => Vec::new(),
            Self::NotOperator { uid } => vec![("uid", uid.to_string())],
        }
    }
}

/// It may be as long as a message, and stands twice in the answer.
pub(super) fn shortened(method: &str) -> String {
    method.chars().take(80).collect()
}

/// The refusal of a credential that was good once.
pub(super) fn expired(holder: &Holder, since: SystemTime) -> Error {
    let at = jiff::Timestamp::try_from(since).map_or_else(|_| String::new(), |at| at.to_string());
    match holder {
        Holder::Plugin(credential) => Error::Expired {
            holder: format!("plugin \"{}\"", credential.plugin),
            at,
            advice: "; a certificate is renewed within 30 days (Enrollment.Renew), else invite the \
                     plugin again: corectl plugins invite",
        },
        Holder::Operator(token) => Error::Expired {
            holder: format!("operator's token {}", token.id),
            at,
            advice: "; make another: corectl tokens create",
        },
    }
}
