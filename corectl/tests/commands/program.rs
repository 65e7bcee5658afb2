//! Runs the real binary, bounded in time, in an environment that knows no other core.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use serde_json::Value;

use crate::fake::FakeCore;

/// No step of a test takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// It must have succeeded; its stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// It must have ended with this code; its stderr.
    #[track_caller]
    pub(crate) fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.stderr
    }

    /// It must have succeeded with one JSON document.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let stdout = self.ok();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }
}

/// The lines of a text without the spaces between columns.
pub(crate) fn words(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).collect()
}

/// A command that knows no core.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corectl"));
    command
        .args(arguments)
        .env_clear()
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A command for this core, named by CORE_ADDR.
pub(crate) fn command_for(core: &FakeCore, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command.env("CORE_ADDR", &core.address);
    command
}

/// Runs against this core to the end.
pub(crate) fn corectl(core: &FakeCore, arguments: &[&str]) -> Outcome {
    run(command_for(core, arguments))
}

/// Runs against this core with something on standard input.
pub(crate) fn corectl_with_stdin(core: &FakeCore, arguments: &[&str], stdin: &str) -> Outcome {
    let mut command = command_for(core, arguments);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("spawned");
    let mut pipe = child.stdin.take().expect("piped");
    pipe.write_all(stdin.as_bytes()).expect("written");
    drop(pipe);
    finish(child)
}

/// Runs to the end.
pub(crate) fn run(mut command: Command) -> Outcome {
    finish(command.spawn().expect("spawned"))
}

fn finish(child: Child) -> Outcome {
    let pid = child.id();
    let (sender, finished) = sync_channel(1);
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let Ok(output) = finished.recv_timeout(PATIENCE) else {
        signal(pid, rustix::process::Signal::KILL);
        panic!("corectl did not end in time");
    };
    let output = output.expect("waited for");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.expect("a process id");
    rustix::process::kill_process(pid, signal).expect("signalled");
}

/// A run that goes on: its lines as they come.
pub(crate) struct Live {
    child: Child,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Live {
    /// Spawns it and reads along.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().expect("spawned");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            lines,
            ..Self::without_lines(child)
        }
    }

    /// One whose stdout is somebody else's.
    pub(crate) fn without_lines(mut child: Child) -> Self {
        let mut stderr = child.stderr.take().expect("piped");
        let (sender, errors) = sync_channel(1);
        std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).expect("text");
            sender.send(text)
        });
        Self {
            child,
            lines: sync_channel(0).1,
            errors,
        }
    }

    /// The next line of stdout.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line in time")
    }

    /// The next line of stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.line()).expect("JSON")
    }

    /// Presses Ctrl-C.
    pub(crate) fn interrupt(&self) {
        signal(self.child.id(), rustix::process::Signal::INT);
    }

    /// Its end and its stderr.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let Ok(errors) = self.errors.recv_timeout(PATIENCE) else {
            self.child.kill().expect("killed");
            panic!("corectl did not end in time");
        };
        (self.child.wait().expect("waited for"), errors)
    }
}
