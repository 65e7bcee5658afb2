//! Runs a plugin author's code so that its failures stay inside it.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::error::{Error, Result};

/// Awaits a handler. A panic becomes `INTERNAL` with an id; where it happened stands in the log under
/// that id, never in the error.
pub(crate) async fn guarded<T>(handler: impl Future<Output = Result<T>>) -> Result<T> {
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(result) => result,
        Err(payload) => Err(panicked(payload.as_ref())),
    }
}

/// Runs a blocking handler on a worker thread. It cannot be interrupted: when its call is cancelled
/// its result is thrown away.
pub async fn blocking<T: Send + 'static>(
    handler: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(handler).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(payload) => Err(panicked(payload.as_ref())),
            Err(_) => Err(Error::cancelled("the plugin is ending")),
        },
    }
}

fn panicked(payload: &(dyn Any + Send)) -> Error {
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let id = format!("{:016x}", rand::random::<u64>());
    tracing::error!(error_id = %id, panic = message, "a handler panicked");
    Error::internal(format!(
        "the plugin failed; its log has the details under {id}"
    ))
    .with_reason("PANIC")
    .with_metadata("error_id", id)
}
