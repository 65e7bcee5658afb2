//! Counters of the store.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What the store has done since it was opened. Plain counters; nothing is derived from them.
        #[derive(Debug, Default)]
        pub(super) struct Stats { $(pub(super) $name: Counter),+ }

        /// The counters at one moment, each read by itself.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct StatsSnapshot { $($(#[$doc])* pub $name: u64),+ }

        impl Stats {
            pub(super) fn snapshot(&self) -> StatsSnapshot {
                StatsSnapshot { $($name: self.$name.get()),+ }
            }
        }
    };
}

counters! {
    /// Writes (`Apply`, `Set`, `Delete`) that took effect.
    commits,
    /// Single sets and deletes in them.
    ops,
    /// Transactions that carried them: `commits / batches` is what grouping saves.
    batches,
    /// Writes refused because a condition did not hold.
    mismatches,
    /// Writes refused because the queue was full.
    queue_full,
    /// Writes refused because the disk was full.
    disk_low,
    /// Writes given up at their deadline before the engine saw them.
    expired,
    /// Writes refused because of a quota.
    over_quota,
    /// Entries removed because their time had passed.
    expirations,
    /// Transactions that failed.
    failed_commits,
    /// Times the engine was opened anew after a failure.
    reopened,
    /// Reads of one key answered from memory.
    cache_hits,
    /// Reads of one key that went to the engine.
    cache_misses,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
