//! `cargo demo`: builds the small home and hands over to its program, which is `demo/`.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::dist::SHIPPED;
use crate::steps::{self, Outcome};
use crate::suite;
use crate::workspace::Workspace;

/// The demo's own program.
const PROGRAM: &str = "core-demo";
/// What a line of the scene begins with that was left out.
const SKIP: &str = "SKIP";

/// Builds everything that the home needs, then becomes the demo. Comes back only with an error.
pub(crate) fn run(workspace: &Workspace, exit: bool) -> Result<Infallible> {
    let built = steps::command(&mut workspace.cargo(build()))?;
    if !matches!(built, Outcome::Passed(_)) {
        bail!("the build failed");
    }
    let mut demo = Command::new(workspace.binary(PROGRAM));
    demo.args(exit.then_some("--exit"));
    // In place of this program: a Ctrl-C is the demo's alone, and so is the end that a shell waits for.
    Err(demo.exec()).context("cannot start the demo")
}

/// Only what the home needs, with the features of the whole workspace: what is built next finds its
/// dependencies made.
fn build() -> Vec<&'static str> {
    let mut arguments = vec!["build", "--workspace", "--locked", "--bin", PROGRAM];
    arguments.extend(SHIPPED.iter().flat_map(|name| ["--bin", name]));
    arguments
}

/// Plays the scene, as a step; prints each check.
pub(crate) fn scene(workspace: &Workspace) -> Result<Outcome> {
    let built = steps::command(&mut workspace.cargo(suite::BUILD))?;
    if !matches!(built, Outcome::Passed(_)) {
        return Ok(built);
    }
    let mut demo = Command::new(workspace.binary(PROGRAM))
        .arg("--exit")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the demo")?;
    let printed = demo.stdout.take().context("the demo has no output")?;
    let mut remark = String::new();
    for line in BufReader::new(printed).lines() {
        let line = line.context("the demo's output")?;
        println!("{line}");
        if let Some(skipped) = line.strip_prefix(SKIP) {
            remark = format!("skipped: {}", skipped.trim());
        }
    }
    let status = demo.wait().context("cannot wait for the demo")?;
    Ok(if status.success() {
        Outcome::Passed(remark)
    } else {
        Outcome::Failed(format!("a check of the scene failed: {status}"))
    })
}
