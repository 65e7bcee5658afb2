//! What keeps one plugin alive: pure rules, and thin drivers of processes.
//!
//! Owns: the lifecycle of one plugin ([`lifecycle`]), when it runs again ([`restart`]), how many start
//! in a row ([`start_bucket`]), whether it lives ([`liveness`]) and keeps its run
//! ([`contest`]), child processes and embedded plugins
//! ([`host`]), what they are kept to ([`isolation`]) and use ([`usage`]), their end with their run and
//! with the core ([`custody`]), and what they write ([`output`]). Does not own: which plugins there are
//! and what depends on what (`plugin_manager/`), nor channels (`channel/`).
//!
//! Invariants
//! - The rules decide and never act; they know no clock, no process and no plugin but their own.
//! - A child's exit is noticed for that child alone (pidfd), its group is swept while its id is still
//!   pinned by the zombie, with what left the group, then it is reaped. Nobody waits for a pipe to end.
//! - Output is always drained. A plugin that writes faster than anybody reads loses its oldest lines,
//!   never its own time.

pub mod contest;
pub mod custody;
pub mod host;
pub mod isolation;
pub mod lifecycle;
pub mod liveness;
pub mod output;
pub mod process;
pub mod program;
pub mod restart;
pub mod start_bucket;
pub mod usage;
