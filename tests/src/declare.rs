//! Manifests, as an operator would write them, with the defaults of the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use core_server::config::{CallPermission, Need, Quota};
use core_server::plugin_manager::{
    Command, Kind, Manifest, OnLoss, RestartMode, RestartPolicy, Timeouts,
};
use core_server::security::Token;
use core_server::supervisor::isolation::{ResourceLimits, Sandbox};
use core_server::types::{Pattern, PluginName};
use serde_json::Value;

/// A plugin that the core is to know.
#[derive(Clone, Debug)]
pub struct Declared {
    pub(crate) manifest: Manifest,
    pub(crate) token: Option<Token>,
}

impl Declared {
    /// A child process with this program.
    #[must_use]
    pub fn process(name: &str, program: impl AsRef<Path>) -> Self {
        let command = Command {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            // Replaced by a directory of the core's own when it starts.
            working_dir: PathBuf::new(),
        };
        Self::new(name, Kind::Process(command), None)
    }

    /// A remote plugin, with a token made for it.
    #[must_use]
    pub fn remote(name: &str) -> Self {
        let token = Token::random();
        let kind = Kind::Remote {
            token: Some(token.clone()),
        };
        Self::new(name, kind, Some(token))
    }

    /// A plugin of the core's own process, which [`crate::TestCoreBuilder::embed`] hands over.
    #[must_use]
    pub fn embedded(name: &str) -> Self {
        Self::new(name, Kind::Embedded, None)
    }

    fn new(name: &str, kind: Kind, token: Option<Token>) -> Self {
        let manifest = Manifest::new(plugin_name(name), kind);
        Self { manifest, token }
    }

    /// All that is declared of it, for what has no method here.
    pub fn manifest_mut(&mut self) -> &mut Manifest {
        &mut self.manifest
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.manifest.name.as_str()
    }

    /// The program's arguments.
    ///
    /// # Panics
    /// When it has no program.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.command().args = args.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    /// One variable of the program's environment.
    ///
    /// # Panics
    /// When it has no program.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command().env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn command(&mut self) -> &mut Command {
        match &mut self.manifest.kind {
            Kind::Process(command) => command,
            other => panic!("{other:?} is no process"),
        }
    }

    /// `autostart = false`.
    #[must_use]
    pub fn by_hand(mut self) -> Self {
        self.manifest.autostart = false;
        self
    }

    /// `requires = [...]`.
    #[must_use]
    pub fn requires(mut self, names: &[&str]) -> Self {
        self.manifest.requires = names.iter().map(|&name| plugin_name(name)).collect();
        self
    }

    /// `on_loss = {...}`.
    #[must_use]
    pub fn on_loss(mut self, of: &str, what: OnLoss) -> Self {
        self.manifest.on_loss.insert(plugin_name(of), what);
        self
    }

    /// `restart.mode`.
    #[must_use]
    pub fn restart_mode(mut self, mode: RestartMode) -> Self {
        self.manifest.restart.mode = mode;
        self
    }

    /// Changes the restart policy.
    #[must_use]
    pub fn restart(mut self, change: impl FnOnce(&mut RestartPolicy)) -> Self {
        change(&mut self.manifest.restart);
        self
    }

    /// Changes the time limits.
    #[must_use]
    pub fn timeouts(mut self, change: impl FnOnce(&mut Timeouts)) -> Self {
        change(&mut self.manifest.timeouts);
        self
    }

    /// A run whose channel is lost ends so long after.
    #[must_use]
    pub fn suspend(self, time: Duration) -> Self {
        self.timeouts(|timeouts| timeouts.suspend = time)
    }

    /// `[limits]`.
    #[must_use]
    pub fn limits(mut self, limits: ResourceLimits) -> Self {
        self.manifest.limits = limits;
        self
    }

    /// `[sandbox]`.
    #[must_use]
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.manifest.sandbox = sandbox;
        self
    }

    /// `permissions.publish`.
    #[must_use]
    pub fn may_publish(mut self, pattern_text: &str) -> Self {
        self.manifest
            .permissions
            .publish
            .push(pattern(pattern_text));
        self
    }

    /// `permissions.subscribe`.
    #[must_use]
    pub fn may_subscribe(mut self, pattern_text: &str) -> Self {
        self.manifest
            .permissions
            .subscribe
            .push(pattern(pattern_text));
        self
    }

    /// An echo plugin that hears `scene.>`; see [`crate::plugins::echo`].
    #[must_use]
    pub fn hears_scenes(self) -> Self {
        self.may_subscribe("scene.>")
            .config(serde_json::json!({ "hear": "scene.>" }))
    }

    /// `permissions.call`.
    #[must_use]
    pub fn may_call(mut self, pattern_text: &str) -> Self {
        let services = pattern(pattern_text);
        let need = Need::Required;
        self.manifest
            .permissions
            .call
            .push(CallPermission { services, need });
        self
    }

    /// `quotas`: one of them.
    #[must_use]
    pub fn quota(mut self, quota: Quota, limit: u64) -> Self {
        self.manifest.quotas.set(quota, limit);
        self
    }

    /// The plugin's own configuration.
    ///
    /// # Panics
    /// When it is no JSON object.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        match config {
            Value::Object(config) => self.manifest.config = config,
            other => panic!("a configuration is an object, not {other}"),
        }
        self
    }

    /// Gives a child its data directory below the core's.
    pub(crate) fn placed(mut self, data_dir: &Path) -> Self {
        if let Kind::Process(command) = &mut self.manifest.kind {
            command.working_dir = data_dir.join("plugins").join(self.manifest.name.as_str());
        }
        self
    }
}

fn plugin_name(name: &str) -> PluginName {
    PluginName::parse(name).expect("a plugin's name")
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).expect("a pattern")
}
