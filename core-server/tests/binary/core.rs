//! A core as a process in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// How long anything may take; far more than it needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a process ended and what it wrote.
pub(crate) struct End {
    /// `None`: a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for End {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// The binary, a directory, and the process while it runs. Dropping it kills the process.
pub(crate) struct Core {
    directory: TempDir,
    environment: Vec<(&'static str, &'static str)>,
    /// Where the core's log goes instead of a pipe.
    log: Option<&'static str>,
    child: Option<Child>,
}

impl Core {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("core-test-").tempdir();
        Self {
            directory: directory.expect("a temporary directory"),
            environment: Vec::new(),
            log: None,
            child: None,
        }
    }

    pub(crate) fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.environment.push((name, value));
        self
    }

    #[allow(
        dead_code,
        reason = "each test file that includes this uses a part of it"
    )]
    pub(crate) fn log_to(mut self, path: &'static str) -> Self {
        self.log = Some(path);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        let parent = path.parent().expect("below the directory");
        std::fs::create_dir_all(parent).expect("a directory");
        std::fs::write(&path, content).expect("a file");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_core-server"));
        let own = |name: &str| name.starts_with("RUNTIME_") || name.starts_with("CORE_");
        let inherited = std::env::vars().filter(|(name, _)| !own(name));
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .env_clear()
            .envs(inherited)
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command beside the core until it ends by itself.
    pub(crate) fn run(&self, arguments: &[&str]) -> End {
        let child = self.command(arguments).spawn().expect("it can be started");
        wait(child)
    }

    /// Starts the core and waits until it serves; the channel is an operator's.
    pub(crate) async fn boot(&mut self) -> Channel {
        let mut core = self.command(&[]);
        if let Some(path) = self.log {
            let log = std::fs::File::options().write(true).open(path);
            core.stderr(log.expect("it can be written"));
        }
        self.child = Some(core.spawn().expect("it can be started"));
        let deadline = Instant::now() + PATIENCE;
        while self.run(&["health"]).code != Some(0) {
            let child = self.child.as_mut().expect("just started");
            if child.try_wait().expect("its own child").is_some() {
                let end = self.end();
                panic!(
                    "the core ended with {:?}: {}{}",
                    end.code, end.stdout, end.stderr
                );
            }
            assert!(Instant::now() < deadline, "the core does not serve");
        }
        operator(&self.path("data/run/operator.sock")).await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("a live process");
    }

    /// Waits for the end of the core.
    pub(crate) fn end(&mut self) -> End {
        wait(self.child.take().expect("it runs"))
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended already.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Waits for an end, bounded; drains the output meanwhile, so that a full pipe holds nobody up.
fn wait(child: Child) -> End {
    let pid = child.id();
    let (told, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(child.wait_with_output()));
    match ended.recv_timeout(PATIENCE) {
        Ok(output) => output.expect("its own child").into(),
        Err(_) => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            kill_process(pid.expect("a process id"), Signal::KILL).ok();
            panic!("it goes on for more than {PATIENCE:?}");
        }
    }
}

async fn operator(socket: &Path) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let connected = endpoint.expect("an address").connect().await;
    connected.expect("the core serves")
}
