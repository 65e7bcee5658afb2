//! 23: dependencies. The core's own plugin manager, with plugins that are played over plain queues: the
//! order in which it acts is what it would be with processes.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use core_server::channel::{Hello, Hook, Outbound, Outbox, OutboxReader, Run, Runs};
use core_server::plugin_manager::{
    Admitted, Announcer, Config, Dependencies, Kind, Manifest, PluginInfo, PluginManager, WatchItem,
};
use core_server::routing::{self, Router};
use core_server::security::operator_grants::OperatorGrants;
use core_server::security::{Credential, Credentials, Gatekeeper, Policy, Token};
use core_server::service_registry::ServiceRegistry;
use core_server::supervisor::custody::{Custody, Setup};
use core_server::supervisor::lifecycle::{Phase, PluginState};
use core_server::task::TaskScope;
use core_server::types::PluginName;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_stream::StreamExt as _;

use crate::report::Row;

/// Random graphs.
const CASES: u64 = 512;
/// Cases that are played at once.
const SIDE_BY_SIDE: usize = 4;
/// Plugins of every sixteenth; the others are smaller. The plugin manager looks at all of its plugins after
/// each message, which a build without optimisation does slowly.
const PLUGINS: usize = 200;
const FEWER: usize = 40;
/// No wait takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Room for frames to one plugin.
const OUTBOX_BYTES: usize = 1 << 20;

pub(crate) async fn random(row: Row) -> Result<()> {
    // No process is started here; one that could start them serves all cases.
    let custody = Custody::new(Setup::default()).context("threads")?;
    let (mut violations, mut started) = (Vec::new(), 0);
    let mut cases = (0..CASES).map(|case| row.seed().wrapping_add(case));
    let mut playing = JoinSet::new();
    let (begin, mut played) = (Instant::now(), 0);
    loop {
        while playing.len() < SIDE_BY_SIDE
            && let Some(seed) = cases.next()
        {
            let graph = random_graph(&mut StdRng::seed_from_u64(seed), seed % 16 == 0);
            started += graph.len();
            let custody = custody.clone();
            playing.spawn(async move {
                let found = play(&graph, seed % 2 == 0, &custody).await;
                let found = found.with_context(|| format!("seed {seed}"))?;
                let told = found.into_iter().map(|what| format!("seed {seed}: {what}"));
                anyhow::Ok(told.collect::<Vec<_>>())
            });
        }
        match playing.join_next().await {
            Some(found) => {
                violations.extend(found.context("a case")??);
                played += 1;
                if !violations.is_empty() {
                    // Enough to be told; those that follow would only be more of the same.
                    playing.abort_all();
                    break;
                }
                if played % 32 == 0 {
                    println!("{played} graphs after {:?}", begin.elapsed());
                }
            }
            None => break,
        }
    }
    row.note(format!(
        "every 16th graph has {PLUGINS} plugins, the others 2 to {FEWER}"
    ));
    let diamond = [vec![], vec![0], vec![0], vec![1, 2]];
    violations.extend(
        play(&diamond, true, &custody)
            .await
            .context("the diamond")?,
    );
    violations.extend(
        play(&diamond, false, &custody)
            .await
            .context("the diamond")?,
    );
    row.exactly("violations", violations.len(), "", 0);
    for violation in violations.iter().take(5) {
        row.broken(violation.clone());
    }
    row.tell("graphs", f64::from(u32::try_from(CASES)?), "");
    row.tell("plugins", f64::from(u32::try_from(started)?), "");
    refusals(&row, &custody).await
}

/// What each plugin requires; always ones before it, in an order that its name does not tell.
fn random_graph(random: &mut StdRng, is_large: bool) -> Vec<Vec<usize>> {
    let plugins = match is_large {
        true => PLUGINS,
        false => random.random_range(2..=FEWER),
    };
    let edges = random.random_range(0..plugins * 3);
    let mut graph = vec![BTreeSet::new(); plugins];
    for _ in 0..edges {
        let from = random.random_range(1..plugins);
        graph[from].insert(random.random_range(0..from));
    }
    graph
        .into_iter()
        .map(|requires| requires.into_iter().collect())
        .collect()
}

/// A name whose order is not that of the graph.
fn name(index: usize) -> PluginName {
    let shuffled = index * 7_919 % 9_973;
    PluginName::parse(&format!("p{shuffled:04}-{index}")).expect("a good name")
}

/// What the plugins were told, as they saw it.
#[derive(Default)]
struct Seen {
    started: BTreeSet<usize>,
    ever_started: usize,
    violations: Vec<String>,
}

/// Starts and stops all plugins of a graph; what was against the order.
async fn play(graph: &[Vec<usize>], by_shutdown: bool, custody: &Custody) -> Result<Vec<String>> {
    let manifests = graph.iter().enumerate().map(|(index, requires)| Manifest {
        requires: requires.iter().map(|required| name(*required)).collect(),
        ..Manifest::new(
            name(index),
            Kind::Remote {
                token: Some(Token::random()),
            },
        )
    });
    let core = Core::new(manifests.collect(), custody);
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let graph: Arc<[Vec<usize>]> = graph.into();
    for index in 0..graph.len() {
        let link = core.open(&name(index)).await?;
        let (graph, seen) = (Arc::clone(&graph), Arc::clone(&seen));
        let scope = &core.scope;
        scope.spawn_droppable("plugin", link.obey(index, graph, seen));
    }
    let all_started = async {
        loop {
            let started = seen.lock().expect("no panic inside").started.len();
            if started == graph.len() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if timeout(PATIENCE, all_started).await.is_err() {
        bail!("not all of {} plugins were started", graph.len());
    }
    if by_shutdown {
        let report = core.manager.shutdown(Instant::now() + PATIENCE).await;
        drop(report);
    } else {
        let stopped = core.manager.stop_all(Instant::now() + PATIENCE).await;
        let stopped = stopped.context("StopAll")?;
        ensure!(
            stopped.iter().all(|(_, result)| result.is_ok()),
            "StopAll stops all"
        );
    }
    let left = core.scope.close(PATIENCE).await;
    ensure!(left.is_empty(), "tasks are left: {left:?}");
    let seen = seen.lock().expect("no panic inside");
    let mut violations = seen.violations.clone();
    if !seen.started.is_empty() {
        violations.push(format!("{} plugins were never stopped", seen.started.len()));
    }
    if seen.ever_started != graph.len() {
        violations.push(format!("{} starts", seen.ever_started));
    }
    Ok(violations)
}

/// A circle is refused with its path; an unknown dependency is waited for, visibly; others go on.
async fn refusals(row: &Row, custody: &Custody) -> Result<()> {
    let parse = |text: &str| PluginName::parse(text).expect("a good name");
    let remote = |text: &str, requires: &[&str]| Manifest {
        requires: requires.iter().map(|required| parse(required)).collect(),
        ..Manifest::new(
            parse(text),
            Kind::Remote {
                token: Some(Token::random()),
            },
        )
    };
    let core = Core::new(
        vec![
            remote("a", &["b"]),
            remote("b", &["c"]),
            remote("c", &["a"]),
            remote("behind", &["a"]),
            remote("lonely", &["ghost"]),
            remote("free", &[]),
        ],
        custody,
    );
    let circle = core
        .until("a", |info| info.phase == Phase::ConfigError)
        .await?;
    row.require(
        circle.message.contains("a -> b -> c -> a") && circle.reason == "dependency_cycle",
        format!("a circle is refused with its path: {}", circle.message),
    );
    let free = core.open(&parse("free")).await?;
    let seen = Arc::default();
    let obeying = free.obey(0, vec![Vec::new()].into(), seen);
    core.scope.spawn_droppable("plugin", obeying);
    core.until("free", |info| info.state == PluginState::Started)
        .await?;
    for (name, missing) in [("behind", "a"), ("lonely", "ghost")] {
        let parsed = parse(name);
        let _link = core.open(&parsed).await?;
        let waits = core
            .until(name, |info| info.phase == Phase::WaitingDependency)
            .await?;
        row.require(
            waits.message.contains(missing),
            format!("{name} waits for {missing} and says so: {}", waits.message),
        );
    }
    core.manager.shutdown(Instant::now() + PATIENCE).await;
    core.scope.close(PATIENCE).await;
    Ok(())
}

/// Nobody listens to announcements here.
struct Nobody;

impl Announcer for Nobody {
    fn plugin_event(&self, _: &'static str, _: &PluginName, _: serde_json::Value) {}

    fn plugin_state(&self, _: &PluginInfo) {}

    fn plugin_removed(&self, _: &PluginName) {}

    fn subscriptions(&self, _: &PluginName) -> Vec<String> {
        Vec::new()
    }
}

/// A plugin manager and nothing else of a core.
struct Core {
    manager: PluginManager,
    scope: TaskScope,
    /// Where it keeps which plugins have been let in.
    _data: TempDir,
}

impl Core {
    fn new(manifests: Vec<Manifest>, custody: &Custody) -> Self {
        let registry = ServiceRegistry::new();
        let credentials = Credentials::default();
        let runs = Runs::default();
        let gatekeeper = Gatekeeper::new(
            credentials.clone(),
            runs.clone(),
            HashMap::new(),
            Vec::new(),
            Policy::default(),
        );
        let dependencies = Dependencies {
            runs,
            gatekeeper,
            operator_grants: OperatorGrants::default(),
            registry: registry.clone(),
            router: Router::new(routing::Config::default(), registry),
            credentials,
            announcer: Arc::new(Nobody),
            embedded: HashMap::new(),
            connect: Arc::new(|| Err(io::Error::other("nothing connects here"))),
            custody: custody.clone(),
        };
        let data = tempfile::tempdir().expect("a directory");
        let config = Config {
            data_dir: data.path().to_owned(),
            keep_desired: false,
            ..Config::default()
        };
        let (manager, worker) = PluginManager::new(config, manifests, dependencies);
        let scope = TaskScope::new();
        scope.spawn("plugin-manager", |stop| worker.run(stop));
        Self {
            manager,
            scope,
            _data: data,
        }
    }

    async fn open(&self, plugin: &PluginName) -> Result<Link> {
        let (outbox, reader) = Outbox::new(OUTBOX_BYTES);
        let credential = Credential::of_remote(plugin);
        let hello = Hello {
            instance: Bytes::copy_from_slice(plugin.as_str().as_bytes()),
            ..Hello::default()
        };
        let admitted = self.manager.open(credential, hello, outbox).await;
        Ok(Link {
            manager: self.manager.clone(),
            admitted: admitted.with_context(|| format!("{plugin} is admitted"))?,
            reader,
        })
    }

    async fn until(&self, plugin: &str, holds: impl Fn(&PluginInfo) -> bool) -> Result<PluginInfo> {
        let mut items = std::pin::pin!(self.manager.watch());
        let search = async {
            while let Some(item) = items.next().await {
                if let WatchItem::Plugin(info) = item
                    && info.name.as_str() == plugin
                    && holds(&info)
                {
                    return Some(*info);
                }
            }
            None
        };
        let found = timeout(PATIENCE, search).await;
        let found = found.ok().flatten();
        found.with_context(|| format!("{plugin} never got there: {:?}", self.manager.get(plugin)))
    }
}

/// A plugin's end of its channel.
struct Link {
    manager: PluginManager,
    admitted: Admitted,
    reader: OutboxReader,
}

impl Link {
    /// Does as it is told and notes whether it should have been.
    async fn obey(mut self, index: usize, graph: Arc<[Vec<usize>]>, seen: Arc<Mutex<Seen>>) {
        while let Some(Ok(frame)) = self.reader.next().await {
            let Outbound::RunHook { hook, hook_id, .. } = frame else {
                continue;
            };
            // Others may overtake it here.
            tokio::task::yield_now().await;
            Self::note(
                index,
                hook,
                &graph,
                &mut seen.lock().expect("no panic inside"),
            );
            let run: &Run = &self.admitted.run;
            let channel = self.admitted.channel;
            self.manager.hook_done(run, channel, hook_id, Ok(()));
        }
        let Admitted { run, channel } = self.admitted;
        drop(self.reader);
        self.manager.channel_lost(&run, channel).await;
    }

    fn note(index: usize, hook: Hook, graph: &[Vec<usize>], seen: &mut Seen) {
        match hook {
            Hook::Load | Hook::Start => {
                for required in &graph[index] {
                    if !seen.started.contains(required) {
                        let what = format!("{index} got {hook:?} before {required} was ready");
                        seen.violations.push(what);
                    }
                }
                if hook == Hook::Start {
                    seen.started.insert(index);
                    seen.ever_started += 1;
                }
            }
            Hook::Stop => {
                let dependents: Vec<_> = (0..graph.len())
                    .filter(|other| graph[*other].contains(&index) && seen.started.contains(other))
                    .collect();
                for dependent in dependents {
                    let what = format!("{index} was stopped before its dependent {dependent}");
                    seen.violations.push(what);
                }
                seen.started.remove(&index);
            }
            Hook::Unload => {}
        }
    }
}
