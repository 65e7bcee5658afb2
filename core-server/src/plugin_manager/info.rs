//! What is shown of plugins, and watching it.
//!
//! The worker puts each change on the board; readers never disturb it. A watcher holds a position and
//! reads what is newest, so that a slow one misses intermediate steps and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_stream::Stream;

use super::{Kind, RestartPolicy};
use crate::supervisor::isolation::Isolation;
use crate::supervisor::lifecycle::{Phase, PluginState};
use crate::supervisor::output::Verbosity;
use crate::types::{Generation, PluginName, RunId};

/// Where a plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginKind {
    /// A child process.
    Process,
    /// Somewhere else; it connects.
    Remote,
    /// Inside the core's process.
    Embedded,
}

impl From<&Kind> for PluginKind {
    fn from(kind: &Kind) -> Self {
        match kind {
            Kind::Process(_) => Self::Process,
            Kind::Remote { .. } => Self::Remote,
            Kind::Embedded => Self::Embedded,
        }
    }
}

/// One plugin with everything that is known of it; see `plugin_manager.proto` for each field.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginInfo {
    /// Its name.
    pub name: PluginName,
    /// Where it runs.
    pub kind: PluginKind,
    /// Of the manifest, else of the last `Hello`.
    pub version: String,
    /// Of the manifest, else of the last `Hello`.
    pub description: String,
    /// Its state.
    pub state: PluginState,
    /// What is wanted.
    pub desired: PluginState,
    /// What is going on.
    pub phase: Phase,
    /// Why: a stable word; may be empty.
    pub reason: &'static str,
    /// Why: a sentence; may be empty.
    pub message: String,
    /// When the phase began.
    pub since: SystemTime,
    /// When the core tries again.
    pub next_attempt_at: Option<SystemTime>,
    /// Number of the current or last run.
    pub generation: Generation,
    /// Runs begun without anyone's request.
    pub restarts: u64,
    /// How the last run ended.
    pub last_exit: Option<LastExit>,
    /// Process id of a child; 0: none.
    pub pid: u32,
    /// What a child was kept to in the current or last run; absent before the first.
    pub isolation: Option<Isolation>,
    /// What it requires.
    pub requires: Vec<PluginName>,
    /// What it wants.
    pub wants: Vec<PluginName>,
    /// Services of the current run; filled when asked for.
    pub services: Vec<String>,
    /// Patterns of the current run; filled when asked for.
    pub subscriptions: Vec<String>,
    /// The library of its last `Hello`.
    pub sdk: String,
    /// How much it is asked to log.
    pub log_level: Verbosity,
    /// Failures since it was last stable.
    pub failures: u32,
    /// Lines that were written too fast; filled when asked for.
    pub suppressed_lines: u64,
    /// When it runs again by itself.
    pub restart: RestartPolicy,
    /// The live run.
    pub run: Option<RunId>,
    /// Number of the configuration in force.
    pub config_revision: u64,
    /// Why the plugin did not take the newest one; may be empty.
    pub config_rejected: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct LastExit {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal number.
    pub signal: Option<i32>,
    /// A sentence.
    pub message: String,
    /// When.
    pub at: SystemTime,
    /// How long it ran.
    pub ran_for: Duration,
    /// The core ended it.
    pub forced: bool,
    /// Its last lines, at most 20.
    pub last_lines: Vec<String>,
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchItem {
    /// There, or changed.
    Plugin(Box<PluginInfo>),
    /// Everything that was there has been told. Once.
    SnapshotEnd,
    /// It is not there any more.
    Removed(PluginName),
}

/// Removals that are remembered for watchers who have not heard of them yet. Beyond that the oldest
/// is forgotten: a watcher that is so far behind misses it.
const MAX_REMOVED: usize = 1_000;

/// What is known of a name.
#[derive(Debug)]
enum Entry {
    There(Box<PluginInfo>),
    Removed,
}

/// The newest of each plugin.
#[derive(Debug)]
pub(super) struct Board {
    /// Short lock: no await, no callback inside.
    entries: Mutex<BTreeMap<PluginName, (u64, Entry)>>,
    version: watch::Sender<u64>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            entries: Mutex::new(BTreeMap::new()),
            version: watch::Sender::new(0),
        }
    }
}

impl Board {
    /// Puts the newest of a plugin on the board; `false`: it is what stood there.
    pub(super) fn put(&self, info: PluginInfo) -> bool {
        let mut entries = self.entries.lock();
        if let Some((_, Entry::There(before))) = entries.get(&info.name)
            && **before == info
        {
            return false;
        }
        let version = *self.version.borrow() + 1;
        entries.insert(info.name.clone(), (version, Entry::There(Box::new(info))));
        drop(entries);
        self.version.send_replace(version);
        true
    }

    /// Takes a plugin off the board.
    pub(super) fn remove(&self, plugin: &PluginName) {
        let mut entries = self.entries.lock();
        let version = *self.version.borrow() + 1;
        entries.insert(plugin.clone(), (version, Entry::Removed));
        let removed = entries
            .iter()
            .filter(|(_, (_, entry))| matches!(entry, Entry::Removed));
        let (count, oldest) =
            removed.fold((0, None::<(u64, PluginName)>), |(count, oldest), next| {
                let (name, (at, _)) = next;
                let older = oldest.as_ref().is_none_or(|(oldest, _)| at < oldest);
                let oldest = if older {
                    Some((*at, name.clone()))
                } else {
                    oldest
                };
                (count + 1, oldest)
            });
        if let Some((_, oldest)) = oldest.filter(|_| count > MAX_REMOVED) {
            entries.remove(&oldest);
        }
        drop(entries);
        self.version.send_replace(version);
    }

    pub(super) fn get(&self, plugin: &str) -> Option<PluginInfo> {
        match self.entries.lock().get(plugin) {
            Some((_, Entry::There(info))) => Some((**info).clone()),
            Some((_, Entry::Removed)) | None => None,
        }
    }

    pub(super) fn list(&self) -> Vec<PluginInfo> {
        let entries = self.entries.lock();
        let there = entries.values().filter_map(|(_, entry)| match entry {
            Entry::There(info) => Some((**info).clone()),
            Entry::Removed => None,
        });
        there.collect()
    }

    /// Names that changed after a version, oldest change first, and the newest version.
    fn changed_after(&self, version: u64) -> (VecDeque<PluginName>, u64) {
        let entries = self.entries.lock();
        let mut changed: Vec<_> = entries
            .iter()
            // Who begins to watch is not told of what went before.
            .filter(|(_, (at, entry))| {
                *at > version && (version > 0 || matches!(entry, Entry::There(_)))
            })
            .map(|(name, (at, _))| (*at, name.clone()))
            .collect();
        changed.sort();
        let newest = changed.last().map_or(version, |(at, _)| *at);
        (changed.into_iter().map(|(_, name)| name).collect(), newest)
    }

    pub(super) fn watch(self: &Arc<Self>) -> impl Stream<Item = WatchItem> + Send + use<> {
        let watcher = Watcher {
            board: Arc::clone(self),
            news: self.version.subscribe(),
            names: VecDeque::new(),
            position: None,
            told_all: false,
        };
        futures_util::stream::unfold(watcher, |mut watcher| async move {
            watcher.next().await.map(|item| (item, watcher))
        })
    }
}

struct Watcher {
    board: Arc<Board>,
    news: watch::Receiver<u64>,
    names: VecDeque<PluginName>,
    position: Option<u64>,
    told_all: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<WatchItem> {
        loop {
            if let Some(name) = self.names.pop_front() {
                return Some(match self.board.get(name.as_str()) {
                    Some(info) => WatchItem::Plugin(Box::new(info)),
                    // Gone before the snapshot came to it: nothing to tell.
                    None if !self.told_all => continue,
                    None => WatchItem::Removed(name),
                });
            }
            if self.position.is_some() {
                if !std::mem::replace(&mut self.told_all, true) {
                    return Some(WatchItem::SnapshotEnd);
                }
                self.news.changed().await.ok()?;
            }
            self.news.borrow_and_update();
            let (names, newest) = self.board.changed_after(self.position.unwrap_or(0));
            (self.names, self.position) = (names, Some(newest));
        }
    }
}
