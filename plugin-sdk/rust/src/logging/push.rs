//! The lines of a plugin that the core did not start, on their way to the core.
//!
//! Every line goes into a backlog first, which is bounded: when it is full the oldest lines give way,
//! are counted, and the next batch says how many there were. Nobody who logs ever waits. While there is
//! a run, a task of its own sends what is there over a stream of its own (`PluginManager.PushLogs`) and
//! opens that again when it breaks; what was on its way just then may be lost, and nothing is sent
//! twice. The core has rates of its own and counts what it drops.
//!
//! Lines of the transport itself (h2, hyper, tonic, tower) are not sent: sending them would make more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use core_proto::v1::{LogRecord, PluginManagerPushLogsRequest};
use futures_util::Stream;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::backoff::Backoff;
use crate::client::Connection;
use crate::error::{Code, Error};

/// Lines that wait, and their bytes; as much as the core keeps.
const MAX_RECORDS: usize = 1_000;
const MAX_BYTES: usize = 256 << 10;
/// Longest text and fields of one line, each; the core cuts there as well.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Lines of one message.
const BATCH: usize = 100;
/// Longest wait before a broken stream is opened again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Lines that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Short lock: no await inside.
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<LogRecord>,
    bytes: usize,
    /// Dropped since the last batch.
    dropped: u64,
}

/// Whether lines of this target are the transport's.
pub(super) fn is_transport(target: &str) -> bool {
    let root = target.split("::").next().unwrap_or_default();
    ["h2", "hyper", "hyper_util", "tonic", "tower"].contains(&root)
}

fn weight(record: &LogRecord) -> usize {
    let fields = record.fields.iter();
    64 + record.message.len()
        + fields
            .map(|(name, json)| name.len() + json.len())
            .sum::<usize>()
}

impl Backlog {
    /// Takes a line, given as a line of JSON has it.
    pub(super) fn take(&self, mut line: Map<String, Value>) {
        let mut text = |name: &str| match line.remove(name) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (level, mut message) = (text("level"), text("message"));
        message.truncate(message.floor_char_boundary(MAX_LINE_BYTES));
        line.remove("timestamp");
        let mut room = MAX_LINE_BYTES;
        let fields = line.into_iter().filter_map(|(name, value)| {
            let json = value.to_string();
            room = room.checked_sub(name.len() + json.len())?;
            Some((name, json))
        });
        self.push(LogRecord {
            time: Some(SystemTime::now().into()),
            level,
            message,
            fields: fields.collect(),
            ..LogRecord::default()
        });
    }

    fn push(&self, record: LogRecord) {
        let mut waiting = self.waiting.lock();
        waiting.bytes += weight(&record);
        waiting.records.push_back(record);
        while waiting.records.len() > MAX_RECORDS || waiting.bytes > MAX_BYTES {
            let Some(oldest) = waiting.records.pop_front() else {
                break;
            };
            waiting.bytes -= weight(&oldest);
            waiting.dropped += 1;
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// The next lines, as soon as there are any.
    async fn next(&self) -> PluginManagerPushLogsRequest {
        loop {
            let batch = self.batch();
            if !batch.is_empty() {
                return PluginManagerPushLogsRequest { records: batch };
            }
            self.news.notified().await;
        }
    }

    fn batch(&self) -> Vec<LogRecord> {
        let mut waiting = self.waiting.lock();
        let count = waiting.records.len().min(BATCH);
        let mut batch = Vec::with_capacity(count + 1);
        if waiting.dropped > 0 {
            let dropped = std::mem::take(&mut waiting.dropped);
            batch.push(LogRecord {
                time: Some(SystemTime::now().into()),
                level: "warn".to_owned(),
                message: format!("{dropped} lines were dropped before they could be sent"),
                ..LogRecord::default()
            });
        }
        batch.extend(waiting.records.drain(..count));
        waiting.bytes -= batch[batch.len() - count..]
            .iter()
            .map(weight)
            .sum::<usize>();
        batch
    }

    fn stream(self: &Arc<Self>) -> impl Stream<Item = PluginManagerPushLogsRequest> + use<> {
        let backlog = Arc::clone(self);
        futures_util::stream::unfold(backlog, |backlog| async move {
            let batch = backlog.next().await;
            Some((batch, backlog))
        })
    }

    /// Sends what there is, for as long as this is polled. `connection` speaks for a run. Ends by
    /// itself only if this core takes no lines.
    pub(crate) async fn send(self: Arc<Self>, connection: Connection) {
        let mut backoff = Backoff::new(LONGEST_WAIT);
        loop {
            let began = tokio::time::Instant::now();
            let answer = connection.plugin_manager().push_logs(self.stream()).await;
            if let Err(status) = answer {
                let error = Error::from_grpc(&status);
                if matches!(error.code(), Code::Unimplemented | Code::PermissionDenied) {
                    tracing::warn!(%error, "the core takes no log lines of this plugin");
                    return;
                }
                tracing::debug!(%error, "log lines cannot be sent");
            }
            if began.elapsed() > LONGEST_WAIT {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Map<String, Value> {
        let line = serde_json::json!({
            "timestamp": "now", "level": "warn", "message": text, "target": "lamp", "id": 7,
        });
        match line {
            Value::Object(line) => line,
            _ => Map::new(),
        }
    }

    #[test]
    fn a_line_becomes_a_record() {
        let backlog = Backlog::default();
        backlog.take(line("switched"));
        let batch = backlog.batch();
        assert_eq!(
            (batch[0].level.as_str(), batch[0].message.as_str()),
            ("warn", "switched")
        );
        let mut fields: Vec<_> = batch[0].fields.clone().into_iter().collect();
        fields.sort();
        let expected = [("id", "7"), ("target", "\"lamp\"")];
        assert_eq!(
            fields,
            expected.map(|(name, json)| (name.to_owned(), json.to_owned()))
        );
        assert_eq!(backlog.waiting.lock().bytes, 0);
        assert!(backlog.batch().is_empty());
    }

    #[test]
    fn a_full_backlog_drops_the_oldest_and_says_how_many() {
        let backlog = Backlog::default();
        for index in 0..MAX_RECORDS + 5 {
            backlog.take(line(&index.to_string()));
        }
        let batch = backlog.batch();
        assert_eq!(
            batch[0].message,
            "5 lines were dropped before they could be sent"
        );
        assert_eq!((batch[1].message.as_str(), batch.len()), ("5", BATCH + 1));
        assert_eq!(backlog.batch()[0].message, (5 + BATCH).to_string());
        for _ in 0..100 {
            backlog.take(line(&"é".repeat(MAX_LINE_BYTES)));
        }
        let waiting = backlog.waiting.lock();
        assert!(waiting.bytes <= MAX_BYTES && waiting.records.len() > 20);
    }

    #[test]
    fn lines_of_the_transport_stay_here() {
        for (target, expected) in [
            ("h2::codec", true),
            ("tonic", true),
            ("hyper_util::client", true),
            ("h2o", false),
            ("lamp::tonic", false),
        ] {
            assert_eq!(is_transport(target), expected, "{target}");
        }
    }
}
