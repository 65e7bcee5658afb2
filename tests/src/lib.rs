//! The harness of the system tests: cores, clients, and plugins that speak plain frames.
//!
//! A test starts a core of its own ([`TestCore`] in this process, [`CoreProcess`] as a process that
//! can be killed), in a short temporary directory of its own, on sockets and ports of its own, so that
//! all tests run in parallel. On failure the directory is kept, with the core's log and its database,
//! and its path is printed.
//!
//! Nothing here waits without a bound ([`within`], [`eventually!`]): the bound is [`patience`], which
//! `CORE_TEST_PATIENCE` sets in seconds for slow machines. Nothing sleeps in the hope that something
//! has happened meanwhile.
//!
//! Every core of the harness is watched while it lives: each pair of state and phase that any plugin
//! shows must stand in the table of legal pairs, in whatever test it is seen.

mod client;
mod declare;
mod failure;
mod frames;
pub mod peer;
pub mod plugins;
mod process;
mod proxy;
mod raw_plugin;
mod scratch;
mod streams;
mod test_core;
pub mod ticks;
mod wait;

pub use client::{Address, Client, Presents};
pub use declare::Declared;
pub use failure::Told;
pub use frames::BytesCodec;
pub use process::{CoreProcess, Finished, Outsider, finished, is_alive, program, signal};
pub use proxy::{Direction, Faults, Proxy, Way};
pub use raw_plugin::{Hello, RawPlugin};
pub use scratch::Scratch;
pub use streams::{Heard, PluginWatch, Subscription, json};
pub use test_core::{TestCore, TestCoreBuilder, Witness};
pub use wait::{POLL, patience, within};
