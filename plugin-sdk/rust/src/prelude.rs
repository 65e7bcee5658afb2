//! What nearly every plugin needs: `use plugin_sdk::prelude::*;`

use std::time::Duration;

pub use schemars::JsonSchema;
pub use serde::{Deserialize, Serialize};
pub use serde_json::{Value, json};

pub use crate::{
    Batch, CallOptions, Code, Ctx, Error, Event, Gap, Health, IntoPlugin, NewEvent, Plugin, Range,
    Result, Service, Subscribe, plugin,
};

/// So many seconds.
#[must_use]
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// So many milliseconds.
#[must_use]
pub const fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}
