//! The kept output of one plugin, and reading it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::Stream;

use super::rate::{Meter, Suppressed};
use super::{Level, LogQuery, LogRecord, remark};
use crate::types::Generation;

/// Records kept per plugin.
const MAX_RECORDS: usize = 1_000;
/// Bytes kept per plugin, all records together.
const MAX_BYTES: usize = 256 << 10;

/// The kept output of one plugin.
#[derive(Debug)]
pub struct LogBook {
    /// The plugin's name; records that repeat it as a field lose it.
    plugin: String,
    /// Short lock: no await inside.
    ring: Mutex<Ring>,
    /// The sequence number after the newest record.
    end: watch::Sender<u64>,
    /// Short lock: no await inside. Never taken together with `ring`.
    meter: Mutex<Meter>,
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
        Self::new("")
    }
}

impl LogBook {
    /// An empty one for the plugin of this name.
    #[must_use]
    pub fn new(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            ring: Mutex::new(Ring::default()),
            end: watch::Sender::new(0),
            meter: Mutex::default(),
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Whether a line of so many bytes is kept; see [`Meter::admit`].
    #[must_use]
    pub fn admit(&self, bytes: usize, now: Instant) -> bool {
        self.meter.lock().admit(bytes, now)
    }

    /// Takes note of lines that were not admitted, and says what is due to be said.
    pub fn suppress(&self, dropped: Suppressed, generation: Generation, now: Instant) {
        let said = {
            let mut meter = self.meter.lock();
            meter.note(dropped, now);
            meter.say(now)
        };
        self.tell(said, generation);
    }

    /// A flood is over: says what has not been said. `true`: `last` of what was noted is to be kept
    /// after all.
    pub(super) fn end_suppression(
        &self,
        last: Suppressed,
        generation: Generation,
        now: Instant,
    ) -> bool {
        let (keep, said) = {
            let mut meter = self.meter.lock();
            (meter.take_back(last, now), meter.say_at_once(now))
        };
        self.tell(said, generation);
        keep
    }

    /// When [`LogBook::suppress`] has something to say even if nothing more is dropped.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.meter.lock().due()
    }

    /// Lines that were dropped since the core started.
    #[must_use]
    pub fn suppressed_lines(&self) -> u64 {
        self.meter.lock().total().lines
    }

    fn tell(&self, said: Option<Suppressed>, generation: Generation) {
        let Some(Suppressed { lines, bytes }) = said else {
            return;
        };
        let lines = match lines {
            1 => "1 line".to_owned(),
            lines => format!("{lines} lines"),
        };
        let message = format!("{lines} suppressed ({bytes} bytes): written faster than is kept");
        self.push(LogRecord {
            level: Level::Warn,
            ..remark(message, generation)
        });
    }

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

    /// The last lines of one run, oldest first, fields of structured ones included.
    #[must_use]
    pub fn last_lines(&self, generation: Generation, count: usize) -> Vec<String> {
        let ring = self.ring.lock();
        let lines = ring.records.iter().rev();
        let lines = lines
            .filter(|record| record.generation == generation)
            .take(count);
        let mut lines: Vec<_> = lines.map(LogRecord::text).collect();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_stream::StreamExt as _;

    use super::*;
    use std::time::SystemTime;

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
}
