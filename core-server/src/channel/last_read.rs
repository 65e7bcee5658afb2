//! When something was last read from a connection. The transport notes it, a run looks at those of its
//! own connections: a process that sends nothing at all, not even HTTP/2's acknowledgements, is stopped
//! or gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Of one connection. Cheap to clone: clones are the same.
#[derive(Clone, Debug)]
pub struct LastRead {
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    began: Instant,
    /// Milliseconds from `began`.
    read_after_ms: AtomicU64,
    /// The run that it was last found to belong to: its number, or 0. It saves the run's list from
    /// being asked with every request.
    owner: AtomicU64,
}

impl LastRead {
    /// Of a connection that begins now.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            connection: Arc::new(Connection {
                began: now,
                read_after_ms: AtomicU64::new(0),
                owner: AtomicU64::new(0),
            }),
        }
    }

    /// Something was read now.
    pub fn note(&self, now: Instant) {
        let after = now.saturating_duration_since(self.connection.began);
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        // One task reads a connection: nothing else depends on the order.
        self.connection
            .read_after_ms
            .store(after_ms, Ordering::Relaxed);
    }

    /// When something was last read.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.connection.at()
    }
}

impl Connection {
    fn at(&self) -> Instant {
        let after_ms = self.read_after_ms.load(Ordering::Relaxed);
        self.began + std::time::Duration::from_millis(after_ms)
    }
}

/// The connections of one run.
#[derive(Debug)]
pub(super) struct Connections {
    /// Unique in this core; never 0.
    owner: u64,
    /// Those that are open, and perhaps some that no longer are: at most as many as the transport
    /// allows. Short lock: no await inside.
    open: Mutex<Vec<Weak<Connection>>>,
}

impl Connections {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            owner: NEXT.fetch_add(1, Ordering::Relaxed),
            open: Mutex::new(Vec::new()),
        }
    }

    /// A request of the run came over this connection. Costs one load when that is known.
    pub(super) fn add(&self, last_read: &LastRead) {
        let connection = &last_read.connection;
        if connection.owner.load(Ordering::Relaxed) == self.owner {
            return;
        }
        connection.owner.store(self.owner, Ordering::Relaxed);
        let mut open = self.open.lock();
        open.retain(|known| {
            known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(connection))
        });
        open.push(Arc::downgrade(connection));
    }

    /// When something was last read from any of them.
    pub(super) fn last_read(&self) -> Option<Instant> {
        let open = self.open.lock();
        open.iter()
            .filter_map(Weak::upgrade)
            .map(|connection| connection.at())
            .max()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_byte_of_any_open_connection_counts() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let run = Connections::new();
        assert_eq!(run.last_read(), None);
        let (channel, events) = (LastRead::new(begin), LastRead::new(at(1)));
        for _ in 0..3 {
            run.add(&channel);
            run.add(&events);
        }
        assert_eq!(run.last_read(), Some(at(1)));
        channel.note(at(5));
        assert_eq!(run.last_read(), Some(at(5)));
        events.note(at(7));
        drop(events);
        assert_eq!(run.last_read(), Some(at(5)), "a closed one says no more");
    }

    #[test]
    fn a_connection_that_serves_two_runs_by_turns_is_kept_once_by_each() {
        let begin = Instant::now();
        let (one, other, shared) = (Connections::new(), Connections::new(), LastRead::new(begin));
        for _ in 0..100 {
            one.add(&shared);
            other.add(&shared);
        }
        assert_eq!((one.open.lock().len(), other.open.lock().len()), (1, 1));
        assert_eq!(one.last_read(), other.last_read());
    }
}
