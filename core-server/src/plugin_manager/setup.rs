//! What the plugin manager is set up with: its settings, and the parts that it works with.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use core_proto::embed::EmbeddedPlugin;
use tokio::io::DuplexStream;

use super::PluginInfo;
use crate::channel::Runs;
use crate::routing::Router;
use crate::security::operator_grants::OperatorGrants;
use crate::security::{Credentials, Gatekeeper};
use crate::service_registry::ServiceRegistry;
use crate::supervisor::custody::Custody;
use crate::supervisor::liveness::Times;
use crate::types::{PluginName, RunId};

/// Settings of the plugin manager; the defaults are the design's.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where what is wanted is kept.
    pub data_dir: PathBuf,
    /// Keep what is wanted over restarts of the core.
    pub keep_desired: bool,
    /// Where children find the core: `CORE_ADDR`.
    pub core_address: String,
    /// This core's instance: `CORE_COOKIE` of its children.
    pub cookie: String,
    /// Pings, and what follows when they are not answered.
    pub liveness: Times,
    /// A channel from which nothing is read for so long is closed.
    pub stalled_after: Duration,
    /// Plugins at once on their way from spawn to ready.
    pub max_starting: usize,
    /// Starts of processes in a row, of all plugins together.
    pub start_burst: u32,
    /// Starts that are refilled each second.
    pub starts_per_second: u32,
    /// Calls at once, for a plugin that does not say.
    pub max_calls_in_flight: usize,
    /// Told to plugins: the largest message.
    pub max_message_bytes: usize,
    /// Told to plugins: the largest payload.
    pub max_payload_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            keep_desired: true,
            core_address: String::new(),
            cookie: format!("{:032x}", rand::random::<u128>()),
            liveness: Times::default(),
            stalled_after: Duration::from_secs(15),
            max_starting: 4,
            start_burst: 64,
            starts_per_second: 8,
            max_calls_in_flight: 256,
            max_message_bytes: core_proto::contract::MAX_MESSAGE_BYTES,
            max_payload_bytes: 256 << 10,
        }
    }
}

/// Who is told of plugins: the event bus and the state engine, connected by the runtime. Called from
/// the worker: an implementation hands over and returns.
pub trait Announcer: Send + Sync {
    /// A transition: `core.plugin.<topic>`, the plugin's name in `subject`, `details` as data.
    fn plugin_event(&self, topic: &'static str, plugin: &PluginName, details: serde_json::Value);

    /// The newest of a plugin: state key `core.plugin.<name>`.
    fn plugin_state(&self, info: &PluginInfo);

    /// A plugin is not there any more.
    fn plugin_removed(&self, plugin: &PluginName);

    /// A run has ended: nothing can be done in its name any more.
    fn run_ended(&self, run: &RunId) {
        let _nobody_cares = run;
    }

    /// Patterns that a plugin subscribes to now, for [`PluginInfo::subscriptions`]. May be called
    /// from any task.
    fn subscriptions(&self, plugin: &PluginName) -> Vec<String>;
}

/// Opens an in-memory connection to the core, for plugins inside its process.
pub type Connect = Arc<dyn Fn() -> io::Result<DuplexStream> + Send + Sync>;

/// What the plugin manager works with.
#[derive(Clone)]
pub struct Dependencies {
    /// The live runs; written by the plugin manager alone.
    pub runs: Runs,
    /// Services.
    pub registry: ServiceRegistry,
    /// Calls.
    pub router: Router,
    /// Credentials of runs and of remote plugins.
    pub credentials: Credentials,
    /// What plugins may do; told by the plugin manager.
    pub gatekeeper: Gatekeeper,
    /// What operators have granted; kept by the plugin manager from here on.
    pub operator_grants: OperatorGrants,
    /// Who is told.
    pub announcer: Arc<dyn Announcer>,
    /// Plugins inside the core's process; their manifests are [`super::Kind::Embedded`].
    pub embedded: HashMap<PluginName, Arc<dyn EmbeddedPlugin>>,
    /// How those reach the core.
    pub connect: Connect,
    /// Who starts children and sees to it that none is left.
    pub custody: Custody,
}

impl fmt::Debug for Dependencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Dependencies")
            .finish_non_exhaustive()
    }
}
