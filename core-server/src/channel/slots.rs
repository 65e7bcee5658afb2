//! A caller's share of calls in flight, and of watches.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many calls a caller has in flight, or watches open. One per run of a plugin; of calls one for
/// all operators.
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
