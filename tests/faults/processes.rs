//! Which processes there are, as `/proc` tells.
//!
//! A core and everything that it starts work below the core's own directory, whatever else they do to
//! hide: new sessions, other parents, a cleared environment. So a row finds what its core left behind.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Ticks per second of the times in `/proc/PID/stat`: part of Linux' interface on every machine we meet.
const USER_HZ: f64 = 100.0;

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// `R`, `S`, `Z`, …
    pub(crate) state: char,
    /// Its command line.
    pub(crate) command: String,
}

/// All of them.
pub(crate) fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(look)
        .collect()
}

/// One of them.
pub(crate) fn look(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the fields go on after the name, which ends with the last parenthesis.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(Process {
        pid,
        parent,
        state,
        command: command.trim().to_owned(),
    })
}

/// Live ones whose working directory is this one or below it.
pub(crate) fn below(directory: &Path) -> Vec<Process> {
    let inside = |process: &Process| {
        let cwd = std::fs::read_link(format!("/proc/{}/cwd", process.pid));
        cwd.is_ok_and(|cwd| cwd.starts_with(directory))
    };
    all()
        .into_iter()
        .filter(|process| process.state != 'Z' && inside(process))
        .collect()
}

/// Zombies among the descendants of a process.
pub(crate) fn zombies_of(ancestor: u32) -> Vec<Process> {
    descendants(ancestor)
        .into_iter()
        .filter(|process| process.state == 'Z')
        .collect()
}

/// Children, their children, and so on.
pub(crate) fn descendants(ancestor: u32) -> Vec<Process> {
    let all = all();
    let mut family = BTreeSet::from([ancestor]);
    loop {
        let before = family.len();
        for process in &all {
            if family.contains(&process.parent) {
                family.insert(process.pid);
            }
        }
        if family.len() == before {
            break;
        }
    }
    family.remove(&ancestor);
    all.into_iter()
        .filter(|process| family.contains(&process.pid))
        .collect()
}

/// Pipes of which a process holds an end.
pub(crate) fn pipes_of(pid: u32) -> BTreeSet<PathBuf> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .collect()
}

/// Bytes of memory that a process holds.
pub(crate) fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// CPU time of a process so far, in seconds.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

/// Kills and reaps everything that descends from this process. Returns what was still alive.
///
/// The process must be a subreaper: then nothing that it started, however indirectly, can get away.
pub(crate) fn sweep_descendants() -> Vec<Process> {
    let own = std::process::id();
    let mut swept = BTreeSet::new();
    // Each round may bring to light what the dead had started meanwhile.
    for _ in 0..200 {
        let left = descendants(own);
        for process in left.iter().filter(|process| process.state != 'Z') {
            kill(process.pid);
            swept.insert(process.clone());
        }
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        if left.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // One may have been seen under several parents.
    let mut pids = BTreeSet::new();
    swept
        .into_iter()
        .filter(|process| pids.insert(process.pid))
        .collect()
}

/// Kills a process, if it is there.
pub(crate) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may be gone already.
        kill_process(pid, Signal::KILL).ok();
    }
}
