//! `cargo xtask test`, `faults`, `bench`, `dist`, and `cargo demo`: orchestration of what the other crates
//! offer, and the rules of this repository as pure checks. Nothing here ships.
//!
//! | job | where |
//! |---|---|
//! | the list of steps of `cargo xtask test` | `suite.rs`; running and summing up: `steps.rs` |
//! | rules over the tracked files | `rules/` |
//! | the fault table | `faults.rs`; its rows are `tests/faults/` |
//! | licences of dependencies | `licences.rs`; bans and sources: `bans.rs`; what is allowed: `deny.toml` |
//! | the bench; its rows are `bench/` | `bench.rs` |
//! | the demo; its program is `demo/` | `demo.rs` |
//! | what ships | `dist.rs` |
//! | the units of systemd | `units.rs` |

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod bans;
mod bench;
mod demo;
mod dist;
mod faults;
mod fuzz;
mod licences;
mod rules;
mod steps;
mod suite;
mod units;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Tasks of this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs everything that CI checks, cheap steps first.
    Test {
        /// Only these steps; all if none is given.
        steps: Vec<String>,
        /// Lists the steps and ends.
        #[arg(long)]
        list: bool,
    },
    /// Injects faults into real cores and plugins, and reports what held, with figures.
    Faults(faults::Options),
    /// Measures the core beside its peers, and prints one table.
    Bench(bench::Options),
    /// Builds what ships: stripped binaries, checksums, dependencies and their licences.
    Dist,
    /// Builds and starts a small living home; runs until Ctrl-C.
    Demo {
        /// Plays one scripted scene, checks every step, and ends with 0 or 1.
        #[arg(long)]
        exit: bool,
    },
}

fn main() -> ExitCode {
    let result = Workspace::find().and_then(|workspace| match Arguments::parse().task {
        Task::Test { list: true, .. } => Ok(suite::list()),
        Task::Test { steps, .. } => suite::run(&workspace, &steps),
        Task::Faults(options) => faults::run(&workspace, &options).map(exit_code),
        Task::Bench(options) => bench::run(&workspace, &options).map(exit_code),
        Task::Dist => dist::run(&workspace).map(|()| ExitCode::SUCCESS),
        Task::Demo { exit } => demo::run(&workspace, exit).map(|never| match never {}),
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit_code(outcome: steps::Outcome) -> ExitCode {
    match outcome {
        steps::Outcome::Passed(_) => ExitCode::SUCCESS,
        steps::Outcome::Failed(_) | steps::Outcome::Skipped(_) => ExitCode::FAILURE,
    }
}
