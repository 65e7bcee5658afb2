//! Watchers: what each has still to be told, and the stream of it.
//!
//! A watcher holds at most one pending change per key: a newer one takes the place of the older,
//! keeping what the older says of the value *before* it, so that `old_value` is always what the
//! watcher was last told. A key that came and went untold leaves nothing. So a watcher that stalls
//! holds at most one change per key that there is or that it knows of, and converges when it reads on.
//! What is held for an owner beyond the table itself, old values above all, is bounded for all its
//! watches together; the watch that goes beyond ends COMPACTED, so that loss is never silent.
//!
//! The initial entries are not copied when the watch begins: the watcher walks along the keys, page by
//! page, and a change to a key that it has not reached yet needs no telling, for it will find it.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio_stream::Stream;

use crate::budgets::Budgets;
use crate::event_bus::trie::Trie;
use crate::types::{Pattern, Revision, Source, StateKey};

use super::table::{Change, ChangeKind, Table};
use super::{Error, Shared, State};

/// Most keys that one step of the walk looks at: what bounds how long the lock is held.
const WALK_AT_ONCE: usize = 512;
/// Most patterns of one watch.
pub(super) const MAX_PATTERNS: usize = 64;

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    /// Who.
    pub watcher: Source,
    /// 1 to 64.
    pub patterns: Vec<Pattern>,
    /// Begin with the entries that are there.
    pub include_initial: bool,
    /// Also tell writes that changed nothing.
    pub include_reports: bool,
}

/// One item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// Changes, never none: the initial ones in order of key, the others in order of revision.
    Changes(Vec<Change>),
    /// Everything that was there at this revision of the engine has been told; the changes that
    /// follow are newer. Told once, also without `include_initial`.
    SnapshotEnd(Revision),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatcherId(u64);

/// All watchers. Pure but for the wakers that it hands back.
#[derive(Debug)]
pub(super) struct Watchers {
    all: HashMap<WatcherId, Watcher>,
    trie: Trie<WatcherId>,
    next_id: u64,
    /// Rises with each change and each report: the order in which they are told.
    next_order: u64,
    conflated: u64,
    budgets: Budgets<Source>,
}

#[derive(Debug)]
struct Watcher {
    owner: Source,
    /// Sorted, each once.
    patterns: Box<[Pattern]>,
    include_reports: bool,
    walk: Walk,
    /// The engine's revision when it began.
    began_at: Revision,
    pending: HashMap<StateKey, Pending>,
    /// Their keys in the order to be told.
    order: BTreeMap<u64, StateKey>,
    /// What the pending changes hold beyond the table.
    bytes: usize,
    /// It was told less than it should have been, and ends.
    compacted: bool,
    waker: Option<Waker>,
}

/// How far the initial entries have been told.
#[derive(Clone, Debug)]
enum Walk {
    /// Up to this key.
    Along(Option<StateKey>),
    /// All; the end is not told yet.
    Ended,
    /// All, and the end too.
    Done,
}

#[derive(Debug)]
struct Pending {
    change: Change,
    order: u64,
}

impl Pending {
    /// Bytes that it holds beyond the table: not the present value, which the table shares.
    fn bytes(&self) -> usize {
        let shared = |old: &&Bytes| old.as_ptr() == self.change.entry.value.as_ptr();
        let old = self.change.old_value.as_ref();
        let old_bytes = old.filter(|old| !shared(old)).map_or(0, Bytes::len);
        weight(self.change.entry.key.as_str(), old_bytes)
    }
}

impl Watchers {
    pub(super) fn new() -> Self {
        Self {
            all: HashMap::new(),
            trie: Trie::new(),
            next_id: 0,
            next_order: 0,
            conflated: 0,
            budgets: Budgets::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Changes that were left out for a newer one of the same key.
    pub(super) fn conflated(&self) -> u64 {
        self.conflated
    }

    pub(super) fn patterns_of(&self, owner: &Source) -> Vec<Pattern> {
        let own = self.all.values().filter(|watcher| watcher.owner == *owner);
        let mut patterns: Vec<_> = own.flat_map(|watcher| watcher.patterns.to_vec()).collect();
        patterns.sort_unstable();
        patterns.dedup();
        patterns
    }

    pub(super) fn add(&mut self, request: WatchRequest, revision: Revision) -> WatcherId {
        let id = WatcherId(self.next_id);
        self.next_id += 1;
        let mut patterns = request.patterns;
        patterns.sort_unstable();
        patterns.dedup();
        for pattern in &patterns {
            self.trie.insert(pattern, id);
        }
        let watcher = Watcher {
            owner: request.watcher,
            patterns: patterns.into(),
            include_reports: request.include_reports,
            walk: if request.include_initial {
                Walk::Along(None)
            } else {
                Walk::Ended
            },
            began_at: revision,
            pending: HashMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
            compacted: false,
            waker: None,
        };
        self.all.insert(id, watcher);
        id
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        if let Some(watcher) = self.all.remove(&id) {
            self.budgets.note(&watcher.owner, watcher.bytes, 0);
            for pattern in &watcher.patterns {
                self.trie.remove(pattern, id);
            }
        }
    }

    /// Notes a change for everybody whom it concerns; returns those to be woken, outside the lock.
    pub(super) fn note(&mut self, change: &Change) -> Vec<Waker> {
        let order = self.next_order;
        self.next_order += 1;
        let mut found = Vec::new();
        self.trie.collect(change.entry.key.as_str(), &mut found);
        found.sort_unstable();
        found.dedup();
        let mut wakers = Vec::new();
        for id in found {
            let Some(watcher) = self.all.get_mut(&id) else {
                continue;
            };
            if !watcher.concerns(change) {
                continue;
            }
            let before = watcher.bytes;
            self.conflated += u64::from(watcher.note(change, order));
            wakers.extend(watcher.waker.take());
            if !self.budgets.note(&watcher.owner, before, watcher.bytes) {
                let owner = watcher.owner.clone();
                wakers.extend(self.give_up_most_of(&owner));
            }
        }
        wakers
    }

    /// Ends the watch of an owner for which most is held: that is who does not read.
    fn give_up_most_of(&mut self, owner: &Source) -> Option<Waker> {
        let own = self.all.values_mut().filter(|one| one.owner == *owner);
        let most = own.max_by_key(|one| one.bytes)?;
        self.budgets.note(owner, most.bytes, 0);
        most.give_up();
        most.waker.take()
    }

    /// The next item; when there is none, keeps the waker. `Ready(None)`: not yet, ask again.
    ///
    /// # Errors
    /// [`Error::Compacted`].
    fn next(
        &mut self,
        id: WatcherId,
        table: &Table,
        batch_bytes: usize,
        waker: &Waker,
    ) -> Result<Poll<Option<WatchItem>>, Error> {
        let watcher = self
            .all
            .get_mut(&id)
            .expect("a watcher is removed only when its stream is dropped");
        if watcher.compacted {
            return Err(Error::Compacted);
        }
        if matches!(watcher.walk, Walk::Along(_)) {
            let changes = watcher.walk_on(table, batch_bytes);
            if !changes.is_empty() {
                return Ok(Poll::Ready(Some(WatchItem::Changes(changes))));
            }
            if matches!(watcher.walk, Walk::Along(_)) {
                return Ok(Poll::Ready(None));
            }
        }
        if matches!(watcher.walk, Walk::Ended) {
            watcher.walk = Walk::Done;
            return Ok(Poll::Ready(Some(WatchItem::SnapshotEnd(watcher.began_at))));
        }
        let before = watcher.bytes;
        let changes = watcher.take(batch_bytes);
        self.budgets.note(&watcher.owner, before, watcher.bytes);
        if changes.is_empty() {
            watcher.waker = Some(waker.clone());
            return Ok(Poll::Pending);
        }
        Ok(Poll::Ready(Some(WatchItem::Changes(changes))))
    }
}

impl Watcher {
    fn concerns(&self, change: &Change) -> bool {
        let reached = match &self.walk {
            Walk::Along(reached) => reached.as_ref().is_some_and(|key| *key >= change.entry.key),
            Walk::Ended | Walk::Done => true,
        };
        !self.compacted && reached && (self.include_reports || change.kind != ChangeKind::Reported)
    }

    /// Nothing is held for it any more: it ends.
    fn give_up(&mut self) {
        self.compacted = true;
        self.pending = HashMap::new();
        self.order = BTreeMap::new();
        self.bytes = 0;
    }

    fn hold(&mut self, pending: Pending) {
        self.bytes += pending.bytes();
        let key = pending.change.entry.key.clone();
        self.pending.insert(key, pending);
    }

    fn let_go(&mut self, key: &StateKey) -> Option<Pending> {
        let pending = self.pending.remove(key)?;
        self.bytes -= pending.bytes();
        Some(pending)
    }

    /// Whether it took another's place.
    fn note(&mut self, change: &Change, order: u64) -> bool {
        let key = &change.entry.key;
        let Some(mut pending) = self.let_go(key) else {
            self.order.insert(order, key.clone());
            let change = change.clone();
            self.hold(Pending { change, order });
            return false;
        };
        let known = pending.change.old_value.take();
        let was = pending.change.kind;
        let is_new_value = was == ChangeKind::Set;
        let confirms = change.kind == ChangeKind::Reported && was == ChangeKind::Live;
        let marks = matches!(
            change.kind,
            ChangeKind::Reported | ChangeKind::Stale | ChangeKind::Live
        );
        if is_new_value && marks || confirms {
            // What is pending is still to be told; it only was confirmed since, or marked.
            pending.change.entry = change.entry.clone();
            pending.change.old_value = known;
            pending.change.conflated |= change.kind != ChangeKind::Reported;
            self.hold(pending);
            return change.kind != ChangeKind::Reported;
        }
        self.order.remove(&pending.order);
        let gone = matches!(change.kind, ChangeKind::Deleted | ChangeKind::Expired);
        if gone && known.is_none() {
            // It came and went, and the watcher never knew.
            return true;
        }
        pending.order = order;
        pending.change = Change {
            old_value: known,
            conflated: true,
            ..change.clone()
        };
        self.order.insert(order, key.clone());
        self.hold(pending);
        true
    }

    fn walk_on(&mut self, table: &Table, batch_bytes: usize) -> Vec<Change> {
        let Walk::Along(reached) = &self.walk else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut last = reached.clone();
        let mut ended = true;
        let entries = table.entries_after(reached.as_ref().map(StateKey::as_str));
        for (examined, entry) in entries.enumerate() {
            bytes += weight(entry.key.as_str(), entry.value.len());
            let full = bytes > batch_bytes && !changes.is_empty();
            if examined >= WALK_AT_ONCE || full {
                ended = false;
                break;
            }
            last = Some(entry.key.clone());
            let matches = |pattern: &Pattern| pattern.matches(entry.key.as_str());
            if self.patterns.iter().any(matches) {
                changes.push(Change {
                    kind: ChangeKind::Initial,
                    entry: entry.clone(),
                    old_value: None,
                    cause: None,
                    conflated: false,
                });
            } else {
                bytes -= weight(entry.key.as_str(), entry.value.len());
            }
        }
        self.walk = if ended {
            Walk::Ended
        } else {
            Walk::Along(last)
        };
        changes
    }

    fn take(&mut self, batch_bytes: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.order.first_entry() {
            let key = first.get();
            let pending = self
                .pending
                .get(key)
                .expect("both collections have the same keys");
            let old_bytes = pending.change.old_value.as_ref().map_or(0, |old| old.len());
            bytes += weight(key.as_str(), old_bytes + pending.change.entry.value.len());
            if bytes > batch_bytes && !changes.is_empty() {
                break;
            }
            let key = first.remove();
            changes.extend(self.let_go(&key).map(|pending| pending.change));
        }
        changes
    }
}

/// What a change takes on its way, about.
fn weight(key: &str, value_bytes: usize) -> usize {
    128 + key.len() + value_bytes
}

/// A live watch: a stream that ends only with [`Error::Compacted`], for who reads too slowly. Dropping it
/// ends it.
#[must_use = "dropping a watch ends it"]
pub struct Watch {
    shared: Arc<Shared>,
    id: WatcherId,
    ended: bool,
}

impl Watch {
    pub(super) fn open(shared: Arc<Shared>, request: WatchRequest) -> Result<Self, Error> {
        let count = request.patterns.len();
        if count == 0 || count > MAX_PATTERNS {
            return Err(Error::BadField {
                field: "patterns",
                rule: format!("there are {count}; 1 to {MAX_PATTERNS} are allowed"),
            });
        }
        let mut state = shared.state.lock();
        let revision = state.table.revision();
        let id = state.watchers.add(request, revision);
        drop(state);
        let ended = false;
        Ok(Self { shared, id, ended })
    }
}

impl Stream for Watch {
    type Item = Result<WatchItem, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let batch_bytes = self.shared.config.watch_batch_bytes;
        let mut state = self.shared.state.lock();
        let State { table, watchers } = &mut *state;
        let item = watchers.next(self.id, table, batch_bytes, context.waker());
        drop(state);
        match item {
            Ok(Poll::Ready(None)) => {
                // A long walk past keys that do not match: others get their turn.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Ok(item) => item.map(|item| item.map(Ok)),
            Err(end) => {
                self.get_mut().ended = true;
                Poll::Ready(Some(Err(end)))
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.state.lock().watchers.remove(self.id);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
