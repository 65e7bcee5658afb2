//! Another configuration while the core runs. What it means for each plugin is decided by `changes`;
//! here it is done.
//!
//! A changed configuration of a plugin that can take it while it runs is *offered*: see `offers`.
//!
//! A plugin that was taken out is *leaving*: it is wanted UNLOADED, and once it rests it is forgotten,
//! with its log, its state key and its static token.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::changes::{Change, Difference, changes};
use super::dependencies::Graph;
use super::error::path_text;
use super::plugin::Plugin;
use super::upgrade::Upgrading;
use super::worker::Worker;
use super::{Error, Kind, Manifest};
use crate::supervisor::lifecycle::{Event, Origin, Phase, PluginState, Settings};
use crate::types::PluginName;

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// With plugins, in order of name; unchanged ones are not listed.
    pub changes: Vec<PluginChange>,
    /// Plugins that are as they were.
    pub unchanged: usize,
    /// Settings that differ and take effect at the core's next start: "listen.tcp".
    pub needs_restart: Vec<String>,
    /// Doubtful, but no reason to refuse.
    pub warnings: Vec<String>,
}

/// What a reload did with one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginChange {
    /// Which.
    pub name: PluginName,
    /// What.
    pub kind: ChangeKind,
    /// Why; may be empty.
    pub message: String,
}

/// See `PluginChange.Kind` of `plugin_manager.proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It is configured no more.
    Removed,
    /// It took its new configuration.
    Reconfigured,
    /// Another run begins.
    Restarted,
    /// Nothing had to be restarted.
    Updated,
    /// Tried again.
    Retried,
    /// It rejected its new configuration.
    Rejected,
}

impl ChangeKind {
    /// The word, for logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Reconfigured => "reconfigured",
            Self::Restarted => "restarted",
            Self::Updated => "updated",
            Self::Retried => "retried",
            Self::Rejected => "rejected",
        }
    }
}

/// A reload whose answer waits for offers.
pub(super) struct Pending {
    pub(super) reloading: Reloading,
    pub(super) reply: oneshot::Sender<Result<Reloaded, Error>>,
}

/// What of a reload is done and what is not.
pub(super) struct Reloading {
    pub(super) done: BTreeMap<PluginName, (ChangeKind, String)>,
    /// By plugin, the revision offered.
    pub(super) awaited: BTreeMap<PluginName, u64>,
    pub(super) unchanged: usize,
}

impl Plugin {
    /// The manifest that was last asked for, be it in force or on offer.
    fn newest(&self) -> &Manifest {
        let offer = self.offer.as_ref().map(|offer| &offer.manifest);
        let upgrade = self.upgrade.as_ref().and_then(Upgrading::unrecorded);
        offer.or(upgrade).unwrap_or(&self.manifest)
    }

    /// Takes another manifest for the runs to come.
    fn adopt(&mut self, manifest: Manifest) {
        if manifest.config != self.manifest.config {
            self.offered_revision += 1;
            self.config_revision = self.offered_revision;
        }
        if manifest.requires != self.manifest.requires {
            self.requires.clone_from(&manifest.requires);
        }
        self.manifest = Arc::new(manifest);
        self.config_rejected.clear();
    }

    pub(super) fn settings(&self) -> Settings {
        settings(&self.manifest)
    }

    /// A state that ends when something changes, or when its time has come.
    pub(super) fn waits_after_failure(&self) -> bool {
        matches!(
            self.state.phase(),
            Phase::Backoff | Phase::CrashLoop | Phase::ConfigError | Phase::Incompatible
        )
    }
}

pub(super) fn settings(manifest: &Manifest) -> Settings {
    Settings {
        origin: match &manifest.kind {
            Kind::Remote { .. } => Origin::Remote,
            Kind::Process(_) | Kind::Embedded => Origin::Hosted,
        },
        restart: manifest.restart.clone(),
        timeouts: manifest.timeouts.clone(),
    }
}

/// What the manifest itself wants of a plugin.
pub(super) fn initially(manifest: &Manifest) -> PluginState {
    if manifest.autostart {
        PluginState::Started
    } else {
        PluginState::Unloaded
    }
}

impl Worker {
    /// Brings everything in line with these manifests.
    pub(super) fn reload(
        &mut self,
        manifests: Vec<Manifest>,
        reply: oneshot::Sender<Result<Reloaded, Error>>,
    ) {
        let applied = self.apply(manifests, Retries::Yes);
        self.answer_when_done(applied, reply);
    }

    /// Makes remote plugins known that have only a credential, and lets go of those that have none any
    /// more. Everything else stays as it is.
    pub(super) fn know(
        &mut self,
        add: Vec<Manifest>,
        remove: &[PluginName],
        reply: oneshot::Sender<Result<Reloaded, Error>>,
    ) {
        // A name that comes back, or that stood in the configuration once, may be somebody else's.
        remove.iter().for_each(|name| self.forget_grants(name));
        for manifest in &add {
            let there = self.plugins.get(&manifest.name);
            if there.is_none_or(|plugin| plugin.leaving) {
                self.forget_grants(&manifest.name);
            }
        }
        let there = self.plugins.values().filter(|plugin| !plugin.leaving);
        let stay = there
            .map(|plugin| plugin.newest().clone())
            .filter(|manifest| !remove.contains(&manifest.name));
        let manifests = stay.chain(add).collect();
        let applied = self.apply(manifests, Retries::No);
        self.answer_when_done(applied, reply);
    }

    fn answer_when_done(
        &mut self,
        applied: Result<Reloading, Error>,
        reply: oneshot::Sender<Result<Reloaded, Error>>,
    ) {
        match applied {
            Err(error) => drop(reply.send(Err(error))),
            Ok(reloading) => {
                // Whoever hears of it finds it so.
                self.publish();
                self.reloads.push(Pending { reloading, reply });
                self.answer_reloads();
            }
        }
    }

    fn apply(&mut self, manifests: Vec<Manifest>, retries: Retries) -> Result<Reloading, Error> {
        if self.shutdown.is_some() {
            return Err(Error::ShuttingDown);
        }
        let mut new = BTreeMap::new();
        for manifest in manifests {
            new.entry(manifest.name.clone()).or_insert(manifest);
        }
        let there = self.plugins.values().filter(|plugin| !plugin.leaving);
        let old = there
            .map(|plugin| (plugin.name(), plugin.newest()))
            .collect();
        let waits = |name: &PluginName| {
            let plugin = self.plugins.get(name);
            retries == Retries::Yes && plugin.is_some_and(Plugin::waits_after_failure)
        };
        let changes = changes(&old, &new, waits);
        let graph = self.graph_with(&new);
        for name in new.keys() {
            if self.graph.cycle_through(name).is_none()
                && let Some(path) = graph.cycle_through(name)
            {
                return Err(Error::DependencyCycle { path });
            }
        }
        self.graph = graph;
        let unchanged = new.len()
            - changes
                .values()
                .filter(|change| **change != Change::Remove)
                .count();
        let mut done = BTreeMap::new();
        let mut awaited = BTreeMap::new();
        for (name, change) in changes {
            let manifest = new.remove(&name);
            match self.change(&name, change, manifest) {
                Done::Now(kind, message) => {
                    done.insert(name, (kind, message));
                }
                Done::Later(revision) => {
                    awaited.insert(name, revision);
                }
            }
        }
        self.spread();
        Ok(Reloading {
            done,
            awaited,
            unchanged,
        })
    }

    /// Who requires whom under these manifests. Plugins on their way out keep their place: the order
    /// of stopping still needs it.
    fn graph_with(&self, new: &BTreeMap<PluginName, Manifest>) -> Graph {
        let mut graph = Graph::default();
        for plugin in self.plugins.values() {
            graph.set(plugin.name().clone(), plugin.requires.iter().cloned());
        }
        for (name, manifest) in new {
            // What a remote plugin said itself stands beside what did not change.
            let before = self.plugins.get(name);
            if before.is_none_or(|plugin| plugin.manifest.requires != manifest.requires) {
                graph.set(name.clone(), manifest.requires.iter().cloned());
            }
        }
        graph
    }

    fn change(&mut self, name: &PluginName, change: Change, manifest: Option<Manifest>) -> Done {
        let now = Done::Now;
        match (change, manifest) {
            (Change::Add, Some(manifest)) => {
                self.add(manifest);
                now(ChangeKind::Added, String::new())
            }
            (Change::Alter(difference), Some(manifest)) => self.alter(name, difference, manifest),
            (Change::Retry, _) => {
                self.feed(name, Event::Changed);
                now(ChangeKind::Retried, String::new())
            }
            (Change::Remove | Change::Add | Change::Alter(_), _) => {
                self.remove(name);
                now(ChangeKind::Removed, String::new())
            }
        }
    }

    fn add(&mut self, manifest: Manifest) {
        let name = manifest.name.clone();
        let wanted = self.wanted(&manifest);
        match self.plugins.get_mut(&name) {
            // It was taken out a moment ago and is still ending: as if it had been altered.
            Some(plugin) => {
                plugin.leaving = false;
                plugin.asks.clear();
                plugin.has_said_hello = false;
                self.begin_anew(manifest, "reload", "it was taken out and put back");
                self.feed(&name, Event::Wanted(wanted));
            }
            None => self.install(manifest, Instant::now()),
        }
    }

    fn remove(&mut self, name: &PluginName) {
        self.supersede(name, PluginState::Unloaded, true);
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        plugin.leaving = true;
        plugin.end_upgrade();
        let why = (
            "removed",
            "it was taken out of the configuration".to_owned(),
        );
        let settings = plugin.settings();
        self.feed(name, Event::Renewed(settings, Some(why)));
        self.feed(name, Event::Wanted(PluginState::Unloaded));
    }

    fn alter(&mut self, name: &PluginName, difference: Difference, manifest: Manifest) -> Done {
        let wanted = self.wanted(&manifest);
        let rewanted = self.plugins.get(name).is_some_and(|plugin| {
            plugin.manifest.autostart != manifest.autostart && self.desired.get(name).is_none()
        });
        let done = self.alter_run(name, difference, manifest);
        if rewanted {
            self.feed(name, Event::Wanted(wanted));
        }
        done
    }

    fn alter_run(&mut self, name: &PluginName, difference: Difference, manifest: Manifest) -> Done {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Done::Now(ChangeKind::Updated, String::new());
        };
        let runs = plugin.state.has_run();
        // What is configured now counts for more than an upgrade that is under way.
        let unrecorded = plugin.end_upgrade();
        let difference = if unrecorded {
            Difference::Run
        } else {
            difference
        };
        match difference {
            Difference::Nothing | Difference::Core => {
                plugin.adopt(manifest);
                Done::Now(ChangeKind::Updated, String::new())
            }
            Difference::Config if runs => {
                if plugin.takes_offers() {
                    return self.offer(name, manifest);
                }
                if plugin.state.awaits_channel() {
                    // Its `Welcome` will bring it.
                    plugin.adopt(manifest);
                    return Done::Now(ChangeKind::Updated, String::new());
                }
                let why = "its configuration changed";
                self.begin_anew(manifest, "reload", why);
                Done::Now(ChangeKind::Restarted, why.to_owned())
            }
            Difference::Config | Difference::Run => {
                self.begin_anew(manifest, "reload", "its manifest changed");
                if runs {
                    Done::Now(ChangeKind::Restarted, "its manifest changed".to_owned())
                } else {
                    Done::Now(ChangeKind::Updated, "it does not run".to_owned())
                }
            }
        }
    }

    /// Takes another manifest at once: a run that there is ends, and whatever counted against the
    /// plugin is forgotten.
    pub(super) fn begin_anew(&mut self, manifest: Manifest, reason: &'static str, why: &str) {
        let name = manifest.name.clone();
        let Some(plugin) = self.plugins.get_mut(&name) else {
            return;
        };
        plugin.offer = None;
        plugin.rolled_back = None;
        plugin.adopt(manifest);
        self.graph
            .set(name.clone(), plugin.requires.iter().cloned());
        match &plugin.manifest.kind {
            Kind::Remote { token: Some(token) } => self.work.credentials.set_static(&name, token),
            Kind::Remote { token: None } | Kind::Process(_) | Kind::Embedded => {
                self.work.credentials.remove_static(&name);
            }
        }
        let settings = plugin.settings();
        let why = (reason, why.to_owned());
        self.feed(&name, Event::Renewed(settings, Some(why)));
        self.feed(&name, Event::Changed);
    }

    /// What follows from the manifests in force as a whole: permissions, bars, dependencies.
    pub(super) fn spread(&mut self) {
        self.put_permissions_in_force();
        let manifests = self.plugins.values().map(|plugin| &plugin.manifest);
        let shares = manifests.map(|manifest| (manifest.name.clone(), manifest.share()));
        self.work.gatekeeper.metering().share_out(shares.collect());
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            let ungranted = self.ungranted(&name);
            self.feed(&name, Event::Grants(ungranted));
            let bar = self.bar(&name);
            self.feed(&name, Event::Barred(bar));
            let missing = self.missing(&name);
            self.feed(&name, Event::Dependencies(missing));
        }
    }

    /// Why a plugin cannot run as it is configured.
    pub(super) fn bar(&self, name: &PluginName) -> Option<(&'static str, String)> {
        let plugin = self.plugins.get(name)?;
        if let Some(path) = self.graph.cycle_through(name) {
            let message = format!("plugins require each other: {}", path_text(&path));
            return Some(("dependency_cycle", message));
        }
        let absent = matches!(plugin.manifest.kind, Kind::Embedded)
            && !self.work.embedded.contains_key(name);
        absent.then(|| {
            let message = "this program has no such plugin built in".to_owned();
            ("not_built_in", message)
        })
    }

    /// What is wanted of a plugin: what was last asked for, else what its manifest says.
    pub(super) fn wanted(&self, manifest: &Manifest) -> PluginState {
        let asked = self.desired.get(&manifest.name);
        asked.unwrap_or_else(|| initially(manifest))
    }

    // ---- the end of those that were taken out

    /// Forgets plugins that were taken out and rest now; `true`: there was one.
    pub(super) fn forget_removed(&mut self) -> bool {
        let over = |plugin: &&Plugin| plugin.leaving && plugin.state.is_resting();
        let over: Vec<_> = self
            .plugins
            .values()
            .filter(over)
            .map(|plugin| plugin.name().clone())
            .collect();
        if self.shutdown.is_some() || over.is_empty() {
            return false;
        }
        for name in &over {
            self.plugins.remove(name);
            self.dirty.remove(name);
            self.graph.remove(name);
            self.work.credentials.remove_static(name);
            // What comes under that name later may be somebody else's.
            self.forget_grants(name);
            self.shared.logs.lock().remove(name);
            self.shared.crashes.remove(name);
            self.shared.board.remove(name);
            self.work.announcer.plugin_removed(name);
            tracing::info!(plugin = %name, "plugin removed");
        }
        self.spread();
        true
    }
}

/// Whether plugins that wait after a failure are tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retries {
    Yes,
    No,
}

/// Whether a change is done, or waits for the plugin's answer to an offer of this revision.
pub(super) enum Done {
    Now(ChangeKind, String),
    Later(u64),
}
