//! One plugin in the worker's hands: its machine, its run, and who waits for it.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::grants::Asks;
use super::info::{LastExit, PluginInfo, PluginKind};
use super::knocks::Knock;
use super::offers::Offer;
use super::upgrade::Upgrading;
use super::{CrashReport, Error, Kind, Manifest};
use crate::channel::{Hello, Run};
use crate::supervisor::host::Order;
use crate::supervisor::isolation::Isolation;
use crate::supervisor::lifecycle::{PluginState, State};
use crate::supervisor::liveness::Liveness;
use crate::supervisor::output::{LogBook, Verbosity};
use crate::supervisor::program::Identity;
use crate::supervisor::usage::Gauge;
use crate::types::{Generation, PluginName, RunId};

/// Lines of output that travel with a failure.
const LAST_LINES: usize = 20;

pub(super) struct Plugin {
    pub(super) manifest: Arc<Manifest>,
    pub(super) state: State,
    pub(super) run: Option<Arc<Run>>,
    /// The process that holds the run, as its `Hello` named it.
    pub(super) instance: Bytes,
    pub(super) said: Said,
    /// What it asked for in its last `Hello`; of a remote plugin alone.
    pub(super) asks: Asks,
    /// That is known: it has connected since the core began.
    pub(super) has_said_hello: bool,
    /// What it lacked when it was last looked at, as the log was told.
    pub(super) lacks: Option<String>,
    /// What it requires: of the manifest, and of a remote plugin's `Hello`.
    pub(super) requires: Vec<PluginName>,
    /// To the host of the current or last run.
    pub(super) orders: Option<watch::Sender<Order>>,
    pub(super) pid: u32,
    pub(super) liveness: Option<Liveness>,
    /// Another instance that wants the run's place.
    pub(super) knock: Option<Knock>,
    /// What the current or last run was kept to.
    pub(super) isolation: Option<Isolation>,
    /// What it used when it was last looked at; stays after its end.
    pub(super) gauge: Gauge,
    pub(super) waiters: Vec<Waiter>,
    pub(super) log: Arc<LogBook>,
    /// It was taken out of the configuration and disappears once it rests.
    pub(super) leaving: bool,
    /// Of the last `Hello`: it takes `ConfigChanged`.
    pub(super) live_config: bool,
    /// A configuration that it has not answered yet.
    pub(super) offer: Option<Offer>,
    /// Number of the configuration in force.
    pub(super) config_revision: u64,
    /// The highest number given to one so far.
    pub(super) offered_revision: u64,
    /// Why it did not take the newest one; may be empty.
    pub(super) config_rejected: String,
    pub(super) upgrade: Option<Upgrading>,
    /// Why its last upgrade was taken back; until the next change.
    pub(super) rolled_back: Option<String>,
    /// One version gives place to another: callers wait.
    pub(super) changing_over: bool,
    /// What its program was on disk when it was last started.
    pub(super) program: Option<Identity>,
    /// An operator's wish, for this run and the next ones.
    pub(super) log_level: Verbosity,
    /// What the current or last run was begun with, or has taken since.
    pub(super) ran: Ran,
    /// The last run whose crash was announced.
    pub(super) crash_told: Option<Generation>,
    last_exit: Option<(Instant, LastExit)>,
    /// The same moment on two clocks.
    since: (Instant, SystemTime),
}

/// What a run is: the manifest in force may be another one by the time it has ended.
#[derive(Debug, Default)]
pub(super) struct Ran {
    pub(super) version: String,
    pub(super) config_revision: u64,
}

/// What a plugin said of itself.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) version: String,
    pub(super) description: String,
    pub(super) sdk: String,
}

impl From<&Hello> for Said {
    fn from(hello: &Hello) -> Self {
        // For people only, and shown in lists: cut.
        let cut = |text: &str| text.chars().take(200).collect();
        Self {
            version: cut(&hello.plugin_version),
            description: cut(&hello.description),
            sdk: cut(&hello.sdk),
        }
    }
}

/// Somebody who waits for a state.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) wants: PluginState,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<PluginInfo, Error>>,
}

impl Plugin {
    pub(super) fn new(manifest: Manifest, state: State, log: Arc<LogBook>, now: Instant) -> Self {
        Self {
            requires: manifest.requires.clone(),
            manifest: Arc::new(manifest),
            state,
            run: None,
            instance: Bytes::new(),
            said: Said::default(),
            asks: Asks::new(),
            has_said_hello: false,
            lacks: None,
            orders: None,
            pid: 0,
            liveness: None,
            knock: None,
            isolation: None,
            gauge: Gauge::default(),
            waiters: Vec::new(),
            log,
            leaving: false,
            live_config: false,
            offer: None,
            config_revision: 1,
            offered_revision: 1,
            config_rejected: String::new(),
            upgrade: None,
            rolled_back: None,
            changing_over: false,
            program: None,
            log_level: Verbosity::default(),
            ran: Ran::default(),
            crash_told: None,
            last_exit: None,
            since: (now, SystemTime::now()),
        }
    }

    pub(super) fn name(&self) -> &PluginName {
        &self.manifest.name
    }

    /// Its process is being made, and nobody has told its id.
    pub(super) fn is_being_spawned(&self) -> bool {
        matches!(self.manifest.kind, Kind::Process(_)) && self.orders.is_some() && self.pid == 0
    }

    pub(super) fn is_run(&self, run: &RunId) -> bool {
        self.run.as_ref().is_some_and(|current| current.id() == run)
    }

    /// Whether this is named as required or wanted.
    pub(super) fn looks_at(&self, other: &PluginName) -> bool {
        self.requires.contains(other) || self.manifest.wants.contains(other)
    }

    /// Notes how the last run ended, while its output is still at hand.
    pub(super) fn note_exit(&mut self, now: Instant) {
        let Some(report) = self.state.last_exit() else {
            return;
        };
        if self
            .last_exit
            .as_ref()
            .is_some_and(|(at, _)| *at == report.at)
        {
            return;
        }
        let last_lines = self.log.last_lines(self.state.generation(), LAST_LINES);
        let exit = LastExit {
            code: report.exit.code,
            signal: report.exit.signal,
            message: report.message.clone(),
            at: wall(report.at, now),
            ran_for: report.ran_for,
            forced: report.forced,
            last_lines,
        };
        self.last_exit = Some((report.at, exit));
    }

    /// The report on the run that has just crashed; [`Plugin::note_exit`] has been called.
    pub(super) fn crash_report(&self) -> Option<CrashReport> {
        let (_, exit) = self.last_exit.as_ref()?;
        Some(CrashReport {
            generation: self.state.generation(),
            plugin_version: self.ran.version.clone(),
            config_revision: self.ran.config_revision,
            reason: self.state.explain().0,
            exit: exit.clone(),
            rss_bytes: self.gauge.bytes(),
        })
    }

    /// The run has what is in force now.
    pub(super) fn note_run(&mut self) {
        self.ran = Ran {
            version: self.version(),
            config_revision: self.config_revision,
        };
    }

    /// Of the manifest, else of the last `Hello`.
    fn version(&self) -> String {
        or(&self.manifest.version, &self.said.version)
    }

    pub(super) fn info(&mut self, now: Instant) -> PluginInfo {
        if self.since.0 != self.state.since() {
            self.since = (self.state.since(), wall(self.state.since(), now));
        }
        let (reason, message) = match (self.state.explain(), &self.rolled_back) {
            (("", _), Some(why)) => ("upgrade_rolled_back", why.clone()),
            (explained, _) => explained,
        };
        PluginInfo {
            name: self.manifest.name.clone(),
            kind: PluginKind::from(&self.manifest.kind),
            version: self.version(),
            description: or(&self.manifest.description, &self.said.description),
            state: self.state.state(),
            desired: self.state.desired(),
            phase: self.state.phase(),
            reason,
            message,
            since: self.since.1,
            next_attempt_at: self.state.next_attempt_at().map(|at| wall(at, now)),
            generation: self.state.generation(),
            restarts: self.state.restarts(),
            last_exit: self.last_exit.as_ref().map(|(_, exit)| exit.clone()),
            pid: self.pid,
            isolation: self.isolation.clone(),
            requires: self.requires.clone(),
            wants: self.manifest.wants.clone(),
            services: Vec::new(),
            subscriptions: Vec::new(),
            sdk: self.said.sdk.clone(),
            log_level: self.log_level,
            failures: self.state.failures(),
            suppressed_lines: 0,
            restart: self.manifest.restart.clone(),
            run: self.run.as_ref().map(|run| run.id().clone()),
            config_revision: self.config_revision,
            config_rejected: self.config_rejected.clone(),
        }
    }

    /// What goes on, for the message of a deadline.
    pub(super) fn explanation(&self) -> String {
        let (reason, message) = self.state.explain();
        match (reason, message.is_empty()) {
            ("", true) => format!("state {}", self.state.state().as_str()),
            (_, false) => message,
            (reason, true) => reason.to_owned(),
        }
    }

    /// What an event about the plugin carries.
    pub(super) fn details(&mut self, now: Instant) -> serde_json::Value {
        let info = self.info(now);
        let mut details = serde_json::json!({
            "name": info.name.as_str(),
            "state": info.state.as_str(),
            "phase": info.phase.as_str(),
            "reason": info.reason,
            "message": info.message,
            "generation": info.generation.0,
            "restarts": info.restarts,
            "failures": info.failures,
            "plugin_version": info.version,
            "config_revision": info.config_revision,
            "rss_bytes": self.gauge.bytes(),
        });
        if let Some(exit) = info.last_exit {
            details["last_exit"] = serde_json::json!({
                "code": exit.code,
                "signal": exit.signal,
                "message": exit.message,
                "at": jiff::Timestamp::try_from(exit.at).ok().map(|at| at.to_string()),
                "ran_for_ms": u64::try_from(exit.ran_for.as_millis()).unwrap_or(u64::MAX),
                "forced": exit.forced,
                "last_lines": exit.last_lines,
            });
        }
        details
    }
}

/// What is declared counts; what is said stands in for it.
fn or(declared: &str, said: &str) -> String {
    match declared {
        "" => said.to_owned(),
        declared => declared.to_owned(),
    }
}

/// A moment of the monotonic clock on the wall clock.
fn wall(at: Instant, now: Instant) -> SystemTime {
    // What `now` was on the wall: time has passed since it was taken, and moments that are told one
    // after the other must keep their order.
    let read = SystemTime::now();
    let wall = read.checked_sub(now.elapsed()).unwrap_or(read);
    let moved = if at >= now {
        wall.checked_add(at - now)
    } else {
        wall.checked_sub(now - at)
    };
    moved.unwrap_or(wall)
}
