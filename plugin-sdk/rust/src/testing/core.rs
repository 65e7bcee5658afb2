//! The fake core: lifecycle, routing and requests, without a wire.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use core_proto::contract;
use core_proto::v1::core_message::Message as ToPlugin;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{self, CoreMessage};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::bus::{Bus, check_topic};
use super::store::{MAX_APPLY_EVENTS, Store, check_count};
use super::tables::Table;
use crate::error::{Error, Origin, Outcome, Result};

/// Whose events, calls and writes the test's own are.
pub(super) const TESTER: &str = "operator";
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// As of the real core.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(5);
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type Stub = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes>> + Send + Sync>;

/// The lifecycle as the core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No run, or one that is not loaded yet.
    Unloaded,
    /// `on_load` is done.
    Loaded,
    /// Calls and events flow.
    Started,
    /// `on_stop` is done.
    Stopped,
}

pub(super) struct Core {
    pub(super) bus: Bus,
    pub(super) store: Store,
    pub(super) table: Table,
    pub(super) stage: watch::Sender<Stage>,
    /// Why the latest run did not come up.
    pub(super) failure: watch::Sender<Option<Error>>,
    /// The live channel.
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    /// Held for one look or change.
    pub(super) desk: Mutex<Desk>,
    /// Cut, all connections are gone.
    pub(super) wire: Mutex<CancellationToken>,
    /// The current run ends with it.
    pub(super) run: Mutex<CancellationToken>,
    next_id: AtomicU64,
}

#[derive(Default)]
pub(super) struct Desk {
    pub(super) plugin: String,
    pub(super) instance: Bytes,
    pub(super) run: String,
    pub(super) generation: u64,
    pub(super) config: Bytes,
    pub(super) config_revision: u64,
    pub(super) services: HashMap<String, v1::ServiceDescription>,
    pub(super) stubs: HashMap<String, Stub>,
    pub(super) hellos: Vec<v1::Hello>,
    pub(super) health: Vec<v1::Health>,
    pub(super) hooks: Vec<Hook>,
    /// `Open` gets this.
    pub(super) refusal: Option<Error>,
    pub(super) offline: bool,
    pub(super) slow: Duration,
    pub(super) storage_failure: Option<Error>,
    /// Answers that came for calls that nobody waits for.
    pub(super) stray_responses: Vec<v1::CallResponse>,
    /// All requests that came as frames, in order.
    pub(super) requests: Vec<v1::Request>,
    /// Methods that came as unary RPCs, with their parent.
    pub(super) unary: Vec<(String, String)>,
}

/// A channel to the plugin.
pub(super) struct Link {
    pub(super) outbound: mpsc::Sender<Result<CoreMessage, Status>>,
    /// Held for one look or change. `None` after the end of the channel.
    pub(super) waiting: Mutex<Option<Waiting>>,
    pub(super) gone: CancellationToken,
}

#[derive(Default)]
pub(super) struct Waiting {
    calls: HashMap<u64, oneshot::Sender<v1::CallResponse>>,
    hooks: HashMap<u64, oneshot::Sender<v1::HookDone>>,
    pings: HashMap<u64, oneshot::Sender<()>>,
    configs: HashMap<u64, oneshot::Sender<v1::ConfigResult>>,
}

impl Link {
    pub(super) fn new(outbound: mpsc::Sender<Result<CoreMessage, Status>>) -> Arc<Self> {
        Arc::new(Self {
            outbound,
            waiting: Mutex::new(Some(Waiting::default())),
            gone: CancellationToken::new(),
        })
    }

    pub(super) async fn send(&self, message: ToPlugin) {
        let message = Some(message);
        // A link that is gone says so through `gone`.
        drop(self.outbound.send(Ok(CoreMessage { message })).await);
    }

    /// What a message of a kind from the future decodes to.
    pub(super) async fn send_unknown(&self) {
        drop(self.outbound.send(Ok(CoreMessage { message: None })).await);
    }

    fn wait_for<T>(
        &self,
        id: u64,
        slot: impl FnOnce(&mut Waiting) -> &mut HashMap<u64, oneshot::Sender<T>>,
    ) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        if let Some(waiting) = &mut *self.waiting.lock() {
            slot(waiting).insert(id, sender);
        }
        receiver
    }

    pub(super) fn close(&self) {
        drop(self.waiting.lock().take());
        self.gone.cancel();
    }
}

impl Core {
    pub(super) fn new(plugin: &str, config: Bytes) -> Arc<Self> {
        Arc::new(Self {
            bus: Bus::new(),
            store: Store::new(),
            table: Table::new(),
            stage: watch::Sender::new(Stage::Unloaded),
            failure: watch::Sender::new(None),
            link: watch::Sender::new(None),
            desk: Mutex::new(Desk {
                plugin: plugin.to_owned(),
                config,
                ..Desk::default()
            }),
            wire: Mutex::new(CancellationToken::new()),
            run: Mutex::new(CancellationToken::new()),
            next_id: AtomicU64::new(1),
        })
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn plugin(&self) -> String {
        self.desk.lock().plugin.clone()
    }

    pub(super) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// The run is over: streams, registrations and hooks end.
    pub(super) fn end_run(&self) {
        let ended = std::mem::take(&mut *self.run.lock());
        ended.cancel();
        let mut desk = self.desk.lock();
        desk.run.clear();
        desk.services.clear();
        drop(desk);
        self.table.end_run();
        self.stage.send_replace(Stage::Unloaded);
        if let Some(link) = self.link.send_replace(None) {
            link.close();
        }
    }

    // ---- lifecycle

    /// Runs one hook to its end, over as many channels of the run as that takes.
    pub(super) async fn hook(&self, hook: Hook) -> Result<()> {
        let ended = self.run.lock().clone();
        let work = async {
            loop {
                let link = self.live_link().await?;
                let hook_id = self.next_id();
                let done = link.wait_for(hook_id, |waiting| &mut waiting.hooks);
                link.send(ToPlugin::RunHook(v1::RunHook {
                    hook: hook.into(),
                    hook_id,
                    timeout: prost_types::Duration::try_from(HOOK_TIMEOUT).ok(),
                }))
                .await;
                if let Ok(done) = done.await {
                    break match done.error {
                        None => Ok(()),
                        Some(status) => Err(Error::from_status(status, Origin::Provider)),
                    };
                }
            }
        };
        let result = tokio::select! {
            biased;
            result = timeout(HOOK_TIMEOUT, work) => result.unwrap_or_else(|_| {
                Err(Error::deadline_exceeded(format!("{} took too long", hook.as_str_name())))
            }),
            () = ended.cancelled() => Err(Error::run_ended()),
        };
        if result.is_ok() {
            self.desk.lock().hooks.push(hook);
        }
        result
    }

    pub(super) async fn live_link(&self) -> Result<Arc<Link>> {
        let mut links = self.link.subscribe();
        let live =
            links.wait_for(|link| link.as_ref().is_some_and(|link| !link.gone.is_cancelled()));
        match live.await.as_deref() {
            Ok(Some(link)) => Ok(Arc::clone(link)),
            _ => Err(Error::run_ended()),
        }
    }

    /// LOAD and START of a new run.
    pub(super) async fn bring_up(&self) -> Result<()> {
        self.hook(Hook::Load).await?;
        self.stage.send_replace(Stage::Loaded);
        self.hook(Hook::Start).await?;
        self.stage.send_replace(Stage::Started);
        Ok(())
    }

    pub(super) async fn ping(&self) -> Result<()> {
        let link = self.live_link().await?;
        let nonce = self.next_id();
        let pong = link.wait_for(nonce, |waiting| &mut waiting.pings);
        link.send(ToPlugin::Ping(v1::Ping { nonce })).await;
        pong.await
            .map_err(|_| Error::channel_lost(Outcome::Unknown))
    }

    // ---- what comes from the plugin

    pub(super) fn answered(&self, link: &Link, response: v1::CallResponse) {
        let waiter = {
            let mut waiting = link.waiting.lock();
            waiting
                .as_mut()
                .and_then(|waiting| waiting.calls.remove(&response.call_id))
        };
        let stray = match waiter {
            Some(waiter) => waiter.send(response).err(),
            None => Some(response),
        };
        self.desk.lock().stray_responses.extend(stray);
    }

    pub(super) fn hook_done(link: &Link, done: v1::HookDone) {
        let mut waiting = link.waiting.lock();
        let waiter = waiting
            .as_mut()
            .and_then(|waiting| waiting.hooks.remove(&done.hook_id));
        // A superseded hook has no waiter any more.
        if let Some(waiter) = waiter {
            waiter.send(done).ok();
        }
    }

    /// Sends a changed configuration and waits for what the plugin says to it.
    pub(super) async fn change_config(&self, config: Bytes) -> Result<()> {
        use v1::config_result::Outcome as Verdict;
        let link = self.live_link().await?;
        let revision = {
            let mut desk = self.desk.lock();
            let hello = desk.hellos.last();
            let live = |hello: &v1::Hello| {
                let mut features = hello.features.iter();
                features.any(|feature| feature == contract::FEATURE_LIVE_CONFIG)
            };
            if !hello.is_some_and(live) {
                let text = "the plugin has no on_config: a core restarts it";
                return Err(Error::restart_needed(text));
            }
            desk.config_revision = desk.config_revision.max(1) + 1;
            desk.config_revision
        };
        let done = link.wait_for(revision, |waiting| &mut waiting.configs);
        link.send(ToPlugin::ConfigChanged(v1::ConfigChanged {
            revision,
            config: config.clone(),
        }))
        .await;
        let late = |_| Error::restart_needed("the plugin did not answer in time");
        let done = timeout(CONFIG_TIMEOUT, done).await.map_err(late)?;
        let result = done.map_err(|_| Error::channel_lost(Outcome::Unknown))?;
        match result.outcome() {
            Verdict::Applied => {
                self.desk.lock().config = config;
                Ok(())
            }
            Verdict::Rejected => {
                Err(Error::failed_precondition(result.text).with_reason("CONFIG_REJECTED"))
            }
            Verdict::RestartNeeded | Verdict::Unspecified => {
                Err(Error::restart_needed(result.text))
            }
        }
    }

    pub(super) fn config_done(link: &Link, result: v1::ConfigResult) {
        let mut waiting = link.waiting.lock();
        let waiter = waiting
            .as_mut()
            .and_then(|waiting| waiting.configs.remove(&result.revision));
        if let Some(waiter) = waiter {
            // Whoever asked may have given up.
            waiter.send(result).ok();
        }
    }

    pub(super) fn pong(link: &Link, pong: v1::Pong) {
        let mut waiting = link.waiting.lock();
        let waiter = waiting
            .as_mut()
            .and_then(|waiting| waiting.pings.remove(&pong.nonce));
        if let Some(waiter) = waiter {
            // Whoever asked may have given up.
            waiter.send(()).ok();
        }
    }

    // ---- calls

    /// Routes a call to a stub or to the plugin.
    pub(super) async fn call(
        &self,
        caller: &str,
        parent: &str,
        request: v1::ServiceRegistryCallRequest,
        time: Option<Duration>,
    ) -> Result<Bytes> {
        let service = request.service;
        let stub = self.desk.lock().stubs.get(&service).cloned();
        let time = time.unwrap_or(CALL_TIMEOUT);
        let late = || {
            Error::deadline_exceeded(format!("{service:?} did not answer within {time:?}"))
                .with_reason("DEADLINE")
        };
        if let Some(stub) = stub {
            let answer = timeout(time, stub(request.arguments)).await;
            return answer.unwrap_or_else(|_| Err(late()));
        }
        if !self.desk.lock().services.contains_key(&service) {
            let text = format!("service {service:?} is not registered, and not stubbed");
            return Err(Error::not_found(text).with_reason("NO_SUCH_SERVICE"));
        }
        if self.stage() != Stage::Started {
            let text = format!("the provider of {service:?} is not started");
            return Err(Error::unavailable(text).with_reason("NO_PROVIDER"));
        }
        let link = self.live_link().await?;
        let call_id = self.next_id();
        let answer = link.wait_for(call_id, |waiting| &mut waiting.calls);
        let guard = CancelCall {
            link: Arc::clone(&link),
            call_id,
        };
        link.send(ToPlugin::CallRequest(v1::CallRequest {
            call_id,
            service: service.clone(),
            content_type: request.content_type,
            arguments: request.arguments,
            timeout: prost_types::Duration::try_from(time).ok(),
            caller: caller.to_owned(),
            depth: 1,
            cause: parent.to_owned(),
            ..Default::default()
        }))
        .await;
        match timeout(time, answer).await {
            Ok(Ok(response)) => {
                guard.disarm();
                match response.error {
                    None => Ok(response.result),
                    Some(status) => Err(Error::from_status(status, Origin::Provider)),
                }
            }
            Ok(Err(_)) => Err(Error::unavailable("the provider went away")
                .with_reason("PROVIDER_LOST")
                .with_outcome(Outcome::Unknown)),
            Err(_) => Err(late().with_outcome(Outcome::Unknown)),
        }
    }

    // ---- requests

    /// Carries out a request, whichever way it came.
    pub(super) async fn request(
        self: Arc<Self>,
        method: String,
        message: Bytes,
        parent: String,
        time: Option<Duration>,
    ) -> Result<Bytes> {
        if method == "ServiceRegistry/Call" {
            let request = decode(&message)?;
            let result = self.call(&self.plugin(), &parent, request, time).await?;
            return Ok(encode(&v1::ServiceRegistryCallResponse {
                result,
                ..Default::default()
            }));
        }
        self.request_at_once(&method, &message, &parent)
    }

    /// Everything but calls happens at once, in the order in which it comes.
    pub(super) fn request_at_once(
        &self,
        method: &str,
        message: &Bytes,
        parent: &str,
    ) -> Result<Bytes> {
        let plugin = self.plugin();
        if method.starts_with("Storage/")
            && let Some(error) = self.desk.lock().storage_failure.clone()
        {
            return Err(error);
        }
        Ok(match method {
            "EventBus/Publish" => {
                let request: v1::EventBusPublishRequest = decode(message)?;
                let event = request.event.unwrap_or_default();
                let (epoch, seq) = self.bus.publish(&plugin, parent, event)?;
                encode(&v1::EventBusPublishResponse { epoch, seq })
            }
            "EventBus/PublishBatch" => {
                let request: v1::EventBusPublishBatchRequest = decode(message)?;
                let mut answer = v1::EventBusPublishBatchResponse::default();
                for (index, event) in (0..).zip(request.events) {
                    match self.bus.publish(&plugin, parent, event) {
                        Ok((epoch, seq)) => {
                            answer.epoch = epoch;
                            if answer.published == 0 {
                                answer.first_seq = seq;
                            }
                            answer.published += 1;
                        }
                        Err(error) => answer.rejected.push(v1::RejectedEvent {
                            index,
                            error: Some(error.to_status(&plugin)),
                        }),
                    }
                }
                encode(&answer)
            }
            "ServiceRegistry/Register" => {
                let request: v1::ServiceRegistryRegisterRequest = decode(message)?;
                self.register(request.service.unwrap_or_default())?;
                encode(&v1::ServiceRegistryRegisterResponse {})
            }
            "ServiceRegistry/Unregister" => {
                let request: v1::ServiceRegistryUnregisterRequest = decode(message)?;
                let existed = self.desk.lock().services.remove(&request.name).is_some();
                encode(&v1::ServiceRegistryUnregisterResponse { existed })
            }
            "StateEngine/Get" => encode(&self.table.get(&decode(message)?)?),
            "StateEngine/Set" => encode(&self.table.set(&plugin, parent, decode(message)?)?),
            "StateEngine/Delete" => {
                encode(&self.table.delete(&plugin, parent, &decode(message)?)?)
            }
            "StateEngine/List" => encode(&self.table.list(&decode(message)?)?),
            "Storage/Get" => encode(&self.store.get(decode(message)?)?),
            "Storage/GetMany" => encode(&self.store.get_many(decode(message)?)?),
            "Storage/Set" => encode(&self.store.set(decode(message)?)?),
            "Storage/Delete" => encode(&self.store.delete(decode(message)?)?),
            "Storage/Apply" => encode(&self.apply(&plugin, parent, decode(message)?)?),
            "Storage/ListKeys" => encode(&self.store.list_keys(decode(message)?)?),
            "Storage/Scan" => encode(&self.store.scan(decode(message)?)?),
            "Storage/Usage" => encode(&self.store.usage(decode(message)?)?),
            _ => {
                let text = format!("TestRuntime does not do {method}");
                return Err(Error::unimplemented(text).with_reason("UNKNOWN_METHOD"));
            }
        })
    }

    pub(super) fn register(&self, description: v1::ServiceDescription) -> Result<()> {
        let mut desk = self.desk.lock();
        let name = description.name.clone();
        if desk.stubs.contains_key(&name) {
            let text = format!("{name:?} is registered by another plugin (a stub)");
            return Err(Error::already_exists(text).with_reason("SERVICE_TAKEN"));
        }
        desk.services.insert(name, description);
        Ok(())
    }

    fn apply(
        &self,
        plugin: &str,
        parent: &str,
        request: v1::StorageApplyRequest,
    ) -> Result<v1::StorageApplyResponse> {
        check_count("events", request.events.len(), 0, MAX_APPLY_EVENTS)?;
        for event in &request.events {
            check_topic(&event.topic)?;
        }
        let ops = request.ops.into_iter().filter_map(|op| op.op).collect();
        let (revision, existed) = self.store.write(&request.namespace, &request.checks, ops)?;
        for event in request.events {
            self.bus.publish(plugin, parent, event)?;
        }
        Ok(v1::StorageApplyResponse { revision, existed })
    }
}

fn decode<M: prost::Message + Default>(message: &Bytes) -> Result<M> {
    M::decode(message.clone())
        .map_err(|error| Error::invalid_argument(error.to_string()).with_reason("BAD_MESSAGE"))
}

fn encode(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Tells the plugin when nobody waits for a call any more.
struct CancelCall {
    link: Arc<Link>,
    call_id: u64,
}

impl CancelCall {
    fn disarm(mut self) {
        self.call_id = 0;
    }
}

impl Drop for CancelCall {
    fn drop(&mut self) {
        if self.call_id == 0 {
            return;
        }
        let link = Arc::clone(&self.link);
        let cancel = v1::CallCancel {
            call_id: self.call_id,
        };
        if let Some(waiting) = &mut *link.waiting.lock() {
            waiting.calls.remove(&self.call_id);
        }
        tokio::spawn(async move { link.send(ToPlugin::CallCancel(cancel)).await });
    }
}

/// Runs something and gives up after a while: no test waits for ever.
pub(super) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    const PATIENCE: Duration = Duration::from_secs(30);
    timeout(PATIENCE, future)
        .await
        .map_err(|_| Error::deadline_exceeded(format!("{what}: not within {PATIENCE:?}")))
}
