//! The home, living until a signal comes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use core_proto::v1::{IntrospectionGetInfoResponse, PluginState};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::checkout::Checkout;
use crate::client::{Client, describe};
use crate::core_process::Core;
use crate::prepare::{self, Home, Residents};
use crate::python;

/// Prepares the home and lives in it until Ctrl-C.
pub(crate) async fn live(checkout: &Checkout) -> Result<ExitCode> {
    let directory = checkout.directory()?;
    let python = python::prepare(checkout, &directory.join("python"));
    if let Err(error) = &python {
        println!("without the Python plugin: {error:#}");
    }
    let home = prepare::home(checkout, directory, python.as_ref().ok(), Residents::Lively)?;
    let mut signals = Signals::new()?;
    let mut core = Core::start(checkout, &home)?;
    let begun = tokio::select! {
        begun = begin(checkout, &home, &mut core) => begun,
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

async fn begin(checkout: &Checkout, home: &Home, core: &mut Core) -> Result<()> {
    let client = core.answers(home).await?;
    if let Err(error) = started(&client, home).await {
        println!("not everything is STARTED: {error:#}");
    }
    println!("{}", banner(checkout, home, &client.info().await?)?);
    Ok(())
}

/// Waits until all plugins of the home are STARTED.
pub(crate) async fn started(client: &Client, home: &Home) -> Result<String> {
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

fn banner(checkout: &Checkout, home: &Home, info: &IntrospectionGetInfoResponse) -> Result<String> {
    let here = |path: PathBuf| match path.strip_prefix(&checkout.root) {
        Ok(relative) => relative.display().to_string(),
        Err(_) => path.display().to_string(),
    };
    let tool = here(checkout.binary("corectl")?);
    let lines = [
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
    ];
    Ok(lines.join("\n"))
}

/// The end of a log, to stand above what went wrong.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(30)..];
    format!("the end of {}:\n{}", log.display(), last.join("\n"))
}

/// Whatever asks a program to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
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
    pub(crate) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
