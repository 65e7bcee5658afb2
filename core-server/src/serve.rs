//! `core-server run` and `core-server health`.

use std::path::Path;
use std::time::Duration;

use core_proto::contract;
use core_server::config::{self, Candidate, Config, Loaded};
use core_server::error::chain;
use core_server::telemetry::logging;
use core_server::{Runtime, RuntimeError};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Endpoint;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::cli::ExitCode;
use crate::systemd::Systemd;

/// How long the probe waits for an answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the core until a signal ends it: the first SIGTERM or SIGINT stops in order, the second skips all
/// grace but the storage's. SIGHUP reads the configuration again with `load`; a closed terminal, which
/// sends it too, ends nothing.
pub(crate) async fn run(
    loaded: Loaded,
    load: impl Fn(Option<&Candidate>) -> Result<Loaded, config::Error> + Send + Sync + 'static,
    log: logging::Control,
) -> ExitCode {
    keep_to_itself();
    let systemd = Systemd::from_environment(&config::process_environment());
    let shutdown_timeout = loaded.config.shutdown_timeout;
    let signals = signal(SignalKind::terminate()).and_then(|terminate| {
        Ok((
            terminate,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ))
    });
    let (mut terminate, mut interrupt, mut hangup) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be caught");
            return ExitCode::Internal;
        }
    };
    let mut stop = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    // Itself, also when the file was replaced or removed meanwhile.
    let runtime = Runtime::builder(loaded.config)
        .loader(load)
        .log(log)
        .guardian("/proc/self/exe")
        .adopt_orphans();
    let runtime = tokio::select! {
        started = runtime.start() => match started {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!("{}", chain(&error));
                return exit_code(&error);
            }
        },
        // Nothing is served yet: nothing has to be ended in order.
        _ = stop() => return ExitCode::Clean,
    };
    tracing::info!(
        plugins = %runtime.plugin_socket().display(),
        operators = %runtime.operator_socket().display(),
        tcp = ?runtime.tcp_addresses(),
        tls = ?runtime.tls_addresses(),
        "serving"
    );
    systemd.ready();
    let reloading = async {
        // Several signals that come while one is heeded count as one: each reads everything.
        while hangup.recv().await.is_some() {
            systemd.reloading();
            match runtime.load_and_reload("SIGHUP").await {
                Ok(_) => systemd.ready(),
                Err(error) => {
                    let why = chain(&error);
                    tracing::error!("SIGHUP: {why}");
                    systemd.refused(&why);
                }
            }
        }
        std::future::pending().await
    };
    let manager = runtime.plugin_manager();
    let watchdog = systemd.feed_watchdog(async || manager.takes_its_turn().await);
    let signal = tokio::select! {
        signal = stop() => signal,
        never = watchdog => match never {},
        () = reloading => unreachable!("it never completes"),
    };
    tracing::info!(signal, "stopping");
    systemd.stopping();
    let hurry = async {
        let signal = stop().await;
        tracing::warn!(signal, "stopping without grace");
    };
    let began = tokio::time::Instant::now();
    let report = runtime.shutdown_within(shutdown_timeout, hurry).await;
    let took = began.elapsed();
    if report.is_clean() {
        tracing::info!(?took, "stopped");
        return ExitCode::Clean;
    }
    tracing::error!(?report, ?took, "not everything ended in time");
    if report.storage_closed {
        ExitCode::BudgetMissed
    } else {
        ExitCode::Internal
    }
}

/// Closes the core's memory, environment and descriptors to other processes of its user, plugins
/// without a user of their own among them: no ptrace, no `/proc/PID/mem`, no core dump. Only here and
/// not in the library: a program that embeds the core may want to be debugged.
fn keep_to_itself() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "processes of the same user can look into the core");
        }
    }
}

fn exit_code(error: &RuntimeError) -> ExitCode {
    match error {
        RuntimeError::EmbeddedName(_)
        | RuntimeError::Tls(_)
        | RuntimeError::Authority(_)
        | RuntimeError::Credentials { .. }
        | RuntimeError::Grants { .. } => ExitCode::BadConfiguration,
        RuntimeError::Storage(_)
        | RuntimeError::DataDirectory { .. }
        | RuntimeError::RestoreUnfinished { .. }
        | RuntimeError::Home(_)
        | RuntimeError::Listen(_)
        | RuntimeError::Threads(_) => ExitCode::Internal,
    }
}

/// Asks a running core whether it serves.
pub(crate) async fn health(config: &Config, address: Option<String>) -> Result<(), String> {
    let address =
        address.unwrap_or_else(|| format!("unix:{}", config.listen.operator_socket().display()));
    let probe = async {
        let endpoint = |uri: String| Endpoint::from_shared(uri).map_err(|error| chain(&error));
        let channel = match address.strip_prefix("unix:") {
            Some(path) => {
                let path = Path::new(path).to_owned();
                let connect = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint("http://core".to_owned())?
                    .connect_with_connector(connect)
                    .await
            }
            None => endpoint(format!("http://{address}"))?.connect().await,
        };
        let channel = channel.map_err(|error| chain(&error))?;
        let mut client =
            HealthClient::new(channel).max_decoding_message_size(contract::MAX_MESSAGE_BYTES);
        let answer = client.check(HealthCheckRequest::default()).await;
        match answer
            .map_err(|status| status.message().to_owned())?
            .into_inner()
            .status()
        {
            ServingStatus::Serving => Ok(()),
            status => Err(format!("the core says {}", status.as_str_name())),
        }
    };
    let answer = tokio::time::timeout(PROBE_TIMEOUT, probe).await;
    answer
        .unwrap_or_else(|_| Err(format!("no answer within {PROBE_TIMEOUT:?}")))
        .map_err(|error: String| format!("{address}: {error}"))
}
