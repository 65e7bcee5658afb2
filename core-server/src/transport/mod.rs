//! Listeners and connections: unix sockets, TCP, in memory. Everything above sees requests with a
//! [`Peer`] attached.
//!
//! Owns: sockets and their directory, the accept loops, HTTP/2's limits, the end of connections.
//! Does not own: who may do what (`security/`), what requests mean (`grpc/`).
//!
//! Invariants
//! - Where TLS is spoken, nothing else is: a handshake that is not done within 5 s ends the connection,
//!   and until then it has the place of somebody unknown.
//! - Every connection speaks HTTP/2 from its first byte; one that has not sent the whole preface
//!   within 5 s is closed, so that nothing waits without a bound before HTTP/2's own timers run.
//! - HTTP/2's limits are all set here, by hand ([`Http2`], `config::http2`); none is lifted. What hyper
//!   and h2 do not limit, frames that cost the core work and carry nothing, is metered below them
//!   (`frames`).
//! - A connection is *identified* once a request on it has carried a valid credential ([`Standing`]; the
//!   gate says so), or by its socket: operators, plugins of this process. Before that it may have to go
//!   for another, and has few requests at once.
//! - When something was last read from a connection is noted below HTTP/2 and goes with each request, so
//!   that a silent process is told from a busy one.
//! - The core's own lateness closes no connection: a timer that fires late begins anew (`timer`).
//! - Nagle's algorithm is off on TCP.
//! - When told to stop, listeners close at once, connections finish the requests they have, and what
//!   is left after the scope's budget is cut.
//!
//! When full (`places`): of more than 64 unidentified connections the oldest is closed, and so it is when
//! a new one finds all 1,024 places taken; where all are taken by identified ones a new one is closed at
//! once. Operators and plugins of this process have 32 more to themselves. When descriptors run out,
//! accepting pauses for 100 ms at a time, and with each pause the oldest unidentified one is closed. All
//! of it is counted ([`Stats`]).

mod frames;
mod gathered;
mod heard;
mod listen;
mod metered;
mod pass_writes;
mod peer;
mod places;
mod preface;
mod serve;
mod standing;
mod timer;
mod tls;

#[cfg(feature = "fuzzing")]
pub(crate) use frames::fuzz as fuzz_frames;
pub use listen::{Error, PluginsAndOperators, SocketFiles, bind_tcp, bind_unix};
pub use peer::Supervised;
pub use serve::{Http2, Server, Stats};
pub use standing::{AnonymousRequest, Standing};
pub use tls::{Follower, Seen, Tls, TlsError};

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
