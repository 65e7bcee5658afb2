//! A child process and its group.
//!
//! - Started with a cleared environment, kept to what its [`Confinement`] says, its data directory as
//!   working directory. Its standard input is a pipe that stays open: its end tells an SDK that the
//!   core has died.
//! - Its exit is noticed by a pidfd, for this child alone: `waitpid(-1)` would steal the statuses of
//!   others. The group is killed while the leader's zombie still pins the group's id, then the leader
//!   is reaped: in any other order the id might belong to a stranger.
//! - What left the group is ended before it is reaped too, by its keeper (`custody/`).
//! - Dropping it kills the group.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{ChildStderr, ChildStdout};

use super::custody::{Stream, Ticket};
use super::isolation::{self, Confinement, RunGroup};
use super::lifecycle::Exit;
use crate::plugin_manager::Command;

/// Names passed on from the core's own environment to every child.
const INHERITED: [&str; 4] = ["PATH", "LANG", "TZ", "HOME"];

/// A live child. Dropping it kills its group.
#[derive(Debug)]
pub struct Process {
    /// Holds standard input open; reaps.
    leader: tokio::process::Child,
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    /// What strikes it off the keeper's lists.
    ticket: Option<Ticket>,
    reaped: bool,
    /// Its cgroup, where it has one. After the leader: it goes when nobody is in it.
    cgroup: Option<RunGroup>,
}

/// What a child writes to.
#[derive(Debug)]
pub struct Pipes {
    /// Its standard output.
    pub stdout: ChildStdout,
    /// Its standard error.
    pub stderr: ChildStderr,
}

impl Pipes {
    /// What its ends of them are called in `/proc`: both ends of a pipe are one file.
    pub(super) fn streams(&self) -> Vec<Stream> {
        let ends = [self.stdout.as_fd(), self.stderr.as_fd()];
        let stream = |end| {
            let status = rustix::fs::fstat(end).ok()?;
            Some((status.st_dev, status.st_ino))
        };
        ends.into_iter().filter_map(stream).collect()
    }
}

/// Why a child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its working directory cannot be made.
    #[error("its directory {} cannot be made", path.display())]
    Directory {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program is missing or is none.
    #[error("{} cannot be started", program.display())]
    Program {
        /// Which.
        program: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its start did not return.
    #[error(
        "the start of {} hangs: the file system of the program, of its interpreter (the first line of a \
         script) or of its directory does not answer",
        program.display()
    )]
    Hung {
        /// Which.
        program: std::path::PathBuf,
    },
    /// It cannot be kept to what is asked for.
    #[error("it cannot be isolated as its manifest asks")]
    Isolation(#[from] isolation::Error),
    /// The core lacks something for the moment.
    #[error("no process could be made")]
    Resources(#[source] io::Error),
}

impl SpawnError {
    /// Whether another try would fail as well.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        matches!(self, Self::Program { .. } | Self::Isolation(_))
    }
}

/// The environment of a child: what every child inherits, what its manifest passes on, what it
/// declares, and the core's own, which nothing overrides.
#[must_use]
pub fn environment(
    command: &Command,
    own: &[(&'static str, String)],
    inherited: impl Fn(&str) -> Option<OsString>,
) -> BTreeMap<OsString, OsString> {
    let mut environment = BTreeMap::new();
    let passed = command.pass_env.iter().map(String::as_str);
    for name in INHERITED.into_iter().chain(passed) {
        if let Some(value) = inherited(name) {
            environment.insert(name.into(), value);
        }
    }
    let declared = command
        .env
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    environment.extend(declared);
    let own = own.iter().map(|(name, value)| (name.into(), value.into()));
    environment.extend(own);
    environment
}

impl Process {
    /// Starts a child: on the thread that forks, which needs a tokio runtime around it. `arm` does
    /// what comes last between `fork` and `exec`.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing runs then.
    pub(super) fn spawn(
        command: &Command,
        environment: &BTreeMap<OsString, OsString>,
        confinement: &Confinement,
        arm: impl FnOnce(&mut std::process::Command, Option<&RunGroup>),
    ) -> Result<(Self, Pipes), SpawnError> {
        make_directory(&command.working_dir).map_err(|source| SpawnError::Directory {
            path: command.working_dir.clone(),
            source,
        })?;
        let mut building = std::process::Command::new(&command.program);
        building
            .args(&command.args)
            .env_clear()
            .envs(environment)
            .current_dir(&command.working_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let cgroup = confinement.apply(&mut building, &command.working_dir)?;
        arm(&mut building, cgroup.as_ref());
        let mut building = tokio::process::Command::from(building);
        let mut leader = building.kill_on_drop(true).spawn().map_err(|source| {
            use io::ErrorKind::{ArgumentListTooLong, InvalidInput, NotFound, PermissionDenied};
            // "Exec format error" has no kind of its own.
            let no_program =
                source.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error());
            match source.kind() {
                NotFound | PermissionDenied | InvalidInput | ArgumentListTooLong => {
                    SpawnError::Program {
                        program: command.program.clone(),
                        source,
                    }
                }
                _ if no_program => SpawnError::Program {
                    program: command.program.clone(),
                    source,
                },
                _ => SpawnError::Resources(source),
            }
        })?;
        let pid = leader
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .expect("a child that was not reaped has an id");
        let stdout = leader.stdout.take().expect("stdout is piped");
        let stderr = leader.stderr.take().expect("stderr is piped");
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(watch);
        let pidfd = pidfd.map_err(|source| {
            // Without it nobody would notice its exit.
            signal_group(pid, Signal::KILL);
            SpawnError::Resources(source)
        })?;
        let process = Self {
            leader,
            pid,
            pidfd,
            ticket: None,
            reaped: false,
            cgroup,
        };
        Ok((process, Pipes { stdout, stderr }))
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Hands it over to its keeper.
    pub(super) fn keep(&mut self, ticket: Ticket) {
        self.ticket = Some(ticket);
    }

    /// Waits for the leader's exit and kills what is left of its group; [`Self::bury`] it then.
    /// Cancel safe.
    pub async fn exited(&mut self) -> Exit {
        let status = loop {
            let Ok(mut ready) = self.pidfd.readable().await else {
                // The runtime is going away; so is the child, by its drop.
                std::future::pending::<()>().await;
                continue;
            };
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(Some(status)) => break Some(status),
                Ok(None) | Err(rustix::io::Errno::INTR) => ready.clear_ready(),
                Err(_) => break None,
            }
        };
        signal_group(self.pid, Signal::KILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        Exit {
            code: status.as_ref().and_then(|status| status.exit_status()),
            signal: status
                .as_ref()
                .and_then(|status| status.terminating_signal()),
            message: None,
            reason: None,
        }
    }

    /// Ends what left the group of a leader that has ended, and reaps it: in this order, for until
    /// then its id means this run and nobody else. Bounded by the keeper's sweep.
    pub async fn bury(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            ticket.sweep().await;
            ticket.release();
        }
        if let Err(error) = self.leader.try_wait() {
            tracing::warn!(pid = self.id(), %error, "a child could not be reaped");
        }
        self.reaped = true;
        if let Some(ticket) = &mut self.ticket {
            ticket.reaped();
        }
    }

    /// Asks the group to end. A stopped process would never hear of it, so it is continued too.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Ends the group.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    /// Its cgroup, where it has one: everything of the run is in it, whatever group or session it
    /// chose.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(RunGroup::path)
    }

    /// Whether the kernel has ended it, or a process of its, for want of memory.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        let killed = self.cgroup.as_ref().map(RunGroup::out_of_memory);
        killed.is_some_and(|killed| killed > 0)
    }

    fn signal(&self, signal: Signal) {
        if !self.reaped {
            signal_group(self.pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The leader itself is reaped by tokio, which keeps a list of those whose handle is gone.
        self.kill();
    }
}

#[expect(
    deprecated,
    reason = "the successor is unsafe, for descriptors that are not owned; this one is"
)]
pub(super) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

fn signal_group(leader: Pid, signal: Signal) {
    match kill_process_group(leader, signal) {
        // Nobody is left, or only a zombie of another user's.
        Ok(()) | Err(rustix::io::Errno::SRCH | rustix::io::Errno::PERM) => {}
        Err(error) => tracing::warn!(group = ?leader, ?signal, %error, "a group was not signalled"),
    }
}

/// Makes a plugin's data directory, for its owner only.
fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}
