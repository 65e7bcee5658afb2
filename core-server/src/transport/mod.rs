//! Listeners and connections: unix sockets, TCP, in memory. Everything above sees requests with a
//! [`Peer`] attached.
//!
//! Owns: sockets and their directory, the accept loops, HTTP/2's limits, the end of connections.
//! Does not own: who may do what (`security/`), what requests mean (`grpc/`).
//!
//! Invariants
//! - Every connection speaks HTTP/2 from its first byte; one that has not sent the whole preface
//!   within 5 s is closed, so that nothing waits without a bound before HTTP/2's own timers run.
//! - HTTP/2's limits are hyper's with ours on top ([`Http2`]); none is lifted.
//! - When something was last read from a connection is noted below HTTP/2 and goes with each request, so
//!   that a silent process is told from a busy one.
//! - The core's own lateness closes no connection: a timer that fires late begins anew (`timer`).
//! - Nagle's algorithm is off on TCP.
//! - When told to stop, listeners close at once, connections finish the requests they have, and what
//!   is left after the scope's budget is cut.
//!
//! When full: above 1,024 connections a new one is closed at once, and counted; operators and plugins of
//! this process have 32 more to themselves. When the process runs
//! out of descriptors, accepting pauses for 100 ms at a time.

mod heard;
mod listen;
mod pass_writes;
mod peer;
mod preface;
mod serve;
mod timer;

pub use listen::{Error, PluginsAndOperators, SocketFiles, bind_tcp, bind_unix};
pub use peer::Supervised;
pub use serve::{Http2, Server, Stats};

use crate::security::Peer;

/// Bytes of an in-memory connection that may be under way in each direction.
const MEMORY_BUFFER_BYTES: usize = 256 << 10;

/// Which unix socket a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `core.sock`.
    Plugins,
    /// `operator.sock`.
    Operators,
}
