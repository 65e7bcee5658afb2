//! A plugin as a real process: exit codes, signals, the end of standard input, log lines.
//!
//! This program is both sides. Started with `CORE_ADDR` it is a plugin with the SDK's own `main`; started
//! by cargo it starts itself so, and plays the core on a unix socket.

use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use core_proto::servers::plugin_channel_server::{PluginChannel, PluginChannelServer};
use core_proto::v1;
use core_proto::v1::core_message::Message as ToPlugin;
use core_proto::v1::plugin_message::Message as FromPlugin;
use futures_util::Stream;
use plugin_sdk::prelude::*;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(30);

struct Probe;

#[plugin(name = "probe")]
impl Probe {
    #[on_load]
    async fn load(&self) -> Result {
        tracing::info!(answer = 42, "loaded");
        Ok(())
    }
    #[on_stop]
    async fn stop(&self) -> Result {
        tracing::info!("stopped");
        Ok(())
    }
    #[on_unload]
    async fn unload(&self) -> Result {
        tracing::info!("unloaded");
        Ok(())
    }
}

/// How the fake core receives a plugin.
#[derive(Clone)]
enum Manner {
    Refuse(Status),
    /// Loads and starts it, and tells the test.
    Start(mpsc::Sender<()>),
    /// Loads and unloads it.
    Unload,
}

struct Core(Manner);

#[tonic::async_trait]
impl PluginChannel for Core {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<v1::CoreMessage, Status>> + Send>>;

    async fn open(
        &self,
        request: tonic::Request<Streaming<v1::PluginMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        use v1::run_hook::Hook;
        let (hooks, started) = match &self.0 {
            Manner::Refuse(status) => return Err(status.clone()),
            Manner::Start(started) => ([Hook::Load, Hook::Start], Some(started.clone())),
            Manner::Unload => ([Hook::Load, Hook::Unload], None),
        };
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            let send = async |message| {
                let message = Some(message);
                drop(sender.send(Ok(v1::CoreMessage { message })).await);
            };
            let welcome = v1::Welcome {
                run: "r".to_owned(),
                plugin: "probe".to_owned(),
                config: "{}".into(),
                ..Default::default()
            };
            let mut hooks = hooks.into_iter();
            while let Ok(Some(message)) = inbound.message().await {
                match message.message {
                    Some(FromPlugin::Hello(_)) => send(ToPlugin::Welcome(welcome.clone())).await,
                    Some(FromPlugin::HookDone(done)) if done.error.is_some() => return,
                    Some(FromPlugin::HookDone(_)) => {}
                    _ => continue,
                }
                if let Some(hook) = hooks.next() {
                    let hook = hook.into();
                    send(ToPlugin::RunHook(v1::RunHook {
                        hook,
                        ..Default::default()
                    }))
                    .await;
                } else if let Some(started) = &started {
                    started.send(()).await.ok();
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct Scene {
    dir: PathBuf,
    child: Child,
}

/// Starts a core of this manner and the plugin as its child.
fn begin(name: &str, manner: Manner) -> Scene {
    let dir = std::env::temp_dir().join(format!("sdk-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let socket = dir.join("core.sock");
    let listener = tokio::net::UnixListener::bind(&socket).expect("a free path");
    let serving = tonic::transport::Server::builder()
        .add_service(PluginChannelServer::new(Core(manner)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::spawn(serving);
    let child = Command::new(std::env::current_exe().expect("this program"))
        .env("CORE_ADDR", format!("unix:{}", socket.display()))
        .env("CORE_TOKEN", "t")
        .env("CORE_COOKIE", "c")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    Scene { dir, child }
}

impl Scene {
    /// The exit code and the messages of the log.
    async fn end(mut self) -> (Option<i32>, Vec<Value>) {
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        let ended = async {
            stderr.read_to_string(&mut log).await.expect("UTF-8");
            self.child.wait().await.expect("it is ours")
        };
        let status = tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("it ends in time");
        std::fs::remove_dir_all(&self.dir).expect("ours");
        let lines = log
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        (status.code(), lines)
    }
}

fn messages(log: &[Value]) -> Vec<&str> {
    let texts = log.iter().filter_map(|line| line["message"].as_str());
    texts
        .filter(|text| text.ends_with("loaded") || *text == "stopped")
        .collect()
}

async fn a_refused_child_exits_with_the_kind_of_refusal() {
    for (status, code) in [
        (Status::unauthenticated("no such token"), 77),
        (
            with_reason(Status::failed_precondition("wire"), "WIRE_VERSION"),
            76,
        ),
    ] {
        let (exit, log) = begin("refused", Manner::Refuse(status)).end().await;
        assert_eq!(exit, Some(code));
        assert!(log.iter().any(|line| line["level"] == "error"), "{log:?}");
    }
}

fn with_reason(mut status: Status, reason: &str) -> Status {
    let reason = reason.parse().expect("ascii");
    status.metadata_mut().insert("core-reason", reason);
    status
}

async fn sigterm_and_the_end_of_stdin_end_a_child_in_order() {
    for by_signal in [true, false] {
        let (sender, mut started) = mpsc::channel(1);
        let mut scene = begin("ended", Manner::Start(sender));
        let is_started = tokio::time::timeout(PATIENCE, started.recv()).await;
        is_started.expect("in time").expect("started");
        if by_signal {
            let pid = scene.child.id().expect("alive").to_string();
            let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
            assert!(kill.expect("kill is there").success());
        } else {
            drop(scene.child.stdin.take());
        }
        let (exit, log) = scene.end().await;
        assert_eq!(exit, Some(0), "{log:?}");
        assert_eq!(messages(&log), ["loaded", "stopped", "unloaded"]);
        let loaded = log
            .iter()
            .find(|line| line["message"] == "loaded")
            .expect("logged");
        assert_eq!(loaded["level"], "info");
        assert_eq!(loaded["answer"], 42);
        assert!(loaded["timestamp"].is_string());
    }
}

async fn an_unloaded_child_exits_with_zero() {
    let (exit, log) = begin("unloaded", Manner::Unload).end().await;
    assert_eq!(exit, Some(0), "{log:?}");
    assert_eq!(messages(&log), ["loaded", "unloaded"]);
}

async fn an_environment_without_a_core_is_told_to_people() {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .env("CORE_ADDR", "nowhere")
        .output()
        .await
        .expect("runs");
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("CORE_ADDR") && told.contains("no port"),
        "{told}"
    );
}

/// Its parent, a shell, ends while standard input stays open: only the lost channel tells.
async fn an_orphan_exits_as_temporary() {
    let program = std::env::current_exe().expect("this program");
    let mut parent = Command::new("sh")
        .args(["-c", "exec 3<&0; \"$0\" <&3 & wait"])
        .arg(program)
        .env("CORE_ADDR", "unix:/nonexistent/core.sock")
        .env("CORE_TOKEN", "t")
        .env("CORE_COOKIE", "c")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let began = std::time::Instant::now();
    // Waiting would close it, and the plugin would end for that.
    let _stdin = parent.stdin.take();
    let mut lines = BufReader::new(parent.stderr.take().expect("piped")).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await;
    let first = first.expect("in time").expect("readable");
    assert!(first.is_some(), "it says that there is no core");
    parent.kill().await.expect("its own child");
    let mut last = first;
    let rest = async {
        while let Some(line) = lines.next_line().await.expect("readable") {
            last = Some(line);
        }
    };
    // The end of its standard error is the end of the plugin.
    tokio::time::timeout(PATIENCE, rest).await.expect("in time");
    let last = last.expect("it wrote");
    assert!(last.contains("\"code\":75"), "{last}");
    let lived = began.elapsed();
    assert!(
        lived >= Duration::from_secs(9) && lived < Duration::from_secs(15),
        "{lived:?}"
    );
}

fn main() -> ExitCode {
    if std::env::var_os("CORE_ADDR").is_some() {
        return plugin_sdk::host::main(Probe);
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        tokio::join!(
            an_orphan_exits_as_temporary(),
            a_refused_child_exits_with_the_kind_of_refusal(),
            sigterm_and_the_end_of_stdin_end_a_child_in_order(),
            an_unloaded_child_exits_with_zero(),
            an_environment_without_a_core_is_told_to_people(),
        )
    });
    ExitCode::SUCCESS
}
