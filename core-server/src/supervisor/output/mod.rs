//! What a plugin writes: drained always, kept within bounds, followed by whoever wants to.
//!
//! A [`LogBook`] keeps the last 1,000 records or 256 KiB of one plugin. A reader holds a position in
//! it, not a queue of its own: one that is slower than the plugin loses the oldest records and is told
//! how many, and the plugin never waits.

mod line;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;
use tokio_stream::Stream;

use crate::types::Generation;
use line::LineSplitter;

/// Records kept per plugin.
const MAX_RECORDS: usize = 1_000;
/// Bytes kept per plugin, all records together.
const MAX_BYTES: usize = 256 << 10;

/// How much a record matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Finest.
    Trace,
    /// For authors.
    Debug,
    /// Ordinary.
    Info,
    /// Look at it.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    /// As it travels: "warn".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    /// Reads the words that loggers use.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" | "information" | "notice" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" | "err" | "critical" | "fatal" | "panic" => Self::Error,
            _ => return None,
        })
    }
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A remark of the supervisor.
    Core,
}

impl LogStream {
    /// As it travels: "stdout".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Core => "core",
        }
    }
}

/// One line that a plugin wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct LogRecord {
    /// When it was read.
    pub time: SystemTime,
    /// Its level.
    pub level: Level,
    /// Its text, without control characters.
    pub message: String,
    /// The other fields of a structured line, JSON texts by name.
    pub fields: BTreeMap<String, String>,
    /// Where it was written to.
    pub stream: LogStream,
    /// The run that wrote it.
    pub generation: Generation,
}

impl LogRecord {
    fn weight(&self) -> usize {
        let fields = self
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.len() + 48);
        96 + self.message.len() + fields.sum::<usize>()
    }
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct LogQuery {
    /// Go on with new ones.
    pub follow: bool,
    /// Only at or after this time.
    pub since: Option<SystemTime>,
    /// Only this level and above.
    pub level: Option<Level>,
    /// Only the last so many of those kept; 0: all.
    pub tail: usize,
}

impl LogQuery {
    fn matches(&self, record: &LogRecord) -> bool {
        self.since.is_none_or(|since| record.time >= since)
            && self.level.is_none_or(|level| record.level >= level)
    }
}

/// The kept output of one plugin.
#[derive(Debug)]
pub struct LogBook {
    /// Short lock: no await inside.
    ring: Mutex<Ring>,
    /// The sequence number after the newest record.
    end: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    records: VecDeque<LogRecord>,
    bytes: usize,
    /// Sequence number of the oldest record.
    begin: u64,
}

impl Ring {
    fn end(&self) -> u64 {
        self.begin + self.records.len() as u64
    }

    fn from(&self, position: u64) -> impl Iterator<Item = &LogRecord> {
        let skip = position.saturating_sub(self.begin);
        self.records
            .iter()
            .skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }
}

impl Default for LogBook {
    fn default() -> Self {
        Self {
            ring: Mutex::new(Ring::default()),
            end: watch::Sender::new(0),
        }
    }
}

impl LogBook {
    /// Keeps a record; the oldest give way.
    pub fn push(&self, record: LogRecord) {
        let mut ring = self.ring.lock();
        ring.bytes += record.weight();
        ring.records.push_back(record);
        while ring.records.len() > MAX_RECORDS || (ring.bytes > MAX_BYTES && ring.records.len() > 1)
        {
            let Some(oldest) = ring.records.pop_front() else {
                break;
            };
            ring.bytes -= oldest.weight();
            ring.begin += 1;
        }
        let end = ring.end();
        drop(ring);
        self.end.send_replace(end);
    }

    /// The last lines of one run, oldest first.
    #[must_use]
    pub fn last_lines(&self, generation: Generation, count: usize) -> Vec<String> {
        let ring = self.ring.lock();
        let lines = ring.records.iter().rev();
        let lines = lines
            .filter(|record| record.generation == generation)
            .take(count);
        let mut lines: Vec<_> = lines.map(|record| record.message.clone()).collect();
        lines.reverse();
        lines
    }

    /// Reads records; see [`LogQuery`]. Without `follow` the stream ends.
    pub fn read(self: &Arc<Self>, query: LogQuery) -> impl Stream<Item = LogRecord> + Send + use<> {
        let reader = Reader {
            book: Arc::clone(self),
            news: self.end.subscribe(),
            batch: VecDeque::new(),
            position: None,
            query,
        };
        futures_util::stream::unfold(reader, |mut reader| async move {
            reader.next().await.map(|record| (record, reader))
        })
    }
}

struct Reader {
    book: Arc<LogBook>,
    news: watch::Receiver<u64>,
    batch: VecDeque<LogRecord>,
    /// Where to go on; `None` before the first look.
    position: Option<u64>,
    query: LogQuery,
}

impl Reader {
    async fn next(&mut self) -> Option<LogRecord> {
        loop {
            if let Some(record) = self.batch.pop_front() {
                return Some(record);
            }
            // One look is all that was asked for: a plugin that writes on must not make it endless.
            if !self.query.follow && self.position.is_some() {
                return None;
            }
            self.news.borrow_and_update();
            self.look();
            if !self.batch.is_empty() {
                continue;
            }
            if !self.query.follow {
                return None;
            }
            self.news.changed().await.ok()?;
        }
    }

    /// Takes what is new. At most a ring's worth is ever held.
    fn look(&mut self) {
        let ring = self.book.ring.lock();
        let Some(position) = self.position else {
            let matching = ring.from(0).filter(|record| self.query.matches(record));
            self.batch = matching.cloned().collect();
            if self.query.tail > 0 {
                let excess = self.batch.len().saturating_sub(self.query.tail);
                self.batch.drain(..excess);
            }
            self.position = Some(ring.end());
            return;
        };
        let missed = ring.begin.saturating_sub(position);
        let fresh = ring
            .from(position)
            .filter(|record| self.query.matches(record));
        self.batch = fresh.cloned().collect();
        self.position = Some(ring.end());
        if missed > 0 {
            let generation = ring
                .records
                .front()
                .map_or(Generation::default(), |r| r.generation);
            self.batch
                .push_front(remark(format!("{missed} lines were missed"), generation));
        }
    }
}

/// A remark of the supervisor.
#[must_use]
pub fn remark(message: String, generation: Generation) -> LogRecord {
    LogRecord {
        time: SystemTime::now(),
        level: Level::Info,
        message,
        fields: BTreeMap::new(),
        stream: LogStream::Core,
        generation,
    }
}

/// Reads a pipe to its end into a book. Never leaves it unread: nothing here waits but for the pipe.
pub async fn drain(
    mut pipe: impl AsyncRead + Unpin,
    stream: LogStream,
    generation: Generation,
    book: &LogBook,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut lines = LineSplitter::default();
    let mut keep = |line: &[u8], cut: bool| {
        if let Some(record) = line::record(line, cut, stream, generation) {
            book.push(record);
        }
    };
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => lines.push(&buffer[..count], &mut keep),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "a pipe could not be read");
                break;
            }
        }
    }
    lines.finish(&mut keep);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_stream::StreamExt as _;

    use super::*;

    fn record(message: &str, level: Level) -> LogRecord {
        LogRecord {
            level,
            ..remark(message.to_owned(), Generation(1))
        }
    }

    async fn read(book: &Arc<LogBook>, query: LogQuery) -> Vec<String> {
        let records = book.read(query).map(|record| record.message);
        records.collect::<Vec<_>>().await
    }

    #[tokio::test]
    async fn the_newest_thousand_lines_are_kept() {
        let book = Arc::new(LogBook::default());
        for index in 0..1_500 {
            book.push(record(&index.to_string(), Level::Info));
        }
        let kept = read(&book, LogQuery::default()).await;
        assert_eq!((kept.len(), kept[0].as_str()), (1_000, "500"));
        assert_eq!(book.last_lines(Generation(1), 2), ["1498", "1499"]);
        assert!(book.last_lines(Generation(2), 2).is_empty());
    }

    #[tokio::test]
    async fn a_reader_that_does_not_follow_ends_however_much_is_written_meanwhile() {
        let book = Arc::new(LogBook::default());
        book.push(record("before", Level::Info));
        let mut reading = std::pin::pin!(book.read(LogQuery::default()));
        assert_eq!(reading.next().await.expect("a line").message, "before");
        book.push(record("meanwhile", Level::Info));
        assert!(reading.next().await.is_none());
    }

    #[tokio::test]
    async fn bytes_are_bounded_too() {
        let book = Arc::new(LogBook::default());
        for _ in 0..100 {
            book.push(record(&"x".repeat(8 << 10), Level::Info));
        }
        assert!(read(&book, LogQuery::default()).await.len() < 33);
    }

    #[tokio::test]
    async fn queries_choose_by_level_time_and_tail() {
        let book = Arc::new(LogBook::default());
        for (text, level) in [("a", Level::Debug), ("b", Level::Warn), ("c", Level::Error)] {
            book.push(record(text, level));
        }
        let warnings = LogQuery {
            level: Some(Level::Warn),
            ..LogQuery::default()
        };
        assert_eq!(read(&book, warnings).await, ["b", "c"]);
        assert_eq!(
            read(
                &book,
                LogQuery {
                    tail: 1,
                    ..LogQuery::default()
                }
            )
            .await,
            ["c"]
        );
        let later = Some(SystemTime::now() + Duration::from_secs(60));
        assert!(
            read(
                &book,
                LogQuery {
                    since: later,
                    ..LogQuery::default()
                }
            )
            .await
            .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_gets_what_comes_and_is_told_what_it_missed() {
        let book = Arc::new(LogBook::default());
        book.push(record("old", Level::Info));
        let follow = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let mut records = std::pin::pin!(book.read(follow));
        assert_eq!(records.next().await.expect("kept").message, "old");
        let waits = tokio::time::timeout(Duration::from_secs(1), records.next()).await;
        assert!(waits.is_err(), "it waits for more");
        for index in 0..1_100 {
            book.push(record(&index.to_string(), Level::Info));
        }
        assert_eq!(
            records.next().await.expect("told").message,
            "100 lines were missed"
        );
        assert_eq!(records.next().await.expect("then").message, "100");
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
}
