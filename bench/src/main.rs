//! Core Runtime measured beside named peers. `cargo xtask bench` builds and runs it; `bench/README.md`
//! says what is measured and how to read it.

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod measure;
mod process;
mod report;
mod roles;
mod rows;
mod servers;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};

use crate::report::Entry;
use crate::rows::How;
use crate::table::{ROWS, Row};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// Only these rows; all if none is given.
    names: Vec<String>,
    /// Fewer and shorter rounds: to see that everything works, not to compare.
    #[arg(long)]
    quick: bool,
    /// Fails when a target that `bench/met.json` says was met is missed by more than 15 %.
    #[arg(long)]
    check: bool,
    /// Writes the targets that are met into this file, for `--check`.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Lists the rows.
    #[arg(long)]
    list: bool,
    /// The core's binary. Otherwise `core-server` beside this program.
    #[arg(long)]
    core: Option<PathBuf>,
    /// Holds `results.json`. Otherwise `bench` in the target directory.
    #[arg(long)]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Plays the part of one client.
    #[command(hide = true)]
    Role { name: roles::RoleName },
}

/// What was met when the table was last recorded.
const MET: &str = include_str!("../met.json");

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Task::Role { name }) = arguments.task {
        return roles::run(name);
    }
    bench(&arguments).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn bench(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.list {
        for row in ROWS {
            println!("{:<22} {} ({})", row.name, row.what, row.target);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&arguments.names)?;
    let program = std::env::current_exe().context("this program")?;
    let core = arguments.core.clone();
    let core = core.unwrap_or_else(|| program.with_file_name("core-server"));
    if !core.is_file() {
        bail!(
            "{} is not there: `cargo xtask bench` builds it",
            core.display()
        );
    }
    let how = How {
        core,
        rounds: if arguments.quick { 2 } else { 5 },
        seconds: if arguments.quick { 1.0 } else { 2.0 },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("a runtime")?;
    let mut entries = Vec::new();
    for row in chosen {
        eprintln!("{}: {}", row.name, row.what);
        entries.push((runtime.block_on(measure_row(row, &how)), row.target));
    }
    let list: Vec<&Entry> = entries.iter().map(|(entry, _)| entry).collect();
    let directory = arguments.directory.clone();
    let directory = directory.or_else(|| Some(program.parent()?.parent()?.join("bench")));
    let directory = directory.context("a directory for the results")?;
    std::fs::create_dir_all(&directory).context("the directory of the results")?;
    let results = directory.join("results.json");
    std::fs::write(&results, serde_json::to_vec_pretty(&list)?).context("results")?;
    let owned: Vec<Entry> = list.into_iter().cloned().collect();
    println!("{}", report::table(&owned));
    println!("quotas of plugins: none; results: {}", results.display());
    if let Some(file) = &arguments.record {
        let met: report::Met = owned
            .iter()
            .filter(|entry| entry.met == Some(true))
            .filter_map(|entry| Some((entry.name.clone(), entry.ratio?)))
            .collect();
        let mut text = serde_json::to_string_pretty(&met)?;
        text.push('\n');
        std::fs::write(file, text).with_context(|| file.display().to_string())?;
    }
    let failed = owned
        .iter()
        .any(|entry| entry.notes.iter().any(|note| note.starts_with("FAILED")));
    let worse = report::regressions(&entries, &report::read_met(MET)?);
    if arguments.check {
        for line in &worse {
            println!("worse: {line}");
        }
    }
    Ok(if failed || (arguments.check && !worse.is_empty()) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn choose(names: &[String]) -> Result<Vec<&'static Row>> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !ROWS.iter().any(|row| row.name == name.as_str()))
    {
        bail!("there is no row {unknown}; `cargo xtask bench --list` names them");
    }
    let wanted = |row: &&Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.iter().filter(wanted).collect())
}

async fn measure_row(row: &Row, how: &How) -> Entry {
    let (found, failure) = match (row.measure)(how).await {
        Ok(found) => (found, None),
        Err(error) => (rows::Found::default(), Some(format!("FAILED: {error:#}"))),
    };
    let ratio = match (found.ours, found.peer) {
        (Some(ours), Some(peer)) => Some(ours / peer),
        (ours, None) if row.peer.is_empty() => ours,
        _ => None,
    };
    Entry {
        name: row.name.to_owned(),
        ours: found.ours,
        peer: found.peer,
        peer_name: row.peer.to_owned(),
        unit: row.unit.to_owned(),
        ratio,
        target: row.target.to_string(),
        met: ratio.map(|ratio| row.target.is_met(ratio)),
        notes: found.notes.into_iter().chain(failure).collect(),
    }
}
