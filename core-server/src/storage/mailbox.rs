//! The writer's queue: bounded in commands and in bytes, taken from in batches.
//!
//! A queue of our own and not a channel, because the writer takes all that fits one transaction
//! under one lock, and because bytes are bounded too: 4,096 writes of 1 MiB would be 4 GiB.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::adapter::{Applied, Commit};
use super::error::Error;
use super::request::AfterCommit;

/// Most single writes of one transaction.
const BATCH_OPS: usize = 512;
/// Most bytes of one transaction.
const BATCH_BYTES: usize = 1 << 20;

/// One write on its way.
pub(super) struct Command {
    pub(super) commit: Commit,
    pub(super) after_commit: Option<AfterCommit>,
    pub(super) after_commit_bytes: usize,
    pub(super) deadline: Instant,
    pub(super) claim: Claim,
    pub(super) answer: oneshot::Sender<Result<Applied, Error>>,
}

impl Command {
    /// What it holds while it waits, its events included.
    fn bytes(&self) -> usize {
        let ops = self.commit.ops.iter().map(|op| op.size_bytes());
        let checks = self.commit.checks.iter();
        let checks = checks.map(|check| size_of_val(check) + check.key.as_str().len());
        ops.sum::<usize>() + checks.sum::<usize>() + self.after_commit_bytes
    }
}

/// Who has a command: the writer, once it has taken it, or its caller, who gave it up before. Only
/// one of them ever does, so a caller whose time runs out knows whether it can still happen.
#[derive(Clone, Default)]
pub(super) struct Claim(Arc<AtomicU8>);

impl Claim {
    const FREE: u8 = 0;
    const TAKEN: u8 = 1;

    /// Whether it was still free.
    pub(super) fn take(&self) -> bool {
        self.0
            .compare_exchange(Self::FREE, Self::TAKEN, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// Why a command was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

/// What the writer gets.
pub(super) enum Taken {
    /// At least one command, in the order of arrival.
    Batch(Vec<Command>),
    /// Nothing came for the time given, or somebody called.
    Quiet,
    /// Nothing is left and nothing will come.
    Closed,
}

pub(super) struct Mailbox {
    max_commands: usize,
    max_bytes: usize,
    /// Guards the queue; held to push one command or to take one batch.
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    bytes: usize,
    closed: bool,
    called: bool,
}

impl Mailbox {
    pub(super) fn new(max_commands: usize, max_bytes: usize) -> Self {
        Self {
            max_commands,
            max_bytes,
            queue: Mutex::new(Queue::default()),
            arrived: Condvar::new(),
        }
    }

    pub(super) fn push(&self, command: Command) -> Result<(), Refused> {
        let bytes = command.bytes();
        let mut queue = self.queue.lock();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if queue.commands.len() >= self.max_commands || queue.bytes + bytes > self.max_bytes {
            return Err(Refused::Full);
        }
        queue.bytes += bytes;
        queue.commands.push_back(command);
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for a first command, at most `quiet` if given, and takes what else fits its
    /// transaction; never waits for more.
    pub(super) fn take(&self, quiet: Option<Duration>) -> Taken {
        let mut queue = self.queue.lock();
        while queue.commands.is_empty() {
            if queue.closed {
                return Taken::Closed;
            }
            if std::mem::take(&mut queue.called) {
                return Taken::Quiet;
            }
            match quiet {
                None => self.arrived.wait(&mut queue),
                Some(time) => {
                    if self.arrived.wait_for(&mut queue, time).timed_out()
                        && queue.commands.is_empty()
                    {
                        return Taken::Quiet;
                    }
                }
            }
        }
        let mut batch = Vec::new();
        let (mut ops, mut bytes) = (0, 0);
        while let Some(next) = queue.commands.front() {
            let (next_ops, next_bytes) = (next.commit.ops.len(), next.bytes());
            let fits = ops + next_ops <= BATCH_OPS && bytes + next_bytes <= BATCH_BYTES;
            if !batch.is_empty() && !fits {
                break;
            }
            ops += next_ops;
            bytes += next_bytes;
            batch.extend(queue.commands.pop_front());
        }
        queue.bytes -= bytes;
        Taken::Batch(batch)
    }

    /// Has the writer look at its clock, for a test that moved it.
    #[cfg(test)]
    pub(super) fn call(&self) {
        self.queue.lock().called = true;
        self.arrived.notify_one();
    }

    /// Waits until the writer waits for a write: all that it does after the last one is done.
    #[cfg(test)]
    pub(super) fn until_at_rest(&self) {
        // Whoever is woken without a write waits again.
        while !self.arrived.notify_one() {
            std::thread::yield_now();
        }
    }

    /// Refuses what comes from now on. What is queued is still taken.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Closes and throws away what is queued: its callers hear that nobody will answer.
    pub(super) fn abandon(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.bytes = 0;
        let left = std::mem::take(&mut queue.commands);
        drop(queue);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::adapter::Op;
    use crate::storage::names::{Key, Namespace};

    fn command(ops: usize, bytes: usize) -> Command {
        let key = |index: usize| Key::parse(&format!("{index:04}")).expect("good");
        let set = |index| {
            let text = Bytes::from("1".repeat(bytes / ops - 4));
            Op::set(key(index), text).expect("JSON")
        };
        Command {
            commit: Commit {
                namespace: Namespace::parse("n").expect("good"),
                checks: Vec::new(),
                ops: (0..ops).map(set).collect(),
            },
            after_commit: None,
            after_commit_bytes: 0,
            deadline: Instant::now(),
            claim: Claim::default(),
            answer: oneshot::channel().0,
        }
    }

    fn sizes(mailbox: &Mailbox) -> Vec<usize> {
        match mailbox.take(Some(Duration::ZERO)) {
            Taken::Batch(batch) => batch.iter().map(|c| c.commit.ops.len()).collect(),
            Taken::Quiet | Taken::Closed => Vec::new(),
        }
    }

    #[test]
    fn a_batch_is_what_is_queued_up_to_its_bounds() {
        let mailbox = Mailbox::new(100, 16 << 20);
        for ops in [100, 128, 128, 128, 100, 1] {
            mailbox.push(command(ops, ops * 10)).expect("room");
        }
        assert_eq!(sizes(&mailbox), [100, 128, 128, 128]);
        assert_eq!(sizes(&mailbox), [100, 1]);
        for bytes in [1 << 19, 1 << 19, 8] {
            mailbox.push(command(1, bytes)).expect("room");
        }
        assert_eq!(sizes(&mailbox), [1, 1]);
        assert_eq!(sizes(&mailbox), [1]);
        assert_eq!(sizes(&mailbox), [0; 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_at_once() {
        let mailbox = Mailbox::new(2, 1 << 10);
        assert_eq!(mailbox.push(command(1, 1 << 11)), Err(Refused::Full));
        assert_eq!(mailbox.push(command(1, 1_000)), Ok(()));
        assert_eq!(mailbox.push(command(1, 100)), Err(Refused::Full));
        assert_eq!(mailbox.push(command(1, 10)), Ok(()));
        assert_eq!(mailbox.push(command(1, 5)), Err(Refused::Full));
        assert_eq!(sizes(&mailbox).len(), 2);
        assert_eq!(mailbox.push(command(1, 1_000)), Ok(()));
    }

    #[test]
    fn the_events_of_a_write_count_with_it() {
        let mailbox = Mailbox::new(100, 1 << 10);
        let with_events = |bytes| Command {
            after_commit_bytes: bytes,
            ..command(1, 10)
        };
        assert_eq!(mailbox.push(with_events(1_000)), Ok(()));
        assert_eq!(mailbox.push(with_events(10)), Err(Refused::Full));
        assert_eq!(sizes(&mailbox), [1]);
        assert_eq!(mailbox.push(with_events(1_000)), Ok(()), "room again");
    }

    #[test]
    fn closing_refuses_the_new_and_gives_out_the_queued() {
        let mailbox = Mailbox::new(2, 1 << 10);
        mailbox.push(command(1, 10)).expect("room");
        mailbox.close();
        assert_eq!(mailbox.push(command(1, 10)), Err(Refused::Closed));
        assert_eq!(sizes(&mailbox), [1]);
        assert!(matches!(mailbox.take(None), Taken::Closed));
    }

    #[test]
    fn a_command_is_claimed_once() {
        let claim = Claim::default();
        assert!(claim.clone().take());
        assert!(!claim.take());
    }
}
