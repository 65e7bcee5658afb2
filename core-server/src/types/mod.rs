//! Words of the domain as types: parsed once, trusted afterwards. No rule of a component lives here,
//! only grammars and identities.

mod dotted;
mod identity;
pub mod json;
mod pattern;
mod position;

pub use dotted::{BadName, MAX_BYTES, MAX_TOKENS, ServiceName, StateKey, Topic};
pub use identity::{BadPluginName, Generation, PluginName, RunId, Source};
pub use pattern::Pattern;
pub use position::{BadCause, Cause, Epoch, Payload, Position, Revision};
