//! What channels report of their runs, between their readers and the worker.
//!
//! A reader must never wait, and a hostile plugin may send as many frames as it likes: so there is no
//! queue, only one place per run for each kind of report. A newer report takes the older one's place;
//! the end of a hook is kept only if it is the one that is awaited. What is dropped is counted. Health
//! is handed on at most once a second.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::channel::{ChannelId, Run, Verdict};
use crate::supervisor::lifecycle::RunEvent;
use crate::types::{PluginName, RunId};

const HEALTH_EVERY: Duration = Duration::from_secs(1);
/// Longest text of a plugin that is kept: 1 KiB.
const MAX_TEXT_BYTES: usize = 1 << 10;

#[derive(Debug, Default)]
pub(super) struct Reports {
    /// By run. Short lock: no await, no callback inside.
    runs: Mutex<HashMap<RunId, Report>>,
    news: Notify,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Report {
    plugin: PluginName,
    awaited_hook: Option<u64>,
    awaited_config: Option<u64>,
    config: Option<(u64, Verdict)>,
    extend: Option<(u64, Duration)>,
    hook_done: Option<(u64, Result<(), String>)>,
    health: Option<Option<String>>,
    health_told: Option<Instant>,
    bye: Option<String>,
    credential_over: Option<String>,
}

/// Something that a channel reported.
#[derive(Debug)]
pub(super) enum Word {
    /// For the lifecycle.
    Run(RunEvent),
    /// The answer to the configuration of this revision.
    Config(u64, Verdict),
}

impl Reports {
    /// A run begins.
    pub(super) fn begin(&self, run: &Run) {
        let report = Report {
            plugin: run.plugin().clone(),
            awaited_hook: None,
            awaited_config: None,
            config: None,
            extend: None,
            hook_done: None,
            health: None,
            health_told: None,
            bye: None,
            credential_over: None,
        };
        self.runs.lock().insert(run.id().clone(), report);
    }

    /// A run has ended: nothing of it is heard any more.
    pub(super) fn end(&self, run: &RunId) {
        self.runs.lock().remove(run);
    }

    /// A hook was sent.
    pub(super) fn await_hook(&self, run: &RunId, hook_id: u64) {
        if let Some(report) = self.runs.lock().get_mut(run) {
            report.awaited_hook = Some(hook_id);
            report.hook_done = None;
        }
    }

    /// A changed configuration was sent.
    pub(super) fn await_config(&self, run: &RunId, revision: u64) {
        if let Some(report) = self.runs.lock().get_mut(run) {
            report.awaited_config = Some(revision);
            report.config = None;
        }
    }

    /// Reports that were dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn hook_done(
        &self,
        run: &Run,
        channel: ChannelId,
        hook_id: u64,
        result: Result<(), String>,
    ) {
        self.note(run, channel, |report| {
            let awaited = report.awaited_hook == Some(hook_id) && report.hook_done.is_none();
            if awaited {
                report.hook_done = Some((hook_id, result.map_err(shorten)));
            }
            awaited
        });
    }

    pub(super) fn extend(&self, run: &Run, channel: ChannelId, hook_id: u64, by: Duration) {
        self.note(run, channel, |report| {
            let awaited = report.awaited_hook == Some(hook_id);
            if awaited {
                report.extend = Some((hook_id, by));
            }
            awaited
        });
    }

    pub(super) fn health(&self, run: &Run, channel: ChannelId, degraded: Option<String>) {
        self.note(run, channel, |report| {
            report.health = Some(degraded.map(shorten));
            true
        });
    }

    pub(super) fn config_result(
        &self,
        run: &Run,
        channel: ChannelId,
        revision: u64,
        verdict: Verdict,
    ) {
        self.note(run, channel, |report| {
            let awaited = report.awaited_config == Some(revision);
            if awaited {
                report.awaited_config = None;
                report.config = Some((revision, verdict));
            }
            awaited
        });
    }

    pub(super) fn bye(&self, run: &Run, channel: ChannelId, reason: String) {
        self.note(run, channel, |report| {
            report.bye = Some(shorten(reason));
            true
        });
    }

    pub(super) fn credential_over(&self, run: &Run, channel: ChannelId, why: String) {
        self.note(run, channel, |report| {
            report.credential_over = Some(why);
            true
        });
    }

    fn note(&self, run: &Run, channel: ChannelId, note: impl FnOnce(&mut Report) -> bool) {
        let current = run.link().is_some_and(|link| link.channel == channel);
        let noted = current && self.runs.lock().get_mut(run.id()).is_some_and(note);
        if noted {
            self.news.notify_one();
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits for something to take. Cancel safe.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes what is due, and says when to look again for what is not.
    pub(super) fn take(&self, now: Instant) -> (Vec<(PluginName, RunId, Word)>, Option<Instant>) {
        let mut taken = Vec::new();
        let mut later: Option<Instant> = None;
        for (run, report) in &mut *self.runs.lock() {
            let mut say = |word| taken.push((report.plugin.clone(), run.clone(), word));
            if let Some((revision, verdict)) = report.config.take() {
                say(Word::Config(revision, verdict));
            }
            let mut take = |event| say(Word::Run(event));
            if let Some((hook_id, by)) = report.extend.take() {
                take(RunEvent::Extend { hook_id, by });
            }
            if let Some((hook_id, result)) = report.hook_done.take() {
                report.awaited_hook = None;
                take(RunEvent::HookDone { hook_id, result });
            }
            if report.health.is_some() {
                let due = report.health_told.map_or(now, |told| told + HEALTH_EVERY);
                if due <= now {
                    report.health_told = Some(now);
                    report
                        .health
                        .take()
                        .into_iter()
                        .for_each(|health| take(RunEvent::Health(health)));
                } else {
                    later = Some(later.map_or(due, |later| later.min(due)));
                }
            }
            // Whatever it says in leaving, it is not let in any more.
            if let Some(why) = report.credential_over.take() {
                take(RunEvent::CredentialOver(why));
            }
            if let Some(reason) = report.bye.take() {
                take(RunEvent::Bye(reason));
            }
        }
        (taken, later)
    }
}

/// Cuts a plugin's text at 1 KiB.
fn shorten(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    }
    text
}
