//! Configurations on offer: sent to a plugin that can take one while it runs, and not answered yet.
//!
//! Until the plugin answers the old manifest stays in force. No answer in time, or the end of the run,
//! brings the new one in with the next run. A plugin holds at most one offer; a newer one takes its place.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::plugin::Plugin;
use super::reload::{Done, Reloading};
use super::worker::{Worker, sent};
use super::{ChangeKind, Manifest, PluginChange, Reloaded};
use crate::channel::{Outbound, Verdict};
use crate::supervisor::lifecycle::Event;
use crate::types::PluginName;

/// How long a plugin may take to answer `ConfigChanged`.
const OFFER: Duration = Duration::from_secs(5);

/// A configuration that a plugin has been sent and has not answered.
pub(super) struct Offer {
    revision: u64,
    pub(super) manifest: Manifest,
    pub(super) deadline: Instant,
}

impl Plugin {
    /// Sends what is on offer. Once more when a lost channel is back: nobody knows whether the plugin got
    /// it, or whether its answer was lost. The time for the answer goes on meanwhile.
    pub(super) fn send_offer(&self) {
        let link = self.run.as_ref().and_then(|run| run.link());
        if let (Some(offer), Some(link), true) = (&self.offer, link, self.live_config) {
            let config = serde_json::to_vec(&offer.manifest.config);
            let config = Bytes::from(config.unwrap_or_else(|_| b"{}".to_vec()));
            let revision = offer.revision;
            let push = link
                .outbox
                .push(Outbound::ConfigChanged { revision, config });
            sent(push);
        }
    }

    /// Whether its run can take a configuration while it goes on: now, or once its channel is back.
    pub(super) fn takes_offers(&self) -> bool {
        let link = self.run.as_ref().is_some_and(|run| run.link().is_some());
        let comes_back = self.state.suspended_until().is_some() && !self.instance.is_empty();
        self.live_config && (link || comes_back)
    }

    /// The end of the run answers an offer: the next run begins with it.
    pub(super) fn end_offer(&mut self) -> Option<u64> {
        let offer = self.offer.take()?;
        self.manifest = Arc::new(offer.manifest);
        self.config_revision = offer.revision;
        self.config_rejected.clear();
        Some(offer.revision)
    }
}

impl Worker {
    pub(super) fn offer(&mut self, name: &PluginName, manifest: Manifest) -> Done {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return Done::Now(ChangeKind::Updated, String::new());
        };
        plugin.offered_revision += 1;
        let revision = plugin.offered_revision;
        plugin.offer = Some(Offer {
            revision,
            manifest,
            deadline: Instant::now() + OFFER,
        });
        if let Some(run) = &plugin.run {
            self.shared.reports.await_config(run.id(), revision);
        }
        plugin.send_offer();
        Done::Later(revision)
    }

    pub(super) fn config_result(&mut self, name: &PluginName, revision: u64, verdict: Verdict) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let Some(offer) = plugin.offer.take_if(|offer| offer.revision == revision) else {
            return;
        };
        self.dirty.insert(name.clone());
        let (kind, text) = match verdict {
            Verdict::Applied => {
                plugin.manifest = Arc::new(offer.manifest);
                plugin.config_revision = revision;
                plugin.config_rejected.clear();
                plugin.note_run();
                (ChangeKind::Reconfigured, String::new())
            }
            Verdict::Rejected(text) => {
                tracing::warn!(plugin = %name, revision, why = %text, "it rejected its configuration");
                plugin.config_rejected = if text.is_empty() {
                    "it gave no reason".to_owned()
                } else {
                    text.clone()
                };
                (ChangeKind::Rejected, text)
            }
            Verdict::RestartNeeded(text) => {
                plugin.offer = Some(offer);
                let why = match text.is_empty() {
                    true => "it asked for a restart".to_owned(),
                    false => text,
                };
                return self.restart_for_offer(name, &why);
            }
        };
        self.offer_ended(name, revision, kind, &text);
    }

    fn restart_for_offer(&mut self, name: &PluginName, why: &str) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let Some(revision) = plugin.end_offer() else {
            return;
        };
        let settings = plugin.settings();
        let reason = ("reload", format!("its configuration changed: {why}"));
        self.feed(name, Event::Renewed(settings, Some(reason)));
        self.offer_ended(name, revision, ChangeKind::Restarted, why);
    }

    /// Restarts those that have not answered in time.
    pub(super) fn expire_offers(&mut self, now: Instant) {
        let late = |plugin: &&Plugin| {
            let offer = plugin.offer.as_ref();
            offer.is_some_and(|offer| offer.deadline <= now)
        };
        let late: Vec<_> = self.plugins.values().filter(late).collect();
        let late: Vec<_> = late.iter().map(|plugin| plugin.name().clone()).collect();
        for name in late {
            tracing::warn!(plugin = %name, "it did not answer a change of its configuration");
            self.restart_for_offer(&name, "it did not answer in time");
        }
    }

    pub(super) fn offer_ended(
        &mut self,
        name: &PluginName,
        revision: u64,
        kind: ChangeKind,
        message: &str,
    ) {
        for pending in &mut self.reloads {
            if pending.reloading.awaited.get(name) == Some(&revision) {
                pending.reloading.awaited.remove(name);
                pending
                    .reloading
                    .done
                    .insert(name.clone(), (kind, message.to_owned()));
            }
        }
        self.answer_reloads();
    }

    pub(super) fn answer_reloads(&mut self) {
        let plugins = &self.plugins;
        for pending in &mut self.reloads {
            // A newer reload has made another offer, or taken the plugin out.
            let replaced = |name: &PluginName, revision: &u64| {
                let offer = plugins.get(name).and_then(|plugin| plugin.offer.as_ref());
                offer.is_none_or(|offer| offer.revision != *revision)
            };
            let over = pending
                .reloading
                .awaited
                .extract_if(.., |name, revision| replaced(name, revision));
            for (name, _) in over {
                let message = "a newer reload took its place".to_owned();
                pending
                    .reloading
                    .done
                    .insert(name, (ChangeKind::Updated, message));
            }
        }
        let answered = self
            .reloads
            .extract_if(.., |pending| pending.reloading.awaited.is_empty());
        for pending in answered {
            let Reloading {
                done, unchanged, ..
            } = pending.reloading;
            let changes = done
                .into_iter()
                .map(|(name, (kind, message))| PluginChange {
                    name,
                    kind,
                    message,
                });
            let reloaded = Reloaded {
                changes: changes.collect(),
                unchanged,
                ..Reloaded::default()
            };
            // Whoever asked may be gone; what was done stands.
            drop(pending.reply.send(Ok(reloaded)));
        }
    }
}
