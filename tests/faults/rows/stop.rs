//! 13, 14, 15: plugins that do not want to end.

use std::time::Duration;

use anyhow::Result;
use core_tests::is_alive;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::home::{Home, plugin};
use crate::measure::ms;
use crate::report::Row;
use crate::{ECHO, MISBEHAVING, processes};

/// What is promised is when the core acts; until it is seen from outside so much may pass.
const SEEN_LATE_MS: f64 = 150.0;

pub(crate) async fn ignores_hook(row: Row) -> Result<()> {
    let home = Home::start(&[plugin("lamp", MISBEHAVING, &["never-ends", "stop"])]).await;
    let pid = home.operator.until_phase("lamp", "ready").await.pid;
    let call = endless_call(&home).await;
    let (took, exit) = unload(&home, "lamp").await;
    call.abort();
    // SIGTERM ends it at once, so its end tells when that came.
    row.between(
        "SIGTERM after",
        ms(took),
        "ms",
        6_900.0,
        7_000.0 + SEEN_LATE_MS,
    );
    row.at_most("gone after", ms(took), "ms", 9_100.0);
    row.require(
        exit == Some((15, true)),
        format!("ended by SIGTERM, not {exit:?}"),
    );
    row.require(!is_alive(pid), "its process is gone");
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn ignores_everything(row: Row) -> Result<()> {
    let arguments = ["--deaf", "--ignores-term", "--child", "never-ends", "stop"];
    let home = Home::start(&[plugin("lamp", MISBEHAVING, &arguments)]).await;
    let pid = home.operator.until_phase("lamp", "ready").await.pid;
    let child = home.number_in("lamp", "child.pid").await;
    row.require(is_alive(child), "its child lives with it");
    let call = endless_call(&home).await;
    let began = Instant::now();
    let (took, exit) = unload(&home, "lamp").await;
    call.abort();
    let group_gone = until_gone(&[pid, child], began).await;
    row.exactly("survivors", home.others_of("lamp").len(), "", 0);
    row.between(
        "SIGKILL after",
        ms(took),
        "ms",
        8_900.0,
        9_000.0 + SEEN_LATE_MS,
    );
    row.at_most("whole group gone after", group_gone, "ms", 10_000.0);
    row.require(
        exit == Some((9, true)),
        format!("ended by SIGKILL, not {exit:?}"),
    );
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn escapee(row: Row) -> Result<()> {
    // The escapee alone, of a plugin that is well otherwise, then of one that ignores everything too.
    for (name, arguments, limit) in [
        ("well", &["--escapee", "serves"][..], 10_000.0),
        (
            "ill",
            &[
                "--deaf",
                "--ignores-term",
                "--escapee",
                "never-ends",
                "stop",
            ],
            10_000.0,
        ),
    ] {
        let home = Home::start(&[
            plugin("lamp", MISBEHAVING, arguments),
            plugin("bystander", ECHO, &[]),
        ])
        .await;
        home.all_ready(&["lamp", "bystander"]).await;
        let bystander = home.operator.plugin("bystander").await.pid;
        let pid = home.operator.plugin("lamp").await.pid;
        let escapee = home.number_in("lamp", "escapee.pid").await;
        row.require(is_alive(escapee), "the escapee lives");
        let pipes = processes::pipes_of(escapee);
        row.require(
            !pipes.is_disjoint(&processes::pipes_of(home.pid())),
            "the escapee holds a pipe of the core",
        );
        let began = Instant::now();
        let (took, _) = unload(&home, "lamp").await;
        let gone = until_gone(&[pid, escapee], began).await;
        let survivors = home.others_of("lamp").len();
        row.exactly(&format!("survivors ({name})"), survivors, "", 0);
        row.at_most(&format!("stop ({name})"), ms(took), "ms", limit);
        row.at_most(&format!("all gone ({name})"), gone, "ms", limit);
        let open = processes::pipes_of(home.pid());
        let left = pipes.intersection(&open).count();
        row.exactly(&format!("pipes left open ({name})"), left, "", 0);
        row.require(is_alive(bystander), "the other plugin lives");
        // The plugin can run again: nothing of the run before stands in its way.
        let again = home.operator.start("lamp").await;
        row.require(again.is_ok(), format!("it starts again: {again:?}"));
        home.stop(&row).await;
    }
    Ok(())
}

/// A call that is in flight and never answered: it takes the whole time that such calls have.
async fn endless_call(home: &Home) -> JoinHandle<()> {
    let caller = home.operator.another_connection();
    let call = tokio::spawn(async move {
        // It fails when the plugin ends.
        caller.call("lamp.never", json!({})).await.ok();
    });
    home.number_in("lamp", "called").await;
    call
}

/// Unloads a plugin; how long it took, and by which signal it ended and whether the core did it.
async fn unload(home: &Home, name: &str) -> (Duration, Option<(i32, bool)>) {
    let began = Instant::now();
    let unloaded = home.operator.unload(name).await.expect("it is unloaded");
    let took = began.elapsed();
    let exit = unloaded
        .last_exit
        .and_then(|exit| Some((exit.signal?, exit.forced)));
    (took, exit)
}

/// Milliseconds from `began` until none of these is alive; infinite if that takes two seconds more.
async fn until_gone(pids: &[u32], began: Instant) -> f64 {
    let deadline = Instant::now() + Duration::from_secs(2);
    while pids.iter().any(|pid| is_alive(*pid)) {
        if Instant::now() > deadline {
            return f64::INFINITY;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ms(began.elapsed())
}
