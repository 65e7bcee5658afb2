//! Measures the machine it runs on: load, memory, disk, uptime, temperatures.
//!
//! What it shows: periodic work (`#[task]`), an event and a state key per turn, a read-only service, a
//! typed configuration, and a plugin that reports its own health when a part of its work fails.

mod machine;
mod parse;
mod sample;

use std::path::PathBuf;
use std::sync::Arc;

use plugin_sdk::prelude::*;

use crate::machine::Machine;
use crate::sample::{Sample, Thresholds, warnings};

/// `[config]` of plugin.toml.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    interval_ms: u64,
    disk: PathBuf,
    thresholds: Thresholds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_ms: 1000,
            disk: PathBuf::from("/"),
            thresholds: Thresholds::default(),
        }
    }
}

struct HostSensors {
    machine: Machine,
}

#[plugin(name = "host_sensors", config = Config)]
impl HostSensors {
    /// Measures now.
    #[service(read_only)]
    async fn read(&self, ctx: &Ctx) -> Result<Sample> {
        self.measure(Arc::new(ctx.config()?)).await
    }

    /// Publishes a sample at each turn, and keeps the latest in the state for those who come later. An
    /// error ends the task; the SDK logs it and begins it anew after a second.
    #[task]
    async fn sample(&self, ctx: &Ctx) -> Result {
        let config: Arc<Config> = Arc::new(ctx.config()?);
        let mut told = None;
        let mut ticks = tokio::time::interval(millis(config.interval_ms.max(10)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sample = self.measure(Arc::clone(&config)).await?;
            ctx.state().set("host_sensors.latest", &sample).await?;
            ctx.publish("host_sensors.sample", &sample).await?;

            let health = health(&sample);
            if told.as_ref() != Some(&health) {
                ctx.health(health.clone()).await?;
                told = Some(health);
            }
        }
    }

    /// Files are read on a worker thread: nothing else waits for a slow disk.
    async fn measure(&self, config: Arc<Config>) -> Result<Sample> {
        let machine = self.machine.clone();
        let work = move || {
            let mut sample = machine.measure(&config.disk);
            sample.warnings = warnings(&sample, &config.thresholds);
            sample
        };
        Ok(tokio::task::spawn_blocking(work).await?)
    }
}

impl HostSensors {
    fn new() -> Self {
        Self {
            machine: Machine::this(),
        }
    }
}

fn health(sample: &Sample) -> Health {
    let failures = sample.failed.iter();
    let texts: Vec<_> = failures
        .map(|failure| format!("{}: {}", failure.source, failure.error))
        .collect();
    if texts.is_empty() {
        Health::Ok
    } else {
        Health::Degraded(texts.join("; "))
    }
}

plugin_sdk::main!(HostSensors::new());

#[cfg(test)]
mod tests;
