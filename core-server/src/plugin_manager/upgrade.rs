//! Upgrades done: the new manifest takes the place of the old one, `trial` decides whether it stays.
//!
//! While the old version ends and the new one starts (or the old one again), the plugin is *changing over*:
//! its callers wait as for a channel that may come back. The upgrade is written down once the new version
//! has been ready: a core that dies before that starts the old one.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::keeper::Version;
use super::plugin::Plugin;
use super::trial::{Seen, Trial, Verdict, step};
use super::worker::{ABSENT_RETRY, Worker};
use super::{Error, Manifest, PluginInfo, PluginKind};
use crate::config;
use crate::routing::Availability;
use crate::supervisor::lifecycle::{Event, Phase, PluginState, Progress, Request, Topic};
use crate::types::{Generation, PluginName};

/// An upgrade under way.
pub(super) struct Upgrading {
    trial: Trial,
    /// What ran before.
    old: Manifest,
    record: config::Upgrade,
    /// What was written down before: of the version that ran before, should that be an upgrade itself.
    earlier_record: Option<config::Upgrade>,
    /// Runs of the new version are later ones.
    last_old: Generation,
    /// What was wanted when it began.
    desired: PluginState,
    superseded: bool,
    waiter: Option<Waiter>,
}

/// Who waits for an upgrade.
pub(super) struct Waiter {
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<PluginInfo, Error>>,
}

impl Upgrading {
    /// The manifest that the configuration still names: the upgrade is not written down yet.
    pub(super) fn unrecorded(&self) -> Option<&Manifest> {
        (!matches!(self.trial, Trial::Watched { .. })).then_some(&self.old)
    }

    /// Somebody asked for something else.
    pub(super) fn supersede(&mut self) {
        self.superseded = true;
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let waiter = self.waiter.as_ref().map(|waiter| waiter.deadline);
        self.trial.next_deadline().into_iter().chain(waiter).min()
    }

    /// The core was late: nothing is held against the plugin.
    pub(super) fn late(&mut self, by: std::time::Duration) {
        self.trial.late(by);
    }
}

impl Plugin {
    /// Ends an upgrade without a verdict; `true`: it was not written down yet.
    pub(super) fn end_upgrade(&mut self) -> bool {
        let Some(upgrading) = self.upgrade.take() else {
            return false;
        };
        let unrecorded = upgrading.unrecorded().is_some();
        if let Some(waiter) = upgrading.waiter {
            let plugin = self.name().clone();
            drop(waiter.reply.send(Err(Error::Superseded { plugin })));
        }
        unrecorded
    }

    fn see(&self, upgrading: &Upgrading) -> Seen {
        let is_new = self.state.generation() > upgrading.last_old;
        if upgrading.superseded || self.state.desired() != upgrading.desired {
            return Seen::Superseded;
        }
        match self.state.progress(upgrading.desired) {
            // That is no failure of the new version.
            _ if self.state.phase() == Phase::WaitingGrant => Seen::Waits,
            Progress::Failed { cause } if is_new => Seen::Failed(cause),
            Progress::Reached if is_new => Seen::Ready,
            _ if self.state.phase() == Phase::WaitingDependency => Seen::Waits,
            _ => Seen::OnItsWay,
        }
    }
}

impl Worker {
    /// Puts another version in a plugin's place.
    pub(super) fn upgrade(
        &mut self,
        manifest: Manifest,
        record: config::Upgrade,
        deadline: Instant,
        reply: oneshot::Sender<Result<PluginInfo, Error>>,
    ) {
        let waiter = Waiter { deadline, reply };
        if let Err((waiter, error)) = self.begin_upgrade(manifest, record, waiter) {
            drop(waiter.reply.send(Err(error)));
        }
    }

    fn begin_upgrade(
        &mut self,
        manifest: Manifest,
        record: config::Upgrade,
        waiter: Waiter,
    ) -> Result<(), (Waiter, Error)> {
        let name = manifest.name.clone();
        if let Err(error) = self.upgradable(&manifest) {
            return Err((waiter, error));
        }
        let known = self.plugins.get(&name);
        let desired = known.map_or(PluginState::Unloaded, |plugin| plugin.state.desired());
        self.supersede(&name, desired, true);
        let now = Instant::now();
        let Some(plugin) = self.plugins.get_mut(&name) else {
            return Ok(());
        };
        let earlier = plugin.upgrade.take();
        let old = earlier
            .as_ref()
            .and_then(Upgrading::unrecorded)
            .unwrap_or(&plugin.manifest)
            .clone();
        if let Some(earlier) = earlier.and_then(|earlier| earlier.waiter) {
            let plugin = name.clone();
            drop(earlier.reply.send(Err(Error::Superseded { plugin })));
        }
        plugin.rolled_back = None;
        let last_old = plugin.state.generation();
        plugin.changing_over = plugin.state.state() == PluginState::Started;
        let timeouts = &manifest.timeouts;
        // The old one's end, and then all the time that a start can take.
        let end = old.timeouts.drain + old.timeouts.stop + old.timeouts.term;
        let by = now + end + timeouts.connect + timeouts.longest_start();
        tracing::info!(plugin = %name, source = ?record.source, "upgrade");
        self.begin_anew(manifest, "upgrade", "another version takes its place");
        self.spread();
        let Some(plugin) = self.plugins.get_mut(&name) else {
            return Ok(());
        };
        let rests = matches!(
            plugin.state.progress(desired),
            Progress::Failed { .. } | Progress::Reached
        );
        if desired == PluginState::Unloaded || (rests && !plugin.state.has_run()) {
            // Nothing runs that could prove or fail: it is simply installed.
            plugin.changing_over = false;
            let info = plugin.info(now);
            let version = self.record(&name, Some(record));
            self.answer_once_kept(name, version, waiter, Ok(info));
            return Ok(());
        }
        plugin.upgrade = Some(Upgrading {
            trial: Trial::Tried { by },
            old,
            record,
            earlier_record: self.upgrades.get(&name).cloned(),
            last_old,
            desired,
            superseded: false,
            waiter: Some(waiter),
        });
        Ok(())
    }

    fn upgradable(&self, manifest: &Manifest) -> Result<(), Error> {
        if self.shutdown.is_some() {
            return Err(Error::ShuttingDown);
        }
        let known = self.plugins.get(&manifest.name);
        let plugin = known.filter(|plugin| !plugin.leaving);
        let plugin = plugin.ok_or_else(|| Error::NoSuchPlugin {
            name: manifest.name.to_string(),
            suggestion: String::new(),
        })?;
        for kind in [&plugin.manifest.kind, &manifest.kind] {
            upgradable_kind(plugin.name(), kind.into())?;
        }
        let mut graph = self.graph.clone();
        graph.set(manifest.name.clone(), manifest.requires.iter().cloned());
        match graph.cycle_through(&manifest.name) {
            Some(path) => Err(Error::DependencyCycle { path }),
            None => Ok(()),
        }
    }

    /// Goes on with upgrades; `true`: something was asked of a plugin.
    pub(super) fn advance_upgrades(&mut self) -> bool {
        if self.shutdown.is_some() {
            return false;
        }
        let names = self.plugins.values().filter(|it| it.upgrade.is_some());
        let names: Vec<_> = names.map(|plugin| plugin.name().clone()).collect();
        let mut progress = false;
        for name in names {
            progress |= self.advance_upgrade(&name);
        }
        self.end_changeovers();
        progress
    }

    fn advance_upgrade(&mut self, name: &PluginName) -> bool {
        let now = Instant::now();
        let Some(plugin) = self.plugins.get_mut(name) else {
            return false;
        };
        let Some(mut upgrading) = plugin.upgrade.take() else {
            return false;
        };
        let seen = plugin.see(&upgrading);
        let (next, verdict) = step(upgrading.trial, seen, now);
        match verdict {
            Verdict::GoOn => {
                if let Some(waiter) = upgrading.waiter.take_if(|waiter| waiter.deadline <= now) {
                    let error = Error::Deadline {
                        plugin: name.clone(),
                        phase: plugin.state.phase(),
                        explanation: plugin.explanation(),
                    };
                    drop(waiter.reply.send(Err(error)));
                }
                plugin.upgrade = Some(upgrading);
                false
            }
            Verdict::Accept => {
                let info = plugin.info(now);
                let (record, waiter) = (upgrading.record.clone(), upgrading.waiter.take());
                plugin.upgrade = next.map(|trial| Upgrading { trial, ..upgrading });
                let version = self.record(name, Some(record));
                if let Some(waiter) = waiter {
                    self.answer_once_kept(name.clone(), version, waiter, Ok(info));
                }
                false
            }
            Verdict::Prove => {
                tracing::info!(plugin = %name, "the upgrade has proved itself");
                false
            }
            Verdict::Leave => {
                if let Some(waiter) = upgrading.waiter {
                    let plugin = name.clone();
                    drop(waiter.reply.send(Err(Error::Superseded { plugin })));
                }
                let _unasked = self.record(name, Some(upgrading.record));
                false
            }
            Verdict::GoBack(cause) => {
                self.go_back(name, upgrading, cause);
                true
            }
        }
    }

    fn go_back(&mut self, name: &PluginName, upgrading: Upgrading, cause: String) {
        tracing::error!(plugin = %name, %cause, "the upgrade failed; the version before runs again");
        let back = format!("the upgrade failed ({cause}); the version before runs again");
        if let Some(plugin) = self.plugins.get_mut(name)
            && upgrading.desired == PluginState::Started
        {
            plugin.changing_over = true;
            let wait = Availability::Suspended;
            self.work.router.set_availability(name, wait);
        }
        self.announce_return(name, &upgrading, &back);
        let _unasked = self.record(name, upgrading.earlier_record);
        let runs_again = upgrading.desired == PluginState::Started;
        self.begin_anew(upgrading.old, "upgrade_rolled_back", &back);
        if runs_again {
            // Also where the new version ended as completed: that was not the old one's end.
            self.feed(name, Event::Request(Request::Start));
        }
        self.spread();
        if let Some(plugin) = self.plugins.get_mut(name) {
            plugin.rolled_back = Some(back);
            self.dirty.insert(name.clone());
        }
        if let Some(waiter) = upgrading.waiter {
            let plugin = name.clone();
            drop(waiter.reply.send(Err(Error::RolledBack { plugin, cause })));
        }
    }

    /// Going back is told in any case: by the crash that it followed from, else here.
    fn announce_return(&mut self, name: &PluginName, upgrading: &Upgrading, why: &str) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let crash = plugin.crash_told;
        if crash.is_some_and(|generation| generation > upgrading.last_old) {
            return;
        }
        let mut details = plugin.details(Instant::now());
        details["reason"] = "upgrade_rolled_back".into();
        details["message"] = why.into();
        let topic = Topic::Crashed.as_str();
        self.work.announcer.plugin_event(topic, name, details);
    }

    /// Callers of a plugin that is not on its way any more need not wait for it.
    fn end_changeovers(&mut self) {
        for plugin in self
            .plugins
            .values_mut()
            .filter(|plugin| plugin.changing_over)
        {
            let over = match plugin.state.progress(PluginState::Started) {
                Progress::Reached => plugin
                    .upgrade
                    .as_ref()
                    .is_none_or(|it| it.unrecorded().is_none()),
                Progress::Failed { .. } => plugin.upgrade.is_none(),
                Progress::Pending => plugin.state.desired() != PluginState::Started,
            };
            if over {
                plugin.changing_over = false;
                if plugin.state.state() != PluginState::Started {
                    let absent = Availability::Absent {
                        retry_after: Some(ABSENT_RETRY),
                    };
                    self.work.router.set_availability(plugin.name(), absent);
                }
            }
        }
    }

    /// Has it written down; the answer says what must be on the disk.
    fn record(&mut self, name: &PluginName, upgrade: Option<config::Upgrade>) -> Version {
        match self.upgrades.set(name, upgrade) {
            Some(content) => self.keeper.keep(self.upgrades.path(), content),
            None => Version::default(),
        }
    }
}

/// Only what the core starts from a file can be put in another's place.
pub(super) fn upgradable_kind(plugin: &PluginName, kind: PluginKind) -> Result<(), Error> {
    let why = match kind {
        PluginKind::Process => return Ok(()),
        PluginKind::Remote => "somebody else starts it: upgrade it there; it connects again",
        PluginKind::Embedded => "it is a part of the core's program: upgrade that",
    };
    let plugin = plugin.clone();
    Err(Error::NotUpgradable { plugin, why })
}
