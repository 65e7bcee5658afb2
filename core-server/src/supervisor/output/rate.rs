//! How much a plugin may write: two token buckets, and what became of the excess. Pure: whoever asks
//! passes `now`.
//!
//! A line is taken if there is a token for it in the bucket of lines and one for each of its bytes in
//! the bucket of bytes; else it is dropped and counted, and nothing is charged for it. Once a line is
//! refused, so is all that comes at the same instant: the rest of what was read together need only be
//! counted, not looked at.
//!
//! A small part of both buckets is never given to ordinary lines: it is kept back for the last words of
//! a flood, which may tell why a run ended. So the rates hold for both together.

use std::time::Duration;

use tokio::time::Instant;

/// Lines a second that are kept, per plugin.
pub const LINES_PER_SECOND: u64 = 200;
/// Lines at once.
pub const LINES_BURST: u64 = 1_000;
/// Bytes a second that are kept, per plugin.
pub const BYTES_PER_SECOND: u64 = 256 << 10;
/// Bytes at once: as many seconds' worth as of lines, rounded; 128 pieces of a line without end.
pub const BYTES_BURST: u64 = 1 << 20;
/// Lines that only last words may take, and their bytes.
pub const RESERVED_LINES: u64 = 20;
/// See [`RESERVED_LINES`].
pub const RESERVED_BYTES: u64 = 4 << 10;
/// Between two remarks about what was dropped.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Tokens, counted in billionths so that no time is lost to rounding.
#[derive(Clone, Debug)]
struct Bucket {
    per_second: u64,
    full: u64,
    level: u64,
}

impl Bucket {
    const ONE: u64 = 1_000_000_000;

    fn new(per_second: u64, burst: u64) -> Self {
        let full = burst.saturating_mul(Self::ONE);
        Self {
            per_second,
            full,
            level: full,
        }
    }

    fn refill(&mut self, elapsed: Duration) {
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let gained = nanos.saturating_mul(self.per_second);
        self.level = self.level.saturating_add(gained).min(self.full);
    }

    fn has(&self, tokens: u64) -> bool {
        self.level >= tokens.saturating_mul(Self::ONE)
    }

    fn take(&mut self, tokens: u64) {
        self.level -= tokens.saturating_mul(Self::ONE);
    }
}

/// Lines that were dropped, and how many bytes they had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed {
    /// Lines; a piece of a line that was split is one.
    pub lines: u64,
    /// Their bytes, without line ends.
    pub bytes: u64,
}

impl Suppressed {
    /// Counts one more.
    pub fn add(&mut self, bytes: usize) {
        self.lines += 1;
        self.bytes += bytes as u64;
    }
}

/// The rates of one plugin.
#[derive(Clone, Debug)]
pub struct Meter {
    lines: Bucket,
    bytes: Bucket,
    filled_at: Option<Instant>,
    /// Nothing more is taken at this instant.
    dry_at: Option<Instant>,
    total: Suppressed,
    /// Not yet said.
    unsaid: Suppressed,
    /// When it is due to be said; `Some` while there is something unsaid.
    due: Option<Instant>,
    said_at: Option<Instant>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            lines: Bucket::new(LINES_PER_SECOND, LINES_BURST),
            bytes: Bucket::new(BYTES_PER_SECOND, BYTES_BURST),
            filled_at: None,
            dry_at: None,
            total: Suppressed::default(),
            unsaid: Suppressed::default(),
            due: None,
            said_at: None,
        }
    }
}

impl Meter {
    /// Whether a line of so many bytes is kept. If not, the caller counts it and, before long, tells
    /// [`Meter::note`].
    pub fn admit(&mut self, bytes: usize, now: Instant) -> bool {
        if self.dry_at == Some(now) {
            return false;
        }
        self.refill(now);
        let bytes = bytes as u64;
        if !self.lines.has(1 + RESERVED_LINES) || !self.bytes.has(bytes + RESERVED_BYTES) {
            self.dry_at = Some(now);
            return false;
        }
        self.lines.take(1);
        self.bytes.take(bytes);
        true
    }

    fn refill(&mut self, now: Instant) {
        let filled_at = self.filled_at.unwrap_or(now);
        // Two pipes may bring their instants out of order: time does not run backwards here.
        let elapsed = now.saturating_duration_since(filled_at);
        self.filled_at = Some(filled_at.max(now));
        self.lines.refill(elapsed);
        self.bytes.refill(elapsed);
    }

    /// Takes note of lines that were dropped.
    pub fn note(&mut self, dropped: Suppressed, now: Instant) {
        if dropped.lines == 0 {
            return;
        }
        for sum in [&mut self.total, &mut self.unsaid] {
            sum.lines += dropped.lines;
            sum.bytes += dropped.bytes;
        }
        if self.due.is_none() {
            // Not at once: a flood is said in one sentence, not in one and a second one.
            let again = self.said_at.map_or(now, |at| at.max(now));
            self.due = Some(again + SAY_EVERY);
        }
    }

    /// Asks whether lines that were noted as dropped may be kept after all: only out of what is kept
    /// back for that, and only while that they were dropped has not been said.
    pub fn take_back(&mut self, kept: Suppressed, now: Instant) -> bool {
        self.refill(now);
        let unsaid = kept.lines <= self.unsaid.lines && kept.bytes <= self.unsaid.bytes;
        if !unsaid || !self.lines.has(kept.lines) || !self.bytes.has(kept.bytes) {
            return false;
        }
        self.lines.take(kept.lines);
        self.bytes.take(kept.bytes);
        for sum in [&mut self.total, &mut self.unsaid] {
            sum.lines -= kept.lines;
            sum.bytes -= kept.bytes;
        }
        true
    }

    /// When there is something to say.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What is to be said now, once.
    pub fn say(&mut self, now: Instant) -> Option<Suppressed> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.say_at_once(now)
    }

    /// What has not been said yet, whether it is due or not: the flood is over for certain.
    pub fn say_at_once(&mut self, now: Instant) -> Option<Suppressed> {
        self.due = None;
        let unsaid = std::mem::take(&mut self.unsaid);
        if unsaid.lines == 0 {
            return None;
        }
        self.said_at = Some(now);
        Some(unsaid)
    }

    /// Everything that was ever dropped.
    #[must_use]
    pub fn total(&self) -> Suppressed {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Offers lines of one size at once; how many are kept.
    fn kept(meter: &mut Meter, lines: u64, bytes: usize, now: Instant) -> u64 {
        let mut kept = 0;
        let mut dropped = Suppressed::default();
        for _ in 0..lines {
            if meter.admit(bytes, now) {
                kept += 1;
            } else {
                dropped.add(bytes);
            }
        }
        meter.note(dropped, now);
        kept
    }

    #[test]
    fn a_burst_is_kept_and_then_the_rate() {
        let begin = Instant::now();
        let after = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        for (bytes, burst, rate) in [(10, 980, 200), (4 << 10, 255, 64), (8 << 10, 127, 32)] {
            let mut meter = Meter::default();
            assert_eq!(kept(&mut meter, 5_000, bytes, begin), burst, "{bytes}");
            assert_eq!(kept(&mut meter, 5_000, bytes, after(0.5)), rate / 2);
            assert_eq!(kept(&mut meter, 5_000, bytes, after(1.5)), rate);
            assert_eq!(kept(&mut meter, 5_000, bytes, after(100.0)), burst);
            let all = 20_000 - 2 * burst - rate - rate / 2;
            assert_eq!(meter.total().lines, all);
            assert_eq!(meter.total().bytes, all * bytes as u64);
        }
    }

    #[test]
    fn slow_writers_lose_nothing() {
        let mut meter = Meter::default();
        let mut now = Instant::now();
        for _ in 0..20_000 {
            now += Duration::from_millis(5);
            assert!(meter.admit(1_000, now));
        }
        assert_eq!((meter.total().lines, meter.due()), (0, None));
    }

    #[test]
    fn what_was_dropped_is_said_once_a_second_and_at_the_end() {
        let begin = Instant::now();
        let after = |millis| begin + Duration::from_millis(millis);
        let mut meter = Meter::default();
        let drop = |meter: &mut Meter, millis| {
            let mut dropped = Suppressed::default();
            dropped.add(10);
            meter.note(dropped, after(millis));
        };
        drop(&mut meter, 0);
        drop(&mut meter, 900);
        assert_eq!(meter.say(after(999)), None);
        assert_eq!(meter.due(), Some(after(1_000)));
        let two = Suppressed {
            lines: 2,
            bytes: 20,
        };
        assert_eq!(meter.say(after(1_000)), Some(two));
        assert_eq!((meter.say(after(5_000)), meter.due()), (None, None));
        drop(&mut meter, 1_100);
        assert_eq!(meter.say(after(2_000)), None);
        assert!(meter.say_at_once(after(2_000)).is_some());
        assert_eq!(meter.say_at_once(after(2_000)), None);
        assert_eq!(meter.total().lines, 3);
    }

    #[test]
    fn last_words_have_a_reserve_that_is_filled_again() {
        let begin = Instant::now();
        let mut meter = Meter::default();
        kept(&mut meter, 5_000, 10, begin);
        let last = Suppressed {
            lines: RESERVED_LINES,
            bytes: 200,
        };
        assert!(meter.take_back(last, begin) && !meter.take_back(last, begin));
        let later = begin + Duration::from_millis(100);
        assert!(!meter.admit(10, later), "the reserve comes first");
        assert!(meter.take_back(last, later));
    }

    #[test]
    fn what_was_said_to_be_dropped_stays_dropped() {
        let now = Instant::now();
        let lines = |lines| Suppressed {
            lines,
            bytes: lines,
        };
        let mut meter = Meter::default();
        meter.note(lines(5), now);
        assert!(meter.take_back(lines(2), now) && !meter.take_back(lines(4), now));
        assert_eq!(meter.say_at_once(now), Some(lines(3)));
        assert!(!meter.take_back(lines(1), now));
        assert_eq!(meter.total(), lines(3));
    }

    proptest! {
        /// Whatever comes when: never more than burst and rate allow, and each line is either kept or
        /// counted and said.
        #[test]
        fn the_rates_hold_and_every_line_is_accounted_for(
            writes in prop::collection::vec(
                (0..3_000_u64, 1..2_000_u64, 0..(8_usize << 10)), 1..60
            ),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut meter = Meter::default();
            let (mut taken, mut taken_bytes, mut offered, mut said) = (0, 0, 0, 0);
            let mut said_at: Option<Instant> = None;
            for (wait, lines, bytes) in writes {
                now += Duration::from_millis(wait);
                let count = kept(&mut meter, lines, bytes, now);
                taken += count;
                taken_bytes += count * bytes as u64;
                offered += lines;
                let seconds = (now - begin).as_secs_f64();
                // The end of a flood, now and then.
                let last = Suppressed {
                    lines: meter.unsaid.lines.min(RESERVED_LINES),
                    bytes: 0,
                };
                if wait % 3 == 0 && meter.take_back(last, now) {
                    taken += last.lines;
                }
                prop_assert!(taken as f64 <= LINES_BURST as f64 + seconds * LINES_PER_SECOND as f64);
                prop_assert!(
                    taken_bytes as f64 <= BYTES_BURST as f64 + seconds * BYTES_PER_SECOND as f64
                );
                if let Some(suppressed) = meter.say(now) {
                    said += suppressed.lines;
                    prop_assert!(said_at.is_none_or(|at| now - at >= SAY_EVERY));
                    said_at = Some(now);
                }
            }
            prop_assert_eq!(taken + meter.total().lines, offered);
            said += meter.say_at_once(now).map_or(0, |suppressed| suppressed.lines);
            prop_assert_eq!(said, meter.total().lines);
        }
    }
}
