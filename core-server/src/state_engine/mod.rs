//! Shared state of the running system: modes, flags, what is on.
//!
//! Owns: a table in memory, gone with the core, and its watchers. Does not own: who may read or write
//! what (`security/`), nor anything durable (that is Storage's).
//!
//! Invariants
//! - One counter of revisions for the whole table rises by one with each change and each removal. An
//!   entry's revision is that of the write that gave it its value.
//! - Writing the value that a key has already is a *report*: `reported_at` and the writer move, the
//!   revision and `changed_at` do not.
//! - A watcher that has read everything knows exactly the table's present entries that it watches.
//! - Reading and writing one key cost the same however many keys there are; a write costs more only
//!   for the watchers whom it concerns, and never waits for one.
//!
//! When a watcher is slow, it gets the newest change per key, marked; when it stalls for so long that
//! more than 16 MiB are held for its owner, its watch ends (`COMPACTED`). When the table is full
//! (100,000 keys or 256 MiB of values), or the keys below one first name have their share of it, what
//! would make it larger is refused (`STATE_FULL`); what makes it smaller never is.
//!
//! Revisions begin at the time in microseconds, so that none is given twice, over restarts either.
//!
//! [`StateEngine::run`] removes what has expired, when its time comes. What it has not removed yet is
//! invisible all the same; without it, only watchers would hear late. Whoever ends a run calls
//! [`StateEngine::end_run`], which makes the run's own keys stale.

mod error;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use error::Error;
pub use table::{Change, ChangeKind, DeleteReceipt, Entry, Page, SetReceipt};
pub use watch::{Watch, WatchItem, WatchRequest};

use crate::types::{Cause, Pattern, PluginName, Revision, RunId, Source, StateKey, json};
use table::{Table, Write};
use watch::Watchers;

/// Bounds of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Most keys.
    pub max_keys: usize,
    /// Most bytes of one value.
    pub max_value_bytes: usize,
    /// Most bytes of all values together.
    pub max_bytes: usize,
    /// Most keys below one first name. Those of the core itself are not bounded.
    pub max_owner_keys: usize,
    /// Most bytes of all values below one first name.
    pub max_owner_bytes: usize,
    /// A page of a list ends early at so many bytes of keys and values.
    pub page_bytes: usize,
    /// Most bytes of changes that a watch gives at once, or one change.
    pub watch_batch_bytes: usize,
    /// How long a key is kept after the end of the run that it belongs to.
    pub stale_ttl: Duration,
}

/// Longest time to live.
pub const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Most keys that expire or become stale under one lock.
const AT_ONCE: usize = 64;

impl Default for Config {
    fn default() -> Self {
        Self {
            max_keys: 100_000,
            max_value_bytes: 64 << 10,
            max_bytes: 256 << 20,
            max_owner_keys: 25_000,
            max_owner_bytes: 64 << 20,
            page_bytes: 1 << 20,
            watch_batch_bytes: 256 << 10,
            stale_ttl: Duration::from_secs(600),
        }
    }
}

impl Config {
    /// Checks that the bounds fit together.
    ///
    /// # Errors
    /// A sentence that names the bound, for people.
    pub fn validate(&self) -> Result<(), String> {
        if self.max_keys == 0 || self.max_owner_keys == 0 {
            return Err("max_keys and max_owner_keys must be at least 1".to_owned());
        }
        if !(1..=1 << 20).contains(&self.max_value_bytes) {
            return Err("max_value_bytes must be between 1 and 1048576 (1 MiB)".to_owned());
        }
        if self.max_bytes.min(self.max_owner_bytes) < self.max_value_bytes {
            let text = "max_bytes and max_owner_bytes must be at least max_value_bytes";
            return Err(text.to_owned());
        }
        for (name, bytes) in [
            ("page_bytes", self.page_bytes),
            ("watch_batch_bytes", self.watch_batch_bytes),
        ] {
            if !(1..=2 << 20).contains(&bytes) {
                return Err(format!("{name} must be between 1 and 2097152 (2 MiB)"));
            }
        }
        if self.stale_ttl.is_zero() || self.stale_ttl > MAX_TTL {
            return Err("stale_ttl must be more than nothing and at most 10 years".to_owned());
        }
        Ok(())
    }
}

/// What a write may say besides key and value.
#[derive(Clone, Debug, Default)]
pub struct SetOptions {
    /// Only if the key is at this revision; 0: only if it is absent.
    pub if_revision: Option<Revision>,
    /// How long it lasts unless it is written again; at most [`MAX_TTL`].
    pub ttl: Option<Duration>,
    /// The run that it belongs to. Whoever sets it sees to [`StateEngine::end_run`].
    pub owner: Option<RunId>,
    /// What caused it.
    pub cause: Option<Cause>,
}

/// The StateEngine's handle. Cheap to clone.
#[derive(Clone)]
pub struct StateEngine {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// Guards the table and what watchers have still to be told: a change and its telling are one.
    /// Short: nothing is parsed, woken or awaited under it, and each read looks at a bounded number
    /// of keys.
    state: Mutex<State>,
    /// Something expires earlier than anything before.
    sooner: Notify,
}

struct State {
    table: Table,
    watchers: Watchers,
}

/// Levels now, and a counter since the core started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Keys.
    pub keys: usize,
    /// Bytes of their values.
    pub bytes: usize,
    /// Revision of the engine.
    pub revision: Revision,
    /// Watches now.
    pub watches: usize,
    /// Changes that slow watchers were not told, for a newer one of the same key.
    pub conflated: u64,
}

impl State {
    fn note_all(&mut self, changes: &[Change]) -> Vec<Waker> {
        let noted = changes.iter().map(|change| self.watchers.note(change));
        noted.flatten().collect()
    }

    /// Removes one key if its time has passed, for whoever is about to write it.
    fn expire(&mut self, key: &StateKey, now: Instant, at: SystemTime) -> Vec<Waker> {
        match self.table.expire_key(key, now, at) {
            Some(change) => self.watchers.note(&change),
            None => Vec::new(),
        }
    }
}

impl StateEngine {
    /// An empty table. Its revisions come after `last`: [`unused_revision`], where earlier tables were
    /// known to somebody.
    #[must_use]
    pub fn new(config: Config, last: Revision) -> Self {
        let state = State {
            table: Table::new(config.clone(), last),
            watchers: Watchers::new(),
        };
        Self {
            shared: Arc::new(Shared {
                config,
                state: Mutex::new(state),
                sooner: Notify::new(),
            }),
        }
    }

    /// Reads one key.
    #[must_use]
    pub fn get(&self, key: &StateKey) -> Option<Entry> {
        let now = Instant::now();
        let state = self.shared.state.lock();
        state.table.get(key.as_str(), now).cloned()
    }

    /// Writes one key; with `if_revision` only if the key is at that revision (0: absent).
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NotJson`], [`Error::RevisionMismatch`], [`Error::Full`].
    pub fn set(
        &self,
        writer: &Source,
        key: &StateKey,
        value: Bytes,
        if_revision: Option<Revision>,
        cause: Option<Cause>,
    ) -> Result<SetReceipt, Error> {
        let options = SetOptions {
            if_revision,
            cause,
            ..SetOptions::default()
        };
        self.set_with(writer, key, value, options)
    }

    /// Writes one key, with all that a write may say.
    ///
    /// # Errors
    /// Those of [`Self::set`], and [`Error::BadField`] for the time to live.
    pub fn set_with(
        &self,
        writer: &Source,
        key: &StateKey,
        value: Bytes,
        options: SetOptions,
    ) -> Result<SetReceipt, Error> {
        if options
            .ttl
            .is_some_and(|ttl| ttl.is_zero() || ttl > MAX_TTL)
        {
            return Err(Error::BadField {
                field: "ttl",
                rule: "more than nothing and at most 10 years are allowed".to_owned(),
            });
        }
        let limit_bytes = self.shared.config.max_value_bytes;
        if value.len() > limit_bytes {
            return Err(Error::TooLarge {
                key: key.clone(),
                size_bytes: value.len(),
                limit_bytes,
            });
        }
        json::check(&value).map_err(|source| Error::NotJson {
            key: key.clone(),
            source,
        })?;
        // A slice of a larger message would keep the message alive as long as the key.
        let value = Bytes::copy_from_slice(&value);
        let write = Write {
            ttl: options.ttl,
            owner: options.owner,
            ..write(writer, options.cause)
        };
        let mut state = self.shared.state.lock();
        let mut wakers = state.expire(key, write.now, write.at);
        let before = state.table.next_due();
        let done = state.table.set(key, value, options.if_revision, write);
        let done = done.map(|(receipt, change)| {
            wakers.extend(state.watchers.note(&change));
            receipt
        });
        let after = state.table.next_due();
        let sooner = after.is_some_and(|after| before.is_none_or(|before| after < before));
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if sooner {
            self.shared.sooner.notify_one();
        }
        done
    }

    /// Makes the keys of a run that has ended stale. No key of it may be written afterwards; who cannot
    /// exclude that calls this once more.
    pub fn end_run(&self, run: &RunId) {
        loop {
            let (now, at) = (Instant::now(), SystemTime::now());
            let mut state = self.shared.state.lock();
            let stale_ttl = self.shared.config.stale_ttl;
            let changes = state.table.release(run, now, at, stale_ttl, AT_ONCE);
            let wakers = state.note_all(&changes);
            drop(state);
            if changes.is_empty() {
                break;
            }
            wakers.into_iter().for_each(Waker::wake);
        }
        self.shared.sooner.notify_one();
    }

    /// Removes what expires, when its time comes, until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let next = self.shared.state.lock().table.next_due();
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.sooner.notified() => {}
                () = due => {}
            }
            self.expire();
            // Many that expire at once do not hold up everybody else.
            tokio::task::yield_now().await;
        }
    }

    fn expire(&self) {
        let (now, at) = (Instant::now(), SystemTime::now());
        let mut state = self.shared.state.lock();
        let changes = state.table.expire(now, at, AT_ONCE);
        let wakers = state.note_all(&changes);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Removes one key; with `if_revision` only if the key is at that revision. Idempotent.
    ///
    /// # Errors
    /// [`Error::RevisionMismatch`].
    pub fn delete(
        &self,
        writer: &Source,
        key: &StateKey,
        if_revision: Option<Revision>,
        cause: Option<Cause>,
    ) -> Result<DeleteReceipt, Error> {
        let write = write(writer, cause);
        let mut state = self.shared.state.lock();
        let mut wakers = state.expire(key, write.now, write.at);
        let done = state.table.delete(key, if_revision, write);
        let done = done.map(|(receipt, change)| {
            let told = change.map(|change| state.watchers.note(&change));
            wakers.extend(told.into_iter().flatten());
            receipt
        });
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        done
    }

    /// Entries in byte order of their keys: those that begin with `prefix`, after `after`, at most
    /// `limit`. A page may end early, and says so by `more_after`.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let now = Instant::now();
        let state = self.shared.state.lock();
        state.table.list(prefix, after, limit, now)
    }

    /// Watches keys. What is written after this returns is told.
    ///
    /// # Errors
    /// [`Error::BadField`] for no pattern or too many.
    pub fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        Watch::open(Arc::clone(&self.shared), request)
    }

    /// The patterns that a plugin watches now: sorted, each once.
    #[must_use]
    pub fn list_watches(&self, plugin: &PluginName) -> Vec<Pattern> {
        let owner = Source::Plugin(plugin.clone());
        self.shared.state.lock().watchers.patterns_of(&owner)
    }

    /// Counters and levels.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.shared.state.lock();
        Stats {
            keys: state.table.len(),
            bytes: state.table.bytes(),
            revision: state.table.revision(),
            watches: state.watchers.len(),
            conflated: state.watchers.conflated(),
        }
    }
}

impl fmt::Debug for StateEngine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StateEngine")
            .finish_non_exhaustive()
    }
}

/// One that no table of an earlier start has reached: the time in microseconds since 1970, below 2^53
/// until the year 2255, as JSON's readers need. A clock that is not set yet (before 2020) gives a random one,
/// below all of those.
#[must_use]
pub fn unused_revision(now: SystemTime) -> Revision {
    const YEAR_2020: u64 = 1_577_836_800_000_000;
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    match u64::try_from(since.as_micros()) {
        Ok(micros) if micros >= YEAR_2020 => Revision(micros),
        _ => Revision(rand::random_range(0..YEAR_2020)),
    }
}

fn write(writer: &Source, cause: Option<Cause>) -> Write {
    Write {
        writer: writer.clone(),
        at: SystemTime::now(),
        now: Instant::now(),
        cause,
        ttl: None,
        owner: None,
    }
}
