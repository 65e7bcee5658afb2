//! Starting children so that a start that hangs is one plugin's trouble and nobody else's.
//!
//! `fork` and `exec` wait for the disk: for the program, for its interpreter, for the directory that it
//! begins in. On a file system that does not answer (a dead NFS server, a FUSE program that hangs) that
//! wait has no end, and it can neither be cancelled nor be made elsewhere: the kernel's signal of a
//! parent's death comes with the end of the *thread* that forked, so that no short-lived thread may
//! fork. Therefore
//!
//! - after [`RELIEF`] another thread takes over whatever else is to be started. It never ends either.
//! - after [`PATIENCE`] the child that hangs before its `exec` is killed, which most file systems allow.
//! - what still does not return after [`LAST`] is given up: the thread is left where it is, and goes
//!   on with the others should it ever come back. There are [`THREADS`] at most; when all hang, starts
//!   fail at once in their turn, say so, and are tried again as any failed start is.
//!
//! Waits are counted in steps: a core that was stopped itself meanwhile has lost one step, not all.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::pin::pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::work_thread::WorkThread;
use super::{Custody, Inner, proc_fs};

/// Most threads that fork.
const THREADS: usize = 8;
const STEP: Duration = Duration::from_millis(100);
/// Steps after which somebody else starts the others.
const RELIEF: u32 = 10;
/// Steps after that, until a start counts as hanging. With the rest well below the 10 s in which a
/// child must open its channel, so that the phase says what really happened.
const PATIENCE: u32 = 40;
/// Steps in which a start whose child was killed returns.
const LAST: u32 = 10;
/// Steps in which some thread must be free for a start, or all hang.
const IN_LINE: u32 = 60;

/// The threads that fork.
#[derive(Debug)]
pub(super) struct Spawner {
    threads: WorkThread,
    crew: Mutex<Crew>,
}

/// Who forks. Guarded by a short lock.
#[derive(Debug)]
struct Crew {
    threads: usize,
    at_work: usize,
}

/// Why a job of the spawner has no result.
#[derive(Debug)]
pub(super) enum Failed<T> {
    /// It hung; what it came to after all, if it did.
    Hung(Option<T>),
    /// Every thread hangs in another's.
    AllHang,
    /// It panicked.
    Panicked,
}

impl<T> From<Failed<T>> for io::Error {
    fn from(failed: Failed<T>) -> Self {
        match failed {
            Failed::Hung(_) => Self::new(io::ErrorKind::TimedOut, "it hangs"),
            Failed::AllHang => all_hang(),
            Failed::Panicked => Self::other("the thread that starts children panicked"),
        }
    }
}

/// As an error of whoever wanted to start something else.
pub(super) fn all_hang() -> io::Error {
    let message = format!("{THREADS} earlier starts hang, and none has returned yet");
    io::Error::new(io::ErrorKind::TimedOut, message)
}

/// The core's own forks that go on, and its children. Guarded by a short lock; the forks themselves are
/// outside.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Forked and not reaped.
    pub(super) pids: BTreeSet<u32>,
    /// Forks going on, whose child is in no list.
    forking: BTreeSet<u64>,
    last_fork: u64,
}

impl Own {
    /// Whether no child can be missing among the pids.
    pub(super) fn is_complete(&self) -> bool {
        self.forking.is_empty()
    }
}

/// The number of a job that forks.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForkId(u64);

/// A fork that goes on.
pub(super) struct Forking<'a> {
    inner: &'a Inner,
    id: ForkId,
    pub(super) child: Option<u32>,
}

impl<'a> Forking<'a> {
    pub(super) fn begin(inner: &'a Inner, id: ForkId) -> Self {
        inner.own.lock().forking.insert(id.0);
        Self {
            inner,
            id,
            child: None,
        }
    }
}

impl Drop for Forking<'_> {
    fn drop(&mut self) {
        let mut own = self.inner.own.lock();
        own.forking.remove(&self.id.0);
        own.pids.extend(self.child);
        drop(own);
        self.inner.forked.notify_one();
    }
}

impl Spawner {
    pub(super) fn start() -> io::Result<Self> {
        Ok(Self {
            threads: WorkThread::start("spawner")?,
            crew: Mutex::new(Crew {
                threads: 1,
                at_work: 0,
            }),
        })
    }

    /// Another thread takes over, where all that there are do something.
    fn relieve(&self) {
        let mut crew = self.crew.lock();
        if crew.at_work < crew.threads || crew.threads >= THREADS {
            return;
        }
        match self.threads.add() {
            Ok(()) => crew.threads += 1,
            Err(error) => tracing::error!(%error, "no thread to start children with"),
        }
    }
}

impl Custody {
    /// Does what forks, on a thread that ends with the core and no sooner.
    ///
    /// # Errors
    /// It hangs, as this module's essay says.
    ///
    /// # Cancel safety
    /// A job that was begun is done; its result is dropped.
    pub(super) async fn on_spawner<T: Send + 'static>(
        &self,
        job: impl FnOnce(ForkId) -> T + Send + 'static,
    ) -> Result<T, Failed<T>> {
        let spawner = &self.inner.spawner;
        let id = {
            let mut own = self.inner.own.lock();
            own.last_fork += 1;
            ForkId(own.last_fork)
        };
        let (begun, has_begun) = oneshot::channel();
        let custody = self.clone();
        let work = spawner.threads.run(move || {
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            // Given up before it was begun: nobody wants it any more.
            begun.send(thread).ok()?;
            let _at_work = AtWork::begin(&custody.inner.spawner);
            Some(job(id))
        });
        let mut work = pin!(work);
        let done = |result: Option<Option<T>>| result.flatten().ok_or(Failed::Panicked);
        let thread = tokio::select! {
            biased;
            result = &mut work => return done(result),
            Ok(thread) = has_begun => thread,
            () = steps(IN_LINE) => return Err(Failed::AllHang),
        };
        tokio::select! {
            biased;
            result = &mut work => return done(result),
            () = steps(RELIEF) => spawner.relieve(),
        }
        tokio::select! {
            biased;
            result = &mut work => return done(result),
            () = steps(PATIENCE) => self.inner.end_unborn(id, thread),
        }
        tokio::select! {
            biased;
            result = &mut work => Err(Failed::Hung(result.flatten())),
            () = steps(LAST) => Err(Failed::Hung(None)),
        }
    }
}

impl Inner {
    /// Kills the child that a thread has forked and that has not become another program yet. It counts
    /// as a child that is known from now on, so that nobody waits for the news of it.
    fn end_unborn(&self, id: ForkId, thread: i32) {
        let list = fs::read_to_string(format!("/proc/self/task/{thread}/children"));
        let list = list.unwrap_or_default();
        let children = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        let unborn: Vec<u32> = {
            let mut own = self.own.lock();
            if !own.forking.remove(&id.0) {
                return;
            }
            let unborn = children.filter(|pid| !own.pids.contains(pid) && is_this_program(*pid));
            let unborn: Vec<_> = unborn.collect();
            own.pids.extend(&unborn);
            unborn
        };
        for seen in unborn.into_iter().filter_map(proc_fs::look) {
            proc_fs::kill(&seen);
        }
        self.forked.notify_one();
    }
}

/// Whether a process has not become another program yet.
fn is_this_program(pid: u32) -> bool {
    let program = |path: String| fs::read_link(path).ok();
    let own = program("/proc/self/exe".to_owned());
    own.is_some() && program(format!("/proc/{pid}/exe")) == own
}

struct AtWork<'a>(&'a Spawner);

impl<'a> AtWork<'a> {
    fn begin(spawner: &'a Spawner) -> Self {
        spawner.crew.lock().at_work += 1;
        Self(spawner)
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.crew.lock().at_work -= 1;
    }
}

async fn steps(count: u32) {
    for _ in 0..count {
        tokio::time::sleep(STEP).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::Setup;
    use super::*;

    #[tokio::test]
    async fn what_hangs_holds_nobody_else_up_and_its_thread_works_again_when_it_returns() {
        let custody = Custody::new(Setup::default()).expect("threads");
        let (release, held) = mpsc::channel::<()>();
        let began = tokio::time::Instant::now();
        let hanging = custody.on_spawner(move |_| held.recv().is_ok());
        let other = async {
            // In line behind it, as likely as not.
            tokio::task::yield_now().await;
            let done = custody.on_spawner(|_| ()).await;
            assert!(done.is_ok(), "{done:?}");
            began.elapsed()
        };
        let (hung, other) = tokio::join!(hanging, other);
        assert!(matches!(hung, Err(Failed::Hung(None))), "{hung:?}");
        assert!(other < STEP * (RELIEF + PATIENCE), "{other:?}");
        assert_eq!(custody.inner.spawner.crew.lock().threads, 2);
        assert_eq!(custody.inner.spawner.crew.lock().at_work, 1);
        release.send(()).expect("it still waits");
        while custody.inner.spawner.crew.lock().at_work > 0 {
            tokio::time::sleep(STEP / 10).await;
        }
        // Both are of use: nobody is relieved any more.
        custody.inner.spawner.relieve();
        assert_eq!(custody.inner.spawner.crew.lock().threads, 2);
    }

    #[tokio::test]
    async fn the_threads_are_bounded_and_when_all_hang_starts_fail_and_say_so() {
        let custody = Custody::new(Setup::default()).expect("threads");
        let held: Vec<_> = (0..THREADS)
            .map(|_| {
                let (release, held) = mpsc::channel::<()>();
                assert!(custody.inner.spawner.threads.post({
                    let custody = custody.clone();
                    move || {
                        let _at_work = AtWork::begin(&custody.inner.spawner);
                        let _released = held.recv();
                    }
                }));
                release
            })
            .collect();
        for threads in 1..=THREADS {
            while custody.inner.spawner.crew.lock().at_work < threads {
                tokio::time::sleep(STEP / 10).await;
            }
            custody.inner.spawner.relieve();
        }
        assert_eq!(custody.inner.spawner.crew.lock().threads, THREADS);
        let failed = custody.on_spawner(|_| ()).await;
        assert!(matches!(failed, Err(Failed::AllHang)), "{failed:?}");
        drop(held);
        assert!(custody.on_spawner(|_| ()).await.is_ok());
    }
}
