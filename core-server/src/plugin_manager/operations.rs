//! Requests and those who wait for them, for one plugin and for all.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::keeper::{Standing, Version};
use super::order;
use super::plugin::{Plugin, Waiter};
use super::worker::{Worker, sent};
use super::{All, Error, Kind, PluginInfo, PluginResult, upgrade};
use crate::channel::Outbound;
use crate::supervisor::lifecycle::{Event, Origin, Phase, PluginState, Progress, Request};
use crate::supervisor::output::Verbosity;
use crate::types::PluginName;

/// An upgrade that is done, but for being on the disk: what is answered then.
pub(super) struct Unkept {
    plugin: PluginName,
    version: Version,
    waiter: upgrade::Waiter,
    answer: Result<PluginInfo, Error>,
}

impl Unkept {
    pub(super) fn deadline(&self) -> Instant {
        self.waiter.deadline
    }
}

/// A request for all plugins.
pub(super) struct Batch {
    which: All,
    pub(super) deadline: Instant,
    /// Those that have not got there, and whether each has been asked yet.
    pending: BTreeMap<PluginName, bool>,
    done: BTreeMap<PluginName, Result<(), Error>>,
    reply: Option<oneshot::Sender<Vec<PluginResult>>>,
}

impl Worker {
    pub(super) fn request(
        &mut self,
        name: &PluginName,
        request: Request,
        deadline: Instant,
        reply: oneshot::Sender<Result<PluginInfo, Error>>,
    ) {
        if let Err(error) = self.accept(name, request) {
            // Whoever asked may be gone; nothing was changed.
            drop(reply.send(Err(error)));
            return;
        }
        let wants = request.wants();
        self.supersede(name, wants, request == Request::Restart);
        self.feed(name, Event::Request(request));
        if let Some(plugin) = self.plugins.get_mut(name) {
            plugin.waiters.push(Waiter {
                wants,
                deadline,
                reply,
            });
        }
    }

    /// Keeps the wish, and tells the plugin if it is there. Without one, tells what is wished.
    pub(super) fn set_log_level(
        &mut self,
        name: &PluginName,
        level: Option<Verbosity>,
    ) -> Result<Verbosity, Error> {
        let plugin = self
            .plugins
            .get_mut(name)
            .ok_or_else(|| Error::NoSuchPlugin {
                name: name.to_string(),
                suggestion: String::new(),
            })?;
        let Some(level) = level else {
            return Ok(plugin.log_level);
        };
        if matches!(plugin.manifest.kind, Kind::Embedded) {
            return Err(Error::LogShared {
                plugin: name.clone(),
            });
        }
        plugin.log_level = level;
        if let Some(link) = plugin.run.as_ref().and_then(|run| run.link()) {
            let level = level.as_str();
            sent(link.outbox.push(Outbound::LogLevel { level }));
        }
        tracing::info!(plugin = %name, level = level.as_str(), "the log level was set");
        self.touch(name);
        Ok(level)
    }

    /// What is shown of it changed.
    pub(super) fn touch(&mut self, name: &PluginName) {
        self.dirty.insert(name.clone());
    }

    fn accept(&self, name: &PluginName, request: Request) -> Result<(), Error> {
        if self.shutdown.is_some() {
            return Err(Error::ShuttingDown);
        }
        let known = self.plugins.get(name).filter(|plugin| !plugin.leaving);
        let plugin = known.ok_or_else(|| Error::NoSuchPlugin {
            name: name.to_string(),
            suggestion: String::new(),
        })?;
        if !matches!(request, Request::Stop | Request::Unload)
            && let Some(path) = self.graph.cycle_through(name)
        {
            return Err(Error::DependencyCycle { path });
        }
        plugin
            .state
            .permits(request)
            .map_err(|allowed| Error::WrongState {
                plugin: name.clone(),
                state: plugin.state.state(),
                request,
                allowed,
            })
    }

    /// Those who wait for something else wait in vain. Wanting the same again harms nobody, unless it
    /// is another run that is wanted.
    pub(super) fn supersede(&mut self, name: &PluginName, wants: PluginState, restart: bool) {
        let superseded = || Error::Superseded {
            plugin: name.clone(),
        };
        if let Some(plugin) = self.plugins.get_mut(name) {
            if let Some(upgrade) = plugin.upgrade.as_mut().filter(|_| restart) {
                upgrade.supersede();
            }
            let old = plugin
                .waiters
                .extract_if(.., |waiter| restart || waiter.wants != wants);
            old.for_each(|waiter| drop(waiter.reply.send(Err(superseded()))));
        }
        for batch in &mut self.batches {
            let same = batch.wants() == wants && !restart;
            if !same && batch.pending.remove(name).is_some() {
                batch.done.insert(name.clone(), Err(superseded()));
            }
        }
    }

    /// Answers once the file of upgrades is on the disk.
    pub(super) fn answer_once_kept(
        &mut self,
        plugin: PluginName,
        version: Version,
        waiter: upgrade::Waiter,
        answer: Result<PluginInfo, Error>,
    ) {
        self.unkept.push(Unkept {
            plugin,
            version,
            waiter,
            answer,
        });
    }

    pub(super) fn answer_unkept(&mut self) {
        self.answer_grants();
        let now = Instant::now();
        let (keeper, path) = (&self.keeper, self.upgrades.path());
        let standing = |unkept: &Unkept| keeper.standing(path, unkept.version);
        let done = self.unkept.extract_if(.., |unkept| {
            standing(unkept) != Standing::Waits || unkept.waiter.deadline <= now
        });
        for unkept in done.collect::<Vec<_>>() {
            let answer = kept(&unkept.plugin, standing(&unkept));
            drop(unkept.waiter.reply.send(answer.and(unkept.answer)));
        }
    }

    pub(super) fn answer_waiters(&mut self) {
        let now = Instant::now();
        let (desired, keeper) = (&self.desired, &self.keeper);
        for plugin in self.plugins.values_mut() {
            let mut index = 0;
            while index < plugin.waiters.len() {
                let waiter = &plugin.waiters[index];
                let verdict = verdict(plugin, waiter.wants, waiter.deadline, now);
                let standing = desired.standing(plugin.name(), keeper);
                let waits = standing == Standing::Waits && waiter.deadline > now;
                let Some(verdict) = verdict.filter(|verdict| verdict.is_err() || !waits) else {
                    index += 1;
                    continue;
                };
                let verdict = verdict.and_then(|()| kept(plugin.name(), standing));
                let waiter = plugin.waiters.swap_remove(index);
                let info = plugin.info(now);
                drop(waiter.reply.send(verdict.map(|()| info)));
            }
        }
    }

    // ---- all

    pub(super) fn all(
        &mut self,
        which: All,
        deadline: Instant,
        reply: oneshot::Sender<Vec<PluginResult>>,
    ) {
        if self.shutdown.is_some() {
            return;
        }
        let concerned = |plugin: &Plugin| match which {
            All::Start => plugin.state.desired() != PluginState::Unloaded,
            All::Stop => true,
        };
        let names: Vec<_> = self
            .plugins
            .values()
            .filter(|plugin| concerned(plugin))
            .map(|plugin| plugin.name().clone())
            .collect();
        let mut batch = Batch {
            which,
            deadline,
            pending: BTreeMap::new(),
            done: BTreeMap::new(),
            reply: Some(reply),
        };
        for name in names {
            self.supersede(&name, batch.wants(), false);
            if which == All::Start {
                if let Err(error) = self.accept(&name, Request::Start) {
                    batch.done.insert(name, Err(error));
                    continue;
                }
                // Each waits by itself for what it requires.
                self.feed(&name, Event::Request(Request::Start));
            }
            batch.pending.insert(name, which == All::Start);
        }
        self.batches.push(batch);
    }

    /// Goes on with requests for all; `true`: something was asked of a plugin.
    pub(super) fn advance_batches(&mut self) -> bool {
        let mut progress = false;
        let mut batches = std::mem::take(&mut self.batches);
        for batch in &mut batches {
            progress |= self.advance_batch(batch);
        }
        if !batches.is_empty() {
            // What was just asked of plugins is a wish from now on: one at rest is done at once, and its
            // answer waits for the disk like any other.
            self.publish();
        }
        let now = Instant::now();
        let (desired, keeper) = (&self.desired, &self.keeper);
        batches.retain_mut(|batch| {
            let waits = |(name, result): (&PluginName, &Result<(), Error>)| {
                result.is_ok() && desired.standing(name, keeper) == Standing::Waits
            };
            let unkept = batch.deadline > now && batch.done.iter().any(waits);
            if !batch.pending.is_empty() || unkept {
                return true;
            }
            let results = std::mem::take(&mut batch.done);
            let results = results.into_iter().filter_map(|(name, result)| {
                let result = result.and_then(|()| kept(&name, desired.standing(&name, keeper)));
                Some((self.plugins.get_mut(&name)?.info(now), result))
            });
            if let Some(reply) = batch.reply.take() {
                drop(reply.send(results.collect()));
            }
            false
        });
        self.batches = batches;
        progress
    }

    fn advance_batch(&mut self, batch: &mut Batch) -> bool {
        let now = Instant::now();
        let mut progress = false;
        if batch.which == All::Stop {
            for name in order::free_to_stop(&self.graph, &batch.pending) {
                batch.pending.insert(name.clone(), true);
                self.feed(&name, Event::StopAll);
                progress = true;
            }
        }
        let parked = if batch.which == All::Start {
            self.parked()
        } else {
            BTreeSet::new()
        };
        let mut verdicts = Vec::new();
        for (name, asked) in &batch.pending {
            let Some(plugin) = self.plugins.get(name) else {
                continue;
            };
            let verdict = match batch.which {
                All::Start if parked.contains(name) => {
                    Some(Err(failed(plugin, plugin.explanation())))
                }
                All::Start => verdict(plugin, PluginState::Started, batch.deadline, now),
                All::Stop if *asked && order::Standing::from(&plugin.state).quiet => Some(Ok(())),
                All::Stop => (batch.deadline <= now).then(|| Err(late(plugin))),
            };
            verdicts.extend(verdict.map(|verdict| (name.clone(), verdict)));
        }
        // Whoever is done may free the next.
        progress |= !verdicts.is_empty();
        for (name, verdict) in verdicts {
            batch.pending.remove(&name);
            batch.done.insert(name, verdict);
        }
        progress
    }

    /// Plugins that will not get on by themselves: absent remote ones, and whoever waits for those,
    /// for unknown plugins, or for plugins that have failed or are not wanted.
    fn parked(&self) -> BTreeSet<PluginName> {
        let mut parked = BTreeSet::new();
        loop {
            let before = parked.len();
            for plugin in self.plugins.values() {
                let stands = match plugin.state.phase() {
                    Phase::Connecting => {
                        plugin.state.origin() == Origin::Remote && plugin.state.is_resting()
                    }
                    Phase::WaitingDependency => plugin.requires.iter().any(|required| {
                        self.plugins.get(required).is_none_or(|required| {
                            let failed = required.state.progress(PluginState::Started);
                            parked.contains(required.name())
                                || matches!(failed, Progress::Failed { .. })
                                || required.state.desired() != PluginState::Started
                        })
                    }),
                    _ => false,
                };
                if stands {
                    parked.insert(plugin.name().clone());
                }
            }
            if parked.len() == before {
                return parked;
            }
        }
    }
}

impl Batch {
    fn wants(&self) -> PluginState {
        match self.which {
            All::Start => PluginState::Started,
            All::Stop => PluginState::Stopped,
        }
    }
}

fn verdict(
    plugin: &Plugin,
    wants: PluginState,
    deadline: Instant,
    now: Instant,
) -> Option<Result<(), Error>> {
    match plugin.state.progress(wants) {
        Progress::Reached => Some(Ok(())),
        Progress::Failed { cause } => Some(Err(failed(plugin, cause))),
        Progress::Pending => (deadline <= now).then(|| Err(late(plugin))),
    }
}

/// Whether it may be said that what is wanted of a plugin is kept.
fn kept(plugin: &PluginName, standing: Standing) -> Result<(), Error> {
    let cause = match standing {
        Standing::Kept => return Ok(()),
        Standing::Waits => "the disk has not answered yet".to_owned(),
        Standing::Failed(why) => why,
    };
    let plugin = plugin.clone();
    Err(Error::NotKept { plugin, cause })
}

fn failed(plugin: &Plugin, cause: String) -> Error {
    Error::PluginFailed {
        plugin: plugin.name().clone(),
        phase: plugin.state.phase(),
        cause,
    }
}

fn late(plugin: &Plugin) -> Error {
    Error::Deadline {
        plugin: plugin.name().clone(),
        phase: plugin.state.phase(),
        explanation: plugin.explanation(),
    }
}
