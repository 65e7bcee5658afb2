//! A meter for HTTP/2 frames that carry nothing: pure.
//!
//! Each of them costs the core some work and its sender nearly none: pings and settings are answered,
//! resets and window updates are looked up, empty DATA and unknown frames are read and forgotten. h2 puts
//! a limit to few of them (version 0.4.20: empty DATA, resets of streams that were not accepted yet).
//! Here all of them are paid from one credit, which grows with time, and with what is written to the
//! peer: window updates and pings that measure a link are answers to that. Requests and data cost
//! nothing here: they have limits of their own. But a header block that goes on and on is ended: h2
//! counts its frames, and so would hold five of the largest for each connection.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::http2 as limits;

/// RFC 9113, section 4.1.
const HEADER_BYTES: usize = 9;
/// Types and flags, RFC 9113, section 6.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const PADDED: u8 = 0x8;

/// Settings are applied to all open streams.
const SETTINGS_COST: u32 = 20;
/// The smallest message of an event or a call in a DATA frame of its own is about twice as long; a
/// client of little thought sends two window updates for each. The answer to a ping has 17 bytes: pings
/// do not pay for themselves.
const WRITTEN_BYTES_PER_FRAME: usize = 32;

/// The peer sent what no honest one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flooding {
    /// More frames that carry nothing than it may.
    #[error("a flood of HTTP/2 frames that carry nothing")]
    EmptyFrames,
    /// A header block that is longer than any.
    #[error("an HTTP/2 header block without end")]
    HeaderBlock,
}

/// Reads the headers of frames as they pass, and keeps the account of one connection.
#[derive(Debug)]
pub(super) struct FrameMeter {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that were read.
    filled: usize,
    /// Bytes of the present frame that are to be passed over.
    left: usize,
    /// Bytes of the present header block.
    block: usize,
    /// Frames that may still come.
    credit: u32,
    /// Bytes written for which no credit was given yet.
    written: usize,
    refilled_at: Instant,
}

impl FrameMeter {
    /// Of a connection that first sends `preface` bytes that are no frames.
    pub(super) fn new(preface: usize, now: Instant) -> Self {
        Self {
            header: [0; HEADER_BYTES],
            filled: 0,
            left: preface,
            block: 0,
            credit: limits::EMPTY_FRAMES_AT_ONCE,
            written: 0,
            refilled_at: now,
        }
    }

    /// Bytes were written to the peer.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        let earned = self.written / WRITTEN_BYTES_PER_FRAME;
        self.written %= WRITTEN_BYTES_PER_FRAME;
        self.earn(u32::try_from(earned).unwrap_or(u32::MAX));
    }

    /// Bytes were read from the peer. `now` is asked for only when the credit is used up.
    ///
    /// # Errors
    /// [`Flooding`].
    pub(super) fn read(
        &mut self,
        mut bytes: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<(), Flooding> {
        loop {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = &bytes[passed..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (HEADER_BYTES - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEADER_BYTES {
                return Ok(());
            }
            self.filled = 0;
            let [high, middle, low, kind, flags, ..] = self.header;
            self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            match kind {
                HEADERS => self.block = self.left,
                CONTINUATION => self.block += self.left,
                _ => {}
            }
            if self.block > limits::HEADER_BLOCK_BYTES {
                return Err(Flooding::HeaderBlock);
            }
            let cost = cost(kind, flags, self.left);
            if cost > 0 {
                self.pay(cost, &now)?;
            }
        }
    }

    fn pay(&mut self, cost: u32, now: impl Fn() -> Instant) -> Result<(), Flooding> {
        if self.credit < cost {
            self.refill(now());
        }
        self.credit = self.credit.checked_sub(cost).ok_or(Flooding::EmptyFrames)?;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let waited = now.saturating_duration_since(self.refilled_at);
        let one = Duration::from_secs(1) / limits::EMPTY_FRAMES_PER_SECOND;
        let earned = u32::try_from(waited.as_nanos() / one.as_nanos()).unwrap_or(u32::MAX);
        // Only whole frames are paid out: the rest of the time counts for the next one.
        self.refilled_at += one.saturating_mul(earned.min(limits::EMPTY_FRAMES_AT_ONCE));
        if earned >= limits::EMPTY_FRAMES_AT_ONCE {
            self.refilled_at = now;
        }
        self.earn(earned);
    }

    fn earn(&mut self, frames: u32) {
        self.credit = self
            .credit
            .saturating_add(frames)
            .min(limits::EMPTY_FRAMES_AT_ONCE);
    }
}

/// What a frame costs.
fn cost(kind: u8, flags: u8, length: usize) -> u32 {
    match kind {
        // The first byte of a padded frame says how much of the rest is padding, which is not looked
        // into here: a padded frame of the greatest padding may be empty.
        DATA if flags & PADDED != 0 && length <= 256 => 1,
        DATA if length > 0 || flags & END_STREAM != 0 => 0,
        HEADERS => 0,
        CONTINUATION if length > 0 => 0,
        SETTINGS => SETTINGS_COST,
        _ => 1,
    }
}

/// The same answer for the bytes as a whole and byte by byte.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let now = Instant::now();
    let mut whole = FrameMeter::new(0, now);
    let at_once = whole.read(bytes, || now);
    let mut pieces = FrameMeter::new(0, now);
    let one_by_one = bytes
        .iter()
        .try_for_each(|byte| pieces.read(std::slice::from_ref(byte), || now));
    assert_eq!(at_once, one_by_one);
    assert_eq!(whole.credit, pieces.credit);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PING: u8 = 0x6;
    const ONE: &[u8; 9] = &[0, 0, 8, PING, 0, 0, 0, 0, 0];

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(length).expect("small").to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + length, 0xaa);
        frame
    }

    /// How many of these frames one may send at once.
    fn at_once(frame: &[u8]) -> u32 {
        let begin = Instant::now();
        let mut meter = FrameMeter::new(0, begin);
        (0..100_000)
            .find(|_| meter.read(frame, || begin).is_err())
            .unwrap_or(u32::MAX)
    }

    #[test]
    fn what_carries_nothing_is_limited_and_what_carries_something_is_not() {
        let all = limits::EMPTY_FRAMES_AT_ONCE;
        let (priority, reset, go_away, window_update, unknown) = (0x2, 0x3, 0x7, 0x8, 0xbe);
        for (what, frame, expected) in [
            ("ping", frame(PING, 0, 8), all),
            ("acknowledged ping", frame(PING, 1, 8), all),
            ("priority", frame(priority, 0, 5), all),
            ("reset", frame(reset, 0, 4), all),
            ("go away", frame(go_away, 0, 8), all),
            ("window update", frame(window_update, 0, 4), all),
            ("unknown", frame(unknown, 0, 300), all),
            ("settings", frame(SETTINGS, 0, 6), all / SETTINGS_COST),
            ("empty data", frame(DATA, 0, 0), all),
            ("padding", frame(DATA, PADDED, 256), all),
            ("empty continuation", frame(CONTINUATION, 0, 0), all),
            ("data", frame(DATA, 0, 1), u32::MAX),
            ("padded data", frame(DATA, PADDED, 257), u32::MAX),
            ("the end", frame(DATA, END_STREAM, 0), u32::MAX),
            ("headers", frame(HEADERS, 0, 3), u32::MAX),
        ] {
            assert_eq!(at_once(&frame), expected, "{what}");
        }
    }

    #[test]
    fn credit_comes_back_with_time_and_with_what_is_written() {
        let begin = Instant::now();
        let mut meter = FrameMeter::new(0, begin);
        let ping = frame(PING, 0, 8);
        let sent = |meter: &mut FrameMeter, now| {
            let count = (0..100_000).take_while(|_| meter.read(&ping, || now).is_ok());
            u32::try_from(count.count()).expect("few")
        };
        assert_eq!(sent(&mut meter, begin), limits::EMPTY_FRAMES_AT_ONCE);
        let one = Duration::from_secs(1) / limits::EMPTY_FRAMES_PER_SECOND;
        // Each refused one has spoiled nothing: the meter is of a connection that would be closed.
        let mut now = begin + one * 10 + one / 2;
        meter = FrameMeter {
            credit: 0,
            refilled_at: begin,
            ..FrameMeter::new(0, begin)
        };
        assert_eq!(sent(&mut meter, now), 10);
        meter.left = 0;
        now += one / 2;
        assert_eq!(sent(&mut meter, now), 1, "halves add up");
        meter.left = 0;
        meter.wrote(3 * WRITTEN_BYTES_PER_FRAME - 1);
        meter.wrote(1);
        assert_eq!(sent(&mut meter, now), 3);
        meter.left = 0;
        now += Duration::from_secs(3_600);
        assert_eq!(sent(&mut meter, now), limits::EMPTY_FRAMES_AT_ONCE);
    }

    #[test]
    fn answers_to_pings_do_not_pay_for_pings() {
        let begin = Instant::now();
        let mut meter = FrameMeter::new(0, begin);
        let ping = frame(PING, 0, 8);
        let flood = (0..1_000_000).find(|_| {
            meter.wrote(HEADER_BYTES + 8);
            meter.read(&ping, || begin).is_err()
        });
        assert!(flood.is_some_and(|count| count < 50_000), "{flood:?}");
    }

    proptest! {
        /// However the bytes are cut, the same frames are seen.
        #[test]
        fn cuts_change_nothing(
            frames in proptest::collection::vec((0_u8..12, any::<u8>(), 0_usize..300), 0..40),
            cuts in proptest::collection::vec(1_usize..64, 1..64),
        ) {
            let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
            let mut bytes = preface.to_vec();
            for (kind, flags, length) in &frames {
                bytes.extend(frame(*kind, *flags, *length));
            }
            let begin = Instant::now();
            let mut whole = FrameMeter::new(preface.len(), begin);
            whole.read(&bytes, || begin).expect("few");
            let mut cut = FrameMeter::new(preface.len(), begin);
            let mut rest = &bytes[..];
            for size in cuts.iter().cycle() {
                let (head, tail) = rest.split_at(rest.len().min(*size));
                cut.read(head, || begin).expect("few");
                rest = tail;
                if rest.is_empty() {
                    break;
                }
            }
            let paid: u32 = frames.iter().map(|(kind, flags, length)| cost(*kind, *flags, *length)).sum();
            prop_assert_eq!(whole.credit, limits::EMPTY_FRAMES_AT_ONCE - paid);
            prop_assert_eq!((cut.credit, cut.left, cut.filled), (whole.credit, 0, 0));
        }
    }

    #[test]
    fn a_header_block_ends_somewhere() {
        let begin = Instant::now();
        let mut meter = FrameMeter::new(0, begin);
        let piece = limits::HEADER_BLOCK_BYTES / 4;
        for _ in 0..100 {
            meter
                .read(&frame(HEADERS, 0, piece), || begin)
                .expect("one");
            for _ in 0..3 {
                let more = frame(CONTINUATION, 0, piece);
                meter.read(&more, || begin).expect("four quarters");
            }
        }
        let end = meter.read(&frame(CONTINUATION, 0, 1), || begin);
        assert_eq!(end, Err(Flooding::HeaderBlock));
    }

    #[test]
    fn a_header_alone_says_enough() {
        let begin = Instant::now();
        let mut meter = FrameMeter::new(0, begin);
        meter.read(ONE, || begin).expect("one");
        assert_eq!(
            (meter.left, meter.credit),
            (8, limits::EMPTY_FRAMES_AT_ONCE - 1)
        );
    }
}
