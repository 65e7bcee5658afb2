//! When to ping a plugin and when to call it degraded: pure.
//!
//! A ping is sent every interval; one that is not answered within four fifths of an interval is
//! missed. Two missed in a row degrade, a pong clears. (With the default of 5 s a plugin that stops
//! answering is degraded after 9 to 14 s.)

use std::time::Duration;

use tokio::time::Instant;

/// Missed pings in a row that degrade a plugin.
const MISSES: u32 = 2;

/// The heartbeat of one run.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    interval: Duration,
    next_ping: Instant,
    /// The nonce last sent, by this heartbeat or the one before it.
    sent: u64,
    /// This one has sent a ping.
    began: bool,
    /// Until when the answer is in time; `None`: judged already.
    due: Option<Instant>,
    misses: u32,
    degraded: bool,
}

/// What follows from a look at the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Send a ping with this nonce.
    pub ping: Option<u64>,
    /// The plugin is degraded from now on, or no longer.
    pub degraded: Option<bool>,
}

impl Heartbeat {
    /// A heartbeat that begins one interval from now. `sent`: the nonce last sent over an earlier
    /// channel of the same run, or 0; a pong to that one is no answer to this.
    #[must_use]
    pub fn new(interval: Duration, sent: u64, now: Instant) -> Self {
        Self {
            interval,
            next_ping: now + interval,
            sent,
            began: false,
            due: None,
            misses: 0,
            degraded: false,
        }
    }

    /// The nonce last sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// When the next look is due.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.due
            .map_or(self.next_ping, |due| due.min(self.next_ping))
    }

    /// A look at the clock and at the latest pong's nonce.
    pub fn look(&mut self, last_pong: Option<u64>, now: Instant) -> Beat {
        let mut beat = Beat::default();
        let answered = self.began && last_pong == Some(self.sent);
        if answered {
            self.due = None;
            self.misses = 0;
            if std::mem::take(&mut self.degraded) {
                beat.degraded = Some(false);
            }
        } else if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            self.misses += 1;
            if self.misses >= MISSES && !std::mem::replace(&mut self.degraded, true) {
                beat.degraded = Some(true);
            }
        }
        if self.next_ping <= now {
            self.sent += 1;
            self.began = true;
            self.due = Some(now + self.interval * 4 / 5);
            self.next_ping = now + self.interval;
            beat.ping = Some(self.sent);
        }
        beat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_missed_pings_degrade_and_a_pong_clears() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut heartbeat = Heartbeat::new(Duration::from_secs(5), 0, begin);
        let beat = |ping, degraded| Beat { ping, degraded };
        assert_eq!(heartbeat.look(None, at(1)), beat(None, None));
        assert_eq!(heartbeat.look(None, at(5)), beat(Some(1), None));
        assert_eq!(heartbeat.next_deadline(), at(9));
        assert_eq!(heartbeat.look(Some(1), at(9)), beat(None, None));
        assert_eq!(heartbeat.look(Some(1), at(10)), beat(Some(2), None));
        assert_eq!(
            heartbeat.look(Some(1), at(14)),
            beat(None, None),
            "one missed"
        );
        assert_eq!(heartbeat.look(Some(1), at(15)), beat(Some(3), None));
        assert_eq!(
            heartbeat.look(Some(2), at(19)),
            beat(None, Some(true)),
            "a late pong is none"
        );
        assert_eq!(heartbeat.look(Some(2), at(20)), beat(Some(4), None));
        assert_eq!(heartbeat.look(Some(4), at(21)), beat(None, Some(false)));
    }
}
