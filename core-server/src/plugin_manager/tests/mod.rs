//! The plugin manager as a whole: remote plugins played over plain queues on a paused clock, children
//! as real processes (tiny shell scripts), embedded plugins as real threads.

mod children;
mod embedded;
mod grants;
mod knocks;
mod ordering;
mod reload;
mod remote;
mod requests;
mod upgrade;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::embed::EmbeddedPlugin;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;

use super::*;
use crate::channel::{Hook, Outbound, OutboxReader, Runs, Welcome};
use crate::error::Failure;
use crate::routing::Router;
use crate::security::{Credentials, Gatekeeper, Policy, Token};
use crate::supervisor::custody::Custody;
use crate::supervisor::lifecycle::{Phase, PluginState};
use crate::task::TaskScope;

/// No wait of a test takes longer (on the paused clock nearly no time at all).
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps what was announced: "lamp started".
#[derive(Default)]
struct Recorder {
    said: Mutex<Vec<String>>,
    /// Data of `crashed`.
    crashes: Mutex<Vec<serde_json::Value>>,
}

impl Announcer for Recorder {
    fn plugin_event(&self, topic: &'static str, plugin: &PluginName, details: serde_json::Value) {
        self.said.lock().push(format!("{plugin} {topic}"));
        if topic == "crashed" {
            self.crashes.lock().push(details);
        }
    }

    fn subscriptions(&self, _: &PluginName) -> Vec<String> {
        Vec::new()
    }

    fn plugin_state(&self, _: &PluginInfo) {}

    fn plugin_removed(&self, plugin: &PluginName) {
        self.said.lock().push(format!("{plugin} removed"));
    }
}

struct Home {
    manager: PluginManager,
    recorder: Arc<Recorder>,
    credentials: Credentials,
    gatekeeper: Gatekeeper,
    registry: ServiceRegistry,
    router: Router,
    runs: Runs,
    scope: TaskScope,
    data: Arc<TempDir>,
}

fn name(text: &str) -> PluginName {
    PluginName::parse(text).expect("a good name")
}

fn manifest(text: &str, kind: Kind) -> Manifest {
    Manifest::new(name(text), kind)
}

fn remote(text: &str, requires: &[&str]) -> Manifest {
    Manifest {
        requires: requires.iter().map(|required| name(required)).collect(),
        ..manifest(
            text,
            Kind::Remote {
                token: Some(Token::random()),
            },
        )
    }
}

fn no_connection() -> Connect {
    Arc::new(|| Err(io::Error::other("no connections in this test")))
}

impl Home {
    fn new(manifests: Vec<Manifest>) -> Self {
        let data = Arc::new(tempfile::tempdir().expect("a directory"));
        Self::build(manifests, HashMap::new(), data)
    }

    fn build(
        manifests: Vec<Manifest>,
        embedded: HashMap<PluginName, Arc<dyn EmbeddedPlugin>>,
        data: Arc<TempDir>,
    ) -> Self {
        Self::build_with(Config::default(), manifests, embedded, data)
    }

    fn build_with(
        config: Config,
        manifests: Vec<Manifest>,
        embedded: HashMap<PluginName, Arc<dyn EmbeddedPlugin>>,
        data: Arc<TempDir>,
    ) -> Self {
        Self::build_under(Policy::default(), config, manifests, embedded, data)
    }

    fn build_under(
        policy: Policy,
        config: Config,
        manifests: Vec<Manifest>,
        embedded: HashMap<PluginName, Arc<dyn EmbeddedPlugin>>,
        data: Arc<TempDir>,
    ) -> Self {
        let recorder = Arc::new(Recorder::default());
        let registry = ServiceRegistry::new();
        let credentials = Credentials::default();
        let runs = Runs::default();
        let gatekeeper = Gatekeeper::new(
            credentials.clone(),
            runs.clone(),
            HashMap::new(),
            Vec::new(),
            policy,
        );
        let router = Router::new(crate::routing::Config::default(), registry.clone());
        let dependencies = Dependencies {
            runs: runs.clone(),
            gatekeeper: gatekeeper.clone(),
            operator_grants: read_grants(data.path()).expect("read"),
            registry: registry.clone(),
            router: router.clone(),
            credentials: credentials.clone(),
            announcer: Arc::clone(&recorder) as Arc<dyn Announcer>,
            embedded,
            connect: no_connection(),
            custody: Custody::new(crate::supervisor::custody::Setup::default()).expect("threads"),
        };
        let config = Config {
            data_dir: data.path().to_owned(),
            ..config
        };
        let (manager, worker) = PluginManager::new(config, manifests, dependencies);
        let scope = TaskScope::new();
        scope.spawn("plugin-manager", |stop| worker.run(stop));
        Self {
            manager,
            recorder,
            credentials,
            gatekeeper,
            registry,
            router,
            runs,
            scope,
            data,
        }
    }

    fn info(&self, plugin: &str) -> PluginInfo {
        self.manager.get(plugin).expect("known")
    }

    fn pair(&self, plugin: &str) -> (PluginState, Phase) {
        let info = self.info(plugin);
        (info.state, info.phase)
    }

    /// Waits until a plugin is as wanted.
    async fn until(&self, plugin: &str, what: impl Fn(&PluginInfo) -> bool) -> PluginInfo {
        let mut items = std::pin::pin!(self.manager.watch());
        let search = async {
            while let Some(item) = items.next().await {
                if let WatchItem::Plugin(info) = item
                    && info.name.as_str() == plugin
                    && what(&info)
                {
                    return *info;
                }
            }
            panic!("the watch ended");
        };
        match timeout(PATIENCE, search).await {
            Ok(info) => info,
            Err(_) => panic!("{plugin} never got there: {:?}", self.info(plugin)),
        }
    }

    async fn phase(&self, plugin: &str, phase: Phase) -> PluginInfo {
        self.until(plugin, |info| info.phase == phase).await
    }

    fn said(&self) -> Vec<String> {
        std::mem::take(&mut *self.recorder.said.lock())
    }

    /// Opens a channel as a remote plugin.
    async fn open(&self, plugin: &str, hello: Hello) -> Result<Link, Error> {
        let credential = Credential::of_remote(&name(plugin));
        self.open_as(credential, hello).await
    }

    async fn open_as(&self, credential: Credential, hello: Hello) -> Result<Link, Error> {
        let (outbox, reader) = Outbox::new(1 << 20);
        let open = self.manager.open(credential, hello, outbox);
        let Admitted { run, channel } = timeout(PATIENCE, open).await.expect("an answer")?;
        let mut link = Link {
            manager: self.manager.clone(),
            run,
            channel,
            reader,
        };
        let first = link.next().await;
        assert!(
            matches!(first, Outbound::Welcome(_)),
            "Welcome is first: {first:?}"
        );
        Ok(link)
    }

    /// A remote plugin that answers every hook until it is dropped.
    async fn obedient(&self, plugin: &str) -> Obedient {
        let link = self.open(plugin, hello(plugin)).await.expect("admitted");
        Obedient::new(&self.scope, link, |_| Ok(()))
    }

    async fn close(self) {
        let left = self.scope.close(PATIENCE).await;
        assert!(left.is_empty(), "{left:?}");
    }
}

fn hello(instance: &str) -> Hello {
    Hello {
        instance: Bytes::copy_from_slice(instance.as_bytes()),
        ..Hello::default()
    }
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// A channel, played by the test.
struct Link {
    manager: PluginManager,
    run: Arc<Run>,
    channel: ChannelId,
    reader: OutboxReader,
}

impl Link {
    async fn frame(&mut self) -> Option<Result<Outbound, Failure>> {
        timeout(PATIENCE, self.reader.next())
            .await
            .expect("a frame in time")
    }

    async fn next(&mut self) -> Outbound {
        self.frame().await.expect("a frame").expect("no error")
    }

    /// The next hook, answered.
    async fn hook(&mut self, expected: Hook) {
        match self.next().await {
            Outbound::RunHook { hook, hook_id, .. } if hook == expected => {
                self.manager
                    .hook_done(&self.run, self.channel, hook_id, Ok(()));
            }
            other => panic!("expected {expected:?}, got {other:?}"),
        }
    }

    /// The channel's end and its reason.
    async fn end(&mut self) -> Option<Failure> {
        loop {
            match self.frame().await {
                Some(Ok(_)) => {}
                Some(Err(failure)) => return Some(failure),
                None => return None,
            }
        }
    }

    async fn lose(self) {
        drop(self.reader);
        self.manager.channel_lost(&self.run, self.channel).await;
    }
}

/// A plugin that answers hooks by itself and keeps what it got. The frames end with its channel.
struct Obedient {
    got: Arc<Mutex<Vec<String>>>,
    ended: watch::Receiver<bool>,
    lose: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Obedient {
    fn new(
        scope: &TaskScope,
        mut link: Link,
        answer: impl Fn(Hook) -> Result<(), String> + Send + 'static,
    ) -> Self {
        let got = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = watch::channel(false);
        let (lose, mut lost) = tokio::sync::oneshot::channel::<()>();
        let kept = Arc::clone(&got);
        scope.spawn_droppable("obedient", async move {
            loop {
                let frame = tokio::select! {
                    frame = link.reader.next() => frame,
                    Ok(()) = &mut lost => break,
                };
                match frame {
                    Some(Ok(Outbound::RunHook { hook, hook_id, .. })) => {
                        kept.lock().push(hook.as_str().to_owned());
                        link.manager
                            .hook_done(&link.run, link.channel, hook_id, answer(hook));
                    }
                    Some(Ok(Outbound::PermissionsChanged(listed))) => {
                        let granted: Vec<_> =
                            listed.granted.iter().map(ToString::to_string).collect();
                        kept.lock().push(format!("granted {}", granted.join(" ")));
                    }
                    Some(Ok(Outbound::DependencyChanged { name, available })) => {
                        kept.lock().push(format!("{name} {available}"));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break,
                }
            }
            link.lose().await;
            end.send_replace(true);
        });
        Self {
            got,
            ended,
            lose: Some(lose),
        }
    }

    fn got(&self) -> Vec<String> {
        std::mem::take(&mut *self.got.lock())
    }

    async fn lose(mut self) {
        if let Some(lose) = self.lose.take() {
            lose.send(()).expect("it plays");
        }
        self.ended().await;
    }

    async fn ended(&mut self) {
        let ended = self.ended.wait_for(|ended| *ended);
        timeout(PATIENCE, ended)
            .await
            .expect("in time")
            .expect("it played");
    }
}

fn welcome(frame: Outbound) -> Welcome {
    match frame {
        Outbound::Welcome(welcome) => *welcome,
        other => panic!("no Welcome: {other:?}"),
    }
}
