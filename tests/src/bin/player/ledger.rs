//! Numbered entries in the storage, and beside them, outside of the core, which were acknowledged.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use plugin_sdk::prelude::*;

/// Between two entries.
const PACE: Duration = Duration::from_millis(5);

pub(crate) fn ledger(name: &str) -> Plugin {
    Plugin::builder(name)
        .task("write", |ctx: Ctx| async move {
            let mut acknowledged = File::options()
                .create(true)
                .append(true)
                .open("acknowledged")
                .expect("its own directory");
            let storage = ctx.storage();
            let mut next = loop {
                // A numbered key is never written twice, even when its fate is unknown.
                match storage
                    .list_keys(Range::prefix("entry.").reverse().limit(1))
                    .await
                {
                    Ok(keys) => break keys.first().map_or(1, |key| number(key) + 1),
                    Err(_) => tokio::time::sleep(PACE).await,
                }
            };
            loop {
                if storage
                    .set(format!("entry.{next:012}"), &next)
                    .await
                    .is_ok()
                {
                    writeln!(acknowledged, "{next}").expect("its own directory");
                }
                next += 1;
                tokio::time::sleep(PACE).await;
            }
        })
        .build()
}

fn number(key: &str) -> u64 {
    key.trim_start_matches("entry.")
        .parse()
        .expect("its own key")
}
