//! Who is at the other end of a connection, and who makes a request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::channel::{CallerSlots, Run};
use crate::types::{Cause, Source};

/// What the transport knows of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The plugins' unix socket. A credential is needed.
    PluginSocket {
        /// The peer's user.
        uid: u32,
    },
    /// The operators' unix socket.
    OperatorSocket {
        /// The peer's user.
        uid: u32,
        /// The peer belongs to a supervised run.
        supervised: bool,
    },
    /// TCP. A credential is needed.
    Tcp(SocketAddr),
    /// In memory, inside this process. A credential is needed.
    Memory,
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PluginSocket { uid } => write!(formatter, "plugin socket, uid {uid}"),
            Self::OperatorSocket { uid, .. } => write!(formatter, "operator socket, uid {uid}"),
            Self::Tcp(address) => write!(formatter, "tcp {address}"),
            Self::Memory => formatter.write_str("in memory"),
        }
    }
}

/// Who makes a request, as far as rules care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Nobody known.
    Anonymous,
    /// A plugin.
    Plugin,
    /// A person or tool with the operator's rights.
    Operator,
}

/// Who makes a request, with what it carries. Made by the one authorisation point.
#[derive(Clone, Debug)]
pub struct Caller {
    /// A plugin or an operator.
    pub source: Source,
    /// The plugin's live run; `None` for operators.
    pub run: Option<Arc<Run>>,
    /// The caller's share of calls in flight.
    pub slots: Arc<CallerSlots>,
    /// When the caller stops waiting, if it says so.
    pub deadline: Option<Instant>,
    /// What the caller was handling.
    pub cause: Option<Cause>,
    /// W3C trace context; may be empty.
    pub traceparent: String,
}
