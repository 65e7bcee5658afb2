//! The runtime inside a program: start it, load a plugin, call its service, publish an event that the
//! plugin receives, stop in order.
//!
//! The plugin runs in this process, over an in-memory connection: the same code, contract and
//! permissions as in a process of its own. Data is kept in memory; the directory holds nothing but the
//! core's sockets, so `corectl` could look in.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use core_server::Runtime;
use core_server::config::Config;
use plugin_sdk::plugin;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

struct Example {
    /// Where this plugin shows the data of the events that it receives.
    received: mpsc::Sender<Value>,
}

#[plugin(name = "example")]
impl Example {
    /// Greets.
    #[service]
    async fn hello(&self, name: String) -> plugin_sdk::Result<String> {
        Ok(format!("Hello, {name}!"))
    }

    #[on("example.test")]
    async fn test(&self, data: Value) -> plugin_sdk::Result {
        self.received.send(data).await?;
        Ok(())
    }
}

/// What the program saw.
#[derive(Debug)]
struct Seen {
    answer: String,
    event: Value,
}

async fn run() -> Result<Seen> {
    let (received, mut events) = mpsc::channel(8);
    let directory = tempfile::tempdir()?;
    let config = Config::for_tests(directory.path());
    let runtime = Runtime::builder(config)
        .embed(Example { received })
        .start()
        .await?;

    let deadline = Instant::now() + Duration::from_secs(10);
    runtime.plugin_manager().start("example", deadline).await?;

    let answer: String = runtime.call("example.hello", &json!(["world"])).await?;
    runtime.publish("example.test", &json!({ "data": "test" }))?;
    let event = timeout_at(deadline, events.recv())
        .await?
        .context("the plugin has ended")?;

    let report = runtime.shutdown().await;
    ensure!(report.is_clean(), "{report:?}");
    Ok(Seen { answer, event })
}

#[tokio::main]
async fn main() -> Result<()> {
    let Seen { answer, event } = run().await?;
    #[expect(clippy::print_stdout, reason = "a program for people")]
    {
        println!("example.hello answered {answer:?}");
        println!("example.test brought {event}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_plugin_is_called_and_gets_the_event() -> Result<()> {
        let Seen { answer, event } = run().await?;
        assert_eq!(answer, "Hello, world!");
        assert_eq!(event, json!({ "data": "test" }));
        Ok(())
    }
}
