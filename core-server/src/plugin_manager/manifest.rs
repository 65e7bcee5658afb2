//! What a plugin declares of itself (`plugin.toml`), after the core's configuration has overridden
//! it. Parsing and its errors are `config/`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Need, OwnQuotas, Permission, Permissions, REDACTED};
use crate::security::operator_grants::Grant;
use crate::security::{Granting, Review, Share, Token};
use crate::supervisor::isolation::{ResourceLimits, Sandbox};
use crate::types::PluginName;

/// One plugin that the core knows. `Debug` shows no secret.
#[derive(Clone, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub name: PluginName,
    /// Version and description for people; may be empty.
    pub version: String,
    /// One line for people; may be empty.
    pub description: String,
    /// How it comes to run.
    pub kind: Kind,
    /// Wanted STARTED from the beginning.
    pub autostart: bool,
    /// Must be STARTED before this one.
    pub requires: Vec<PluginName>,
    /// Told about, not waited for.
    pub wants: Vec<PluginName>,
    /// What the loss of a required plugin does; absent: notify.
    pub on_loss: BTreeMap<PluginName, OnLoss>,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Time limits of the steps of a life.
    pub timeouts: Timeouts,
    /// What its processes may use.
    pub limits: ResourceLimits,
    /// As whom they run, and which files they reach.
    pub sandbox: Sandbox,
    /// What it asks for beyond its own area.
    pub permissions: Permissions,
    /// What the operator grants beyond that.
    pub granted: Permissions,
    /// What the operator denies, whatever is granted.
    pub denied: Permissions,
    /// How much it may use of the core, where it is not what everybody may.
    pub quotas: OwnQuotas,
    /// The plugin's configuration, a JSON object, secrets resolved.
    pub config: serde_json::Map<String, serde_json::Value>,
    /// Where in `config` secrets stand, as JSON pointers.
    pub config_secrets: Vec<String>,
}

impl Manifest {
    /// A manifest with nothing but a name and a kind; everything else is the design's default.
    #[must_use]
    pub fn new(name: PluginName, kind: Kind) -> Self {
        Self {
            name,
            version: String::new(),
            description: String::new(),
            kind,
            autostart: true,
            requires: Vec::new(),
            wants: Vec::new(),
            on_loss: BTreeMap::new(),
            restart: RestartPolicy::default(),
            timeouts: Timeouts::default(),
            limits: ResourceLimits::default(),
            sandbox: Sandbox::default(),
            permissions: Permissions::default(),
            granted: Permissions::default(),
            denied: Permissions::default(),
            quotas: OwnQuotas::default(),
            config: serde_json::Map::new(),
            config_secrets: Vec::new(),
        }
    }

    /// What is said of what it may do: here, in its `Hello`, by operators.
    #[must_use]
    pub fn review<'a>(
        &'a self,
        said: &'a [(Permission, Need)],
        given: &'a [Grant],
        granting: Granting,
    ) -> Review<'a> {
        Review {
            plugin: &self.name,
            asked: &self.permissions,
            said,
            configured: &self.granted,
            given,
            denied: &self.denied,
            granting,
        }
    }

    /// How much it may use of the core.
    #[must_use]
    pub fn share(&self) -> Share {
        match self.kind {
            Kind::Process(_) | Kind::Remote { .. } => Share::OfEverybody(self.quotas),
            Kind::Embedded => Share::OfItsOwn(self.quotas),
        }
    }

    /// The configuration as it may be shown: secrets replaced.
    #[must_use]
    pub fn redacted_config(&self) -> serde_json::Value {
        let mut config = serde_json::Value::Object(self.config.clone());
        for pointer in &self.config_secrets {
            if let Some(value) = config.pointer_mut(pointer) {
                *value = REDACTED.into();
            }
        }
        config
    }
}

impl fmt::Debug for Manifest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Manifest")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("kind", &self.kind)
            .field("autostart", &self.autostart)
            .field("requires", &self.requires)
            .field("wants", &self.wants)
            .field("on_loss", &self.on_loss)
            .field("restart", &self.restart)
            .field("timeouts", &self.timeouts)
            .field("limits", &self.limits)
            .field("sandbox", &self.sandbox)
            .field("permissions", &self.permissions)
            .field("granted", &self.granted)
            .field("denied", &self.denied)
            .field("quotas", &self.quotas)
            .field("config", &self.redacted_config())
            .finish_non_exhaustive()
    }
}

/// How a plugin comes to run.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// A child process.
    Process(Command),
    /// Started by somebody else; identified by this token, or by what `security::Access` gave it.
    Remote {
        /// Its configured credential, if it has one.
        token: Option<Token>,
    },
    /// Inside the core's process.
    Embedded,
}

/// The program of a child process. `Debug` shows no value of its environment.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// Absolute, or relative to the manifest's directory when it has a slash, else found on PATH.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Additional environment, values resolved.
    pub env: BTreeMap<String, String>,
    /// Names passed on from the core's own environment.
    pub pass_env: Vec<String>,
    /// Working directory: the plugin's own data directory.
    pub working_dir: PathBuf,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Command")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("env", &self.env.keys())
            .field("pass_env", &self.pass_env)
            .field("working_dir", &self.working_dir)
            .finish()
    }
}

/// What a plugin does when one that it requires is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLoss {
    /// It is told; calls to the lost one fail.
    #[default]
    Notify,
    /// Its run ends and begins anew once the lost one is back.
    Restart,
    /// It is stopped, and started again once the lost one is back.
    Stop,
}

/// When to restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartMode {
    /// After every end that nobody asked for.
    #[default]
    Always,
    /// After failures only.
    OnFailure,
    /// Never.
    Never,
}

/// Restart policy; the defaults are the design's.
#[derive(Clone, Debug, PartialEq)]
pub struct RestartPolicy {
    /// When to restart.
    pub mode: RestartMode,
    /// Leaving earlier is a failure, even with exit code 0.
    pub min_uptime: Duration,
    /// First delay; doubles with each failure.
    pub backoff_base: Duration,
    /// Longest delay.
    pub backoff_max: Duration,
    /// So long ready resets delay and count.
    pub stable_after: Duration,
    /// Failures since it was last stable that make a crash loop; 0: never one.
    pub max_failures: u32,
    /// Time between tries in a crash loop.
    pub crash_loop_every: Duration,
    /// A crash loop is final.
    pub give_up: bool,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::Always,
            min_uptime: Duration::from_secs(5),
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(60),
            stable_after: Duration::from_secs(60),
            max_failures: 8,
            crash_loop_every: Duration::from_secs(300),
            give_up: false,
        }
    }
}

/// Time limits of the steps of a life; the defaults are the design's.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeouts {
    /// Spawn to `Hello`.
    pub connect: Duration,
    /// `on_load` and `on_start` together, counted while the plugin itself works.
    pub start: Duration,
    /// With all extensions, if it is longer than that.
    pub start_max: Duration,
    /// Calls in flight may finish for so long when it stops.
    pub drain: Duration,
    /// `on_stop` and `on_unload` together.
    pub stop: Duration,
    /// SIGTERM to SIGKILL.
    pub term: Duration,
    /// A lost channel may come back for so long.
    pub suspend: Duration,
}

impl Timeouts {
    /// The longest that `on_load` and `on_start` may take together, however often they are extended.
    #[must_use]
    pub fn longest_start(&self) -> Duration {
        self.start.max(self.start_max)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            start: Duration::from_secs(30),
            start_max: Duration::from_secs(300),
            drain: Duration::from_secs(2),
            stop: Duration::from_secs(5),
            term: Duration::from_secs(2),
            suspend: Duration::from_secs(10),
        }
    }
}
