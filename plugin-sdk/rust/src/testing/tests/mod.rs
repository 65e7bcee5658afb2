//! The SDK's own tests: a plugin against the fake core.

mod calls;
mod data;
mod events;
mod lifecycle;
