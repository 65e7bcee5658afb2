//! A thread that does what blocks: forking, reading `/proc`.

use std::io;
use std::panic::AssertUnwindSafe;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait; whoever gives another waits with them.
const JOBS: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// One thread, which ends when this is dropped and no sooner, not even by a panic.
#[derive(Debug)]
pub(super) struct WorkThread {
    jobs: mpsc::Sender<Job>,
}

impl WorkThread {
    /// Starts it. Its jobs run inside the current tokio runtime, but never hold its threads up.
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(JOBS);
        let runtime = Handle::current();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let _inside = runtime.enter();
                while let Some(job) = queue.blocking_recv() {
                    // The panic is told where it happens; whoever waits for the job notices.
                    drop(std::panic::catch_unwind(AssertUnwindSafe(job)));
                }
            })?;
        Ok(Self { jobs })
    }

    /// Does a job and waits for it. `None`: it panicked.
    ///
    /// # Cancel safety
    /// A job that was given is done; its result is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, done) = oneshot::channel();
        let job = Box::new(move || drop(reply.send(job())));
        self.jobs.send(job).await.ok()?;
        done.await.ok()
    }

    /// Gives it a job and does not wait. `false`: it has too much to do; the job is not done.
    pub(super) fn post(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.jobs.try_send(Box::new(job)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_jobs_run_on_one_thread_that_a_panic_does_not_end() {
        let thread = WorkThread::start("worker").expect("a thread");
        let id = || std::thread::current().id();
        let first = thread.run(id).await.expect("done");
        let panics = thread.run(|| panic!("on purpose")).await;
        assert!(panics.is_none());
        assert_eq!(thread.run(id).await.expect("done"), first);
        assert_ne!(first, id());
    }
}
