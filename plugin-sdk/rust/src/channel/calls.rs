//! Calls that this plugin works on: each runs in a task of its own and is answered once.
//!
//! A call that is cancelled, or whose time is up, has its handler's future dropped and is answered all
//! the same, which frees its place at the core. How many run at once is the core's to bound
//! (`max_calls_in_flight` of `Hello`). When the channel ends, its calls are dropped: the core has
//! already answered their callers with `PROVIDER_LOST`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1::plugin_message::Message as Kind;
use core_proto::v1::{CallRequest, CallResponse};
use futures_util::future::{AbortHandle, AbortRegistration, Abortable};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::outbox::Outbox;
use crate::context::{Call, Ctx, Handled, Scope};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::run::Run;

/// Taken for a call that names no time; the core always does.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Calls {
    run: Arc<Run>,
    outbox: Arc<Outbox>,
    /// Cancels each call under way, by its id.
    under_way: Arc<Mutex<HashMap<u64, AbortHandle>>>,
    tasks: TaskTracker,
}

impl Calls {
    pub(crate) fn new(run: Arc<Run>, outbox: Arc<Outbox>) -> Self {
        Self {
            run,
            outbox,
            under_way: Arc::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Begins a call. Never waits.
    pub(crate) fn begin(&self, request: CallRequest) {
        let (cancel, cancelled) = AbortHandle::new_pair();
        let call_id = request.call_id;
        if self.under_way.lock().insert(call_id, cancel).is_some() {
            tracing::warn!(call_id, "the core used a call id twice");
        }
        let span = tracing::info_span!(
            "call",
            plugin = %self.run.name,
            call_id,
            service = %request.service,
            caller = %request.caller,
            traceparent = %request.traceparent,
        );
        let work = answer(
            Arc::clone(&self.run),
            Arc::clone(&self.outbox),
            Arc::clone(&self.under_way),
            request,
            cancelled,
        );
        if span.is_disabled() {
            self.tasks.spawn(work);
        } else {
            self.tasks.spawn(work.instrument(span));
        }
    }

    /// Cancels a call; unknown ids are calls that have ended.
    pub(crate) fn cancel(&self, call_id: u64) {
        if let Some(call) = self.under_way.lock().get(&call_id) {
            call.abort();
        }
    }

    /// Completes when no call is under way.
    pub(crate) fn drained(&self) -> impl Future<Output = ()> + Send + 'static {
        let tasks = self.tasks.clone();
        tasks.close();
        async move { tasks.wait().await }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for call in self.under_way.lock().values() {
            call.abort();
        }
    }
}

async fn answer(
    run: Arc<Run>,
    outbox: Arc<Outbox>,
    under_way: Arc<Mutex<HashMap<u64, AbortHandle>>>,
    request: CallRequest,
    cancelled: AbortRegistration,
) {
    let call_id = request.call_id;
    let result = execute(&run, request, cancelled).await;
    under_way.lock().remove(&call_id);
    let response = match result.and_then(|result| fits(&run, result)) {
        Ok(result) => CallResponse {
            call_id,
            result,
            ..Default::default()
        },
        Err(error) => CallResponse {
            call_id,
            error: Some(error.to_status(&run.name)),
            ..Default::default()
        },
    };
    // Without a channel the caller has been answered by the core.
    drop(outbox.push(Kind::CallResponse(response)).await);
}

async fn execute(
    run: &Arc<Run>,
    request: CallRequest,
    cancelled: AbortRegistration,
) -> Result<Bytes> {
    let service = run.services.read().get(&request.service).cloned();
    let Some(service) = service else {
        let message = format!("this plugin has no service {:?}", request.service);
        return Err(Error::not_found(message));
    };
    let time = request
        .timeout
        .and_then(|time| Duration::try_from(time).ok())
        .unwrap_or(DEFAULT_TIMEOUT);
    let deadline = tokio::time::Instant::now() + time;
    let scope = Scope {
        handled: Handled::Call(Arc::new(Call {
            call_id: request.call_id,
            caller: request.caller,
            depth: request.depth,
            traceparent: request.traceparent,
        })),
        deadline: Some(deadline),
        hook_id: None,
    };
    let ctx = Ctx::new(Arc::clone(run), scope);
    let arguments = request.arguments;
    let handled = guarded(async move { service.handle(ctx, arguments).await });
    let in_time = tokio::time::timeout_at(deadline, handled);
    // Cancelled first: such a call is answered CANCELLED even if its handler is ready too.
    match Abortable::new(in_time, cancelled).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::deadline_exceeded(format!(
            "not done within {time:?}"
        ))),
        Err(_) => Err(Error::cancelled("the caller withdrew the call")),
    }
}

/// A larger result would end the channel or be refused by the core: said here instead.
fn fits(run: &Run, result: Bytes) -> Result<Bytes> {
    if result.len() <= run.max_payload_bytes {
        return Ok(result);
    }
    let (size, limit) = (result.len(), run.max_payload_bytes);
    let message = format!("the result has {size} bytes, at most {limit} are allowed");
    Err(Error::internal(message)
        .with_reason("TOO_LARGE")
        .with_metadata("field", "result")
        .with_metadata("limit_bytes", limit.to_string())
        .with_metadata("size_bytes", size.to_string()))
}
