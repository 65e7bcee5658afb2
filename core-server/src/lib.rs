//! The kernel of Core Runtime: plugins, their events and calls, their state and data.
//!
//! It contains coordination only and knows no domain. [`Runtime`] is the whole: a program makes one
//! with [`Runtime::builder`], as the binary of this crate does. What it does is seen through the
//! contract of `core-proto`; a program that embeds it may also use the components directly.
//!
//! # Modules
//! In rings, from the outside in. Imports point inwards only; modules of one ring may know each other.
//!
//! | ring | module | owns |
//! |---|---|---|
//! | composition | `runtime` | building the parts, connecting them, ending them in order |
//! | | [`init`] | what must be there before the first start |
//! | shell | `grpc` | the contract, served: the gate, conversion, the readers of channels |
//! | | [`transport`] | listeners and connections: unix sockets, TCP, in memory |
//! | plugins | [`plugin_manager`] | which plugins there are, what is wanted of each, who requires whom |
//! | | [`supervisor`] | one plugin's life: pure rules, child processes, output |
//! | | [`routing`] | a call from its caller to the provider's channel and back |
//! | links | [`security`] | credentials, and the one authorisation point |
//! | | [`channel`] | one plugin's link, free of gRPC: frames, handshake, outbox, runs |
//! | | [`service_registry`] | which services there are and who provides them |
//! | | [`state_engine`] | shared state in memory |
//! | data | [`event_bus`] | the log of events and who reads it |
//! | | [`storage`] | durable data: the writer, the cache, the adapters |
//! | ground | [`types`], [`error`], [`task`], [`stall`], `files`, [`config`], [`telemetry`] | words, errors, tasks, the core's own lateness, small files, settings, the log |
//!
//! [`config`] makes values of two types that live further out, manifests and tokens: plain data. Where
//! an inner module must reach out it is given a function, a trait or a channel, and `runtime` connects
//! them.
//!
//! # Shape of a component
//! A `Config`, a handle that is cheap to clone and bears the component's name, an `Error` whose variants
//! say what the caller can do, and an essay at the head of `mod.rs`. Rules are pure functions, without
//! clock and I/O, in files of their own. Nothing is global: dependencies are arguments.
//!
//! # Invariants of the whole
//! - Only `grpc` and [`transport`] name tonic or generated messages; only `grpc/status.rs` maps errors to
//!   codes.
//! - Every request passes one authorisation point, as RPC and as frame of a channel.
//! - What belongs to a run ends with it; every call ends exactly once.
//! - Every queue is bounded ([`config::Limits`] and the essays say what happens at the bound); nobody
//!   waits for a slow plugin but those who asked it for something, and those within a deadline.
//! - Every task has a name, an owner and an end: only [`task::TaskScope`] spawns.
//! - Stopping is bounded, and closes the storage last and always.
//!
//! `ARCHITECTURE.md` in the root of the repository shows how a call, an event, a write and a plugin's
//! life travel through these modules, and where to add what.

mod budgets;
pub mod channel;
pub mod config;
pub mod error;
pub mod event_bus;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
pub mod home;
pub mod init;
pub mod plugin_manager;
pub mod routing;
mod runtime;
pub mod security;
pub mod service_registry;
pub mod stall;
pub mod state_engine;
pub mod storage;
pub mod supervisor;
pub mod task;
pub mod telemetry;
pub mod transport;
pub mod types;

pub use runtime::{
    Builder, CallError, Error as RuntimeError, Loader, PublishError, ReloadError, Runtime,
    ShutdownReport, UpgradeError,
};
