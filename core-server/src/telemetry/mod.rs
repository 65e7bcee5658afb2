//! What the core says of itself.
//!
//! Owns: the log's form and filter. Does not own: what is logged; each component decides that, once,
//! where it handles an error.

pub mod logging;
