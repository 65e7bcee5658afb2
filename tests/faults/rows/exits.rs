//! 01, 02: a plugin that was well ends.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;
use core_tests::{Client, Told, signal};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::{percentile, worst};
use crate::report::Row;

/// How often row 01 lets it exit.
const EXITS: usize = 15;
/// Of row 02: a hundred waits of two seconds would show no more.
const POLICY: &str = "[restart]\nbackoff = \"50ms\"\nbackoff_max = \"100ms\"\nmax_failures = 0\n";
/// How often row 02 kills.
const KILLS: usize = 100;

pub(crate) async fn after_ready(row: Row) -> Result<()> {
    row.note("stable_after shortened to 100 ms (60 s), so that each exit is a first failure");
    // What is promised is the delay; the driver and the scheduler may add so much to what is seen.
    const SEEN_LATE_MS: f64 = 60.0;
    let home = Home::start(&[
        plugin("lamp", ECHO, &[]).sections("[restart]\nstable_after = \"100ms\"\n"),
        plugin("bystander", ECHO, &[]),
    ])
    .await;
    home.all_ready(&["lamp", "bystander"]).await;
    let bystander = home.operator.plugin("bystander").await;
    let timeline = home.timeline().await;
    let (mut delays, mut seen, mut to_ready) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..EXITS {
        let before = home.operator.until_phase("lamp", "ready").await;
        // Nothing tells when it counts as stable: it is the policy's time, passed.
        tokio::time::sleep(Duration::from_millis(150)).await;
        // Its process ends while it handles this.
        let exiting = home.operator.call("lamp.exit", json!({ "code": 1 })).await;
        row.require(exiting.is_err(), "a call to a plugin that exits fails");
        let gone = Instant::now();
        let waiting = |plugin: &PluginInfo| {
            plugin.generation == before.generation && plugin.phase == "backoff"
        };
        let told = timeline
            .first("lamp", core_tests::patience(), waiting)
            .await;
        let (_, backoff) = told.context("it was never seen in backoff")?;
        let again = home.ready_after("lamp", before.generation).await;
        to_ready.push(gone.elapsed());
        delays.push(planned(&backoff).context("a planned attempt")?);
        let spawned = timeline
            .told()
            .into_iter()
            .find(|(_, plugin)| plugin.name == "lamp" && plugin.generation == again.generation);
        seen.push(spawned.context("its start was told")?.0 - gone);
    }
    row.tell("ready again p50", percentile(&to_ready, 50), "ms");
    row.tell("ready again p99", percentile(&to_ready, 99), "ms");
    row.at_least("shortest delay", percentile(&delays, 0), "ms", 250.0);
    row.at_most("longest delay", worst(&delays), "ms", 312.5);
    row.at_most(
        "exit to spawn seen from outside, p50",
        percentile(&seen, 50),
        "ms",
        312.5 + SEEN_LATE_MS,
    );
    let after = home.operator.plugin("bystander").await;
    row.require(
        (after.generation, after.pid) == (bystander.generation, bystander.pid),
        "the other plugin is untouched",
    );
    home.stop(&row).await;
    Ok(())
}

/// The delay that the core decided on.
fn planned(backoff: &PluginInfo) -> Option<Duration> {
    let since = SystemTime::try_from(backoff.since?).ok()?;
    let next = SystemTime::try_from(backoff.next_attempt_at?).ok()?;
    next.duration_since(since).ok()
}

pub(crate) async fn killed(row: Row) -> Result<()> {
    row.note("shortened: backoff 50 ms (250 ms), backoff_max 100 ms (60 s; the row's 2 s); max_failures off");
    let home = Home::start(&[plugin("lamp", ECHO, &[]).sections(POLICY)]).await;
    let (mut answered, mut gone, mut to_ready) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hung, mut wrong) = (0, Vec::new());
    let mut before = home.operator.until_phase("lamp", "ready").await;
    for _ in 0..KILLS {
        // Two calls that only the end of the run can answer.
        let pending: Vec<_> = (0..2)
            .map(|_| tokio::spawn(endless_call(home.operator.another_connection())))
            .collect();
        until_in_flight(&home.operator, "lamp").await;
        let kill = Instant::now();
        signal(before.pid, Signal::KILL);
        let routes = tokio::spawn(route_gone(home.operator.clone(), kill));
        for call in pending {
            match tokio::time::timeout(Duration::from_secs(5), call).await {
                Ok(ended) => {
                    let (status, at) = ended.context("a call's task")?;
                    answered.push(at - kill);
                    match status {
                        Err(status) if status.code() == Code::Unavailable => {}
                        other => wrong.push(format!("{other:?}")),
                    }
                }
                Err(_) => hung += 1,
            }
        }
        gone.push(routes.await.context("the prober's task")?);
        before = home.ready_after("lamp", before.generation).await;
        to_ready.push(kill.elapsed());
    }
    row.at_most("routes gone p99", percentile(&gone, 99), "ms", 50.0);
    row.at_most(
        "callers answered p99",
        percentile(&answered, 99),
        "ms",
        100.0,
    );
    row.at_most("callers answered, worst", worst(&answered), "ms", 100.0);
    row.exactly("hung calls", hung, "", 0);
    row.exactly("answers that are not UNAVAILABLE", wrong.len(), "", 0);
    row.require(wrong.is_empty(), wrong.first().cloned().unwrap_or_default());
    row.exactly("restarts", to_ready.len(), "", KILLS);
    row.tell("ready again p99", percentile(&to_ready, 99), "ms");
    home.stop(&row).await;
    Ok(())
}

/// A call that takes far longer than the plugin lives, how it ended, and when.
async fn endless_call(caller: Client) -> (Result<(), Status>, Instant) {
    let ended = caller.call("lamp.wait", json!({ "millis": 20_000 })).await;
    (ended.map(drop), Instant::now())
}

/// Waits until calls have surely reached the plugin: a later call of another caller was answered.
async fn until_in_flight(operator: &Client, name: &str) {
    let said = operator
        .call(&format!("{name}.say"), json!({ "text": "now" }))
        .await;
    said.expect("it is ready");
    // The two calls were sent on connections of their own, which may be slower than this one.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Time from the kill to the first call that is refused because nobody provides the service.
async fn route_gone(operator: Client, kill: Instant) -> Duration {
    loop {
        let answer = operator.call("lamp.say", json!({ "text": "?" })).await;
        if let Err(status) = answer
            && Told::by(&status).reason != "PROVIDER_LOST"
        {
            return kill.elapsed();
        }
    }
}
