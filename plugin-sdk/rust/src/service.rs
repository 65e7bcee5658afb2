//! A service as its plugin declares it: a name, a description, a handler.
//!
//! The description (summary, JSON Schemas of arguments and result, order of the arguments) is derived
//! from the handler's types, so that it cannot differ from what the handler takes.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arguments::{self, Shape};
use crate::context::Ctx;
use crate::error::Result;

/// The core takes schemas up to this size (`service_registry.proto`); larger ones are left out.
const MAX_SCHEMA_BYTES: usize = 16 << 10;

type Handler = Arc<dyn Fn(Ctx, Bytes) -> BoxFuture<'static, Result<Bytes>> + Send + Sync>;

/// A service with its handler. Made with [`Service::new`].
#[derive(Clone)]
pub struct Service {
    pub(crate) description: v1::ServiceDescription,
    pub(crate) full_name: bool,
    handler: Handler,
}

impl Service {
    /// Begins the declaration of a service with this local name: `turn_on` of the plugin `lamp` is
    /// called as `lamp.turn_on`.
    #[expect(
        clippy::new_ret_no_self,
        reason = "a service without a handler is none"
    )]
    pub fn new(name: impl Into<String>) -> ServiceBuilder {
        ServiceBuilder {
            description: v1::ServiceDescription {
                name: name.into(),
                ..Default::default()
            },
            full_name: false,
        }
    }

    /// As [`Service::new`], with the service's full name, which may lie outside the plugin's own
    /// prefix (that needs a grant).
    pub fn with_full_name(name: impl Into<String>) -> ServiceBuilder {
        ServiceBuilder {
            full_name: true,
            ..Self::new(name)
        }
    }

    /// The description under the name that this plugin gives it.
    pub(crate) fn describe(&self, plugin: &str) -> v1::ServiceDescription {
        let mut description = self.description.clone();
        if !self.full_name {
            description.name = format!("{plugin}.{}", description.name);
        }
        description
    }

    pub(crate) fn handle(&self, ctx: Ctx, arguments: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        (self.handler)(ctx, arguments)
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Service")
            .field("name", &self.description.name)
            .finish_non_exhaustive()
    }
}

/// A service without its handler yet.
#[derive(Clone, Debug)]
#[must_use]
pub struct ServiceBuilder {
    description: v1::ServiceDescription,
    full_name: bool,
}

impl ServiceBuilder {
    /// One line for people.
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.description.summary = summary.into();
        self
    }

    /// Calling it twice has the effect of calling it once: the core may try again after a loss.
    pub fn idempotent(mut self) -> Self {
        self.description.idempotent = true;
        self
    }

    /// It changes nothing.
    pub fn read_only(mut self) -> Self {
        self.description.read_only = true;
        self
    }

    /// The deadline of calls that give none; otherwise the core's, 10 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.description.default_timeout = prost_types::Duration::try_from(timeout).ok();
        self
    }

    /// Callers should move away; says to what.
    pub fn deprecated(mut self, advice: impl Into<String>) -> Self {
        self.description.deprecation = advice.into();
        self
    }

    /// Sets the handler: a function of the [`Ctx`] and of the arguments (a struct; `()` for none).
    /// Handlers run concurrently; a cancelled or expired call drops its handler's future.
    pub fn handle<A, R, F, Fut>(mut self, handler: F) -> Service
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema + Send + 'static,
        F: Fn(Ctx, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R>> + Send + 'static,
    {
        let description = &mut self.description;
        description.input_schema = match arguments::shape_of::<A>() {
            Shape::Unit => Bytes::from_static(br#"{"type":"object","properties":{}}"#),
            _ => schema::<A>(&description.name),
        };
        description.output_schema = schema::<R>(&description.name);
        if let Shape::Struct(fields) = arguments::shape_of::<A>() {
            description.parameters = fields.iter().map(|&field| field.to_owned()).collect();
        }
        let handler = Arc::new(handler);
        self.handle_raw(move |ctx, bytes| {
            let handler = Arc::clone(&handler);
            async move {
                let result = handler(ctx, arguments::decode(&bytes)?).await?;
                arguments::encode_result(&result)
            }
        })
    }

    /// Sets a handler of bytes: the arguments as the caller sent them, the result as it is sent back.
    pub fn handle_raw<F, Fut>(self, handler: F) -> Service
    where
        F: Fn(Ctx, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes>> + Send + 'static,
    {
        Service {
            description: self.description,
            full_name: self.full_name,
            handler: Arc::new(move |ctx, bytes| Box::pin(handler(ctx, bytes))),
        }
    }
}

fn schema<T: JsonSchema>(service: &str) -> Bytes {
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
    match serde_json::to_vec(&schema) {
        Ok(text) if text.len() <= MAX_SCHEMA_BYTES => text.into(),
        _ => {
            tracing::warn!(
                service,
                "a JSON Schema above 16 KiB is not sent to the core"
            );
            Bytes::new()
        }
    }
}
