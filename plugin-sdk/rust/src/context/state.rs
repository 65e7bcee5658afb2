//! The StateEngine, as a plugin uses it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use core_proto::v1;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::Streaming;

use super::Ctx;
use crate::arguments;
use crate::backoff::Backoff;
use crate::error::{Code, Error, Result};
use crate::run::Run;

/// Longest wait before a broken watch is opened again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Shared state in memory, gone with the core: modes, flags, what is on. Keys are dotted names, values
/// any JSON up to 64 KiB. A plugin writes `<its name>.>` and reads what it is granted.
#[derive(Clone, Debug)]
pub struct State {
    ctx: Ctx,
}

/// One key of the state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateEntry {
    /// Its key.
    pub key: String,
    /// JSON, as written.
    pub value: Bytes,
    /// For compare-and-set.
    pub revision: u64,
    /// Who wrote it.
    pub writer: String,
    /// When the value last changed.
    pub changed_at: Option<SystemTime>,
    /// When it was last written, even to the same value.
    pub reported_at: Option<SystemTime>,
    /// When it is removed if it is not written again.
    pub expires_at: Option<SystemTime>,
    /// It belongs to a run of `writer`.
    pub owned: bool,
    /// That run has ended, and nobody has written it since: perhaps it is not so any more.
    pub stale: bool,
}

impl StateEntry {
    /// The value as a type of your own.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with the path at which it did not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        arguments::json(&self.value)
    }
}

impl From<v1::StateEntry> for StateEntry {
    fn from(entry: v1::StateEntry) -> Self {
        let time = |time: Option<prost_types::Timestamp>| {
            time.and_then(|time| SystemTime::try_from(time).ok())
        };
        Self {
            key: entry.key,
            value: entry.value,
            revision: entry.revision,
            writer: entry.writer,
            changed_at: time(entry.changed_at),
            reported_at: time(entry.reported_at),
            expires_at: time(entry.expires_at),
            owned: entry.owned,
            stale: entry.stale,
        }
    }
}

impl State {
    pub(super) fn new(ctx: Ctx) -> Self {
        Self { ctx }
    }

    /// Reads a key; `None` if there is none.
    ///
    /// # Errors
    /// `BAD_STATE_KEY`, `NOT_GRANTED`; `INVALID_ARGUMENT` if the value is of another type.
    pub async fn get<T: DeserializeOwned>(&self, key: impl Into<String>) -> Result<Option<T>> {
        let entry = self.entry(key).await?;
        entry.map(|entry| entry.parse()).transpose()
    }

    /// Reads a key with its revision, writer and times.
    ///
    /// # Errors
    /// `BAD_STATE_KEY`, `NOT_GRANTED`.
    pub async fn entry(&self, key: impl Into<String>) -> Result<Option<StateEntry>> {
        let request = v1::StateEngineGetRequest { key: key.into() };
        let answer: v1::StateEngineGetResponse = self.ctx.ask("StateEngine/Get", request).await?;
        Ok(answer.entry.map(StateEntry::from))
    }

    /// Writes a key; returns its revision.
    ///
    /// # Errors
    /// `BAD_STATE_KEY`, `NOT_GRANTED`, `TOO_LARGE`, `STATE_FULL`.
    pub async fn set(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<u64> {
        self.write(key.into(), value, v1::StateEngineSetRequest::default())
            .await
    }

    /// Writes a key that is removed after this time, unless it is written again.
    ///
    /// # Errors
    /// As [`Self::set`]; `BAD_FIELD` for no time at all or more than 10 years.
    pub async fn set_for(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        ttl: Duration,
    ) -> Result<u64> {
        let options = v1::StateEngineSetRequest {
            ttl: arguments::duration(ttl)?,
            ..Default::default()
        };
        self.write(key.into(), value, options).await
    }

    /// Writes a key that belongs to this run: when the run ends, however it ends, others see it as stale,
    /// and after a while it is removed. Write it again, even with the same value, and it is live.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn set_owned(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
    ) -> Result<u64> {
        let options = v1::StateEngineSetRequest {
            owned: true,
            ..Default::default()
        };
        self.write(key.into(), value, options).await
    }

    /// Writes a key only if its revision is this; 0 = only if it is absent.
    ///
    /// # Errors
    /// `ABORTED` `REVISION_MISMATCH` if it is another; else as [`Self::set`].
    pub async fn set_if(
        &self,
        key: impl Into<String>,
        value: &(impl Serialize + ?Sized),
        revision: u64,
    ) -> Result<u64> {
        let options = v1::StateEngineSetRequest {
            if_revision: Some(revision),
            ..Default::default()
        };
        self.write(key.into(), value, options).await
    }

    async fn write(
        &self,
        key: String,
        value: &(impl Serialize + ?Sized),
        options: v1::StateEngineSetRequest,
    ) -> Result<u64> {
        let request = v1::StateEngineSetRequest {
            key,
            value: arguments::encode_json(value)?,
            ..options
        };
        let answer: v1::StateEngineSetResponse = self.ctx.ask("StateEngine/Set", request).await?;
        Ok(answer.revision)
    }

    /// Removes a key; true if it was there.
    ///
    /// # Errors
    /// `BAD_STATE_KEY`, `NOT_GRANTED`.
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool> {
        let request = v1::StateEngineDeleteRequest {
            key: key.into(),
            if_revision: None,
        };
        let answer: v1::StateEngineDeleteResponse =
            self.ctx.ask("StateEngine/Delete", request).await?;
        Ok(answer.existed)
    }

    /// All entries whose key begins with this, in order of key. Each page is a snapshot, the whole is
    /// not.
    ///
    /// # Errors
    /// `NOT_GRANTED`.
    pub async fn list(&self, prefix: impl Into<String>) -> Result<Vec<StateEntry>> {
        let mut request = v1::StateEngineListRequest {
            prefix: prefix.into(),
            page_size: 1000,
            page_token: String::new(),
        };
        let mut entries = Vec::new();
        loop {
            let page: v1::StateEngineListResponse =
                self.ctx.ask("StateEngine/List", request.clone()).await?;
            entries.extend(page.entries.into_iter().map(StateEntry::from));
            if page.next_page_token.is_empty() {
                return Ok(entries);
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Watches all keys that match a pattern: first what is there, then changes.
    ///
    /// # Errors
    /// `BAD_PATTERN`, `NOT_GRANTED`.
    pub async fn watch(&self, pattern: impl Into<String>) -> Result<StateWatch> {
        let mut watch = StateWatch {
            run: Arc::clone(&self.ctx.run),
            request: v1::StateEngineWatchRequest {
                patterns: vec![pattern.into()],
                include_initial: true,
                include_reports: false,
            },
            stream: None,
            ready: VecDeque::new(),
        };
        watch.stream = Some(watch.open().await?);
        Ok(watch)
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateChangeKind {
    /// It was there when the watch began, or began anew after a break.
    Initial,
    /// Written with a new value.
    Set,
    /// Removed.
    Deleted,
    /// The run that it belongs to has ended; its value is as before.
    Stale,
    /// It was stale and was written again with the value it had.
    Live,
    /// Removed because its time has passed.
    Expired,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateChange {
    /// What happened.
    pub kind: StateChangeKind,
    /// The key after it; its value is empty if it was removed.
    pub entry: StateEntry,
    /// The value before it; empty if there was none.
    pub old_value: Bytes,
    /// What caused it; may be empty.
    pub cause: String,
    /// Changes before this one were left out, because the watcher was slow.
    pub conflated: bool,
}

/// A watch of the state. A broken one is opened again and begins with what is there; so nothing that
/// still holds is missed. The core conflates changes per key for a slow reader.
#[must_use = "a watch is read with `next`"]
pub struct StateWatch {
    run: Arc<Run>,
    request: v1::StateEngineWatchRequest,
    stream: Option<Streaming<v1::StateEngineWatchResponse>>,
    ready: VecDeque<StateChange>,
}

impl fmt::Debug for StateWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StateWatch")
            .field("patterns", &self.request.patterns)
            .finish_non_exhaustive()
    }
}

impl StateWatch {
    async fn open(&self) -> Result<Streaming<v1::StateEngineWatchResponse>> {
        let mut client = self.run.streams.state_engine();
        let response = client.watch(self.request.clone()).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|status| Error::from_grpc(&status))
    }

    /// The next change; `None` when the run has ended.
    ///
    /// # Errors
    /// A refusal after a break: a grant was taken away.
    ///
    /// # Cancel safety
    /// A cancelled wait has taken nothing.
    pub async fn next(&mut self) -> Result<Option<StateChange>> {
        let ended = self.run.ended.clone();
        let next = ended.run_until_cancelled(self.next_change()).await;
        next.transpose()
    }

    async fn next_change(&mut self) -> Result<StateChange> {
        let mut backoff = Backoff::new(LONGEST_WAIT);
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            let Some(stream) = &mut self.stream else {
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error)
                        if matches!(
                            error.code(),
                            Code::PermissionDenied | Code::InvalidArgument
                        ) =>
                    {
                        return Err(error);
                    }
                    Err(error) => tokio::time::sleep(backoff.after(&error)).await,
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(message)) => self
                    .ready
                    .extend(message.changes.into_iter().filter_map(change)),
                Ok(None) | Err(_) => {
                    self.stream = None;
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }
}

/// `None` for a kind that this SDK does not know or did not ask for.
fn change(change: v1::StateChange) -> Option<StateChange> {
    use v1::state_change::Kind;
    let kind = match change.kind() {
        Kind::Initial => StateChangeKind::Initial,
        Kind::Set => StateChangeKind::Set,
        Kind::Deleted => StateChangeKind::Deleted,
        Kind::Stale => StateChangeKind::Stale,
        Kind::Live => StateChangeKind::Live,
        Kind::Expired => StateChangeKind::Expired,
        Kind::Reported | Kind::Unspecified => return None,
    };
    Some(StateChange {
        kind,
        entry: change.entry?.into(),
        old_value: change.old_value,
        cause: change.cause,
        conflated: change.conflated,
    })
}
