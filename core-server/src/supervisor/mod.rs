//! What keeps one plugin alive: pure rules, and thin drivers of processes.
//!
//! Owns: the lifecycle of one plugin ([`lifecycle`]), when it runs again ([`restart`]), heartbeats
//! ([`heartbeat`]), child processes and embedded plugins ([`host`]), and what they write
//! ([`output`]). Does not own: which plugins there are and what depends on what
//! (`plugin_manager/`), nor channels (`channel/`).
//!
//! Invariants
//! - The rules decide and never act; they know no clock, no process and no plugin but their own.
//! - A child's exit is noticed for that child alone (pidfd), its group is swept while its id is still
//!   pinned by the zombie, then it is reaped. Nobody waits for a pipe to end.
//! - Output is always drained. A plugin that writes faster than anybody reads loses its oldest lines,
//!   never its own time.

pub mod heartbeat;
pub mod host;
mod isolation;
pub mod lifecycle;
pub mod output;
pub mod process;
pub mod restart;
