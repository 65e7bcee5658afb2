//! strace on a running core: lets calls fail, or records them.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{CoreProcess, patience};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

/// Time for its end.
const END: Duration = Duration::from_secs(10);

/// One that is attached. Dropping it kills it, and the core goes on.
pub(crate) struct Tracer {
    child: Child,
    lines: JoinHandle<Vec<String>>,
}

impl Tracer {
    pub(crate) async fn is_installed() -> bool {
        Command::new("strace").arg("-V").output().await.is_ok()
    }

    /// Attaches to all threads of a core, with what these arguments say. `None`: it may not be traced.
    pub(crate) async fn attach(core: &CoreProcess, arguments: &[&OsStr]) -> Result<Option<Self>> {
        let mut child = Command::new("strace")
            .arg("-f")
            .args(arguments)
            .args(["-p", &core.pid().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("strace")?;
        let stderr = child.stderr.take().context("its output")?;
        let mut lines = BufReader::new(stderr).lines();
        let attached = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("attached") {
                    return true;
                }
            }
            false
        };
        let attached = tokio::time::timeout(patience(), attached).await;
        if !attached.unwrap_or(false) {
            return Ok(None);
        }
        let lines = tokio::spawn(async move {
            let mut told = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                told.push(line);
            }
            told
        });
        Ok(Some(Self { child, lines }))
    }

    /// Detaches. What it told, a line a call, unless it was told to write elsewhere.
    pub(crate) async fn end(mut self) -> Result<Vec<String>> {
        let pid = self.child.id().context("it runs")?;
        core_tests::signal(pid, rustix::process::Signal::INT);
        let ended = tokio::time::timeout(END, self.child.wait()).await;
        ended.context("strace ends")?.context("its own child")?;
        self.lines.await.context("its output")
    }
}
