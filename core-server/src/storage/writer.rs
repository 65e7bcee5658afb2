//! The writer: one thread that takes what is queued, commits it as one batch and tells everyone.
//!
//! Grouping is natural: nothing ever waits for company. While one batch is being synced the next one
//! gathers in the mailbox, so a lone caller gets the latency of one commit and many callers share it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::adapter::{
    Applied, Commit, CommitFault, Entry, Moment, Op, Rejection, StorageAdapter, Upkeep,
};
use super::cache::{Cache, Place};
use super::error::{EngineError, Error, Fault};
use super::mailbox::{Command, Mailbox, Taken};
use super::request::AfterCommit;
use super::stats::Stats;
use crate::error::{Outcome, chain};
use crate::types::{Epoch, Revision};

/// Nothing asked of the writer for so long counts as idle.
const QUIET: Duration = Duration::from_millis(100);
/// After a failed reopening the next one waits so long, then twice as long, up to [`MAX_DELAY`].
const FIRST_DELAY: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(60);

/// What the handle, the writer and the readers share.
pub(super) struct Shared {
    pub(super) adapter: Arc<dyn StorageAdapter>,
    pub(super) mailbox: Mailbox,
    pub(super) cache: Cache,
    pub(super) stats: Stats,
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
    ) -> Self {
        Self {
            adapter,
            mailbox,
            cache,
            stats: Stats::default(),
            revision: AtomicU64::new(revision.0),
            epoch: AtomicU64::new(Epoch::random().0),
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
        self.0.ended.send_replace(true);
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            broken: None,
            panics: 0,
        }
    }

    /// Until the mailbox is closed and empty; then closes the engine.
    pub(super) fn run(mut self) {
        let end = End(Arc::clone(&self.shared));
        let mut upkeep = Upkeep::Done;
        loop {
            // Without anything to do when idle the thread sleeps for good: no wake-ups.
            let quiet = (upkeep == Upkeep::WantsIdle).then_some(QUIET);
            match self.shared.mailbox.take(quiet) {
                Taken::Batch(batch) => {
                    self.write(batch);
                    upkeep = self.maintain(Moment::Busy);
                }
                Taken::Quiet => upkeep = self.maintain(Moment::Idle),
                Taken::Closed => break,
            }
        }
        self.shared.adapter.close();
        drop(end);
    }

    fn maintain(&self, moment: Moment) -> Upkeep {
        if self.broken.is_some() {
            return Upkeep::Done;
        }
        self.shared.adapter.maintain(moment)
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
        self.shared.cache.begin(commits.iter().flat_map(places));
        let at = whole_microseconds(SystemTime::now());
        let adapter = &self.shared.adapter;
        match catch_unwind(AssertUnwindSafe(|| adapter.commit(&commits, at))) {
            Ok(Ok(results)) => self.settle(&commits, replies, results, at),
            Ok(Err(fault)) => self.fail(replies, fault),
            Err(panic) => {
                self.panics += 1;
                let fault = Fault::Failed(panicked(&*panic));
                let outcome = Outcome::Unknown;
                self.fail(replies, CommitFault { fault, outcome });
            }
        }
    }

    /// The batch is on disk: cache, revision, then each one's own afterwards and answer.
    fn settle(
        &self,
        commits: &[Commit],
        replies: Vec<Reply>,
        results: Vec<Result<Applied, Rejection>>,
        at: SystemTime,
    ) {
        assert_eq!(results.len(), replies.len(), "one answer for each item");
        let applied = |index: usize| results[index].as_ref().ok();
        let changes = commits.iter().enumerate().filter_map(|(index, commit)| {
            applied(index).map(|applied| changes(commit, applied.revision, at))
        });
        self.shared.cache.finish(changes.flatten());

        let stats = &self.shared.stats;
        stats.batches.add(1);
        let last = results.iter().flatten().map(|applied| applied.revision.0);
        if let Some(last) = last.max() {
            self.shared.revision.fetch_max(last, Ordering::AcqRel);
        }
        for (reply, result) in replies.into_iter().zip(results) {
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
                self.shared.stats.reopened.add(1);
                self.broken = None;
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

fn changes(
    commit: &Commit,
    revision: Revision,
    at: SystemTime,
) -> impl Iterator<Item = (Place, Option<Entry>)> + '_ {
    commit.ops.iter().map(move |op| {
        let entry = match op {
            Op::Set { key, value } => Some(Entry {
                key: key.clone(),
                value: value.clone(),
                revision,
                updated_at: at,
            }),
            Op::Delete { .. } => None,
        };
        ((commit.namespace.clone(), op.key().clone()), entry)
    })
}

/// What adapters keep, so that an entry has the same time from memory and from disk.
fn whole_microseconds(time: SystemTime) -> SystemTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
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
