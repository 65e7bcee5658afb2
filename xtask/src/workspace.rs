//! Where things are: the repository, cargo's target directory, the tracked files.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The repository that this program was built from.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// Directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, whoever set it.
    pub(crate) target: PathBuf,
}

/// A tracked text file.
#[derive(Clone, Debug)]
pub(crate) struct TextFile {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Workspace {
    /// Finds root and target directory.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask has no parent directory")?
            .to_owned();
        let metadata = metadata(&root, &["--no-deps"])?;
        let target = metadata["target_directory"]
            .as_str()
            .context("cargo metadata names no target directory")?;
        Ok(Self {
            root,
            target: PathBuf::from(target),
        })
    }

    /// What `cargo metadata` says, dependencies included.
    pub(crate) fn metadata(&self) -> Result<serde_json::Value> {
        metadata(&self.root, &[])
    }

    /// The cargo that runs this, in the root.
    pub(crate) fn cargo<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = cargo(&self.root);
        command.args(arguments);
        command
    }

    /// Path of a binary of this workspace, once it is built.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// Paths of all files that are tracked, or would be after `git add`.
    pub(crate) fn tracked_paths(&self) -> Result<Vec<String>> {
        let output = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .output()
            .context("cannot run git")?;
        if !output.status.success() {
            bail!(
                "git ls-files: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let mut paths: Vec<_> = String::from_utf8(output.stdout)
            .context("a tracked path is not UTF-8")?
            .split_terminator('\0')
            .filter(|path| self.root.join(path).is_file())
            .map(str::to_owned)
            .collect();
        paths.sort();
        paths.dedup();
        Ok(paths)
    }

    /// The tracked files that are text.
    pub(crate) fn text_files(&self) -> Result<Vec<TextFile>> {
        let mut files = Vec::new();
        for path in self.tracked_paths()? {
            let bytes = std::fs::read(self.root.join(&path)).with_context(|| path.clone())?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(TextFile { path, text });
            }
        }
        Ok(files)
    }
}

fn cargo(root: &Path) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root).stdin(Stdio::null());
    // What cargo told this program of its own package. Build scripts that look at such variables (ring's
    // does) would run again, and all that depends on them be compiled again, whenever somebody changes
    // between `cargo xtask` and cargo.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_own_package) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_own_package(variable: &str) -> bool {
    let prefixes = ["CARGO_MANIFEST_", "CARGO_PKG_"];
    prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

fn metadata(root: &Path, extra: &[&str]) -> Result<serde_json::Value> {
    let output = cargo(root)
        .args(["metadata", "--format-version", "1"])
        .args(extra)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed");
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_this_package() {
        // Test runners say the same of it as `cargo run`.
        assert!(env::var_os("CARGO_MANIFEST_DIR").is_some());
        let command = cargo(Path::new("."));
        let removed = |name: &str| {
            let mut changed = command.get_envs();
            changed.any(|(variable, value)| variable == name && value.is_none())
        };
        assert!(removed("CARGO_MANIFEST_DIR") && removed("CARGO_PKG_NAME"));
        assert!(!removed("PATH"));
    }
}
