//! The home, living until a signal comes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use core_proto::v1::{IntrospectionGetInfoResponse, PluginState};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::client::{Client, describe};
use super::core::Core;
use super::prepare::{self, Home, Residents};
use super::python;
use crate::workspace::Workspace;

/// Prepares the home and lives in it until Ctrl-C.
pub(super) async fn live(workspace: &Workspace) -> Result<ExitCode> {
    let directory = workspace.target.join("demo");
    let python = python::prepare(workspace, &directory.join("python"));
    if let Err(error) = &python {
        println!("without the Python plugin: {error:#}");
    }
    let home = prepare::home(
        workspace,
        directory,
        python.as_ref().ok(),
        Residents::Lively,
    )?;
    let mut signals = Signals::new()?;
    let mut core = Core::start(workspace, &home)?;
    let begun = tokio::select! {
        begun = begin(workspace, &home, &mut core) => begun,
        () = signals.any() => Ok(()),
    };
    if let Err(error) = begun {
        core.stopped().await.ok();
        return Err(error.context(tail(&home.log())));
    }
    // From here on each signal is passed on: the first asks the core to stop, a second to hurry.
    let status = loop {
        tokio::select! {
            status = core.ended() => break status?,
            () = signals.any() => {
                println!("stopping ...");
                core.stop();
            }
        }
    };
    if status.success() {
        println!("the home is at rest");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}\nthe core ended: {status}", tail(&home.log()));
    Ok(ExitCode::FAILURE)
}

async fn begin(workspace: &Workspace, home: &Home, core: &mut Core) -> Result<()> {
    let client = core.answers(home).await?;
    if let Err(error) = started(&client, home).await {
        println!("not everything is STARTED: {error:#}");
    }
    println!("{}", banner(workspace, home, &client.info().await?));
    Ok(())
}

/// Waits until all plugins of the home are STARTED.
pub(super) async fn started(client: &Client, home: &Home) -> Result<String> {
    let plugins = client
        .plugins_become(|plugins| {
            home.plugins.iter().all(|name| {
                let plugin = plugins.get(name);
                plugin.is_some_and(|plugin| plugin.state() == PluginState::Started)
            })
        })
        .await?;
    let lines: Vec<_> = plugins.values().map(describe).collect();
    Ok(lines.join(", "))
}

fn banner(workspace: &Workspace, home: &Home, info: &IntrospectionGetInfoResponse) -> String {
    let here = |path: PathBuf| match path.strip_prefix(&workspace.root) {
        Ok(relative) => relative.display().to_string(),
        Err(_) => path.display().to_string(),
    };
    let tool = here(workspace.binary("corectl"));
    [
        format!("Core Runtime {}: a small home lives here.", info.version),
        format!("  plugins   {}", home.plugins.join(", ")),
        format!("  listens   {}", info.addresses.join(", ")),
        format!(
            "  data      {}, log {}",
            here(home.data()),
            here(home.log())
        ),
        format!(
            "  then try  export CORE_ADDR=unix:{}",
            home.operator_socket().display()
        ),
        format!("            {tool} plugins list; {tool} events tail"),
        format!("            {tool} services call devices.turn_on device_id=lamp_hall level:=40"),
        "  Ctrl-C ends it.".to_owned(),
    ]
    .join("\n")
}

/// The end of a log, to stand above what went wrong.
pub(super) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(30)..];
    format!("the end of {}:\n{}", log.display(), last.join("\n"))
}

/// Whatever asks a program to end.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next signal.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
