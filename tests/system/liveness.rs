//! Plugins that do not live although their processes do, and a core that was late itself. The times are
//! shortened; their defaults are judged on simulated clocks beside the rules.

use std::time::Duration;

use core_tests::{Client, CoreProcess, eventually, signal};
use rustix::process::Signal;
use serde_json::json;

use super::{CORE, ECHO, MISBEHAVING};

async fn core_with(limits: &str) -> (CoreProcess, Client) {
    let core_toml = format!("storage.adapter = \"memory\"\n[limits]\n{limits}\n");
    let plugin_toml =
        format!("name = \"echo\"\nrun.command = {ECHO:?}\nrestart.backoff = \"10ms\"\n");
    let mut core = CoreProcess::new(CORE, &core_toml).plugin("echo", &plugin_toml);
    let operator = core.start().await;
    (core, operator)
}

#[tokio::test]
async fn a_stopped_process_is_degraded_and_then_replaced() {
    let (core, operator) = core_with("heartbeat_interval = \"1s\"\nsilent_after = \"4s\"").await;
    let well = operator.until_phase("echo", "ready").await;
    signal(well.pid, Signal::STOP);
    let degraded = operator.until_phase("echo", "degraded").await;
    assert_eq!(degraded.reason, "heartbeat");
    let replaced = operator
        .until("echo", "another run", |plugin| {
            plugin.generation > well.generation && plugin.phase == "ready"
        })
        .await;
    assert_ne!(replaced.pid, well.pid);
    let exit = replaced.last_exit.expect("how it ended");
    assert_eq!(exit.message, "nothing was heard of it for 4 s");
    // It was continued to heed SIGTERM, or killed: either way nothing of it is left.
    eventually!(!core_tests::is_alive(well.pid));
    drop(core);
}

#[tokio::test]
async fn a_core_that_was_stopped_blames_nobody() {
    let (core, operator) = core_with(
        "heartbeat_interval = \"1s\"\nsilent_after = \"3s\"\nunresponsive_after = \"4s\"",
    )
    .await;
    let well = operator.until_phase("echo", "ready").await;
    core.signal(Signal::STOP);
    // The fault itself takes time: longer than every time that is judged.
    tokio::time::sleep(Duration::from_secs(6)).await;
    core.signal(Signal::CONT);
    eventually!(core.log().contains("the core was late"));
    // It would be ended within moments. A call shows that it lives and is not degraded.
    let answer = operator.call("echo.say", json!({"text": "well"})).await;
    assert!(answer.is_ok(), "{answer:?}");
    let now = operator.plugin("echo").await;
    assert_eq!(
        (now.generation, now.pid, now.phase.as_str()),
        (well.generation, well.pid, "ready")
    );
}

#[tokio::test]
async fn a_plugin_without_heartbeat_is_judged_by_keepalive() {
    let plugin_toml =
        format!("name = \"plain\"\nrun.command = {MISBEHAVING:?}\nrun.args = [\"serves\"]\n");
    let mut core =
        CoreProcess::new(CORE, "storage.adapter = \"memory\"\n").plugin("plain", &plugin_toml);
    let operator = core.start().await;
    let well = operator.until_phase("plain", "ready").await;
    let began = std::time::Instant::now();
    signal(well.pid, Signal::STOP);
    let lost = operator
        .until("plain", "the loss of its channel", |plugin| {
            plugin.phase != "ready"
        })
        .await;
    assert_eq!(
        (lost.phase.as_str(), lost.reason.as_str()),
        ("suspended", "channel_lost"),
        "it is never degraded: nobody pings it"
    );
    let took = began.elapsed();
    eprintln!("lost after {} ms", took.as_millis());
    assert!(took >= Duration::from_secs(10), "{took:?}");
    signal(well.pid, Signal::CONT);
    // Its process lives, and has lost its channel for good.
    operator
        .until("plain", "another run", |plugin| {
            plugin.generation > well.generation
        })
        .await;
}
