//! Requests of plugins that travel on their channels: the same handlers as the unary RPCs, by name.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use core_proto::v1;
use prost::Message;
use tokio::time::Instant;

use super::order::Effect;
use super::{DEFAULT_TIMEOUT, Expired, event_bus, service_registry, state_engine, storage};
use crate::config::Quota;
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::routing::Call;
use crate::security::Caller;

/// The frame cannot be turned into a request.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "there is no method \"{method}\" that travels on the channel: unary RPCs of EventBus, ServiceRegistry, StateEngine and Storage do, as \"Service/Method\""
    )]
    UnknownMethod { method: String },
    #[error("the message is no request of {method}: {source}")]
    BadMessage {
        method: String,
        source: prost::DecodeError,
    },
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownMethod { .. } => ErrorKind::Unimplemented,
            Self::BadMessage { .. } => ErrorKind::InvalidArgument,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::UnknownMethod { .. } => Reason::UnknownMethod,
            Self::BadMessage { .. } => Reason::BadMessage,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        let (Self::UnknownMethod { method } | Self::BadMessage { method, .. }) = self;
        vec![("method", method.clone())]
    }
}

/// A request that goes on.
pub(super) type Later = Pin<Box<dyn Future<Output = Result<Bytes, Failure>> + Send>>;

/// How a request is answered.
pub(super) enum Answer {
    /// It is done.
    Now(Result<Bytes, Failure>),
    /// It is a call, for the router.
    Call(Result<Call, Failure>),
    /// It goes on; polling it the first time hands it to whoever does it.
    Later(Later),
    /// As `Later`, a write of the storage: what is sent after it may have to wait for it.
    Write(Later),
}

/// What a request does that must keep its order among those of its channel, if anything.
pub(super) fn effect(method: &str, message: &Bytes) -> Option<Effect> {
    let publishes = match method {
        "EventBus/Publish" | "EventBus/PublishBatch" | "StateEngine/Set" | "StateEngine/Delete" => {
            return Some(Effect::AtOnce);
        }
        "Storage/Set" | "Storage/Delete" => false,
        "Storage/Apply" => v1::StorageApplyRequest::decode(message.clone())
            .is_ok_and(|request| !request.events.is_empty()),
        _ => return None,
    };
    Some(Effect::Write { publishes })
}

/// The handlers behind the frames.
pub(super) struct Requests {
    pub(super) event_bus: event_bus::Api,
    pub(super) service_registry: service_registry::Api,
    pub(super) state_engine: state_engine::Api,
    pub(super) storage: storage::Api,
}

fn decode<M: Message + Default>(method: &str, message: Bytes) -> Result<M, Failure> {
    M::decode(message).map_err(|source| {
        Error::BadMessage {
            method: method.to_owned(),
            source,
        }
        .into()
    })
}

fn now<M: Message + Default, A: Message>(
    method: &str,
    message: Bytes,
    handler: impl FnOnce(M) -> Result<A, Failure>,
) -> Answer {
    let result = decode(method, message).and_then(handler);
    Answer::Now(result.map(|answer| answer.encode_to_vec().into()))
}

fn later<M, A, F>(
    method: &str,
    message: Bytes,
    caller: Caller,
    handler: impl FnOnce(Caller, M) -> F,
) -> Answer
where
    M: Message + Default,
    A: Message,
    F: Future<Output = Result<A, Failure>> + Send + 'static,
{
    let deadline = caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT);
    let held = match caller.meter.hold(Quota::RequestsInFlight) {
        Ok(held) => held,
        Err(exceeded) => return Answer::Now(Err(exceeded.into())),
    };
    let handling = match decode(method, message) {
        Ok(message) => handler(caller, message),
        Err(failure) => return Answer::Now(Err(failure)),
    };
    Answer::Later(Box::pin(async move {
        let _held = held;
        let answer = tokio::time::timeout_at(deadline, handling).await;
        let answer = answer.unwrap_or_else(|_| Err(Expired.into()))?;
        Ok(answer.encode_to_vec().into())
    }))
}

impl Requests {
    /// Begins a request: `method` is "Service/Method".
    pub(super) fn begin(self: &Arc<Self>, caller: Caller, method: &str, message: Bytes) -> Answer {
        /// A handler of the storage, which goes on by itself.
        macro_rules! storage {
            ($handler:ident) => {{
                let this = Arc::clone(self);
                later(method, message, caller, move |caller, request| async move {
                    this.storage.$handler(&caller, request).await
                })
            }};
            (write $handler:ident) => {
                match storage!($handler) {
                    Answer::Later(handling) => Answer::Write(handling),
                    answer => answer,
                }
            };
        }
        let Self {
            event_bus,
            service_registry,
            state_engine,
            ..
        } = &**self;
        match method {
            "ServiceRegistry/Call" => Answer::Call(
                decode::<v1::ServiceRegistryCallRequest>(method, message)
                    .and_then(|request| service_registry.prepare_call(&caller, request)),
            ),
            "EventBus/Publish" => now(method, message, |m| event_bus.publish(&caller, m)),
            "EventBus/PublishBatch" => {
                now(method, message, |m| event_bus.publish_batch(&caller, m))
            }
            "StateEngine/Get" => now(method, message, |m| state_engine.get(&caller, &m)),
            "StateEngine/Set" => now(method, message, |m| state_engine.set(&caller, m)),
            "StateEngine/Delete" => now(method, message, |m| state_engine.delete(&caller, &m)),
            "StateEngine/List" => now(method, message, |m| state_engine.list(&caller, &m)),
            "ServiceRegistry/Register" => {
                now(method, message, |m| service_registry.register(&caller, m))
            }
            "ServiceRegistry/Unregister" => now(method, message, |m| {
                service_registry.unregister(&caller, &m)
            }),
            "ServiceRegistry/List" => now(method, message, |m| service_registry.list(&m)),
            "ServiceRegistry/Describe" => now(method, message, |m| service_registry.describe(&m)),
            "Storage/Get" => storage!(get),
            "Storage/GetMany" => storage!(get_many),
            "Storage/Set" => storage!(write set),
            "Storage/Delete" => storage!(write delete),
            "Storage/Apply" => storage!(write apply),
            "Storage/ListKeys" => storage!(list_keys),
            "Storage/Scan" => storage!(scan),
            "Storage/Usage" => storage!(usage),
            _ => {
                let method = method.chars().take(80).collect();
                Answer::Now(Err(Error::UnknownMethod { method }.into()))
            }
        }
    }
}
