//! The table: keys, their values, and what a write does. Pure: no lock, no clock, no watcher.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::types::{Cause, Revision, RunId, Source, StateKey};

use super::{Config, Error};

/// The first name of the keys that the core itself writes.
const CORE_OWNER: &str = "core";
/// Units of what there can be too much of.
const KEYS: &str = "keys";
const BYTES: &str = "bytes of values";

/// One key with its value. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: StateKey,
    /// JSON, byte for byte as written. Empty in the [`Change`] that removes the key.
    pub value: Bytes,
    /// Of the write that gave it this value.
    pub revision: Revision,
    /// Who last wrote it, a report included.
    pub writer: Source,
    /// When the value last changed.
    pub changed_at: SystemTime,
    /// When it was last written, even to the same value.
    pub reported_at: SystemTime,
    /// When it is removed if it is not written again, by the wall clock of its last write.
    pub expires_at: Option<SystemTime>,
    /// The run that it belongs to, if it belongs to one.
    pub owner: Option<RunId>,
    /// That run has ended, and nobody has written it since.
    pub stale: bool,
    /// As `expires_at`, by the clock that does not jump.
    pub(super) deadline: Option<Instant>,
}

impl Entry {
    pub(super) fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// What a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// Part of what was there when the watch began.
    Initial,
    /// Written with a new value.
    Set,
    /// Removed.
    Deleted,
    /// Written with the value it had.
    Reported,
    /// The run that it belongs to has ended.
    Stale,
    /// It was stale and was written with the value it had.
    Live,
    /// Removed because its time has passed.
    Expired,
}

/// One change of one key, as a watcher is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The entry after it. Of a removed key: its revision is that of the removal, its writer who
    /// removed it, its value empty.
    pub entry: Entry,
    /// The value before it: what the watcher was last told. `None` if there was none.
    pub old_value: Option<Bytes>,
    /// What caused it.
    pub cause: Option<Cause>,
    /// Writes between this one and what the watcher was last told of this key were left out.
    pub conflated: bool,
}

/// Answer to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetReceipt {
    /// Of the entry now.
    pub revision: Revision,
    /// False: it had this value already.
    pub changed: bool,
}

/// Answer to a delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteReceipt {
    /// Whether there was anything to remove.
    pub existed: bool,
    /// Of the engine now.
    pub revision: Revision,
}

/// Some entries, in byte order of their keys; one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// There are more: go on after this key.
    pub more_after: Option<StateKey>,
    /// Of the engine at the time of this page.
    pub revision: Revision,
}

/// Who writes, when, and why; and for how long.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) writer: Source,
    pub(super) at: SystemTime,
    pub(super) now: Instant,
    pub(super) cause: Option<Cause>,
    pub(super) ttl: Option<Duration>,
    pub(super) owner: Option<RunId>,
}

/// Of the table, below one first name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    keys: usize,
    bytes: usize,
}

#[derive(Debug)]
pub(super) struct Table {
    config: Config,
    entries: HashMap<StateKey, Entry>,
    /// The same keys, in order. Touched only when a key comes or goes.
    keys: BTreeSet<StateKey>,
    revision: Revision,
    /// Bytes of all values.
    bytes: usize,
    /// What there is below each first name.
    shares: HashMap<Box<str>, Share>,
    /// The deadlines of entries that have one.
    due: BTreeSet<(Instant, StateKey)>,
    /// The keys of runs that live.
    owned: HashMap<RunId, BTreeSet<StateKey>>,
}

impl Table {
    /// An empty one, whose revisions come after `last`.
    pub(super) fn new(config: Config, last: Revision) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            keys: BTreeSet::new(),
            revision: last,
            bytes: 0,
            shares: HashMap::new(),
            due: BTreeSet::new(),
            owned: HashMap::new(),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, key: &str, now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.is_expired(now))
    }

    /// The earliest moment at which something is to be removed.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Removes up to `limit` entries whose time has passed.
    pub(super) fn expire(&mut self, now: Instant, at: SystemTime, limit: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.len() < limit
            && let Some((_, key)) = self.due.first().filter(|(due, _)| *due <= now)
        {
            let key = key.clone();
            changes.extend(self.remove(&key, ChangeKind::Expired, Source::Core, at, None));
        }
        changes
    }

    /// Removes one entry if its time has passed.
    pub(super) fn expire_key(
        &mut self,
        key: &StateKey,
        now: Instant,
        at: SystemTime,
    ) -> Option<Change> {
        let expired = self.entries.get(key)?.is_expired(now);
        expired
            .then(|| self.remove(key, ChangeKind::Expired, Source::Core, at, None))
            .flatten()
    }

    /// Marks up to `limit` keys of a run that has ended: removed after `stale_ttl`, or earlier if
    /// their own time passes. Empty: there are no more.
    pub(super) fn release(
        &mut self,
        run: &RunId,
        now: Instant,
        at: SystemTime,
        stale_ttl: Duration,
        limit: usize,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(keys) = self.owned.get_mut(run) else {
            return changes;
        };
        while changes.len() < limit
            && let Some(key) = keys.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.stale = true;
            let deadline = now + stale_ttl;
            if entry.deadline.is_none_or(|own| deadline < own) {
                if let Some(own) = entry.deadline {
                    self.due.remove(&(own, key.clone()));
                }
                entry.deadline = Some(deadline);
                entry.expires_at = Some(at + stale_ttl);
                self.due.insert((deadline, key));
            }
            changes.push(Change {
                kind: ChangeKind::Stale,
                old_value: Some(entry.value.clone()),
                entry: entry.clone(),
                cause: None,
                conflated: false,
            });
        }
        if keys.is_empty() {
            self.owned.remove(run);
        }
        changes
    }

    /// Takes an entry out of the order of deadlines and from its run.
    fn let_go(&mut self, entry: &Entry) {
        if let Some(deadline) = entry.deadline {
            self.due.remove(&(deadline, entry.key.clone()));
        }
        if let Some(run) = &entry.owner
            && let Some(keys) = self.owned.get_mut(run)
        {
            keys.remove(&entry.key);
            if keys.is_empty() {
                self.owned.remove(run);
            }
        }
    }

    /// Writes. The value has been checked, and what has expired was removed, this key at least.
    pub(super) fn set(
        &mut self,
        key: &StateKey,
        value: Bytes,
        if_revision: Option<Revision>,
        write: Write,
    ) -> Result<(SetReceipt, Change), Error> {
        self.expect_revision(key, if_revision)?;
        let Write {
            writer,
            at,
            now,
            cause,
            ttl,
            owner,
        } = write;
        let before = self.entries.get(key.as_str());
        let old_value = before.map(|entry| entry.value.clone());
        let same = old_value.as_ref() == Some(&value);
        if !same {
            self.expect_room(key, old_value.as_ref(), value.len())?;
        }
        let revision = match before {
            Some(entry) if same => entry.revision,
            _ => Revision(self.revision.0 + 1),
        };
        let changed_at = match before {
            Some(entry) if same => entry.changed_at,
            _ => at,
        };
        let was_stale = before.is_some_and(|entry| entry.stale);
        let entry = Entry {
            key: key.clone(),
            value,
            revision,
            writer,
            changed_at,
            reported_at: at,
            expires_at: ttl.map(|ttl| at + ttl),
            owner,
            stale: false,
            deadline: ttl.map(|ttl| now + ttl),
        };
        if let Some(before) = before.cloned() {
            self.let_go(&before);
        }
        if let Some(deadline) = entry.deadline {
            self.due.insert((deadline, key.clone()));
        }
        if let Some(run) = &entry.owner {
            let keys = self.owned.entry(run.clone()).or_default();
            keys.insert(key.clone());
        }
        if old_value.is_none() {
            self.keys.insert(key.clone());
        }
        let old_bytes = old_value.as_ref().map_or(0, Bytes::len);
        self.bytes = self.bytes + entry.value.len() - old_bytes;
        let share = self.share_mut(key.first_token());
        share.keys += usize::from(old_value.is_none());
        share.bytes = share.bytes + entry.value.len() - old_bytes;
        self.revision = self.revision.max(revision);
        self.entries.insert(key.clone(), entry.clone());
        let receipt = SetReceipt {
            revision,
            changed: !same,
        };
        let change = Change {
            kind: match (same, was_stale) {
                (false, _) => ChangeKind::Set,
                (true, true) => ChangeKind::Live,
                (true, false) => ChangeKind::Reported,
            },
            entry,
            old_value,
            cause,
            conflated: false,
        };
        Ok((receipt, change))
    }

    /// Removes.
    pub(super) fn delete(
        &mut self,
        key: &StateKey,
        if_revision: Option<Revision>,
        write: Write,
    ) -> Result<(DeleteReceipt, Option<Change>), Error> {
        self.expect_revision(key, if_revision)?;
        let Write {
            writer, at, cause, ..
        } = write;
        let change = self.remove(key, ChangeKind::Deleted, writer, at, cause);
        let receipt = DeleteReceipt {
            existed: change.is_some(),
            revision: self.revision,
        };
        Ok((receipt, change))
    }

    fn remove(
        &mut self,
        key: &StateKey,
        kind: ChangeKind,
        writer: Source,
        at: SystemTime,
        cause: Option<Cause>,
    ) -> Option<Change> {
        let before = self.entries.remove(key.as_str())?;
        self.keys.remove(key.as_str());
        self.let_go(&before);
        self.bytes -= before.value.len();
        let share = self.share_mut(key.first_token());
        share.keys -= 1;
        share.bytes -= before.value.len();
        if share.keys == 0 {
            self.shares.remove(key.first_token());
        }
        self.revision = Revision(self.revision.0 + 1);
        Some(Change {
            kind,
            entry: Entry {
                key: before.key,
                value: Bytes::new(),
                revision: self.revision,
                writer,
                changed_at: at,
                reported_at: at,
                expires_at: None,
                owner: None,
                stale: false,
                deadline: None,
            },
            old_value: Some(before.value),
            cause,
            conflated: false,
        })
    }

    /// Entries whose keys begin with `prefix` and come after `after`: up to `limit`, or fewer when
    /// they would have more bytes than `page_bytes`, but at least one.
    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        now: Instant,
    ) -> Page {
        let mut page = Page {
            entries: Vec::new(),
            more_after: None,
            revision: self.revision,
        };
        let mut bytes = 0;
        let keys = self.keys_after(after.filter(|after| *after >= prefix), prefix);
        for key in keys.take_while(|key| key.as_str().starts_with(prefix)) {
            let entry = self.entry(key);
            if entry.is_expired(now) {
                continue;
            }
            bytes += key.as_str().len() + entry.value.len();
            let full = page.entries.len() >= limit || bytes > self.config.page_bytes;
            if full && let Some(last) = page.entries.last() {
                page.more_after = Some(last.key.clone());
                break;
            }
            page.entries.push(entry.clone());
        }
        page
    }

    /// Entries after `after`, in order: what a watcher reads first.
    pub(super) fn entries_after(&self, after: Option<&str>) -> impl Iterator<Item = &Entry> {
        self.keys_after(after, "").map(|key| self.entry(key))
    }

    fn keys_after(&self, after: Option<&str>, from: &str) -> impl Iterator<Item = &StateKey> {
        let start = after.map_or(Bound::Included(from), Bound::Excluded);
        self.keys.range::<str, _>((start, Bound::Unbounded))
    }

    fn entry(&self, key: &StateKey) -> &Entry {
        self.entries
            .get(key)
            .expect("both collections have the same keys")
    }

    fn expect_revision(&self, key: &StateKey, expected: Option<Revision>) -> Result<(), Error> {
        let entry = self.entries.get(key.as_str());
        let current = entry.map_or(Revision::ABSENT, |entry| entry.revision);
        match expected {
            Some(expected) if expected != current => Err(Error::RevisionMismatch {
                key: key.clone(),
                expected,
                current,
            }),
            _ => Ok(()),
        }
    }

    fn expect_room(
        &self,
        key: &StateKey,
        old_value: Option<&Bytes>,
        bytes: usize,
    ) -> Result<(), Error> {
        // What the core keeps is as much as there are plugins, and must not fail for what they do.
        if key.first_token() == CORE_OWNER {
            return Ok(());
        }
        let share = self
            .shares
            .get(key.first_token())
            .copied()
            .unwrap_or_default();
        let config = &self.config;
        let full = |unit, limit| Error::Full {
            key: key.clone(),
            unit,
            limit,
        };
        let owner_full = |unit, limit| Error::OwnerFull {
            key: key.clone(),
            unit,
            limit,
        };
        if old_value.is_none() {
            if self.entries.len() >= config.max_keys {
                return Err(full(KEYS, config.max_keys));
            }
            if share.keys >= config.max_owner_keys {
                return Err(owner_full(KEYS, config.max_owner_keys));
            }
        }
        let old_bytes = old_value.map_or(0, Bytes::len);
        // Writing something smaller is always possible.
        if bytes > old_bytes {
            if self.bytes - old_bytes + bytes > config.max_bytes {
                return Err(full(BYTES, config.max_bytes));
            }
            if share.bytes - old_bytes + bytes > config.max_owner_bytes {
                return Err(owner_full(BYTES, config.max_owner_bytes));
            }
        }
        Ok(())
    }

    fn share_mut(&mut self, owner: &str) -> &mut Share {
        if !self.shares.contains_key(owner) {
            self.shares.insert(owner.into(), Share::default());
        }
        self.shares.get_mut(owner).expect("it was just put there")
    }
}
