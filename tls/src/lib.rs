//! TLS as both sides of a core's connections need it: the crypto in use, which certificates a client
//! trusts, join strings, and how a plugin on another machine gets its certificate and the next one.
//!
//! Does not own: the core's certificate authority and its listeners (`core-server`), nor when a plugin
//! renews (its SDK, or `corectl join`).
//!
//! Invariants
//! - TLS 1.3 only, HTTP/2 only (ALPN "h2").
//! - There is no trust on first use: a client has a CA's certificate or its SHA-256 before it connects.
//! - A clock that is behind keeps nobody out: no moment before [`NOT_BEFORE`] is believed.

mod client;
mod enroll;
mod join;
mod store;
mod verify;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use client::{ClientTls, Error, TlsStream};
pub use enroll::{EnrollError, Enrolled, NewKey, join, renew};
pub use join::{BadJoinString, JoinString, Pin};
pub use store::{CredentialsDir, Stored};

use rustls::crypto::CryptoProvider;

/// The `notBefore` of every certificate that a core issues: 2025-01-01T00:00:00Z. Boards without a clock
/// of their own wake up earlier than that, and take it for the present until they know better.
pub const NOT_BEFORE: Duration = Duration::from_secs(1_735_689_600);

/// What HTTP/2 is called in a handshake.
pub const ALPN: &[u8] = b"h2";

/// The crypto in use.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The present, or [`NOT_BEFORE`] where the clock is behind it.
#[must_use]
pub fn believable(now: SystemTime) -> SystemTime {
    // A second later: at the very moment validity begins, some would not call it valid yet.
    now.max(SystemTime::UNIX_EPOCH + NOT_BEFORE + Duration::from_secs(1))
}
