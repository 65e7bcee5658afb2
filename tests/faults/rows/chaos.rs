//! 53: six plugins, and a driver that kills, stops, continues and ends them at random.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::{EventBusSubscribeRequest, Oldest, event_bus_subscribe_request};
use core_tests::{Client, Heard, signal};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::home::{Home, Timeline, plugin};
use crate::measure::{percentile, worst};
use crate::processes;
use crate::report::Row;
use crate::{ECHO, PLAYER};

/// How long the driver goes on; with `--long` half an hour.
const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(30 * 60);
/// The liveness bound: all ready again so long after the last fault.
const RECOVERY: Duration = Duration::from_secs(30);
/// As the row has it.
const POLICY: &str = "[restart]\nmax_failures = 0\nbackoff_max = \"2s\"\n";
const NAMES: [&str; 6] = [
    "base",
    "front",
    "publisher",
    "other",
    "subscriber",
    "ledger",
];

pub(crate) async fn six_plugins(row: Row) -> Result<()> {
    let may_hear = "[permissions]\nsubscribe = [\"publisher.>\", \"other.>\"]\n";
    let home = Home::start(&[
        plugin("base", ECHO, &[]).sections(POLICY),
        plugin("front", ECHO, &[])
            .top("requires = [\"base\"]")
            .sections(POLICY)
            .sections("[permissions]\ncall = [\"base.>\"]\n"),
        plugin("publisher", PLAYER, &["publisher"]).sections(POLICY),
        plugin("other", PLAYER, &["publisher"]).sections(POLICY),
        plugin("subscriber", PLAYER, &["subscriber", "publisher.tick"])
            .top("requires = [\"publisher\"]")
            .top("on_loss = { publisher = \"notify\" }")
            .sections(POLICY)
            .sections(may_hear),
        plugin("ledger", PLAYER, &["ledger"]).sections(POLICY),
    ])
    .await;
    home.all_ready(&NAMES).await;
    let timeline = home.timeline().await;
    let calls = Calls::begin(&home.operator);

    let time = if row.is_long() { LONG } else { SHORT };
    let faults = drive(&home, row.seed(), time).await;
    let last_fault = Instant::now();
    for name in NAMES {
        let left = RECOVERY.saturating_sub(last_fault.elapsed());
        let ready = tokio::time::timeout(left, home.operator.until_phase(name, "ready")).await;
        row.require(
            ready.is_ok(),
            format!("{name} is ready within 30 s of the last fault"),
        );
    }
    let recovered = last_fault.elapsed();
    let (asked, failed, hung) = calls.end().await;

    let total: u32 = faults.values().sum();
    row.tell("faults", f64::from(total), "");
    for (kind, count) in &faults {
        row.tell(kind, f64::from(*count), "");
    }
    row.at_most(
        "all ready after the last fault",
        recovered.as_secs_f64(),
        "s",
        30.0,
    );
    let availability = 100.0 * (1.0 - f64::from(failed) / f64::from(asked.max(1)));
    row.tell("availability of front > base", availability, "% of calls");
    row.tell("calls", f64::from(asked), "");
    row.exactly("hung calls", usize::try_from(hung)?, "", 0);
    let recoveries = recoveries(&timeline);
    row.tell("recovery p50", percentile(&recoveries, 50), "ms");
    row.at_most("recovery, worst", worst(&recoveries) / 1000.0, "s", 60.0);

    check_events(&row, &home).await?;
    check_ledger(&row, &home).await?;
    // Whoever dies in the moment of the look is no zombie yet.
    tokio::time::sleep(Duration::from_millis(200)).await;
    row.exactly("zombies", processes::zombies_of(home.pid()).len(), "", 0);
    let plugins = home.all_ready(&NAMES).await;
    let known: BTreeSet<u32> = plugins.iter().map(|plugin| plugin.pid).collect();
    let strangers = home
        .others()
        .into_iter()
        .filter(|process| !known.contains(&process.pid) && !process.command.contains("guardian"));
    let strangers: Vec<_> = strangers.collect();
    row.require(strangers.is_empty(), format!("no orphans: {strangers:?}"));
    home.stop(&row).await;
    Ok(())
}

/// Does harm for so long. What was done, by kind.
async fn drive(home: &Home, seed: u64, time: Duration) -> BTreeMap<&'static str, u32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = BTreeMap::new();
    let mut stopped: Vec<(u32, Instant)> = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..700))).await;
        let now = Instant::now();
        stopped.retain(|(pid, until)| {
            let over = *until <= now;
            if over {
                harm(home, *pid, Signal::CONT);
            }
            !over
        });
        let name = NAMES[random.random_range(0..NAMES.len())];
        let dice = random.random_range(0..100);
        let pause = Duration::from_millis(random.random_range(200..8_000));
        let pid = home.operator.plugin(name).await.pid;
        if pid == 0 {
            continue;
        }
        let kind = match dice {
            0..45 => {
                harm(home, pid, Signal::KILL);
                "kills"
            }
            45..65 => {
                harm(home, pid, Signal::STOP);
                stopped.push((pid, now + pause));
                "stops"
            }
            65..80 => {
                harm(home, pid, Signal::ABORT);
                "aborts"
            }
            80..90 => {
                harm(home, pid, Signal::TERM);
                "terminations"
            }
            _ if name == "base" || name == "front" => {
                let caller = home.operator.clone();
                tokio::spawn(async move {
                    // It ends while it handles this.
                    let code = json!({ "code": 3 });
                    caller.call(&format!("{name}.exit"), code).await.ok();
                });
                "exits"
            }
            _ => {
                harm(home, pid, Signal::KILL);
                "kills"
            }
        };
        *done.entry(kind).or_default() += 1;
    }
    for (pid, _) in stopped {
        harm(home, pid, Signal::CONT);
    }
    done
}

/// The process may have ended meanwhile, and its number be somebody else's.
fn harm(home: &Home, pid: u32, which: Signal) {
    if home.others().iter().any(|process| process.pid == pid) {
        signal(pid, which);
    }
}

/// Calls through two plugins, all the time.
struct Calls {
    stop: CancellationToken,
    /// Asked, failed, hung.
    count: Arc<Mutex<(u32, u32, u32)>>,
    caller: tokio::task::JoinHandle<()>,
}

impl Calls {
    fn begin(operator: &Client) -> Self {
        let stop = CancellationToken::new();
        let count: Arc<Mutex<(u32, u32, u32)>> = Arc::default();
        let (client, stopped, counted) = (
            operator.another_connection(),
            stop.clone(),
            Arc::clone(&count),
        );
        let caller = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                let arguments =
                    json!({ "service": "base.say", "arguments": { "text": "still there?" } });
                let call = client.call("front.relay", arguments);
                // The core's own deadline is 10 s.
                let answer = tokio::time::timeout(Duration::from_secs(12), call).await;
                {
                    let mut count = counted.lock().expect("no panic inside");
                    count.0 += 1;
                    match answer {
                        Ok(Ok(_)) => {}
                        Ok(Err(_)) => count.1 += 1,
                        Err(_) => count.2 += 1,
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self {
            stop,
            count,
            caller,
        }
    }

    async fn end(self) -> (u32, u32, u32) {
        self.stop.cancel();
        self.caller.await.ok();
        *self.count.lock().expect("no panic inside")
    }
}

/// From the loss of each plugin to its next readiness.
fn recoveries(timeline: &Timeline) -> Vec<Duration> {
    let mut away: BTreeMap<String, Instant> = BTreeMap::new();
    let mut recoveries = Vec::new();
    for (at, plugin) in timeline.told() {
        if plugin.phase == "ready" {
            recoveries.extend(away.remove(&plugin.name).map(|since| at - since));
        } else {
            away.entry(plugin.name).or_insert(at);
        }
    }
    recoveries
}

/// The subscriber's verdict, and our own over the whole log.
async fn check_events(row: &Row, home: &Home) -> Result<()> {
    let report = home.operator.call("subscriber.report", json!({})).await;
    let report = report.context("the subscriber's report")?;
    row.require(
        report["violations"] == json!([]),
        format!(
            "the subscriber saw no loss beyond a stated gap: {}",
            report["violations"]
        ),
    );
    row.require(
        report["events"].as_u64().is_some_and(|events| events > 0),
        "the subscriber hears events",
    );
    let mut violations = 0;
    for topic in ["publisher.tick", "other.tick"] {
        let mut last: Option<(u64, u64)> = None;
        let mut events = 0_u32;
        let mut gaps = 0_u32;
        let request = EventBusSubscribeRequest {
            patterns: vec![topic.to_owned()],
            start: Some(event_bus_subscribe_request::Start::Oldest(Oldest {})),
            ..Default::default()
        };
        let heard = home.operator.subscribe_as(request).await;
        let mut heard = heard.context("subscribed")?;
        let until = heard
            .subscribed
            .next_seq
            .max(newest_seq(&home.operator).await?);
        let mut excused = false;
        loop {
            match heard.next().await.context("the log")? {
                Heard::Event(event) => {
                    let tick: Value = core_tests::json(&event);
                    let number = |field: &str| tick[field].as_u64().unwrap_or_default();
                    let this = (number("incarnation"), number("number"));
                    let follows = match last {
                        None => true,
                        Some((same, before)) if same == this.0 => this.1 == before + 1,
                        Some((before, _)) => this.0 > before && this.1 == 1,
                    };
                    if !follows && !std::mem::take(&mut excused) {
                        violations += 1;
                        row.broken(format!("{topic}: {this:?} after {last:?}"));
                    }
                    events += 1;
                    last = Some(this);
                    if event.seq >= until {
                        break;
                    }
                }
                Heard::Gap(_) => {
                    gaps += 1;
                    excused = true;
                }
                Heard::Bookmark(_) => {}
            }
        }
        row.tell(&format!("{topic}: events"), f64::from(events), "");
        row.tell(&format!("{topic}: gaps"), f64::from(gaps), "");
    }
    row.exactly("events lost or out of order", violations, "", 0);
    Ok(())
}

/// The seq of an event that was published just now.
async fn newest_seq(operator: &Client) -> Result<u64> {
    operator
        .publish("operator.mark", json!({}))
        .await
        .context("published")
}

/// Everything that was acknowledged is there.
async fn check_ledger(row: &Row, home: &Home) -> Result<()> {
    let acknowledged = std::fs::read_to_string(home.data_of("ledger").join("acknowledged"));
    let acknowledged = acknowledged.context("the ledger's file")?;
    // The last line may be half written.
    let whole = acknowledged
        .rsplit_once('\n')
        .map_or("", |(whole, _)| whole);
    let mut lost = 0;
    let mut checked = 0_u32;
    for line in whole.lines() {
        let number: u64 = line.parse().context("a number")?;
        let stored = home
            .operator
            .stored("ledger", &format!("entry.{number:012}"))
            .await;
        lost += usize::from(stored.context("read")?.as_deref() != Some(line));
        checked += 1;
    }
    row.exactly("acknowledged writes lost", lost, "", 0);
    row.tell("acknowledged writes", f64::from(checked), "");
    row.require(checked > 0, "something was written");
    Ok(())
}
