//! The writer: one thread that takes what is queued, commits it as one batch and tells everyone.
//!
//! Grouping is natural: nothing ever waits for company. While one batch is being synced the next one
//! gathers in the mailbox, so a lone caller gets the latency of one commit and many callers share it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::adapter::{
    Applied, Commit, CommitFault, Entry, Moment, Op, Rejection, StorageAdapter, Terms, Upkeep,
};
use super::cache::{Cache, Place};
use super::changes::{Change, Changes, Noted, RING_CHANGES, What};
use super::clock::{StoreClock, trusted_from};
use super::error::{EngineError, Error, Fault};
use super::mailbox::{Command, Mailbox, Taken};
use super::names::{Key, Namespace};
use super::quota::{CORE_NAMESPACE, Quotas};
use super::request::{AfterCommit, MAX_OPS};
use super::stats::Stats;
use crate::error::{Outcome, chain};
use crate::types::json::Json;
use crate::types::{Epoch, Revision};

/// Nothing asked of the writer for so long counts as idle.
const QUIET: Duration = Duration::from_millis(100);
/// After a failed reopening the next one waits so long, then twice as long, up to [`MAX_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Most entries that expire in one transaction: others' writes get their turn in between.
const SWEEP_ENTRIES: usize = 512;
/// A sweep that failed is tried again after this.
const SWEEP_AGAIN: Duration = Duration::from_secs(10);
/// How often a clock that is not set yet is looked at.
const CLOCK_LOOK: Duration = Duration::from_secs(5);

/// What the handle, the writer and the readers share.
pub(super) struct Shared {
    pub(super) adapter: Arc<dyn StorageAdapter>,
    pub(super) mailbox: Mailbox,
    pub(super) cache: Cache,
    pub(super) stats: Stats,
    pub(super) clock: StoreClock,
    /// Read by the writer at each commit, written by it when it commits a quota.
    pub(super) quotas: RwLock<Quotas>,
    /// Guards the ring of changes and its watchers; held to note one batch or to take one message.
    pub(super) changes: Mutex<Changes>,
    /// Of the last answered write. Written by the writer, before it answers.
    revision: AtomicU64,
    /// Written by the writer when it has reopened the engine.
    epoch: AtomicU64,
    /// The writer has ended and the engine is closed.
    pub(super) ended: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(
        adapter: Arc<dyn StorageAdapter>,
        mailbox: Mailbox,
        cache: Cache,
        revision: Revision,
        clock: StoreClock,
        quotas: Quotas,
    ) -> Self {
        let epoch = Epoch::random();
        Self {
            adapter,
            mailbox,
            cache,
            stats: Stats::default(),
            clock,
            quotas: RwLock::new(quotas),
            changes: Mutex::new(Changes::new(epoch, revision, RING_CHANGES)),
            revision: AtomicU64::new(revision.0),
            epoch: AtomicU64::new(epoch.0),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }
}

/// What remains of a command once its commit has gone to the engine.
struct Reply {
    after_commit: Option<AfterCommit>,
    answer: oneshot::Sender<Result<Applied, Error>>,
}

impl Reply {
    fn send(self, result: Result<Applied, Error>) {
        // Its caller may have gone; the write stands all the same.
        drop(self.answer.send(result));
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    broken: Option<Broken>,
    panics: u32,
    /// By the store's clock: nothing expires before. None: nothing ever does.
    next_expiry: Option<SystemTime>,
}

/// The engine failed and could not be opened anew.
struct Broken {
    fault: Fault,
    /// None: never again.
    next_try: Option<Instant>,
    delay: Duration,
}

/// However the thread ends, those who wait hear of it.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.mailbox.abandon();
        let wakers = self.0.changes.lock().close();
        wakers.into_iter().for_each(Waker::wake);
        self.0.ended.send_replace(true);
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            broken: None,
            panics: 0,
            next_expiry: None,
        }
    }

    /// Until the mailbox is closed and empty; then closes the engine.
    pub(super) fn run(mut self) {
        let end = End(Arc::clone(&self.shared));
        let mut upkeep = Upkeep::Done;
        self.next_expiry = Some(self.shared.clock.now());
        self.sweep();
        loop {
            // A panic anywhere costs what was in hand, and is treated as one of the engine; it ends the
            // writer no more than that does.
            match catch_unwind(AssertUnwindSafe(|| self.turn(&mut upkeep))) {
                Ok(true) => {}
                Ok(false) => break,
                Err(panic) => {
                    self.panics += 1;
                    let fault = Fault::Failed(panicked(&*panic));
                    let outcome = Outcome::Unknown;
                    self.fail(Vec::new(), CommitFault { fault, outcome });
                }
            }
        }
        self.shared.adapter.close();
        drop(end);
    }

    /// Takes and does what there is to do. False: nothing will come any more.
    fn turn(&mut self, upkeep: &mut Upkeep) -> bool {
        match self.shared.mailbox.take(self.patience(*upkeep)) {
            Taken::Batch(batch) => {
                // First the time, or what was written before it would be judged by a clock that
                // these writes were not made by.
                self.look_at_the_clock();
                self.write(batch);
                *upkeep = self.maintain(Moment::Busy);
            }
            Taken::Quiet => *upkeep = self.maintain(Moment::Idle),
            Taken::Closed => return false,
        }
        self.look_at_the_clock();
        self.sweep();
        true
    }

    fn look_at_the_clock(&mut self) {
        if let Some(wall) = self.shared.clock.known_since() {
            self.learn_the_time(wall);
        }
    }

    /// How long to wait for a write. Without anything to do the thread sleeps for good: no wake-ups.
    fn patience(&self, upkeep: Upkeep) -> Option<Duration> {
        let now = self.shared.clock.now();
        let expiry = self.next_expiry.map(|at| {
            let left = at.duration_since(now).unwrap_or_default();
            // Short of it by a rounding would be once more around.
            left + Duration::from_millis(1)
        });
        let look = (!self.shared.clock.is_trusted()).then_some(CLOCK_LOOK);
        let quiet = (upkeep == Upkeep::WantsIdle).then_some(QUIET);
        [expiry, look, quiet].into_iter().flatten().min()
    }

    /// Removes entries whose time has passed, if there may be any.
    fn sweep(&mut self) {
        let now = self.shared.clock.now();
        if self.broken.is_some() || self.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        let due = match self.shared.adapter.due(now, SWEEP_ENTRIES) {
            Ok(due) => due,
            Err(fault) => {
                tracing::warn!(error = %chain(&fault), "expired entries were not looked for");
                self.next_expiry = Some(now + SWEEP_AGAIN);
                return;
            }
        };
        self.next_expiry = due.next;
        let mut by_namespace: BTreeMap<Namespace, Vec<Key>> = BTreeMap::new();
        for (namespace, key) in due.expired {
            by_namespace.entry(namespace).or_default().push(key);
        }
        let mut commits = Vec::new();
        for (namespace, keys) in &by_namespace {
            commits.extend(keys.chunks(MAX_OPS).map(|keys| {
                Commit {
                    namespace: namespace.clone(),
                    checks: Vec::new(),
                    ops: keys
                        .iter()
                        .map(|key| Op::Expire { key: key.clone() })
                        .collect(),
                }
            }));
        }
        if !commits.is_empty() && !self.commit(&commits, None) {
            self.next_expiry = Some(now + SWEEP_AGAIN);
        }
    }

    /// The wall clock is set now: shifts what the unset one wrote, and only then sets the store's.
    /// Nobody sees anything expired in between. If it fails, the next look tries again.
    fn learn_the_time(&mut self, wall: SystemTime) {
        if self.broken.is_some() {
            return;
        }
        match self.shared.adapter.rebase(trusted_from(), wall) {
            Ok(entries) => {
                tracing::info!(entries, "the wall clock is set now; expiries are shifted")
            }
            Err(fault) => {
                self.fail(Vec::new(), fault);
                return;
            }
        }
        // Entries in memory have the old times.
        self.shared.cache.clear();
        self.shared.clock.set_to(wall);
        self.next_expiry = Some(wall);
    }

    fn maintain(&mut self, moment: Moment) -> Upkeep {
        if self.broken.is_some() {
            return Upkeep::Done;
        }
        match self.shared.adapter.maintain(moment) {
            Ok(upkeep) => upkeep,
            Err(fault) => {
                let outcome = Outcome::Unknown;
                self.fail(Vec::new(), CommitFault { fault, outcome });
                Upkeep::Done
            }
        }
    }

    fn write(&mut self, batch: Vec<Command>) {
        let now = Instant::now();
        let mut commits = Vec::with_capacity(batch.len());
        let mut replies = Vec::with_capacity(batch.len());
        for command in batch {
            if !command.claim.take() {
                // Its caller gave it up and has its answer.
                self.shared.stats.expired.add(1);
                continue;
            }
            let reply = Reply {
                after_commit: command.after_commit,
                answer: command.answer,
            };
            if command.deadline <= now {
                self.shared.stats.expired.add(1);
                reply.send(Err(Error::Deadline {
                    outcome: Outcome::NotApplied,
                }));
                continue;
            }
            commits.push(command.commit);
            replies.push(reply);
        }
        if commits.is_empty() {
            return;
        }
        if let Err(fault) = self.mend(now) {
            for reply in replies {
                reply.send(Err(fault.clone().into_error(Outcome::NotApplied)));
            }
            return;
        }
        self.commit(&commits, Some(replies));
    }

    /// Commits a batch and tells everyone; without replies it is the store's own. Whether all of it
    /// took effect.
    fn commit(&mut self, commits: &[Commit], replies: Option<Vec<Reply>>) -> bool {
        let shared = Arc::clone(&self.shared);
        shared.cache.begin(commits.iter().flat_map(places));
        let quotas = shared.quotas.read();
        let terms = Terms {
            at: shared.clock.stamp(),
            now: shared.clock.now(),
            quotas: &quotas,
        };
        let adapter = &shared.adapter;
        let fault = match catch_unwind(AssertUnwindSafe(|| adapter.commit(commits, &terms))) {
            Ok(Ok(results)) => {
                let all = results.iter().all(Result::is_ok);
                self.note_expiries(commits, &terms);
                let committed = Committed::new(commits, &results, &terms);
                drop(quotas);
                self.settle(commits, replies, results, committed);
                return all;
            }
            Ok(Err(fault)) => fault,
            Err(panic) => {
                self.panics += 1;
                let fault = Fault::Failed(panicked(&*panic));
                let outcome = Outcome::Unknown;
                CommitFault { fault, outcome }
            }
        };
        drop(quotas);
        self.fail(replies.unwrap_or_default(), fault);
        false
    }

    fn note_expiries(&mut self, commits: &[Commit], terms: &Terms<'_>) {
        let expiries = commits.iter().flat_map(|commit| &commit.ops);
        let expiries = expiries.filter_map(|op| match op {
            Op::Set { ttl, .. } => terms.expiry(*ttl),
            Op::Delete { .. } | Op::Expire { .. } => None,
        });
        self.next_expiry = expiries.chain(self.next_expiry).min();
    }

    /// The batch is on disk: cache, revision, watchers, then each one's own afterwards and answer.
    fn settle(
        &self,
        commits: &[Commit],
        replies: Option<Vec<Reply>>,
        results: Vec<Result<Applied, Rejection>>,
        committed: Committed,
    ) {
        let stats = &self.shared.stats;
        stats.batches.add(1);
        self.shared.cache.finish(committed.entries());
        committed.learn_quotas(&self.shared.quotas);
        let last = results.iter().flatten().map(|applied| applied.revision.0);
        if let Some(last) = last.max() {
            self.shared.revision.fetch_max(last, Ordering::AcqRel);
        }
        let expired = committed.changes.iter();
        let expired = expired.filter(|noted| noted.change.what == What::Expired);
        stats.expirations.add(expired.count() as u64);
        let revision = self.shared.revision();
        let wakers = self.shared.changes.lock().note(committed.changes, revision);
        wakers.into_iter().for_each(Waker::wake);
        let Some(replies) = replies else {
            return;
        };
        assert_eq!(results.len(), replies.len(), "one answer for each item");
        for ((reply, result), commit) in replies.into_iter().zip(results).zip(commits) {
            match result {
                Ok(applied) => {
                    stats.commits.add(1);
                    stats.ops.add(applied.existed.len() as u64);
                    self.tell(reply, applied);
                }
                Err(Rejection::RevisionMismatch { key, current }) => {
                    stats.mismatches.add(1);
                    let key = key.to_string();
                    reply.send(Err(Error::RevisionMismatch { key, current }));
                }
                Err(Rejection::DiskFull(source)) => {
                    stats.disk_low.add(1);
                    reply.send(Err(Error::DiskLow { source }));
                }
                Err(Rejection::OverQuota(over)) => {
                    stats.over_quota.add(1);
                    let namespace = commit.namespace.to_string();
                    reply.send(Err(Error::OverQuota { namespace, over }));
                }
            }
        }
    }

    fn tell(&self, mut reply: Reply, applied: Applied) {
        if let Some(after_commit) = reply.after_commit.take() {
            let revision = applied.revision;
            // Foreign code: its panic must not take the answer, or the writer, with it.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| after_commit(revision))) {
                let cause = panicked(&*panic);
                tracing::error!(%revision, error = %cause, "what follows a commit failed");
            }
        }
        reply.send(Ok(applied));
    }

    /// The batch failed: answers, then opens the engine anew, so that what is unknown gets decided.
    fn fail(&mut self, replies: Vec<Reply>, CommitFault { fault, outcome }: CommitFault) {
        self.shared.stats.failed_commits.add(1);
        tracing::error!(
            error = %chain(&fault),
            ?outcome,
            writes = replies.len(),
            "a storage transaction failed; the engine is opened anew"
        );
        for reply in replies {
            reply.send(Err(fault.clone().into_error(outcome)));
        }
        let now = Instant::now();
        self.broken = Some(Broken {
            fault,
            next_try: (self.panics < 2).then_some(now),
            delay: FIRST_DELAY,
        });
        // A failure is logged there, and answered to those who come next.
        drop(self.mend(now));
    }

    /// Opens the engine anew if it is broken and its time has come.
    fn mend(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(broken) = &mut self.broken else {
            return Ok(());
        };
        if broken.next_try.is_none_or(|at| now < at) {
            return Err(broken.fault.clone());
        }
        let adapter = &self.shared.adapter;
        let reopened = catch_unwind(AssertUnwindSafe(|| adapter.reopen()))
            .unwrap_or_else(|panic| Err(Fault::Failed(panicked(&*panic))));
        match reopened {
            Ok(revision) => {
                // The cache last, when nobody can read through an old connection any more what the
                // new ones may see otherwise.
                self.shared.cache.clear();
                self.shared.revision.store(revision.0, Ordering::Release);
                let epoch = Epoch::random();
                self.shared.epoch.store(epoch.0, Ordering::Release);
                let wakers = self.shared.changes.lock().begin_anew(epoch, revision);
                wakers.into_iter().for_each(Waker::wake);
                self.shared.stats.reopened.add(1);
                self.broken = None;
                self.next_expiry = Some(self.shared.clock.now());
                tracing::warn!(%revision, %epoch, "storage is open again");
                Ok(())
            }
            Err(fault) => {
                tracing::error!(
                    error = %chain(&fault),
                    next_try = ?broken.delay,
                    "storage cannot be opened anew; writes are refused"
                );
                broken.next_try = Some(Instant::now() + broken.delay);
                broken.delay = (broken.delay * 2).min(MAX_DELAY);
                broken.fault = fault.clone();
                Err(fault)
            }
        }
    }
}

fn places(commit: &Commit) -> impl Iterator<Item = Place> + '_ {
    let place = |op: &Op| (commit.namespace.clone(), op.key().clone());
    commit.ops.iter().map(place)
}

/// What a batch changed, in order.
struct Committed {
    changes: Vec<Noted>,
}

impl Committed {
    fn new(commits: &[Commit], results: &[Result<Applied, Rejection>], terms: &Terms<'_>) -> Self {
        let mut changes = Vec::new();
        for (commit, result) in commits.iter().zip(results) {
            let Ok(applied) = result else {
                continue;
            };
            for (op, existed) in commit.ops.iter().zip(&applied.existed) {
                let what = match op {
                    Op::Set { key, value, ttl } => What::Put(Entry {
                        key: key.clone(),
                        // A copy: it may be a slice of a much larger message that would be kept with it.
                        value: Json::trusted(Bytes::copy_from_slice(value.bytes())),
                        revision: applied.revision,
                        updated_at: terms.at,
                        expires_at: terms.expiry(*ttl),
                    }),
                    Op::Delete { .. } if *existed => What::Deleted,
                    Op::Expire { .. } if *existed => What::Expired,
                    Op::Delete { .. } | Op::Expire { .. } => continue,
                };
                changes.push(Noted {
                    namespace: commit.namespace.clone(),
                    change: Change {
                        key: op.key().clone(),
                        revision: applied.revision,
                        what,
                        conflated: false,
                    },
                });
            }
        }
        Self { changes }
    }

    /// What the places of the changes hold now.
    fn entries(&self) -> impl Iterator<Item = (Place, Option<Entry>)> + '_ {
        self.changes.iter().map(|noted| {
            let place = (noted.namespace.clone(), noted.change.key.clone());
            let entry = match &noted.change.what {
                What::Initial(entry) | What::Put(entry) => Some(entry.clone()),
                What::Deleted | What::Expired => None,
            };
            (place, entry)
        })
    }

    fn learn_quotas(&self, quotas: &RwLock<Quotas>) {
        let of_the_core = |noted: &&Noted| noted.namespace.as_str() == CORE_NAMESPACE;
        for noted in self.changes.iter().filter(of_the_core) {
            let value = match &noted.change.what {
                What::Initial(entry) | What::Put(entry) => Some(entry.value.as_str()),
                What::Deleted | What::Expired => None,
            };
            quotas.write().learn(&noted.change.key, value);
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("panic: {0}")]
struct Panicked(String);

fn panicked(payload: &(dyn Any + Send)) -> EngineError {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a text".to_owned());
    Arc::new(Panicked(text))
}
