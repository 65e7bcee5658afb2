//! A core of the real binary with plugins of real processes, in a directory of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use core_proto::v1::PluginInfo;
use core_proto::v1::plugin_manager_watch_response::Item;
use core_server::config::Quota;
use core_tests::{Client, CoreProcess, patience};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::processes::{self, Process};
use crate::report::Row;
use crate::{CORE, LOGS};

/// Restarts that do not hold a row up: back-off from 50 ms to 2 s, well after 100 ms, never a crash loop.
pub(crate) const QUICK: &str = "[restart]\nbackoff = \"50ms\"\nbackoff_max = \"2s\"\n\
                                stable_after = \"100ms\"\nmax_failures = 0\n";

/// What is told of a row that uses [`QUICK`].
pub(crate) const QUICK_NOTE: &str = "shortened: backoff 50 ms (250 ms), backoff_max 2 s (60 s), stable_after 100 ms (60 s); max_failures off";

/// A plugin.toml.
#[derive(Clone, Debug)]
#[must_use]
pub(crate) struct PluginFile {
    name: String,
    top: String,
    run: String,
    sections: String,
}

/// A plugin of this program and these arguments.
pub(crate) fn plugin(name: &str, program: &str, args: &[&str]) -> PluginFile {
    PluginFile {
        name: name.to_owned(),
        top: String::new(),
        run: format!("command = {program:?}\nargs = {args:?}\n"),
        sections: String::new(),
    }
}

impl PluginFile {
    /// With a line before the first section.
    pub(crate) fn top(mut self, line: &str) -> Self {
        self.top.push_str(line);
        self.top.push('\n');
        self
    }

    /// With sections of its own.
    pub(crate) fn sections(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn text(&self) -> String {
        let Self {
            name,
            top,
            run,
            sections,
        } = self;
        format!("name = \"{name}\"\n{top}[run]\n{run}{sections}")
    }
}

/// `[quotas]`, all of them off.
fn no_quotas() -> String {
    let keys = Quota::ALL.map(|quota| format!("{} = 0\n", quota.key()));
    format!("[quotas]\n{}", keys.concat())
}

/// A running core and its plugins. Dropping it kills the core; [`Self::stop`] ends it in order.
pub(crate) struct Home {
    core: CoreProcess,
    /// An operator.
    pub(crate) operator: Client,
}

impl Home {
    /// A core that is not started yet. Its plugins have no quotas: rows play what a plugin may not do by
    /// itself.
    pub(crate) fn prepare(core_toml: &str, plugins: &[PluginFile]) -> CoreProcess {
        Self::prepare_with_quotas(&format!("{core_toml}\n{}", no_quotas()), plugins)
    }

    /// As [`Self::prepare`], with the quotas that the core has by itself, or that `core_toml` says.
    pub(crate) fn prepare_with_quotas(core_toml: &str, plugins: &[PluginFile]) -> CoreProcess {
        plugins
            .iter()
            .fold(CoreProcess::new(CORE, core_toml), |core, plugin| {
                core.plugin(&plugin.name, &plugin.text())
            })
    }

    /// A core that serves.
    pub(crate) async fn start(plugins: &[PluginFile]) -> Self {
        Self::start_with("", plugins).await
    }

    /// A core of this `core.toml` that serves.
    pub(crate) async fn start_with(core_toml: &str, plugins: &[PluginFile]) -> Self {
        Self::of(Self::prepare(core_toml, plugins)).await
    }

    /// Starts a prepared core and waits until it serves.
    pub(crate) async fn of(mut core: CoreProcess) -> Self {
        let operator = core.start().await;
        Self { core, operator }
    }

    pub(crate) fn core(&mut self) -> &mut CoreProcess {
        &mut self.core
    }

    pub(crate) fn pid(&self) -> u32 {
        self.core.pid()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.core.directory()
    }

    /// Data directory of a plugin.
    pub(crate) fn data_of(&self, plugin: &str) -> PathBuf {
        self.directory().join("data/plugins").join(plugin)
    }

    /// A number that a plugin wrote into a file of its data directory; waits for it.
    pub(crate) async fn number_in(&self, plugin: &str, file: &str) -> u32 {
        let path = self.data_of(plugin).join(file);
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        core_tests::eventually!(read().ends_with('\n'), "{}", path.display());
        read().trim().parse().expect("a number")
    }

    /// Waits until all of these are ready.
    pub(crate) async fn all_ready(&self, names: &[&str]) -> Vec<PluginInfo> {
        let mut infos = Vec::new();
        for name in names {
            infos.push(self.operator.until_phase(name, "ready").await);
        }
        infos
    }

    /// Waits until a plugin is ready in a later run than this one.
    pub(crate) async fn ready_after(&self, name: &str, generation: u64) -> PluginInfo {
        let ready = |plugin: &PluginInfo| plugin.phase == "ready" && plugin.generation > generation;
        self.operator.until(name, "ready in a new run", ready).await
    }

    /// Keeps what is told of all plugins from now on.
    pub(crate) async fn timeline(&self) -> Timeline {
        Timeline::begin(&self.operator).await
    }

    /// Live processes of this core but itself.
    pub(crate) fn others(&self) -> Vec<Process> {
        let own = self.core.pid();
        let others = processes::below(self.directory()).into_iter();
        others.filter(|process| process.pid != own).collect()
    }

    /// Live processes that work below the data directory of a plugin.
    pub(crate) fn others_of(&self, plugin: &str) -> Vec<Process> {
        processes::below(&self.data_of(plugin))
    }

    /// Ends the core in order and checks that it was one: exit code 0, nothing survives. Returns the
    /// time that it took.
    pub(crate) async fn stop(mut self, row: &Row) -> Duration {
        let directory = self.directory().to_owned();
        let began = Instant::now();
        self.core.signal(Signal::TERM);
        let status = self.core.wait(patience()).await;
        let took = began.elapsed();
        row.require(
            status.success(),
            format!("the core stops in order; it ended with {status}"),
        );
        let left = left_below(&directory).await;
        row.require(left.is_empty(), format!("nothing survives: {left:?}"));
        took
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let Some(directory) = LOGS.get() else { return };
        // For whoever looks into a failure.
        let name = self.directory().file_name().unwrap_or_default();
        let mut name = name.to_os_string();
        name.push(".log");
        std::fs::write(directory.join(name), self.core.log()).ok();
    }
}

/// What lives below the directory of a core that has ended in order. Its guardian sees its end and ends
/// then: it has a moment for that.
pub(crate) async fn left_below(directory: &Path) -> Vec<Process> {
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        let left = processes::below(directory);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(core_tests::POLL).await;
    }
}

/// Everything that was told of plugins, with the time of its telling.
#[derive(Clone)]
pub(crate) struct Timeline {
    told: Arc<Mutex<Vec<(Instant, PluginInfo)>>>,
}

impl Timeline {
    async fn begin(operator: &Client) -> Self {
        let timeline = Self {
            told: Arc::default(),
        };
        let mut watch = operator.another_connection().watch_plugins().await;
        let mut next = watch.next().await;
        while let Some(Item::Plugin(plugin)) = next {
            timeline.note(plugin);
            next = watch.next().await;
        }
        let keeping = timeline.clone();
        tokio::spawn(async move {
            while let Some(item) = watch.next().await {
                if let Item::Plugin(plugin) = item {
                    keeping.note(plugin);
                }
            }
        });
        timeline
    }

    fn note(&self, plugin: PluginInfo) {
        let mut told = self.told.lock().expect("no panic inside");
        told.push((Instant::now(), plugin));
    }

    /// What was told so far, in order.
    pub(crate) fn told(&self) -> Vec<(Instant, PluginInfo)> {
        self.told.lock().expect("no panic inside").clone()
    }

    /// When something was first told of a plugin; waits for it as long as `patience`.
    pub(crate) async fn first(
        &self,
        name: &str,
        patience: Duration,
        holds: impl Fn(&PluginInfo) -> bool,
    ) -> Option<(Instant, PluginInfo)> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self
                .told()
                .into_iter()
                .find(|(_, plugin)| plugin.name == name && holds(plugin));
            if found.is_some() || Instant::now() > deadline {
                return found;
            }
            tokio::time::sleep(core_tests::POLL).await;
        }
    }
}
