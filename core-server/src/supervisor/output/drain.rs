//! Reading a child's pipe to its end.

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

use super::line::{LineSplitter, is_blank, record};
use super::rate::{RESERVED_BYTES, RESERVED_LINES, Suppressed};
use super::{LogBook, LogStream};
use crate::types::Generation;

/// Read together. A pipe holds 64 KiB; 16 KiB at a time drain 100 MB/s for a few per cent of a core.
const BUFFER_BYTES: usize = 16 << 10;
/// The end of what was suppressed, kept for the last words.
const TAIL_BYTES: usize = RESERVED_BYTES as usize;
/// Lines that are kept of it: as many as travel with a failure.
const LAST_WORDS: usize = RESERVED_LINES as usize;

/// Reads a pipe to its end into a book. Never leaves it unread: nothing here waits but for the pipe.
///
/// # Cancel safety
/// Dropped, what was read is kept, an unfinished last line included.
pub async fn drain(
    mut pipe: impl AsyncRead + Unpin,
    stream: LogStream,
    generation: Generation,
    book: &LogBook,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut intake = Intake::new(stream, generation, book);
    loop {
        let due = book.due();
        let say = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let read = tokio::select! {
            // The plugin first: what is to be said is said after each piece as well.
            biased;
            read = pipe.read(&mut buffer) => read,
            () = say => {
                intake.pause(Instant::now());
                continue;
            }
        };
        match read {
            Ok(0) => break,
            Ok(count) => intake.take(&buffer[..count], Instant::now()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "a pipe could not be read");
                break;
            }
        }
    }
}

/// Bytes of one pipe on their way into a book. Dropping it ends the stream: what is left is a line too.
struct Intake<'a> {
    lines: LineSplitter,
    sink: Sink<'a>,
}

struct Sink<'a> {
    stream: LogStream,
    generation: Generation,
    book: &'a LogBook,
    /// Suppressed, and nothing kept behind it: its end, which may be somebody's last words.
    tail: Tail,
}

impl<'a> Intake<'a> {
    fn new(stream: LogStream, generation: Generation, book: &'a LogBook) -> Self {
        Self {
            lines: LineSplitter::default(),
            sink: Sink {
                stream,
                generation,
                book,
                tail: Tail::default(),
            },
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant) {
        let mut dropped = Suppressed::default();
        let sink = &mut self.sink;
        self.lines.push(bytes, &mut |line, cut| {
            sink.line(line, cut, now, &mut dropped);
        });
        if dropped.lines > 0 {
            sink.book.suppress(dropped, sink.generation, now);
        }
    }

    /// Something was suppressed, it is time to say so, and there is nothing to read: the flood is over.
    fn pause(&mut self, now: Instant) {
        self.sink.end_flood(now);
    }
}

impl Sink<'_> {
    fn line(&mut self, line: &[u8], cut: bool, now: Instant, dropped: &mut Suppressed) {
        if is_blank(line) {
            return;
        }
        // Refused once, refused for all that was read together: only counted then.
        if dropped.lines == 0 && self.book.admit(line.len(), now) {
            self.tail.clear();
            self.keep(line, cut);
        } else {
            dropped.add(line.len());
            self.tail.push(line, cut);
        }
    }

    /// What ends a flood is worth more than what stands in its middle: a panic's text, the reason of an
    /// end. Some lines of the rates are kept back for it.
    fn end_flood(&mut self, now: Instant) {
        let tail = std::mem::take(&mut self.tail);
        if self
            .book
            .end_suppression(tail.count(), self.generation, now)
        {
            tail.lines().for_each(|(line, cut)| self.keep(line, cut));
        }
    }

    fn keep(&self, line: &[u8], cut: bool) {
        let plugin = self.book.plugin();
        if let Some(record) = record(line, cut, self.stream, self.generation, plugin) {
            self.book.push(record);
        }
    }
}

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut dropped = Suppressed::default();
        let lines = std::mem::take(&mut self.lines);
        let sink = &mut self.sink;
        lines.finish(&mut |line, cut| sink.line(line, cut, now, &mut dropped));
        sink.book.suppress(dropped, sink.generation, now);
        sink.end_flood(now);
    }
}

/// The last lines that were suppressed, in a ring of bytes that is never allocated before it is needed.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    /// Where each line ends in `bytes`, and whether it goes on.
    ends: Vec<(usize, bool)>,
}

impl Tail {
    fn push(&mut self, line: &[u8], cut: bool) {
        if line.len() > TAIL_BYTES {
            // A piece of something endless: nobody's last words.
            return self.clear();
        }
        if self.bytes.len() + line.len() > 2 * TAIL_BYTES || self.ends.len() == 4 * LAST_WORDS {
            self.trim();
        }
        self.bytes.extend_from_slice(line);
        self.ends.push((self.bytes.len(), cut));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Where the last lines begin: at most [`LAST_WORDS`] of them and [`TAIL_BYTES`].
    fn first(&self) -> usize {
        let room = self.bytes.len().saturating_sub(TAIL_BYTES);
        let few = self.ends.len().saturating_sub(LAST_WORDS);
        let fits = |index: &usize| self.begin(*index) >= room;
        (few..self.ends.len()).find(fits).unwrap_or(self.ends.len())
    }

    fn begin(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before].0)
    }

    /// Forgets what is too old. Rare: once in many lines, so that each costs one copy of itself.
    fn trim(&mut self) {
        let first = self.first();
        let begin = self.begin(first);
        self.bytes.drain(..begin);
        self.ends.drain(..first);
        self.ends.iter_mut().for_each(|(end, _)| *end -= begin);
    }

    fn lines(&self) -> impl Iterator<Item = (&[u8], bool)> {
        (self.first()..self.ends.len()).map(|index| {
            let (end, cut) = self.ends[index];
            (&self.bytes[self.begin(index)..end], cut)
        })
    }

    fn count(&self) -> Suppressed {
        let mut count = Suppressed::default();
        self.lines().for_each(|(line, _)| count.add(line.len()));
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio_stream::StreamExt as _;

    use super::super::{Level, LogQuery, LogRecord};
    use super::*;

    async fn records(book: &Arc<LogBook>) -> Vec<LogRecord> {
        book.read(LogQuery::default()).collect().await
    }

    /// Records of the plugin, not of the supervisor.
    fn own(records: &[LogRecord]) -> Vec<&str> {
        let own = records
            .iter()
            .filter(|record| record.stream != LogStream::Core);
        own.map(|record| record.message.as_str()).collect()
    }

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end_and_a_last_line_needs_no_newline() {
        let book = Arc::new(LogBook::default());
        let bytes = b"one\r\n{\"level\":\"error\",\"msg\":\"two\",\"n\":2}\nthree".as_slice();
        drain(bytes, LogStream::Stderr, Generation(3), &book).await;
        let records: Vec<_> = book.read(LogQuery::default()).collect().await;
        let shown: Vec<_> = records
            .iter()
            .map(|r| (r.message.as_str(), r.level))
            .collect();
        let expected = [
            ("one", Level::Warn),
            ("two", Level::Error),
            ("three", Level::Warn),
        ];
        assert_eq!(shown, expected);
        assert_eq!(records[1].fields.get("n").map(String::as_str), Some("2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_counted_exactly_and_its_last_words_are_kept() {
        let book = Arc::new(LogBook::default());
        let bytes: String = (0..50_000).map(|n| format!("line {n}\n\n")).collect();
        drain(bytes.as_bytes(), LogStream::Stdout, Generation(1), &book).await;
        let records = records(&book).await;
        let kept = own(&records);
        // The ring holds 1,000: the oldest gave way to the remark and to the last words.
        let told = records.iter().filter(|r| r.stream == LogStream::Core);
        let told: Vec<_> = told.map(|record| record.message.as_str()).collect();
        let suppressed = 50_000 - 1_000;
        assert_eq!(book.suppressed_lines(), suppressed);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with(&format!("{suppressed} lines suppressed (")));
        let last: Vec<_> = (50_000 - LAST_WORDS..50_000)
            .map(|n| format!("line {n}"))
            .collect();
        assert_eq!(kept[kept.len() - LAST_WORDS..], last);
        assert_eq!(book.last_lines(Generation(1), LAST_WORDS), last);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_end_counts_its_pieces() {
        let book = Arc::new(LogBook::default());
        let pieces = 6_400;
        let bytes = vec![b'x'; pieces * (8 << 10)];
        drain(bytes.as_slice(), LogStream::Stdout, Generation(1), &book).await;
        let kept = own(&records(&book).await).len();
        // 1 MiB at once are 127 pieces and the reserve, of which the ring keeps the last 256 KiB.
        assert!((28..=32).contains(&kept), "{kept}");
        assert_eq!(book.suppressed_lines(), pieces as u64 - 127);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_that_falls_silent_is_said_a_second_later() {
        let book = Arc::new(LogBook::default());
        let (mut pipe, end) = tokio::io::duplex(64 << 10);
        let draining = Arc::clone(&book);
        let drained = async move { drain(end, LogStream::Stdout, Generation(1), &draining).await };
        let began = Instant::now();
        let look = async {
            pipe.write_all("x\n".repeat(1_200).as_bytes())
                .await
                .expect("it is read");
            let follow = LogQuery {
                follow: true,
                level: Some(Level::Warn),
                ..LogQuery::default()
            };
            let mut told = std::pin::pin!(book.read(follow));
            let told = told.next().await.expect("it is said");
            assert_eq!(
                told.message,
                "200 lines suppressed (200 bytes): written faster than is kept"
            );
            assert!(began.elapsed() >= Duration::from_secs(1));
            // Nothing is said twice.
            tokio::time::sleep(Duration::from_secs(10)).await;
            drop(pipe);
        };
        tokio::join!(drained, look);
        assert_eq!(book.suppressed_lines(), 200);
        let records = records(&book).await;
        assert_eq!(
            own(&records[records.len() - LAST_WORDS..]).len(),
            LAST_WORDS
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_kept_when_nobody_waits_for_the_end() {
        let book = Arc::new(LogBook::default());
        let (mut pipe, end) = tokio::io::duplex(1 << 10);
        pipe.write_all(b"whole\nhalf").await.expect("room");
        let wait = drain(end, LogStream::Stdout, Generation(1), &book);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), wait)
                .await
                .is_err()
        );
        assert_eq!(own(&records(&book).await), ["whole", "half"]);
    }

    proptest! {
        #[test]
        fn the_tail_holds_the_last_lines(
            lengths in prop::collection::vec(1..700_usize, 0..200),
        ) {
            let mut tail = Tail::default();
            for (index, length) in lengths.iter().enumerate() {
                tail.push(&vec![u8::try_from(index % 251).expect("small"); *length], index % 2 == 0);
                prop_assert!(tail.bytes.len() <= 2 * TAIL_BYTES && tail.ends.len() <= 4 * LAST_WORDS);
            }
            let held: Vec<_> = tail.lines().map(|(line, cut)| (line.to_vec(), cut)).collect();
            let mut expected = Vec::new();
            let mut bytes = 0;
            for (index, length) in lengths.iter().enumerate().rev().take(LAST_WORDS) {
                bytes += length;
                if bytes > TAIL_BYTES {
                    break;
                }
                let line = vec![u8::try_from(index % 251).expect("small"); *length];
                expected.push((line, index % 2 == 0));
            }
            expected.reverse();
            prop_assert_eq!(held, expected);
        }
    }
}
