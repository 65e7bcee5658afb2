//! Writes the worker's small files, so that the worker never waits for a disk: one that stalls is then no
//! stall of the core, and a full one is told to whoever asked.
//!
//! One file is written at a time, on a thread for what blocks. Of each file only the newest content waits;
//! one that could not be written is tried again after [`AGAIN`], until it can be or a newer one takes its
//! place. Whoever must not answer before something is on the disk asks [`Keeper::standing`], after
//! [`Keeper::news`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::files::{Outlives, write_atomically};

/// Time until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// One content of a file; later ones are greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u64);

/// How a content of a file stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// On the disk, or a newer one is.
    Kept,
    /// Not yet.
    Waits,
    /// It could not be written, and why. It is tried again.
    Failed(String),
}

/// The writer. Needs a tokio runtime around it.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    files: Mutex<Files>,
    /// Something was written or could not be.
    news: Notify,
}

/// Guarded by a short lock: nobody writes while holding it.
#[derive(Debug, Default)]
struct Files {
    by_path: BTreeMap<PathBuf, Kept>,
    /// Somebody writes, and goes on until nothing waits.
    busy: bool,
    again_at: Option<Instant>,
}

/// One file. Guarded by the lock of all.
#[derive(Debug, Default)]
struct Kept {
    newest: Version,
    /// What is newer than the last that was tried.
    waiting: Option<Vec<u8>>,
    written: Version,
    /// Could not be written, and why.
    failed: Option<(Vec<u8>, String)>,
}

impl Keeper {
    /// Has a content written, in place of any that waits. Never waits.
    pub(super) fn keep(&self, path: &Path, content: Vec<u8>) -> Version {
        let mut files = self.shared.files.lock();
        let file = files.by_path.entry(path.to_owned()).or_default();
        file.newest = Version(file.newest.0 + 1);
        file.waiting = Some(content);
        file.failed = None;
        let version = file.newest;
        self.write(&mut files);
        version
    }

    /// When [`Self::try_again`] has something to do.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.shared.files.lock().again_at
    }

    /// Tries again what could not be written, once it is time.
    pub(super) fn try_again(&self, now: Instant) {
        let mut files = self.shared.files.lock();
        if files.again_at.is_some_and(|at| at <= now) {
            files.again_at = None;
            files.by_path.values_mut().for_each(Kept::again);
            self.write(&mut files);
        }
    }

    fn write(&self, files: &mut Files) {
        if std::mem::replace(&mut files.busy, true) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        #[expect(
            clippy::disallowed_methods,
            reason = "it waits for the disk; nobody awaits it, and there is one at most"
        )]
        tokio::task::spawn_blocking(move || shared.work());
    }

    pub(super) fn standing(&self, path: &Path, version: Version) -> Standing {
        let files = self.shared.files.lock();
        let Some(file) = files.by_path.get(path) else {
            return Standing::Kept;
        };
        match &file.failed {
            _ if file.written >= version => Standing::Kept,
            Some((_, why)) => Standing::Failed(why.clone()),
            None => Standing::Waits,
        }
    }

    /// Waits until some standing may have changed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(super) async fn news(&self) {
        self.shared.news.notified().await;
    }

    /// Waits until everything was tried, for so long at most.
    pub(super) async fn flush(&self, budget: Duration) {
        let idle = || !self.shared.files.lock().busy;
        let flushed = async {
            while !idle() {
                self.news().await;
            }
        };
        if tokio::time::timeout(budget, flushed).await.is_err() {
            tracing::warn!(
                "what is wanted of plugins may not be written: the disk does not answer"
            );
        }
    }
}

impl Shared {
    /// Writes until nothing waits.
    fn work(&self) {
        let mut files = self.files.lock();
        loop {
            let next = files.by_path.iter_mut().find_map(|(path, file)| {
                let content = file.waiting.take()?;
                Some((path.clone(), file.newest, content))
            });
            let Some((path, version, content)) = next else {
                files.busy = false;
                drop(files);
                return self.news.notify_one();
            };
            drop(files);
            let result = write_atomically(&path, &content, Outlives::Power);
            files = self.files.lock();
            if result.is_err() {
                files.again_at = Some(Instant::now() + AGAIN);
            }
            if let Some(file) = files.by_path.get_mut(&path) {
                file.tried(&path, version, content, result);
            }
            self.news.notify_one();
        }
    }
}

impl Kept {
    fn tried(
        &mut self,
        path: &Path,
        version: Version,
        content: Vec<u8>,
        result: std::io::Result<()>,
    ) {
        match result {
            Ok(()) => {
                if self.failed.take().is_some() {
                    tracing::info!(path = %path.display(), "it could be written after all");
                }
                self.written = version;
            }
            Err(error) => {
                if self.failed.is_none() {
                    tracing::error!(
                        path = %path.display(), %error,
                        "what it should say holds until the core ends; it is tried again every 30 s"
                    );
                }
                // A newer one that came meanwhile is told of by itself.
                if self.waiting.is_none() {
                    self.failed = Some((content, error.to_string()));
                }
            }
        }
    }

    /// What could not be written waits again, unless something newer does.
    fn again(&mut self) {
        if let Some((content, _)) = &self.failed {
            self.waiting.get_or_insert_with(|| content.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn settled(keeper: &Keeper, path: &Path, version: Version) -> Standing {
        loop {
            match keeper.standing(path, version) {
                Standing::Waits => keeper.news().await,
                standing => return standing,
            }
        }
    }

    #[tokio::test]
    async fn the_newest_content_is_written_and_failures_are_told_until_they_are_over() {
        let home = tempfile::tempdir().expect("a directory");
        let (data, keeper) = (home.path().join("data"), Keeper::default());
        let path = data.join("wishes.json");
        let nothing = Version::default();
        assert_eq!(keeper.standing(&path, nothing), Standing::Kept);
        std::fs::write(&data, "in the way").expect("written");
        let first = keeper.keep(&path, b"one".to_vec());
        let failed = settled(&keeper, &path, first).await;
        assert!(matches!(failed, Standing::Failed(_)), "{failed:?}");
        std::fs::remove_file(&data).expect("removed");
        let at = keeper.again_at().expect("it is tried again");
        keeper.try_again(at - Duration::from_millis(1));
        assert_eq!(keeper.again_at(), Some(at), "not before");
        keeper.try_again(at);
        while keeper.standing(&path, first) != Standing::Kept {
            keeper.news().await;
        }
        assert_eq!(std::fs::read(&path).expect("there"), b"one");
        let versions = [b"two", b"thr", b"end"].map(|content| keeper.keep(&path, content.to_vec()));
        keeper.flush(AGAIN).await;
        for version in versions {
            assert_eq!(keeper.standing(&path, version), Standing::Kept);
        }
        assert_eq!(std::fs::read(&path).expect("there"), b"end");
    }
}
