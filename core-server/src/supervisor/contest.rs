//! Two instances of one plugin: whether the one that holds the run gives way to the one that knocks. Pure.
//!
//! Power that fails, or a container that is killed together with its network, leaves a channel that
//! nobody closes, and what comes up in its place is another instance. Nobody can tell that from a second
//! copy by looking; so the holder is asked. Who lives answers a ping within milliseconds, and whose channel
//! broke opens another one at once (the SDK tries several times within two seconds). Who gives no sign of life
//! for [`ANSWER_WITHIN`] gives way.
//!
//! - Any byte over any connection of the run is a sign of life, HTTP/2's acknowledgements included.
//! - Without another instance at the door nobody is asked: a plugin that is merely slow keeps its run
//!   ([`super::liveness`] judges it, with far more patience).
//! - Who cannot be asked keeps it too: without the feature `heartbeat`, or while the ping does not get
//!   out of the core.

use std::time::Duration;

use tokio::time::Instant;

/// How long the holder of a run has to give a sign of life: longer than a round trip over any link that
/// calls are usable over, and than a live plugin needs to open another channel.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How the one that holds the run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It has a channel and was asked over it.
    Asked {
        /// When the other one knocked.
        since: Instant,
        /// When the transport had a ping that is not answered, but not before `since`.
        told: Option<Instant>,
    },
    /// Its channel was lost.
    Away {
        /// When.
        since: Instant,
    },
    /// It has a channel and answers no pings.
    Mute,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It lives, or cannot be asked: the other one is refused.
    Stays,
    /// That will be known then, or sooner.
    Wait(Instant),
    /// Its run ends.
    GivesWay,
}

/// Judges the holder of a run. `heard`: its last sign of life.
#[must_use]
pub fn judge(holder: Holder, heard: Option<Instant>, now: Instant) -> Verdict {
    let (since, silent_from) = match holder {
        Holder::Asked { since, told } => (since, told),
        Holder::Away { since } => (since, Some(since)),
        Holder::Mute => return Verdict::Stays,
    };
    if heard.is_some_and(|heard| heard >= since) {
        return Verdict::Stays;
    }
    let until = silent_from.unwrap_or(since) + ANSWER_WITHIN;
    match silent_from {
        _ if now < until => Verdict::Wait(until),
        Some(_) => Verdict::GivesWay,
        None => Verdict::Stays,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_a_sign_of_life_or_cannot_be_asked_stays_and_nobody_else() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let asked = |told: Option<u64>| Holder::Asked {
            since: at(1_000),
            told: told.map(at),
        };
        let away = Holder::Away { since: at(1_000) };
        let wait = |ms| Verdict::Wait(at(ms));
        for (holder, heard, now, expected) in [
            // Asked: what came before says nothing of now.
            (asked(Some(1_000)), None, 1_000, wait(3_000)),
            (asked(Some(1_000)), Some(999), 2_999, wait(3_000)),
            (asked(Some(1_000)), Some(999), 3_000, Verdict::GivesWay),
            (asked(Some(1_000)), None, 9_000, Verdict::GivesWay),
            (asked(Some(1_000)), Some(1_000), 1_000, Verdict::Stays),
            (asked(Some(1_000)), Some(1_001), 3_000, Verdict::Stays),
            // Its time begins when the ping leaves the core.
            (asked(Some(2_500)), Some(999), 3_000, wait(4_500)),
            (asked(Some(2_500)), Some(999), 4_500, Verdict::GivesWay),
            (asked(Some(2_500)), Some(1_200), 4_500, Verdict::Stays),
            (asked(None), Some(999), 2_999, wait(3_000)),
            (asked(None), Some(999), 3_000, Verdict::Stays),
            // Its channel is gone: it had from then on.
            (away, None, 1_500, wait(3_000)),
            (away, Some(990), 3_000, Verdict::GivesWay),
            (away, Some(990), 9_000, Verdict::GivesWay),
            (away, Some(1_700), 9_000, Verdict::Stays),
            (Holder::Mute, None, 99_000, Verdict::Stays),
        ] {
            let judged = judge(holder, heard.map(at), at(now));
            assert_eq!(judged, expected, "{holder:?}, heard {heard:?}, at {now}");
        }
    }
}
