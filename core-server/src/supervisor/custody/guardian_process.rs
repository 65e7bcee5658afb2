//! The guardian itself: what `core-server guardian` runs. No tokio, one thread, little memory.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Signal, kill_process_group};
use tokio::time::Instant;

use super::proc_fs::{self, as_pid};
use super::protocol::{Charge, LONGEST_NOTICE, Notice, READY};

/// Time between two rounds: what is killed needs some to be gone, and what forks meanwhile to be seen.
const ROUND: Duration = Duration::from_millis(20);
/// Rounds in a row that must find nobody.
const EMPTY_ROUNDS: u32 = 2;
/// After this it gives up, with the design's three seconds kept.
const BUDGET: Duration = Duration::from_millis(2_700);

/// Watches over the children of the core that holds the other end of standard input, until that ends.
/// Then it kills whatever that core has left.
///
/// # Errors
/// Standard input is not the core's socket.
pub fn run() -> io::Result<()> {
    // For those who list processes; the program is the core's own.
    let _unnamed = rustix::thread::set_name(c"core-guardian");
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let mut charge = Charge::default();
    let mut buffer = vec![0; LONGEST_NOTICE];
    loop {
        let length = match recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => break,
            Ok((length, _)) => length.min(buffer.len()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(rustix::io::Errno::CONNRESET) => break,
            Err(error) => return Err(error.into()),
        };
        match Notice::decode(&buffer[..length]) {
            Some(Notice::End) => return Ok(()),
            Some(notice) => {
                let first = matches!(notice, Notice::Cookie(_));
                charge.note(notice, |pid| Some(proc_fs::look(pid)?.started));
                if first {
                    send(socket, READY, SendFlags::NOSIGNAL)?;
                }
            }
            None => say("the core said something that is no notice; is it of another version?"),
        }
    }
    let (killed, left) = end_everything(&charge);
    match (killed, left) {
        (0, 0) => {}
        (_, 0) => say(&format!(
            "the core is gone; {killed} processes of its plugins were ended"
        )),
        _ => say(&format!(
            "the core is gone; {left} processes of its plugins could not be ended"
        )),
    }
    Ok(())
}

/// Kills until nobody is left. Says how many were killed, and how many are left after all.
fn end_everything(charge: &Charge) -> (usize, usize) {
    let began = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    let mut empty = 0;
    loop {
        let found = round(charge);
        empty = if found.is_empty() { empty + 1 } else { 0 };
        if empty >= EMPTY_ROUNDS {
            return (killed.len(), 0);
        }
        if began.elapsed() >= BUDGET {
            return (killed.len(), found.len());
        }
        killed.extend(found);
        std::thread::sleep(ROUND);
    }
}

/// Kills everybody once. Returns who was there.
fn round(charge: &Charge) -> Vec<u32> {
    for ward in charge.runs.values() {
        if let Some((leader, started)) = ward.leader {
            end_group(leader, started);
        }
        if let Some(directory) = &ward.cgroup {
            end_cgroup(directory);
        }
    }
    let leaders: Vec<_> = charge
        .runs
        .values()
        .filter_map(|ward| ward.leader)
        .collect();
    let everybody = proc_fs::everybody();
    // Its number may have become somebody else's.
    let changed_hands = |pid: u32, started: u64| {
        let now = everybody.iter().find(|seen| seen.pid == pid);
        now.is_some_and(|now| now.started != started)
    };
    let mut found = Vec::new();
    for seen in everybody.iter().filter(|seen| !seen.ended && seen.pid > 1) {
        let of_a_run = leaders.iter().any(|(leader, started)| {
            [seen.group, seen.session].contains(leader) && !changed_hands(*leader, *started)
        });
        let marked = || {
            let mark = proc_fs::mark(seen.pid);
            !charge.cookie.is_empty() && mark.is_some_and(|mark| mark.cookie == charge.cookie)
        };
        if of_a_run || marked() {
            proc_fs::kill(seen);
            found.push(seen.pid);
        }
    }
    found
}

/// At once and as a whole, so that a group that forks cannot run away. The leader may be gone: as long
/// as anybody of the group is there, the number is the group's.
fn end_group(leader: u32, started: u64) {
    let changed_hands = proc_fs::look(leader).is_some_and(|now| now.started != started);
    if let (false, Some(group)) = (changed_hands, as_pid(leader)) {
        // Nobody is left, or another user's, which root alone can end.
        let _nobody = kill_process_group(group, Signal::KILL);
    }
}

fn end_cgroup(directory: &Path) {
    // Linux 5.14; before that one by one.
    if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let members = members.lines().filter_map(|line| line.parse().ok());
    members
        .filter_map(proc_fs::look)
        .for_each(|seen| proc_fs::kill(&seen));
}

fn say(text: &str) {
    // Nobody may be left to read it.
    let _unread = writeln!(io::stderr().lock(), "guardian: {text}");
}
