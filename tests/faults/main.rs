//! The fault table: what is injected, what must hold, which figure is reported. `cargo xtask faults`
//! builds and runs it; `tests/README.md` says how to read it.
//!
//! A program of its own and not `#[test]`s: each row measures, some need the machine for themselves,
//! and the figures of all are one table. Without a subcommand it does nothing, so that `cargo test` and
//! `cargo nextest`, which see it among the test targets, pass it by.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod home;
mod machine;
mod measure;
mod mutator;
mod namespace;
mod observe;
mod processes;
mod raw_http2;
mod remote;
mod report;
mod rows;
mod runner;
mod simulation;
mod stats;
mod table;
mod tracer;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::runner::How;

/// The core's own binary.
const CORE: &str = env!("CARGO_BIN_EXE_core-under-test");
/// The echo plugin (`core_tests::plugins::echo`).
const ECHO: &str = env!("CARGO_BIN_EXE_fixture-echo");
/// A plugin that misbehaves as its arguments say.
const MISBEHAVING: &str = env!("CARGO_BIN_EXE_fixture-misbehaving");
/// A plugin of the SDK in one of several roles.
const PLAYER: &str = env!("CARGO_BIN_EXE_fixture-player");
/// A cable that loses packets and is late.
const LINK: &str = env!("CARGO_BIN_EXE_fixture-link");
/// A plugin that tries to get out of its sandbox.
const PROBER: &str = env!("CARGO_BIN_EXE_fixture-prober");

/// Where the logs of cores are kept.
static LOGS: OnceLock<PathBuf> = OnceLock::new();

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// What test runners ask of test programs: there are no `#[test]`s here.
    #[arg(long)]
    list: bool,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    ignored: bool,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Runs rows and prints the table.
    Run(Run),
    /// Prints the rows.
    List,
    /// Plays one seed of row 41's simulation in this process and prints what came of it.
    #[command(hide = true)]
    Simulate {
        #[arg(long)]
        seed: u64,
        /// Prints each change of a plugin too.
        #[arg(long)]
        tell: bool,
    },
    /// Runs one row in this process.
    #[command(hide = true)]
    Row {
        id: String,
        #[command(flatten)]
        place: Place,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        long: bool,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// Only these rows: 01, 15. All if none is given.
    rows: Vec<String>,
    /// Also the long rows, and the others at their full length.
    #[arg(long)]
    long: bool,
    /// Repeats what was random.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
struct Place {
    /// Holds `results.json` and logs.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../faults"))]
    directory: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.task {
        None if arguments.list => Ok(ExitCode::SUCCESS),
        None => {
            println!("the fault table is run by `cargo xtask faults`");
            Ok(ExitCode::SUCCESS)
        }
        Some(Task::List) => {
            for fault in table::FAULTS {
                println!("{} {}\n   must hold: {}", fault.id, fault.name, fault.must);
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Task::Run(run)) => run_all(&run),
        Some(Task::Simulate { seed, tell }) => simulate(seed, tell),
        Some(Task::Row {
            id,
            place,
            seed,
            long,
        }) => run_one(&id, &place, How { seed, long }),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_all(run: &Run) -> Result<ExitCode> {
    let directory = &run.place.directory;
    std::fs::create_dir_all(directory).context("the directory of the results")?;
    let directory = directory
        .canonicalize()
        .context("the directory of the results")?;
    for id in &run.rows {
        table::find(id)?;
    }
    let wanted =
        |fault: &&table::Fault| run.rows.is_empty() || run.rows.iter().any(|id| id == fault.id);
    let chosen: Vec<_> = table::FAULTS.iter().filter(wanted).collect();
    let seed = run.seed.unwrap_or_else(rand::random);
    println!("seed {seed}; again with: cargo xtask faults --seed {seed}");
    let entries = runner::run(
        &chosen,
        How {
            seed,
            long: run.long,
        },
        &directory,
    )?;
    let results = directory.join("results.json");
    let json = serde_json::to_vec_pretty(&entries).context("results")?;
    std::fs::write(&results, json).with_context(|| results.display().to_string())?;
    println!("{}", report::table(&entries));
    println!("results: {}", results.display());
    let failed = entries.iter().any(|entry| entry.passed == Some(false));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn simulate(seed: u64, tell: bool) -> Result<ExitCode> {
    let outcome = simulation::play(seed, tell)?;
    println!("{}", serde_json::to_string(&outcome).context("results")?);
    Ok(ExitCode::SUCCESS)
}

fn run_one(id: &str, place: &Place, how: How) -> Result<ExitCode> {
    let fault = table::find(id)?;
    if LOGS.set(place.directory.clone()).is_err() {
        bail!("one row for each process");
    }
    runner::run_row(fault, how, &place.directory)?;
    Ok(ExitCode::SUCCESS)
}
