//! The contract, served. A thin shell: each method authenticates (the gate has), converts, calls the
//! domain, converts back. No rule, no lock, no query here.
//!
//! Owns: the services of `proto/`, the conversion of messages and errors, the reader of each plugin
//! channel. Only here and in `transport/` are tonic or generated types named.
//!
//! Invariants
//! - Every RPC passes the gate; every request frame passes the same gatekeeper and the same handler.
//! - A stream of a plugin ends with its run, every stream with the core; both say why.
//! - The reader of a channel never waits for a handler, a full queue or I/O.

mod access;
mod convert;
mod enrollment;
mod event_bus;
mod fit;
mod gate;
mod introspection;
mod order;
mod plugin_channel;
mod plugin_manager;
mod requests;
mod service_registry;
mod state_engine;
mod status;
mod storage;
mod storage_admin;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use core_proto::{FILE_DESCRIPTOR_SET, servers};
use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

pub(crate) use access::MakeKnown;
pub(crate) use convert::events::encode as encode_event;
pub(crate) use introspection::{Information, Metric, ReadMetrics, Value};
pub(crate) use plugin_channel::Stats as ChannelStats;

use crate::channel::{Closed, Slot};
use crate::config::{Limits, Quota};
use crate::error::{Classify, ErrorKind, Failure, Outcome, Reason};
use crate::event_bus::EventBus;
use crate::home;
use crate::plugin_manager::{PluginInfo, PluginManager, Reloaded};
use crate::routing::Router;
use crate::security::{Access, Audit, Caller, Denied, Gatekeeper, audit};
use crate::service_registry::ServiceRegistry;
use crate::state_engine::StateEngine;
use crate::storage::Storage;
use crate::task::TaskScope;
use crate::telemetry::logging;
use gate::Gate;

/// What the services stand on.
pub(crate) struct Kernel {
    pub(crate) bus: EventBus,
    pub(crate) registry: ServiceRegistry,
    pub(crate) router: Router,
    pub(crate) state: StateEngine,
    pub(crate) storage: Storage,
    pub(crate) manager: PluginManager,
    pub(crate) reload: Reload,
    pub(crate) upgrade: Upgrade,
    pub(crate) access: Access,
    pub(crate) audit: Audit,
    pub(crate) home: home::Places,
    pub(crate) make_known: MakeKnown,
    pub(crate) gatekeeper: Gatekeeper,
    pub(crate) scope: TaskScope,
    pub(crate) limits: Limits,
    pub(crate) information: Information,
    pub(crate) metrics: ReadMetrics,
    pub(crate) channel_stats: Arc<ChannelStats>,
    pub(crate) health: HealthReporter,
    pub(crate) log: Option<logging::Control>,
}

/// Reads the configuration again and applies it. The runtime knows how, and notes what has changed in a record
/// like this one, which says who asks.
pub(crate) type Reload =
    Arc<dyn Fn(audit::Record) -> BoxFuture<'static, Result<Reloaded, Failure>> + Send + Sync>;

/// Puts another version in a plugin's place: its name, an absolute path, by when to answer.
pub(crate) type Upgrade = Arc<
    dyn Fn(String, PathBuf, Instant) -> BoxFuture<'static, Result<PluginInfo, Failure>>
        + Send
        + Sync,
>;

/// All services behind the gate.
pub(crate) type Routes = Gate<tonic::service::Routes>;

/// Assembles the services.
pub(crate) fn routes(kernel: Kernel) -> Routes {
    let Kernel {
        gatekeeper,
        scope,
        limits,
        ..
    } = kernel;
    let event_bus = event_bus::Api {
        bus: kernel.bus,
        gatekeeper: gatekeeper.clone(),
        scope: scope.clone(),
    };
    let service_registry = service_registry::Api {
        registry: kernel.registry,
        router: kernel.router.clone(),
        gatekeeper: gatekeeper.clone(),
        scope: scope.clone(),
        max_payload_bytes: limits.payload_bytes,
        max_watches: limits.watches_per_plugin,
    };
    let state_engine = state_engine::Api {
        state: kernel.state,
        gatekeeper: gatekeeper.clone(),
        scope: scope.clone(),
        max_watches: limits.watches_per_plugin,
    };
    let storage_admin = storage_admin::Api {
        storage: kernel.storage.clone(),
        audit: kernel.audit.clone(),
        gatekeeper: gatekeeper.clone(),
        scope: scope.clone(),
        home: kernel.home,
    };
    let storage = storage::Api {
        storage: kernel.storage,
        gatekeeper: gatekeeper.clone(),
        events: event_bus.clone(),
        scope: scope.clone(),
        max_watches: limits.watches_per_plugin,
    };
    let plugin_channel = plugin_channel::Api {
        manager: kernel.manager.clone(),
        router: kernel.router,
        gatekeeper: gatekeeper.clone(),
        requests: Arc::new(requests::Requests {
            event_bus: event_bus.clone(),
            service_registry: service_registry.clone(),
            state_engine: state_engine.clone(),
            storage: storage.clone(),
        }),
        limits: plugin_channel::Limits {
            hello_timeout: limits.hello_timeout,
            outbox_bytes: limits.outbox_bytes,
            max_payload_bytes: limits.payload_bytes,
            max_response_bytes: limits.message_bytes.saturating_sub(FRAME_BYTES),
        },
        stats: kernel.channel_stats,
        scope: scope.clone(),
    };
    let access = access::Api {
        access: kernel.access.clone(),
        audit: kernel.audit.clone(),
        manager: kernel.manager.clone(),
        make_known: Arc::clone(&kernel.make_known),
    };
    let enrollment = enrollment::Api {
        access: kernel.access,
        audit: kernel.audit.clone(),
        manager: kernel.manager.clone(),
        make_known: kernel.make_known,
    };
    let plugin_manager = plugin_manager::Api {
        manager: kernel.manager,
        audit: kernel.audit,
        gatekeeper: gatekeeper.clone(),
        reload: kernel.reload,
        upgrade: kernel.upgrade,
        scope,
        log: kernel.log,
    };
    let introspection = introspection::Api {
        metering: gatekeeper.metering().clone(),
        information: Arc::new(kernel.information),
        metrics: kernel.metrics,
    };
    let health = HealthServer::new(HealthService::from_health_reporter(kernel.health))
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by the build")
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);

    /// A server with the limit on messages, either way.
    macro_rules! limited {
        ($server:path, $api:expr) => {
            <$server>::new($api)
                .max_decoding_message_size(limits.message_bytes)
                .max_encoding_message_size(limits.message_bytes)
        };
    }
    use servers::{
        access_server::AccessServer, enrollment_server::EnrollmentServer,
        event_bus_server::EventBusServer, introspection_server::IntrospectionServer,
        plugin_channel_server::PluginChannelServer, plugin_manager_server::PluginManagerServer,
        service_registry_server::ServiceRegistryServer, state_engine_server::StateEngineServer,
        storage_admin_server::StorageAdminServer, storage_server::StorageServer,
    };
    let routes = tonic::service::Routes::new(health)
        .add_service(reflection)
        // Joining is open to anybody: nobody unknown may make the core hold a large message.
        .add_service(
            EnrollmentServer::new(enrollment).max_decoding_message_size(ENROLLMENT_MESSAGE_BYTES),
        )
        .add_service(limited!(AccessServer<_>, access))
        .add_service(limited!(EventBusServer<_>, event_bus))
        .add_service(limited!(IntrospectionServer<_>, introspection))
        .add_service(limited!(PluginChannelServer<_>, plugin_channel))
        .add_service(
            // Empty records are 80 times as large in memory as on the wire.
            limited!(PluginManagerServer<_>, plugin_manager)
                .max_decoding_message_size(limits.message_bytes.min(MANAGER_MESSAGE_BYTES)),
        )
        .add_service(limited!(ServiceRegistryServer<_>, service_registry))
        .add_service(limited!(StateEngineServer<_>, state_engine))
        .add_service(limited!(StorageServer<_>, storage))
        .add_service(limited!(StorageAdminServer<_>, storage_admin));
    Gate::new(gatekeeper, routes.prepare())
}

/// A frame of the channel, as its reader takes it.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_channel_frame(bytes: &[u8]) {
    use core_proto::v1::{PluginMessage, plugin_message::Message};
    use prost::Message as _;
    let Ok(message) = PluginMessage::decode(bytes) else {
        return;
    };
    if let Some(Message::Hello(hello)) = &message.message {
        let _judged = convert::channel::hello(hello.clone());
    }
    let _frame = convert::channel::inbound(message, 256 << 10);
}

/// What the gate reads out of metadata.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_metadata(text: &str) {
    let _read = (gate::parse_timeout(text), gate::bearer(text));
}

/// Requests of health and reflection are names. Health is open to anybody: nobody unknown may make the
/// core hold a large message.
const SMALL_MESSAGE_BYTES: usize = 4 << 10;
/// A request for a certificate with what belongs to it.
const ENROLLMENT_MESSAGE_BYTES: usize = 16 << 10;
/// Largest request to the plugin manager: a batch of log lines.
const MANAGER_MESSAGE_BYTES: usize = 1 << 20;

/// What a frame of the channel may add to the message in it, amply.
const FRAME_BYTES: usize = 1 << 10;

/// Deadline of a request that gives none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server stream answers with.
type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A request's time ran out inside the core.
#[derive(Debug, thiserror::Error)]
#[error("the request was not done within its deadline; a write may still take effect")]
struct Expired;

impl Classify for Expired {
    fn kind(&self) -> ErrorKind {
        ErrorKind::DeadlineExceeded
    }

    fn reason(&self) -> Reason {
        Reason::Deadline
    }

    fn outcome(&self) -> Outcome {
        Outcome::Unknown
    }
}

/// One unary RPC: the caller that the gate found, its place among its requests in flight, the handler, the
/// deadline, the error.
async fn unary<M, A>(
    request: Request<M>,
    handler: impl AsyncFnOnce(Caller, M) -> Result<A, Failure>,
) -> Result<Response<A>, Status> {
    let caller = gate::caller(&request)?;
    let held = caller.meter.hold(Quota::RequestsInFlight);
    let _held = held.map_err(status::from_failure)?;
    let deadline = caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT);
    let answer = tokio::time::timeout_at(deadline, handler(caller, request.into_inner())).await;
    let answer = answer.unwrap_or_else(|_| Err(Expired.into()));
    answer.map(Response::new).map_err(status::from_failure)
}

/// Why a stream of this caller must end, when it must.
fn ended(caller: &Caller, scope: &TaskScope) -> impl Future<Output = Failure> + Send + use<> {
    let run = caller.run.as_ref().map(|run| run.ended().clone());
    let revoked = caller.revoked.clone();
    let stop = scope.stop_token().clone();
    async move {
        let run_ended = async {
            match run {
                Some(run) => run.cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        let revoked = async {
            match revoked {
                Some(revoked) => revoked.cancelled_owned().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => Closed::ShuttingDown.into(),
            () = revoked => Closed::Revoked.into(),
            () = run_ended => Closed::RunEnded { reason: "its streams end with it".to_owned() }.into(),
        }
    }
}

/// A plugin has as many watches as it may.
#[derive(Debug, thiserror::Error)]
#[error("a plugin may have {limit} watches at once; one watch may have several patterns")]
struct TooManyWatches {
    limit: usize,
}

impl Classify for TooManyWatches {
    fn kind(&self) -> ErrorKind {
        ErrorKind::ResourceExhausted
    }

    fn reason(&self) -> Reason {
        Reason::TooManySubscriptions
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![("limit", self.limit.to_string())]
    }
}

/// A place for one more watch of this caller, to be held as long as it lasts. Operators have no such
/// bound, like with subscriptions.
fn place_for_watch(caller: &Caller, limit: usize) -> Result<Option<Slot>, TooManyWatches> {
    match &caller.run {
        Some(run) => match run.watches().take(limit) {
            Some(slot) => Ok(Some(slot)),
            None => Err(TooManyWatches { limit }),
        },
        None => Ok(None),
    }
}

/// As [`stream`], for what was granted: it ends when that is granted no more.
fn granted_stream<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Failure>> + Send + 'static,
    caller: &Caller,
    scope: &TaskScope,
    lost: impl Future<Output = Denied> + Send + 'static,
) -> ResponseStream<T> {
    let ended = ended(caller, scope);
    let end = async move {
        tokio::select! {
            failure = ended => failure,
            denied = lost => denied.into(),
        }
    };
    Box::pin(Ending::new(items, end))
}

/// A server stream that ends with its caller's run and with the core.
fn stream<T: Send + 'static>(
    items: impl Stream<Item = Result<T, Failure>> + Send + 'static,
    caller: &Caller,
    scope: &TaskScope,
) -> ResponseStream<T> {
    Box::pin(Ending::new(items, ended(caller, scope)))
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Failure>> + Send>>;

/// A stream with an outer end. It ends after its first error.
struct Ending<T, E> {
    items: Option<Items<T>>,
    /// One, in a set that polls it only when it has something to say: each poll of its parts takes locks,
    /// some of which all streams share, and there may be a poll for each item.
    end: FuturesUnordered<E>,
}

impl<T, E> Ending<T, E> {
    fn new(items: impl Stream<Item = Result<T, Failure>> + Send + 'static, end: E) -> Self {
        Self {
            items: Some(Box::pin(items)),
            end: std::iter::once(end).collect(),
        }
    }
}

impl<T, E: Future<Output = Failure>> Stream for Ending<T, E> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(items) = &mut this.items else {
            return Poll::Ready(None);
        };
        let item = match Pin::new(&mut this.end).poll_next(context) {
            Poll::Ready(Some(failure)) => Some(Err(failure)),
            Poll::Ready(None) | Poll::Pending => ready!(items.as_mut().poll_next(context)),
        };
        if !matches!(item, Some(Ok(_))) {
            this.items = None;
        }
        Poll::Ready(item.map(|item| item.map_err(status::from_failure)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::{StreamExt as _, stream};
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_stream_is_not_looked_at_for_each_item_and_comes_all_the_same() {
        let looked = Arc::new(AtomicUsize::new(0));
        let (end, over) = oneshot::channel::<()>();
        let counted = Arc::clone(&looked);
        let mut over = Box::pin(over);
        let ending = std::future::poll_fn(move |context| {
            counted.fetch_add(1, Ordering::Relaxed);
            over.as_mut()
                .poll(context)
                .map(|_| Failure::from(Closed::ShuttingDown))
        });
        let items = stream::iter(0..1_000).map(Ok).chain(stream::pending());
        let mut stream = Ending::new(items, ending);
        for expected in 0..1_000 {
            let item = stream.next().await.expect("an item");
            assert_eq!(item.expect("good"), expected);
        }
        assert_eq!(looked.load(Ordering::Relaxed), 1);
        end.send(()).expect("awaited");
        assert!(stream.next().await.expect("its end").is_err());
        assert!(stream.next().await.is_none());
    }
}
