//! A watch of the storage.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use core_proto::v1;
use tonic::Streaming;

use super::Ctx;
use super::storage::StorageEntry;
use crate::backoff::Backoff;
use crate::error::{Code, Error, Result};
use crate::run::Run;

/// Longest wait before a broken watch is opened again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StorageChange {
    /// Forget what was told before: after a break, the core does not know any more what came in between.
    /// What is there follows.
    Restarted,
    /// It was there when the watch began, or began anew.
    Initial(StorageEntry),
    /// Everything that was there has been told.
    SnapshotEnd,
    /// Written.
    Put {
        /// The key after it.
        entry: StorageEntry,
        /// Changes of this key before this one were left out, because the watcher was slow.
        conflated: bool,
    },
    /// Removed.
    Deleted {
        /// Which key.
        key: String,
        /// Of the removal.
        revision: u64,
    },
    /// Removed because its time has passed.
    Expired {
        /// Which key.
        key: String,
        /// Of the removal.
        revision: u64,
    },
}

/// A watch of keys. A broken one is opened again and goes on where it was; where that is not possible
/// (the core was restarted, or the break was long) it begins anew, and says so by
/// [`StorageChange::Restarted`]. So whoever applies everything has exactly what is stored.
#[must_use = "a watch is read with `next`"]
pub struct StorageWatch {
    run: Arc<Run>,
    namespace: String,
    prefix: String,
    cursor: Option<v1::StorageCursor>,
    stream: Option<Streaming<v1::StorageWatchResponse>>,
    ready: VecDeque<StorageChange>,
    /// Nothing was told since it was told to forget.
    forgotten: bool,
    /// It is not to be opened again at once.
    pause: bool,
}

impl fmt::Debug for StorageWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StorageWatch")
            .field("namespace", &self.namespace)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl StorageWatch {
    pub(super) async fn begin(ctx: &Ctx, namespace: String, prefix: String) -> Result<Self> {
        let mut watch = Self {
            run: Arc::clone(&ctx.run),
            namespace,
            prefix,
            cursor: None,
            stream: None,
            ready: VecDeque::new(),
            forgotten: true,
            pause: false,
        };
        watch.stream = Some(watch.open().await?);
        Ok(watch)
    }

    async fn open(&self) -> Result<Streaming<v1::StorageWatchResponse>> {
        let request = v1::StorageWatchRequest {
            namespace: self.namespace.clone(),
            prefixes: Some(self.prefix.clone())
                .filter(|prefix| !prefix.is_empty())
                .into_iter()
                .collect(),
            from: self.cursor,
            include_initial: self.cursor.is_none(),
        };
        let response = self.run.streams.storage().watch(request).await;
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
    pub async fn next(&mut self) -> Result<Option<StorageChange>> {
        let ended = self.run.ended.clone();
        let next = ended.run_until_cancelled(self.next_change()).await;
        next.transpose()
    }

    async fn next_change(&mut self) -> Result<StorageChange> {
        let mut backoff = Backoff::new(LONGEST_WAIT);
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            if self.pause {
                tokio::time::sleep(backoff.next()).await;
                self.pause = false;
            }
            let failure = match &mut self.stream {
                Some(stream) => match stream.message().await {
                    Ok(Some(message)) => {
                        self.take(message);
                        continue;
                    }
                    Ok(None) => None,
                    Err(status) => Some(Error::from_grpc(&status)),
                },
                None => match self.open().await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Some(error),
                },
            };
            self.stream = None;
            match failure {
                Some(error) if error.code() == Code::OutOfRange => {
                    // Once at once; a core that cannot keep up with beginning anew is not pressed.
                    self.pause = self.cursor.is_none();
                    self.cursor = None;
                    self.forget();
                }
                Some(error)
                    if matches!(error.code(), Code::PermissionDenied | Code::InvalidArgument) =>
                {
                    return Err(error);
                }
                // In the middle of the snapshot there is no place to go on from.
                failure => {
                    if self.cursor.is_none() {
                        self.forget();
                    }
                    let wait = match failure {
                        Some(error) => backoff.after(&error),
                        None => backoff.next(),
                    };
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    fn forget(&mut self) {
        if !std::mem::replace(&mut self.forgotten, true) {
            self.ready.push_back(StorageChange::Restarted);
        }
    }

    fn take(&mut self, message: v1::StorageWatchResponse) {
        self.forgotten = false;
        // A resumed watch has no snapshot.
        let tells_end = message.snapshot_end && self.cursor.is_none();
        self.ready
            .extend(message.changes.into_iter().filter_map(change));
        if message.cursor.is_some() {
            self.cursor = message.cursor;
        }
        if tells_end {
            self.ready.push_back(StorageChange::SnapshotEnd);
        }
    }
}

/// `None` for a kind that this SDK does not know.
fn change(change: v1::StorageChange) -> Option<StorageChange> {
    use v1::storage_change::Kind;
    let (kind, conflated) = (change.kind(), change.conflated);
    let entry = StorageEntry::from(change.entry?);
    Some(match kind {
        Kind::Initial => StorageChange::Initial(entry),
        Kind::Put => StorageChange::Put { entry, conflated },
        Kind::Deleted => StorageChange::Deleted {
            key: entry.key,
            revision: entry.revision,
        },
        Kind::Expired => StorageChange::Expired {
            key: entry.key,
            revision: entry.revision,
        },
        Kind::Unspecified => return None,
    })
}
