//! When a plugin runs again: a function of its history, its policy and how its run ended.
//!
//! The numbers are the policy's (`RestartPolicy`); the rules:
//! - Exit code 0 after `min_uptime` is no failure: `always` restarts at the base delay, the other
//!   modes are done (`completed`). Earlier it is a failure like any other.
//! - Code 75 means "not now": it lengthens the delay but does not count towards a crash loop.
//! - Code 78, and a program that cannot be started at all, wait for a new configuration.
//! - The delay doubles with each failure; `max_failures` of them slow everything down to one try each
//!   `crash_loop_every`, for ever, unless `give_up` says otherwise.
//! - Jitter only ever adds (0 to 25 %), so that the lower bound can be tested.

use std::time::Duration;

use tokio::time::Instant;

use crate::plugin_manager::{RestartMode, RestartPolicy};

/// Exit code of a plugin that wants to be tried again later (`EX_TEMPFAIL`).
pub const EXIT_TEMPORARY: i32 = 75;
/// Exit code of a plugin whose configuration is wrong (`EX_CONFIG`).
pub const EXIT_CONFIGURATION: i32 = 78;

/// What counts against a plugin since it was last stable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Failures; they make a crash loop.
    pub failures: u32,
    /// How often the delay has doubled: failures and temporary ends.
    pub delays: u32,
}

/// How a run ended that nobody ended on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It left by itself with this exit code.
    Code(i32),
    /// A signal, a failed or late hook, a lost channel.
    Crash,
    /// The program cannot be started until something changes.
    Unstartable,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Try again then.
    Backoff(Instant),
    /// Too many failures; try again then, slowly, for ever.
    CrashLoop(Instant),
    /// Not tried again until the configuration or the program changes, or an operator says so.
    GivenUp,
    /// As [`Next::GivenUp`]: nothing else could help.
    ConfigError,
    /// Its work is done.
    Completed,
}

/// Whether this end is a failure that people should hear of.
#[must_use]
pub fn is_crash(ended: Ended, ran_for: Duration, policy: &RestartPolicy) -> bool {
    match ended {
        Ended::Code(0) => ran_for < policy.min_uptime,
        Ended::Code(EXIT_TEMPORARY) => false,
        Ended::Code(_) | Ended::Crash | Ended::Unstartable => true,
    }
}

/// Decides what follows the end of a run. `random` is in `0.0..1.0`.
#[must_use]
pub fn decide(
    history: History,
    policy: &RestartPolicy,
    ended: Ended,
    ran_for: Duration,
    now: Instant,
    random: f64,
) -> (History, Next) {
    let later = |delay: Duration| now + delay.mul_f64(1.0 + 0.25 * random.clamp(0.0, 1.0));
    if matches!(ended, Ended::Unstartable | Ended::Code(EXIT_CONFIGURATION)) {
        return (history, Next::ConfigError);
    }
    let crash = is_crash(ended, ran_for, policy);
    if ended == Ended::Code(0) && !crash {
        let next = match policy.mode {
            RestartMode::Always => Next::Backoff(later(policy.backoff_base)),
            RestartMode::OnFailure | RestartMode::Never => Next::Completed,
        };
        return (history, next);
    }
    let history = History {
        failures: history.failures.saturating_add(u32::from(crash)),
        delays: history.delays.saturating_add(1),
    };
    if policy.mode == RestartMode::Never {
        return (history, Next::GivenUp);
    }
    let next = if crash && policy.max_failures > 0 && history.failures >= policy.max_failures {
        if policy.give_up {
            Next::GivenUp
        } else {
            Next::CrashLoop(later(policy.crash_loop_every))
        }
    } else {
        Next::Backoff(later(delay(policy, history.delays)))
    };
    (history, next)
}

/// The delay before jitter after so many failures in a row.
fn delay(policy: &RestartPolicy, delays: u32) -> Duration {
    let factor = 2_u32.saturating_pow(delays.saturating_sub(1));
    policy
        .backoff_base
        .checked_mul(factor)
        .map_or(policy.backoff_max, |delay| delay.min(policy.backoff_max))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_secs(1);

    fn policy(mode: RestartMode) -> RestartPolicy {
        RestartPolicy {
            mode,
            ..RestartPolicy::default()
        }
    }

    fn word(next: Next) -> &'static str {
        match next {
            Next::Backoff(_) => "backoff",
            Next::CrashLoop(_) => "crash_loop",
            Next::GivenUp => "given_up",
            Next::ConfigError => "config_error",
            Next::Completed => "completed",
        }
    }

    #[test]
    fn every_end_has_its_answer_in_every_mode() {
        use Ended::{Code, Crash, Unstartable};
        // end, how long it ran, (counted, always, on_failure, never)
        for (ended, ran_for, counted, always, on_failure, never) in [
            (Code(0), LONG, 0, "backoff", "completed", "completed"),
            (Code(0), SHORT, 1, "backoff", "backoff", "given_up"),
            (Code(75), LONG, 0, "backoff", "backoff", "given_up"),
            (Code(75), SHORT, 0, "backoff", "backoff", "given_up"),
            (
                Code(78),
                LONG,
                0,
                "config_error",
                "config_error",
                "config_error",
            ),
            (
                Code(78),
                SHORT,
                0,
                "config_error",
                "config_error",
                "config_error",
            ),
            (Code(1), LONG, 1, "backoff", "backoff", "given_up"),
            (Code(1), SHORT, 1, "backoff", "backoff", "given_up"),
            (Crash, LONG, 1, "backoff", "backoff", "given_up"),
            (Crash, SHORT, 1, "backoff", "backoff", "given_up"),
            (
                Unstartable,
                SHORT,
                0,
                "config_error",
                "config_error",
                "config_error",
            ),
        ] {
            for (mode, expected) in [
                (RestartMode::Always, always),
                (RestartMode::OnFailure, on_failure),
                (RestartMode::Never, never),
            ] {
                let now = Instant::now();
                let (history, next) =
                    decide(History::default(), &policy(mode), ended, ran_for, now, 0.5);
                assert_eq!(word(next), expected, "{ended:?} {ran_for:?} {mode:?}");
                assert_eq!(history.failures, counted, "{ended:?} {ran_for:?} {mode:?}");
            }
        }
    }

    #[test]
    fn a_crash_on_start_trips_at_the_eighth_failure_between_31_75_and_39_7_seconds() {
        for (random, trip_ms, slow_ms) in [(0.0, 31_750, 300_000), (1.0, 39_687, 375_000)] {
            let policy = RestartPolicy::default();
            let (mut history, begin) = (History::default(), Instant::now());
            let mut now = begin;
            for failure in 1..=7_u32 {
                let (next_history, next) = decide(
                    history,
                    &policy,
                    Ended::Code(1),
                    Duration::ZERO,
                    now,
                    random,
                );
                let Next::Backoff(at) = next else {
                    panic!("failure {failure}: {next:?}")
                };
                (history, now) = (next_history, at);
            }
            assert_eq!((now - begin).as_millis(), trip_ms);
            let (history, next) =
                decide(history, &policy, Ended::Crash, Duration::ZERO, now, random);
            assert_eq!(history.failures, 8);
            let Next::CrashLoop(at) = next else {
                panic!("{next:?}")
            };
            assert_eq!((at - now).as_millis(), slow_ms);
            let (_, next) = decide(history, &policy, Ended::Crash, Duration::ZERO, now, random);
            assert_eq!(word(next), "crash_loop", "for ever");
        }
    }

    #[test]
    fn give_up_makes_a_crash_loop_final_and_zero_switches_it_off() {
        let seven = History {
            failures: 7,
            delays: 7,
        };
        let now = Instant::now();
        let last =
            |policy: &RestartPolicy| word(decide(seven, policy, Ended::Crash, SHORT, now, 0.0).1);
        let default = RestartPolicy::default();
        assert_eq!(
            last(&RestartPolicy {
                give_up: true,
                ..default.clone()
            }),
            "given_up"
        );
        assert_eq!(
            last(&RestartPolicy {
                max_failures: 0,
                ..default
            }),
            "backoff"
        );
    }

    #[test]
    fn temporary_ends_wait_longer_each_time_and_never_make_a_crash_loop() {
        let (policy, now) = (RestartPolicy::default(), Instant::now());
        let mut history = History::default();
        let mut delays = Vec::new();
        for _ in 0..40 {
            let (next_history, next) = decide(history, &policy, Ended::Code(75), SHORT, now, 0.0);
            let Next::Backoff(at) = next else {
                panic!("{next:?}")
            };
            delays.push(at - now);
            history = next_history;
        }
        assert_eq!(delays[..3], [250, 500, 1000].map(Duration::from_millis));
        assert_eq!(delays[39], policy.backoff_max);
    }

    fn ended() -> impl Strategy<Value = Ended> {
        prop_oneof![
            prop_oneof![Just(0), Just(1), Just(75), Just(78), 0..256_i32].prop_map(Ended::Code),
            Just(Ended::Crash),
            Just(Ended::Unstartable),
        ]
    }

    proptest! {
        #[test]
        fn delays_stay_inside_their_bounds(
            failures in 0..100_u32, delays in 0..100_u32, ended in ended(),
            ran_ms in 0..100_000_u64, random in 0.0..1.0_f64,
        ) {
            let (policy, now) = (RestartPolicy::default(), Instant::now());
            let before = History { failures, delays };
            let ran_for = Duration::from_millis(ran_ms);
            let (after, next) = decide(before, &policy, ended, ran_for, now, random);
            prop_assert!(after.failures >= failures && after.failures <= failures + 1);
            match next {
                Next::Backoff(at) => {
                    let limit = policy.backoff_max.mul_f64(1.25);
                    prop_assert!(at - now >= policy.backoff_base && at - now <= limit);
                }
                Next::CrashLoop(at) => {
                    prop_assert!(after.failures >= policy.max_failures);
                    prop_assert!(at - now >= policy.crash_loop_every);
                    prop_assert!(at - now <= policy.crash_loop_every.mul_f64(1.25));
                }
                Next::GivenUp | Next::Completed => prop_assert!(false, "mode always goes on"),
                Next::ConfigError => prop_assert!(!matches!(ended, Ended::Crash)),
            }
        }
    }
}
