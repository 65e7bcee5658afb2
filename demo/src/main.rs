//! The demo: a small living home on an embedded database, and the scripted scene of
//! `cargo demo --exit`. `cargo demo` builds what it needs and runs it.
//!
//! | part | where |
//! |---|---|
//! | what was built, and from where | `checkout.rs` |
//! | the directory of the home, manifests, configuration | `prepare.rs` |
//! | the Python plugin's virtual environment and stubs | `python.rs` |
//! | the core as a child of ours, and who descends from it | `core_process.rs` |
//! | what we ask the core, over the operator socket | `client.rs` |
//! | running until Ctrl-C | `home.rs` |
//! | a plugin that comes over TCP | `remote.rs` |
//! | `corectl` | `tool.rs` |
//! | the scene | `scene.rs` |
//!
//! The home lives under `target/demo/` and keeps its data from one time to the next; the scene has a
//! home of its own and begins with an empty one. Every wait is bounded by [`PATIENCE`], which is
//! generous because the machine may be busy; none is a fixed sleep.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod checkout;
mod client;
mod core_process;
mod home;
mod prepare;
mod python;
mod remote;
mod scene;
mod tool;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::checkout::Checkout;

/// How long anything expected may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A small living home; runs until Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "cargo demo", bin_name = "cargo demo")]
struct Arguments {
    /// Plays one scripted scene, checks every step, and ends with 0 or 1.
    #[arg(long)]
    exit: bool,
}

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let checkout = Checkout::find()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start tokio")?;
    if arguments.exit {
        runtime.block_on(scene::play(&checkout))
    } else {
        runtime.block_on(home::live(&checkout))
    }
}
