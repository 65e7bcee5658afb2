//! Processes of a measurement: servers, and *roles*, this program in the part of one client.
//!
//! A role is told what to do by a line of JSON on its standard input and answers with one on its
//! standard output; it ends when its input does.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::roles::{Order, RoleName};

/// Longest wait for a role's answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    pid: u32,
}

impl Server {
    /// Starts a program; what it prints goes into `log`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
        environment: &[(String, String)],
        directory: &Path,
        log: &Path,
    ) -> Result<Self> {
        let output = std::fs::File::create(log).context("log of a server")?;
        let program = program.as_ref();
        let child = Command::new(program)
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let pid = child.id().context("it runs")?;
        Ok(Self { child, pid })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end and waits for it.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(self.pid.cast_signed()).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        if tokio::time::timeout(Duration::from_secs(15), self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// This program in the part of a client.
pub(crate) struct Role {
    name: RoleName,
    pid: u32,
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Role {
    /// Starts a role and waits until it is connected.
    pub(crate) async fn start(
        name: RoleName,
        environment: &HashMap<String, String>,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("this program")?;
        let mut child = Command::new(program)
            .arg("role")
            .arg(name.as_str())
            .envs(environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("a role")?;
        let output = child.stdout.take().context("it is piped")?;
        let mut role = Self {
            name,
            pid: child.id().context("it runs")?,
            input: child.stdin.take(),
            output: BufReader::new(output).lines(),
            child,
        };
        let _ready: serde_json::Value = role.answer().await?;
        Ok(role)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Gives an order without waiting for the answer.
    pub(crate) async fn order(&mut self, order: &Order) -> Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        let input = self.input.as_mut().context("it is piped")?;
        input.write_all(&line).await.context("telling a role")?;
        Ok(())
    }

    /// Waits for the answer to an order.
    pub(crate) async fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let name = self.name.as_str();
        let line = tokio::time::timeout(PATIENCE, self.output.next_line())
            .await
            .with_context(|| format!("{name} did not answer within {PATIENCE:?}"))?
            .with_context(|| format!("reading from {name}"))?;
        let Some(line) = line else {
            bail!("{name} ended: {}", self.child.wait().await?);
        };
        serde_json::from_str(&line).with_context(|| format!("{name} said {line:?}"))
    }

    /// Gives an order and waits for its answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, order: &Order) -> Result<T> {
        self.order(order).await?;
        self.answer().await
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) -> Result<()> {
        drop(self.input.take());
        if tokio::time::timeout(Duration::from_secs(15), self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await?;
        }
        Ok(())
    }
}
