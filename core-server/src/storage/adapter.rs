//! The trait that every engine implements, and its contract.
//!
//! An adapter is called from ordinary threads and may block. Everything that is the same for all
//! engines stands outside it: queue, grouping, deadlines, cache, validation, page tokens.
//!
//! The contract, checked by `contract_tests.rs` against every adapter:
//!
//! - [`StorageAdapter::commit`] is called by one thread at a time; the reads by any number, also
//!   during a commit.
//! - A batch is one transaction as far as durability goes: when `commit` answers `Ok`, every applied
//!   item is on disk. Within it the items take effect in order, each seeing those before it; an item
//!   whose check fails changes nothing and the others go on.
//! - The revision rises by one with each item that changes anything, never otherwise: an item that
//!   only deletes what is not there answers with the store's revision. It never falls, whatever
//!   happens in between.
//! - A read that begins after a `commit` has answered sees it. `get_many`, `list_keys` and `scan`
//!   each read one snapshot, and say its revision.
//! - Keys are ordered by their bytes; values come back byte for byte.
//! - An entry whose time has passed by [`Terms::now`] counts as absent for checks, for `existed` and for
//!   lists; it stays, and counts in [`Usage`], until an [`Op::Expire`] removes it. `get` and `get_many`
//!   return it all the same: the store hides it.
//! - An item that would make its namespace or the store larger than [`Terms::quotas`] allow changes
//!   nothing. What makes neither larger always goes on.
//! - Damaged data is reported, never repaired, removed or written anew.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::error::{EngineError, Error, Fault};
use super::names::{Direction, Key, KeyRange, Namespace};
use super::quota::{OverQuota, Quotas, Usage};
use crate::error::Outcome;
use crate::types::Revision;
use crate::types::json::Json;

/// One stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its value, as written.
    pub value: Json,
    /// Revision of the write that made it.
    pub revision: Revision,
    /// When it was written, by the core's clock, in whole microseconds.
    pub updated_at: SystemTime,
    /// When it is gone, by the store's clock, in whole microseconds. None: never.
    pub expires_at: Option<SystemTime>,
}

impl Entry {
    /// Whether its time has passed.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        has_passed(self.expires_at, now)
    }
}

/// Whether a time until which something lasts has passed.
pub(super) fn has_passed(expires_at: Option<SystemTime>, now: SystemTime) -> bool {
    expires_at.is_some_and(|at| at <= now)
}

/// A condition: the key has this revision; [`Revision::ABSENT`]: there is no such key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The key.
    pub key: Key,
    /// What it must have.
    pub revision: Revision,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Set {
        /// The key.
        key: Key,
        /// Its new value.
        value: Json,
        /// How long it lasts, counted from its commit. None: for ever.
        ttl: Option<Duration>,
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: Key,
    },
    /// Removes a key if its time has passed. Only the store itself writes it.
    Expire {
        /// The key.
        key: Key,
    },
}

impl Op {
    /// Writes `bytes`, which must be one JSON text.
    ///
    /// # Errors
    /// [`Error::NotJson`], with the key and the place.
    pub fn set(key: Key, bytes: Bytes) -> Result<Self, Error> {
        match Json::parse(bytes) {
            Ok(value) => Ok(Self::Set {
                key,
                value,
                ttl: None,
            }),
            Err(source) => Err(Error::NotJson {
                key: key.to_string(),
                source,
            }),
        }
    }

    /// The same, lasting so long. Of a write that removes a key nothing changes.
    #[must_use]
    pub fn lasting(mut self, time: Option<Duration>) -> Self {
        if let Self::Set { ttl, .. } = &mut self {
            *ttl = time;
        }
        self
    }

    /// The key that is written.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Set { key, .. } | Self::Delete { key } | Self::Expire { key } => key,
        }
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Set { key, value, .. } => key.as_str().len() + value.bytes().len(),
            Self::Delete { key } | Self::Expire { key } => key.as_str().len(),
        }
    }
}

/// Checks and writes that take effect together or not at all. Each key is written at most once.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Where.
    pub namespace: Namespace,
    /// All must hold, before any write.
    pub checks: Vec<Check>,
    /// The writes.
    pub ops: Vec<Op>,
}

/// Under which terms a batch is committed.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Kept as the time of writing, in whole microseconds.
    pub at: SystemTime,
    /// The store's clock, in whole microseconds: by it time passes, and from it a `ttl` counts.
    pub now: SystemTime,
    /// How much there may be.
    pub quotas: &'a Quotas,
}

impl Terms<'_> {
    /// Until when something lasts that is written now.
    #[must_use]
    pub fn expiry(&self, ttl: Option<Duration>) -> Option<SystemTime> {
        ttl.map(|ttl| self.now + ttl)
    }
}

/// Entries whose time has passed, and when the next one's will.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The earliest first.
    pub expired: Vec<(Namespace, Key)>,
    /// Of the earliest entry that is not among them. None: no other entry ever expires.
    pub next: Option<SystemTime>,
}

/// What became of a [`Commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Revision of all its writes; if nothing changed, the store's.
    pub revision: Revision,
    /// For each write, in order: the key was there before.
    pub existed: Vec<bool>,
}

/// Why one item of a batch changed nothing although the batch went on.
#[derive(Clone, Debug)]
pub enum Rejection {
    /// A check did not hold.
    RevisionMismatch {
        /// The first such key.
        key: Key,
        /// What it has.
        current: Revision,
    },
    /// There was no room for it on the disk.
    DiskFull(EngineError),
    /// It would have gone beyond a quota.
    OverQuota(OverQuota),
}

/// Why a whole batch failed. The adapter needs [`StorageAdapter::reopen`] before it may write again.
#[derive(Clone, Debug)]
pub struct CommitFault {
    /// What happened.
    pub fault: Fault,
    /// Whether any of it may be on disk.
    pub outcome: Outcome,
}

/// Which entries to read.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// Where.
    pub namespace: Namespace,
    /// Between which keys.
    pub range: KeyRange,
    /// In which order.
    pub direction: Direction,
    /// At most so many; at least 1.
    pub limit: usize,
    /// Ends before the entry with which keys and values together would pass this, but never before
    /// the first.
    pub max_bytes: usize,
    /// The store's clock: what has expired by now is left out.
    pub now: SystemTime,
}

/// What a reading of a [`Stretch`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// In the order asked for.
    pub items: Vec<T>,
    /// There is more.
    pub more: bool,
    /// The store's revision of this snapshot.
    pub revision: Revision,
}

/// Entries of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Those that exist, in the order asked for.
    pub entries: Vec<Entry>,
    /// The store's revision of this snapshot.
    pub revision: Revision,
}

/// What the entries of a [`StorageAdapter::get_many`] weigh: the bytes of keys and values that have not expired.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    now: SystemTime,
    max_bytes: usize,
    entries: usize,
    bytes: usize,
}

impl Weight {
    /// Of none, by the store's clock.
    #[must_use]
    pub fn new(now: SystemTime, max_bytes: usize) -> Self {
        Self {
            now,
            max_bytes,
            entries: 0,
            bytes: 0,
        }
    }

    /// Adds an entry. Whether they are too much now, which one alone never is.
    pub fn add(&mut self, entry: &Entry) -> bool {
        if !entry.is_expired(self.now) {
            self.entries += 1;
            self.bytes += entry.key.as_str().len() + entry.value.bytes().len();
        }
        self.entries > 1 && self.bytes > self.max_bytes
    }

    /// The bytes of all that were added.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What an adapter is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name in the configuration.
    pub name: &'static str,
    /// Where it keeps its data; empty: nowhere.
    pub location: String,
}

impl fmt::Display for AdapterInfo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)?;
        if !self.location.is_empty() {
            write!(formatter, " at {}", self.location)?;
        }
        Ok(())
    }
}

/// When [`StorageAdapter::maintain`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A batch was just answered; more may wait.
    Busy,
    /// Nothing was asked of the writer for a while.
    Idle,
}

/// What [`StorageAdapter::maintain`] leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Nothing.
    Done,
    /// Something for the next idle moment.
    WantsIdle,
}

/// Why a long reading ended early.
#[derive(Clone, Debug)]
pub enum CopyFault {
    /// The engine cannot do this.
    Unsupported,
    /// It held up the cleaning of the engine's log for too long.
    LogTooLong {
        /// How much the log may grow meanwhile.
        limit_bytes: u64,
    },
    /// There is such a file.
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The copy is no good.
    BadCopy(String),
    /// Something that belongs to it cannot be in it: what, and what to do.
    Unfit(String),
    /// Anything else.
    Failed(Fault),
}

/// An engine. See the module's text for what it promises.
pub trait StorageAdapter: Send + Sync + 'static {
    /// What it is.
    fn info(&self) -> AdapterInfo;

    /// The revision of the last write on disk; 0 for an empty store.
    ///
    /// # Errors
    /// [`Fault`].
    fn revision(&self) -> Result<Revision, Fault>;

    /// Reads one key.
    ///
    /// # Errors
    /// [`Fault`].
    fn get(&self, namespace: &Namespace, key: &Key) -> Result<Option<Entry>, Fault>;

    /// Reads several keys from one snapshot. It may end after the entry with which the [`Weight`] is too much,
    /// and does not end before.
    ///
    /// # Errors
    /// [`Fault`]; [`Fault::OutOfTime`] when `deadline` passes.
    fn get_many(
        &self,
        namespace: &Namespace,
        keys: &[Key],
        weight: Weight,
        deadline: Instant,
    ) -> Result<Snapshot, Fault>;

    /// Reads a stretch of keys.
    ///
    /// # Errors
    /// As [`Self::get_many`].
    fn list_keys(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Key>, Fault>;

    /// Reads a stretch of entries.
    ///
    /// # Errors
    /// As [`Self::get_many`].
    fn scan(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Entry>, Fault>;

    /// Makes a batch durable. One answer for each item, in order.
    ///
    /// # Errors
    /// [`CommitFault`]: then no item has an answer of its own.
    fn commit(
        &self,
        batch: &[Commit],
        terms: &Terms<'_>,
    ) -> Result<Vec<Result<Applied, Rejection>>, CommitFault>;

    /// The namespaces that hold anything, in order of their names, and what each holds: expired entries that
    /// were not removed yet included. One snapshot.
    ///
    /// # Errors
    /// [`Fault`].
    fn namespaces(&self) -> Result<Vec<(Namespace, Usage)>, Fault>;

    /// Up to `limit` entries whose time has passed.
    ///
    /// # Errors
    /// [`Fault`].
    fn due(&self, now: SystemTime, limit: usize) -> Result<Due, Fault>;

    /// The clock of this machine was not set when entries were written that expire before `before`:
    /// shifts these expiries so that the latest of those writes would have been at `now`. None of
    /// them lasts shorter for it. Called by the thread that commits. Returns how many they were.
    ///
    /// # Errors
    /// [`CommitFault`], as of a commit.
    fn rebase(&self, before: SystemTime, now: SystemTime) -> Result<u64, CommitFault>;

    /// Writes a copy of one snapshot to a file that is not there yet, synced and checked. Optional: an
    /// engine without it answers [`CopyFault::Unsupported`].
    ///
    /// # Errors
    /// [`CopyFault`]; nothing is left at `to`.
    fn backup(&self, to: &Path) -> Result<Revision, CopyFault> {
        let _nowhere = to;
        Err(CopyFault::Unsupported)
    }

    /// Reads all there is and says what is wrong with it, at most 100 findings; none: it is whole.
    ///
    /// # Errors
    /// [`CopyFault`].
    fn check(&self) -> Result<Vec<String>, CopyFault>;

    /// Ends a [`Self::backup`] or [`Self::check`] that runs.
    fn interrupt(&self) {}

    /// Does what is due outside of any request. Called by the thread that commits.
    ///
    /// # Errors
    /// [`Fault`]: what is on disk is unknown, as after a failed commit; [`Self::reopen`] comes next.
    fn maintain(&self, moment: Moment) -> Result<Upkeep, Fault>;

    /// Opens anew after a failed commit, and checks what is there. Answers as
    /// [`Self::revision`]: what was unknown before is decided now.
    ///
    /// # Errors
    /// [`Fault`]: it stays unable to write.
    fn reopen(&self) -> Result<Revision, Fault>;

    /// Finishes what is due and lets go of the data. Nothing is called afterwards but reads, which
    /// answer [`Fault::Closed`].
    fn close(&self);
}

/// Gathers what a reading finds, up to its limits. The same for every adapter.
pub(super) struct Gather<T> {
    items: Vec<T>,
    bytes: usize,
    more: bool,
    limit: usize,
    max_bytes: usize,
}

impl<T> Gather<T> {
    pub(super) fn new(stretch: &Stretch) -> Self {
        Self {
            items: Vec::new(),
            bytes: 0,
            more: false,
            limit: stretch.limit,
            max_bytes: stretch.max_bytes,
        }
    }

    /// Whether an item of `bytes` still belongs to this page. After the first `false` the reading is
    /// over, and there is more.
    pub(super) fn admits(&mut self, bytes: usize) -> bool {
        let full = self.items.len() >= self.limit
            || (!self.items.is_empty() && self.bytes + bytes > self.max_bytes);
        self.more = full;
        self.bytes += bytes;
        !full
    }

    pub(super) fn push(&mut self, item: T) {
        self.items.push(item);
    }

    pub(super) fn finish(self, revision: Revision) -> Found<T> {
        Found {
            items: self.items,
            more: self.more,
            revision,
        }
    }
}
