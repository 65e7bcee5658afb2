//! [`Ctx`]: everything a handler can ask of the core, with what it is handling attached.
//!
//! Handlers, hooks and tasks each get a context of their own. It knows its cause (the call or event
//! that is being handled), so that every request made through it names that cause and the core can
//! derive nesting depth, remaining time and trace; nothing is hidden in thread- or task-locals. Hand it
//! (or a clone) to whatever works on the same thing.

mod dependencies;
mod permissions;
mod scope;
mod state;
mod storage;
mod storage_watch;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1;
use core_proto::v1::plugin_message::Message as ToCore;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::arguments;
use crate::error::{Error, Result};
use crate::events::{self, Event, Subscribe, Subscribed, Subscription};
use crate::guard::guarded;
use crate::plugin;
use crate::run::{Run, Stage, Terms};
use crate::service::Service;

pub use dependencies::{Dependencies, DependencyChange};
pub use permissions::{Permission, Permissions, PermissionsWatch};
pub(crate) use scope::{Call, Handled, Scope};
pub use state::{State, StateChange, StateChangeKind, StateEntry, StateWatch};
pub use storage::{Batch, Range, Storage, StorageEntry, StorageUsage};
pub use storage_watch::{StorageChange, StorageWatch};

/// A handler's way to the core. Cheap to clone. See the [crate] for a table of its verbs.
///
/// That of an event's handler holds the event: kept for long, it keeps the event's memory too.
#[derive(Clone)]
pub struct Ctx {
    run: Arc<Run>,
    scope: Scope,
}

impl std::fmt::Debug for Ctx {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Ctx")
            .field("plugin", &self.run.name)
            .field("run", &self.run.id)
            .field("scope", &self.scope)
            .finish()
    }
}

/// A position in the core's log of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Incarnation of the log.
    pub epoch: u64,
    /// Place in it.
    pub seq: u64,
}

/// How a call is made. The default: the service's own deadline (10 s if it has none), and failing at
/// once when the provider is not there.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct CallOptions {
    timeout: Option<Duration>,
    wait_for_ready: bool,
}

impl CallOptions {
    /// The default.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fail with `DEADLINE_EXCEEDED` after this, 5 min at most.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// While the provider is known and not STARTED, wait for it inside the deadline.
    pub fn wait_for_ready(mut self) -> Self {
        self.wait_for_ready = true;
        self
    }
}

/// An event to publish, where [`Ctx::publish`] is not enough.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct NewEvent {
    event: v1::NewEvent,
}

impl NewEvent {
    /// An event with its data as JSON.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if the data cannot be written as JSON.
    pub fn new(topic: impl Into<String>, data: impl Serialize) -> Result<Self> {
        let data = arguments::encode_json(&data)?;
        Ok(Self::raw(topic, "", data))
    }

    /// An event with any bytes.
    pub fn raw(topic: impl Into<String>, content_type: &str, data: impl Into<Bytes>) -> Self {
        Self {
            event: v1::NewEvent {
                topic: topic.into(),
                content_type: content_type.to_owned(),
                data: data.into(),
                ..Default::default()
            },
        }
    }

    /// What the event is about: "lamp.kitchen".
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.event.subject = subject.into();
        self
    }

    /// The publisher's own id for it.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.event.id = id.into();
        self
    }
}

/// The plugin's own report on itself; shown to operators, changes no routing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// All well.
    Ok,
    /// Works in part; the text says what does not.
    Degraded(String),
}

impl Ctx {
    pub(crate) fn new(run: Arc<Run>, scope: Scope) -> Self {
        Self { run, scope }
    }

    async fn ask<Q, R>(&self, method: &'static str, message: Q) -> Result<R>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let terms = Terms::default();
        self.run.request(&self.scope, method, message, terms).await
    }

    // ---- calls

    /// Calls a service. Arguments: a struct, a map or `json!({…})` (named), a tuple or list
    /// (positional), a lone scalar, or `&()`. As `call::<()>` any result is taken and ignored.
    ///
    /// # Errors
    /// The provider's own error ([`Error::origin`] is `Provider`), or why it could not be called.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the call; its provider is told.
    pub async fn call<T: DeserializeOwned>(
        &self,
        service: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        self.call_with(service, arguments, CallOptions::new()).await
    }

    /// As [`Self::call`], with a deadline of its own or waiting for the provider.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_with<T: DeserializeOwned>(
        &self,
        service: &str,
        arguments: &(impl Serialize + ?Sized),
        options: CallOptions,
    ) -> Result<T> {
        let arguments = arguments::encode(arguments)?;
        let result = self.call_raw(service, arguments, options).await?;
        arguments::decode_result(&result)
    }

    /// As [`Self::call_with`], with arguments and result as the bytes that travel.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_raw(
        &self,
        service: &str,
        arguments: Bytes,
        options: CallOptions,
    ) -> Result<Bytes> {
        self.fits("arguments", arguments.len())?;
        let request = v1::ServiceRegistryCallRequest {
            service: service.to_owned(),
            arguments,
            wait_for_ready: options.wait_for_ready,
            ..Default::default()
        };
        let terms = Terms {
            timeout: options.timeout,
            frame_only: false,
        };
        let answer: v1::ServiceRegistryCallResponse = self
            .run
            .request(&self.scope, "ServiceRegistry/Call", request, terms)
            .await?;
        Ok(answer.result)
    }

    /// Offers a service from now on, until the run ends or it is unregistered. One of the same name is
    /// replaced.
    ///
    /// # Errors
    /// `SERVICE_TAKEN`, `NOT_GRANTED`, `BAD_SERVICE_NAME`.
    pub async fn register(&self, service: Service) -> Result<()> {
        let description = service.describe(&self.run.name);
        let name = description.name.clone();
        // First here, then there: a call may follow the registration at once.
        let before = self.run.services.write().insert(name.clone(), service);
        let request = v1::ServiceRegistryRegisterRequest {
            service: Some(description),
        };
        let answer: Result<v1::ServiceRegistryRegisterResponse> =
            self.ask("ServiceRegistry/Register", request).await;
        if answer.is_err() {
            let mut services = self.run.services.write();
            match before {
                Some(before) => services.insert(name, before),
                None => services.remove(&name),
            };
        }
        answer.map(drop)
    }

    /// Takes a service back, by its local or full name; true if it was registered.
    ///
    /// # Errors
    /// Those of the channel.
    pub async fn unregister(&self, name: &str) -> Result<bool> {
        let full = match self.run.services.read().contains_key(name) {
            true => name.to_owned(),
            false => format!("{}.{name}", self.run.name),
        };
        let request = v1::ServiceRegistryUnregisterRequest { name: full.clone() };
        let answer: v1::ServiceRegistryUnregisterResponse =
            self.ask("ServiceRegistry/Unregister", request).await?;
        self.run.services.write().remove(&full);
        Ok(answer.existed)
    }

    // ---- events

    /// Publishes an event and waits until the core has it in its log (not until it is delivered).
    /// The events of one plugin keep the order in which they were published.
    ///
    /// # Errors
    /// `BAD_TOPIC`, `NOT_GRANTED`, `TOO_LARGE`.
    ///
    /// # Cancel safety
    /// A dropped publish may still happen.
    pub async fn publish(
        &self,
        topic: impl Into<String>,
        data: impl Serialize,
    ) -> Result<Position> {
        self.publish_event(NewEvent::new(topic, data)?).await
    }

    /// As [`Self::publish`], for an event with a subject or with bytes of its own.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_event(&self, event: NewEvent) -> Result<Position> {
        self.fits("data", event.event.data.len())?;
        let request = v1::EventBusPublishRequest {
            event: Some(event.event),
        };
        let terms = Terms {
            timeout: None,
            // Events alone always keep to one path; see `run`.
            frame_only: true,
        };
        let answer: v1::EventBusPublishResponse = self
            .run
            .request(&self.scope, "EventBus/Publish", request, terms)
            .await?;
        Ok(Position {
            epoch: answer.epoch,
            seq: answer.seq,
        })
    }

    /// Publishes an event without waiting for the core's word: in order with the others, acknowledged
    /// in the background. Waits only while 1,024 requests are under way or 8 MiB are queued. An event
    /// that is refused or lost later is logged and counted ([`Self::publish_failures`]).
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`; `CHANNEL_LOST` if there is no channel for 10 s.
    pub async fn publish_nowait(
        &self,
        topic: impl Into<String>,
        data: impl Serialize,
    ) -> Result<()> {
        self.publish_event_nowait(NewEvent::new(topic, data)?).await
    }

    /// As [`Self::publish_nowait`], for an event with a subject or with bytes of its own.
    ///
    /// # Errors
    /// As [`Self::publish_nowait`].
    pub async fn publish_event_nowait(&self, event: NewEvent) -> Result<()> {
        self.fits("data", event.event.data.len())?;
        self.run
            .publish_in_background(&self.scope, event.event)
            .await
    }

    /// How many events published in the background were refused or lost since the process began.
    #[must_use]
    pub fn publish_failures(&self) -> u64 {
        self.run.publish_failures.load(Ordering::Relaxed)
    }

    /// Subscribes from now on: `ctx.on("presence.>", |ctx, event| async move { … })`. The subscription
    /// is live when this returns; its events flow while the plugin is STARTED.
    ///
    /// # Errors
    /// `BAD_PATTERN`, `NOT_GRANTED`, `TOO_MANY_SUBSCRIPTIONS`.
    pub async fn on<F, Fut>(&self, pattern: impl Into<String>, handler: F) -> Result<Subscribed>
    where
        F: Fn(Ctx, Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.subscribe(Subscribe::to(pattern).handle(handler)).await
    }

    /// As [`Self::on`], with all the options of a subscription.
    ///
    /// # Errors
    /// As [`Self::on`].
    pub async fn subscribe(&self, subscription: Subscription) -> Result<Subscribed> {
        events::open(&self.run, &subscription, Arc::default()).await
    }

    // ---- data

    /// Shared state of the running system, in memory.
    #[must_use]
    pub fn state(&self) -> State {
        State::new(self.clone())
    }

    /// Durable data, in the plugin's own namespace.
    #[must_use]
    pub fn storage(&self) -> Storage {
        Storage::new(self.clone(), self.run.name.clone())
    }

    /// The plugin's configuration, as a type of your own.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` `BAD_CONFIG` with the path at which it did not fit.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        plugin::read_config(&self.run.config())
    }

    // ---- time and tasks

    /// Calls a function at once and then every `period`, until the plugin stops: for a `#[task]` or
    /// [`Self::spawn`]. A failure is logged; the next turn comes all the same. A turn that takes longer
    /// than the period delays the next one.
    ///
    /// # Errors
    /// None at present; the result is there for `?` and for the end of a task.
    pub async fn every<F, Fut>(&self, period: Duration, mut turn: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let stop = self.shutdown();
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            if let Err(error) = guarded(async { turn().await }).await {
                tracing::error!(%error, "a periodic turn failed");
            }
        }
        Ok(())
    }

    /// Runs something in the background. It begins as soon as the plugin is STARTED and is dropped when
    /// the plugin stops or the run ends. A failure is logged.
    pub fn spawn<Fut>(&self, work: Fut)
    where
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let run = Arc::clone(&self.run);
        let span = tracing::info_span!("spawned", plugin = %run.name);
        let work = async move {
            let Some(stop) = run.started().await else {
                return;
            };
            let work = run.tasks.track_future(guarded(work));
            if let Some(Err(error)) = stop.run_until_cancelled(work).await {
                tracing::error!(%error, "background work failed");
            }
        };
        tokio::spawn(work.instrument(span));
    }

    /// Cancelled when the plugin stops (or, before it is started, when the run ends).
    #[must_use]
    pub fn shutdown(&self) -> CancellationToken {
        match self.run.stage() {
            Stage::Started(token) | Stage::Stopping(token) => token,
            _ => self.run.ended.child_token(),
        }
    }

    /// When this call must be answered; none outside a call.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.scope.deadline
    }

    /// The time left for this call or hook; none elsewhere.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.scope.time_left()
    }

    /// Asks for more time for a running `on_load` or `on_start`: at most 30 s at a time, 5 min in all.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` outside a hook of the core's.
    pub async fn extend_deadline(&self, by: Duration) -> Result<()> {
        let Some(hook_id) = self.scope.hook_id else {
            return Err(Error::failed_precondition(
                "only a lifecycle hook that the core asked for can be extended",
            ));
        };
        let by = prost_types::Duration::try_from(by).ok();
        let frame = v1::ExtendDeadline { hook_id, by };
        self.run.send(ToCore::ExtendDeadline(frame)).await
    }

    // ---- who and what

    /// Who called the service or published the event: a plugin's name, "operator" or "core"; stamped by
    /// the core. Empty in hooks and tasks.
    #[must_use]
    pub fn caller(&self) -> &str {
        self.scope.caller()
    }

    /// How deep calls are nested: 1 for a call made outside any handler, 0 where there is no call.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.scope.depth()
    }

    /// Lets only these callers pass.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn require_caller(&self, allowed: &[&str]) -> Result<()> {
        if allowed.contains(&self.caller()) {
            return Ok(());
        }
        let (caller, allowed) = (self.caller(), allowed.join(", "));
        Err(
            Error::permission_denied(format!("{caller:?} may not call this; allowed: {allowed}"))
                .with_reason("CALLER_NOT_ALLOWED"),
        )
    }

    /// W3C trace context of what is being handled; may be empty.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        self.scope.traceparent()
    }

    /// The plugin's name, as the core knows it.
    #[must_use]
    pub fn plugin(&self) -> &str {
        &self.run.name
    }

    /// The run's id.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run.id
    }

    /// The run's number.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.run.generation
    }

    /// Reports the plugin's own health.
    ///
    /// # Errors
    /// `CHANNEL_LOST`.
    pub async fn health(&self, health: Health) -> Result<()> {
        use v1::health::Status;
        let (status, text) = match health {
            Health::Ok => (Status::Ok, String::new()),
            Health::Degraded(text) => (Status::Degraded, text),
        };
        let status = status.into();
        self.run
            .send(ToCore::Health(v1::Health { status, text }))
            .await
    }

    /// Checked before sending: a message that is too large would end the channel.
    fn fits(&self, field: &str, size: usize) -> Result<()> {
        let limit = self.run.max_payload_bytes;
        if size <= limit {
            return Ok(());
        }
        let text = format!("{field} has {size} bytes, at most {limit} are allowed");
        Err(Error::invalid_argument(text)
            .with_reason("TOO_LARGE")
            .with_metadata("field", field)
            .with_metadata("limit_bytes", limit.to_string())
            .with_metadata("size_bytes", size.to_string()))
    }
}
