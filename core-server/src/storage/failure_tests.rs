//! What callers see when the engine fails: an adapter that fails on demand.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::admin::digest_path;
use super::contract_tests::{key, namespace, set, soon};
use super::*;
use crate::error::{Classify as _, Reason};

/// What the next commit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Works,
    /// Fails, and nothing is on disk.
    FailsBefore,
    /// Fails although everything is on disk.
    FailsAfter,
    Panics,
    DiskFull,
    /// Works, and says so for too few items: the writer itself trips over it.
    Miscounts,
}

struct Faulty {
    inner: MemoryAdapter,
    next: Mutex<Next>,
    /// Reopenings that fail before one works.
    stuck: AtomicUsize,
    reopenings: AtomicUsize,
    checkpoint_fails: AtomicBool,
}

impl Faulty {
    fn open() -> (Arc<Self>, Storage) {
        let faulty = Arc::new(Self {
            inner: MemoryAdapter::default(),
            next: Mutex::new(Next::Works),
            stuck: AtomicUsize::new(0),
            reopenings: AtomicUsize::new(0),
            checkpoint_fails: AtomicBool::new(false),
        });
        let adapter: Arc<dyn StorageAdapter> = faulty.clone();
        let storage = Storage::open(adapter, &Config::memory()).expect("opens");
        (faulty, storage)
    }

    fn next(&self, next: Next) {
        *self.next.lock() = next;
    }
}

fn disk_on_fire() -> EngineError {
    Arc::new(std::io::Error::other("disk on fire"))
}

impl StorageAdapter for Faulty {
    fn info(&self) -> AdapterInfo {
        self.inner.info()
    }

    fn revision(&self) -> Result<Revision, Fault> {
        self.inner.revision()
    }

    fn get(&self, namespace: &Namespace, key: &Key) -> Result<Option<Entry>, Fault> {
        self.inner.get(namespace, key)
    }

    fn get_many(
        &self,
        namespace: &Namespace,
        keys: &[Key],
        weight: Weight,
        deadline: Instant,
    ) -> Result<Snapshot, Fault> {
        self.inner.get_many(namespace, keys, weight, deadline)
    }

    fn list_keys(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Key>, Fault> {
        self.inner.list_keys(stretch, deadline)
    }

    fn scan(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Entry>, Fault> {
        if stretch.namespace.as_str() == "core" {
            // What the store reads when it is opened.
            return self.inner.scan(stretch, deadline);
        }
        Err(Fault::Corrupt(disk_on_fire()))
    }

    fn commit(
        &self,
        batch: &[Commit],
        terms: &Terms<'_>,
    ) -> Result<Vec<Result<Applied, Rejection>>, CommitFault> {
        let fails = |outcome| CommitFault {
            fault: Fault::Failed(disk_on_fire()),
            outcome,
        };
        match std::mem::replace(&mut *self.next.lock(), Next::Works) {
            Next::Works => self.inner.commit(batch, terms),
            Next::FailsBefore => Err(fails(Outcome::Unknown)),
            Next::FailsAfter => {
                self.inner.commit(batch, terms)?;
                Err(fails(Outcome::Unknown))
            }
            Next::Panics => panic!("on purpose"),
            Next::Miscounts => {
                self.inner.commit(batch, terms)?;
                Ok(Vec::new())
            }
            Next::DiskFull => Ok(batch
                .iter()
                .map(|_| Err(Rejection::DiskFull(disk_on_fire())))
                .collect()),
        }
    }

    fn namespaces(&self) -> Result<Vec<(Namespace, Usage)>, Fault> {
        self.inner.namespaces()
    }

    fn due(&self, now: SystemTime, limit: usize) -> Result<Due, Fault> {
        self.inner.due(now, limit)
    }

    fn rebase(&self, before: SystemTime, now: SystemTime) -> Result<u64, CommitFault> {
        self.inner.rebase(before, now)
    }

    /// Somebody else's digest comes in between.
    fn backup(&self, to: &Path) -> Result<Revision, CopyFault> {
        std::fs::write(to, "a copy").expect("writes");
        std::fs::write(digest_path(to), "somebody's").expect("writes");
        self.inner.revision().map_err(CopyFault::Failed)
    }

    fn check(&self) -> Result<Vec<String>, CopyFault> {
        self.inner.check()
    }

    fn maintain(&self, _moment: Moment) -> Result<Upkeep, Fault> {
        if self.checkpoint_fails.swap(false, Ordering::SeqCst) {
            return Err(Fault::Failed(disk_on_fire()));
        }
        Ok(Upkeep::Done)
    }

    fn reopen(&self) -> Result<Revision, Fault> {
        self.reopenings.fetch_add(1, Ordering::SeqCst);
        let stuck = self.stuck.load(Ordering::SeqCst);
        if stuck > 0 {
            self.stuck.store(stuck - 1, Ordering::SeqCst);
            return Err(Fault::Failed(disk_on_fire()));
        }
        self.inner.revision()
    }

    fn close(&self) {}
}

async fn text(storage: &Storage) -> Option<String> {
    let entry = storage.get(&namespace("n"), &key("k")).await;
    let entry = entry.expect("reads go on");
    entry.map(|entry| entry.value.as_str().to_owned())
}

fn watch_all(space: &Namespace) -> WatchRequest {
    WatchRequest {
        namespace: space.clone(),
        prefixes: Vec::new(),
        from: None,
        include_initial: false,
    }
}

#[tokio::test]
async fn after_a_failed_commit_the_outcome_is_unknown_and_then_decided() {
    for (next, decided) in [
        (Next::FailsBefore, "1"),
        (Next::FailsAfter, "2"),
        (Next::Panics, "1"),
    ] {
        let (faulty, storage) = Faulty::open();
        let space = namespace("n");
        let epoch = storage.epoch();
        set(&storage, &space, "k", "1").await.expect("works");
        assert_eq!(text(&storage).await.as_deref(), Some("1"));
        let mut watch = storage.watch(watch_all(&space)).expect("open");
        assert!(matches!(watch.next().await, Ok(WatchItem::SnapshotEnd(_))));
        faulty.next(next);
        let told = Arc::new(AtomicUsize::new(0));
        let after_commit = Arc::clone(&told);
        let write = Apply {
            namespace: space.clone(),
            checks: Vec::new(),
            ops: vec![Op::set(key("k"), Bytes::from_static(b"2")).expect("JSON")],
            after_commit: Some(Box::new(move |_| {
                after_commit.fetch_add(1, Ordering::SeqCst);
            })),
            after_commit_bytes: 0,
        };
        let error = storage.apply(write, soon()).await.expect_err("fails");
        assert_eq!(error.reason(), Reason::StorageFailed);
        assert_eq!(error.outcome(), Outcome::Unknown);
        let words = crate::error::chain(&error);
        let cause = ["disk on fire", "on purpose"];
        assert!(cause.iter().any(|cause| words.contains(cause)), "{words}");

        // The next write comes after the reopening, so what is read then is decided.
        set(&storage, &space, "other", "1").await.expect("works");
        assert_eq!(text(&storage).await.as_deref(), Some(decided), "{next:?}");
        assert_ne!(storage.epoch(), epoch, "the changes begin anew");
        let end = tokio::time::timeout(Duration::from_secs(30), watch.next());
        let end = end.await.expect("it ends").expect_err("not silently");
        assert_eq!(end.reason(), Reason::Compacted, "{next:?}");
        assert_eq!(told.load(Ordering::SeqCst), 0, "not told of a commit");
        let stats = storage.stats();
        assert_eq!((stats.failed_commits, stats.reopened), (1, 1));
    }
}

/// A sync that failed in a checkpoint may be one of answered writes.
#[tokio::test]
async fn a_failed_checkpoint_counts_as_a_failed_commit() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    let epoch = storage.epoch();
    faulty.checkpoint_fails.store(true, Ordering::SeqCst);
    set(&storage, &space, "k", "1").await.expect("committed");
    // The checkpoint of the first write comes before this one.
    set(&storage, &space, "k", "2").await.expect("open again");
    assert_ne!(storage.epoch(), epoch, "the changes begin anew");
    let stats = storage.stats();
    assert_eq!((stats.failed_commits, stats.reopened), (1, 1));
}

#[tokio::test]
async fn while_it_cannot_reopen_writes_are_refused_and_reads_go_on() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    set(&storage, &space, "k", "1").await.expect("works");
    faulty.stuck.store(usize::MAX, Ordering::SeqCst);
    faulty.next(Next::FailsBefore);
    let error = set(&storage, &space, "k", "2").await.expect_err("fails");
    assert_eq!(error.outcome(), Outcome::Unknown);
    for _ in 0..3 {
        let error = set(&storage, &space, "k", "3").await.expect_err("refused");
        assert_eq!(error.reason(), Reason::StorageFailed);
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert!(error.retry_after().is_some());
    }
    let tries = faulty.reopenings.load(Ordering::SeqCst);
    assert!(tries <= 2, "not with every write: {tries}");
    assert_eq!(text(&storage).await.as_deref(), Some("1"));

    // Once it can be opened, the next write that finds its time come does so.
    faulty.stuck.store(0, Ordering::SeqCst);
    let works = async {
        let mut outcomes = HashSet::new();
        while let Err(error) = set(&storage, &space, "k", "4").await {
            outcomes.insert(error.outcome() == Outcome::NotApplied);
            // As a caller does who is told when to try again.
            let told = error.retry_after().expect("says when");
            tokio::time::sleep(told).await;
        }
        assert!(!outcomes.contains(&false));
    };
    tokio::time::timeout(Duration::from_secs(30), works)
        .await
        .expect("recovers by itself");
    assert_eq!(text(&storage).await.as_deref(), Some("4"));
}

#[tokio::test]
async fn a_panic_of_the_writer_itself_ends_nothing_but_what_it_had_in_hand() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    faulty.next(Next::Miscounts);
    let error = set(&storage, &space, "k", "1")
        .await
        .expect_err("unanswered");
    assert_eq!(error.reason(), Reason::StorageFailed);
    assert_eq!(error.outcome(), Outcome::Unknown);
    set(&storage, &space, "other", "1").await.expect("goes on");
    assert_eq!(text(&storage).await.as_deref(), Some("1"), "it was on disk");
    assert_eq!(faulty.reopenings.load(Ordering::SeqCst), 1);
    storage.close().await;
}

#[tokio::test]
async fn after_a_second_panic_it_is_not_tried_again() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    for expected in [1, 1] {
        faulty.next(Next::Panics);
        set(&storage, &space, "k", "1").await.expect_err("panics");
        // The answer comes before the reopening; a refused or good write after it.
        drop(set(&storage, &space, "k", "2").await);
        assert_eq!(faulty.reopenings.load(Ordering::SeqCst), expected);
    }
    let error = set(&storage, &space, "k", "3").await.expect_err("refused");
    assert_eq!(error.outcome(), Outcome::NotApplied);
    storage.close().await;
}

#[tokio::test]
async fn a_full_disk_and_damage_have_words_of_their_own() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    faulty.next(Next::DiskFull);
    let error = set(&storage, &space, "k", "1").await.expect_err("full");
    assert_eq!(error.reason(), Reason::DiskLow);
    assert_eq!(error.outcome(), Outcome::NotApplied);
    assert_eq!(storage.stats().disk_low, 1);
    set(&storage, &space, "k", "2").await.expect("room again");
    let error = storage.scan(Query::all(space)).await.expect_err("damaged");
    assert_eq!(error.reason(), Reason::Corrupt);
}

#[tokio::test]
async fn a_copy_without_its_digest_is_removed() {
    let (_faulty, storage) = Faulty::open();
    let directory = tempfile::tempdir().expect("temporary directory");
    let copy = directory.path().join("copy.db");
    let refused = storage.backup(copy.clone(), soon()).await;
    let refused = refused.expect_err("the digest is somebody's");
    assert_eq!(refused.reason(), Reason::FileExists);
    assert!(
        !copy.exists(),
        "it would look like one that was not finished"
    );
    let theirs = std::fs::read(digest_path(&copy)).expect("there");
    assert_eq!(theirs, b"somebody's");
}

#[tokio::test]
async fn dropping_the_last_handle_writes_what_is_queued() {
    let (faulty, storage) = Faulty::open();
    let space = namespace("n");
    let value = Bytes::from_static(b"1");
    let last = storage.set(&space, key("k"), value, None, soon());
    drop(storage);
    last.await.expect("writes");
    assert_eq!(faulty.inner.revision().expect("reads"), Revision(1));
}
