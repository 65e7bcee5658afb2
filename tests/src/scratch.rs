//! A test's own directory.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A temporary directory with a path short enough for unix sockets. It is removed at the end of the
/// test, unless the test fails: then it is kept and its path printed.
#[derive(Debug)]
pub struct Scratch {
    directory: Option<TempDir>,
    path: PathBuf,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Panics
    /// When there is no place for it.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("core-test-")
            .tempdir()
            .expect("a temporary directory");
        let path = directory.path().to_owned();
        Self {
            directory: Some(directory),
            path,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it, with the directories above it.
    ///
    /// # Panics
    /// When it cannot.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        let parent = path.parent().expect("below the directory");
        std::fs::create_dir_all(parent).expect("a directory");
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// A file's text; empty when there is none.
    #[must_use]
    pub fn read(&self, name: &str) -> String {
        std::fs::read(self.path.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let Some(directory) = self.directory.take() else {
            return;
        };
        if std::thread::panicking() {
            let path = directory.keep();
            eprintln!("kept for inspection: {}", path.display());
        }
    }
}
