//! 07: many plugins die at once.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;
use core_tests::{Client, signal};
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::MISBEHAVING;
use crate::home::{Home, Timeline, plugin};
use crate::measure::{ms, percentile, worst};
use crate::report::Row;

const PLUGINS: usize = 50;
/// Start slots.
const SLOTS: usize = 4;
/// The bucket of starts, and its refill.
const BUCKET: f64 = 64.0;
const PER_SECOND: f64 = 8.0;
/// The time of a start is known to a fraction of a refill.
const ROUNDING: f64 = 1.0;

pub(crate) async fn fifty(row: Row) -> Result<()> {
    let names: Vec<String> = (0..PLUGINS).map(|number| format!("p{number:02}")).collect();
    let plugins: Vec<_> = names
        .iter()
        .map(|name| plugin(name, MISBEHAVING, &["serves"]))
        .collect();
    let home = Home::start(&plugins).await;
    let timeline = home.timeline().await;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = home.all_ready(&names).await;
    let stop = CancellationToken::new();
    let caller = home.operator.another_connection();
    let control = tokio::spawn(control_calls(caller, stop.clone()));
    let kill = Instant::now();
    for plugin in &before {
        signal(plugin.pid, Signal::KILL);
    }
    for plugin in &before {
        home.ready_after(&plugin.name, plugin.generation).await;
    }
    let all_ready = kill.elapsed();
    stop.cancel();
    let latencies = control.await.context("the caller's task")?;
    row.tell("time to all ready", ms(all_ready), "ms");
    let starts = Starts::of(&timeline)?;
    row.exactly("starts", starts.times.len(), "", 2 * PLUGINS);
    let slots = u32::try_from(SLOTS).map(f64::from)?;
    row.at_most("peak starts at once", starts.peak(), "", slots);
    // 50 at boot and 50 again: the last of them can only come from the refill.
    let beyond = starts.beyond_bucket();
    row.at_most("starts beyond bucket and refill", beyond, "", ROUNDING);
    row.at_most("control RPC p99", percentile(&latencies, 99), "ms", 100.0);
    row.tell("control RPC worst", worst(&latencies), "ms");
    home.stop(&row).await;
    Ok(())
}

/// How long each of many small requests took.
async fn control_calls(caller: Client, stop: CancellationToken) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while !stop.is_cancelled() {
        let asked = Instant::now();
        caller.plugin("p00").await;
        latencies.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    latencies
}

/// When each run began, and when it was ready.
struct Starts {
    times: Vec<(SystemTime, SystemTime)>,
}

impl Starts {
    fn of(timeline: &Timeline) -> Result<Self> {
        const ON_ITS_WAY: [&str; 4] = ["connecting", "loading", "starting", "ready"];
        let mut runs: BTreeMap<(String, u64), (SystemTime, SystemTime)> = BTreeMap::new();
        for (_, plugin) in timeline.told() {
            if !ON_ITS_WAY.contains(&plugin.phase.as_str()) {
                continue;
            }
            let since = since(&plugin)?;
            let times = runs
                .entry((plugin.name, plugin.generation))
                .or_insert((since, since));
            *times = (times.0.min(since), times.1.max(since));
        }
        let mut times: Vec<_> = runs.into_values().collect();
        times.sort();
        Ok(Self { times })
    }

    /// The most that were on their way at once.
    fn peak(&self) -> f64 {
        let at = |moment: SystemTime| {
            let under_way =
                |(began, ready): &&(SystemTime, SystemTime)| *began <= moment && moment < *ready;
            self.times.iter().filter(under_way).count()
        };
        let peak = self.times.iter().map(|(began, _)| at(*began)).max();
        f64::from(u32::try_from(peak.unwrap_or_default()).unwrap_or(u32::MAX))
    }

    /// By how many starts the fullest stretch of time is above what the bucket gives; at most 0 when
    /// it holds.
    fn beyond_bucket(&self) -> f64 {
        let mut beyond = f64::NEG_INFINITY;
        for (first, (begin, _)) in self.times.iter().enumerate() {
            for (count, (end, _)) in self.times[first..].iter().enumerate() {
                let stretch = end.duration_since(*begin).unwrap_or_default();
                let allowed = BUCKET + PER_SECOND * stretch.as_secs_f64();
                let started = f64::from(u32::try_from(count + 1).unwrap_or(u32::MAX));
                beyond = beyond.max(started - allowed);
            }
        }
        beyond
    }
}

fn since(plugin: &PluginInfo) -> Result<SystemTime> {
    let since = plugin.since.context("a phase has a begin")?;
    SystemTime::try_from(since).context("a time")
}
