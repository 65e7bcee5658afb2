//! A plugin as a process: logging, runtime, signals, exit code.

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Ending, Settings};
use crate::error::{Code, Error};
use crate::logging;
use crate::plugin::IntoPlugin;

/// sysexits.h, as far as the core's restart policy gives them a meaning.
mod exit {
    pub(super) const TEMPORARY: u8 = 75;
    pub(super) const PROTOCOL: u8 = 76;
    pub(super) const NO_PERMISSION: u8 = 77;
    pub(super) const CONFIGURATION: u8 = 78;
}

/// Once the core is gone nobody else ends this process: whatever hangs then, this ends it. Longer than
/// the hooks may take, and sooner than the 11 s in which no child of a dead core may be left.
const END_WITHOUT_CORE: Duration = Duration::from_secs(8);

/// One thread that runs everything `async` of a plugin: with the channel and its handlers on one thread a
/// call wakes no other processor, and what is ready together leaves together
/// (`docs/reference/performance.md`). Plain `fn` handlers have threads of their own; an `async fn` that
/// blocks holds up the plugin's dispatch, and the core then says that it is degraded. A plugin that computes
/// much in `async` code makes a runtime of its own and calls [`run`](super::run).
const WORKERS: usize = 1;

/// Worker threads that still block when the plugin has ended are left behind after this.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(500);

/// A plugin's `main`: reads the environment, installs logging, runs the plugin until it is told to end.
/// [`main!`](crate::main) calls it.
#[must_use]
pub fn main(plugin: impl IntoPlugin) -> ExitCode {
    logging::install();
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            tracing::error!("{}", Error::from(error).message());
            return ExitCode::from(exit::CONFIGURATION);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::from(exit::TEMPORARY);
        }
    };
    let is_child = settings.is_child();
    let ending = runtime.block_on(async {
        let stop = CancellationToken::new();
        end_on_signals(&stop);
        if is_child {
            end_with_stdin(stop.clone());
        }
        super::run(plugin, settings, stop).await
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    let (error, code) = match ending {
        Ending::Clean => {
            tracing::info!("ended");
            return ExitCode::SUCCESS;
        }
        Ending::NoChannel(error) => (error, exit::TEMPORARY),
        Ending::BadConfig(error) => (error, exit::CONFIGURATION),
        Ending::Refused(error) => {
            let code = match error.code() {
                Code::Unauthenticated | Code::PermissionDenied => exit::NO_PERMISSION,
                _ => exit::PROTOCOL,
            };
            (error, code)
        }
    };
    tracing::error!(%error, code, "the plugin ends");
    ExitCode::from(code)
}

fn end_on_signals(stop: &CancellationToken) {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        match signal(kind) {
            Ok(mut signals) => {
                let stop = stop.clone();
                tokio::spawn(async move {
                    signals.recv().await;
                    stop.cancel();
                });
            }
            Err(error) => tracing::warn!(%error, "cannot listen to signals"),
        }
    }
}

/// The core holds the other end of a child's standard input: its end is the core's end. A thread of its
/// own, because a blocking read cannot be cancelled and must not hold up the runtime's end; and because
/// a hook that blocks the runtime's threads must not hold up the process's.
fn end_with_stdin(stop: CancellationToken) {
    let wait = move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin().lock();
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        stop.cancel();
        std::thread::sleep(END_WITHOUT_CORE);
        tracing::error!("the core is gone and this plugin does not end by itself");
        #[expect(clippy::exit, reason = "what would return to main hangs")]
        std::process::exit(i32::from(exit::TEMPORARY));
    };
    let spawned = std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(wait);
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot watch standard input");
    }
}
