//! Real processes: the core's own binary, and plugins that a test starts itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::client::{Address, Client};
use crate::scratch::Scratch;
use crate::wait::{patience, within};

/// The core's log in its directory.
const LOG: &str = "core.log";

/// The core as a process, in a directory of its own that outlives it: it may be killed and started
/// again on the same data.
#[derive(Debug)]
pub struct CoreProcess {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    user: Option<u32>,
    scratch: Scratch,
    child: Option<Child>,
}

impl CoreProcess {
    /// A core that is not running yet; `core_toml` is its configuration, paths in it relative to its
    /// directory.
    #[must_use]
    pub fn new(program: &str, core_toml: &str) -> Self {
        let scratch = Scratch::new();
        scratch.write("core.toml", core_toml);
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            scratch,
            child: None,
        }
    }

    /// With a plugin, whose `plugin.toml` is this.
    #[must_use]
    pub fn plugin(self, name: &str, plugin_toml: &str) -> Self {
        self.scratch
            .write(&format!("plugins/{name}/plugin.toml"), plugin_toml);
        self
    }

    /// With arguments: the core's own, or the core's as those of a program that starts it.
    #[must_use]
    pub fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(str::to_owned));
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As another user, to whom its directory is given.
    ///
    /// # Panics
    /// When the tests do not run as root.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        fn give(path: &Path, user: u32) {
            std::os::unix::fs::lchown(path, Some(user), Some(user)).expect("root gives");
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                give(&entry.path(), user);
            }
        }
        give(self.scratch.path(), user);
        self.user = Some(user);
        self
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.scratch.read(LOG)
    }

    /// Starts it and waits until it serves.
    ///
    /// # Panics
    /// When it does not come to serve.
    pub async fn start(&mut self) -> Client {
        self.spawn();
        let operator = self.operator();
        let request = || tonic_health::pb::HealthCheckRequest::default();
        let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
        let deadline = tokio::time::Instant::now() + patience();
        loop {
            // Each look uses a connection of its own: a failed one waits before it tries again.
            let answer = operator
                .another_connection()
                .health()
                .check(request())
                .await;
            if answer.is_ok_and(|answer| answer.into_inner().status() == serving) {
                return operator;
            }
            let ended = self.child.as_mut().map(Child::try_wait);
            if let Some(Ok(Some(status))) = ended {
                panic!("the core ended with {status}:\n{}", self.log());
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "the core does not serve:\n{}",
                self.log()
            );
            tokio::time::sleep(crate::POLL).await;
        }
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.scratch.path().join(LOG))
            .expect("a log");
        let mut command = Command::new(&self.program);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let child = command
            .args(&self.arguments)
            .current_dir(self.scratch.path())
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| {
                !name.to_string_lossy().starts_with("RUNTIME_")
                    && !name.to_string_lossy().starts_with("CORE_")
            }))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.expect("the core can be started"));
    }

    /// An operator on the socket that the default configuration gives.
    #[must_use]
    pub fn operator(&self) -> Client {
        Client::new(self.scratch.path().join("data/run/operator.sock").as_path())
    }

    /// Somebody without a credential on the plugins' socket.
    #[must_use]
    pub fn anonymous(&self) -> Client {
        Client::new(self.scratch.path().join("data/run/core.sock").as_path())
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let child = self.child.as_ref().expect("it was started");
        child.id().expect("it runs")
    }

    /// Sends it a signal.
    pub fn signal(&self, which: Signal) {
        signal(self.pid(), which);
    }

    /// Waits for its end, for at most `budget`.
    ///
    /// # Panics
    /// When it goes on for longer.
    pub async fn wait(&mut self, budget: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("it was started");
        match tokio::time::timeout(budget, child.wait()).await {
            Ok(status) => status.expect("its own child"),
            Err(_) => panic!("the core goes on for more than {budget:?}:\n{}", self.log()),
        }
    }

    /// Kills it as nothing can prevent.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait(patience()).await;
    }
}

impl Drop for CoreProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("the core's last words:\n{}", last.join("\n"));
        }
    }
}

/// A program in this directory, with nothing of a core in its environment; not started yet.
#[must_use]
pub fn program(program: &str, arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| {
            !["RUNTIME_", "CORE_", "XDG_"]
                .iter()
                .any(|prefix| name.to_string_lossy().starts_with(prefix))
        }))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None`: a signal.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end, see [`program`].
///
/// # Panics
/// When it cannot be started, or does not end in time.
pub async fn finished(name: &str, arguments: &[&str], directory: &Path) -> Finished {
    let output = program(name, arguments, directory).output();
    let output = within("the program ends", output).await.expect("it runs");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A plugin that a test starts itself, as somebody on another machine would.
#[derive(Debug)]
pub struct Outsider {
    child: Child,
}

impl Outsider {
    /// Starts a program with the address and the token of a remote plugin.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(program: &str, address: &Address, token: &str, name: &str) -> Self {
        Self::start_with(program, &[], address, token, name)
    }

    /// As [`Self::start`], with arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_with(
        program: &str,
        args: &[&str],
        address: &Address,
        token: &str,
        name: &str,
    ) -> Self {
        use core_proto::contract::env;
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .env(env::ADDR, address.to_string())
            .env(env::TOKEN, token)
            .env(env::PLUGIN, name)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        Self {
            child: child.expect("the plugin can be started"),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn wait(mut self) -> ExitStatus {
        within("the plugin ends", self.child.wait())
            .await
            .expect("its own child")
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// When there is no such process.
pub fn signal(pid: u32, which: Signal) {
    kill_process(as_pid(pid), which).expect("a live process");
}

/// Whether there is a process of this id that is no zombie.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc(5): the state stands after the name, which ends with the last parenthesis.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn as_pid(pid: u32) -> Pid {
    let raw = i32::try_from(pid).ok();
    raw.and_then(Pid::from_raw).expect("a process id")
}
