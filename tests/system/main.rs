//! Scenarios over a running core, one module per theme. Each test has a core of its own; all run in
//! parallel. The harness is `core_tests`; its essay says how tests wait and what they leave behind.

mod backup;
mod bad_input;
mod call_ends;
mod certificates;
mod contract;
mod counters;
mod data_directory;
mod dev;
mod embedded;
mod event_bus;
mod first_start;
mod grants;
mod handshake;
mod hanging;
mod instances;
mod isolation;
mod lifecycle;
mod liveness;
mod logs;
mod order;
mod orphans;
mod permissions;
mod proxy;
mod quotas;
mod reconnect;
mod recovery;
mod registry;
mod reload;
mod repeats;
mod routing;
mod security;
mod shutdown;
mod standard_client;
mod state;
mod storage;
mod subscriptions;
mod supervision;
mod threats;
mod tls;
mod whole_path;

/// The core's own binary.
const CORE: &str = env!("CARGO_BIN_EXE_core-under-test");
/// The operator's tool.
const CORECTL: &str = env!("CARGO_BIN_EXE_corectl-under-test");
/// The echo plugin (`core_tests::plugins::echo`).
const ECHO: &str = env!("CARGO_BIN_EXE_fixture-echo");
/// A plugin that tries to get out of its sandbox and beyond its limits.
const PROBER: &str = env!("CARGO_BIN_EXE_fixture-prober");
/// A plugin that misbehaves as its first argument says.
const MISBEHAVING: &str = env!("CARGO_BIN_EXE_fixture-misbehaving");
/// A plugin of the SDK in one of several roles.
const PLAYER: &str = env!("CARGO_BIN_EXE_fixture-player");
/// A plugin that does not go when it should.
const ESCAPING: &str = env!("CARGO_BIN_EXE_fixture-escaping");
