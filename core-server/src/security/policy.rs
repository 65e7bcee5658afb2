//! How permissions are applied: what the configuration says of all plugins at once.

use super::audit::Audit;
use super::grants::{Granting, Mode};
use super::quota::Metering;

/// What is read through a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// Events.
    Events,
    /// State keys.
    State,
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
