//! Who is at the other end of a connection, and who makes a request.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::credentials::Digest;
use super::quota::Meter;
use crate::channel::{ChannelId, Run};
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
    /// TCP without TLS. A credential is needed.
    Tcp(SocketAddr),
    /// TCP with TLS. A credential is needed: a certificate or a token.
    Tls {
        /// Where it comes from.
        address: SocketAddr,
        /// When it was connected.
        since: SystemTime,
        /// The digest of the certificate that it has shown, signed by this core's authority, with the
        /// proof that it is its own. Not judged further.
        certificate: Option<Digest>,
    },
    /// In memory, inside this process. A credential is needed.
    Memory,
}

impl Peer {
    /// Where it comes from, if over a network.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) | Self::Tls { address, .. } => Some(*address),
            Self::PluginSocket { .. } | Self::OperatorSocket { .. } | Self::Memory => None,
        }
    }

    /// Whether nobody else can read what is sent.
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Tls { .. } | Self::PluginSocket { .. } | Self::OperatorSocket { .. } => true,
            Self::Memory => true,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PluginSocket { uid } => write!(formatter, "plugin socket, uid {uid}"),
            Self::OperatorSocket { uid, .. } => write!(formatter, "operator socket, uid {uid}"),
            Self::Tcp(address) => write!(formatter, "tcp {address}"),
            Self::Tls { address, .. } => write!(formatter, "tls {address}"),
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
    /// What it uses of the core.
    pub meter: Arc<Meter>,
    /// When the caller stops waiting, if it says so.
    pub deadline: Option<Instant>,
    /// What the caller was handling.
    pub cause: Option<Cause>,
    /// W3C trace context; may be empty.
    pub traceparent: String,
    /// Cancelled when the credential that it came with is worth nothing any more.
    pub revoked: Option<CancellationToken>,
    /// Which operator: "uid 1000", "token 5d41402a (laptop)".
    pub operator: Option<Arc<str>>,
    /// Where it comes from, as far as it is known.
    pub peer: Option<Peer>,
    /// Which request it is, for the audit log.
    pub request: RequestId,
}

/// A request in the audit log: what it did and what it was refused have the same. Unique while the core
/// runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequestId {
    /// None: the core acts by itself.
    #[default]
    None,
    /// An RPC, in the order in which they came.
    Rpc(u64),
    /// A `Request` on a channel.
    Frame(ChannelId, u64),
}

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Rpc(number) => write!(formatter, "r{number}"),
            Self::Frame(channel, number) => write!(formatter, "c{channel}.{number}"),
        }
    }
}
