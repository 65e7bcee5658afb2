//! Calls that are begun and never answered.

use std::fs::File;
use std::io::Write as _;
use std::sync::Mutex;

use plugin_sdk::prelude::*;

/// Many more than the core's default.
const MAX_CALLS_IN_FLIGHT: u32 = 4_096;

/// Arguments of `hold`.
#[derive(Debug, Deserialize, JsonSchema)]
struct Hold {
    id: u64,
}

pub(crate) fn holds(name: &str) -> Plugin {
    let begun = File::options().create(true).append(true).open("begun");
    let begun = Mutex::new(begun.expect("its own directory"));
    Plugin::builder(name)
        .max_calls_in_flight(MAX_CALLS_IN_FLIGHT)
        .service(Service::new("hold").handle(move |_: Ctx, Hold { id }| {
            // One write for each: none is half written when the process is killed.
            let line = format!("{id}\n");
            let mut begun = begun.lock().expect("no panic inside");
            begun.write_all(line.as_bytes()).expect("its own directory");
            std::future::pending::<Result<()>>()
        }))
        .build()
}
