//! Whether a plugin that answers pings lives, is degraded or is dead: pure.
//!
//! - A ping is sent every interval, one at a time. Its clock starts when it is handed to the transport:
//!   what waits in the core is the core's own lateness. One that is not answered within four fifths of
//!   an interval from then is missed; two missed in a row degrade. With the default of 5 s a plugin
//!   that stops answering is degraded after 9 to 14 s.
//! - A pong, late or not, clears that: the plugin's dispatch loop turns. So one that is only busy is
//!   never degraded for long, and never killed.
//! - Silence: a ping was missed or cannot even be handed over, and not one byte came over any
//!   connection of the run for `silent_after`. HTTP/2 itself acknowledges what the core sends, whatever
//!   the plugin is doing, so a process that sends nothing at all is stopped or gone.
//! - Unresponsive: pings are missed and there was no pong for `unresponsive_after`, though bytes come.
//! - A channel that comes back is pinged at once, and proves itself by a pong: a `Hello` shows that the
//!   core hears the plugin, not that the plugin hears the core. Over a network that is broken in one
//!   direction only, new channels would keep a run alive that nobody can reach. It has the time of a
//!   suspension for it, counted from the first channel that came back: further ones do not renew it.
//!
//! Only plugins with the feature `heartbeat` have this; of others HTTP/2's keepalive alone judges.

use std::time::Duration;

use tokio::time::Instant;

/// Missed pings in a row that degrade a plugin.
const MISSES: u32 = 2;

/// The times of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Between pings.
    pub interval: Duration,
    /// Without a single byte, until the run is ended.
    pub silent_after: Duration,
    /// Without a pong, until the run is ended.
    pub unresponsive_after: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            silent_after: Duration::from_secs(15),
            unresponsive_after: Duration::from_secs(60),
        }
    }
}

/// How a plugin shows that it does not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifeless {
    /// Nothing came over any of its connections for so long.
    Silent(Duration),
    /// Its connections live, but it answers no ping for so long.
    Unresponsive(Duration),
}

/// What the transport knows at the moment of a look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// The ping last handed to the transport.
    pub handed: Option<(u64, Instant)>,
    /// The newest pong.
    pub pong: Option<(u64, Instant)>,
    /// When a byte was last read from any connection of the run.
    pub heard: Option<Instant>,
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Send a ping with this nonce.
    pub ping: Option<u64>,
    /// The plugin is degraded from now on, or no longer.
    pub degraded: Option<bool>,
    /// The run is to be ended.
    pub lifeless: Option<Lifeless>,
}

/// The liveness of one run.
#[derive(Clone, Debug)]
pub struct Liveness {
    times: Times,
    /// There is a channel to ping over.
    linked: bool,
    next_ping: Instant,
    /// The nonce last sent, over this channel or an earlier one of the run.
    sent: u64,
    /// The newest nonce that was answered; those of earlier channels count as answered.
    answered: u64,
    under_way: UnderWay,
    misses: u32,
    degraded: bool,
    /// The last pong, or the begin.
    ponged: Instant,
    /// The last byte known of.
    heard: Instant,
    /// The channel came back and nothing shows yet that the plugin hears it: until then, after so long.
    unproven: Option<(Instant, Duration)>,
}

/// The newest ping, until it is answered or missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UnderWay {
    Nothing,
    /// It waits inside the core, since then.
    Queued(Instant),
    /// The answer is in time until then.
    Due(Instant),
}

impl Liveness {
    /// Begins with a channel; the first ping comes one interval from now. `sent`: the nonce last sent
    /// over an earlier channel of the same run, or 0; a pong to that one is no answer to this.
    #[must_use]
    pub fn new(times: Times, sent: u64, now: Instant) -> Self {
        Self {
            times,
            linked: true,
            next_ping: now + times.interval,
            sent,
            answered: sent,
            under_way: UnderWay::Nothing,
            misses: 0,
            degraded: false,
            ponged: now,
            heard: now,
            unproven: None,
        }
    }

    /// Goes on with another channel of the same run, which must prove itself within `patience`. `before`:
    /// the liveness over the channel before.
    #[must_use]
    pub fn resumed(times: Times, before: Option<&Self>, patience: Duration, now: Instant) -> Self {
        let unproven = before.and_then(|before| before.unproven);
        let proven_by = unproven.unwrap_or((now + patience, patience));
        Self {
            next_ping: now,
            unproven: Some(proven_by),
            ..Self::new(times, before.map_or(0, Self::sent), now)
        }
    }

    /// The nonce last sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a ping was not answered, though it may have been sent over an earlier channel.
    #[must_use]
    pub fn is_unanswered(&self, nonce: u64) -> bool {
        nonce > self.answered
    }

    /// The plugin is to give a sign of life: the next ping is due now, unless one is under way.
    pub fn ask(&mut self, now: Instant) {
        if self.under_way == UnderWay::Nothing {
            self.next_ping = self.next_ping.min(now);
        }
    }

    /// The channel is lost. There is nothing to ping over, but what was silent before stays so.
    pub fn unlink(&mut self) {
        self.linked = false;
        self.under_way = UnderWay::Nothing;
    }

    /// The core itself was late: whatever did not come meanwhile is not the plugin's fault. All times
    /// begin anew.
    pub fn re_arm(&mut self, now: Instant) {
        self.misses = 0;
        self.under_way = UnderWay::Nothing;
        self.next_ping = now;
        self.ponged = now;
        self.heard = now;
        self.unproven = self
            .unproven
            .map(|(_, patience)| (now + patience, patience));
    }

    /// When the next look is due. (While a ping waits inside the core, or to learn of a pong sooner,
    /// the caller looks now and then by itself.)
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let ping = match self.under_way {
            _ if !self.linked => None,
            UnderWay::Nothing => Some(self.next_ping),
            UnderWay::Queued(_) => None,
            UnderWay::Due(due) => Some(due),
        };
        let silent = (self.misses > 0).then(|| self.heard + self.times.silent_after);
        let unresponsive =
            (self.misses >= MISSES).then(|| self.ponged + self.times.unresponsive_after);
        let unproven = self.unproven.map(|(by, _)| by);
        [ping, silent, unresponsive, unproven]
            .into_iter()
            .flatten()
            .min()
    }

    /// A look at the clock and at what the transport knows.
    pub fn look(&mut self, seen: &Seen, now: Instant) -> Beat {
        let mut beat = Beat::default();
        self.heard = self.heard.max(seen.heard.unwrap_or(self.heard));
        self.take_pong(seen, &mut beat);
        self.judge_ping(seen, now, &mut beat);
        if self.linked && self.under_way == UnderWay::Nothing && self.next_ping <= now {
            self.sent += 1;
            self.under_way = UnderWay::Queued(now);
            self.next_ping = now + self.times.interval;
            beat.ping = Some(self.sent);
        }
        let Times {
            silent_after,
            unresponsive_after,
            ..
        } = self.times;
        let cannot_be_told = matches!(
            self.under_way,
            UnderWay::Queued(since) if since + self.answer_within() <= now
        );
        if (self.misses > 0 || cannot_be_told) && self.heard + silent_after <= now {
            beat.lifeless = Some(Lifeless::Silent(silent_after));
        } else if self.misses >= MISSES && self.ponged + unresponsive_after <= now {
            beat.lifeless = Some(Lifeless::Unresponsive(unresponsive_after));
        } else if let Some((by, patience)) = self.unproven
            && by <= now
        {
            beat.lifeless = Some(Lifeless::Unresponsive(patience));
        }
        beat
    }

    fn answer_within(&self) -> Duration {
        self.times.interval * 4 / 5
    }

    fn take_pong(&mut self, seen: &Seen, beat: &mut Beat) {
        // Only a ping that was sent can be answered, and each once.
        let Some((nonce, at)) = seen.pong.filter(|(nonce, at)| {
            (self.answered + 1..=self.sent).contains(nonce) && *at >= self.ponged
        }) else {
            return;
        };
        self.answered = nonce;
        self.misses = 0;
        self.unproven = None;
        self.ponged = self.ponged.max(at);
        self.heard = self.heard.max(at);
        if nonce == self.sent {
            self.under_way = UnderWay::Nothing;
        }
        if std::mem::take(&mut self.degraded) {
            beat.degraded = Some(false);
        }
    }

    fn judge_ping(&mut self, seen: &Seen, now: Instant, beat: &mut Beat) {
        if matches!(self.under_way, UnderWay::Queued(_))
            && let Some((_, at)) = seen.handed.filter(|(nonce, _)| *nonce == self.sent)
        {
            self.under_way = UnderWay::Due(at + self.answer_within());
        }
        if let UnderWay::Due(due) = self.under_way
            && due <= now
        {
            self.under_way = UnderWay::Nothing;
            self.misses = self.misses.saturating_add(1);
            if self.misses >= MISSES && !std::mem::replace(&mut self.degraded, true) {
                beat.degraded = Some(true);
            }
        }
    }
}

#[cfg(test)]
mod tests;
