//! 54: a core at half of its capacity for a long time stays as it is.
//!
//! What is robust on a machine that has other things to do: latencies are judged by many windows, at the
//! beginning and at the end, and of those by the lower quartile: whatever else the machine does makes some
//! windows worse, a core that becomes slower all of them. Memory is judged by the median of the slopes
//! between all pairs of samples (Theil and Sen), which a few outliers do not move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::{EventBusPublishBatchRequest, NewEvent};
use core_tests::{Client, Heard};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::percentile;
use crate::processes::resident_bytes;
use crate::report::Row;
use crate::stats::{Stats, descriptors_of};

/// How long capacity is measured, and how long the load goes on then.
const CALIBRATION: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_secs(75);
const LONG: Duration = Duration::from_secs(8 * 3_600);
/// Load before anything is judged: allocator and caches settle.
const SETTLING: Duration = Duration::from_secs(12);
/// Windows that are compared.
const WINDOWS: u32 = 30;
/// Closed loops that find out the capacity.
const LOOPS: usize = 8;
/// The log keeps so many events at most. It is filled before memory is judged, with events of the topic of
/// the load, since what is kept ready for its subscriber grows as long as the log does. Fewer than by
/// default: all must have made way for those of the load before anything is judged, for they were published
/// in batches and lie more densely.
const LOG_EVENTS: usize = 4_096;
const LIMITS: &str = "[limits]\nevent_log_events = 4096\n";
const LOAD_TOPIC: &str = "operator.load";
const BATCH: usize = 1_000;
/// Writes of the storage are few: each waits for the disk, which is not the core.
const STORED_PER_SECOND: u64 = 10;
/// What one operation may leave behind, in a run too short to see 1 MiB in an hour: half of the smallest
/// piece that glibc gives (32 bytes), so that one lost object for each operation is seen.
const BYTES_PER_OPERATION: f64 = 16.0;
/// Growth that is none: what an allocator moves about.
const NOISE_BYTES: f64 = 524_288.0;

pub(crate) async fn half_load(row: Row) -> Result<()> {
    row.note("event_log_events = 4096 (65536), so that the log is full and at rest before memory is judged");
    let home = Home::start_with(LIMITS, &[plugin("echo", ECHO, &[])]).await;
    home.all_ready(&["echo"]).await;
    let heard = hear(&home.operator).await;
    fill_log(&home.operator).await?;
    let clients: Vec<Client> = (0..LOOPS)
        .map(|_| home.operator.another_connection())
        .collect();
    let capacity = capacity_of(&clients).await?;
    let rate = capacity / 2.0;
    row.tell("capacity of the mix", capacity, "operations/s");
    row.tell("load", rate, "operations/s");

    let rest_before = Stats::of(&home.operator).await.get("runtime_tasks");
    let load = Load::begin(&clients, &home.operator, rate);
    tokio::time::sleep(SETTLING).await;
    let time = if row.is_long() { LONG } else { SHORT };
    let window = time / WINDOWS;
    load.take();
    let (begin, done_before) = (Instant::now(), load.done());
    let mut windows = Vec::new();
    let mut memory = Vec::new();
    let mut descriptors = Vec::new();
    // Memory in long runs once a minute.
    let look = Duration::from_secs(if row.is_long() { 60 } else { 1 });
    let mut next_look = begin;
    for index in 1..=WINDOWS {
        let end = begin + window * index;
        while Instant::now() < end {
            tokio::time::sleep_until(next_look.min(end)).await;
            if Instant::now() >= next_look {
                next_look += look;
                let resident = resident_bytes(home.pid()).context("the core lives")?;
                memory.push((begin.elapsed().as_secs_f64(), resident as f64));
                descriptors.push(descriptors_of(home.pid()));
            }
        }
        windows.push(load.take());
    }
    let took = begin.elapsed().as_secs_f64();
    let operations = (load.done() - done_before) as f64;
    let (failed, behind) = load.end().await;

    let p99s: Vec<f64> = windows
        .iter()
        .map(|window| percentile(window, 99))
        .collect();
    let third = p99s.len() / 3;
    let (first, last) = (
        lower_quartile(&p99s[..third]),
        lower_quartile(&p99s[p99s.len() - third..]),
    );
    row.at_most("p99 at last, of that at first", last / first, "times", 1.2);
    row.tell("call p99 at first", first, "ms");
    row.tell("call p99 at last", last, "ms");
    let slope = slope_of(&memory);
    let per_hour = slope * 3_600.0 / f64::from(1 << 20);
    if row.is_long() {
        row.at_most("RSS slope", per_hour, "MiB/h", 1.0);
    } else {
        row.tell("RSS slope (judged with --long)", per_hour, "MiB/h");
    }
    let left = (slope * took - NOISE_BYTES).max(0.0) / operations;
    row.at_most(
        "RSS grown for each operation",
        left,
        "bytes",
        BYTES_PER_OPERATION,
    );
    row.tell(
        "RSS",
        memory
            .last()
            .map_or(f64::NAN, |(_, bytes)| bytes / f64::from(1 << 20)),
        "MiB",
    );
    let spread = |samples: &[f64]| {
        let third = samples.len() / 3;
        median(&samples[samples.len() - third..]) - median(&samples[..third])
    };
    let descriptors: Vec<f64> = descriptors.iter().map(|count| *count as f64).collect();
    row.between("descriptors, drift", spread(&descriptors), "", -1.0, 1.0);
    let rest = Stats::of(&home.operator).await.get("runtime_tasks");
    row.between(
        "tasks at rest, drift",
        (rest - rest_before) as f64,
        "",
        -2.0,
        2.0,
    );
    row.tell("operations", operations, "");
    row.at_least(
        "load kept up",
        operations / (rate * took) * 100.0,
        "%",
        95.0,
    );
    row.exactly("failed operations", usize::try_from(failed)?, "", 0);
    row.tell("ticks that found no place", behind as f64, "");
    row.require(
        heard.load(Ordering::Relaxed) > 0,
        "events are heard all the time",
    );
    home.stop(&row).await;
    Ok(())
}

/// Reads all events, as a subscriber that keeps up.
async fn hear(operator: &Client) -> Arc<AtomicU64> {
    let heard = Arc::<AtomicU64>::default();
    let mut events = operator.another_connection().subscribe(&[LOAD_TOPIC]).await;
    let counted = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok(item) = events.next().await {
            if let Heard::Event(_) = item {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    heard
}

async fn fill_log(operator: &Client) -> Result<()> {
    let events = || {
        (0..BATCH)
            .map(|_| NewEvent {
                topic: LOAD_TOPIC.to_owned(),
                data: json!({ "value": 21.5 }).to_string().into(),
                ..Default::default()
            })
            .collect()
    };
    for _ in 0..LOG_EVENTS / BATCH + 1 {
        let batch = EventBusPublishBatchRequest { events: events() };
        let published = operator.event_bus().publish_batch(batch).await;
        published.context("published")?;
    }
    Ok(())
}

/// One operation of the mix: of ten, six calls, three events, one write of the state.
async fn operate(client: &Client, number: u64) -> Result<(), tonic::Status> {
    match number % 10 {
        0..6 => {
            let said = client.call("echo.say", json!({ "text": "on" })).await;
            said.map(drop)
        }
        6..9 => client
            .publish(LOAD_TOPIC, json!({ "value": number }))
            .await
            .map(drop),
        _ => {
            let key = format!("operator.load.{}", number / 10 % 100);
            client.set_state(&key, "21.5").await.map(drop)
        }
    }
}

fn is_call(number: u64) -> bool {
    number % 10 < 6
}

/// Operations in a second when nothing holds the clients back.
async fn capacity_of(clients: &[Client]) -> Result<f64> {
    let begin = Instant::now();
    let mut loops = JoinSet::new();
    for client in clients {
        let client = client.clone();
        loops.spawn(async move {
            let mut done = 0_u64;
            while begin.elapsed() < CALIBRATION {
                operate(&client, done).await?;
                done += 1;
            }
            Ok::<_, tonic::Status>(done)
        });
    }
    let mut done = 0;
    while let Some(ended) = loops.join_next().await {
        done += ended?.context("an operation")?;
    }
    Ok(done as f64 / begin.elapsed().as_secs_f64())
}

/// Operations at a rate, whatever they take; latencies count from when each should have begun.
struct Load {
    stop: CancellationToken,
    counted: Arc<Counted>,
    drivers: JoinSet<()>,
}

#[derive(Default)]
struct Counted {
    latencies: std::sync::Mutex<Vec<Duration>>,
    done: AtomicU64,
    failed: AtomicU64,
    behind: AtomicU64,
}

impl Load {
    fn begin(clients: &[Client], operator: &Client, rate: f64) -> Self {
        let (stop, counted) = (CancellationToken::new(), Arc::<Counted>::default());
        let mut drivers = JoinSet::new();
        let between = Duration::from_secs_f64(clients.len() as f64 / rate);
        for client in clients {
            let (client, stop, counted) = (client.clone(), stop.clone(), Arc::clone(&counted));
            drivers.spawn(async move {
                let mut ticks = tokio::time::interval(between);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut under_way = JoinSet::new();
                for number in 0.. {
                    let Some(due) = stop.run_until_cancelled(ticks.tick()).await else {
                        break;
                    };
                    while under_way.try_join_next().is_some() {}
                    if under_way.len() >= 64 {
                        counted.behind.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let (client, counted) = (client.clone(), Arc::clone(&counted));
                    under_way.spawn(async move {
                        let done = operate(&client, number).await;
                        counted.note(number, due, done.is_ok());
                    });
                }
                while under_way.join_next().await.is_some() {}
            });
        }
        let (client, stopped, failed) = (operator.clone(), stop.clone(), Arc::clone(&counted));
        drivers.spawn(async move {
            let mut ticks =
                tokio::time::interval(Duration::from_secs(1) / STORED_PER_SECOND as u32);
            for number in 0_u64.. {
                if stopped.run_until_cancelled(ticks.tick()).await.is_none() {
                    break;
                }
                let key = format!("key.{}", number % 100);
                if client.store("load", &key, "21.5").await.is_err() {
                    failed.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self {
            stop,
            counted,
            drivers,
        }
    }

    /// The latencies of calls since the last time.
    fn take(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.counted.latencies.lock().expect("no panic inside"))
    }

    fn done(&self) -> u64 {
        self.counted.done.load(Ordering::Relaxed)
    }

    /// Failed operations, and ticks at which too many were under way.
    async fn end(mut self) -> (u64, u64) {
        self.stop.cancel();
        while self.drivers.join_next().await.is_some() {}
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.counted.failed), read(&self.counted.behind))
    }
}

impl Counted {
    fn note(&self, number: u64, due: Instant, is_ok: bool) {
        self.done.fetch_add(1, Ordering::Relaxed);
        if !is_ok {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if is_call(number) {
            let mut latencies = self.latencies.lock().expect("no panic inside");
            latencies.push(due.elapsed());
        }
    }
}

fn lower_quartile(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 4).copied().unwrap_or(f64::NAN)
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The median of the slopes between all pairs of samples, for each second.
fn slope_of(samples: &[(f64, f64)]) -> f64 {
    let mut slopes = Vec::new();
    for (index, (time, value)) in samples.iter().enumerate() {
        for (later, then) in &samples[index + 1..] {
            slopes.push((then - value) / (later - time));
        }
    }
    median(&slopes)
}
