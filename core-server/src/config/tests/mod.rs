//! Tests of the configuration as a whole: files in a directory of their own, environment and flags as
//! arguments.

mod isolation;
mod layers;
mod mistakes;
mod plugins;
mod published;
mod secrets;
mod upgrades;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;

use super::{Config, Error, Flags, Loaded, load};

/// A working directory, and what else the core would find when it starts.
struct Home {
    directory: TempDir,
    environment: Vec<(String, String)>,
    flags: Flags,
}

impl Home {
    fn new() -> Self {
        Self {
            directory: TempDir::new().expect("a temporary directory"),
            environment: Vec::new(),
            flags: Flags::default(),
        }
    }

    /// With this `core.toml`.
    fn with_core(text: &str) -> Self {
        Self::new().file("core.toml", text)
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("in the directory")).expect("writable");
        fs::write(&path, text).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        self
    }

    fn mode(self, path: &str, mode: u32) -> Self {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).expect("ours");
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    fn flags(mut self, set: impl FnOnce(&mut Flags)) -> Self {
        set(&mut self.flags);
        self
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn load(&self) -> Result<Loaded, Error> {
        load(&self.flags, self.environment.clone(), self.directory.path())
    }

    fn loaded(&self) -> Loaded {
        self.load()
            .unwrap_or_else(|error| panic!("refused:\n{error}"))
    }

    fn config(&self) -> Config {
        self.loaded().config
    }

    /// What is wrong, one line each.
    fn mistakes(&self) -> Vec<String> {
        let error = self.load().expect_err("should be refused");
        self.shown(error.problems.iter().map(ToString::to_string))
    }

    /// What is doubtful, one line each.
    fn warnings(&self) -> Vec<String> {
        let warnings = self.loaded().warnings;
        self.shown(warnings.iter().map(ToString::to_string))
    }

    /// Without the name of the temporary directory.
    fn shown(&self, lines: impl Iterator<Item = String>) -> Vec<String> {
        let directory = self.directory.path().display().to_string();
        lines.map(|line| line.replace(&directory, "HOME")).collect()
    }
}
