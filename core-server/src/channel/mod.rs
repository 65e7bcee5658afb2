//! One plugin's link to the core, free of gRPC.
//!
//! Owns: the frames of the channel as domain types ([`Inbound`], [`Outbound`]), the handshake's rules
//! ([`handshake`]), the queue of what waits for a plugin ([`Outbox`]), and the [`Run`]: the one object
//! that everything belonging to a run refers to. Does not own: what the frames mean. Calls are
//! `routing/`, lifecycle is `plugin_manager/`, requests are `grpc/`.
//!
//! Invariants
//! - A run has at most one channel at a time; a channel belongs to one run for ever.
//! - `Run::ended` is cancelled exactly once, and every stream and registration of the run ends by it.
//! - An outbox is bounded in bytes: full, it refuses new calls; twice full, or without progress, it
//!   closes with `CHANNEL_STALLED`. Pings and cancels overtake what is queued.

mod frame;
pub mod handshake;
mod last_read;
mod outbox;
mod run;
mod slots;

pub use crate::event_bus::Gate;
pub use frame::{CallFrame, Hook, Inbound, Outbound, RequestFrame, Verdict};
pub use handshake::{Hello, RefusedService, Welcome};
pub use last_read::LastRead;
pub use outbox::{Closed, Outbox, OutboxReader, Push};
pub use run::{ChannelId, Link, Run, Runs};
pub use slots::{CallerSlots, Slot};
