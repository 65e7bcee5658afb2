//! What the program that embeds the core does with it, as an operator: calls and events.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Runtime;
use crate::error::Failure;
use crate::event_bus::{self, NewEvent};
use crate::routing::Call;
use crate::security::{Action, Denied, reserved};
use crate::types::{BadName, Payload, Position, Source, Topic};

impl Runtime {
    /// Calls a service with arguments as JSON (an object or an array; `()` for none) and waits for
    /// its result, with the service's own deadline. The caller is the operator.
    ///
    /// # Errors
    /// [`CallError`]: the arguments or the result do not fit, or the call failed.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn call<R: DeserializeOwned>(
        &self,
        service: &str,
        arguments: &impl Serialize,
    ) -> Result<R, CallError> {
        let arguments = serde_json::to_vec(arguments).map_err(CallError::Arguments)?;
        let no_arguments = arguments == b"null";
        let call = Call {
            service: service.to_owned(),
            arguments: Payload {
                data: if no_arguments {
                    Bytes::new()
                } else {
                    arguments.into()
                },
                ..Payload::default()
            },
            timeout: None,
            wait_for_ready: false,
            caller: Source::Operator,
            slot: None,
            cause: None,
            traceparent: String::new(),
        };
        let result = self
            .parts
            .router
            .call_and_wait(call)
            .await
            .map_err(CallError::Failed)?;
        let json: &[u8] = if result.data.is_empty() {
            b"null"
        } else {
            &result.data
        };
        serde_json::from_slice(json).map_err(CallError::Result)
    }

    /// Publishes an event with JSON data; the source is the operator.
    ///
    /// # Errors
    /// [`PublishError`]: not a topic, one of the core's own, not JSON, too large.
    pub fn publish(&self, topic: &str, data: &impl Serialize) -> Result<Position, PublishError> {
        let data = serde_json::to_vec(data)?;
        let payload = Payload {
            data: data.into(),
            ..Payload::default()
        };
        let topic = Topic::parse(topic)?;
        if let Some(resource) = reserved(Action::Publish(topic.as_str())) {
            let resource = resource.to_owned();
            return Err(Denied::Reserved { resource }.into());
        }
        let event = NewEvent::new(topic, payload);
        Ok(self.parts.bus.publish(&Source::Operator, event)?)
    }
}

/// A call from the program that embeds the core failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// They are not JSON.
    #[error("the arguments cannot be written as JSON")]
    Arguments(#[source] serde_json::Error),
    /// The system's or the application's error.
    #[error("{0}")]
    Failed(Failure),
    /// It is not what was expected.
    #[error("the result is not what the caller expects")]
    Result(#[source] serde_json::Error),
}

/// An event from the program that embeds the core was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It breaks the grammar.
    #[error(transparent)]
    Topic(#[from] BadName),
    /// Only the core publishes it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The data is not JSON.
    #[error("the data cannot be written as JSON")]
    Data(#[from] serde_json::Error),
    /// The bus refused it.
    #[error(transparent)]
    Bus(#[from] event_bus::Error),
}
