//! Who speaks, and what they may do. One authorisation point for every RPC, unary or stream, and for
//! every request frame of a channel.
//!
//! Owns: credentials of runs and of remote plugins, principals, the table principal x RPC, and the
//! rule of a plugin's own area. Does not own: connections (`transport/`) nor runs (`channel/`).
//!
//! Invariants
//! - A plugin's name comes from its credential, never from a message.
//! - Secrets are kept as hashes, compared in constant time, and have no `Debug` that shows them.
//! - An RPC without a rule is refused, and a test over all RPCs of the contract names it.

mod credentials;
mod gatekeeper;
mod identity;
mod permissions;

pub use credentials::{Credential, Credentials, Token};
pub use gatekeeper::{Admitted, Error, Gatekeeper, Presented, Stats};
pub use identity::{Caller, Peer, Principal};
pub use permissions::{Action, Denied, Needs, NotGranted, RULES, Rule, allows, reserved, rule_of};
