//! The core as a child of ours, and the processes that descend from it.
//!
//! The core gets a process group of its own: a Ctrl-C of the terminal reaches us alone, and we pass
//! it on once. (A second signal makes a core stop without grace, so it must not get two by accident.)
//! If we fail, it is killed; its own children then die with it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::checkout::Checkout;
use crate::client::Client;
use crate::prepare::Home;

/// A running core.
#[derive(Debug)]
pub(crate) struct Core {
    child: Child,
    pid: Pid,
}

impl Core {
    /// Starts the core of a home.
    pub(crate) fn start(checkout: &Checkout, home: &Home) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(home.log())
            .context("cannot open the core's log")?;
        let mut command = Command::new(checkout.binary("core-server")?);
        command
            .arg("--config")
            .arg(home.config())
            .current_dir(&home.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the core's log")?)
            .stderr(log)
            .process_group(0);
        let mut command = tokio::process::Command::from(command);
        let child = command
            .kill_on_drop(true)
            .spawn()
            .context("cannot start core-server")?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        Ok(Self {
            child,
            pid: pid.context("core-server has no process id")?,
        })
    }

    /// Waits until the core answers on its operator socket.
    pub(crate) async fn answers(&mut self, home: &Home) -> Result<Client> {
        let connect = async {
            // The socket appears when the core is ready; there is nothing else to wait on.
            let mut every = tokio::time::interval(std::time::Duration::from_millis(50));
            loop {
                every.tick().await;
                if let Ok(client) = Client::connect(&home.operator_socket()).await {
                    return client;
                }
            }
        };
        tokio::select! {
            client = timeout(PATIENCE, connect) => {
                client.context("the core does not answer on its operator socket")
            }
            status = self.child.wait() => bail!("the core ended: {}", status?),
        }
    }

    /// Waits for the end of the core.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.context("cannot wait for the core")
    }

    /// Asks the core to stop.
    pub(crate) fn stop(&self) {
        // It may have ended just now: then there is nobody to ask.
        kill_process(self.pid, Signal::TERM).ok();
    }

    /// Asks the core to stop and waits for it.
    pub(crate) async fn stopped(&mut self) -> Result<ExitStatus> {
        self.stop();
        let ended = timeout(PATIENCE, self.ended()).await;
        ended.context("the core does not stop")?
    }

    /// The core and everything that descends from it now.
    pub(crate) fn family(&self) -> Result<BTreeSet<Process>> {
        let everybody = processes()?;
        let mut family = BTreeSet::new();
        let mut waiting = vec![self.pid.as_raw_nonzero().get()];
        while let Some(pid) = waiting.pop() {
            if let Some((process, _)) = everybody.iter().find(|(process, _)| process.pid == pid) {
                family.insert(*process);
            }
            let children = everybody.iter().filter(|(_, parent)| *parent == pid);
            waiting.extend(children.map(|(process, _)| process.pid));
        }
        Ok(family)
    }
}

/// A process: its id, and when it began, since ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    began: u64,
}

/// Those of `family` that still live. Ended ones whose parent has not asked for them do not count.
pub(crate) fn alive(family: &BTreeSet<Process>) -> Result<Vec<Process>> {
    let everybody = processes()?;
    let lives = |process: &&Process| everybody.iter().any(|(other, _)| other == *process);
    Ok(family.iter().filter(lives).copied().collect())
}

/// All living processes, each with its parent's id.
fn processes() -> Result<Vec<(Process, i32)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc is needed")? {
        let stat = entry?.path().join("stat");
        // What ends while we look is not there.
        if let Ok(stat) = fs::read_to_string(stat)
            && let Some(process) = parse_stat(&stat)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// Reads a line of `/proc/PID/stat` (proc(5)); `None` for one that has ended.
fn parse_stat(stat: &str) -> Option<(Process, i32)> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    // The name is in parentheses and may hold anything; the state follows the last one.
    let fields: Vec<_> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let parent = fields.get(1)?.parse().ok()?;
    let began = fields.get(19)?.parse().ok()?;
    Some((Process { pid, began }, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_name() {
        let rest = "5 6 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 0";
        let stat = format!("42 (a) b) S 7 {rest}");
        let process = Process {
            pid: 42,
            began: 777,
        };
        assert_eq!(parse_stat(&stat), Some((process, 7)));
        assert_eq!(parse_stat(&format!("42 (x) Z 7 {rest}")), None);
        assert_eq!(parse_stat("42"), None);
    }

    #[test]
    fn this_process_is_alive() {
        let own = processes().expect("there is /proc");
        let pid = i32::try_from(std::process::id()).expect("ids are small");
        assert!(own.iter().any(|(process, _)| process.pid == pid));
    }
}
