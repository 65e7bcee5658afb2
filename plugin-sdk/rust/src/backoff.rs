//! How long to wait before trying again: full jitter, so that a thousand plugins do not come back in
//! step.

use std::time::Duration;

use crate::error::Error;

const BASE: Duration = Duration::from_millis(100);

/// Counts failures in a row.
#[derive(Debug)]
pub(crate) struct Backoff {
    longest: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            failures: 0,
        }
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: the wait before the next try.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = bound(self.failures, self.longest).mul_f64(rand::random());
        self.failures = self.failures.saturating_add(1);
        wait
    }

    /// It failed so: the wait before the next try, not below what the core asked for.
    pub(crate) fn after(&mut self, error: &Error) -> Duration {
        let wait = self.next();
        error
            .retry_after()
            .map_or(wait, |asked| at_least(asked).max(wait))
    }
}

/// The longest wait after this many failures: 100 ms, doubled each time.
fn bound(failures: u32, longest: Duration) -> Duration {
    BASE.saturating_mul(2_u32.saturating_pow(failures))
        .min(longest)
}

/// At least the wait that the core asked for, and up to a quarter more.
pub(crate) fn at_least(asked: Duration) -> Duration {
    asked.mul_f64(1.0 + rand::random::<f64>() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let longest = Duration::from_secs(5);
        for (failures, milliseconds) in [(0, 100), (1, 200), (5, 3200), (6, 5000), (u32::MAX, 5000)]
        {
            assert_eq!(
                bound(failures, longest),
                Duration::from_millis(milliseconds)
            );
        }
    }

    #[test]
    fn the_wait_is_anything_below_the_bound() {
        let mut backoff = Backoff::new(Duration::from_millis(150));
        for _ in 0..100 {
            assert!(backoff.next() <= Duration::from_millis(150));
        }
        let full = Error::resource_exhausted("full");
        assert!(backoff.after(&full) <= Duration::from_millis(150));
        let full = full.with_retry_after(Duration::from_millis(200));
        assert!(backoff.after(&full) >= Duration::from_millis(200));
        let asked = Duration::from_secs(4);
        let wait = at_least(asked);
        assert!(wait >= asked && wait <= Duration::from_secs(5));
    }
}
