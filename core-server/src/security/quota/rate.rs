//! A rate: so much a second, and one second's worth at once. Pure.
//!
//! This is the generic cell rate algorithm: everything takes the time that its share of a second is, and
//! the account is the one moment until which all that was taken is paid for. It needs no timer, no lock,
//! and one word of memory. It is written out here, rather than taken from a library, for three things that
//! ours must do: take more than a second's worth at once, give back, and follow a rate that is changed.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: u64 = 1_000_000_000;

/// The time that `count` takes at a rate, in nanoseconds. Rounded down: a second's worth always fits into
/// a second, and what is given away is less than a nanosecond each time.
fn cost(per_second: u64, count: u64) -> u64 {
    count.saturating_mul(SECOND) / per_second
}

/// Takes what costs so much, now. It fits if, with it, no more than a second is owed; what costs more than a
/// second fits when nothing is owed, and whatever comes next waits until it is paid for. So everything fits at
/// some time, and over any stretch no more passes than the rate allows, but for one second's worth or the one
/// thing that was larger.
///
/// `Ok`: the moment until which it is paid for then. `Err`: after how long it fits, if nothing else is taken.
fn take(paid_until: u64, now: u64, cost: u64) -> Result<u64, u64> {
    let owed = paid_until.saturating_sub(now);
    let may_be_owed = SECOND - cost.min(SECOND);
    if owed <= may_be_owed {
        Ok(now.saturating_add(owed).saturating_add(cost))
    } else {
        Err(owed - may_be_owed)
    }
}

/// The account of one plugin at one rate. Times are nanoseconds from a beginning that the owner chooses.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// 0: unlimited.
    per_second: AtomicU64,
    paid_until: AtomicU64,
}

impl Rate {
    pub(super) fn per_second(&self) -> u64 {
        self.per_second.load(Ordering::Relaxed)
    }

    /// What is owed stays owed, in time.
    pub(super) fn set_per_second(&self, per_second: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Takes `count`, or says after how many nanoseconds it fits. `per_second` is not 0.
    pub(super) fn take(&self, per_second: u64, count: u64, now: u64) -> Result<(), u64> {
        let cost = cost(per_second, count);
        let mut paid_until = self.paid_until.load(Ordering::Relaxed);
        loop {
            let then = take(paid_until, now, cost)?;
            // Nothing else is read or written by it: the account is this one word.
            let exchanged = self.paid_until.compare_exchange_weak(
                paid_until,
                then,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match exchanged {
                Ok(_) => return Ok(()),
                Err(other) => paid_until = other,
            }
        }
    }

    /// Gives back what was taken for something that then did not happen.
    pub(super) fn give_back(&self, per_second: u64, count: u64) {
        let cost = cost(per_second, count);
        let less = |paid_until: u64| Some(paid_until.saturating_sub(cost));
        let given = self
            .paid_until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        debug_assert!(given.is_ok(), "it is always less");
    }

    /// After how many nanoseconds `count` would fit.
    pub(super) fn wait(&self, per_second: u64, count: u64, now: u64) -> u64 {
        let paid_until = self.paid_until.load(Ordering::Relaxed);
        take(paid_until, now, cost(per_second, count))
            .err()
            .unwrap_or(0)
    }

    /// How much of a second's worth is taken now; more, when something larger was.
    pub(super) fn used(&self, now: u64) -> u64 {
        let owed = self.paid_until.load(Ordering::Relaxed).saturating_sub(now);
        let used = u128::from(owed) * u128::from(self.per_second()) / u128::from(SECOND);
        u64::try_from(used).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLI: u64 = 1_000_000;

    /// At a rate: what is asked for at which millisecond, and after how many nanoseconds it fits; 0: now.
    #[test]
    fn what_fits_follows_the_table() {
        type Asked = (u64, u64, u64);
        let rows: &[(&str, u64, &[Asked])] = &[
            (
                "a second's worth at once, then at the rate",
                10,
                &[
                    (0, 10, 0),
                    (0, 1, 100 * MILLI),
                    (99, 1, MILLI),
                    (100, 1, 0),
                    (100, 1, 100 * MILLI),
                ],
            ),
            (
                "what was refused is not owed",
                10,
                &[(0, 10, 0), (0, 10, SECOND), (0, 10, SECOND), (1_000, 10, 0)],
            ),
            (
                "what is not used is not saved beyond a second's worth",
                10,
                &[(0, 1, 0), (60_000, 10, 0), (60_000, 1, 100 * MILLI)],
            ),
            (
                "a larger thing fits when nothing is owed, and is paid for afterwards",
                10,
                &[
                    (0, 1, 0),
                    (0, 25, 100 * MILLI),
                    (100, 25, 0),
                    (100, 1, 1_600 * MILLI),
                    (1_700, 1, 0),
                    (1_700, 25, SECOND),
                ],
            ),
            (
                "a rate that divides no second",
                3,
                &[(0, 1, 0), (0, 1, 0), (0, 1, 0), (0, 1, 333_333_332)],
            ),
            (
                "one a second",
                1,
                &[(0, 1, 0), (0, 1, SECOND), (1_000, 1, 0)],
            ),
        ];
        for (what, per_second, steps) in rows {
            let rate = Rate::default();
            for (index, &(at, count, wait)) in steps.iter().enumerate() {
                let taken = rate.take(*per_second, count, at * MILLI);
                assert_eq!(taken.err().unwrap_or(0), wait, "{what}, step {index}");
            }
        }
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let rate = Rate::default();
        rate.set_per_second(10);
        assert_eq!(rate.take(10, 10, 0), Ok(()));
        assert_eq!(rate.used(0), 10);
        rate.give_back(10, 4);
        assert_eq!(rate.used(0), 6);
        assert_eq!(rate.wait(10, 5, 0), 100 * MILLI);
        assert_eq!(rate.take(10, 4, 0), Ok(()));
    }

    proptest! {
        /// Whoever asks for whatever: no stretch lets more pass than its length times the rate and one burst;
        /// who waits as told is let in; and a rate that is kept is never refused.
        #[test]
        fn the_rate_holds(
            per_second in 1_u64..100_000,
            steps in proptest::collection::vec((0_u64..2_000, 1_u64..500), 1..200),
        ) {
            let rate = Rate::default();
            let (mut now, mut passed, mut largest) = (0_u64, 0_u64, per_second);
            for (pause, count) in steps {
                now += pause * MILLI;
                match rate.take(per_second, count, now) {
                    Ok(()) => {
                        passed += count;
                        largest = largest.max(count);
                    }
                    Err(wait) => {
                        prop_assert!(rate.take(per_second, count, now + wait - 1).is_err());
                        now += wait;
                        prop_assert_eq!(rate.take(per_second, count, now), Ok(()));
                        passed += count;
                        largest = largest.max(count);
                    }
                }
                // A nanosecond may be given away with each.
                let allowed = u128::from(now) * u128::from(per_second) / u128::from(SECOND);
                let given = 1 + 200 * u128::from(per_second) / u128::from(SECOND);
                prop_assert!(u128::from(passed) <= allowed + u128::from(largest) + given);
            }
        }

        #[test]
        fn who_keeps_the_rate_is_never_refused(per_second in 1_u64..100_000, times in 1_u64..300) {
            let rate = Rate::default();
            for index in 0..times {
                let now = (index * SECOND).div_ceil(per_second);
                prop_assert_eq!(rate.take(per_second, 1, now), Ok(()));
            }
        }
    }
}
