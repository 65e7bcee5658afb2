//! Who speaks, and what they may do. One authorisation point for every RPC, unary or stream, and for
//! every request frame of a channel.
//!
//! Owns: credentials of runs, of remote plugins and of operators, the certificate authority, principals, the table principal x RPC, the
//! rule of a plugin's own area, the merge of what is asked for, granted and denied, and what each plugin uses. Does not
//! own: connections (`transport/`), runs (`channel/`), nor the moment at which another grant comes into force
//! (`plugin_manager/`).
//!
//! Invariants
//! - A plugin's name comes from its credential, never from a message.
//! - Secrets are kept as hashes, compared in constant time, and have no `Debug` that shows them.
//! - An RPC without a rule is refused, and a test over all RPCs of the contract names it.

pub mod access;
pub mod audit;
pub mod authority;
mod credentials;
mod gatekeeper;
mod grants;
mod identity;
pub mod operator_grants;
mod permissions;
mod policy;
mod quota;
mod refusal;
mod review;
mod uses;

pub use access::Access;
pub use audit::Audit;
pub use authority::Authority;
pub(crate) use authority::read_private;
pub use credentials::{
    Credential, Credentials, Digest, Holder, OperatorToken, Token, Worth, digest_of,
};
pub use gatekeeper::{Admitted, Gatekeeper, Presented, Stats};
pub use grants::{Effective, Granting, Listed, Mode, Verdict};
pub use identity::{Caller, Peer, Principal, RequestId};
pub use permissions::{Action, Denied, Needs, NotGranted, RULES, Rule, part_of, reserved, rule_of};
pub use policy::{Policy, Read};
pub use quota::{Exceeded, Meter, Metering, Reading, Share};
pub use refusal::Error;
pub use review::{Review, Standing};
