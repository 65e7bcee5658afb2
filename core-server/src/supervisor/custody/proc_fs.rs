//! What `/proc` tells of processes, proc(5). Everything here may be out of date when it is read:
//! whoever signals a process does it through [`kill`], which makes sure that it is still the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use core_proto::contract::env;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::belonging::Strangers;

/// One process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its id; with `started` it is one process and no other of this boot.
    pub(super) pid: u32,
    /// Who is told of its end.
    pub(super) parent: u32,
    /// Its process group.
    pub(super) group: u32,
    /// Its session.
    pub(super) session: u32,
    /// When it started, in clock ticks since the boot.
    pub(super) started: u64,
    /// It is a zombie, with all its threads: it runs no more.
    pub(super) ended: bool,
}

/// What a child of a core carries in its environment, and hands down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The core's instance.
    pub(super) cookie: String,
    /// The plugin.
    pub(super) plugin: String,
}

/// A process as it is now; `None`: there is none of this id.
#[must_use]
pub(super) fn look(pid: u32) -> Option<Seen> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 to 22 of `/proc/PID/stat`; the name before them may hold anything, also parentheses.
fn parse_stat(pid: u32, stat: &str) -> Option<Seen> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let mut next = || fields.next()?.parse().ok();
    let (parent, group, session) = (next()?, next()?, next()?);
    // From field 7 on; the number of threads is field 20, the start field 22.
    let threads: u32 = fields.nth(13)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    // A process whose first thread has ended shows as a zombie while others go on.
    let ended = zombie && threads <= 1;
    Some(Seen {
        pid,
        parent,
        group,
        session,
        started,
        ended,
    })
}

/// All processes that can be seen.
#[must_use]
pub(super) fn everybody() -> Vec<Seen> {
    pids().into_iter().filter_map(look).collect()
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// The ids of all processes, those that were given last first.
#[must_use]
pub(super) fn newest_first() -> Vec<u32> {
    let mut pids = pids();
    // Its last field, proc(5). Read after the ids, and before one of them can have become so old.
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last = load.split_whitespace().next_back();
    let last = last.and_then(|last| last.parse().ok()).unwrap_or(u32::MAX);
    pids.sort_unstable_by_key(|pid| std::cmp::Reverse(age_order(*pid, last)));
    pids
}

/// The ids that were given last, in a small part of the time that a list of all takes.
pub(super) fn just_given() -> impl Iterator<Item = u32> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last = load.split_whitespace().next_back();
    let last: u32 = last.and_then(|last| last.parse().ok()).unwrap_or_default();
    (0..4)
        .filter_map(move |back| last.checked_sub(back))
        .filter(|pid| *pid > 1)
}

/// Ids are given in order and begin anew at the end: those above the last one are of the round before.
fn age_order(pid: u32, last: u32) -> (bool, u32) {
    (pid <= last, pid)
}

/// The mark of a process, if it has one that we may read.
#[must_use]
pub(super) fn mark(pid: u32) -> Option<Mark> {
    parse_environment(&environment(pid)?)
}

/// The credential that a process has in its environment.
#[must_use]
pub(super) fn token(pid: u32) -> Option<Vec<u8>> {
    let environment = environment(pid)?;
    let mut entries = environment.split(|byte| *byte == 0);
    entries.find_map(|entry| {
        let value = entry.strip_prefix(env::TOKEN.as_bytes())?;
        Some(value.strip_prefix(b"=")?.to_owned())
    })
}

/// What a process had as its environment when its program began.
fn environment(pid: u32) -> Option<Vec<u8>> {
    let read = |path: String| fs::read(path).ok().filter(|content| !content.is_empty());
    let of_process = read(format!("/proc/{pid}/environ"));
    let of_any_thread = || threads(pid).find_map(|thread| read(format!("{thread}/environ")));
    of_process.or_else(of_any_thread)
}

/// Where the threads of a process are told of. What a process has is told of each that lives, and not
/// of its first one once that has ended.
fn threads(pid: u32) -> impl Iterator<Item = String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().filter_map(Result::ok);
    threads.filter_map(|thread| thread.path().to_str().map(str::to_owned))
}

fn parse_environment(environment: &[u8]) -> Option<Mark> {
    let variables: BTreeMap<_, _> = environment
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
        .filter(|(name, _)| [env::COOKIE, env::PLUGIN].contains(name))
        .collect();
    Some(Mark {
        cookie: (*variables.get(env::COOKIE)?).to_owned(),
        plugin: variables
            .get(env::PLUGIN)
            .copied()
            .unwrap_or_default()
            .to_owned(),
    })
}

/// A pipe or another open file: its device and its inode. A file of any disk may have the inode of a pipe.
pub(in crate::supervisor) type Stream = (u64, u64);

/// What a process has as standard input, output and error.
#[must_use]
pub(super) fn standard_streams(pid: u32) -> Vec<Stream> {
    let of = |directory: String| -> Vec<Stream> {
        let data = |descriptor| fs::metadata(format!("{directory}/fd/{descriptor}")).ok();
        let found = (0..3).filter_map(data);
        found.map(|data| (data.dev(), data.ino())).collect()
    };
    let of_process = of(format!("/proc/{pid}"));
    if !of_process.is_empty() {
        return of_process;
    }
    let of_threads = threads(pid).map(of);
    of_threads
        .into_iter()
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// The children of this process, whichever of its threads they belong to.
#[must_use]
pub(super) fn own_children() -> Vec<u32> {
    let this = std::process::id();
    let by_parent = || {
        everybody()
            .into_iter()
            .filter(|seen| seen.parent == this)
            .map(|seen| seen.pid)
            .collect()
    };
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let mut children = Vec::new();
    for thread in threads.filter_map(Result::ok) {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(
                list.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            // A thread that has just ended, or a kernel built without this file.
            Err(_) if thread.path().exists() => return by_parent(),
            Err(_) => {}
        }
    }
    children
}

/// The children that this process has now, and their sessions and its own.
#[must_use]
pub(super) fn strangers() -> Strangers {
    let children = own_children();
    let this = std::process::id();
    let looked_at = children.iter().chain([&this]);
    Strangers {
        sessions: looked_at
            .filter_map(|pid| Some(look(*pid)?.session))
            .collect(),
        children: children.into_iter().collect(),
    }
}

/// Tells this boot of the machine from all others.
#[must_use]
pub(super) fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// Kills one process, and no other that has got its id since it was seen.
pub(super) fn kill(seen: &Seen) {
    let Some(pid) = as_pid(seen.pid) else { return };
    // In this order: what the descriptor is for cannot change any more when the start is compared.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if look(seen.pid).is_some_and(|now| now.started == seen.started) {
        // It has ended by itself, or it is another user's: nothing that we could do.
        let _unkilled = pidfd_send_signal(&process, Signal::KILL);
    }
}

/// A process id as the system calls take it; none is for 0, which means "myself" to them, nor for 1.
pub(super) fn as_pid(pid: u32) -> Option<Pid> {
    let raw = i32::try_from(pid).ok().filter(|raw| *raw > 1)?;
    Pid::from_raw(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_program_is_called() {
        let rest = "S 7 8 9 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 123456 1 2 3";
        for name in ["sleep", "a) Z 1 1 1 (b", ""] {
            let seen = parse_stat(42, &format!("42 ({name}) {rest}")).expect("well formed");
            assert_eq!((seen.parent, seen.group, seen.session), (7, 8, 9), "{name}");
            assert_eq!((seen.started, seen.ended), (123_456, false), "{name}");
        }
        assert!(parse_stat(42, "42 (x) Z 1 1 1 0").is_none(), "cut off");
        for (threads, ended) in [(1, true), (2, false)] {
            let zombie = format!("42 (x) Z 7 8 9 0 -1 4 1 0 0 0 1 2 0 0 20 0 {threads} 0 5 0");
            let seen = parse_stat(42, &zombie).expect("well formed");
            assert_eq!((seen.ended, seen.started), (ended, 5), "{threads} threads");
        }
        assert!(parse_stat(42, "").is_none());
    }

    #[test]
    fn ids_that_were_given_last_come_first_also_after_they_began_anew() {
        let mut pids = [30_000, 3, 9, 32_000, 7];
        pids.sort_by_key(|pid| std::cmp::Reverse(age_order(*pid, 9)));
        assert_eq!(pids, [9, 7, 3, 32_000, 30_000]);
        assert!(newest_first().contains(&std::process::id()));
    }

    #[test]
    fn a_mark_is_the_cookie_and_the_plugin() {
        let read = |text: &str| parse_environment(text.replace(' ', "\0").as_bytes());
        let mark = read("PATH=/bin CORE_PLUGIN=lamp X=\u{fffd} CORE_COOKIE=c0 ").expect("marked");
        assert_eq!((mark.cookie.as_str(), mark.plugin.as_str()), ("c0", "lamp"));
        assert_eq!(read("CORE_COOKIE=c0").expect("marked").plugin, "");
        assert_eq!(read("XCORE_COOKIE=c0 CORE_PLUGIN=lamp"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn a_pipe_is_the_same_stream_at_both_ends() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sleep starts");
        let ours = child.stdout.as_ref().expect("piped");
        let ours = rustix::fs::fstat(ours).expect("open");
        let theirs = standard_streams(child.id());
        child.kill().expect("ours");
        child.wait().expect("ours");
        assert_eq!(theirs.get(1), Some(&(ours.st_dev, ours.st_ino)));
    }

    #[test]
    fn this_process_sees_itself_and_its_child() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep starts");
        let seen = look(child.id()).expect("it runs");
        assert_eq!(seen.parent, std::process::id());
        assert!(own_children().contains(&child.id()));
        assert!(everybody().iter().any(|other| other.pid == child.id()));
        // Not the process that was seen: it is left alone.
        kill(&Seen {
            started: seen.started + 1,
            ..seen.clone()
        });
        assert!(child.try_wait().expect("ours").is_none());
        kill(&seen);
        child.wait().expect("ours");
        assert_eq!(look(child.id()), None);
    }
}
