//! What carries a run that the core starts itself: a child process, or a thread for a plugin inside
//! the core's own process. A host is one future that its owner spawns; it reports what happened and
//! obeys [`Order`]s.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use core_proto::embed::{EmbeddedPlugin, Embedding};
use tokio::sync::{oneshot, watch};

use super::custody::Custody;
use super::isolation::Confinement;
use super::lifecycle::{Exit, RunEvent};
use super::output::{LogBook, LogStream, drain};
use super::process::SpawnError;
use super::program::Identity;
use super::usage::{Gauge, UsageMeter};
use crate::error::chain;
use crate::plugin_manager::Command;
use crate::types::{Generation, PluginName};

/// How long a dead child's last words are waited for. A grandchild may hold its pipes for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a host is to do; only ever rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Carry the run.
    Run,
    /// Ask it to end.
    Terminate,
    /// End it.
    Kill,
}

/// What a host reports, besides what concerns the lifecycle.
#[derive(Debug)]
pub enum HostEvent {
    /// The child's process id.
    Pid(u32),
    /// What its program is on disk: before it is started, and when it was looked at again.
    Program(Identity),
    /// For the lifecycle.
    Run(RunEvent),
}

/// What a child process is made of.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Whose run it carries.
    pub plugin: PluginName,
    /// Which run.
    pub generation: Generation,
    /// The program.
    pub command: Command,
    /// All of its environment.
    pub environment: BTreeMap<OsString, OsString>,
    /// What it is kept to.
    pub confinement: Confinement,
    /// Takes what it writes.
    pub log: Arc<LogBook>,
}

/// A child process from its spawn to its last words. `report` is called in order; its last report is
/// `SpawnFailed` or `Exited`.
///
/// # Cancel safety
/// Dropping it kills the process group.
pub async fn carry_process<R, F>(
    custody: Custody,
    launch: Launch,
    (meter, gauge): (UsageMeter, Gauge),
    mut orders: watch::Receiver<Order>,
    report: R,
) where
    R: Fn(HostEvent) -> F + Send,
    F: Future<Output = ()> + Send,
{
    let Launch {
        plugin,
        generation,
        command,
        environment,
        confinement,
        log,
    } = launch;
    let bounds = confinement.bounds();
    let spawned = custody
        .spawn(&plugin, command, environment, confinement)
        .await;
    let (mut process, pipes) = match spawned {
        Ok(spawned) => spawned,
        Err(error) => {
            let (lasting, message) = (error.is_lasting(), chain(&error));
            return report(HostEvent::Run(RunEvent::SpawnFailed { lasting, message })).await;
        }
    };
    report(HostEvent::Pid(process.id())).await;
    report(HostEvent::Run(RunEvent::Spawned)).await;
    let mut metered = meter.watch(process.id(), bounds, gauge);
    let mut is_over = false;
    let mut output = pin!(async {
        tokio::join!(
            drain(pipes.stdout, LogStream::Stdout, generation, &log),
            drain(pipes.stderr, LogStream::Stderr, generation, &log),
        )
    });
    let (mut output_ended, mut owner_gone) = (false, false);
    // An order may have come before the process did.
    orders.mark_changed();
    let mut exit = loop {
        tokio::select! {
            exit = process.exited() => break exit,
            _ = &mut output, if !output_ended => output_ended = true,
            excess = metered.exceeded(), if !is_over => {
                is_over = true;
                let (reason, message) = (excess.reason, excess.message);
                report(HostEvent::Run(RunEvent::OverLimit { reason, message })).await;
            }
            changed = orders.changed(), if !owner_gone => {
                let order = *orders.borrow_and_update();
                owner_gone = changed.is_err();
                match order {
                    _ if owner_gone => process.kill(),
                    Order::Run => {}
                    Order::Terminate => process.terminate(),
                    Order::Kill => process.kill(),
                }
            }
        }
    };
    let last_words = async {
        if !output_ended && tokio::time::timeout(LAST_WORDS, output).await.is_err() {
            tracing::debug!("somebody else holds the output of an ended child");
        }
    };
    // Whoever holds the output is ended meanwhile.
    tokio::join!(process.bury(), last_words);
    if process.is_out_of_memory() {
        exit.message = Some("out of memory: the kernel ended it at its limit".to_owned());
        exit.reason = Some("memory_limit");
    }
    report(HostEvent::Run(RunEvent::Exited(exit))).await;
}

/// Instead of a run: its program's file system does not answer.
#[must_use]
pub fn hangs(program: PathBuf) -> RunEvent {
    let message = chain(&SpawnError::Hung { program });
    RunEvent::SpawnFailed {
        lasting: false,
        message,
    }
}

/// Instead of a run: one that must not begin.
pub async fn refuse<R, F>(message: String, report: R)
where
    R: Fn(HostEvent) -> F + Send,
    F: Future<Output = ()> + Send,
{
    let refused = RunEvent::SpawnFailed {
        lasting: true,
        message,
    };
    report(HostEvent::Run(refused)).await;
}

/// A plugin inside the core's process, on a thread of its own. It cannot be killed: [`Order::Kill`]
/// does nothing, and a plugin that blocks its thread for ever is never reported as ended.
pub async fn carry_embedded<R, F>(
    plugin: Arc<dyn EmbeddedPlugin>,
    embedding: Embedding,
    mut orders: watch::Receiver<Order>,
    report: R,
) where
    R: Fn(HostEvent) -> F + Send,
    F: Future<Output = ()> + Send,
{
    let (cancel, cancelled) = oneshot::channel::<()>();
    let (done, mut ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(format!("plugin-{}", plugin.name()));
    let spawned = thread.spawn(move || {
        let run = AssertUnwindSafe(|| run_embedded(plugin, embedding, cancelled));
        let exit = std::panic::catch_unwind(run).unwrap_or_else(|panic| Exit {
            message: Some(format!("it panicked: {}", panic_text(panic.as_ref()))),
            ..Exit::default()
        });
        // Nobody listens any more when the core has already ended.
        drop(done.send(exit));
    });
    if let Err(error) = spawned {
        let message = format!("no thread could be made: {error}");
        let failed = RunEvent::SpawnFailed {
            lasting: false,
            message,
        };
        return report(HostEvent::Run(failed)).await;
    }
    report(HostEvent::Run(RunEvent::Spawned)).await;
    let mut cancel = Some(cancel);
    orders.mark_changed();
    let exit = loop {
        tokio::select! {
            exit = &mut ended => break exit.unwrap_or_default(),
            changed = orders.changed(), if cancel.is_some() => {
                let order = *orders.borrow_and_update();
                if changed.is_err() || order > Order::Run {
                    cancel = None;
                }
            }
        }
    };
    report(HostEvent::Run(RunEvent::Exited(exit))).await;
}

fn run_embedded(
    plugin: Arc<dyn EmbeddedPlugin>,
    embedding: Embedding,
    cancelled: oneshot::Receiver<()>,
) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let message = Some(format!("no runtime could be made: {error}"));
            return Exit {
                code: Some(1),
                message,
                ..Exit::default()
            };
        }
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = plugin.run(embedding) => result,
            _ = cancelled => Ok(()),
        }
    });
    // Blocking work that the plugin left behind must not hold the thread.
    runtime.shutdown_background();
    match result {
        Ok(()) => Exit {
            code: Some(0),
            ..Exit::default()
        },
        Err(error) => Exit {
            code: Some(1),
            message: Some(chain(error.as_ref())),
            ..Exit::default()
        },
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
