//! Write a plugin for Core Runtime in Rust.
//!
//! ```no_run
//! use plugin_sdk::prelude::*;
//!
//! struct Lamp;
//!
//! #[plugin(name = "lamp", requires = ["devices"])]
//! impl Lamp {
//!     /// Switch one lamp on.
//!     #[service(idempotent)]
//!     async fn turn_on(&self, ctx: &Ctx, device_id: String, level: Option<u8>) -> Result<u8> {
//!         let level = level.unwrap_or(100);
//!         ctx.state().set(format!("lamp.{device_id}"), &level).await?;
//!         ctx.publish("lamp.changed", json!({ "id": device_id, "level": level })).await?;
//!         Ok(level)
//!     }
//!
//!     #[on("presence.left")]
//!     async fn left(&self, ctx: &Ctx, event: Event) -> Result {
//!         ctx.call("heating.lower", &event.json()?).await
//!     }
//!
//!     #[task]
//!     async fn poll(&self, ctx: &Ctx) -> Result {
//!         ctx.every(secs(60), || async { Ok(()) }).await
//!     }
//! }
//!
//! plugin_sdk::main!(Lamp);
//! ```
//!
//! A process like this reads `CORE_ADDR` and `CORE_TOKEN`, connects, and does as the core says: it is
//! loaded, started, stopped and unloaded, and comes back by itself when the connection breaks. What it
//! asks for goes through [`Ctx`]; what it answers with is a [`Result`], whose error carries a code and a
//! message ([`error`]). [`testing::TestRuntime`] runs a plugin without a core.
//!
//! The attribute ([`macro@plugin`]) is sugar over [`Plugin::builder`]; both make a [`Plugin`], which runs
//! as a process ([`main!`]), inside a program ([`host::run`]) or inside the core's own process
//! (`Runtime::builder(config).embed(Lamp)`).
//!
//! # Invariants
//! The reader of the channel never waits for a handler. Every call is answered once. Every queue is
//! bounded, and what happens at the bound stands with it: `channel::outbox`, [`Ctx::publish_nowait`],
//! [`Subscribe`]. A failure in a handler (error or panic) stays in it.

#[cfg(test)]
extern crate self as plugin_sdk;

mod arguments;
mod backoff;
mod channel;
pub mod client;
mod context;
mod embed;
pub mod error;
mod events;
mod guard;
pub mod host;
mod lifecycle;
pub mod logging;
mod plugin;
pub mod prelude;
mod run;
mod service;
pub mod testing;

pub use context::{
    Batch, CallOptions, Ctx, Dependencies, DependencyChange, Health, NewEvent, Permission,
    Permissions, PermissionsWatch, Position, Range, State, StateChange, StateChangeKind,
    StateEntry, StateWatch, Storage, StorageChange, StorageEntry, StorageUsage, StorageWatch,
};
pub use error::{Code, Error, Origin, Outcome, Result};
pub use events::{Event, Gap, GapReason, Subscribe, Subscribed, Subscription};
pub use plugin::{IntoPlugin, Plugin, PluginBuilder};
pub use service::{Service, ServiceBuilder};

// What a plugin meets in its own signatures; with `#[serde(crate = "plugin_sdk::serde")]` and
// `#[schemars(crate = "plugin_sdk::schemars")]` it needs no dependency of its own on them.
pub use {schemars, serde, serde_json, tokio, tracing};

/// Makes a plugin of an inherent `impl`.
///
/// Options: `name` (needed), `requires = ["devices"]`, `permissions = ["publish=home.>"]`
/// ([`PluginBuilder::permissions`]), `version` (otherwise that of the package),
/// `description` (otherwise the documentation of the `impl`), `config = Type` (checked before
/// `on_load`), `max_calls_in_flight`.
///
/// | method | takes, beside `&self` and, if wanted, `&Ctx` | options |
/// |---|---|---|
/// | `#[service]` | the arguments | `idempotent`, `read_only`, `name = "…"`, `full_name = "…"`, `timeout = secs(5)`, `deprecated = "…"` |
/// | `#[on("pattern", …)]` | an [`Event`], or the type of its data | `source = "…"`, `subject = "…"`, `exclude_own`, `from_oldest`, `on_gap = method` |
/// | `#[task]` | | |
/// | `#[on_load]`, `#[on_start]`, `#[on_stop]`, `#[on_unload]` | | |
/// | `#[on_config]` | the changed configuration; see [`PluginBuilder::on_config`] | |
///
/// All return [`Result`]. An `async fn` runs on the runtime and is dropped when its call is cancelled; a
/// plain `fn` runs on a worker thread and may block.
///
/// Arguments are named after the parameters. `Option` may be missing, and so may one with
/// `#[serde(default)]` before it; unknown ones are refused. A lone parameter whose type is a struct is
/// all the arguments, its fields are their names; `#[arg]` before it makes it one named argument,
/// `#[args]` makes any type (a map, `Value`) all of them. The method's documentation is the service's
/// summary, that of a parameter its description in the JSON Schema. The method of `on_gap` takes
/// `(&self, &Ctx, Gap)`.
pub use plugin_sdk_macros::plugin;

/// Makes the `main` of a plugin: [`host::main`].
#[macro_export]
macro_rules! main {
    ($plugin:expr $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::host::main($plugin)
        }
    };
}

/// For generated code only; may change at any time.
#[doc(hidden)]
pub mod __private {
    pub use core_proto::embed::EmbeddedPlugin;
    pub use {schemars, serde};

    pub use crate::guard::blocking;

    /// Whether a type deserialises as a struct, from named fields.
    #[must_use]
    pub fn is_struct<T: serde::de::DeserializeOwned>() -> bool {
        matches!(
            crate::arguments::shape_of::<T>(),
            crate::arguments::Shape::Struct(_)
        )
    }
}
