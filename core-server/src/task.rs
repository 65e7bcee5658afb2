//! Every task has a name, an owner and an end.
//!
//! A [`TaskScope`] is the only place that spawns tasks. Scopes make a tree (runtime > component >
//! channel); ending a scope stops what is below it. Closing one cancels its token, waits within a
//! budget, aborts what is left and reports the names.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An owner of tasks. Cheap to clone; clones are the same scope.
#[derive(Clone, Debug)]
pub struct TaskScope {
    stop: CancellationToken,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    next_id: AtomicU64,
    /// Tasks that have not ended. Guarded by a short lock, never held across an await.
    live: Mutex<HashMap<u64, (&'static str, AbortHandle)>>,
}

impl TaskScope {
    /// A scope of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new())
    }

    fn with_token(stop: CancellationToken) -> Self {
        let inner = Inner {
            tracker: TaskTracker::new(),
            next_id: AtomicU64::new(0),
            live: Mutex::new(HashMap::new()),
        };
        Self {
            stop,
            inner: Arc::new(inner),
        }
    }

    /// A scope that is cancelled with this one. Its tasks are its own: close it too.
    #[must_use]
    pub fn child(&self) -> Self {
        Self::with_token(self.stop.child_token())
    }

    /// The token that tells this scope's tasks to end.
    #[must_use]
    pub fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Tells the tasks to end, without waiting.
    pub fn cancel(&self) {
        self.stop.cancel();
    }

    /// Spawns a task that watches the scope's token itself.
    pub fn spawn<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.stop.clone());
        self.start(name, task);
    }

    /// Spawns a task that is dropped at its next await when the scope is cancelled.
    pub fn spawn_droppable(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.start(name, async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn start(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let guard = Forget {
            id,
            inner: Arc::clone(&self.inner),
        };
        // The entry is made under the lock that the guard's drop takes, so that a task which ends at
        // once cannot be forgotten before it is remembered.
        let mut live = self.inner.live.lock();
        #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
        let handle = tokio::spawn(self.inner.tracker.track_future(async move {
            let _guard = guard;
            task.await;
        }));
        live.insert(id, (name, handle.abort_handle()));
    }

    /// Names of the tasks that have not ended.
    #[must_use]
    pub fn live(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self
            .inner
            .live
            .lock()
            .values()
            .map(|(name, _)| *name)
            .collect();
        names.sort_unstable();
        names
    }

    /// Cancels, waits at most `budget`, aborts what is left and returns the names of those.
    pub async fn close(&self, budget: Duration) -> Vec<&'static str> {
        self.stop.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(budget, self.inner.tracker.wait())
            .await
            .is_ok()
        {
            return Vec::new();
        }
        let left = self.live();
        for (_, handle) in self.inner.live.lock().values() {
            handle.abort();
        }
        left
    }
}

impl Default for TaskScope {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes a task off the list when it ends, also by a panic.
struct Forget {
    id: u64,
    inner: Arc<Inner>,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.inner.live.lock().remove(&self.id);
    }
}

/// Runs what waits for the disk beside the runtime's own threads. For small files; the storage has threads
/// of its own.
///
/// # Panics
/// With the panic of `work`.
///
/// # Cancel safety
/// Dropped, the work is done all the same.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    #[expect(
        clippy::disallowed_methods,
        reason = "small files block, and nothing else in the runtime does"
    )]
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn closing_waits_for_tasks_that_heed_the_token() {
        let scope = TaskScope::new();
        scope.spawn("heeds", |stop| async move { stop.cancelled().await });
        scope.spawn_droppable("dropped", std::future::pending());
        assert_eq!(scope.live(), ["dropped", "heeds"]);
        assert!(scope.close(Duration::from_secs(1)).await.is_empty());
        assert!(scope.live().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn closing_names_and_aborts_the_others() {
        let scope = TaskScope::new();
        scope.spawn("stubborn", |_| std::future::pending());
        assert_eq!(scope.close(Duration::from_secs(1)).await, ["stubborn"]);
    }

    #[tokio::test]
    async fn a_child_is_cancelled_with_its_parent_only() {
        let parent = TaskScope::new();
        let (left, right) = (parent.child(), parent.child());
        left.cancel();
        assert!(!parent.stop_token().is_cancelled() && !right.stop_token().is_cancelled());
        parent.cancel();
        assert!(right.stop_token().is_cancelled());
    }

    #[tokio::test]
    async fn a_panic_takes_the_task_off_the_list() {
        let scope = TaskScope::new();
        scope.spawn("panics", |_| async { panic!("on purpose") });
        assert!(scope.close(Duration::from_secs(5)).await.is_empty());
        assert!(scope.live().is_empty());
    }
}
