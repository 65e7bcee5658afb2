//! Runs rows: each in a process of its own, some side by side, none beyond its time.
//!
//! A row's process is a subreaper: whatever its cores and plugins leave behind becomes its child and is
//! killed at its end, so that no row disturbs another and nothing outlives the run. Should the row's
//! process itself hang, this one does the same for it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::machine::{Machine, Since};
use crate::processes;
use crate::report::{Entry, Findings, Row};
use crate::table::{Fault, Lane};

/// Patient rows at once: they wait most of the time.
const SIDE_BY_SIDE: usize = 8;
/// Between two looks at what runs.
const LOOK: Duration = Duration::from_millis(50);

/// What is the same for all rows of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Of everything random.
    pub(crate) seed: u64,
    /// At full length.
    pub(crate) long: bool,
}

struct Running {
    fault: &'static Fault,
    child: Child,
    began: Instant,
    since: Since,
    /// What an earlier try broke, and why it does not count.
    before: Option<String>,
}

/// Runs all of `faults`, patient ones first and together, and returns what came of them in their order.
pub(crate) fn run(faults: &[&'static Fault], how: How, directory: &Path) -> Result<Vec<Entry>> {
    become_subreaper();
    let machine = Machine::watch();
    let (mut patient, alone): (Vec<&Fault>, Vec<&Fault>) =
        faults.iter().partition(|fault| fault.lane == Lane::Patient);
    // What may take longest begins first, so that no long row is left to wait for alone at the end.
    patient.sort_by_key(|fault| Reverse(fault.bound));
    let mut entries = BTreeMap::new();
    for (rows, at_once) in [(patient, SIDE_BY_SIDE), (alone, 1)] {
        let mut waiting = rows.into_iter();
        let mut running: Vec<Running> = Vec::new();
        loop {
            while running.len() < at_once
                && let Some(fault) = waiting.next()
            {
                running.push(start(fault, how, directory, &machine)?);
            }
            if running.is_empty() {
                break;
            }
            std::thread::sleep(LOOK);
            let mut index = 0;
            while index < running.len() {
                let Some(mut findings) = look_at(&mut running[index], directory)? else {
                    index += 1;
                    continue;
                };
                let ended = running.swap_remove(index);
                if let Some(why) = counts_not(&ended, &findings, &machine, directory) {
                    println!("{} again: {why}", ended.fault.id);
                    let mut again = start(ended.fault, how, directory, &machine)?;
                    again.before = Some(why);
                    running.push(again);
                    continue;
                }
                findings.second_try = ended.before.is_some();
                findings.notes.extend(ended.before);
                let (id, name) = (ended.fault.id, ended.fault.name);
                let entry = Entry::new(id, name, findings, how.seed, ended.began.elapsed());
                print!("{}", entry.text());
                entries.insert(id, entry);
            }
            let rows: Vec<u32> = running.iter().map(|running| running.child.id()).collect();
            end_strays(&rows);
        }
    }
    Ok(entries.into_values().collect())
}

fn become_subreaper() {
    // Where there is no such thing, rows still end what they know of.
    let set = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    if let Err(error) = set {
        println!("no subreaper on this system ({error}): leftovers may stay behind");
    }
}

/// Why a failure says nothing of the core: all that is broken are times, and the machine itself stood
/// still meanwhile. Then the row is run once more, and only once; what the first try broke is told all
/// the same, and its log stays.
fn counts_not(
    ended: &Running,
    findings: &Findings,
    machine: &Machine,
    directory: &Path,
) -> Option<String> {
    if ended.before.is_some() || !findings.only_times_broken() {
        return None;
    }
    let how = machine.stood_still(ended.since)?;
    let log = log_of(ended.fault, directory);
    std::fs::rename(&log, log.with_extension("first.log")).ok();
    let broken = findings.all_broken().join("; ");
    Some(format!(
        "second try: the machine stood still during the first ({how}), which broke: {broken}"
    ))
}

fn start(fault: &'static Fault, how: How, directory: &Path, machine: &Machine) -> Result<Running> {
    let log = File::create(log_of(fault, directory)).context("a log")?;
    // What an earlier run found must not count for this one.
    std::fs::remove_file(findings_of(fault, directory)).ok();
    let mut command = Command::new(std::env::current_exe().context("the own program")?);
    command
        .args([
            "row",
            fault.id,
            "--seed",
            &how.seed.to_string(),
            "--directory",
        ])
        .arg(directory);
    if how.long {
        command.arg("--long");
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("a log")?)
        .stderr(log)
        .spawn()
        .context("a row's process")?;
    println!("{} begins: {}", fault.id, fault.name);
    Ok(Running {
        fault,
        child,
        began: Instant::now(),
        since: machine.now(),
        before: None,
    })
}

/// What a row found, once it has ended.
fn look_at(running: &mut Running, directory: &Path) -> Result<Option<Findings>> {
    let Some(status) = running.child.try_wait().context("a row's process")? else {
        if running.began.elapsed() < running.fault.bound {
            return Ok(None);
        }
        end(&mut running.child);
        let bound = running.fault.bound;
        return Ok(Some(broken(format!("it went on for more than {bound:?}"))));
    };
    let written = std::fs::read(findings_of(running.fault, directory)).ok();
    let found = written.and_then(|json| serde_json::from_slice(&json).ok());
    let log = log_of(running.fault, directory);
    let lost = || broken(format!("it ended with {status}; see {}", log.display()));
    Ok(Some(found.unwrap_or_else(lost)))
}

fn broken(what: String) -> Findings {
    Findings {
        broken: vec![what],
        ..Findings::default()
    }
}

/// Ends a row that does not end by itself, and all that it started.
fn end(child: &mut Child) {
    for process in processes::descendants(child.id()) {
        processes::kill(process.pid);
    }
    // Its remaining children become strays of this process.
    child.kill().ok();
    child.wait().ok();
}

/// Children of this process that are no rows: left by rows that were ended.
fn end_strays(rows: &[u32]) {
    let own = std::process::id();
    for process in processes::all() {
        if process.parent == own && !rows.contains(&process.pid) {
            processes::kill(process.pid);
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            // Not yet dead, or somebody else's: the next look sees.
            waitpid(pid, WaitOptions::NOHANG).ok();
        }
    }
}

fn log_of(fault: &Fault, directory: &Path) -> PathBuf {
    directory.join(format!("{}.log", fault.id))
}

fn findings_of(fault: &Fault, directory: &Path) -> PathBuf {
    directory.join(format!("{}.findings.json", fault.id))
}

/// In a row's own process: runs it and writes down what it found.
pub(crate) fn run_row(fault: &'static Fault, how: How, directory: &Path) -> Result<()> {
    become_subreaper();
    let row = Row::new(how.seed, how.long);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("threads")?;
    let playing = (fault.run)(row.clone());
    let played = runtime.block_on(async move { tokio::spawn(playing).await });
    match played {
        Ok(Ok(())) => {}
        Ok(Err(error)) => row.broken(format!("{error:#}")),
        Err(error) => row.broken(what_panicked(error)),
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    let left = processes::sweep_descendants();
    if !left.is_empty() {
        println!("ended at the end of the row: {left:#?}");
    }
    let findings = serde_json::to_vec_pretty(&row.findings()).context("findings")?;
    std::fs::write(findings_of(fault, directory), findings).context("findings")
}

fn what_panicked(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "it was cancelled".to_owned();
    };
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let text = text.unwrap_or_else(|| "a panic without words".to_owned());
    // The core's last words follow in the log.
    text.lines().take(12).collect::<Vec<_>>().join("\n       ")
}
