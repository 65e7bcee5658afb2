//! The echo plugin as a process; its name is the one that the core gives it.

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::var(core_proto::contract::env::PLUGIN);
    let name = name.unwrap_or_else(|_| "echo".to_owned());
    plugin_sdk::host::main(core_tests::plugins::echo(&name))
}
