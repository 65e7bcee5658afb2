//! Whether a new version of a plugin stays: pure.
//!
//! A new version is *tried* until it is ready, then *watched* for a while. It goes back once, to what ran
//! before; how that fares is the business of the ordinary rules.

use std::time::Duration;

use tokio::time::Instant;

/// A failure within this time of ready goes back.
pub(super) const WATCHED: Duration = Duration::from_secs(30);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// The old version ends, the new one is on its way. It must be ready by then.
    Tried { by: Instant },
    /// The same, while it waits for another plugin: that is not its fault, so its clock stands.
    Held { left: Duration },
    /// It was ready. It must not fail until then.
    Watched { until: Instant },
}

/// What is seen of the new version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Neither here nor there: the old one ends, it starts.
    OnItsWay,
    /// It waits for another plugin that it requires.
    Waits,
    /// Where it is wanted.
    Ready,
    /// It ended by itself or could not be started, and why.
    Failed(String),
    /// Somebody asked for something else, or configured something else.
    Superseded,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    GoOn,
    /// It is ready: it is kept from now on, and whoever asked is told.
    Accept,
    /// It has proved itself.
    Prove,
    /// Back to the old version, and why.
    GoBack(String),
    /// It stays without a trial, as it was asked for before something else was.
    Leave,
}

/// Decides; the trial is over unless one is returned.
pub(super) fn step(trial: Trial, seen: Seen, now: Instant) -> (Option<Trial>, Verdict) {
    match (trial, seen) {
        (_, Seen::Failed(why)) => (None, Verdict::GoBack(why)),
        (_, Seen::Superseded) => (None, Verdict::Leave),
        (Trial::Tried { .. } | Trial::Held { .. }, Seen::Ready) => {
            let until = now + WATCHED;
            (Some(Trial::Watched { until }), Verdict::Accept)
        }
        (Trial::Tried { by }, Seen::OnItsWay | Seen::Waits) if by <= now => {
            let why = "it was not ready in time".to_owned();
            (None, Verdict::GoBack(why))
        }
        (Trial::Tried { by }, Seen::Waits) => {
            let left = by.saturating_duration_since(now);
            (Some(Trial::Held { left }), Verdict::GoOn)
        }
        (Trial::Held { left }, Seen::OnItsWay) => {
            let by = now + left;
            (Some(Trial::Tried { by }), Verdict::GoOn)
        }
        (Trial::Watched { until }, _) if until <= now => (None, Verdict::Prove),
        (trial, _) => (Some(trial), Verdict::GoOn),
    }
}

impl Trial {
    /// When to look again even if nothing happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::Tried { by: at } | Self::Watched { until: at } => Some(*at),
            Self::Held { .. } => None,
        }
    }

    /// The core was late: nothing is held against the plugin.
    pub(super) fn late(&mut self, by: Duration) {
        match self {
            Self::Tried { by: at } | Self::Watched { until: at } => *at += by,
            Self::Held { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failed() -> Seen {
        Seen::Failed("exit code 1".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn every_pair_has_its_answer() {
        let now = Instant::now();
        let (later, past) = (now + Duration::from_secs(1), now - Duration::from_secs(1));
        let back = |why: &str| Verdict::GoBack(why.to_owned());
        let tried = |by| Trial::Tried { by };
        let held = |seconds| Trial::Held {
            left: Duration::from_secs(seconds),
        };
        let watched = |until| Trial::Watched { until };
        let fresh = Some(watched(now + WATCHED));
        let table = [
            (
                tried(later),
                Seen::OnItsWay,
                Some(tried(later)),
                Verdict::GoOn,
            ),
            (
                tried(past),
                Seen::OnItsWay,
                None,
                back("it was not ready in time"),
            ),
            (tried(later), Seen::Ready, fresh, Verdict::Accept),
            (tried(past), Seen::Ready, fresh, Verdict::Accept),
            (tried(later), Seen::Waits, Some(held(1)), Verdict::GoOn),
            (
                tried(past),
                Seen::Waits,
                None,
                back("it was not ready in time"),
            ),
            (held(1), Seen::Waits, Some(held(1)), Verdict::GoOn),
            (held(1), Seen::OnItsWay, Some(tried(later)), Verdict::GoOn),
            (held(1), Seen::Ready, fresh, Verdict::Accept),
            (held(1), failed(), None, back("exit code 1")),
            (held(1), Seen::Superseded, None, Verdict::Leave),
            (tried(later), failed(), None, back("exit code 1")),
            (tried(later), Seen::Superseded, None, Verdict::Leave),
            (
                watched(later),
                Seen::OnItsWay,
                Some(watched(later)),
                Verdict::GoOn,
            ),
            (
                watched(later),
                Seen::Ready,
                Some(watched(later)),
                Verdict::GoOn,
            ),
            (
                watched(later),
                Seen::Waits,
                Some(watched(later)),
                Verdict::GoOn,
            ),
            (watched(past), Seen::Waits, None, Verdict::Prove),
            (watched(past), Seen::Ready, None, Verdict::Prove),
            (watched(past), Seen::OnItsWay, None, Verdict::Prove),
            (watched(later), failed(), None, back("exit code 1")),
            (watched(later), Seen::Superseded, None, Verdict::Leave),
        ];
        for (trial, seen, next, verdict) in table {
            let told = format!("{trial:?}, {seen:?}");
            assert_eq!(step(trial, seen, now), (next, verdict), "{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_it_waits_for_others_is_not_counted() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let trial = Trial::Tried { by: at(10) };
        let (trial, _) = step(trial, Seen::Waits, at(4));
        let mut held = trial.expect("goes on");
        held.late(Duration::from_secs(5));
        assert_eq!(held.next_deadline(), None);
        let (trial, _) = step(held, Seen::Waits, at(900));
        let (trial, _) = step(trial.expect("goes on"), Seen::OnItsWay, at(1_000));
        let trial = trial.expect("goes on");
        assert_eq!(trial.next_deadline(), Some(at(1_006)));
        let (_, verdict) = step(trial, Seen::OnItsWay, at(1_006));
        assert!(matches!(verdict, Verdict::GoBack(_)));
    }

    proptest! {
        /// Whatever is seen, a trial is accepted at most once, goes back at most once, and ends.
        #[test]
        fn it_ends_once(seen in proptest::collection::vec(0..5_u8, 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .start_paused(true)
                .enable_time()
                .build()
                .expect("a runtime");
            let _inside = runtime.enter();
            let begin = Instant::now();
            let mut trial = Some(Trial::Tried { by: begin + Duration::from_secs(10) });
            let (mut accepted, mut ended) = (0, 0);
            for (second, seen) in (1_u64..).zip(seen) {
                let Some(under_way) = trial else { break };
                let seen = match seen {
                    0 => failed(),
                    1 => Seen::Superseded,
                    2 => Seen::Ready,
                    3 => Seen::Waits,
                    _ => Seen::OnItsWay,
                };
                let (next, verdict) = step(under_way, seen, begin + Duration::from_secs(second));
                accepted += i32::from(verdict == Verdict::Accept);
                ended += i32::from(next.is_none());
                prop_assert_eq!(next.is_none(), !matches!(verdict, Verdict::GoOn | Verdict::Accept));
                trial = next;
            }
            prop_assert!(accepted <= 1 && ended <= 1);
            let late = begin + Duration::from_secs(1_000);
            if let Some(trial) = trial {
                let (trial, _) = step(trial, Seen::OnItsWay, late);
                let later = late + Duration::from_secs(1_000);
                let next = trial.and_then(|trial| step(trial, Seen::OnItsWay, later).0);
                prop_assert_eq!(next, None);
            }
        }
    }
}
