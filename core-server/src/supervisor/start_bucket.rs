//! How many starts the whole core makes: a bucket of tokens, pure. It holds `capacity` starts and is
//! refilled at `per_second`. With the start slots it keeps plugins that die together from storming a
//! small box: slots bound how many start at once, this bounds how many start in a row.

use std::time::Duration;

use tokio::time::Instant;

/// The core-wide bucket of starts.
#[derive(Clone, Debug)]
pub struct StartBucket {
    /// Time in which one start is refilled.
    cost: Duration,
    /// Time in which an empty bucket is refilled.
    depth: Duration,
    /// When it is full again if nothing more is taken: all that needs to be known.
    full_at: Instant,
}

impl StartBucket {
    /// A full bucket. Of both numbers, 0 counts as 1: something must be able to start.
    #[must_use]
    pub fn new(capacity: u32, per_second: u32, now: Instant) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        Self {
            cost,
            depth: cost * capacity.max(1),
            full_at: now,
        }
    }

    /// Takes one start, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.next_at() > now {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.cost;
        true
    }

    /// When there is a start to take; in the past: there is one.
    #[must_use]
    pub fn next_at(&self) -> Instant {
        let after_taking = self.full_at + self.cost;
        // A clock that has just begun cannot hold an earlier time: full then.
        after_taking.checked_sub(self.depth).unwrap_or(self.full_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sixty_four_starts_at_once_and_then_eight_a_second() {
        let begin = Instant::now();
        let mut bucket = StartBucket::new(64, 8, begin);
        assert_eq!((0..100).filter(|_| bucket.take(begin)).count(), 64);
        let next = bucket.next_at();
        assert_eq!(next - begin, Duration::from_millis(125));
        assert!(!bucket.take(next - Duration::from_nanos(1)));
        assert!(bucket.take(next));
        let later = begin + Duration::from_secs(3_600);
        assert_eq!((0..100).filter(|_| bucket.take(later)).count(), 64, "full");
    }

    #[test]
    fn a_bucket_of_nothing_still_lets_one_start_at_a_time() {
        let begin = Instant::now();
        let mut bucket = StartBucket::new(0, 0, begin);
        assert!(bucket.take(begin) && !bucket.take(begin));
        assert!(bucket.take(begin + Duration::from_secs(1)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// In no stretch of time are there more starts than the bucket holds and is refilled by; and
        /// whoever comes when it said gets one.
        #[test]
        fn no_stretch_of_time_has_more_starts_than_it_may(
            capacity in 1..80_u32, per_second in 1..20_u32,
            waits in prop::collection::vec(0..2_000_u64, 1..300),
        ) {
            let mut now = Instant::now();
            let mut bucket = StartBucket::new(capacity, per_second, now);
            let mut starts = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                // Bursts of tries.
                for _ in 0..5 {
                    if bucket.take(now) {
                        starts.push(now);
                    } else {
                        prop_assert!(bucket.next_at() > now);
                        let mut later = bucket.clone();
                        prop_assert!(later.take(bucket.next_at()));
                    }
                }
            }
            for (index, from) in starts.iter().enumerate() {
                for (count, until) in starts[index..].iter().enumerate() {
                    let seconds = (*until - *from).as_secs_f64();
                    let most = f64::from(capacity) + seconds * f64::from(per_second) + 0.01;
                    prop_assert!((count + 1) as f64 <= most.max(1.0));
                }
            }
        }
    }
}
