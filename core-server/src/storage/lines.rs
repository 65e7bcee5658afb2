//! Entries as JSON Lines, out and in again, byte for byte.
//!
//! A line is one JSON object. A value stands in it as it is, unless its text has line breaks: then it
//! stands as a JSON string in `text`.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::Storage;
use super::adapter::{Entry, Op};
use super::clock::MAX_TTL;
use super::error::Error;
use super::names::{Key, Namespace};
use super::quota::{CORE_NAMESPACE, OwnQuota, is_quota};
use super::request::{Apply, MAX_APPLY_BYTES, MAX_OPS, MAX_PAGE_SIZE, Query};
use crate::error::{Classify, ErrorKind, Outcome, Reason};

/// Time for one write of an import.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct LineOut<'a> {
    namespace: &'a str,
    key: &'a str,
    revision: u64,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

#[derive(Deserialize)]
struct LineIn<'a> {
    namespace: String,
    key: String,
    #[serde(default)]
    expires_at: Option<String>,
    /// `null` is a value too.
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(default)]
    text: Option<String>,
}

fn present<'a, 'de: 'a, D>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// The entries of a namespace, or of all.
pub struct Exporter {
    storage: Storage,
    left: VecDeque<Namespace>,
    page_token: String,
    entries: u64,
}

impl Exporter {
    /// Begins. `None`: all namespaces.
    ///
    /// # Errors
    /// Those of [`Storage::namespaces`].
    pub async fn begin(storage: Storage, namespace: Option<Namespace>) -> Result<Self, Error> {
        let left = match namespace {
            Some(namespace) => VecDeque::from([namespace]),
            None => {
                let all = storage.namespaces().await?;
                let mut all: Vec<_> = all.into_iter().map(|used| used.namespace).collect();
                // What bounds the others comes before them, or an import would bound them by the defaults.
                all.sort_by_key(|namespace| namespace.as_str() != CORE_NAMESPACE);
                all.into()
            }
        };
        Ok(Self {
            storage,
            left,
            page_token: String::new(),
            entries: 0,
        })
    }

    /// Entries so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Some whole lines; `None`: there are no more.
    ///
    /// # Errors
    /// Those of [`Storage::scan`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        while let Some(namespace) = self.left.front() {
            let query = Query {
                page_size: u32::try_from(MAX_PAGE_SIZE).unwrap_or(u32::MAX),
                page_token: std::mem::take(&mut self.page_token),
                ..Query::all(namespace.clone())
            };
            let page = self.storage.scan(query).await?;
            let mut lines = Vec::new();
            for entry in &page.items {
                write_line(&mut lines, namespace, entry);
            }
            self.entries += page.items.len() as u64;
            self.page_token = page.next_page_token;
            if self.page_token.is_empty() {
                self.left.pop_front();
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
        Ok(None)
    }
}

fn write_line(lines: &mut Vec<u8>, namespace: &Namespace, entry: &Entry) {
    let text = entry.value.as_str();
    let in_one_line = !text.contains(['\n', '\r']);
    // A stored value is JSON, but for damage: then its text is told all the same. White space around it
    // is no part of what can stand as it is.
    let raw = (in_one_line && text.trim() == text)
        .then(|| serde_json::from_str::<&RawValue>(text).ok())
        .flatten();
    let line = LineOut {
        namespace: namespace.as_str(),
        key: entry.key.as_str(),
        revision: entry.revision.0,
        updated_at: time_to_text(entry.updated_at),
        expires_at: entry.expires_at.and_then(time_to_text),
        value: raw,
        text: raw.is_none().then_some(text),
    };
    serde_json::to_writer(&mut *lines, &line).expect("a Vec takes everything");
    lines.push(b'\n');
}

fn time_to_text(time: SystemTime) -> Option<String> {
    jiff::Timestamp::try_from(time)
        .ok()
        .map(|time| time.to_string())
}

/// Why lines were not written, or not all of them.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// One is no entry.
    #[error("line {line} is no entry: {problem}")]
    BadLine {
        /// Which, counted from 1; blank ones count.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// One is not for whoever sends it.
    #[error("line {line} may not be written: {why}")]
    NotAllowed {
        /// Which, counted from 1.
        line: u64,
        /// Why not.
        why: String,
    },
    /// The store refused it.
    #[error("line {line} was not written; those before it are")]
    Refused {
        /// Which, counted from 1. If the outcome is unknown, it and lines after it may be written all the same.
        line: u64,
        /// Why.
        #[source]
        source: Error,
    },
}

impl Classify for ImportError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadLine { .. } => ErrorKind::InvalidArgument,
            Self::NotAllowed { .. } => ErrorKind::PermissionDenied,
            Self::Refused { source, .. } => source.kind(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::BadLine { .. } => Reason::BadLine,
            Self::NotAllowed { .. } => Reason::NotGranted,
            Self::Refused { source, .. } => source.reason(),
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let (mut facts, line) = match self {
            Self::BadLine { line, .. } | Self::NotAllowed { line, .. } => (Vec::new(), line),
            Self::Refused { line, source } => (source.metadata(), line),
        };
        facts.push(("line", line.to_string()));
        facts
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::BadLine { .. } | Self::NotAllowed { .. } => None,
            Self::Refused { source, .. } => source.retry_after(),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::BadLine { .. } | Self::NotAllowed { .. } => Outcome::NotApplied,
            Self::Refused { source, .. } => source.outcome(),
        }
    }
}

/// Says why a namespace may not be written.
type Permit = Box<dyn Fn(&Namespace) -> Result<(), String> + Send>;

/// Writes lines, over what is there.
pub struct Importer {
    storage: Storage,
    permit: Permit,
    line: u64,
    entries: u64,
    expired: u64,
    namespace: Option<Namespace>,
    /// Of lines that are written together.
    ops: Vec<Op>,
    /// Where each of them stands.
    lines: Vec<u64>,
    keys: HashSet<Key>,
    bytes: usize,
}

impl Importer {
    /// Nothing is written yet. `permit` says whether a namespace may be written, and if not, why. It
    /// is not asked about the quotas, which the core keeps in its own namespace: an export has them.
    #[must_use]
    pub fn new(
        storage: Storage,
        permit: impl Fn(&Namespace) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self {
            storage,
            permit: Box::new(permit),
            line: 0,
            entries: 0,
            expired: 0,
            namespace: None,
            ops: Vec::new(),
            lines: Vec::new(),
            keys: HashSet::new(),
            bytes: 0,
        }
    }

    /// Entries written so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Entries left out so far, because their time has passed.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Writes some whole lines. When it returns all of them are on disk.
    ///
    /// # Errors
    /// [`ImportError`]; the lines before the one that it names are written, and neither it nor those after it,
    /// unless its outcome is unknown. Blank lines are passed by.
    pub async fn take(&mut self, lines: &[u8]) -> Result<(), ImportError> {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.line += 1;
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            match self.read(line) {
                Ok(Some((namespace, op))) => {
                    if !is_quota(&namespace, op.key())
                        && let Err(why) = (self.permit)(&namespace)
                    {
                        self.flush().await?;
                        let line = self.line;
                        return Err(ImportError::NotAllowed { line, why });
                    }
                    self.add(namespace, op).await?;
                }
                Ok(None) => self.expired += 1,
                Err(problem) => {
                    self.flush().await?;
                    let line = self.line;
                    return Err(ImportError::BadLine { line, problem });
                }
            }
        }
        self.flush().await
    }

    /// `None`: its time has passed.
    fn read(&self, line: &[u8]) -> Result<Option<(Namespace, Op)>, String> {
        let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
        let line: LineIn<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let namespace = Namespace::parse(&line.namespace).map_err(|error| error.to_string())?;
        let key = Key::parse(&line.key).map_err(|error| error.to_string())?;
        let value = match (line.value, line.text) {
            (Some(value), None) => Bytes::copy_from_slice(value.get().as_bytes()),
            (None, Some(text)) => Bytes::from(text),
            _ => return Err("one of `value` and `text` is needed".to_owned()),
        };
        if is_quota(&namespace, &key) {
            let quota = serde_json::from_slice::<OwnQuota>(&value);
            quota.map_err(|error| format!("it is no quota: {error}"))?;
        }
        let op = Op::set(key, value).map_err(|error| crate::error::chain(&error))?;
        let Some(expires_at) = line.expires_at else {
            return Ok(Some((namespace, op)));
        };
        let expires_at: jiff::Timestamp = expires_at
            .parse()
            .map_err(|error| format!("`expires_at`: {error}"))?;
        let left = SystemTime::from(expires_at).duration_since(self.storage.now());
        // A clock that is behind would make it longer than anything may last.
        let left = left.ok().filter(|left| !left.is_zero());
        Ok(left.map(|left| (namespace, op.lasting(Some(left.min(MAX_TTL))))))
    }

    async fn add(&mut self, namespace: Namespace, op: Op) -> Result<(), ImportError> {
        let bytes = op.size_bytes();
        let fits = self.ops.len() < MAX_OPS
            && self.bytes + bytes <= MAX_APPLY_BYTES
            && self.namespace.as_ref() == Some(&namespace)
            && !self.keys.contains(op.key());
        if !fits {
            self.flush().await?;
        }
        self.namespace = Some(namespace);
        self.bytes += bytes;
        self.keys.insert(op.key().clone());
        self.ops.push(op);
        self.lines.push(self.line);
        Ok(())
    }

    /// Together, or, if that is refused, one by one, up to the line whose fault it is.
    async fn flush(&mut self) -> Result<(), ImportError> {
        let (ops, lines) = (
            std::mem::take(&mut self.ops),
            std::mem::take(&mut self.lines),
        );
        self.keys.clear();
        self.bytes = 0;
        let (Some(namespace), Some(first)) = (self.namespace.take(), lines.first()) else {
            return Ok(());
        };
        let Err(source) = self.write(&namespace, ops.clone()).await else {
            return Ok(());
        };
        if ops.len() == 1 || source.outcome() != Outcome::NotApplied {
            let line = *first;
            return Err(ImportError::Refused { line, source });
        }
        for (op, line) in ops.into_iter().zip(lines) {
            let written = self.write(&namespace, vec![op]).await;
            written.map_err(|source| ImportError::Refused { line, source })?;
        }
        Ok(())
    }

    async fn write(&mut self, namespace: &Namespace, ops: Vec<Op>) -> Result<(), Error> {
        let count = ops.len() as u64;
        let apply = Apply {
            namespace: namespace.clone(),
            checks: Vec::new(),
            ops,
            after_commit: None,
            after_commit_bytes: 0,
        };
        self.storage
            .apply(apply, Instant::now() + WRITE_TIMEOUT)
            .await?;
        self.entries += count;
        Ok(())
    }
}
