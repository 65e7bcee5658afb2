//! `cargo xtask test fuzz`: each target of `fuzz/` for a few seconds, where cargo-fuzz is installed.
//! Elsewhere it is skipped: row 35 of the fault table does not need it.
//!
//! Without a sanitizer, which would need a nightly toolchain: the core has no unsafe code on the way of a
//! frame, so that what is looked for are panics, hangs and memory without bound.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::steps::{self, Outcome};
use crate::workspace::Workspace;

/// For each target, in seconds.
const SECONDS: u32 = 10;

/// Runs all targets.
pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    let installed = fuzz(workspace)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !installed.is_ok_and(|status| status.success()) {
        println!("SKIP: cargo-fuzz is not installed");
        return Ok(Outcome::Skipped("cargo-fuzz is not installed".to_owned()));
    }
    let listed = fuzz(workspace).arg("list").output();
    let listed = listed.context("cargo fuzz list")?;
    let targets = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut count = 0;
    for target in targets.lines().filter(|line| !line.is_empty()) {
        let mut run = fuzz(workspace);
        run.args(["run", "--sanitizer", "none", target]);
        run.args(["--", "-rss_limit_mb=1024"]);
        run.arg(format!("-max_total_time={SECONDS}"));
        let ran = steps::command(&mut run)?;
        if !matches!(ran, Outcome::Passed(_)) {
            return Ok(Outcome::Failed(format!("{target} found something")));
        }
        count += 1;
    }
    if count == 0 {
        return Ok(Outcome::Failed("there are no targets".to_owned()));
    }
    Ok(Outcome::Passed(format!("{count} targets")))
}

/// `cargo fuzz`, in a target directory of its own.
fn fuzz(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command
        .arg("fuzz")
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"));
    command
}
