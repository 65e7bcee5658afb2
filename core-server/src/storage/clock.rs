//! The store's clock: by it entries expire.
//!
//! The wall time is read once, when the store is opened; from then on the clock runs by the monotonic
//! one. So whatever is done to the wall clock while the core runs expires nothing.
//!
//! A machine without a battery-backed clock boots in 1970 and learns the time later. What is written until
//! then expires in 1970 too, and would all be gone at once when the time is known. So such a clock is
//! *untrusted*: once the wall time is plausible, the store's clock is set anew and the expiries written by
//! the untrusted one are shifted ([`StorageAdapter::rebase`](super::StorageAdapter::rebase)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Before this no core existed: a wall clock that shows an earlier time is not set. 2025-01-01, UTC.
const TRUSTED_FROM_SECONDS: u64 = 1_735_689_600;

/// See [`TRUSTED_FROM_SECONDS`].
pub(super) fn trusted_from() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(TRUSTED_FROM_SECONDS)
}

/// Longest that an entry may last: short enough that what an unset clock wrote expires before
/// the moment from which a clock is trusted, by which it is known.
pub const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What the machine says of time.
pub(super) trait TimeSource: Send + Sync {
    /// Wall time; may jump.
    fn wall(&self) -> SystemTime;
    /// Since some moment; never jumps.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
struct System {
    began: tokio::time::Instant,
}

impl TimeSource for System {
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        self.began.elapsed()
    }
}

pub(super) struct StoreClock {
    source: Arc<dyn TimeSource>,
    /// Microseconds since 1970 that the monotonic clock's zero stands for. Written when it is set anew,
    /// by the writer.
    zero: AtomicU64,
}

impl StoreClock {
    pub(super) fn of_the_system() -> Self {
        Self::new(Arc::new(System {
            began: tokio::time::Instant::now(),
        }))
    }

    pub(super) fn new(source: Arc<dyn TimeSource>) -> Self {
        let clock = Self {
            source,
            zero: AtomicU64::new(0),
        };
        clock.set_to(clock.source.wall());
        clock
    }

    /// In whole microseconds.
    pub(super) fn now(&self) -> SystemTime {
        let since = u64::try_from(self.source.monotonic().as_micros()).unwrap_or(u64::MAX);
        let zero = self.zero.load(Ordering::Acquire);
        SystemTime::UNIX_EPOCH + Duration::from_micros(zero.saturating_add(since))
    }

    /// Wall time, in whole microseconds.
    pub(super) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros(self.source.wall()))
    }

    /// The time that a write gets: wall time; but as long as the clock is untrusted its own, by which the
    /// write expires too. The shift that comes later is measured by it.
    pub(super) fn stamp(&self) -> SystemTime {
        if self.is_trusted() {
            self.wall()
        } else {
            self.now()
        }
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.now() >= trusted_from()
    }

    /// The wall time, if it has become plausible since the clock was set.
    pub(super) fn known_since(&self) -> Option<SystemTime> {
        let wall = self.wall();
        (!self.is_trusted() && wall >= trusted_from()).then_some(wall)
    }

    /// Sets the clock, once the time is known.
    pub(super) fn set_to(&self, wall: SystemTime) {
        let since = u64::try_from(self.source.monotonic().as_micros()).unwrap_or(u64::MAX);
        self.zero
            .store(micros(wall).saturating_sub(since), Ordering::Release);
    }
}

/// What adapters keep, so that an entry has the same time from memory and from disk.
fn micros(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Clocks that a test moves.
#[cfg(test)]
pub(super) struct ManualClocks {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

#[cfg(test)]
impl ManualClocks {
    /// The wall clock shows so many seconds since 1970.
    pub(super) fn at(seconds: u64) -> Arc<Self> {
        Arc::new(Self {
            wall: AtomicU64::new(seconds * 1_000_000),
            monotonic: AtomicU64::new(0),
        })
    }

    /// Time passes.
    pub(super) fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).expect("short");
        self.wall.fetch_add(micros, Ordering::SeqCst);
        self.monotonic.fetch_add(micros, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock.
    pub(super) fn set_wall(&self, seconds: u64) {
        self.wall.store(seconds * 1_000_000, Ordering::SeqCst);
    }
}

#[cfg(test)]
impl TimeSource for ManualClocks {
    fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.monotonic.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn jumps_of_the_wall_clock_do_not_move_it() {
        let clocks = ManualClocks::at(NOW);
        let clock = StoreClock::new(clocks.clone());
        clocks.pass(Duration::from_secs(5));
        for wall in [NOW + 3_600, NOW - 3_600, 0] {
            clocks.set_wall(wall);
            assert_eq!(clock.known_since(), None);
            assert_eq!(clock.now(), at(NOW + 5));
            assert_eq!(clock.wall(), at(wall));
        }
    }

    #[test]
    fn an_unset_clock_is_set_once_when_the_time_is_known() {
        let clocks = ManualClocks::at(30);
        let clock = StoreClock::new(clocks.clone());
        assert!(!clock.is_trusted());
        clocks.pass(Duration::from_secs(10));
        assert_eq!(clock.known_since(), None);
        assert_eq!(clock.now(), at(40));
        clocks.set_wall(NOW);
        assert_eq!(clock.known_since(), Some(at(NOW)));
        clock.set_to(at(NOW));
        assert_eq!(clock.known_since(), None);
        clocks.pass(Duration::from_secs(1));
        assert_eq!(clock.now(), at(NOW + 1));
        assert!(clock.is_trusted());
    }

    #[test]
    fn whatever_an_unset_clock_writes_is_known_as_such() {
        assert!(at(86_400 * 365) + MAX_TTL < trusted_from());
    }
}
