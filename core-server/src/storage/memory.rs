//! The adapter that keeps nothing: a sorted map behind a lock. For tests and `--ephemeral`.
//!
//! It lives as long as its handle: a store that is opened again over the same adapter finds what was
//! there, as after a crash of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::SystemTime;

use parking_lot::RwLock;
use tokio::time::Instant;

use super::adapter::{
    AdapterInfo, Applied, Commit, CommitFault, CopyFault, Due, Entry, Found, Gather, Moment, Op,
    Rejection, Snapshot, StorageAdapter, Stretch, Terms, Upkeep, Weight, has_passed,
};
use super::error::Fault;
use super::names::{Direction, Key, Namespace};
use super::quota::{Growth, Owned, Usage, of_owner};
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
    namespaces: BTreeMap<Namespace, Table>,
    total: Usage,
    /// Of each entry that ever expires, the earliest first.
    expiries: BTreeSet<(SystemTime, Namespace, Key)>,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<Key, Entry>,
    usage: Usage,
}

impl Tables {
    fn entry(&self, namespace: &Namespace, key: &Key) -> Option<&Entry> {
        self.namespaces.get(namespace)?.entries.get(key)
    }

    fn apply(&mut self, commit: &Commit, terms: &Terms<'_>) -> Result<Applied, Rejection> {
        let namespace = &commit.namespace;
        let live = |entry: &&Entry| !entry.is_expired(terms.now);
        for check in &commit.checks {
            let entry = self.entry(namespace, &check.key).filter(live);
            let current = entry.map_or(Revision::ABSENT, |entry| entry.revision);
            if current != check.revision {
                let key = check.key.clone();
                return Err(Rejection::RevisionMismatch { key, current });
            }
        }
        let mut growth = Growth::default();
        for op in &commit.ops {
            let entry = self.entry(namespace, op.key());
            let before = entry.map(|entry| entry.value.bytes().len());
            let after = match op {
                Op::Set { value, .. } => Some(value.bytes().len()),
                Op::Delete { .. } => before.filter(|_| entry.filter(live).is_none()),
                Op::Expire { .. } => before.filter(|_| entry.filter(live).is_some()),
            };
            growth.note(namespace, op.key(), before, after);
        }
        let usage = self.namespaces.get(namespace).map(|table| table.usage);
        let mut owned = Owned::default();
        for (_, table) in of_owner(&self.namespaces, namespace) {
            owned.add(table.usage);
        }
        let before = usage.unwrap_or_default();
        terms
            .quotas
            .admit(namespace, before, owned, self.total, growth)
            .map_err(Rejection::OverQuota)?;
        let table = self.namespaces.entry(namespace.clone()).or_default();
        let revision = Revision(self.revision.0 + 1);
        let mut changed = false;
        let mut existed = Vec::with_capacity(commit.ops.len());
        for op in &commit.ops {
            let before = table.entries.get(op.key());
            let was_live = before.is_some_and(|entry| live(&entry));
            let expiry = before.and_then(|entry| entry.expires_at);
            let goes = match op {
                Op::Set { .. } => true,
                Op::Delete { .. } => was_live,
                Op::Expire { .. } => before.is_some() && !was_live,
            };
            existed.push(was_live || (goes && matches!(op, Op::Expire { .. })));
            if !goes {
                continue;
            }
            changed = true;
            if let Some(at) = expiry {
                self.expiries
                    .remove(&(at, namespace.clone(), op.key().clone()));
            }
            match op {
                Op::Set { key, value, ttl } => {
                    let expires_at = terms.expiry(*ttl);
                    if let Some(at) = expires_at {
                        self.expiries.insert((at, namespace.clone(), key.clone()));
                    }
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        revision,
                        updated_at: terms.at,
                        expires_at,
                    };
                    table.entries.insert(key.clone(), entry);
                }
                Op::Delete { key } | Op::Expire { key } => {
                    table.entries.remove(key);
                }
            }
        }
        table.usage.grow(growth);
        self.total.grow(growth);
        if table.entries.is_empty() {
            self.namespaces.remove(namespace);
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
            let mut entries = table.entries.range::<str, _>((from, to));
            while let Some((_, entry)) = match stretch.direction {
                Direction::Ascending => entries.next(),
                Direction::Descending => entries.next_back(),
            } {
                if entry.is_expired(stretch.now) {
                    continue;
                }
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
        Ok(self.tables.read().entry(namespace, key).cloned())
    }

    fn get_many(
        &self,
        namespace: &Namespace,
        keys: &[Key],
        mut weight: Weight,
        _deadline: Instant,
    ) -> Result<Snapshot, Fault> {
        let tables = self.tables.read();
        let mut entries = Vec::with_capacity(keys.len());
        for entry in keys.iter().filter_map(|key| tables.entry(namespace, key)) {
            entries.push(entry.clone());
            if weight.add(entry) {
                break;
            }
        }
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
        terms: &Terms<'_>,
    ) -> Result<Vec<Result<Applied, Rejection>>, CommitFault> {
        let mut tables = self.tables.write();
        Ok(batch
            .iter()
            .map(|commit| tables.apply(commit, terms))
            .collect())
    }

    fn namespaces(&self) -> Result<Vec<(Namespace, Usage)>, Fault> {
        let tables = self.tables.read();
        let used = tables.namespaces.iter();
        Ok(used
            .map(|(name, table)| (name.clone(), table.usage))
            .collect())
    }

    fn due(&self, now: SystemTime, limit: usize) -> Result<Due, Fault> {
        let tables = self.tables.read();
        let mut due = Due::default();
        for (at, namespace, key) in &tables.expiries {
            if !has_passed(Some(*at), now) || due.expired.len() >= limit {
                due.next = Some(*at);
                break;
            }
            due.expired.push((namespace.clone(), key.clone()));
        }
        Ok(due)
    }

    fn rebase(&self, before: SystemTime, now: SystemTime) -> Result<u64, CommitFault> {
        let mut tables = self.tables.write();
        let later = tables
            .expiries
            .split_off(&(before, first_namespace(), first_key()));
        let shifted = std::mem::replace(&mut tables.expiries, later);
        let entry = |tables: &Tables, namespace: &Namespace, key: &Key| {
            tables.entry(namespace, key).map(|entry| entry.updated_at)
        };
        let written = shifted.iter().filter_map(|(_, n, k)| entry(&tables, n, k));
        let by = written
            .max()
            .and_then(|latest| now.duration_since(latest).ok())
            .unwrap_or_default();
        let count = shifted.len() as u64;
        for (at, namespace, key) in shifted {
            let table = tables.namespaces.get_mut(&namespace);
            if let Some(entry) = table.and_then(|table| table.entries.get_mut(&key)) {
                entry.expires_at = Some(at + by);
            }
            tables.expiries.insert((at + by, namespace, key));
        }
        Ok(count)
    }

    fn check(&self) -> Result<Vec<String>, CopyFault> {
        Ok(Vec::new())
    }

    fn maintain(&self, _moment: Moment) -> Result<Upkeep, Fault> {
        Ok(Upkeep::Done)
    }

    fn reopen(&self) -> Result<Revision, Fault> {
        self.revision()
    }

    fn close(&self) {}
}

/// The least there is.
fn first_namespace() -> Namespace {
    Namespace::parse("0").expect("a good namespace")
}

/// The least there is but a space's neighbours: no key is empty.
fn first_key() -> Key {
    Key::parse(" ").expect("a good key")
}
