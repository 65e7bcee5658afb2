//! How often reads are kept waiting for a log that does not become empty.

use std::time::Duration;

use tokio::time::Instant;

/// After an attempt that kept reads waiting and was in vain, because another process reads, the next one
/// comes so much later, then twice as much, up to [`MAX_HARD_DELAY`].
pub(super) const FIRST_HARD_DELAY: Duration = Duration::from_secs(1);
pub(super) const MAX_HARD_DELAY: Duration = Duration::from_secs(60);

/// When reads may be kept waiting again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct HardDelay {
    /// None: at any time.
    pub(super) not_before: Option<Instant>,
    /// The last one. Zero: there was none.
    pub(super) delay: Duration,
}

impl HardDelay {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// After an attempt: whether it was in vain.
    pub(super) fn note(&mut self, in_vain: bool, now: Instant) {
        if in_vain {
            self.delay = (self.delay * 2).clamp(FIRST_HARD_DELAY, MAX_HARD_DELAY);
            self.not_before = Some(now + self.delay);
        } else {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_in_vain_come_ever_less_often_up_to_a_bound() {
        let now = Instant::now();
        let mut delay = HardDelay::default();
        assert!(delay.is_over(now));
        let mut seconds = Vec::new();
        for _ in 0..8 {
            delay.note(true, now);
            assert!(!delay.is_over(now));
            assert!(delay.is_over(now + delay.delay));
            seconds.push(delay.delay.as_secs());
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        delay.note(false, now);
        assert_eq!(delay, HardDelay::default());
    }
}
