//! A core in this process, with everything of its own.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use core_proto::embed::EmbeddedPlugin;
use core_proto::v1::plugin_manager_watch_response::Item;
use core_proto::v1::{PluginInfo, PluginState as Shown};
use core_server::config::{Adapter, Config, Quotas};
use core_server::supervisor::lifecycle::{Phase, PluginState, is_legal};
use core_server::{Runtime, RuntimeError, ShutdownReport};
use serde_json::Value;
use tracing::Dispatch;

use crate::client::{Address, Client};
use crate::declare::Declared;
use crate::raw_plugin::{Hello, RawPlugin};
use crate::scratch::Scratch;
use crate::wait::within;

/// The core's log in its directory.
const LOG: &str = "core.log";
/// Time for a core's end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Threads of a core's own runtime.
const WORKERS: usize = 2;

/// What a core is made of, before it runs.
#[must_use = "a builder does nothing until it is started"]
pub struct TestCoreBuilder {
    scratch: Scratch,
    config: Config,
    declared: Vec<Declared>,
    embedded: Vec<Arc<dyn EmbeddedPlugin>>,
}

impl TestCoreBuilder {
    /// Declares a plugin.
    pub fn plugin(mut self, plugin: Declared) -> Self {
        self.declared.push(plugin);
        self
    }

    /// Hands over a plugin that runs inside the core's process; [`Declared::embedded`] may say more
    /// of it.
    pub fn embed(mut self, plugin: impl Into<Arc<dyn EmbeddedPlugin>>) -> Self {
        self.embedded.push(plugin.into());
        self
    }

    /// Keeps data in SQLite instead of memory.
    pub fn sqlite(mut self) -> Self {
        self.config.storage.adapter = Adapter::Sqlite;
        self
    }

    /// Listens on a free TCP port of the loopback too.
    pub fn tcp(mut self) -> Self {
        self.config
            .listen
            .tcp
            .push(SocketAddr::from(([127, 0, 0, 1], 0)));
        self
    }

    /// Speaks TLS on a free TCP port of the loopback too.
    pub fn tls(mut self) -> Self {
        self.config
            .listen
            .tls
            .push(SocketAddr::from(([127, 0, 0, 1], 0)));
        self
    }

    /// Bounds plugins as the core does by itself.
    pub fn default_quotas(mut self) -> Self {
        self.config.quotas = Quotas::default();
        self
    }

    /// Changes the configuration.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(self) -> TestCore {
        self.try_start().await.expect("the core starts")
    }

    /// Starts it.
    ///
    /// # Errors
    /// Why it does not start.
    ///
    /// # Panics
    /// When it has not decided in time.
    pub async fn try_start(self) -> Result<TestCore, RuntimeError> {
        let Self {
            scratch,
            mut config,
            declared,
            embedded,
        } = self;
        let tokens = declared
            .iter()
            .filter_map(|plugin| Some((plugin.name().to_owned(), plugin.token.clone()?)))
            .map(|(name, token)| (name, token.reveal().to_owned()))
            .collect();
        let data_dir = config.data_dir.clone();
        let placed = declared
            .into_iter()
            .map(|plugin| plugin.placed(&data_dir).manifest);
        config.plugins = placed.collect();
        config
            .plugins
            .sort_by(|one, other| one.name.cmp(&other.name));

        let threads = core_threads(scratch.path());
        let started_with = config.clone();
        let starting = threads.spawn(async move {
            let mut builder = Runtime::builder(config);
            for plugin in embedded {
                builder = builder.embed(plugin);
            }
            builder.start().await
        });
        let started = within("the core starts", starting).await;
        let runtime = match started.expect("starting does not panic") {
            Ok(runtime) => runtime,
            Err(error) => {
                threads.shutdown_background();
                return Err(error);
            }
        };
        let operator = Client::new(runtime.operator_socket());
        let witness = Witness::attend(&operator, &threads).await;
        Ok(TestCore {
            runtime: Some(runtime),
            threads: Some(threads),
            operator,
            tokens,
            witness,
            scratch,
            config: started_with,
        })
    }
}

/// Threads of the core's own: as if it were a process, and their log goes to the core's directory.
fn core_threads(directory: &Path) -> tokio::runtime::Runtime {
    let log = File::create(directory.join(LOG)).expect("a log");
    let subscriber = tracing_subscriber::fmt()
        .with_writer(Arc::new(log))
        .with_ansi(false)
        .with_max_level(tracing::Level::DEBUG)
        .finish();
    let log = Dispatch::new(subscriber);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("core")
        .on_thread_start(move || {
            // The thread belongs to this core until it ends.
            std::mem::forget(tracing::dispatcher::set_default(&log));
        })
        .enable_all()
        .build()
        .expect("threads")
}

/// A running core. Dropping it ends it roughly; [`Self::shutdown`] ends it as an operator would.
pub struct TestCore {
    runtime: Option<Runtime>,
    threads: Option<tokio::runtime::Runtime>,
    operator: Client,
    tokens: HashMap<String, String>,
    witness: Witness,
    scratch: Scratch,
    config: Config,
}

impl TestCore {
    /// Begins to make a core: memory, no TCP, no plugins, no quotas, since tests go to the bounds of what
    /// they are about, and little time for its end, since plugins that a test plays by hand do not react to it.
    pub fn builder() -> TestCoreBuilder {
        let scratch = Scratch::new();
        TestCoreBuilder {
            config: Config {
                shutdown_timeout: SHUTDOWN_TIMEOUT,
                quotas: Quotas::UNLIMITED,
                ..Config::for_tests(scratch.path())
            },
            scratch,
            declared: Vec::new(),
            embedded: Vec::new(),
        }
    }

    /// A core without plugins.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// The runtime, for what a program that embeds it does.
    ///
    /// # Panics
    /// Never: it is there until the shutdown.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it runs")
    }

    /// An operator on the operator socket.
    #[must_use]
    pub fn operator(&self) -> &Client {
        &self.operator
    }

    /// Somebody without a credential on the plugins' socket.
    #[must_use]
    pub fn anonymous(&self) -> Client {
        Client::new(self.runtime().plugin_socket())
    }

    /// The token of a declared remote plugin.
    ///
    /// # Panics
    /// When none was declared so.
    #[must_use]
    pub fn token(&self, plugin: &str) -> &str {
        self.tokens.get(plugin).expect("a declared remote plugin")
    }

    /// A declared remote plugin on the plugins' unix socket.
    #[must_use]
    pub fn remote(&self, plugin: &str) -> Client {
        self.anonymous().with_token(self.token(plugin))
    }

    /// Plays a declared remote plugin without hooks, which the core knows to be ready.
    ///
    /// # Panics
    /// When it is not admitted, or not ready in time.
    pub async fn ready_plugin(&self, plugin: &str) -> RawPlugin {
        let played = RawPlugin::open(&self.remote(plugin), Hello::ready()).await;
        let played = played.expect("admitted");
        self.operator.until_phase(plugin, "ready").await;
        played
    }

    /// A declared remote plugin over TCP.
    #[must_use]
    pub fn remote_over_tcp(&self, plugin: &str) -> Client {
        Client::new(self.tcp_address()).with_token(self.token(plugin))
    }

    /// The first TCP address.
    ///
    /// # Panics
    /// When it was not told to listen.
    #[must_use]
    pub fn tcp_address(&self) -> SocketAddr {
        *self
            .runtime()
            .tcp_addresses()
            .first()
            .expect("it listens on TCP")
    }

    /// The first TCP address where it speaks TLS.
    ///
    /// # Panics
    /// When it was not told to.
    #[must_use]
    pub fn tls_address(&self) -> SocketAddr {
        *self
            .runtime()
            .tls_addresses()
            .first()
            .expect("it speaks TLS")
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where a plugin of this core connects to.
    #[must_use]
    pub fn plugin_address(&self) -> Address {
        self.runtime().plugin_socket().into()
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// The whole lines of its audit log so far.
    ///
    /// # Panics
    /// A line is not JSON.
    #[must_use]
    pub fn audited(&self) -> Vec<Value> {
        let path = self.directory().join("data/security/audit.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.lines().filter(|line| line.ends_with('}'));
        whole
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.scratch.read(LOG)
    }

    /// Who watches the plugins' states and phases.
    #[must_use]
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Ends it, asserts that nothing was left behind, and that no plugin ever showed a pair of state
    /// and phase that is not legal.
    ///
    /// # Panics
    /// When the end was not clean, or not in time.
    pub async fn shutdown(self) {
        let report = self.end().await;
        assert!(report.is_clean(), "{report:?}");
        // A connection may be cut: its peer need not take notice of the end.
        let others = report
            .aborted_tasks
            .iter()
            .filter(|task| **task != "connection");
        assert_eq!(others.count(), 0, "{report:?}");
    }

    /// Ends it and says how it went.
    ///
    /// # Panics
    /// When it does not end in time, or a plugin showed an illegal pair of state and phase.
    pub async fn end(mut self) -> ShutdownReport {
        let runtime = self.runtime.take().expect("it runs");
        let threads = self.threads.take().expect("it runs");
        let ending = threads.spawn(runtime.shutdown());
        let report = within("the core stops", ending).await;
        threads.shutdown_background();
        self.witness.assert_all_legal();
        report.expect("stopping does not panic")
    }
}

impl Drop for TestCore {
    fn drop(&mut self) {
        drop(self.runtime.take());
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("the core's last words:\n{}", last.join("\n"));
        }
    }
}

/// Sees every pair of state and phase that the core tells of its plugins.
#[derive(Clone, Debug)]
pub struct Witness {
    seen: Arc<Mutex<BTreeSet<(String, String, String)>>>,
}

impl Witness {
    /// Begins to watch; what was there at the beginning has been seen when this returns.
    async fn attend(operator: &Client, threads: &tokio::runtime::Runtime) -> Self {
        let witness = Self {
            seen: Arc::default(),
        };
        let mut watch = operator.another_connection().watch_plugins().await;
        loop {
            match within("a watch begins", watch.next()).await {
                Some(Item::Plugin(plugin)) => witness.note(&plugin),
                Some(Item::SnapshotEnd(_)) => break,
                other => panic!("a watch begins with a snapshot, not {other:?}"),
            }
        }
        let watching = witness.clone();
        threads.spawn(async move {
            while let Some(item) = watch.next().await {
                if let Item::Plugin(plugin) = item {
                    watching.note(&plugin);
                }
            }
        });
        witness
    }

    fn note(&self, plugin: &PluginInfo) {
        let state = match plugin.state() {
            Shown::Unloaded => PluginState::Unloaded,
            Shown::Loaded => PluginState::Loaded,
            Shown::Started => PluginState::Started,
            Shown::Stopped => PluginState::Stopped,
            Shown::Unspecified => return self.insert(plugin, "UNSPECIFIED"),
        };
        self.insert(plugin, state.as_str());
    }

    fn insert(&self, plugin: &PluginInfo, state: &str) {
        let pair = (plugin.name.clone(), state.to_owned(), plugin.phase.clone());
        self.seen.lock().expect("no panic inside").insert(pair);
    }

    /// The pairs seen so far: plugin, state, phase.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn pairs(&self) -> Vec<(String, String, String)> {
        self.seen
            .lock()
            .expect("no panic inside")
            .iter()
            .cloned()
            .collect()
    }

    /// Waits until a plugin has been seen so.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn until_seen(&self, plugin: &str, state: &str, phase: &str) {
        let pair = (plugin.to_owned(), state.to_owned(), phase.to_owned());
        let seen = || self.seen.lock().expect("no panic inside").contains(&pair);
        crate::eventually!(seen(), "{pair:?} of {:?}", self.pairs());
    }

    /// Asserts that all pairs stand in the table.
    ///
    /// # Panics
    /// When one does not.
    pub fn assert_all_legal(&self) {
        const STATES: [PluginState; 4] = [
            PluginState::Unloaded,
            PluginState::Loaded,
            PluginState::Started,
            PluginState::Stopped,
        ];
        for (plugin, state, phase) in self.pairs() {
            let legal = STATES.iter().any(|known| {
                known.as_str() == state
                    && Phase::ALL
                        .iter()
                        .any(|shown| shown.as_str() == phase && is_legal(*known, *shown))
            });
            assert!(
                legal,
                "plugin {plugin} showed ({state}, {phase}), which is no legal pair"
            );
        }
    }
}
