//! The table: keys, their values, and what a write does. Pure: no lock, no clock, no watcher.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;

use crate::types::{Cause, Revision, Source, StateKey};

use super::{Config, Error};

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

/// Who writes, when, and why.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) writer: Source,
    pub(super) at: SystemTime,
    pub(super) cause: Option<Cause>,
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
}

impl Table {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            keys: BTreeSet::new(),
            revision: Revision::ABSENT,
            bytes: 0,
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

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Writes. The value has been checked.
    pub(super) fn set(
        &mut self,
        key: &StateKey,
        value: Bytes,
        if_revision: Option<Revision>,
        write: Write,
    ) -> Result<(SetReceipt, Change), Error> {
        self.expect_revision(key, if_revision)?;
        let Write { writer, at, cause } = write;
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
        let entry = Entry {
            key: key.clone(),
            value,
            revision,
            writer,
            changed_at,
            reported_at: at,
        };
        if old_value.is_none() {
            self.keys.insert(key.clone());
        }
        self.bytes += entry.value.len();
        self.bytes -= old_value.as_ref().map_or(0, Bytes::len);
        self.revision = self.revision.max(revision);
        self.entries.insert(key.clone(), entry.clone());
        let receipt = SetReceipt {
            revision,
            changed: !same,
        };
        let change = Change {
            kind: if same {
                ChangeKind::Reported
            } else {
                ChangeKind::Set
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
        let Some(before) = self.entries.remove(key.as_str()) else {
            let revision = self.revision;
            let existed = false;
            return Ok((DeleteReceipt { existed, revision }, None));
        };
        self.keys.remove(key.as_str());
        self.bytes -= before.value.len();
        self.revision = Revision(self.revision.0 + 1);
        let receipt = DeleteReceipt {
            existed: true,
            revision: self.revision,
        };
        let change = Change {
            kind: ChangeKind::Deleted,
            entry: Entry {
                key: before.key,
                value: Bytes::new(),
                revision: self.revision,
                writer: write.writer,
                changed_at: write.at,
                reported_at: write.at,
            },
            old_value: Some(before.value),
            cause: write.cause,
            conflated: false,
        };
        Ok((receipt, Some(change)))
    }

    /// Entries whose keys begin with `prefix` and come after `after`: up to `limit`, or fewer when
    /// they would have more bytes than `page_bytes`, but at least one.
    pub(super) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let mut page = Page {
            entries: Vec::new(),
            more_after: None,
            revision: self.revision,
        };
        let mut bytes = 0;
        let keys = self.keys_after(after.filter(|after| *after >= prefix), prefix);
        for key in keys.take_while(|key| key.as_str().starts_with(prefix)) {
            let entry = self.entry(key);
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
        let full = |unit, limit| Error::Full {
            key: key.clone(),
            unit,
            limit,
        };
        if old_value.is_none() && self.entries.len() >= self.config.max_keys {
            return Err(full("keys", self.config.max_keys));
        }
        let old_bytes = old_value.map_or(0, Bytes::len);
        // Writing something smaller is always possible.
        if bytes > old_bytes && self.bytes - old_bytes + bytes > self.config.max_bytes {
            return Err(full("bytes of values", self.config.max_bytes));
        }
        Ok(())
    }
}
