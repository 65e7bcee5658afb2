//! The deadlines of all calls, and the one sleeper that waits for the earliest.
//!
//! An ordered map, not a timer wheel: with some thousand entries its insert and remove cost about as
//! much, and a timer is taken back by its own key, so that one that has fired cannot be mistaken for
//! another.

use std::collections::BTreeMap;
use std::sync::Weak;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::provider::Provider;

/// What a deadline is for.
#[derive(Debug)]
pub(super) enum Expiry {
    /// A call's time has run out.
    Call {
        provider: Weak<Provider>,
        call_id: u64,
    },
    /// A place held by a call that its caller gave up is freed.
    Place {
        provider: Weak<Provider>,
        call_id: u64,
    },
    /// A suspended provider's callers have waited long enough.
    Suspended { provider: Weak<Provider> },
}

/// A deadline that can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timer(Instant, u64);

#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// Short lock, never held across an await.
    table: Mutex<Table>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Table {
    entries: BTreeMap<Timer, Expiry>,
    next_id: u64,
    /// When the sleeper wakes; it is woken only for something earlier, so that a stream of calls
    /// with equal timeouts never wakes it.
    wakes_at: Option<Instant>,
}

impl Deadlines {
    pub(super) fn insert(&self, expiry: Expiry, at: Instant) -> Timer {
        let mut table = self.table.lock();
        let timer = Timer(at, table.next_id);
        table.next_id += 1;
        table.entries.insert(timer, expiry);
        let earlier = table.wakes_at.is_none_or(|wakes_at| at < wakes_at);
        drop(table);
        if earlier {
            self.earlier.notify_one();
        }
        timer
    }

    /// Takes a deadline back. One that has fired is no longer there.
    pub(super) fn remove(&self, timer: Timer) {
        self.table.lock().entries.remove(&timer);
    }

    pub(super) fn len(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// The next deadline that passes. Cancel safe. For one waiter at a time.
    pub(super) async fn next(&self) -> Expiry {
        loop {
            let sleep_until = {
                let mut table = self.table.lock();
                match table.entries.first_entry() {
                    Some(first) if first.key().0 <= Instant::now() => return first.remove(),
                    Some(first) => {
                        let at = first.key().0;
                        table.wakes_at = Some(at);
                        Some(at)
                    }
                    None => {
                        table.wakes_at = None;
                        None
                    }
                }
            };
            match sleep_until {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.earlier.notified() => {}
                    }
                }
                None => self.earlier.notified().await,
            }
        }
    }
}
