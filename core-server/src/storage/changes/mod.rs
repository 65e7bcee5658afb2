//! What changed lately, and who watches: a ring of changes and a position in it for each watcher.
//!
//! The writer notes each committed change here before it is answered; it never waits for a watcher. A
//! watcher reads the ring from its own position. When the ring drops a change that a watcher has not
//! read, the change moves into that watcher's own *backlog*, where a newer one of the same key takes the
//! place of the older: so a slow watcher gets the newest change of each key, marked, in order of
//! revision, and then goes on with the ring. A backlog is bounded, and so are all backlogs of one owner
//! together, however many watches it has; the watch that goes beyond a bound ends COMPACTED, so loss is
//! always told.
//!
//! Pure but for the wakers that it hands back.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use super::adapter::Entry;
use super::names::{Key, Namespace};
use crate::budgets::Budgets;
use crate::types::{Epoch, Revision};

/// Most changes in the ring, and most bytes of their keys and values.
pub(super) const RING_CHANGES: usize = 8_192;
const RING_BYTES: usize = 16 << 20;
/// Most keys of one watcher's backlog; of the bytes of all of an owner's watchers, [`Budgets`] tells.
const BACKLOG_KEYS: usize = 65_536;
/// A message to a watcher ends with the revision that passes one of these.
const BATCH_CHANGES: usize = 1_000;
const BATCH_BYTES: usize = 256 << 10;
/// After so many changes, of whatever namespace, a watcher that heard nothing is told how far it is.
const PROGRESS_CHANGES: u64 = 1_024;
/// About what a change takes beyond its key and value.
const OVERHEAD_BYTES: usize = 128;

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It was there when the watch began.
    Initial(Entry),
    /// Written.
    Put(Entry),
    /// Removed.
    Deleted,
    /// Its time has passed.
    Expired,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// Of the write that did it; of an initial entry, of the write that made it.
    pub revision: Revision,
    /// What happened.
    pub what: What,
    /// Changes of this key between this one and the one told before it were left out.
    pub conflated: bool,
}

impl Change {
    fn bytes(&self) -> usize {
        let value = match &self.what {
            What::Initial(entry) | What::Put(entry) => entry.value.bytes().len(),
            What::Deleted | What::Expired => 0,
        };
        OVERHEAD_BYTES + self.key.as_str().len() + value
    }
}

/// A committed change, as it enters the ring.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    pub(super) namespace: Namespace,
    pub(super) change: Change,
}

/// A place in the changes: of this incarnation of them, behind this revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// New at each opening of the store.
    pub epoch: Epoch,
    /// Everything up to it is known.
    pub revision: Revision,
}

/// Why a watch ends, or cannot begin where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Changes after the position are not all there any more.
    Compacted,
    /// The store was closed.
    Closed,
}

/// What a watcher gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// In order of revision. With the cursor behind them, if one may resume there.
    Changes(Vec<Change>, Option<Cursor>),
    /// Nothing for this watcher, up to here.
    Progress(Cursor),
    /// Nothing now; the waker is kept. Everything up to this revision is told.
    Nothing(Revision),
}

pub(super) type WatcherId = u64;

struct Watcher {
    namespace: Namespace,
    owner: Owner,
    /// None: all keys.
    prefixes: Box<[String]>,
    /// Position in the ring of what it reads next.
    next: u64,
    /// Where it stood when it was last told anything.
    told: u64,
    backlog: Backlog,
    end: Option<End>,
    waker: Option<Waker>,
    /// It waits for a revision, whoever writes it.
    awaits_revision: bool,
}

impl Watcher {
    fn wants(&self, noted: &Noted) -> bool {
        self.namespace == noted.namespace && self.wants_key(noted.change.key.as_str())
    }

    fn wants_key(&self, key: &str) -> bool {
        self.prefixes.is_empty() || self.prefixes.iter().any(|prefix| key.starts_with(prefix))
    }
}

/// Who watches: a plugin, or the operators.
pub(super) type Owner = Arc<str>;

/// What a watcher did not read before the ring dropped it: the newest of each key.
#[derive(Default)]
struct Backlog {
    by_key: HashMap<Key, (u64, Noted)>,
    /// Their keys by position.
    order: BTreeMap<u64, Key>,
    bytes: usize,
}

impl Backlog {
    /// False: it is too much.
    fn note(&mut self, position: u64, mut noted: Noted) -> bool {
        let key = noted.change.key.clone();
        if let Some((before, old)) = self.by_key.remove(&key) {
            self.order.remove(&before);
            self.bytes -= old.change.bytes();
            // Also what came and went here: the watcher may know the key all the same, from what was
            // there when it began or from an entry whose expiry was never told.
            noted.change.conflated = true;
        }
        self.bytes += noted.change.bytes();
        self.order.insert(position, key.clone());
        self.by_key.insert(key, (position, noted));
        self.by_key.len() <= BACKLOG_KEYS
    }

    fn first(&self) -> Option<&Change> {
        let (_, key) = self.order.first_key_value()?;
        self.by_key.get(key).map(|(_, noted)| &noted.change)
    }

    fn pop(&mut self) -> Option<Change> {
        let (_, key) = self.order.pop_first()?;
        let (_, noted) = self.by_key.remove(&key)?;
        self.bytes -= noted.change.bytes();
        Some(noted.change)
    }
}

pub(super) struct Changes {
    epoch: Epoch,
    ring: VecDeque<Arc<Noted>>,
    ring_bytes: usize,
    max_changes: usize,
    /// Position of the ring's first change; it rises with each that is dropped.
    base: u64,
    /// All changes after this revision are in the ring.
    floor: Revision,
    /// Of the newest commit that was noted.
    last: Revision,
    watchers: HashMap<WatcherId, Watcher>,
    budgets: Budgets<Owner>,
    by_namespace: HashMap<Namespace, Vec<WatcherId>>,
    next_id: WatcherId,
    /// Some watcher waits for a revision.
    awaited: bool,
    closed: bool,
}

impl Changes {
    pub(super) fn new(epoch: Epoch, revision: Revision, max_changes: usize) -> Self {
        Self {
            epoch,
            ring: VecDeque::new(),
            ring_bytes: 0,
            max_changes,
            base: 0,
            floor: revision,
            last: revision,
            watchers: HashMap::new(),
            budgets: Budgets::default(),
            by_namespace: HashMap::new(),
            next_id: 0,
            awaited: false,
            closed: false,
        }
    }

    pub(super) fn watchers(&self) -> usize {
        self.watchers.len()
    }

    fn end_position(&self) -> u64 {
        self.base + self.ring.len() as u64
    }

    fn cursor(&self, revision: Revision) -> Cursor {
        Cursor {
            epoch: self.epoch,
            revision,
        }
    }

    /// Joins at the end, or behind a cursor. Returns where it stands.
    pub(super) fn join(
        &mut self,
        owner: &str,
        namespace: Namespace,
        prefixes: Vec<String>,
        from: Option<Cursor>,
    ) -> Result<(WatcherId, Cursor), End> {
        if self.closed {
            return Err(End::Closed);
        }
        let (next, revision) = match from {
            None => (self.end_position(), self.last),
            Some(cursor) => {
                let known = (self.floor..=self.last).contains(&cursor.revision);
                if cursor.epoch != self.epoch || !known {
                    return Err(End::Compacted);
                }
                let before = self
                    .ring
                    .partition_point(|noted| noted.change.revision <= cursor.revision);
                (self.base + before as u64, cursor.revision)
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        self.by_namespace
            .entry(namespace.clone())
            .or_default()
            .push(id);
        let watcher = Watcher {
            namespace,
            owner: owner.into(),
            prefixes: prefixes.into(),
            next,
            told: next,
            backlog: Backlog::default(),
            end: None,
            waker: None,
            awaits_revision: false,
        };
        self.watchers.insert(id, watcher);
        Ok((id, self.cursor(revision)))
    }

    pub(super) fn leave(&mut self, id: WatcherId) {
        let Some(watcher) = self.watchers.remove(&id) else {
            return;
        };
        self.budgets.note(&watcher.owner, watcher.backlog.bytes, 0);
        if let Some(ids) = self.by_namespace.get_mut(&watcher.namespace) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_namespace.remove(&watcher.namespace);
            }
        }
    }

    /// Notes what was committed, in order of revision, all changes of one revision together; returns
    /// those to be woken, outside the lock.
    pub(super) fn note(
        &mut self,
        changes: impl IntoIterator<Item = Noted>,
        last: Revision,
    ) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let before = self.end_position();
        for noted in changes {
            for id in self
                .by_namespace
                .get(&noted.namespace)
                .into_iter()
                .flatten()
            {
                if let Some(watcher) = self.watchers.get_mut(id)
                    && watcher.wants(&noted)
                {
                    wakers.extend(watcher.waker.take());
                }
            }
            self.ring_bytes += noted.change.bytes();
            self.ring.push_back(Arc::new(noted));
            while self.ring.len() > self.max_changes || self.ring_bytes > RING_BYTES {
                self.drop_first();
            }
        }
        self.last = self.last.max(last);
        let progress = before / PROGRESS_CHANGES != self.end_position() / PROGRESS_CHANGES;
        if progress || std::mem::take(&mut self.awaited) {
            let concerned = self.watchers.values_mut();
            let concerned = concerned.filter(|watcher| progress || watcher.awaits_revision);
            wakers.extend(concerned.filter_map(|watcher| watcher.waker.take()));
        }
        wakers
    }

    fn drop_first(&mut self) {
        let Some(first) = self.ring.pop_front() else {
            return;
        };
        let position = self.base;
        self.base += 1;
        self.ring_bytes -= first.change.bytes();
        self.floor = self.floor.max(first.change.revision);
        for id in self
            .by_namespace
            .get(&first.namespace)
            .into_iter()
            .flatten()
        {
            let Some(watcher) = self.watchers.get_mut(id) else {
                continue;
            };
            if watcher.next > position || watcher.end.is_some() {
                continue;
            }
            watcher.next = position + 1;
            if !watcher.wants(&first) {
                continue;
            }
            let before = watcher.backlog.bytes;
            let few = watcher.backlog.note(position, (*first).clone());
            let after = watcher.backlog.bytes;
            let small = self.budgets.note(&watcher.owner, before, after);
            if !few || !small {
                self.budgets.note(&watcher.owner, after, 0);
                watcher.backlog = Backlog::default();
                watcher.end = Some(End::Compacted);
            }
        }
    }

    /// What a watcher gets next, of revisions up to `up_to` if given. When there is nothing, keeps
    /// the waker.
    pub(super) fn take(
        &mut self,
        id: WatcherId,
        up_to: Option<Revision>,
        waker: &Waker,
    ) -> Result<Taken, End> {
        let end_position = self.end_position();
        let Some(watcher) = self.watchers.get_mut(&id) else {
            return Err(End::Closed);
        };
        if let Some(end) = watcher.end {
            return Err(end);
        }
        let beyond = |revision: Revision| up_to.is_some_and(|up_to| revision > up_to);
        let mut batch = Batch::default();
        let before = watcher.backlog.bytes;
        while let Some(first) = watcher.backlog.first() {
            if beyond(first.revision) || batch.is_full(first.revision) {
                break;
            }
            batch.extend(watcher.backlog.pop());
        }
        self.budgets
            .note(&watcher.owner, before, watcher.backlog.bytes);
        // The cursor of a backlog's part would leave out what is still in it.
        let resumable = watcher.backlog.order.is_empty();
        let mut reached = self.last;
        if resumable {
            watcher.next = watcher.next.max(self.base);
            while watcher.next < end_position {
                let index = usize::try_from(watcher.next - self.base).unwrap_or(usize::MAX);
                let Some(noted) = self.ring.get(index) else {
                    break;
                };
                let revision = noted.change.revision;
                if beyond(revision) || batch.is_full(revision) {
                    reached = Revision(revision.0 - 1);
                    break;
                }
                watcher.next += 1;
                if watcher.wants(noted) {
                    batch.extend(Some(noted.change.clone()));
                }
            }
        }
        if !batch.changes.is_empty() {
            watcher.told = watcher.next;
            let cursor = resumable.then(|| self.cursor(reached));
            return Ok(Taken::Changes(batch.changes, cursor));
        }
        if watcher.next - watcher.told >= PROGRESS_CHANGES && up_to.is_none() {
            watcher.told = watcher.next;
            return Ok(Taken::Progress(self.cursor(reached)));
        }
        watcher.waker = Some(waker.clone());
        watcher.awaits_revision = up_to.is_some();
        self.awaited |= watcher.awaits_revision;
        Ok(Taken::Nothing(reached))
    }

    /// What was told may not be so any more: begins anew, and ends every watch.
    pub(super) fn begin_anew(&mut self, epoch: Epoch, revision: Revision) -> Vec<Waker> {
        self.epoch = epoch;
        self.base = self.end_position();
        self.ring.clear();
        self.ring_bytes = 0;
        (self.floor, self.last) = (revision, revision);
        self.end_all(End::Compacted)
    }

    pub(super) fn close(&mut self) -> Vec<Waker> {
        self.closed = true;
        self.end_all(End::Closed)
    }

    fn end_all(&mut self, end: End) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.budgets = Budgets::default();
        for watcher in self.watchers.values_mut() {
            watcher.end.get_or_insert(end);
            watcher.backlog = Backlog::default();
            wakers.extend(watcher.waker.take());
        }
        wakers
    }
}

/// What is told at once. It never ends within a revision: who resumes behind it would miss the rest.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    bytes: usize,
}

impl Batch {
    fn is_full(&self, next: Revision) -> bool {
        let full = self.changes.len() >= BATCH_CHANGES || self.bytes >= BATCH_BYTES;
        full && self
            .changes
            .last()
            .is_some_and(|last| last.revision != next)
    }

    fn extend(&mut self, change: Option<Change>) {
        self.bytes += change.as_ref().map_or(0, Change::bytes);
        self.changes.extend(change);
    }
}

#[cfg(test)]
mod tests;
