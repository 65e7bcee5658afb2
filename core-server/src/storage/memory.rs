//! The adapter that keeps nothing: a sorted map behind a lock. For tests and `--ephemeral`.
//!
//! It lives as long as its handle: a store that is opened again over the same adapter finds what was
//! there, as after a crash of the core.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::SystemTime;

use parking_lot::RwLock;
use tokio::time::Instant;

use super::adapter::{
    AdapterInfo, Applied, Commit, CommitFault, Entry, Found, Gather, Moment, Op, Rejection,
    Snapshot, StorageAdapter, Stretch, Upkeep,
};
use super::error::Fault;
use super::names::{Direction, Key, Namespace};
use crate::types::Revision;

/// Keeps entries in memory.
#[derive(Default)]
pub struct MemoryAdapter {
    /// Guards all there is. Held for one read or one batch, never across a call outward, so each
    /// read is one snapshot.
    tables: RwLock<Tables>,
}

#[derive(Default)]
struct Tables {
    revision: Revision,
    namespaces: BTreeMap<Namespace, BTreeMap<Key, Entry>>,
}

impl Tables {
    fn revision_of(&self, namespace: &Namespace, key: &Key) -> Revision {
        let table = self.namespaces.get(namespace);
        table
            .and_then(|table| table.get(key))
            .map_or(Revision::ABSENT, |entry| entry.revision)
    }

    fn apply(&mut self, commit: &Commit, at: SystemTime) -> Result<Applied, Rejection> {
        for check in &commit.checks {
            let current = self.revision_of(&commit.namespace, &check.key);
            if current != check.revision {
                let key = check.key.clone();
                return Err(Rejection::RevisionMismatch { key, current });
            }
        }
        let table = self.namespaces.entry(commit.namespace.clone()).or_default();
        let revision = Revision(self.revision.0 + 1);
        let mut changed = false;
        let mut existed = Vec::with_capacity(commit.ops.len());
        for op in &commit.ops {
            let before = match op {
                Op::Set { key, value } => {
                    changed = true;
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        revision,
                        updated_at: at,
                    };
                    table.insert(key.clone(), entry)
                }
                Op::Delete { key } => {
                    let before = table.remove(key);
                    changed |= before.is_some();
                    before
                }
            };
            existed.push(before.is_some());
        }
        if changed {
            self.revision = revision;
        }
        Ok(Applied {
            revision: self.revision,
            existed,
        })
    }

    fn read<T>(
        &self,
        stretch: &Stretch,
        size: impl Fn(&Entry) -> usize,
        take: impl Fn(&Entry) -> T,
    ) -> Found<T> {
        let mut gather = Gather::new(stretch);
        if let Some(table) = self.namespaces.get(&stretch.namespace)
            && !stretch.range.is_empty()
        {
            let from = Bound::Included(stretch.range.from.as_str());
            let to = match &stretch.range.to {
                Some(to) => Bound::Excluded(to.as_str()),
                None => Bound::Unbounded,
            };
            let mut entries = table.range::<str, _>((from, to));
            while let Some((_, entry)) = match stretch.direction {
                Direction::Ascending => entries.next(),
                Direction::Descending => entries.next_back(),
            } {
                if !gather.admits(size(entry)) {
                    break;
                }
                gather.push(take(entry));
            }
        }
        gather.finish(self.revision)
    }
}

impl StorageAdapter for MemoryAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: "memory",
            location: String::new(),
        }
    }

    fn revision(&self) -> Result<Revision, Fault> {
        Ok(self.tables.read().revision)
    }

    fn get(&self, namespace: &Namespace, key: &Key) -> Result<Option<Entry>, Fault> {
        let tables = self.tables.read();
        let table = tables.namespaces.get(namespace);
        Ok(table.and_then(|table| table.get(key)).cloned())
    }

    fn get_many(
        &self,
        namespace: &Namespace,
        keys: &[Key],
        _deadline: Instant,
    ) -> Result<Snapshot, Fault> {
        let tables = self.tables.read();
        let entries = match tables.namespaces.get(namespace) {
            Some(table) => keys
                .iter()
                .filter_map(|key| table.get(key).cloned())
                .collect(),
            None => Vec::new(),
        };
        Ok(Snapshot {
            entries,
            revision: tables.revision,
        })
    }

    fn list_keys(&self, stretch: &Stretch, _deadline: Instant) -> Result<Found<Key>, Fault> {
        let size = |entry: &Entry| entry.key.as_str().len();
        Ok(self
            .tables
            .read()
            .read(stretch, size, |entry| entry.key.clone()))
    }

    fn scan(&self, stretch: &Stretch, _deadline: Instant) -> Result<Found<Entry>, Fault> {
        let size = |entry: &Entry| entry.key.as_str().len() + entry.value.bytes().len();
        Ok(self.tables.read().read(stretch, size, Entry::clone))
    }

    fn commit(
        &self,
        batch: &[Commit],
        at: SystemTime,
    ) -> Result<Vec<Result<Applied, Rejection>>, CommitFault> {
        let mut tables = self.tables.write();
        Ok(batch
            .iter()
            .map(|commit| tables.apply(commit, at))
            .collect())
    }

    fn maintain(&self, _moment: Moment) -> Upkeep {
        Upkeep::Done
    }

    fn reopen(&self) -> Result<Revision, Fault> {
        self.revision()
    }

    fn close(&self) {}
}
