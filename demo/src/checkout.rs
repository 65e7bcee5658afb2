//! The repository that this program was built from, and the programs that were built beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Checkout {
    /// Directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where cargo put this program, and the others.
    binaries: PathBuf,
}

impl Checkout {
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let program = std::env::current_exe().context("this program has no path")?;
        let binaries = program.parent().context("this program has no directory")?;
        Ok(Self {
            root: root.context("demo has no parent directory")?.to_owned(),
            binaries: binaries.to_owned(),
        })
    }

    /// Path of a program that was built.
    ///
    /// # Errors
    /// It is not there.
    pub(crate) fn binary(&self, name: &str) -> Result<PathBuf> {
        let path = self.binaries.join(name);
        ensure!(
            path.is_file(),
            "{} is not there: `cargo demo` builds it, if SHIPPED in xtask/src/dist.rs names it",
            path.display()
        );
        Ok(path)
    }

    /// Directory of all that the demo writes: `demo` in cargo's target directory.
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        let target = self.binaries.parent().context("no target directory")?;
        Ok(target.join("demo"))
    }

    /// All files of the contract in order of path, vendored ones included.
    pub(crate) fn contract(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        let mut directories = vec![self.root.join("proto")];
        while let Some(directory) = directories.pop() {
            let place = || directory.display().to_string();
            for entry in fs::read_dir(&directory).with_context(place)? {
                let path = entry.with_context(place)?.path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|end| end == "proto") {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contract_is_found_with_what_it_imports() {
        let checkout = Checkout::find().expect("this is a checkout");
        let files = checkout.contract().expect("it can be read");
        let has = |end: &str| files.iter().any(|path| path.ends_with(end));
        assert!(has("proto/coreruntime/v1/plugin_channel.proto"));
        assert!(has("proto/google/rpc/error_details.proto"));
        assert!(files.is_sorted());
    }

    #[test]
    fn a_program_that_was_not_built_is_named() {
        let checkout = Checkout::find().expect("this is a checkout");
        let error = checkout.binary("no-such-program").expect_err("none");
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
