//! Threads that do what blocks: forking, reading `/proc`.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait; whoever gives another waits with them.
const JOBS: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// One thread, or several once others were [added](Self::add), which end when this is dropped and no
/// sooner, not even by a panic.
#[derive(Debug)]
pub(super) struct WorkThread {
    name: &'static str,
    jobs: mpsc::Sender<Job>,
    /// Held by the thread that waits for the next job, and by none that does one.
    queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    runtime: Handle,
}

impl WorkThread {
    /// Starts it. Its jobs run inside the current tokio runtime, but never hold its threads up.
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(JOBS);
        let thread = Self {
            name,
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            runtime: Handle::current(),
        };
        thread.add()?;
        Ok(thread)
    }

    /// Has another thread take part in the same work.
    pub(super) fn add(&self) -> io::Result<()> {
        let (queue, runtime) = (Arc::clone(&self.queue), self.runtime.clone());
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        let spawned = thread.spawn(move || {
            let _inside = runtime.enter();
            let next = || queue.lock().blocking_recv();
            while let Some(job) = next() {
                // The panic is told where it happens; whoever waits for the job notices.
                drop(std::panic::catch_unwind(AssertUnwindSafe(job)));
            }
        });
        spawned.map(drop)
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

    #[tokio::test]
    async fn one_that_is_added_works_while_the_first_hangs() {
        let thread = WorkThread::start("worker").expect("a thread");
        let (release, held) = std::sync::mpsc::channel::<()>();
        assert!(thread.post(move || {
            let _released = held.recv();
        }));
        thread.add().expect("another");
        thread.run(|| ()).await.expect("done by the other");
        release.send(()).expect("the first still waits");
    }
}
