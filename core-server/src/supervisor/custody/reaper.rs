//! Reaps the orphans that the core adopted, and only them: `waitpid(-1)` would steal the statuses of
//! its own children.

use std::time::Duration;

use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::proc_fs::{as_pid, own_children};
use super::{Custody, Inner};

/// Signals may be joined, and a pass may find the core forking: nobody waits longer than this.
const SLOW_TICK: Duration = Duration::from_secs(5);

impl Custody {
    /// Reaps whenever a child has ended, until `stop`.
    pub(super) async fn reap(self, stop: CancellationToken) {
        let mut ended = match signal(SignalKind::child()) {
            Ok(ended) => Some(ended),
            Err(error) => {
                tracing::warn!(%error, "ends of adopted processes are noticed late");
                None
            }
        };
        loop {
            let inner = std::sync::Arc::clone(&self.inner);
            self.inner.clerk.run(move || inner.reap_adopted()).await;
            let news = async {
                match &mut ended {
                    Some(ended) => drop(ended.recv().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = news => {}
                () = self.inner.forked.notified() => {}
                () = tokio::time::sleep(SLOW_TICK) => {}
            }
        }
    }
}

impl Inner {
    /// One pass. While the core forks it does nothing: a child that is not in the list yet is not
    /// known for its own. The core's own may not fork meanwhile either, for the lock is held.
    fn reap_adopted(&self) {
        let own = self.own.lock();
        if !own.is_complete() {
            return;
        }
        let mut reaped = 0;
        for child in own_children() {
            if own.pids.contains(&child) || self.strangers.children.contains(&child) {
                continue;
            }
            let Some(pid) = as_pid(child) else { continue };
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if let Ok(Some(_)) = waitid(WaitId::Pid(pid), options) {
                reaped += 1;
            }
        }
        drop(own);
        if reaped > 0 {
            tracing::debug!(reaped, "adopted processes have ended");
        }
    }
}
