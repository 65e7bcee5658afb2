//! The containers that are up, asked as an operator asks them: `corectl` in a core's container.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::engine::Engine;

/// The plugins in containers of their own.
pub(crate) const PLUGINS: [&str; 5] = [
    "automation",
    "devices",
    "host_sensors",
    "notifications",
    "sunlight",
];
/// Bounds each wait for something to become true.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks. The engine and `corectl` are processes: there is nothing to wait on.
const LOOK: Duration = Duration::from_millis(100);

/// A core in a container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack<'a> {
    pub(crate) engine: &'a Engine,
    /// The service that the core is.
    pub(crate) core: &'static str,
}

/// A plugin, as the core lists it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    pub(crate) state: String,
    pub(crate) phase: String,
    pub(crate) generation: u64,
    /// When it came to be so.
    pub(crate) since: SystemTime,
}

impl Stack<'_> {
    /// What `corectl` says, as JSON; what it says last, if that is more than one thing.
    pub(crate) fn corectl(&self, arguments: &[&str]) -> Result<Value> {
        let command = [&["corectl", "--json"], arguments].concat();
        let output = self.engine.exec(self.core, &command)?;
        let line = output.trim().lines().last().unwrap_or_default();
        serde_json::from_str(if line.is_empty() { "null" } else { line })
            .with_context(|| format!("corectl {}: not JSON: {line}", arguments.join(" ")))
    }

    /// The result of a service.
    pub(crate) fn call(&self, call: &[&str]) -> Result<Value> {
        let waiting = [&["services", "call", "--wait", "--timeout", "60s"], call].concat();
        Ok(self.corectl(&waiting)?["result"].take())
    }

    /// All plugins.
    pub(crate) fn plugins(&self) -> Result<BTreeMap<String, Plugin>> {
        let list = self.corectl(&["plugins", "list"])?;
        let plugins = list["plugins"].as_array().context("a list")?;
        plugins
            .iter()
            .map(|plugin| {
                let text = |key: &str| plugin[key].as_str().unwrap_or_default().to_owned();
                let since: jiff::Timestamp = text("since").parse().context("since")?;
                let parsed = Plugin {
                    state: text("state"),
                    phase: text("phase"),
                    generation: plugin["generation"].as_u64().context("a generation")?,
                    since: since.into(),
                };
                Ok((text("name"), parsed))
            })
            .collect()
    }

    /// One plugin.
    pub(crate) fn plugin(&self, name: &str) -> Result<Plugin> {
        let plugin = self.plugins()?.remove(name);
        plugin.with_context(|| format!("the core does not know {name}"))
    }

    /// Waits until what is asked again and again is as wanted.
    pub(crate) fn eventually<T: Debug>(
        &self,
        what: &str,
        ask: impl Fn() -> Result<T>,
        wanted: impl Fn(&T) -> bool,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let found = ask();
            match &found {
                Ok(answer) if wanted(answer) => return Ok(()),
                _ if begun.elapsed() > PATIENCE => {
                    bail!("waited in vain: {what}; it says {found:?}")
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    /// Waits until a plugin is as wanted; a core that does not answer is waited for.
    pub(crate) fn until(
        &self,
        name: &str,
        wanted: impl Fn(&Plugin) -> bool,
        what: &str,
    ) -> Result<Plugin> {
        let begun = Instant::now();
        loop {
            let found = self.plugin(name);
            match &found {
                Ok(plugin) if wanted(plugin) => return found,
                _ if begun.elapsed() > PATIENCE => {
                    bail!("waited in vain for {name} to be {what}; it is {found:?}")
                }
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    /// Waits until these are STARTED since `from`; says how long the last of them took.
    pub(crate) fn all_started(&self, names: &[&str], from: SystemTime) -> Result<Duration> {
        let mut last = from;
        for name in names {
            let started = |plugin: &Plugin| plugin.state == "started" && plugin.phase == "ready";
            let plugin = self.until(name, started, "STARTED")?;
            last = last.max(plugin.since);
        }
        Ok(last.duration_since(from)?)
    }

    /// Waits until a plugin is STARTED in a run after `generation`; says how long after `from`.
    pub(crate) fn started_anew(
        &self,
        name: &str,
        generation: u64,
        from: SystemTime,
    ) -> Result<Duration> {
        let anew = |plugin: &Plugin| {
            plugin.state == "started" && plugin.phase == "ready" && plugin.generation > generation
        };
        let plugin = self.until(name, anew, "STARTED in a new run")?;
        Ok(plugin.since.duration_since(from).unwrap_or_default())
    }

    /// Stops a service as `docker stop` does; says how long it took. It ends by itself, with code 0.
    pub(crate) fn stop(&self, service: &str) -> Result<Duration> {
        let container = self.engine.container(service)?;
        let begun = Instant::now();
        self.engine.docker(&["stop", &container])?;
        let took = begun.elapsed();
        let code = self.engine.exit_code(service)?;
        ensure!(code == 0, "{service} was stopped and ended with {code}");
        Ok(took)
    }

    /// Starts a service that was stopped.
    pub(crate) fn start(&self, service: &str) -> Result<SystemTime> {
        let container = self.engine.container(service)?;
        let from = SystemTime::now();
        self.engine.docker(&["start", &container])?;
        Ok(from)
    }

    /// The first process of a service's container, as this machine numbers it.
    pub(crate) fn pid(&self, service: &str) -> Result<i32> {
        let pid = self.engine.inspect(service, "{{.State.Pid}}")?;
        let pid: i32 = pid.parse().context("a process id")?;
        ensure!(pid > 1, "{service} does not run");
        Ok(pid)
    }
}
