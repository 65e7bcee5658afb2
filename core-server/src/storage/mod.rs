//! Storage: the only way to durable data. Namespace + key + JSON value.
//!
//! # What it owns
//! The database and all access to it: names and limits of namespaces, keys and values; the one
//! store-wide revision; conditions; atomic writes of several keys; ordered reading by pages. It knows
//! no plugin: who may use which namespace is decided above.
//!
//! # Parts
//! ```text
//! Storage (handle) --- apply --> mailbox --> writer thread ---- commit --> adapter: sqlite | memory
//!        \                                      |  feeds                        ^
//!         '--- get --> cache <------------------'                               |
//!          '-- get, get_many, list_keys, scan --- blocking pool, `readers` at once
//! ```
//! The adapters (`adapter.rs` says what they promise) know nothing of queues, deadlines, caches and
//! tokens; those are the same for every engine. `names`, `json`, `request` and `page_token` are pure.
//!
//! # Invariants
//! - A write is answered after its transaction is on disk. An answered write survives a crash of the
//!   core and, with `durability = "full"`, the loss of power.
//! - The revision rises by one with each write that changes anything; an entry's revision is that of
//!   the write that made it. A `Delete` of what is not there changes nothing, takes no revision and
//!   answers with the store's; so does an `Apply` of nothing but such deletes.
//! - Writes take effect in the order in which [`Storage::apply`], [`Storage::set`] and
//!   [`Storage::delete`] were *called*: the queue is joined before they return their future.
//! - [`Apply::after_commit`] runs after the commit, in order of revisions, before the answer; never if
//!   it did not commit.
//! - A read of one key never goes below a revision that was answered before it began, from memory or
//!   from disk. `get_many` and each page are one snapshot; pages together are not.
//! - Values come back byte for byte.
//! - An entry whose time has passed is absent at once, for reads and for conditions; it is removed, and
//!   watchers hear EXPIRED, soon after. Time is that of the store's own clock (`clock.rs`).
//! - A watcher that reads everything knows every change of its keys in order, or is told what it
//!   missed: marked changes while it is slow, COMPACTED when it cannot go on (`changes.rs`).
//!
//! # Full, slow, dead, stopping
//! - *Full queue* (4,096 writes or 16 MiB): QUEUE_FULL at once, counted. *Full disk*: DISK_LOW for what
//!   finds no room; reads, and deletes as far as the disk allows, go on; it works again when there is
//!   room.
//! - *Slow disk*: writes group; one that is still queued at its deadline is dropped and answered
//!   DEADLINE, not applied; one that is with the engine already, DEADLINE with outcome unknown. Reads
//!   end at [`READ_TIMEOUT`], waiting for a connection included. How many wait is bounded by how many
//!   requests their callers may have in flight. A backup or a check may take longer; there is one at a
//!   time, and it ends early rather than let the engine's log grow without bound.
//! - *Full namespace, full store*: QUOTA_KEYS, QUOTA_BYTES for what would make it larger (`quota.rs`).
//! - *Failed commit* or a panic of the engine: everyone in the batch hears STORAGE_FAILED with
//!   outcome unknown; then the engine is opened anew and checked, the cache emptied, the epoch new. If that
//!   fails, writes are refused (not applied) and it is tried again after 1 s, then ever less often up to
//!   once a minute, when a write comes. After a second panic it is not tried again. Reads go on as
//!   far as the engine can.
//! - *Damage*: CORRUPT; the files stay as they are.
//! - *Stopping*: [`Storage::close`] refuses what is new (SHUTTING_DOWN), writes what is queued, and
//!   closes the engine. Dropping the last handle does the same without waiting.

mod adapter;
mod admin;
mod cache;
mod changes;
mod clock;
mod config;
mod error;
mod lines;
mod mailbox;
mod memory;
mod names;
mod page_token;
mod quota;
mod request;
mod sqlite;
mod stats;
mod watch;
mod writer;

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod failure_tests;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

pub use crate::types::json::{Json, NotJson};
pub use adapter::{
    AdapterInfo, Applied, Check, Commit, CommitFault, CopyFault, Due, Entry, Found, Moment, Op,
    Rejection, Snapshot, StorageAdapter, Stretch, Terms, Upkeep, Weight,
};
pub use admin::{Backup, NamespaceUsage, OwnerUsage};
pub(crate) use admin::{digest, digest_path};
pub use changes::{Change, Cursor, What};
pub use clock::MAX_TTL;
pub use config::{AdapterKind, Config, Durability};
pub use error::{EngineError, Error, Fault, OpenError};
pub use lines::{Exporter, ImportError, Importer};
pub use memory::MemoryAdapter;
pub use names::{Direction, Key, KeyRange, Namespace};
pub use quota::{ENTRY_BYTES, MAX_NAMESPACES, OverQuota, OwnQuota, Owned, Quota, Quotas, Usage};
pub use request::{
    AfterCommit, Apply, DEFAULT_PAGE_SIZE, Deleted, MAX_APPLY_BYTES, MAX_GET_KEYS, MAX_OPS,
    MAX_PAGE_BYTES, MAX_PAGE_SIZE, Page, Query, Written,
};
pub use sqlite::SqliteAdapter;
pub use sqlite::offline;
pub use stats::StatsSnapshot;
pub use watch::{MAX_PREFIXES, Watch, WatchItem, WatchRequest};

use crate::error::Outcome;
use crate::types::{Epoch, Revision};
use cache::{Cache, Lookup};
use clock::StoreClock;
use mailbox::{Claim, Command, Mailbox, Refused};
use page_token::Listing;
use request::{check_keys, single};
use writer::{Shared, Writer};

/// A read that takes longer is ended.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The store. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// One permit per reader. Closed when the store is.
    readers: Arc<Semaphore>,
    /// One backup or check at a time. Closed when the store is.
    long_reader: Arc<Semaphore>,
    max_value_bytes: usize,
    info: AdapterInfo,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.mailbox.close();
    }
}

impl Storage {
    /// Opens the store over an adapter and starts its writer.
    ///
    /// # Errors
    /// [`OpenError`]: bad settings, an engine that cannot say where it stands, no thread.
    pub fn open(adapter: Arc<dyn StorageAdapter>, config: &Config) -> Result<Self, OpenError> {
        Self::open_by(adapter, config, StoreClock::of_the_system())
    }

    fn open_by(
        adapter: Arc<dyn StorageAdapter>,
        config: &Config,
        clock: StoreClock,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let info = adapter.info();
        let revision = adapter.revision().map_err(OpenError::Adapter)?;
        if clock.is_trusted() {
            // What an unset clock wrote before the last end of a core.
            adapter
                .rebase(clock::trusted_from(), clock.now())
                .map_err(|failed| OpenError::Adapter(failed.fault))?;
        }
        let mailbox = Mailbox::new(config.queue_commands, config.queue_bytes);
        let cache = Cache::new(config.cache_bytes);
        let quotas = admin::load_quotas(&*adapter, config).map_err(OpenError::Adapter)?;
        let shared = Shared::new(adapter, mailbox, cache, revision, clock, quotas);
        let shared = Arc::new(shared);
        let writer = Writer::new(Arc::clone(&shared));
        std::thread::Builder::new()
            .name("storage-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io {
                action: "start the writer of",
                path: info.location.clone().into(),
                source,
            })?;
        Ok(Self {
            inner: Arc::new(Inner {
                shared,
                readers: Arc::new(Semaphore::new(config.readers)),
                long_reader: Arc::new(Semaphore::new(1)),
                max_value_bytes: config.max_value_bytes,
                info,
            }),
        })
    }

    /// Reads one key. Absence is no error.
    ///
    /// # Errors
    /// [`Error::Failed`], [`Error::Corrupt`], [`Error::Deadline`], [`Error::ShuttingDown`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn get(&self, namespace: &Namespace, key: &Key) -> Result<Option<Entry>, Error> {
        if self.inner.readers.is_closed() {
            return Err(Error::ShuttingDown);
        }
        let stats = &self.inner.shared.stats;
        // Before the entry is looked for: when the clock is set anew, what was written by the old one is
        // judged by the old one.
        let now = self.inner.shared.clock.now();
        let live = move |entry: Option<Entry>| entry.filter(|entry| !entry.is_expired(now));
        let ticket = match self.inner.shared.cache.lookup(namespace, key) {
            Lookup::Known(entry) => {
                stats.cache_hits.add(1);
                // A caller who only meets the cache would never give way to other tasks.
                tokio::task::coop::consume_budget().await;
                return Ok(live(entry));
            }
            Lookup::Unknown(ticket) => ticket,
        };
        stats.cache_misses.add(1);
        let (namespace, key) = (namespace.clone(), key.clone());
        self.read(move |shared, _| {
            let entry = shared.adapter.get(&namespace, &key)?;
            if let Some(ticket) = ticket {
                shared.cache.fill(ticket, entry.as_ref());
            }
            Ok(live(entry))
        })
        .await
    }

    /// Reads 1 to [`MAX_GET_KEYS`] keys from one snapshot. Together they may have [`MAX_PAGE_BYTES`]; one alone
    /// may be as large as it is.
    ///
    /// # Errors
    /// [`Error::BadField`], [`Error::TooLarge`], and those of [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn get_many(&self, namespace: &Namespace, keys: &[Key]) -> Result<Snapshot, Error> {
        check_keys(keys)?;
        let (namespace, keys) = (namespace.clone(), keys.to_vec());
        let read = self.read(move |shared, deadline| {
            let now = shared.clock.now();
            let mut weight = Weight::new(now, MAX_PAGE_BYTES);
            let adapter = &shared.adapter;
            let mut snapshot = adapter.get_many(&namespace, &keys, weight, deadline)?;
            snapshot.entries.retain(|entry| !entry.is_expired(now));
            let mut too_much = false;
            for entry in &snapshot.entries {
                too_much |= weight.add(entry);
            }
            Ok((snapshot, too_much.then(|| weight.bytes())))
        });
        match read.await? {
            (snapshot, None) => Ok(snapshot),
            (_, Some(size_bytes)) => Err(Error::TooLarge {
                field: "keys",
                what: "what these keys hold is too much at once, ask for fewer: it".to_owned(),
                size_bytes,
                limit_bytes: MAX_PAGE_BYTES,
            }),
        }
    }

    /// Reads a page of keys, in the order of their bytes.
    ///
    /// # Errors
    /// [`Error::BadKey`] (prefix, start), [`Error::BadField`], [`Error::BadPageToken`], and those of
    /// [`Self::get`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn list_keys(&self, query: Query) -> Result<Page<Key>, Error> {
        let stretch = self.stretch(Listing::Keys, &query)?;
        let found = self
            .read(move |shared, deadline| shared.adapter.list_keys(&stretch, deadline))
            .await?;
        Ok(page(Listing::Keys, &query, found, |key| key))
    }

    /// Reads a page of entries, in the order of their keys' bytes. It may end early, before it
    /// passes [`MAX_PAGE_BYTES`].
    ///
    /// # Errors
    /// As [`Self::list_keys`].
    ///
    /// # Cancel safety
    /// Nothing is lost but the answer.
    pub async fn scan(&self, query: Query) -> Result<Page<Entry>, Error> {
        let stretch = self.stretch(Listing::Entries, &query)?;
        let found = self
            .read(move |shared, deadline| shared.adapter.scan(&stretch, deadline))
            .await?;
        Ok(page(Listing::Entries, &query, found, |entry| &entry.key))
    }

    /// Checks, then writes several keys of one namespace: all or nothing, one revision.
    ///
    /// The write joins the queue, or is refused, before this returns; the future only waits for the
    /// answer. So the order of calls is the order of writes, and dropping the future undoes nothing.
    ///
    /// # Errors
    /// [`Error::BadField`], [`Error::TooLarge`], [`Error::DuplicateKey`],
    /// [`Error::RevisionMismatch`], [`Error::QueueFull`], [`Error::DiskLow`], [`Error::Failed`],
    /// [`Error::Corrupt`], [`Error::Deadline`], [`Error::ShuttingDown`]. For `Failed` and `Deadline`
    /// the outcome says whether it may have happened; with the others it did not.
    ///
    /// # Cancel safety
    /// The write goes on.
    pub fn apply(
        &self,
        apply: Apply,
        deadline: Instant,
    ) -> impl Future<Output = Result<Applied, Error>> + Send + use<> {
        let waiting = self.enqueue(apply, deadline);
        async move { waiting?.answer().await }
    }

    /// Writes one key; with `if_revision` only if its revision is this ([`Revision::ABSENT`]: only
    /// if it is absent). Joins the queue at once, as [`Self::apply`].
    ///
    /// # Errors
    /// [`Error::NotJson`], and those of [`Self::apply`].
    ///
    /// # Cancel safety
    /// The write goes on.
    pub fn set(
        &self,
        namespace: &Namespace,
        key: Key,
        value: Bytes,
        if_revision: Option<Revision>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Written, Error>> + Send + use<> {
        self.set_for(namespace, key, value, None, if_revision, deadline)
    }

    /// As [`Self::set`], for a time: afterwards the key is absent. At most [`MAX_TTL`].
    ///
    /// # Errors
    /// Those of [`Self::set`], and [`Error::BadField`] for the time.
    ///
    /// # Cancel safety
    /// The write goes on.
    pub fn set_for(
        &self,
        namespace: &Namespace,
        key: Key,
        value: Bytes,
        ttl: Option<Duration>,
        if_revision: Option<Revision>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Written, Error>> + Send + use<> {
        let waiting = Op::set(key, value)
            .map(|op| op.lasting(ttl))
            .and_then(|op| self.enqueue(single(namespace, op, if_revision), deadline));
        async move {
            let applied = waiting?.answer().await?;
            Ok(Written {
                revision: applied.revision,
                created: applied.existed != [true],
            })
        }
    }

    /// Removes one key; with `if_revision` only if its revision is this. Idempotent without it.
    /// Joins the queue at once, as [`Self::apply`].
    ///
    /// # Errors
    /// Those of [`Self::apply`].
    ///
    /// # Cancel safety
    /// The write goes on.
    pub fn delete(
        &self,
        namespace: &Namespace,
        key: Key,
        if_revision: Option<Revision>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Deleted, Error>> + Send + use<> {
        let waiting = self.enqueue(single(namespace, Op::Delete { key }, if_revision), deadline);
        async move {
            let applied = waiting?.answer().await?;
            Ok(Deleted {
                revision: applied.revision,
                existed: applied.existed == [true],
            })
        }
    }

    /// The revision of the last answered write.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.shared.revision()
    }

    /// The store's clock: by it entries expire.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        self.inner.shared.clock.now()
    }

    /// This incarnation of the store's changes: new at each start and after each reopening.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.shared.epoch()
    }

    /// Which engine, and where its data is.
    #[must_use]
    pub fn info(&self) -> &AdapterInfo {
        &self.inner.info
    }

    /// Watches that live now.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.inner.shared.changes.lock().watchers()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.inner.shared.stats.snapshot()
    }

    /// Refuses what is new, writes what is queued, closes the engine. Idempotent. The time it may
    /// take is the caller's to bound: on a dying disk there is no other bound.
    ///
    /// # Cancel safety
    /// Closing goes on.
    pub async fn close(&self) {
        self.inner.readers.close();
        self.inner.long_reader.close();
        self.inner.shared.adapter.interrupt();
        self.inner.shared.mailbox.close();
        let mut ended = self.inner.shared.ended.subscribe();
        // An error would mean that the sender is gone, and it lives in `shared`.
        drop(ended.wait_for(|ended| *ended).await);
    }

    fn enqueue(&self, apply: Apply, deadline: Instant) -> Result<Waiting, Error> {
        let after_commit_bytes = apply.after_commit_bytes;
        let (commit, after_commit) = apply.check(self.inner.max_value_bytes)?;
        let (answer, receiver) = oneshot::channel();
        let claim = Claim::default();
        let command = Command {
            commit,
            after_commit,
            after_commit_bytes,
            deadline,
            claim: claim.clone(),
            answer,
        };
        let shared = &self.inner.shared;
        match shared.mailbox.push(command) {
            Ok(()) => Ok(Waiting {
                receiver,
                claim,
                deadline,
            }),
            Err(Refused::Full) => {
                shared.stats.queue_full.add(1);
                Err(Error::QueueFull)
            }
            Err(Refused::Closed) => Err(Error::ShuttingDown),
        }
    }

    fn stretch(&self, listing: Listing, query: &Query) -> Result<Stretch, Error> {
        let limit = query.check()?;
        let start = if query.page_token.is_empty() {
            query.start_after.clone()
        } else {
            page_token::read(listing, query)?.to_string()
        };
        let start = (!start.is_empty()).then_some(start);
        Ok(Stretch {
            namespace: query.namespace.clone(),
            range: KeyRange::new(&query.prefix, start.as_deref(), query.direction),
            direction: query.direction,
            limit,
            max_bytes: MAX_PAGE_BYTES,
            now: self.inner.shared.clock.now(),
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Shared, Instant) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let late = |_| Error::Deadline {
            outcome: Outcome::NotApplied,
        };
        let permit = timeout_at(deadline, Arc::clone(&self.inner.readers).acquire_owned())
            .await
            .map_err(late)?
            .map_err(|_| Error::ShuttingDown)?;
        let shared = Arc::clone(&self.inner.shared);
        #[expect(
            clippy::disallowed_methods,
            reason = "engines block; this is where they may"
        )]
        let reading = tokio::task::spawn_blocking(move || {
            // With the reading, not with its caller: who goes away must not let another one in.
            let _permit = permit;
            job(&shared, deadline)
        });
        match timeout_at(deadline, reading).await.map_err(late)? {
            Ok(result) => result.map_err(|fault| fault.into_error(Outcome::NotApplied)),
            Err(panic) => Err(Error::Failed {
                outcome: Outcome::NotApplied,
                source: Arc::new(panic),
            }),
        }
    }
}

/// A write in the queue or with the engine.
struct Waiting {
    receiver: oneshot::Receiver<Result<Applied, Error>>,
    claim: Claim,
    deadline: Instant,
}

#[derive(Debug, thiserror::Error)]
#[error("the storage writer ended")]
struct WriterEnded;

impl Waiting {
    async fn answer(mut self) -> Result<Applied, Error> {
        match timeout_at(self.deadline, &mut self.receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Failed {
                outcome: self.give_up(),
                source: Arc::new(WriterEnded),
            }),
            // It may have been answered in this very moment.
            Err(_) => self.receiver.try_recv().unwrap_or_else(|_| {
                let outcome = self.give_up();
                Err(Error::Deadline { outcome })
            }),
        }
    }

    /// Takes the write back, if the writer does not have it yet.
    fn give_up(&self) -> Outcome {
        if self.claim.take() {
            Outcome::NotApplied
        } else {
            Outcome::Unknown
        }
    }
}

fn page<T>(listing: Listing, query: &Query, found: Found<T>, key: impl Fn(&T) -> &Key) -> Page<T> {
    let next_page_token = match found.items.last() {
        Some(last) if found.more => page_token::write(listing, query, key(last)),
        _ => String::new(),
    };
    Page {
        items: found.items,
        next_page_token,
        revision: found.revision,
    }
}
