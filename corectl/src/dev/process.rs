//! The plugin's process, with what it starts: a process group of its own, so that Ctrl-C is this command's and
//! everything ends together.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use super::Variables;
use crate::failure::Failure;

/// Time for its end after SIGTERM: hooks have 5 s in the Rust SDK.
const GRACE: Duration = Duration::from_secs(8);
/// Time for the kernel to end what was killed.
const KILLED: Duration = Duration::from_secs(2);
/// Between two looks at who is left of the group.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How it ended by itself.
#[derive(Debug)]
pub(super) enum Ended {
    /// With 0.
    Well,
    /// In words.
    Badly(String),
}

/// A process group with its leader.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
}

impl Process {
    /// Starts it, with this command's output and no input.
    pub(super) fn start(command: &[OsString], variables: &Variables) -> Result<Self, Failure> {
        let (program, arguments) = command.split_first().ok_or_else(|| {
            Failure::usage(
                "there is no command",
                "corectl dev NAME -- PROGRAM [ARGUMENT…]",
            )
        })?;
        let mut starting = Command::new(program);
        starting
            .args(arguments)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in variables {
            match value {
                Some(value) => starting.env(name, value),
                None => starting.env_remove(name),
            };
        }
        let child = starting.spawn().map_err(|error| {
            Failure::usage(
                format!("cannot start {}: {error}", program.to_string_lossy()),
                "the program is looked for on PATH unless there is a slash in its name",
            )
        })?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            group: group.and_then(Pid::from_raw),
            child,
        })
    }

    /// Waits for the leader's own end.
    ///
    /// # Cancel safety
    /// The end is not lost.
    pub(super) async fn ended(&mut self) -> Ended {
        match self.child.wait().await {
            Ok(status) if status.success() => Ended::Well,
            Ok(status) => Ended::Badly(words(status)),
            Err(error) => Ended::Badly(error.to_string()),
        }
    }

    /// Ends all of it: SIGTERM, and SIGKILL after a while or when `hurry` comes.
    pub(super) async fn end(&mut self, hurry: impl Future<Output = ()>) {
        self.end_unless(hurry).await;
    }

    /// As [`Self::end`]; says whether `hurry` came.
    pub(super) async fn end_unless(&mut self, hurry: impl Future<Output = ()>) -> bool {
        self.signal(Signal::TERM);
        let hurried = tokio::select! {
            _gone = self.gone_within(GRACE) => false,
            () = hurry => true,
        };
        // Does nothing to those who are gone.
        self.signal(Signal::KILL);
        self.gone_within(KILLED).await;
        hurried
    }

    /// Whether nobody of the group is left in time.
    async fn gone_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            // Reaps the leader.
            let leader_ended = !matches!(self.child.try_wait(), Ok(None));
            if leader_ended && !self.is_there() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The number of a group is not given away again as long as one of its processes is there.
    fn is_there(&self) -> bool {
        self.group
            .is_some_and(|group| test_kill_process_group(group).is_ok())
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(group) = self.group.filter(|_| self.is_there()) {
            // Whoever has gone meanwhile needs none.
            kill_process_group(group, signal).ok();
        } else {
            self.group = None;
        }
    }
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit code".to_owned(),
    }
}
