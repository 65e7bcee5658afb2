//! What a plugin writes: drained always, kept within bounds, followed by whoever wants to.
//!
//! Owns: reading a child's pipes (`drain`), cutting them into lines and records (`line`), how much
//! is kept ([`rate`]), and the last of it ([`LogBook`]). Does not own: the core's own log
//! (`telemetry/`), nor how records travel (`grpc/`).
//!
//! Invariants
//! - Reading a pipe waits for nothing but the pipe: a plugin never waits for whoever reads its lines.
//! - A line is either kept or counted as suppressed, never both, never neither; what is suppressed is
//!   not looked at, only counted. An empty line is neither.
//! - All that one plugin writes, by whatever way, goes through one [`rate::Meter`].
//!
//! A [`LogBook`] keeps the last 1,000 records or 256 KiB of one plugin. A reader holds a position in
//! it, not a queue of its own: one that is slower than the plugin loses the oldest records and is told
//! how many.
//!
//! Limits: 200 lines a second (1,000 at once) and 256 KiB a second (1 MiB at once) per plugin, of which
//! 20 lines and 4 KiB are kept back for the last words of a flood; lines
//! of 8 KiB, longer ones are split. In memory per pipe: what was read together (16 KiB), one line, and
//! the end of what was suppressed (4 KiB), from which the last words of a run are taken.

mod book;
mod drain;
mod line;
mod pushed;
pub mod rate;

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::types::Generation;

pub use book::LogBook;
pub use drain::drain;
pub use pushed::Pushed;

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

/// How much a plugin is asked to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// As much as it does by itself.
    #[default]
    Default,
    /// Nothing.
    Off,
    /// This level and above.
    From(Level),
}

impl Verbosity {
    /// As it travels; empty for the default.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::Off => "off",
            Self::From(level) => level.as_str(),
        }
    }

    /// Reads exactly the words of the contract.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let levels = [
            Level::Trace,
            Level::Debug,
            Level::Info,
            Level::Warn,
            Level::Error,
        ];
        [Self::Default, Self::Off]
            .into_iter()
            .chain(levels.map(Self::From))
            .find(|verbosity| verbosity.as_str() == text)
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
    /// Text and fields in one line, as people read it: `switched id=7 room="living room"`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, json) in &self.fields {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(name);
            text.push('=');
            text.push_str(line::bare(json));
        }
        text
    }

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
