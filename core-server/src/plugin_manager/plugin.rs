//! One plugin in the worker's hands: its machine, its run, and who waits for it.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::info::{LastExit, PluginInfo, PluginKind};
use super::{Error, Kind, Manifest};
use crate::channel::{Hello, Run};
use crate::supervisor::heartbeat::Heartbeat;
use crate::supervisor::host::Order;
use crate::supervisor::lifecycle::{PluginState, State};
use crate::supervisor::output::LogBook;
use crate::types::{PluginName, RunId};

/// Lines of output that travel with a failure.
const LAST_LINES: usize = 20;

pub(super) struct Plugin {
    pub(super) manifest: Arc<Manifest>,
    pub(super) state: State,
    pub(super) run: Option<Arc<Run>>,
    /// The process that holds the run, as its `Hello` named it.
    pub(super) instance: Bytes,
    pub(super) said: Said,
    /// What it requires: of the manifest, and of a remote plugin's `Hello`.
    pub(super) requires: Vec<PluginName>,
    /// To the host of the current or last run.
    pub(super) orders: Option<watch::Sender<Order>>,
    pub(super) pid: u32,
    pub(super) heartbeat: Option<Heartbeat>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) log: Arc<LogBook>,
    last_exit: Option<(Instant, LastExit)>,
    /// The same moment on two clocks.
    since: (Instant, SystemTime),
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
            orders: None,
            pid: 0,
            heartbeat: None,
            waiters: Vec::new(),
            log,
            last_exit: None,
            since: (now, SystemTime::now()),
        }
    }

    pub(super) fn name(&self) -> &PluginName {
        &self.manifest.name
    }

    pub(super) fn is_started(&self) -> bool {
        self.state.state() == PluginState::Started
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

    pub(super) fn info(&mut self, now: Instant) -> PluginInfo {
        if self.since.0 != self.state.since() {
            self.since = (self.state.since(), wall(self.state.since(), now));
        }
        let (reason, message) = self.state.explain();
        let or = |declared: &str, said: &str| {
            if declared.is_empty() {
                said.to_owned()
            } else {
                declared.to_owned()
            }
        };
        PluginInfo {
            name: self.manifest.name.clone(),
            kind: match self.manifest.kind {
                Kind::Process(_) => PluginKind::Process,
                Kind::Remote { .. } => PluginKind::Remote,
                Kind::Embedded => PluginKind::Embedded,
            },
            version: or(&self.manifest.version, &self.said.version),
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
            requires: self.requires.clone(),
            wants: self.manifest.wants.clone(),
            services: Vec::new(),
            subscriptions: Vec::new(),
            sdk: self.said.sdk.clone(),
            run: self.run.as_ref().map(|run| run.id().clone()),
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
            "failures": self.state.failures(),
        });
        if let Some(exit) = info.last_exit {
            details["last_exit"] = serde_json::json!({
                "code": exit.code,
                "signal": exit.signal,
                "message": exit.message,
                "ran_for_ms": u64::try_from(exit.ran_for.as_millis()).unwrap_or(u64::MAX),
                "forced": exit.forced,
                "last_lines": exit.last_lines,
            });
        }
        details
    }
}

/// A moment of the monotonic clock on the wall clock.
fn wall(at: Instant, now: Instant) -> SystemTime {
    let wall = SystemTime::now();
    let moved = if at >= now {
        wall.checked_add(at - now)
    } else {
        wall.checked_sub(now - at)
    };
    moved.unwrap_or(wall)
}
