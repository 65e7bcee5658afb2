//! A core that fits in a test: the contract's servers over a unix socket or TCP, with a little world
//! in memory. It keeps the contract where `corectl` can see it: pages (small ones), errors with all
//! their details, snapshots before changes.

mod access;
mod admin;
mod data;
mod introspection;
mod plugins;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use core_proto::contract::{ERROR_DOMAIN, metadata};
use core_proto::servers::access_server::AccessServer;
use core_proto::servers::event_bus_server::EventBusServer;
use core_proto::servers::introspection_server::IntrospectionServer;
use core_proto::servers::plugin_manager_server::PluginManagerServer;
use core_proto::servers::service_registry_server::ServiceRegistryServer;
use core_proto::servers::state_engine_server::StateEngineServer;
use core_proto::servers::storage_admin_server::StorageAdminServer;
use core_proto::servers::storage_server::StorageServer;
use core_proto::v1::{
    Event, PermissionInfo, PluginInfo, PluginState, StateChange, StateEntry, StorageEntry,
};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{broadcast, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Code, Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Entries of a page, whatever was asked for: lists of the tests span several.
const PAGE: usize = 2;
/// Changes that a watcher of the fake may lag behind.
const CHANGES: usize = 64;
/// The fake's event log.
pub(crate) const EPOCH: u64 = u64::MAX - 1;

/// An operator's token, when the fake asks for one.
pub(crate) const OPERATOR_TOKEN: &str = "operator-token";
/// A plugin's: known, but not allowed to operate.
pub(crate) const PLUGIN_TOKEN: &str = "plugin-token";

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the fake knows. Locked only for the moment of a request.
pub(crate) struct World {
    pub(crate) plugins: BTreeMap<String, PluginInfo>,
    pub(crate) events: Vec<Event>,
    pub(crate) state: BTreeMap<String, StateEntry>,
    pub(crate) storage: BTreeMap<(String, String), StorageEntry>,
    /// Of whichever plugin is asked about.
    pub(crate) permissions: Vec<PermissionInfo>,
    pub(crate) revision: u64,
    pub(crate) insecure: bool,
    /// A reload is refused.
    pub(crate) bad_config: bool,
}

/// What all servers share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) world: Arc<parking::Mutex<World>>,
    /// Says that a plugin changed.
    pub(crate) plugin_changed: watch::Sender<u64>,
    pub(crate) published: broadcast::Sender<Event>,
    pub(crate) state_changed: broadcast::Sender<StateChange>,
    token_needed: bool,
}

/// The standard mutex; a test that panics while holding it is over anyway.
pub(crate) mod parking {
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> std::sync::MutexGuard<'_, T> {
            self.0.lock().expect("no test panics inside the fake")
        }
    }
}

/// A running fake core; ends when dropped.
pub(crate) struct FakeCore {
    pub(crate) shared: Shared,
    /// As `--addr` takes it.
    pub(crate) address: String,
    /// The directory of the socket, and of anything that a test needs.
    pub(crate) directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

enum Listener {
    Unix(PathBuf),
    Tcp,
}

impl FakeCore {
    /// On a unix socket, with the usual world.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("operator.sock");
        Self::listen(directory, Listener::Unix(socket), false)
    }

    /// On a unix socket at this path below its directory.
    pub(crate) fn start_at(path: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join(path);
        let parent = socket.parent().expect("a socket has a directory");
        std::fs::create_dir_all(parent).expect("created");
        Self::listen(directory, Listener::Unix(socket), false)
    }

    /// On TCP; asks for a token.
    pub(crate) fn start_tcp() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self::listen(directory, Listener::Tcp, true)
    }

    fn listen(directory: TempDir, listener: Listener, token_needed: bool) -> Self {
        let shared = Shared {
            world: Arc::new(parking::Mutex::new(World::new())),
            plugin_changed: watch::Sender::new(0),
            published: broadcast::Sender::new(CHANGES),
            state_changed: broadcast::Sender::new(CHANGES),
            token_needed,
        };
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::sync_channel(1);
        let servers = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let router = router(&servers);
                match listener {
                    Listener::Unix(path) => {
                        let listener = UnixListener::bind(&path).expect("bound");
                        ready
                            .send(format!("unix:{}", path.display()))
                            .expect("the test waits");
                        let incoming = UnixListenerStream::new(listener);
                        tokio::select! {
                            served = router.serve_with_incoming(incoming) => served.expect("served"),
                            _ = stopped => {}
                        }
                    }
                    Listener::Tcp => {
                        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
                        let address = listener.local_addr().expect("an address");
                        ready.send(address.to_string()).expect("the test waits");
                        let incoming = TcpListenerStream::new(listener);
                        tokio::select! {
                            served = router.serve_with_incoming(incoming) => served.expect("served"),
                            _ = stopped => {}
                        }
                    }
                }
            });
        });
        let address = listening
            .recv_timeout(Duration::from_secs(20))
            .expect("the fake listens");
        Self {
            shared,
            address,
            directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Changes the world.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut World) -> R) -> R {
        change(&mut self.shared.world.lock())
    }

    /// Changes a plugin and tells its watchers.
    pub(crate) fn change_plugin(&self, name: &str, change: impl FnOnce(&mut PluginInfo)) {
        self.with(|world| change(world.plugins.entry(name.to_owned()).or_default()));
        self.shared.plugin_changed.send_modify(|count| *count += 1);
    }

    /// Publishes an event as a plugin would.
    pub(crate) fn publish(&self, event: Event) {
        self.shared.publish(event);
    }

    /// Ends at once, as a killed core does.
    pub(crate) fn kill(mut self) -> TempDir {
        self.end();
        std::mem::replace(
            &mut self.directory,
            tempfile::tempdir().expect("a temporary directory"),
        )
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the fake did not panic");
        }
    }
}

impl Drop for FakeCore {
    fn drop(&mut self) {
        self.end();
    }
}

fn router(shared: &Shared) -> tonic::transport::server::Router {
    let token_needed = shared.token_needed;
    let identify = move |request: Request<()>| identify(request, token_needed);
    tonic::transport::Server::builder()
        .add_service(AccessServer::with_interceptor(shared.clone(), identify))
        .add_service(PluginManagerServer::with_interceptor(
            shared.clone(),
            identify,
        ))
        .add_service(ServiceRegistryServer::with_interceptor(
            shared.clone(),
            identify,
        ))
        .add_service(EventBusServer::with_interceptor(shared.clone(), identify))
        .add_service(StateEngineServer::with_interceptor(
            shared.clone(),
            identify,
        ))
        .add_service(StorageServer::with_interceptor(shared.clone(), identify))
        .add_service(StorageAdminServer::with_interceptor(
            shared.clone(),
            identify,
        ))
        .add_service(IntrospectionServer::with_interceptor(
            shared.clone(),
            identify,
        ))
}

/// Marks requests of a plugin, as opposed to an operator.
#[derive(Clone)]
struct FromPlugin;

fn identify(mut request: Request<()>, token_needed: bool) -> Result<Request<()>, Status> {
    let given = request.metadata().get(metadata::AUTHORIZATION);
    let given = given
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let is = |token: &str| given.as_deref() == Some(&format!("Bearer {token}"));
    if is(PLUGIN_TOKEN) {
        request.extensions_mut().insert(FromPlugin);
        return Ok(request);
    }
    if token_needed && !is(OPERATOR_TOKEN) {
        return Err(refusal(
            Code::Unauthenticated,
            "BAD_CREDENTIAL",
            "no known credential",
            &[],
        ));
    }
    Ok(request)
}

/// Refuses plugins what operators may.
pub(crate) fn operators_only<T>(request: &Request<T>) -> Result<(), Status> {
    if request.extensions().get::<FromPlugin>().is_some() {
        return Err(refusal(
            Code::PermissionDenied,
            "NOT_ALLOWED",
            "plugins may not operate the core",
            &[("caller", "plugin")],
        ));
    }
    Ok(())
}

/// An error with everything that the contract promises.
pub(crate) fn refusal(code: Code, reason: &str, message: &str, facts: &[(&str, &str)]) -> Status {
    let mut details = ErrorDetails::new();
    let facts = facts
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    details.set_error_info(
        reason,
        ERROR_DOMAIN,
        facts.collect::<std::collections::HashMap<_, _>>(),
    );
    let mut status = Status::with_error_details(code, message, details);
    let reason = reason.parse().expect("reasons are ASCII");
    status.metadata_mut().insert(metadata::REASON, reason);
    status
}

/// One page of sorted entries and the token of the next; tokens are positions.
pub(crate) fn page<T: Clone>(all: &[T], token: &str) -> Result<(Vec<T>, String), Status> {
    let from: usize = if token.is_empty() {
        0
    } else {
        token.parse().map_err(|_invalid| {
            refusal(Code::InvalidArgument, "BAD_PAGE_TOKEN", "no such page", &[])
        })?
    };
    let to = (from + PAGE).min(all.len());
    let next = if to < all.len() {
        to.to_string()
    } else {
        String::new()
    };
    Ok((all[from..to].to_vec(), next))
}

/// So long ago.
pub(crate) fn ago(seconds: u64) -> prost_types::Timestamp {
    (SystemTime::now() - Duration::from_secs(seconds)).into()
}

/// Does a topic or key match a pattern?
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.split('.'), name.split('.'));
    loop {
        match (pattern.next(), name.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

/// A plugin of the usual world.
fn plugin(name: &str, state: PluginState, desired: PluginState, phase: &str) -> PluginInfo {
    PluginInfo {
        name: name.to_owned(),
        kind: core_proto::v1::PluginKind::Process.into(),
        version: "1.2.0".to_owned(),
        state: state.into(),
        desired: desired.into(),
        phase: phase.to_owned(),
        since: Some(ago(3 * 3600 + 20)),
        generation: 1,
        ..PluginInfo::default()
    }
}
