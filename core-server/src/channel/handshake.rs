//! The handshake: what the two sides tell each other first, and its pure rules.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Need, Permission};
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::security::Listed;
use crate::service_registry::ServiceDescription;
use crate::types::{Generation, PluginName, RunId};

/// What a plugin says of itself.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// Wire versions it speaks; 0 and 0 mean 1.
    pub wire_versions: (u32, u32),
    /// Random bytes of its process; empty: every `Open` is another instance.
    pub instance: Bytes,
    /// Its version, for people.
    pub plugin_version: String,
    /// One line about it, for people.
    pub description: String,
    /// The library that speaks: "plugin-sdk-rust 0.1.0".
    pub sdk: String,
    /// It answers `Ping`.
    pub heartbeat: bool,
    /// It takes a changed configuration without a restart.
    pub live_config: bool,
    /// It needs no hooks but UNLOAD.
    pub ready: bool,
    /// Services to register with the run; each either parsed or refused already.
    pub services: Vec<Result<ServiceDescription, RefusedService>>,
    /// Calls it works on at once; 0 = the core's default.
    pub max_calls_in_flight: u32,
    /// Plugins that must be STARTED first; used where the core has no manifest.
    pub requires: Vec<PluginName>,
    /// What it asks for beyond its own area, and whether it copes without; used of remote plugins.
    pub permissions: Vec<(Permission, Need)>,
}

/// A service that was not registered, and why.
#[derive(Clone, Debug)]
pub struct RefusedService {
    /// As it was sent.
    pub name: String,
    /// Why.
    pub failure: Failure,
}

/// The core's answer.
#[derive(Clone, Debug)]
pub struct Welcome {
    /// The run.
    pub run: RunId,
    /// The plugin, as its credential says.
    pub plugin: PluginName,
    /// The run's number.
    pub generation: Generation,
    /// The wire version in use.
    pub wire_version: u32,
    /// Pings will be sent this often.
    pub heartbeat_interval: Option<Duration>,
    /// `ConfigChanged` may be sent.
    pub live_config: bool,
    /// The plugin's configuration: a JSON object.
    pub config: Bytes,
    /// Rises when it changes.
    pub config_revision: u64,
    /// Services that were not registered.
    pub refused: Vec<RefusedService>,
    /// It goes on with its run: hooks are not run again.
    pub resumed: bool,
    /// What it is granted and denied.
    pub permissions: Listed,
    /// See `ChannelLimits`.
    pub max_message_bytes: usize,
    /// See `ChannelLimits`.
    pub max_payload_bytes: usize,
}

/// The two sides share no wire version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plugin speaks wire versions {}-{}, this core (version {core_version}) {}-{}: update {}",
    plugin.0, plugin.1, core.start(), core.end(),
    if plugin.0 > *core.end() { "the core" } else { "the plugin's SDK" }
)]
pub struct WireVersionMismatch {
    /// What the plugin speaks.
    pub plugin: (u32, u32),
    /// What this core speaks.
    pub core: RangeInclusive<u32>,
    /// This core's software version.
    pub core_version: &'static str,
}

impl Classify for WireVersionMismatch {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }

    fn reason(&self) -> Reason {
        Reason::WireVersion
    }
}

/// Picks the highest wire version that both sides speak.
///
/// # Errors
/// [`WireVersionMismatch`] when there is none.
pub fn negotiate(
    plugin: (u32, u32),
    core: RangeInclusive<u32>,
) -> Result<u32, WireVersionMismatch> {
    let (low, high) = if plugin == (0, 0) {
        (1, 1)
    } else {
        (plugin.0, plugin.1.max(plugin.0))
    };
    let chosen = high.min(*core.end());
    if chosen >= low && chosen >= *core.start() {
        return Ok(chosen);
    }
    Err(WireVersionMismatch {
        plugin: (low, high),
        core,
        core_version: env!("CARGO_PKG_VERSION"),
    })
}

/// What an `Open` means for a plugin that may have a live run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// There is no run to go on with: begin one.
    New,
    /// The same process comes back to its run.
    Resume,
    /// Another process holds the run.
    Taken,
}

/// Judges an `Open` by its instance. `live` is the instance that holds the run, if one does.
#[must_use]
pub fn claim(live: Option<&[u8]>, instance: &[u8]) -> Claim {
    match live {
        None => Claim::New,
        Some(held) if !held.is_empty() && held == instance => Claim::Resume,
        Some(_) => Claim::Taken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        for (plugin, core, expected) in [
            ((0, 0), 1..=1, Some(1)),
            ((1, 1), 1..=1, Some(1)),
            ((1, 3), 1..=2, Some(2)),
            ((2, 3), 1..=2, Some(2)),
            ((1, 0), 1..=2, Some(1)),
            ((2, 2), 1..=1, None),
            ((1, 1), 2..=3, None),
        ] {
            assert_eq!(
                negotiate(plugin, core.clone()).ok(),
                expected,
                "{plugin:?} {core:?}"
            );
        }
    }

    #[test]
    fn a_mismatch_names_both_versions_and_which_side_to_update() {
        let newer = negotiate((2, 3), 1..=1).expect_err("newer").to_string();
        assert!(
            newer.contains("2-3") && newer.contains("1-1") && newer.ends_with("update the core")
        );
        let older = negotiate((1, 1), 2..=3).expect_err("older").to_string();
        assert!(older.ends_with("update the plugin's SDK"), "{older}");
    }

    #[test]
    fn an_instance_comes_back_to_its_own_run_only() {
        assert_eq!(claim(None, b"a"), Claim::New);
        assert_eq!(claim(Some(b"a"), b"a"), Claim::Resume);
        assert_eq!(claim(Some(b"a"), b"b"), Claim::Taken);
        assert_eq!(claim(Some(b"a"), b""), Claim::Taken);
        assert_eq!(claim(Some(b""), b""), Claim::Taken);
    }
}
