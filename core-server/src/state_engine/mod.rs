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
//! When a watcher is slow, it gets the newest change per key, marked. When the table is full
//! (100,000 keys or 256 MiB of values), what would make it larger is refused (`STATE_FULL`); what
//! makes it smaller never is. Nothing runs in the background; the engine has no task and needs no
//! stop.

mod error;
mod table;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use error::Error;
pub use table::{Change, ChangeKind, DeleteReceipt, Entry, Page, SetReceipt};
pub use watch::{Watch, WatchItem, WatchRequest};

use crate::types::{Cause, Pattern, PluginName, Revision, Source, StateKey, json};
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
    /// A page of a list ends early at so many bytes of keys and values.
    pub page_bytes: usize,
    /// Most bytes of changes that a watch gives at once, or one change.
    pub watch_batch_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_keys: 100_000,
            max_value_bytes: 64 << 10,
            max_bytes: 256 << 20,
            page_bytes: 1 << 20,
            watch_batch_bytes: 256 << 10,
        }
    }
}

impl Config {
    /// Checks that the bounds fit together.
    ///
    /// # Errors
    /// A sentence that names the bound, for people.
    pub fn validate(&self) -> Result<(), String> {
        if self.max_keys == 0 {
            return Err("max_keys must be at least 1".to_owned());
        }
        if !(1..=1 << 20).contains(&self.max_value_bytes) {
            return Err("max_value_bytes must be between 1 and 1048576 (1 MiB)".to_owned());
        }
        if self.max_bytes < self.max_value_bytes {
            return Err("max_bytes must be at least max_value_bytes".to_owned());
        }
        for (name, bytes) in [
            ("page_bytes", self.page_bytes),
            ("watch_batch_bytes", self.watch_batch_bytes),
        ] {
            if !(1..=2 << 20).contains(&bytes) {
                return Err(format!("{name} must be between 1 and 2097152 (2 MiB)"));
            }
        }
        Ok(())
    }
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

impl StateEngine {
    /// An empty table.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let state = State {
            table: Table::new(config.clone()),
            watchers: Watchers::new(),
        };
        Self {
            shared: Arc::new(Shared {
                config,
                state: Mutex::new(state),
            }),
        }
    }

    /// Reads one key.
    #[must_use]
    pub fn get(&self, key: &StateKey) -> Option<Entry> {
        self.shared.state.lock().table.get(key.as_str()).cloned()
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
        let write = write(writer, cause);
        let mut state = self.shared.state.lock();
        let (receipt, change) = state.table.set(key, value, if_revision, write)?;
        let wakers = state.watchers.note(&change);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(receipt)
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
        let (receipt, change) = state.table.delete(key, if_revision, write)?;
        let wakers = change.map_or_else(Vec::new, |change| state.watchers.note(&change));
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(receipt)
    }

    /// Entries in byte order of their keys: those that begin with `prefix`, after `after`, at most
    /// `limit`. A page may end early, and says so by `more_after`.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        self.shared.state.lock().table.list(prefix, after, limit)
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

fn write(writer: &Source, cause: Option<Cause>) -> Write {
    Write {
        writer: writer.clone(),
        at: SystemTime::now(),
        cause,
    }
}
