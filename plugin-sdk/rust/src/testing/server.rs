//! The fake's gRPC services: the wire's side of [`Core`].

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use core_proto::contract;
use core_proto::encoded::{self, SubscribeResponse};
use core_proto::servers::event_bus_server::{EventBus, EventBusServer};
use core_proto::servers::plugin_channel_server::{PluginChannel, PluginChannelServer};
use core_proto::servers::service_registry_server::{ServiceRegistry, ServiceRegistryServer};
use core_proto::servers::state_engine_server::{StateEngine, StateEngineServer};
use core_proto::servers::storage_server::{Storage, StorageServer};
use core_proto::v1::core_message::Message as ToPlugin;
use core_proto::v1::plugin_message::Message as FromPlugin;
use core_proto::v1::{self, CoreMessage, response};
use futures_util::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::core::{Core, Link, Stage};
use super::wire::Severable;
use crate::error::{Error, Origin, Result};

/// Frames and items that wait for the plugin; the fake waits when there are more.
const QUEUE: usize = 1024;

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves connections until the end of the stream of connections.
pub(super) async fn serve(
    core: Arc<Core>,
    token: &'static str,
    connections: mpsc::Receiver<Severable>,
) {
    let bearer = format!("Bearer {token}");
    let authorized = move |request: Request<()>| {
        let given = request.metadata().get(contract::metadata::AUTHORIZATION);
        match given.is_some_and(|given| given.as_bytes() == bearer.as_bytes()) {
            true => Ok(request),
            false => Err(to_status(
                &Error::new(crate::Code::Unauthenticated, "no such token")
                    .with_reason("BAD_CREDENTIAL"),
            )),
        }
    };
    let face = Face(core);
    let incoming = ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
    let served = tonic::transport::Server::builder()
        .add_service(PluginChannelServer::with_interceptor(
            face.clone(),
            authorized.clone(),
        ))
        .add_service(EventBusServer::with_interceptor(
            face.clone(),
            authorized.clone(),
        ))
        .add_service(ServiceRegistryServer::with_interceptor(
            face.clone(),
            authorized.clone(),
        ))
        .add_service(StateEngineServer::with_interceptor(
            face.clone(),
            authorized.clone(),
        ))
        .add_service(StorageServer::with_interceptor(face, authorized))
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the fake core's server failed");
    }
}

#[derive(Clone)]
struct Face(Arc<Core>);

fn to_status(error: &Error) -> Status {
    let body = error.to_status(contract::ERROR_DOMAIN);
    let details = body.encode_to_vec().into();
    let mut status = Status::with_details(error.code(), error.message(), details);
    if error.origin() == Origin::Provider {
        let provider = contract::metadata::ORIGIN_PROVIDER.parse().expect("ascii");
        status
            .metadata_mut()
            .insert(contract::metadata::ORIGIN, provider);
    }
    status
}

fn origin(error: &Error) -> response::Origin {
    match error.origin() {
        Origin::Provider => response::Origin::Provider,
        _ => response::Origin::Core,
    }
}

impl Face {
    /// A unary RPC does what the frame of the same name does.
    async fn unary<Q, R>(&self, method: &str, request: Request<Q>) -> Result<Response<R>, Status>
    where
        Q: prost::Message,
        R: prost::Message + Default,
    {
        let parent = request
            .metadata()
            .get(contract::metadata::PARENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        self.0
            .desk
            .lock()
            .unary
            .push((method.to_owned(), parent.clone()));
        let message = request.into_inner().encode_to_vec().into();
        let slow = self.0.desk.lock().slow;
        let answer = Arc::clone(&self.0)
            .request(method.to_owned(), message, parent, None)
            .await;
        tokio::time::sleep(slow).await;
        let answer = answer.map_err(|error| to_status(&error))?;
        R::decode(answer)
            .map(Response::new)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

macro_rules! service {
    ($service:ident: $($rpc:ident($request:ident) -> $response:ident = $method:literal;)* { $($rest:tt)* }) => {
        #[tonic::async_trait]
        impl $service for Face {
            $(async fn $rpc(
                &self,
                request: Request<v1::$request>,
            ) -> Result<Response<v1::$response>, Status> {
                self.unary($method, request).await
            })*
            $($rest)*
        }
    };
}

service! { Storage:
    get(StorageGetRequest) -> StorageGetResponse = "Storage/Get";
    get_many(StorageGetManyRequest) -> StorageGetManyResponse = "Storage/GetMany";
    set(StorageSetRequest) -> StorageSetResponse = "Storage/Set";
    delete(StorageDeleteRequest) -> StorageDeleteResponse = "Storage/Delete";
    apply(StorageApplyRequest) -> StorageApplyResponse = "Storage/Apply";
    list_keys(StorageListKeysRequest) -> StorageListKeysResponse = "Storage/ListKeys";
    scan(StorageScanRequest) -> StorageScanResponse = "Storage/Scan";
    usage(StorageUsageRequest) -> StorageUsageResponse = "Storage/Usage";
    {
        type WatchStream = Outbound<v1::StorageWatchResponse>;

        async fn watch(
            &self,
            request: Request<v1::StorageWatchRequest>,
        ) -> Result<Response<Self::WatchStream>, Status> {
            let request = request.into_inner();
            let begun = self.0.store.begin_watch(&request);
            let (first, mut seen) = begun.map_err(|error| to_status(&error))?;
            let (sender, receiver) = mpsc::channel(QUEUE);
            let core = Arc::clone(&self.0);
            let ended = core.run.lock().clone();
            let work = async move {
                let mut changed = core.store.changes.subscribe();
                let mut next = first;
                loop {
                    for message in next {
                        if sender.send(Ok(message)).await.is_err() {
                            return;
                        }
                    }
                    if changed.wait_for(|count| *count > seen).await.is_err() {
                        return;
                    }
                    let message;
                    (message, seen) = core.store.changes_from(seen, &request);
                    next = vec![message];
                }
            };
            tokio::spawn(async move { ended.run_until_cancelled(work).await });
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }
}

service! { StateEngine:
    get(StateEngineGetRequest) -> StateEngineGetResponse = "StateEngine/Get";
    set(StateEngineSetRequest) -> StateEngineSetResponse = "StateEngine/Set";
    delete(StateEngineDeleteRequest) -> StateEngineDeleteResponse = "StateEngine/Delete";
    list(StateEngineListRequest) -> StateEngineListResponse = "StateEngine/List";
    {
        type WatchStream = Outbound<v1::StateEngineWatchResponse>;

        async fn watch(
            &self,
            request: Request<v1::StateEngineWatchRequest>,
        ) -> Result<Response<Self::WatchStream>, Status> {
            let request = request.into_inner();
            for pattern in &request.patterns {
                super::bus::check_pattern(pattern).map_err(|error| to_status(&error))?;
            }
            let (sender, receiver) = mpsc::channel(QUEUE);
            let core = Arc::clone(&self.0);
            let ended = core.run.lock().clone();
            let work = async move {
                let patterns = request.patterns;
                let mut changed = core.table.changes.subscribe();
                let (snapshot, mut seen) = core.table.snapshot(&patterns);
                let mut next = match request.include_initial {
                    true => snapshot,
                    false => v1::StateEngineWatchResponse { changes: Vec::new(), ..snapshot },
                };
                loop {
                    if sender.send(Ok(next)).await.is_err() {
                        return;
                    }
                    if changed.wait_for(|count| *count > seen).await.is_err() {
                        return;
                    }
                    let changes = core.table.changes_from(seen, &patterns);
                    seen = *changed.borrow();
                    next = v1::StateEngineWatchResponse { changes, ..Default::default() };
                }
            };
            tokio::spawn(async move { ended.run_until_cancelled(work).await });
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }
}

service! { ServiceRegistry:
    register(ServiceRegistryRegisterRequest) -> ServiceRegistryRegisterResponse = "ServiceRegistry/Register";
    unregister(ServiceRegistryUnregisterRequest) -> ServiceRegistryUnregisterResponse = "ServiceRegistry/Unregister";
    call(ServiceRegistryCallRequest) -> ServiceRegistryCallResponse = "ServiceRegistry/Call";
    list(ServiceRegistryListRequest) -> ServiceRegistryListResponse = "ServiceRegistry/List";
    describe(ServiceRegistryDescribeRequest) -> ServiceRegistryDescribeResponse = "ServiceRegistry/Describe";
    {
        type WatchStream = Outbound<v1::ServiceRegistryWatchResponse>;

        async fn watch(
            &self,
            _request: Request<v1::ServiceRegistryWatchRequest>,
        ) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("TestRuntime does not watch services"))
        }
    }
}

service! { EventBus:
    publish(EventBusPublishRequest) -> EventBusPublishResponse = "EventBus/Publish";
    publish_batch(EventBusPublishBatchRequest) -> EventBusPublishBatchResponse = "EventBus/PublishBatch";
    {
        type PublishStreamStream = Outbound<v1::EventBusPublishStreamResponse>;

        async fn publish_stream(
            &self,
            _request: Request<Streaming<v1::EventBusPublishStreamRequest>>,
        ) -> Result<Response<Self::PublishStreamStream>, Status> {
            Err(Status::unimplemented("TestRuntime takes no streams of events"))
        }

        type SubscribeStream = Outbound<SubscribeResponse>;

        async fn subscribe(
            &self,
            request: Request<v1::EventBusSubscribeRequest>,
        ) -> Result<Response<Self::SubscribeStream>, Status> {
            let begun = self.0.bus.subscribe(request.into_inner());
            let (cursor, first) = begun.map_err(|error| to_status(&error))?;
            let (sender, receiver) = mpsc::channel(QUEUE);
            for control in first {
                // The queue is new and has room.
                drop(sender.try_send(Ok(SubscribeResponse::Control(control))));
            }
            let core = Arc::clone(&self.0);
            let ended = core.run.lock().clone();
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = ended.cancelled() => {
                        let error = to_status(&Error::run_ended());
                        drop(sender.send(Err(error)).await);
                    }
                    () = feed(&core, cursor, &sender) => {}
                }
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }
}

/// Sends a subscriber its events while the plugin is STARTED; what passes after a stop is a gap.
async fn feed(
    core: &Core,
    mut cursor: super::bus::Cursor,
    sender: &mpsc::Sender<Result<SubscribeResponse, Status>>,
) {
    let plugin = core.plugin();
    let mut head = core.bus.head.subscribe();
    let mut stage = core.stage.subscribe();
    let mut was_stopped = false;
    loop {
        let now = *stage.borrow_and_update();
        head.mark_unchanged();
        let sent = match now {
            Stage::Started => {
                let events = core.bus.read(&mut cursor, &plugin);
                match events.is_empty() {
                    true => Ok(()),
                    false => {
                        let entries = events.iter().map(|event| encoded::entry(event).into());
                        let message = SubscribeResponse::Events(entries.collect());
                        sender.send(Ok(message)).await
                    }
                }
            }
            Stage::Stopped => {
                was_stopped = true;
                Ok(())
            }
            Stage::Unloaded | Stage::Loaded => Ok(()),
        };
        if sent.is_err() {
            return;
        }
        tokio::select! {
            _ = head.changed() => {}
            _ = stage.changed() => {
                if was_stopped && *stage.borrow() == Stage::Started {
                    was_stopped = false;
                    if let Some(gap) = core.bus.skip(&mut cursor) {
                        let gap = v1::event_bus_subscribe_response::Control::Gap(gap);
                        drop(sender.send(Ok(SubscribeResponse::Control(gap))).await);
                    }
                }
            }
            () = sender.closed() => return,
        }
    }
}

#[tonic::async_trait]
impl PluginChannel for Face {
    type OpenStream = Outbound<CoreMessage>;

    async fn open(
        &self,
        request: Request<Streaming<v1::PluginMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?;
        let Some(FromPlugin::Hello(hello)) = first.and_then(|first| first.message) else {
            let error = Error::invalid_argument("the first message must be Hello");
            return Err(to_status(&error.with_reason("BAD_HELLO")));
        };
        if let Some(refusal) = self.0.desk.lock().refusal.clone() {
            return Err(to_status(&refusal));
        }
        let (outbound, receiver) = mpsc::channel(QUEUE);
        let link = Link::new(outbound);
        let (welcome, is_new) = welcome(&self.0, hello);
        link.send(ToPlugin::Welcome(welcome)).await;
        if let Some(old) = self.0.link.send_replace(Some(Arc::clone(&link))) {
            old.close();
        }
        let core = Arc::clone(&self.0);
        if is_new {
            let core = Arc::clone(&core);
            tokio::spawn(async move {
                core.failure.send_replace(None);
                if let Err(error) = core.bring_up().await {
                    tracing::warn!(%error, "the plugin did not start");
                    // A run that was ended by the test is no failure of the plugin.
                    let ended = error.reason() == "RUN_ENDED";
                    core.failure.send_replace((!ended).then_some(error));
                }
            });
        }
        tokio::spawn(read(core, link, inbound));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn welcome(core: &Core, hello: v1::Hello) -> (v1::Welcome, bool) {
    let mut desk = core.desk.lock();
    desk.hellos.push(hello.clone());
    let resumed = !desk.run.is_empty() && desk.instance == hello.instance;
    if !resumed {
        desk.generation += 1;
        desk.run = format!("run-{}", desk.generation);
        desk.instance = hello.instance;
        desk.services = hello
            .services
            .into_iter()
            .filter(|service| !desk.stubs.contains_key(&service.name))
            .map(|service| (service.name.clone(), service))
            .collect();
    }
    let welcome = v1::Welcome {
        run: desk.run.clone(),
        plugin: desk.plugin.clone(),
        generation: desk.generation,
        core_version: "TestRuntime".to_owned(),
        wire_version: contract::WIRE_VERSION_MAX,
        features: hello.features,
        config: desk.config.clone(),
        config_revision: desk.config_revision.max(1),
        refused: Vec::new(),
        limits: Some(v1::ChannelLimits {
            max_message_bytes: contract::MAX_MESSAGE_BYTES as u64,
            max_payload_bytes: 256 << 10,
        }),
        heartbeat_interval: prost_types::Duration::try_from(Duration::from_secs(5)).ok(),
        resumed,
        // Nobody is denied anything here.
        granted: hello.permissions,
        denied: Vec::new(),
    };
    (welcome, !resumed)
}

async fn read(core: Arc<Core>, link: Arc<Link>, mut inbound: Streaming<v1::PluginMessage>) {
    let running: Arc<Mutex<HashMap<u64, CancellationToken>>> = Arc::default();
    let gone = link.gone.clone();
    while let Some(Ok(Some(message))) = gone.run_until_cancelled(inbound.message()).await {
        match message.message {
            Some(FromPlugin::CallResponse(response)) => core.answered(&link, response),
            Some(FromPlugin::HookDone(done)) => Core::hook_done(&link, done),
            Some(FromPlugin::Pong(pong)) => Core::pong(&link, pong),
            Some(FromPlugin::ConfigResult(result)) => Core::config_done(&link, result),
            Some(FromPlugin::Health(health)) => core.desk.lock().health.push(health),
            Some(FromPlugin::Request(request)) => {
                take_request(&core, &link, &running, request).await;
            }
            Some(FromPlugin::RequestCancel(cancel)) => {
                if let Some(token) = running.lock().remove(&cancel.request_id) {
                    token.cancel();
                }
            }
            Some(FromPlugin::Bye(_)) => {
                core.end_run();
                break;
            }
            Some(FromPlugin::Hello(_) | FromPlugin::ExtendDeadline(_)) | None => {}
        }
    }
    link.close();
    for token in running.lock().values() {
        token.cancel();
    }
}

async fn take_request(
    core: &Arc<Core>,
    link: &Arc<Link>,
    running: &Arc<Mutex<HashMap<u64, CancellationToken>>>,
    request: v1::Request,
) {
    let slow = {
        let mut desk = core.desk.lock();
        desk.requests.push(request.clone());
        desk.slow
    };
    let id = request.request_id;
    // What is not a call takes effect here and now, in order; only its answer may be late.
    let done = (request.method != "ServiceRegistry/Call")
        .then(|| core.request_at_once(&request.method, &request.message, &request.parent));
    let token = CancellationToken::new();
    running.lock().insert(id, token.clone());
    let (core, link, running) = (Arc::clone(core), Arc::clone(link), Arc::clone(running));
    let time = request
        .timeout
        .and_then(|time| Duration::try_from(time).ok());
    tokio::spawn(async move {
        let work = async {
            let result = match done {
                Some(result) => result,
                None => {
                    core.request(request.method, request.message, request.parent, time)
                        .await
                }
            };
            tokio::time::sleep(slow).await;
            result
        };
        let result = token.run_until_cancelled(work).await.unwrap_or_else(|| {
            Err(Error::cancelled("the request was withdrawn").with_reason("CANCELLED"))
        });
        running.lock().remove(&id);
        let response = match result {
            Ok(message) => v1::Response {
                request_id: id,
                message,
                ..Default::default()
            },
            Err(error) => v1::Response {
                request_id: id,
                error: Some(error.to_status(contract::ERROR_DOMAIN)),
                origin: origin(&error).into(),
                ..Default::default()
            },
        };
        link.send(ToPlugin::Response(response)).await;
    });
}
