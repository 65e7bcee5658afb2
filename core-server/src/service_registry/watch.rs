//! Watching the table. A watcher holds names, not changes: when it is polled it reads what is there
//! now, so that a slow one gets the newest per service and holds at most one entry for each.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio_stream::Stream;

use super::{ServiceInfo, ServiceRegistry};
use crate::types::{Pattern, ServiceName};

/// One item of a watch.
#[derive(Clone, Debug)]
pub enum WatchItem {
    /// Registered, described anew, or its availability changed.
    Service(Box<ServiceInfo>),
    /// Its registration ended.
    Unregistered(ServiceName),
    /// Everything that was there has been told. Once.
    SnapshotEnd,
}

#[derive(Debug, Default)]
struct Pending {
    names: BTreeSet<ServiceName>,
    waker: Option<Waker>,
}

/// All live watchers. Guards are short: no await, no callback inside but a wake.
#[derive(Clone, Debug, Default)]
pub(super) struct Watchers {
    live: Arc<Mutex<Vec<Watcher>>>,
}

/// What one watcher wants, and where its names wait. Gone when its stream is.
type Watcher = (Option<Pattern>, Weak<Mutex<Pending>>);

impl Watchers {
    pub(super) fn changed(&self, name: &ServiceName) {
        let mut live = self.live.lock();
        live.retain(|(pattern, pending)| {
            let Some(pending) = pending.upgrade() else {
                return false;
            };
            if pattern
                .as_ref()
                .is_none_or(|pattern| pattern.matches(name.as_str()))
            {
                let mut pending = pending.lock();
                pending.names.insert(name.clone());
                if let Some(waker) = pending.waker.take() {
                    waker.wake();
                }
            }
            true
        });
    }

    /// Entries, perhaps of watchers that are gone.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.live.lock().len()
    }

    pub(super) fn watch(&self, registry: ServiceRegistry, pattern: Option<Pattern>) -> Watch {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let mut live = self.live.lock();
        // Those that are gone are found by changes too, but there may be none for long. Looked for
        // only when the list would grow, so that a watch costs the same however many there are.
        if live.len() == live.capacity() {
            live.retain(|(_, pending)| pending.strong_count() > 0);
        }
        live.push((pattern.clone(), Arc::downgrade(&pending)));
        drop(live);
        // After the watcher stands in the list, so that no change falls between.
        let initial = registry.list(pattern.as_ref(), None, usize::MAX);
        let initial = initial
            .into_iter()
            .map(|info| info.description.name.clone());
        pending.lock().names.extend(initial);
        Watch {
            registry,
            pending,
            snapshot_left: None,
            snapshot_done: false,
        }
    }
}

/// A stream of [`WatchItem`]s. Dropping it ends the watch.
#[derive(Debug)]
#[must_use]
pub struct Watch {
    registry: ServiceRegistry,
    pending: Arc<Mutex<Pending>>,
    /// How many names of the snapshot are still to be told.
    snapshot_left: Option<usize>,
    snapshot_done: bool,
}

impl Stream for Watch {
    type Item = WatchItem;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WatchItem>> {
        let this = &mut *self;
        let mut pending = this.pending.lock();
        let left = *this.snapshot_left.get_or_insert(pending.names.len());
        if !this.snapshot_done && left == 0 {
            this.snapshot_done = true;
            return Poll::Ready(Some(WatchItem::SnapshotEnd));
        }
        let Some(name) = pending.names.pop_first() else {
            if this.snapshot_done {
                pending.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            this.snapshot_done = true;
            return Poll::Ready(Some(WatchItem::SnapshotEnd));
        };
        drop(pending);
        this.snapshot_left = Some(left.saturating_sub(1));
        let item = match this.registry.describe(name.as_str()) {
            Ok(info) if info.registered_at.is_some() => WatchItem::Service(Box::new(info)),
            _ => WatchItem::Unregistered(name),
        };
        Poll::Ready(Some(item))
    }
}
