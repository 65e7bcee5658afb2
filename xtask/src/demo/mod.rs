//! `cargo demo`: a small living home on an embedded database, and the scripted scene of
//! `cargo demo --exit`.
//!
//! | part | where |
//! |---|---|
//! | building, the directory of the home, manifests, configuration | `prepare.rs` |
//! | the Python plugin's virtual environment and stubs | `python.rs` |
//! | the core as a child of ours, and who descends from it | `core.rs` |
//! | what we ask the core, over the operator socket | `client.rs` |
//! | running until Ctrl-C | `home.rs` |
//! | a plugin that comes over TCP | `remote.rs` |
//! | `corectl` | `tool.rs` |
//! | the scene | `scene.rs` |
//!
//! The home lives under `target/demo/` and keeps its data from one time to the next; the scene has a
//! home of its own and begins with an empty one. Every wait is bounded by [`PATIENCE`], which is
//! generous because the machine may be busy; none is a fixed sleep.

mod client;
mod core;
mod home;
mod prepare;
mod python;
mod remote;
mod scene;
mod tool;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// How long anything expected may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to do with the home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Live until a signal.
    UntilStopped,
    /// Play the scene.
    Scene,
}

impl Mode {
    pub(crate) fn from_flag(exit: bool) -> Self {
        if exit {
            Self::Scene
        } else {
            Self::UntilStopped
        }
    }
}

/// `cargo demo`.
pub(crate) fn run(workspace: &Workspace, mode: Mode) -> Result<ExitCode> {
    prepare::build(workspace)?;
    Ok(match mode {
        Mode::UntilStopped => runtime()?.block_on(home::live(workspace))?,
        Mode::Scene => match scene(workspace)? {
            Played::Passed { .. } => ExitCode::SUCCESS,
            Played::Failed => ExitCode::FAILURE,
        },
    })
}

/// How the scene went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Played {
    /// Every check that was made passed.
    Passed {
        /// What was left out and why; empty if nothing was.
        remark: String,
    },
    /// A check failed.
    Failed,
}

/// Plays the scene with the binaries that are built; prints each check.
pub(crate) fn scene(workspace: &Workspace) -> Result<Played> {
    runtime()?.block_on(scene::play(workspace))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")
}
