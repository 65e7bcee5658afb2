//! One run of the plugin, as its own process sees it.
//!
//! A [`Run`] begins with the `Welcome` that names it and lives until the core says that it is over, or
//! until another run takes its place; it may see several channels ([`Session`]), one at a time. Every
//! [`Ctx`](crate::Ctx) holds its run: what is asked through a context of an ended run fails with
//! `RUN_ENDED`.
//!
//! Requests. Messages up to 32 KiB travel as `Request` frames on the channel, larger ones as unary RPCs
//! of the same connection, so that nothing large delays a call. Publishes are the exception: they
//! always travel as frames, whatever their size (at most 256 KiB of data), because two paths would lose
//! their order. Without a channel a request waits for the next one, inside its time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use core_proto::contract;
use core_proto::v1;
use core_proto::v1::plugin_message::Message as Kind;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::http::uri::PathAndQuery;

use crate::channel::outbox::{Batch, Closed, Outbox};
use crate::channel::requests::Requests;
use crate::client::Connection;
use crate::context::{Handled, Permissions, Scope};
use crate::error::{Error, Outcome, Result};
use crate::plugin::Plugin;
use crate::service::Service;

/// The core's default for requests that give no time (`contract.md`, limits).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The core's longest deadline of a call; used for calls that leave the choice to it.
const LONGEST_CALL: Duration = Duration::from_secs(300);
/// The core decides when time is up; this much later we stop waiting for its word.
const GRACE: Duration = Duration::from_secs(1);

/// How far the lifecycle has come.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Unloaded,
    Loaded,
    /// The token ends background work.
    Started(CancellationToken),
    Stopping(CancellationToken),
    Stopped,
}

/// Where a declared subscription has come to; kept over runs.
pub(crate) type Position = Arc<Mutex<Option<v1::Position>>>;

pub(crate) struct Run {
    pub(crate) plugin: Plugin,
    /// As the core knows the plugin.
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) generation: u64,
    /// In force now. Short lock: no await inside.
    config: RwLock<Bytes>,
    pub(crate) max_payload_bytes: usize,
    /// By full name. Written by registrations, read by each call.
    pub(crate) services: RwLock<HashMap<String, Service>>,
    pub(crate) stage: watch::Sender<Stage>,
    /// Cancelled when the run is over; everything of the run ends with it.
    pub(crate) ended: CancellationToken,
    session: watch::Sender<Option<Arc<Session>>>,
    /// For subscriptions and watches: a connection of their own, so that a flood of events delays
    /// neither calls nor heartbeats.
    pub(crate) streams: Connection,
    /// Held for reading by each event handler; taken for writing to drain them.
    pub(crate) event_gate: tokio::sync::RwLock<()>,
    pub(crate) tasks: TaskTracker,
    pub(crate) positions: Vec<Position>,
    pub(crate) publish_failures: Arc<AtomicU64>,
    /// The core started this process and sees its exit code.
    pub(crate) is_child: bool,
    /// Which plugins that this one looks at are available, as far as the core has told. Written by the
    /// channel.
    pub(crate) dependencies: watch::Sender<BTreeMap<String, bool>>,
    /// What the core allows beyond the own area. Written by the channel.
    pub(crate) permissions: watch::Sender<Permissions>,
    /// Why the core is about to end. Written by the channel.
    pub(crate) going_away: watch::Sender<Option<String>>,
}

/// One channel of a run.
pub(crate) struct Session {
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) requests: Requests,
    /// The channel's own connection, for large requests.
    pub(crate) unary: Connection,
}

/// What is known of a run when it begins.
pub(crate) struct Beginning {
    pub(crate) plugin: Plugin,
    pub(crate) welcome: v1::Welcome,
    pub(crate) streams: Connection,
    pub(crate) positions: Vec<Position>,
    pub(crate) publish_failures: Arc<AtomicU64>,
    pub(crate) is_child: bool,
}

/// How a request travels and how long it may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    /// `None`: the core's default.
    pub(crate) timeout: Option<Duration>,
    /// Never unary: see the module on order.
    pub(crate) frame_only: bool,
}

impl Run {
    pub(crate) fn new(beginning: Beginning) -> Arc<Self> {
        let Beginning {
            plugin,
            welcome,
            streams,
            positions,
            publish_failures,
            is_child,
        } = beginning;
        let services = plugin
            .definition
            .services
            .iter()
            .map(|service| (service.describe(&welcome.plugin).name, service.clone()))
            .collect();
        let limits = welcome.limits.unwrap_or_default();
        let max_payload_bytes = match usize::try_from(limits.max_payload_bytes) {
            Ok(0) | Err(_) => contract::MAX_MESSAGE_BYTES / 2,
            Ok(bytes) => bytes,
        };
        Arc::new(Self {
            plugin,
            name: welcome.plugin,
            streams: streams.with_run(&welcome.run),
            id: welcome.run,
            generation: welcome.generation,
            config: RwLock::new(welcome.config),
            max_payload_bytes,
            services: RwLock::new(services),
            stage: watch::Sender::new(Stage::Unloaded),
            ended: CancellationToken::new(),
            session: watch::Sender::new(None),
            event_gate: tokio::sync::RwLock::new(()),
            tasks: TaskTracker::new(),
            positions,
            publish_failures,
            is_child,
            dependencies: watch::Sender::default(),
            permissions: watch::Sender::new(Permissions::new(welcome.granted, welcome.denied)),
            going_away: watch::Sender::default(),
        })
    }

    /// From here on requests go through this channel.
    pub(crate) fn attach(&self, session: Arc<Session>) {
        self.session.send_replace(Some(session));
    }

    /// The channel is gone; its requests end.
    pub(crate) fn detach(&self, session: &Session) {
        session.outbox.close();
        self.session.send_replace(None);
        session.requests.end_all();
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        if let Stage::Started(token) | Stage::Stopping(token) = &*self.stage.borrow() {
            token.cancel();
        }
        self.ended.cancel();
    }

    /// What the core allows from now on.
    pub(crate) fn set_permissions(&self, permissions: Permissions) {
        self.permissions.send_if_modified(|known| {
            let news = *known != permissions;
            *known = permissions;
            news
        });
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Bytes {
        self.config.read().clone()
    }

    /// Another configuration is in force.
    pub(crate) fn set_config(&self, config: Bytes) {
        *self.config.write() = config;
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    pub(crate) fn is_started(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Started(_))
    }

    /// Waits until the plugin is STARTED; returns the token that ends with it. `None`: the run is over.
    pub(crate) async fn started(&self) -> Option<CancellationToken> {
        let mut stage = self.stage.subscribe();
        let wait = async {
            let stage = stage
                .wait_for(|stage| matches!(stage, Stage::Started(_)))
                .await;
            match stage.as_deref() {
                Ok(Stage::Started(token)) => Some(token.clone()),
                _ => None,
            }
        };
        tokio::select! {
            biased;
            () = self.ended.cancelled() => None,
            token = wait => token,
        }
    }

    async fn session(&self, patience: Duration) -> Result<Arc<Session>> {
        if self.ended.is_cancelled() {
            return Err(Error::run_ended());
        }
        if let Some(session) = &*self.session.borrow() {
            return Ok(Arc::clone(session));
        }
        let mut sessions = self.session.subscribe();
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(Error::run_ended()),
            found = timeout(patience, sessions.wait_for(Option::is_some)) => {
                match found.as_ref().map(|found| found.as_deref()) {
                    Ok(Ok(Some(session))) => Ok(Arc::clone(session)),
                    _ => Err(Error::channel_lost(Outcome::NotApplied)),
                }
            }
        }
    }

    /// Sends a frame that expects no answer.
    pub(crate) async fn send(&self, kind: Kind) -> Result<()> {
        let session = self.session(DEFAULT_TIMEOUT).await?;
        session
            .outbox
            .push(kind)
            .await
            .map_err(|Closed| Error::channel_lost(Outcome::NotApplied))
    }

    /// Asks the core: `method` is "Service/Method".
    pub(crate) async fn request<Q, R>(
        &self,
        scope: &Scope,
        method: &'static str,
        message: Q,
        mut terms: Terms,
    ) -> Result<R>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        if let (Some(left), Some(asked)) = (scope.time_left(), terms.timeout) {
            terms.timeout = Some(asked.min(left));
        }
        let is_call = method == "ServiceRegistry/Call";
        let patience = terms.timeout.unwrap_or(if is_call {
            LONGEST_CALL
        } else {
            DEFAULT_TIMEOUT
        });
        let session = self.session(patience.min(DEFAULT_TIMEOUT)).await?;
        let answer = async {
            if terms.frame_only || message.encoded_len() <= contract::MAX_FRAME_REQUEST_BYTES {
                let message = Bytes::from(message.encode_to_vec());
                let answer = session.framed(scope, method, message, terms).await?;
                R::decode(answer).map_err(|error| {
                    Error::internal(format!(
                        "the core's answer to {method} is malformed: {error}"
                    ))
                    .with_outcome(Outcome::Unknown)
                })
            } else {
                session.unary(&self.id, scope, method, message, terms).await
            }
        };
        match timeout(patience + GRACE, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(
                Error::deadline_exceeded(format!("{method}: no answer in time"))
                    .with_reason("DEADLINE")
                    .with_outcome(Outcome::Unknown),
            ),
        }
    }

    /// Publishes without waiting for the commit; only for room in the outbox. Events that wait there
    /// together leave as one batch.
    pub(crate) async fn publish_in_background(
        &self,
        scope: &Scope,
        mut event: v1::NewEvent,
    ) -> Result<()> {
        scope.mark(&mut event);
        let session = self.session(DEFAULT_TIMEOUT).await?;
        let lost = |Closed| Error::channel_lost(Outcome::NotApplied);
        if session.outbox.join(&event) {
            return Ok(());
        }
        let room = session.outbox.room_for(&event).await.map_err(lost)?;
        let place = session.requests.place().await?;
        let count = Arc::new(AtomicU64::new(1));
        let id = session
            .requests
            .expect_background(place, Arc::clone(&count))?;
        // Nothing is awaited from here on: the batch is queued, or nobody knows of it.
        let batch = Batch::new(id, &event, count);
        session.outbox.push_batch(batch, room).map_err(|closed| {
            session.requests.forget(id);
            lost(closed)
        })
    }
}

impl Session {
    async fn framed(
        self: &Arc<Self>,
        scope: &Scope,
        method: &'static str,
        message: Bytes,
        terms: Terms,
    ) -> Result<Bytes> {
        let place = self.requests.place().await?;
        let (id, reply) = self.requests.expect_reply(place)?;
        let _guard = Withdraw {
            session: Arc::clone(self),
            id,
        };
        let frame = scope.frame(id, method, message, terms.timeout);
        let pushed = self.outbox.push(Kind::Request(frame)).await;
        pushed.map_err(|Closed| Error::channel_lost(Outcome::NotApplied))?;
        match reply.await {
            Ok(answer) => answer,
            Err(_) => Err(Error::channel_lost(Outcome::Unknown)),
        }
    }

    async fn unary<Q, R>(
        &self,
        run: &str,
        scope: &Scope,
        method: &'static str,
        message: Q,
        terms: Terms,
    ) -> Result<R>
    where
        Q: prost::Message + 'static,
        R: prost::Message + Default + 'static,
    {
        let connection = self.unary.clone().with_run(run);
        let connection = match scope.handled {
            Handled::Nothing => connection,
            _ => connection.with_parent(&scope.parent()),
        };
        let mut grpc = tonic::client::Grpc::new(connection.authorized())
            .max_decoding_message_size(contract::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(contract::MAX_MESSAGE_BYTES);
        grpc.ready()
            .await
            .map_err(|_| Error::channel_lost(Outcome::NotApplied))?;
        let mut request = tonic::Request::new(message);
        if let Some(timeout) = terms.timeout {
            request.set_timeout(timeout);
        }
        scope.trace(request.metadata_mut());
        let path = PathAndQuery::try_from(format!("/coreruntime.v1.{method}"))
            .expect("methods are written in this crate");
        let codec = tonic_prost::ProstCodec::<Q, R>::default();
        let answer = grpc.unary(request, path, codec).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| Error::from_grpc(&status))
    }
}

/// Takes a request back when nobody waits for it any more.
#[must_use]
struct Withdraw {
    session: Arc<Session>,
    id: u64,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        if self.session.requests.forget(self.id) {
            self.session.outbox.withdraw(self.id);
        }
    }
}
