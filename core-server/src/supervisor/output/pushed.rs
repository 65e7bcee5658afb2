//! Records that a plugin sends itself, because nobody reads its pipes.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::time::Instant;

use super::line::{CUT, MAX_LINE_BYTES, clean, leave_out_the_obvious};
use super::rate::Suppressed;
use super::{Level, LogBook, LogRecord, LogStream};
use crate::types::Generation;

/// A record as it was sent; nothing of it is trusted.
#[derive(Clone, Debug, Default)]
pub struct Pushed {
    /// When it was written, by the plugin's clock.
    pub time: Option<SystemTime>,
    /// Its level, in the word of some logger.
    pub level: String,
    /// Its text.
    pub message: String,
    /// JSON texts by name.
    pub fields: BTreeMap<String, String>,
    /// "stdout", or anything else.
    pub stream: String,
}

impl Pushed {
    fn bytes(&self) -> usize {
        let fields = self.fields.iter();
        self.message.len()
            + fields
                .map(|(name, json)| name.len() + json.len())
                .sum::<usize>()
    }

    /// The record that is kept: cleaned, and cut to what a line may have.
    fn record(self, generation: Generation, plugin: &str, now: SystemTime) -> LogRecord {
        let mut message = clean(&self.message);
        let mut cut = message.len() > MAX_LINE_BYTES;
        message.truncate(message.floor_char_boundary(MAX_LINE_BYTES));
        let mut room = MAX_LINE_BYTES;
        let mut fields = BTreeMap::new();
        for (name, json) in self.fields {
            let name = clean(&name);
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&json).is_ok();
            let json = match is_json {
                true => json,
                false => serde_json::Value::from(clean(&json)).to_string(),
            };
            let bytes = name.len() + json.len();
            if bytes > room {
                cut = true;
                continue;
            }
            room -= bytes;
            fields.insert(name, json);
        }
        leave_out_the_obvious(&mut fields, plugin);
        if cut {
            message.push_str(CUT);
        }
        LogRecord {
            time: self.time.map_or(now, |time| time.min(now)),
            level: Level::parse(&self.level).unwrap_or(Level::Info),
            message,
            fields,
            // The supervisor's own remarks cannot be forged.
            stream: match self.stream.as_str() {
                "stdout" => LogStream::Stdout,
                _ => LogStream::Stderr,
            },
            generation,
        }
    }
}

impl LogBook {
    /// Takes records that the plugin sent, as far as its rates allow. How many were kept, and what was
    /// dropped.
    pub fn take_pushed(
        &self,
        records: impl IntoIterator<Item = Pushed>,
        generation: Generation,
        now: Instant,
    ) -> (u64, Suppressed) {
        let (mut kept, mut dropped) = (0, Suppressed::default());
        let clock = SystemTime::now();
        for record in records {
            let bytes = record.bytes();
            // A record is cut to two lines' worth at most: it is not charged for more.
            if dropped.lines == 0 && self.admit(bytes.min(2 * MAX_LINE_BYTES), now) {
                kept += 1;
                self.push(record.record(generation, self.plugin(), clock));
            } else {
                dropped.add(bytes);
            }
        }
        self.suppress(dropped, generation, now);
        (kept, dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio_stream::StreamExt as _;

    use super::super::LogQuery;
    use super::*;

    fn kept(pushed: Pushed) -> LogRecord {
        pushed.record(Generation(4), "lamp", SystemTime::now())
    }

    #[test]
    fn nothing_of_a_pushed_record_is_trusted() {
        let later = SystemTime::now() + Duration::from_secs(3_600);
        let fields = [
            ("n", "7"),
            ("bad", "{oops"),
            ("plugin", "\"lamp\""),
            ("long", &"x".repeat(MAX_LINE_BYTES)),
        ];
        let record = kept(Pushed {
            time: Some(later),
            level: "loud".to_owned(),
            message: format!("\x1b[31mred\x07{}", "é".repeat(MAX_LINE_BYTES)),
            fields: fields
                .map(|(name, json)| (name.to_owned(), json.to_owned()))
                .into(),
            stream: "core".to_owned(),
        });
        assert!(record.time < later, "no record is from the future");
        assert_eq!(
            (record.level, record.stream),
            (Level::Info, LogStream::Stderr)
        );
        assert!(record.message.starts_with("redé") && record.message.ends_with(CUT));
        assert!(record.message.len() <= MAX_LINE_BYTES + CUT.len());
        let fields: Vec<_> = record.fields.into_iter().collect();
        let expected = [("bad", "\"{oops\""), ("n", "7")];
        assert_eq!(
            fields,
            expected.map(|(name, json)| (name.to_owned(), json.to_owned()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn pushed_records_share_the_rates_and_are_all_accounted_for() {
        let book = Arc::new(LogBook::new("lamp"));
        let line = || Pushed {
            message: "hello".to_owned(),
            ..Pushed::default()
        };
        let now = Instant::now();
        let (kept, dropped) = book.take_pushed((0..1_500).map(|_| line()), Generation(1), now);
        assert_eq!((kept, dropped.lines), (980, 520));
        let (kept, dropped) = book.take_pushed([line()], Generation(1), now);
        assert_eq!(
            (kept, dropped.lines),
            (0, 1),
            "stdout and others would be refused as well"
        );
        assert_eq!(book.suppressed_lines(), 521);
        let later = now + Duration::from_secs(1);
        assert_eq!(book.take_pushed([line()], Generation(1), later).0, 1);
        let records: Vec<_> = book.read(LogQuery::default()).collect().await;
        let told = records.last().expect("kept");
        assert_eq!(
            told.message,
            "521 lines suppressed (2605 bytes): written faster than is kept"
        );
        assert_eq!(told.stream, LogStream::Core);
    }
}
