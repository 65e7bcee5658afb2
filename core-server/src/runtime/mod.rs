//! The composition root: builds the parts, runs them, ends them in order. May see everything; nothing
//! sees it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use core_proto::embed::EmbeddedPlugin;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::time::Instant;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::channel::Runs;
use crate::config::{Adapter, Config};
use crate::event_bus::EventBus;
use crate::files::DirectoryLock;
use crate::grpc::{self, Information};
use crate::home;
use crate::plugin_manager::{self, Kind, Manifest, PluginManager, Reloaded};
use crate::routing::Router;
use crate::security::{Audit, Credentials, Gatekeeper, Metering, Policy};
use crate::service_registry::ServiceRegistry;
use crate::state_engine::{StateEngine, unused_revision};
use crate::storage::{Storage, StorageAdapter};
use crate::supervisor::custody::Custody;
use crate::task::{TaskScope, blocking};
use crate::transport::{self, Role, Server, SocketFiles, Supervised};
use crate::types::PluginName;
use announcements::Announcements;
pub use builder::Builder;
use builder::WholeProcess;
pub use error::Error;
pub use program::{CallError, PublishError};
pub use reload::{Loader, ReloadError, UpgradeError};
use reload::{Reloader, asked_by, with_embedded, with_enrolled};

pub(crate) use tls::make_certificates;

mod announcements;
mod builder;
mod changed;
mod error;
mod metrics;
mod program;
mod reload;
mod settings;
mod tls;

/// Time kept back from the shutdown's for closing the storage.
const STORAGE_SHARE: Duration = Duration::from_secs(1);
/// Time that connections get to end once plugins are gone.
const CONNECTIONS_SHARE: Duration = Duration::from_millis(500);

/// Without grace, time to notice that what was killed is gone.
const REAPING_SHARE: Duration = Duration::from_millis(500);

/// How a shutdown went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct ShutdownReport {
    /// The storage was closed.
    pub storage_closed: bool,
    /// Plugins that could not be ended in time.
    pub surviving_plugins: Vec<String>,
    /// Processes that plugins left and that could not be ended.
    pub surviving_processes: Vec<u32>,
    /// Tasks that had to be aborted.
    pub aborted_tasks: Vec<&'static str>,
}

impl ShutdownReport {
    /// Nothing survived and everything was saved.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.storage_closed
            && self.surviving_plugins.is_empty()
            && self.surviving_processes.is_empty()
    }
}

/// A running core.
pub struct Runtime {
    parts: Parts,
    scopes: Scopes,
    server: Server<grpc::Routes>,
    sockets: SocketFiles,
    tcp: Vec<SocketAddr>,
    tls: Vec<SocketAddr>,
    shutdown_timeout: Duration,
    health: HealthReporter,
    reloader: Reloader,
    data_directory: Option<DirectoryLock>,
}

/// The components, each a handle.
struct Parts {
    bus: EventBus,
    registry: ServiceRegistry,
    router: Router,
    state: StateEngine,
    storage: Storage,
    manager: PluginManager,
    custody: Custody,
}

/// Who owns the tasks, in the order in which they are closed.
struct Scopes {
    /// Accept loops and connections.
    connections: TaskScope,
    /// Streams and channel readers.
    streams: TaskScope,
    /// The plugin manager and the router.
    workers: TaskScope,
    /// What looks after child processes.
    custody: TaskScope,
}

impl Runtime {
    /// Begins to make a runtime.
    pub fn builder(config: Config) -> Builder {
        Builder {
            config,
            embedded: Vec::new(),
            adapter: None,
            whole: WholeProcess::default(),
            loader: None,
            log: None,
        }
    }

    async fn start(builder: Builder) -> Result<Self, Error> {
        let Builder {
            config,
            embedded,
            adapter,
            whole,
            loader,
            log,
        } = builder;
        let (bare, embedded) = embed(embedded)?;
        let limits = &config.limits;
        refuse_half_a_home(&config)?;
        let storage = open_storage(&config, adapter).await?;
        let data_directory = keep_data_directory(&config)?;
        let bus = EventBus::new(settings::event_bus(limits), grpc::encode_event);
        let registry = ServiceRegistry::with_limit(limits.services_per_plugin);
        let router = Router::new(settings::routing(limits), registry.clone());
        let state = StateEngine::new(
            settings::state_engine(limits),
            unused_revision(SystemTime::now()),
        );
        let (credentials, runs) = (Credentials::default(), Runs::default());
        let expiring_credentials = credentials.clone();
        let (tls_listeners, tls_addresses) = tls::bind_all(&config.listen.tls).await?;
        let (prepared, access) = {
            let (config, credentials) = (config.clone(), credentials.clone());
            let bound = tls_addresses.clone();
            blocking(move || tls::open_access(&config, &bound, credentials)).await?
        };
        let operator_grants = {
            let data_dir = config.data_dir.clone();
            blocking(move || tls::read_grants(&data_dir)).await?
        };
        let audit = {
            let data_dir = config.data_dir.clone();
            blocking(move || home::tell_restored(&data_dir)).await?;
            Audit::start(&tls::directory(&config)).map_err(Error::Threads)?
        };
        let policy = Policy {
            granting: config.security.granting,
            mode: config.security.mode,
            audit: audit.clone(),
            metering: Metering::new(config.quotas, audit.clone()),
        };
        let manifests = with_embedded(config.plugins.clone(), &bare);
        let manifests = with_enrolled(manifests, &access);
        let shares = manifests.iter();
        let shares = shares.map(|manifest| (manifest.name.clone(), manifest.share()));
        policy.metering.share_out(shares.collect());
        let own_user = rustix::process::geteuid().as_raw();
        let operators = config.operators.iter().copied().chain([own_user]);
        let gatekeeper = Gatekeeper::new(
            credentials.clone(),
            runs.clone(),
            // The plugin manager puts them in force.
            HashMap::new(),
            operators.clone(),
            policy,
        );
        let scopes = Scopes {
            connections: TaskScope::new(),
            streams: TaskScope::new(),
            workers: TaskScope::new(),
            custody: TaskScope::new(),
        };

        let unix = transport::bind_unix(&config.listen.runtime_dir, !config.operators.is_empty())?;
        let (tcp, tcp_addresses) = tls::bind_all(&config.listen.tcp).await?;

        // The server and the manager need each other: plugins inside the process connect through
        // the server, the server's channels belong to the manager.
        let connector = Connector::default();
        let cookie: Arc<str> = format!("{:032x}", rand::random::<u128>()).into();
        let custody = settings::custody(&config, &whole, &cookie);
        let adopter = custody.adopts_orphans.then(std::process::id);
        let custody = Custody::new(custody);
        let custody = custody.map_err(Error::Threads)?;
        // Nothing is started before what an earlier core left is gone.
        custody.begin(&scopes.custody).await;
        let (manager, manager_worker) = PluginManager::new(
            settings::plugin_manager(&config, &unix.files.plugins, &cookie),
            manifests,
            plugin_manager::Dependencies {
                runs,
                registry: registry.clone(),
                router: router.clone(),
                credentials,
                gatekeeper: gatekeeper.clone(),
                operator_grants,
                announcer: Arc::new(Announcements::new(bus.clone(), state.clone())),
                embedded,
                connect: connector.as_connect(),
                custody: custody.clone(),
            },
        );
        let reloader = Reloader::new(
            manager.clone(),
            bare,
            config.clone(),
            loader,
            access.clone(),
            prepared.clone(),
            gatekeeper.metering().clone(),
            audit.clone(),
        );
        let channel_stats = Arc::<grpc::ChannelStats>::default();
        let metrics = metrics::Sources {
            bus: bus.clone(),
            router: router.clone(),
            state: state.clone(),
            storage: storage.clone(),
            gatekeeper: gatekeeper.clone(),
            manager: manager.clone(),
            channels: Arc::clone(&channel_stats),
            connector: connector.clone(),
        };
        let unix_addresses = [&unix.files.plugins, &unix.files.operators];
        let storage_info = storage.info();
        let information = Information {
            started_at: SystemTime::now(),
            epoch: bus.epoch(),
            addresses: unix_addresses
                .map(|path| format!("unix:{}", path.display()))
                .into_iter()
                .chain(tcp_addresses.iter().map(SocketAddr::to_string))
                .chain(tls_addresses.iter().map(|address| format!("tls:{address}")))
                .collect(),
            insecure_plaintext: config.listen.insecure_plaintext,
            storage: (storage_info.name.to_owned(), storage_info.location.clone()),
            limits: limits.describe(),
            custody: custody.clone(),
        };
        let health = HealthReporter::new();
        let routes = grpc::routes(grpc::Kernel {
            bus: bus.clone(),
            registry: registry.clone(),
            router: router.clone(),
            state: state.clone(),
            storage: storage.clone(),
            manager: manager.clone(),
            reload: reloader.as_rpc(),
            upgrade: reloader.upgrade_as_rpc(),
            access,
            audit,
            home: home::Places::of(&config),
            make_known: reloader.make_known_as_rpc(),
            gatekeeper: gatekeeper.clone(),
            scope: scopes.streams.clone(),
            limits: limits.clone(),
            information,
            metrics: metrics.reader(),
            channel_stats,
            health: health.clone(),
            log,
        });
        let leaders = manager.clone();
        let leaders = move || {
            leaders
                .list()
                .iter()
                .map(|info| info.pid)
                .filter(|pid| *pid > 0)
                .collect()
        };
        let supervised = Supervised::new(Arc::new(leaders), cookie).adopted_by(adopter);
        let server = Server::new(
            routes,
            settings::http2(limits),
            scopes.connections.clone(),
            supervised,
            operators,
        );
        connector.connect_to(server.clone());

        let routing = router.clone();
        scopes.workers.spawn("router", |stop| routing.run(stop));
        scopes
            .workers
            .spawn("credentials", |stop| expiring_credentials.run(stop));
        let expiring = state.clone();
        scopes
            .workers
            .spawn("state-engine", |stop| expiring.run(stop));
        scopes
            .workers
            .spawn("plugin-manager", |stop| manager_worker.run(stop));
        if let Some(tls) = prepared.clone() {
            scopes
                .workers
                .spawn("tls-files", |stop| tls::follow_files(tls, stop));
        }
        server.serve_unix(unix.plugins, Role::Plugins);
        server.serve_unix(unix.operators, Role::Operators);
        tcp.into_iter()
            .for_each(|listener| server.serve_tcp(listener));
        for (listener, tls) in tls_listeners.into_iter().zip(std::iter::repeat(&prepared)) {
            if let Some(tls) = tls {
                server.serve_tls(listener, tls.clone());
            }
        }
        let parts = Parts {
            bus,
            registry,
            router,
            state,
            storage,
            manager,
            custody,
        };
        announcements::core_started(&parts.state, parts.bus.epoch());
        Ok(Self {
            parts,
            scopes,
            server,
            sockets: unix.files,
            tcp: tcp_addresses,
            tls: tls_addresses,
            shutdown_timeout: config.shutdown_timeout,
            health,
            reloader,
            data_directory,
        })
    }
}

impl Runtime {
    /// Lifecycle of plugins.
    #[must_use]
    pub fn plugin_manager(&self) -> &PluginManager {
        &self.parts.manager
    }

    /// Events.
    #[must_use]
    pub fn event_bus(&self) -> &EventBus {
        &self.parts.bus
    }

    /// Services; calling them is [`Runtime::call`].
    #[must_use]
    pub fn service_registry(&self) -> &ServiceRegistry {
        &self.parts.registry
    }

    /// Shared state.
    #[must_use]
    pub fn state_engine(&self) -> &StateEngine {
        &self.parts.state
    }

    /// Durable data.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.parts.storage
    }

    /// The socket for plugins.
    #[must_use]
    pub fn plugin_socket(&self) -> &Path {
        &self.sockets.plugins
    }

    /// The socket for operators.
    #[must_use]
    pub fn operator_socket(&self) -> &Path {
        &self.sockets.operators
    }

    /// TCP addresses that it listens on, with the ports that were taken.
    #[must_use]
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// TCP addresses where it speaks TLS, with the ports that were taken.
    #[must_use]
    pub fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls
    }

    /// Serves a connection that the program accepted by itself, over a tunnel or a simulated network, as
    /// if it had come over TCP from this address: same limits, same credentials. It is closed at once
    /// when there are too many.
    pub fn serve_connection<T>(&self, io: T, address: SocketAddr)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.server.serve_accepted(io, address);
    }

    /// Takes another configuration while everything runs: plugins appear, change, disappear as it says;
    /// what else differs is named in [`Reloaded::needs_restart`] and stays as it was. See
    /// [`PluginManager::reload`].
    ///
    /// # Errors
    /// [`ReloadError::Plugins`]; nothing has changed then.
    ///
    /// # Cancel safety
    /// Dropped, the reload takes place or does not, as a whole.
    pub async fn reload(&self, config: Config) -> Result<Reloaded, ReloadError> {
        self.reloader.reload(config).await
    }

    /// Reads the configuration again with [`Builder::loader`] and takes it. `asked`: who or what asks for it, for
    /// the audit log: "SIGHUP".
    ///
    /// # Errors
    /// [`ReloadError`]; nothing has changed then.
    ///
    /// # Cancel safety
    /// As of [`Self::reload`].
    pub async fn load_and_reload(&self, asked: &str) -> Result<Reloaded, ReloadError> {
        self.reloader.load_and_reload(asked_by(asked)).await
    }

    /// Stops everything in order, within the configured time; see [`Self::shutdown_within`].
    pub async fn shutdown(self) -> ShutdownReport {
        let budget = self.shutdown_timeout;
        self.shutdown_within(budget, std::future::pending()).await
    }

    /// Stops everything in order: new channels and calls are refused, plugins stop in reverse order
    /// of dependency, streams and connections end, the storage is closed, last and always. When
    /// `hurry` completes, all grace is skipped but the storage's.
    pub async fn shutdown_within(
        self,
        budget: Duration,
        hurry: impl Future<Output = ()>,
    ) -> ShutdownReport {
        let whole = budget;
        let deadline = Instant::now() + whole;
        let Self {
            parts,
            scopes,
            sockets,
            health,
            data_directory,
            ..
        } = self;
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        parts.router.begin_shutdown();
        let plugins_deadline = deadline - (STORAGE_SHARE + CONNECTIONS_SHARE).min(budget / 2);
        let report = {
            let mut stopping = std::pin::pin!(parts.manager.shutdown(plugins_deadline));
            tokio::select! {
                report = &mut stopping => report,
                // Asked again with an earlier deadline, it skips all grace.
                () = hurry => {
                    let hurried = parts.manager.shutdown(Instant::now() + REAPING_SHARE);
                    tokio::join!(&mut stopping, hurried).0
                }
            }
        };
        scopes.streams.cancel();
        let budget = CONNECTIONS_SHARE.min(deadline.saturating_duration_since(Instant::now()));
        let mut aborted_tasks = scopes.streams.close(budget / 2).await;
        aborted_tasks.extend(scopes.connections.close(budget / 2).await);
        aborted_tasks.extend(scopes.workers.close(budget / 2).await);
        let surviving_processes = parts
            .custody
            .close(&scopes.custody, deadline - STORAGE_SHARE.min(whole / 2))
            .await;
        drop(sockets);
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(STORAGE_SHARE);
        let storage_closed = tokio::time::timeout(left, parts.storage.close())
            .await
            .is_ok();
        drop(data_directory);
        ShutdownReport {
            storage_closed,
            surviving_plugins: report.survivors.iter().map(ToString::to_string).collect(),
            surviving_processes,
            aborted_tasks,
        }
    }
}

/// Plugins of this process, by name.
type Embedded = HashMap<PluginName, Arc<dyn EmbeddedPlugin>>;

/// The embedded plugins and a bare manifest of each. The program that embeds may give a fuller one for
/// its plugin among `config.plugins`.
fn embed(plugins: Vec<Arc<dyn EmbeddedPlugin>>) -> Result<(Vec<Manifest>, Embedded), Error> {
    let mut manifests = Vec::new();
    let mut embedded = Embedded::new();
    for plugin in plugins {
        let name = PluginName::parse(plugin.name())?;
        let requires = plugin.requires();
        let requires = requires.iter().map(|name| PluginName::parse(name));
        manifests.push(Manifest {
            requires: requires.collect::<Result<_, _>>()?,
            ..Manifest::new(name.clone(), Kind::Embedded)
        });
        embedded.insert(name, plugin);
    }
    Ok((manifests, embedded))
}

/// Where something is kept in it, the data directory is this core's alone, wherever the database is: it has
/// what is wanted of plugins, what they keep, and the record by which the next core ends survivors.
fn keep_data_directory(config: &Config) -> Result<Option<DirectoryLock>, Error> {
    if config.storage.adapter == Adapter::Memory {
        return Ok(None);
    }
    let path = config.data_dir.clone();
    let lock = DirectoryLock::take(&path);
    lock.map(Some)
        .map_err(|source| Error::DataDirectory { path, source })
}

/// `core-server` finishes an interrupted restore before it comes to this; a program may not know of it.
fn refuse_half_a_home(config: &Config) -> Result<(), Error> {
    match home::unfinished(&home::Places::of(config))? {
        Some(path) => Err(Error::RestoreUnfinished { path }),
        None => Ok(()),
    }
}

async fn open_storage(
    config: &Config,
    adapter: Option<Arc<dyn StorageAdapter>>,
) -> Result<Storage, Error> {
    let settings = settings::storage(config);
    let open = move || {
        let adapter = match adapter {
            Some(adapter) => adapter,
            None => settings.open_adapter()?,
        };
        Storage::open(adapter, &settings)
    };
    // Opening reads and may migrate a database: not on the runtime's own threads.
    blocking(open).await.map_err(Error::Storage)
}

/// Opens in-memory connections once there is a server.
#[derive(Clone, Default)]
struct Connector {
    server: Arc<Mutex<Option<Server<grpc::Routes>>>>,
}

impl Connector {
    fn connect_to(&self, server: Server<grpc::Routes>) {
        *self.server.lock() = Some(server);
    }

    fn server(&self) -> Option<Server<grpc::Routes>> {
        self.server.lock().clone()
    }

    fn as_connect(&self) -> Arc<dyn Fn() -> io::Result<DuplexStream> + Send + Sync> {
        let server = Arc::clone(&self.server);
        Arc::new(move || {
            let server = server.lock().clone();
            server
                .ok_or(io::ErrorKind::NotConnected)?
                .connect_in_memory()
        })
    }
}
