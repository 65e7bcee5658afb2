//! `PluginChannel`: the handshake and the reader of each channel.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use core_proto::servers::plugin_channel_server;
use core_proto::v1;
use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{BadField, channel, check_size};
use super::order::{Full, MAX_WAITING_BYTES, Order, Waiting};
use super::requests::{Answer, Requests, effect};
use super::{DEFAULT_TIMEOUT, gate, status};
use crate::channel::{ChannelId, Closed, Inbound, LastRead, Outbound, Outbox, RequestFrame, Run};
use crate::config::Quota;
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::event_bus::MAX_TRACEPARENT_BYTES;
use crate::plugin_manager::PluginManager;
use crate::routing::{CallTicket, Router};
use crate::security::{Caller, Gatekeeper, Peer, RequestId};
use crate::stall;
use crate::task::TaskScope;

/// What this service refuses by itself.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no Hello within {limit:?} of opening the channel")]
    HelloTimeout { limit: Duration },
    #[error("the first message of a channel must be Hello")]
    NotHello,
    #[error("the first message cannot be decoded: {why}")]
    Undecodable { why: String },
    #[error("the Hello cannot be understood")]
    BadHello(#[source] BadField),
    #[error("{limit} requests of this channel are in progress; wait for some to end")]
    TooManyRequests { limit: usize },
    #[error("request {request_id} was withdrawn")]
    Withdrawn { request_id: u64 },
    #[error("request id {request_id} is in use: ids are never reused")]
    IdInUse { request_id: u64 },
    #[error(
        "{limit_bytes} bytes of this channel's publishes and writes wait for storage writes sent before them; wait for some to end"
    )]
    TooMuchWaits { limit_bytes: usize },
    #[error("its time ran out while it waited for the storage writes sent before it")]
    WaitedTooLong,
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::HelloTimeout { .. } | Self::WaitedTooLong => ErrorKind::DeadlineExceeded,
            Self::NotHello
            | Self::Undecodable { .. }
            | Self::BadHello(_)
            | Self::IdInUse { .. } => ErrorKind::InvalidArgument,
            Self::TooManyRequests { .. } | Self::TooMuchWaits { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::Withdrawn { .. } => ErrorKind::Cancelled,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::HelloTimeout { .. } => Reason::HelloTimeout,
            Self::NotHello | Self::Undecodable { .. } | Self::BadHello(_) => Reason::BadHello,
            Self::TooManyRequests { .. } | Self::TooMuchWaits { .. } => Reason::CallerBusy,
            Self::WaitedTooLong => Reason::Deadline,
            Self::Withdrawn { .. } => Reason::Cancelled,
            Self::IdInUse { .. } => Reason::BadField,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::BadHello(field) => field.metadata(),
            Self::IdInUse { request_id } => {
                vec![
                    ("field", "request_id".to_owned()),
                    ("request_id", request_id.to_string()),
                ]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { .. } | Self::TooMuchWaits { .. } => {
                Some(Duration::from_millis(100))
            }
            _ => None,
        }
    }
}

/// Bounds of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Time from opening the channel to `Hello`.
    pub(crate) hello_timeout: Duration,
    /// What may wait for a plugin before calls to it are refused.
    pub(crate) outbox_bytes: usize,
    /// Arguments, results, event data, each.
    pub(crate) max_payload_bytes: usize,
    /// A response message, so that its frame fits a message of the channel.
    pub(crate) max_response_bytes: usize,
}

/// What the channels count.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Frames of a kind, or with a content, that the core does not know.
    pub unknown_frames: AtomicU64,
    /// Requests that came over channels.
    pub requests: AtomicU64,
    /// Those of them that waited for a write sent before them (law 5).
    pub put_off: AtomicU64,
}

#[derive(Clone)]
pub(super) struct Api {
    pub(super) manager: PluginManager,
    pub(super) router: Router,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) requests: Arc<Requests>,
    pub(super) limits: Limits,
    pub(super) stats: Arc<Stats>,
    pub(super) scope: TaskScope,
}

#[tonic::async_trait]
impl plugin_channel_server::PluginChannel for Api {
    type OpenStream = super::ResponseStream<v1::CoreMessage>;

    async fn open(
        &self,
        request: Request<Streaming<v1::PluginMessage>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let credential = gate::credential(&request)?;
        if self.scope.stop_token().is_cancelled() {
            return Err(status::from_failure(Closed::ShuttingDown));
        }
        let connection = request.extensions().get::<LastRead>().cloned();
        let peer = request.extensions().get::<Peer>().cloned();
        let mut messages = request.into_inner();
        let first = stall::timeout(self.limits.hello_timeout, messages.message()).await;
        let limit = self.limits.hello_timeout;
        let first = first.map_err(|_| status::from_failure(Error::HelloTimeout { limit }))?;
        let first = first.map_err(|status| {
            status::from_failure(Error::Undecodable {
                why: status.message().to_owned(),
            })
        })?;
        let Some(v1::plugin_message::Message::Hello(hello)) = first.and_then(|first| first.message)
        else {
            return Err(status::from_failure(Error::NotHello));
        };
        let hello =
            channel::hello(hello).map_err(|field| status::from_failure(Error::BadHello(field)))?;
        let (outbox, frames) = Outbox::new(self.limits.outbox_bytes);
        let revoked = credential.revoked.clone();
        let admitted = self.manager.open(credential, hello, outbox.clone()).await;
        let admitted = admitted.map_err(status::from_failure)?;
        if let Some(connection) = connection {
            admitted.run.came_over(&connection);
        }
        let reader = Reader {
            api: self.clone(),
            caller: self.gatekeeper.channel_caller(&admitted.run, peer),
            run: admitted.run,
            channel: admitted.channel,
            outbox,
            calls: Arc::default(),
            requests: HashMap::new(),
            order: Order::default(),
        };
        self.scope
            .spawn("channel-reader", move |_| reader.run(messages, revoked));
        let messages = frames.map(|frame| {
            frame
                .map(|frame| channel::outbound(frame, Instant::now()))
                .map_err(status::from_failure)
        });
        Ok(Response::new(Box::pin(messages)))
    }
}

/// A reader that has so many frames in hand lets what it made of them leave before it goes on. Otherwise
/// the calls of a busy home bunch up and travel in one herd, and only one process works at a time.
const FRAMES_IN_A_ROW: u32 = 32;

/// Requests of one channel in progress, also of a plugin without a quota.
const MAX_REQUESTS: usize = 65_536;

/// Longer timeouts are taken as this: a plugin may send one that no clock can hold.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Calls of this channel in progress: `None` while the router has the call but has not given its
/// ticket yet. Dropping it cancels them.
type Calls = Arc<Mutex<HashMap<u64, Option<CallTicket>>>>;

type Pending = FuturesUnordered<BoxFuture<'static, (u64, Result<Bytes, Failure>)>>;

/// Reads one channel to its end. Never waits for a handler: requests that are not answered at once
/// go on beside the reading.
struct Reader {
    api: Api,
    run: Arc<Run>,
    channel: ChannelId,
    caller: Caller,
    outbox: Outbox,
    calls: Calls,
    /// Requests in progress that are no calls; `None`: it cannot be withdrawn any more.
    requests: HashMap<u64, Option<AbortHandle>>,
    /// Publishes and writes, and those that wait for others (law 5).
    order: Order<(Caller, RequestFrame)>,
}

impl Reader {
    async fn run(mut self, mut messages: Streaming<v1::PluginMessage>, revoked: CancellationToken) {
        let mut pending = Pending::new();
        let outbox = self.outbox.clone();
        let gone = outbox.gone();
        tokio::pin!(gone);
        let mut in_a_row = 0;
        loop {
            let expiry = self.order.expiry();
            let expired = async move {
                match expiry {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The end first: frames of a replaced channel change nothing.
                biased;
                () = &mut gone => break,
                () = revoked.cancelled() => {
                    outbox.abort(Closed::Revoked);
                    // It cannot come back, so nothing waits for it.
                    let why = "its credential was revoked, or has expired".to_owned();
                    self.api.manager.credential_over(&self.run, self.channel, why);
                    break;
                }
                Some((request_id, result)) = pending.next() => {
                    self.requests.remove(&request_id);
                    self.respond(request_id, result);
                    if self.order.finished(request_id) {
                        self.go_on_in_order(&mut pending).await;
                    }
                }
                () = expired => self.expire_waiting(&mut pending).await,
                message = messages.next() => match message {
                    // Nor do those of an ended run, whose channel may still be sent its last frames.
                    Some(Ok(_)) if self.run.ended().is_cancelled() => break,
                    Some(Ok(message)) => {
                        let frame = channel::inbound(message, self.api.limits.max_payload_bytes);
                        if let Inbound::Bye { reason } = frame {
                            self.api.manager.bye(&self.run, self.channel, reason);
                            break;
                        }
                        self.take(frame, &mut pending).await;
                        in_a_row += 1;
                        if in_a_row == FRAMES_IN_A_ROW {
                            in_a_row = 0;
                            tokio::task::yield_now().await;
                        }
                    }
                    Some(Err(status)) => {
                        tracing::debug!(plugin = %self.run.plugin(), %status, "channel broke");
                        break;
                    }
                    None => break,
                },
            }
        }
        // First the callers, then everything else: they are answered within milliseconds.
        self.api.router.link_lost(self.run.plugin(), self.channel);
        // Taken out of the lock before they are dropped: dropping cancels, and the end takes the lock.
        let calls = std::mem::take(&mut *self.calls.lock());
        drop(calls);
        self.api.manager.channel_lost(&self.run, self.channel).await;
        self.outbox.close();
    }

    async fn take(&mut self, frame: Inbound, pending: &mut Pending) {
        let (manager, run, channel) = (&self.api.manager, &self.run, self.channel);
        match frame {
            Inbound::CallResponse { call_id, result } => {
                self.api
                    .router
                    .complete(run.plugin(), channel, call_id, result);
            }
            Inbound::Request(request) => self.request(request, pending).await,
            Inbound::RequestCancel { request_id } => self.withdraw(request_id),
            Inbound::Pong { nonce } => run.note_pong(nonce, Instant::now()),
            Inbound::HookDone { hook_id, result } => {
                manager.hook_done(run, channel, hook_id, result);
            }
            Inbound::ExtendDeadline { hook_id, by } => manager.extend(run, channel, hook_id, by),
            Inbound::Health { degraded } => manager.health(run, channel, degraded),
            Inbound::ConfigResult { revision, verdict } => {
                manager.config_result(run, channel, revision, verdict);
            }
            Inbound::Unknown | Inbound::Bye { .. } => {
                self.api
                    .stats
                    .unknown_frames
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn request(&mut self, request: RequestFrame, pending: &mut Pending) {
        self.api.stats.requests.fetch_add(1, Ordering::Relaxed);
        let request_id = request.request_id;
        if let Err(failure) = self.admit(&request) {
            return self.respond(request_id, Err(failure));
        }
        let caller = match self.caller_of(&request) {
            Ok(caller) => caller,
            Err(failure) => return self.respond(request_id, Err(failure)),
        };
        if !self.order.is_idle()
            && let Some(effect) = effect(&request.method, &request.message)
            && self.order.must_wait(effect)
        {
            return self.put_off(effect, caller, request);
        }
        self.begin(caller, request, pending).await;
    }

    /// Keeps a request until the writes before it are decided.
    fn put_off(&mut self, effect: super::order::Effect, caller: Caller, request: RequestFrame) {
        let request_id = request.request_id;
        let waiting = Waiting {
            request_id,
            effect,
            bytes: request.message.len(),
            deadline: caller
                .deadline
                .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT),
            request: (caller, request),
        };
        match self.order.wait(waiting) {
            Ok(()) => {
                self.api.stats.put_off.fetch_add(1, Ordering::Relaxed);
            }
            Err(Full) => {
                let limit_bytes = MAX_WAITING_BYTES;
                self.respond(request_id, Err(Error::TooMuchWaits { limit_bytes }.into()));
            }
        }
    }

    /// Begins what has waited, as far as its turn has come.
    async fn go_on_in_order(&mut self, pending: &mut Pending) {
        while let Some(waiting) = self.order.next() {
            let (caller, request) = waiting.request;
            self.begin(caller, request, pending).await;
            // A write that was refused, or decided at once.
            if !self.requests.contains_key(&waiting.request_id) {
                self.order.finished(waiting.request_id);
            }
        }
    }

    async fn expire_waiting(&mut self, pending: &mut Pending) {
        for waiting in self.order.expired(Instant::now()) {
            self.respond(waiting.request_id, Err(Error::WaitedTooLong.into()));
        }
        // A write that waited only behind one of them has its turn now.
        self.go_on_in_order(pending).await;
    }

    async fn begin(&mut self, caller: Caller, request: RequestFrame, pending: &mut Pending) {
        let request_id = request.request_id;
        match self
            .api
            .requests
            .begin(caller, &request.method, request.message)
        {
            Answer::Now(result) => self.respond(request_id, result),
            Answer::Call(Ok(call)) => self.call(request_id, call),
            Answer::Call(Err(failure)) => self.respond(request_id, Err(failure)),
            Answer::Later(mut future) => {
                // Polled here once, in the order of the frames: a write joins its queue now.
                match futures_util::poll!(future.as_mut()) {
                    std::task::Poll::Ready(result) => self.respond(request_id, result),
                    std::task::Poll::Pending => self.go_on(request_id, future, pending),
                }
            }
            Answer::Write(mut future) => match futures_util::poll!(future.as_mut()) {
                std::task::Poll::Ready(result) => self.respond(request_id, result),
                // It has joined its queue: it goes on even if it is withdrawn, and ends as it ends.
                std::task::Poll::Pending => {
                    self.requests.insert(request_id, None);
                    self.order.begun(request_id);
                    pending.push(future.map(move |result| (request_id, result)).boxed());
                }
            },
        }
    }

    fn go_on(
        &mut self,
        request_id: u64,
        future: Pin<Box<dyn Future<Output = Result<Bytes, Failure>> + Send>>,
        pending: &mut Pending,
    ) {
        let (abort, registration) = AbortHandle::new_pair();
        self.requests.insert(request_id, Some(abort));
        let withdrawn = move |_: Aborted| Err(Error::Withdrawn { request_id }.into());
        let future = Abortable::new(future, registration)
            .map(move |result| (request_id, result.unwrap_or_else(withdrawn)));
        pending.push(future.boxed());
    }

    fn call(&self, request_id: u64, call: crate::routing::Call) {
        self.calls.lock().insert(request_id, None);
        let (calls, outbox) = (Arc::clone(&self.calls), self.outbox.clone());
        let on_end = Box::new(move |result| {
            if let Some(Some(ticket)) = calls.lock().remove(&request_id) {
                ticket.forget();
            }
            // A closed outbox: the caller is gone.
            let _closed = outbox.push(Outbound::CallResult { request_id, result });
        });
        let ticket = self.api.router.call(call, on_end);
        match self.calls.lock().get_mut(&request_id) {
            Some(place) => *place = Some(ticket),
            None => ticket.forget(),
        }
    }

    fn withdraw(&mut self, request_id: u64) {
        if let Some(abort) = self.requests.get(&request_id) {
            abort.iter().for_each(AbortHandle::abort);
            return;
        }
        if self.order.withdraw(request_id).is_some() {
            return self.respond(request_id, Err(Error::Withdrawn { request_id }.into()));
        }
        // Taken out of the lock before it is dropped: dropping cancels, and the end takes the lock.
        let ticket = self
            .calls
            .lock()
            .get_mut(&request_id)
            .and_then(Option::take);
        drop(ticket);
    }

    /// What can be refused before the request is looked at.
    fn admit(&self, request: &RequestFrame) -> Result<(), Failure> {
        let request_id = request.request_id;
        let calls = self.calls.lock();
        if calls.contains_key(&request_id)
            || self.requests.contains_key(&request_id)
            || self.order.contains(request_id)
        {
            return Err(Error::IdInUse { request_id }.into());
        }
        let in_progress = calls.len() + self.requests.len() + self.order.len();
        drop(calls);
        let quota = self.caller.meter.limit(Quota::RequestsInFlight);
        if quota.is_some_and(|quota| in_progress >= quota) {
            return Err(self.caller.meter.exceeded(Quota::RequestsInFlight).into());
        }
        let limit = MAX_REQUESTS;
        if in_progress >= limit {
            return Err(Error::TooManyRequests { limit }.into());
        }
        Ok(self
            .api
            .gatekeeper
            .admit_frame(&request.method, self.run.plugin())?)
    }

    fn caller_of(&self, request: &RequestFrame) -> Result<Caller, Failure> {
        check_size(
            "traceparent",
            request.traceparent.len(),
            MAX_TRACEPARENT_BYTES,
        )?;
        let parent = Some(request.parent.as_str()).filter(|parent| !parent.is_empty());
        let cause = parent.map(str::parse).transpose().map_err(BadField::from)?;
        Ok(Caller {
            deadline: request
                .timeout
                .map(|timeout| Instant::now() + timeout.min(LONGEST_TIMEOUT)),
            cause,
            traceparent: request.traceparent.clone(),
            request: RequestId::Frame(self.channel, request.request_id),
            ..self.caller.clone()
        })
    }

    fn respond(&self, request_id: u64, result: Result<Bytes, Failure>) {
        // One that does not fit a message would end the channel, with all that is in flight on it.
        let limit = self.api.limits.max_response_bytes;
        let result = result.and_then(|message| {
            check_size("response", message.len(), limit)?;
            Ok(message)
        });
        // A closed outbox: the plugin is gone.
        let _closed = self.outbox.push(Outbound::Response { request_id, result });
    }
}
