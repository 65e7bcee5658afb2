//! How permissions are applied: what the configuration says of all plugins at once.

use super::audit::Audit;
use super::grants::{Granting, Mode};
use super::quota::Metering;
use crate::config::Manage;
use crate::types::Pattern;

/// What a stream goes on reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Events.
    Events(Pattern),
    /// State keys.
    State(Pattern),
    /// A namespace of the storage.
    Storage(String),
    /// What a part of the core's management opens, by this method.
    Management(&'static str, Manage),
}

/// How grants come about, what becomes of uses without one, how much may be used, and where it is noted.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Whether manifests are granted as asked.
    pub granting: Granting,
    /// Whether what is not granted is refused.
    pub mode: Mode,
    /// Where denials are noted.
    pub audit: Audit,
    /// Measures what plugins use.
    pub metering: Metering,
}
