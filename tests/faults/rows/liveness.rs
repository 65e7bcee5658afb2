//! 10, 11, 12: plugins that stand still, and one that only works hard.

use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;
use core_tests::{is_alive, signal};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::home::{Home, plugin};
use crate::measure::{ms, worst};
use crate::report::Row;
use crate::{ECHO, MISBEHAVING, PLAYER};

/// What a start may take on top of what is promised.
const START: Duration = Duration::from_secs(3);
/// How long the busy plugin is watched.
const BUSY: Duration = Duration::from_secs(60);

pub(crate) async fn stopped(row: Row) -> Result<()> {
    let home = Home::start(&[plugin("lamp", ECHO, &[]), plugin("bystander", ECHO, &[])]).await;
    home.all_ready(&["lamp", "bystander"]).await;
    let before = home.operator.plugin("lamp").await;
    let timeline = home.timeline().await;
    let stop = Instant::now();
    signal(before.pid, Signal::STOP);
    let degraded = timeline
        .first("lamp", Duration::from_secs(25), |lamp| {
            lamp.phase == "degraded"
        })
        .await;
    row.at_most("degraded after", after(stop, &degraded), "s", 15.0);
    let replaced = timeline
        .first("lamp", Duration::from_secs(30), |lamp| {
            lamp.generation > before.generation && lamp.phase == "ready"
        })
        .await;
    let limit = (Duration::from_secs(20) + START).as_secs_f64();
    row.at_most(
        "replaced and ready after",
        after(stop, &replaced),
        "s",
        limit,
    );
    row.require(!is_alive(before.pid), "the stopped process is gone");
    let bystander = home.operator.plugin("bystander").await;
    row.require(bystander.generation == 1, "the other plugin is untouched");
    if is_alive(before.pid) {
        signal(before.pid, Signal::CONT);
    }
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn deadlocked(row: Row) -> Result<()> {
    let home = Home::start(&[plugin(
        "chatty",
        MISBEHAVING,
        &["deadlocked", "chatty.noise"],
    )])
    .await;
    let timeline = home.timeline().await;
    let mut noise = home.operator.subscribe(&["chatty.noise"]).await;
    let ready = home.operator.until_phase("chatty", "ready").await;
    let begin = Instant::now();
    noise.event().await;
    let degraded = timeline
        .first("chatty", Duration::from_secs(25), |chatty| {
            chatty.phase == "degraded"
        })
        .await;
    row.at_most("degraded after", after(begin, &degraded), "s", 15.0);
    let call = home.operator.call("chatty.pid", json!({})).await;
    let refused = call
        .err()
        .map(|status| core_tests::Told::by(&status).reason);
    row.require(
        refused.as_deref() == Some("PROVIDER_DEGRADED"),
        format!("its callers fail fast: {refused:?}"),
    );
    // Chatty to the end: it is not for silence that it is restarted.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let heard = tokio::time::timeout(Duration::from_secs(1), noise.event()).await;
    row.require(heard.is_ok(), "a degraded plugin's events flow");
    let lived = home.operator.plugin("chatty").await.generation == ready.generation;
    row.require(
        lived,
        "35 s without a pong, but with bytes, are no reason to kill",
    );
    let again = timeline
        .first("chatty", Duration::from_secs(60), |chatty| {
            chatty.generation > ready.generation
        })
        .await;
    row.between("restarted after", after(begin, &again), "s", 50.0, 65.0);
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn busy(row: Row) -> Result<()> {
    let home = Home::start(&[plugin("busy", PLAYER, &["spins", "8"])]).await;
    let before = home.operator.until_phase("busy", "ready").await;
    let timeline = home.timeline().await;
    let begin = Instant::now();
    let mut latencies = Vec::new();
    while begin.elapsed() < BUSY {
        let asked = Instant::now();
        let said = home
            .operator
            .call("busy.say", json!({ "text": "well?" }))
            .await;
        if said.is_ok() {
            latencies.push(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let kills = timeline
        .told()
        .into_iter()
        .map(|(_, plugin)| plugin.generation);
    let kills = kills
        .max()
        .unwrap_or_default()
        .saturating_sub(before.generation);
    row.exactly("false kills", usize::try_from(kills)?, "", 0);
    let degraded = |plugin: &PluginInfo| plugin.phase == "degraded";
    let moments = timeline
        .told()
        .iter()
        .filter(|(_, plugin)| degraded(plugin))
        .count();
    row.tell("times degraded", f64::from(u32::try_from(moments)?), "");
    let cpu = crate::processes::cpu_seconds(before.pid).context("its CPU time")?;
    row.tell("CPU time burnt", cpu, "s");
    // What the machine's other work leaves it; one that rests takes a hundredth of that.
    row.require(cpu > 2.0, "it really was busy");
    row.tell("slowest answer", worst(&latencies), "ms");
    row.require(latencies.len() > 20, "it answers calls meanwhile");
    home.stop(&row).await;
    Ok(())
}

/// Seconds until something was told; infinite when it never was.
fn after(begin: Instant, told: &Option<(Instant, PluginInfo)>) -> f64 {
    told.as_ref().map_or(f64::INFINITY, |(at, _)| {
        ms(at.saturating_duration_since(begin)) / 1000.0
    })
}
