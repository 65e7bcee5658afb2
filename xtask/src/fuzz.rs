//! `cargo xtask test fuzz`: each target of `fuzz/` for a few seconds, where the tool and a nightly
//! toolchain are. Elsewhere it is skipped: row 35 of the fault table needs neither.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::steps::{self, Outcome};
use crate::workspace::Workspace;

/// For each target, in seconds.
const SECONDS: u32 = 10;

/// Runs all targets.
pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    if !answers(workspace, &["+nightly", "--version"]) {
        return Ok(skip("no nightly toolchain"));
    }
    if !answers(workspace, &["+nightly", "fuzz", "--version"]) {
        return Ok(skip("cargo-fuzz is not installed"));
    }
    let listed = nightly(workspace).args(["fuzz", "list"]).output();
    let listed = listed.context("cargo fuzz list")?;
    let targets = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut count = 0;
    for target in targets.lines().filter(|line| !line.is_empty()) {
        let mut fuzz = nightly(workspace);
        fuzz.args(["fuzz", "run", target, "--", "-rss_limit_mb=1024"]);
        fuzz.arg(format!("-max_total_time={SECONDS}"));
        let ran = steps::command(&mut fuzz)?;
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

/// Another toolchain than the one that runs this: by way of rustup, in a target directory of its own.
fn nightly(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command
        .arg("+nightly")
        .current_dir(&workspace.root)
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO");
    command
}

fn answers(workspace: &Workspace, arguments: &[&str]) -> bool {
    let mut command = Command::new("cargo");
    command
        .args(arguments)
        .current_dir(&workspace.root)
        .env_remove("RUSTUP_TOOLCHAIN")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn skip(reason: &str) -> Outcome {
    println!("SKIP: {reason}");
    Outcome::Skipped(reason.to_owned())
}
