//! What a caller holds at once: requests in flight, subscriptions, watches, connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of one kind a caller holds.
#[derive(Debug, Default)]
pub struct CallerSlots(AtomicUsize);

impl CallerSlots {
    /// Takes a slot, unless `limit` are taken.
    pub fn take(self: &Arc<Self>, limit: usize) -> Option<Slot> {
        if self.0.fetch_add(1, Ordering::Relaxed) < limit {
            return Some(Slot(Arc::clone(self)));
        }
        self.0.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// One taken slot; given back on drop.
#[derive(Debug)]
#[must_use]
pub struct Slot(Arc<CallerSlots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
