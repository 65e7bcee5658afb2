//! Children that fail in every way, and what the core makes of it.

use std::time::Duration;

use core_proto::v1::{self, PluginState};
use core_server::plugin_manager::RestartMode;
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told, eventually, is_alive};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::{ECHO, MISBEHAVING};

fn misbehaving(arguments: &[&str]) -> Declared {
    // Failures must come quickly, or the tests wait for the design's back-off.
    Declared::process("child", MISBEHAVING)
        .args(arguments)
        .restart(|restart| {
            restart.backoff_base = Duration::from_millis(10);
            restart.backoff_max = Duration::from_millis(50);
        })
}

async fn core_with(plugin: Declared) -> TestCore {
    TestCore::builder().plugin(plugin).start().await
}

#[tokio::test]
async fn a_plugin_that_crashes_at_its_start_is_tried_again_and_tells_why() {
    let core = core_with(misbehaving(&["exit-at-start", "3"])).await;
    let operator = core.operator();
    let waiting = operator
        .until("child", "the third try", |plugin| {
            plugin.generation >= 3 && plugin.phase == "backoff"
        })
        .await;
    assert_eq!(waiting.state(), PluginState::Unloaded);
    assert_eq!(
        waiting.desired(),
        PluginState::Started,
        "the core never gives up"
    );
    assert!(waiting.next_attempt_at.is_some() && waiting.restarts >= 2);
    let exit = waiting.last_exit.expect("how it ended");
    assert_eq!(
        (exit.code, exit.signal, exit.forced),
        (Some(3), None, false)
    );
    assert_eq!(exit.last_lines, ["boom: it cannot go on"]);
    core.shutdown().await;
}

#[tokio::test]
async fn too_many_failures_slow_the_core_down_and_are_published_once() {
    let plugin = misbehaving(&["exit-at-start", "3"]).restart(|restart| restart.max_failures = 3);
    let core = core_with(plugin).await;
    let operator = core.operator();
    let mut news = operator.subscribe(&["core.plugin.crash_loop"]).await;
    let slow = operator.until_phase("child", "crash_loop").await;
    assert!(slow.next_attempt_at.is_some(), "it is tried for ever");
    assert_eq!(slow.generation, 3);
    let event = match operator.plugin("child").await.phase.as_str() {
        "crash_loop" => {
            let request = v1::EventBusSubscribeRequest {
                patterns: vec!["core.plugin.crash_loop".to_owned()],
                start: Some(v1::event_bus_subscribe_request::Start::Oldest(
                    v1::Oldest {},
                )),
                ..Default::default()
            };
            operator
                .subscribe_as(request)
                .await
                .expect("admitted")
                .event()
                .await
        }
        _ => news.event().await,
    };
    assert_eq!(event.subject, "child");
    let told = String::from_utf8_lossy(&event.data).into_owned();
    assert!(told.contains("boom: it cannot go on"), "{told}");
    // An operator's start skips the wait and resets the count.
    let failed = operator.start("child").await.expect_err("it fails again");
    Told::by(&failed).is(Code::FailedPrecondition, "PLUGIN_FAILED");
    operator
        .until("child", "another try", |plugin| plugin.generation > 3)
        .await;
    core.shutdown().await;
}

#[tokio::test]
async fn a_crash_under_never_is_final_until_somebody_asks() {
    let plugin = misbehaving(&["exit-when-ready", "9"]).restart_mode(RestartMode::Never);
    let core = core_with(plugin).await;
    let given_up = core.operator().until_phase("child", "given_up").await;
    assert_eq!(given_up.generation, 1);
    assert_eq!(given_up.last_exit.expect("an exit").code, Some(9));
    core.shutdown().await;
}

#[tokio::test]
async fn exit_78_and_a_missing_program_are_faults_of_the_configuration() {
    let core = TestCore::builder()
        .plugin(misbehaving(&["exit-at-start", "78"]))
        .plugin(Declared::process("ghost", "/nowhere/to/be/found"))
        .start()
        .await;
    for name in ["child", "ghost"] {
        let barred = core.operator().until_phase(name, "config_error").await;
        assert_eq!(barred.next_attempt_at, None, "{name} waits for a change");
        assert!(!barred.message.is_empty(), "{barred:?}");
    }
    let ghost = core.operator().plugin("ghost").await;
    assert!(ghost.message.contains("/nowhere/to/be/found"), "{ghost:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn a_child_that_never_connects_is_ended_and_tried_again() {
    let plugin = misbehaving(&["never-connects"])
        .timeouts(|timeouts| timeouts.connect = Duration::from_millis(300));
    let core = core_with(plugin).await;
    let first = core
        .operator()
        .until("child", "a process", |plugin| plugin.pid != 0)
        .await;
    let again = core
        .operator()
        .until("child", "another try", |plugin| plugin.generation == 2)
        .await;
    assert!(again.last_exit.expect("an exit").forced);
    eventually!(!is_alive(first.pid));
    core.shutdown().await;
}

#[tokio::test]
async fn a_hook_that_never_ends_or_fails_ends_the_run() {
    for (arguments, reason) in [
        (["never-ends", "load"], "hook_timeout"),
        (["never-ends", "start"], "hook_timeout"),
        (["fails-in", "load"], "hook_failed"),
        (["fails-in", "start"], "hook_failed"),
    ] {
        let plugin = misbehaving(&arguments)
            .timeouts(|timeouts| timeouts.start = Duration::from_millis(300))
            .restart(|restart| restart.backoff_base = Duration::from_secs(60));
        let core = core_with(plugin).await;
        let failed = core.operator().until_phase("child", "backoff").await;
        assert_eq!(failed.reason, reason, "{arguments:?}: {failed:?}");
        assert!(failed.last_exit.expect("an exit").forced, "{arguments:?}");
        if reason == "hook_failed" {
            assert!(
                failed.message.contains("the lamp is broken"),
                "{}",
                failed.message
            );
        }
        core.shutdown().await;
    }
}

#[tokio::test]
async fn a_stop_always_ends_in_time_whatever_the_child_ignores() {
    let plugin = misbehaving(&["stubborn"]).timeouts(|timeouts| {
        timeouts.stop = Duration::from_millis(300);
        timeouts.term = Duration::from_millis(300);
    });
    let core = core_with(plugin).await;
    let operator = core.operator();
    let pid = operator.until_phase("child", "ready").await.pid;
    let unloaded = operator.unload("child").await.expect("unloaded");
    assert_eq!(unloaded.state(), PluginState::Unloaded);
    assert!(!is_alive(pid));
    let exit = operator
        .until_phase("child", "idle")
        .await
        .last_exit
        .expect("an exit");
    assert_eq!(
        (exit.signal, exit.forced),
        (Some(9), true),
        "SIGTERM was not enough"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_grandchild_dies_with_its_group() {
    let core = core_with(misbehaving(&["forks"])).await;
    let operator = core.operator();
    let pid = operator.until_phase("child", "ready").await.pid;
    let grandchild = operator
        .call("child.child", json!({}))
        .await
        .expect("answered");
    let grandchild = u32::try_from(grandchild.as_u64().expect("a pid")).expect("a pid");
    assert!(is_alive(grandchild));
    core_tests::signal(pid, Signal::KILL);
    eventually!(!is_alive(grandchild));
    // And so do the next run's, when the core stops.
    operator
        .until("child", "ready again", |p| {
            p.generation == 2 && p.phase == "ready"
        })
        .await;
    let next = operator
        .call("child.child", json!({}))
        .await
        .expect("answered");
    let next = u32::try_from(next.as_u64().expect("a pid")).expect("a pid");
    core.shutdown().await;
    assert!(!is_alive(next));
}

#[tokio::test]
async fn a_flood_of_output_blocks_nobody_and_its_end_is_kept() {
    let core = core_with(misbehaving(&["floods"])).await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    assert_eq!(
        operator
            .call("child.say", json!({}))
            .await
            .expect("answered"),
        "still here"
    );
    let logs = async || {
        let request = v1::PluginManagerLogsRequest {
            name: "child".to_owned(),
            ..Default::default()
        };
        let stream = operator.plugin_manager().logs(request).await;
        let mut stream = stream.expect("logs").into_inner();
        let mut records = Vec::new();
        while let Some(message) = core_tests::within("logs", stream.message())
            .await
            .expect("no error")
        {
            records.extend(message.records);
        }
        records
    };
    let records = logs().await;
    assert!(
        !records.is_empty() && records.len() <= 1_000,
        "{} records",
        records.len()
    );
    for record in &records {
        assert!(
            ["stderr", "core"].contains(&record.stream.as_str()),
            "{record:?}"
        );
        assert_eq!(record.generation, 1);
    }
    core.shutdown().await;
}

#[tokio::test]
async fn what_a_child_writes_is_served_and_followed() {
    let core = core_with(misbehaving(&["exit-at-start", "1"])).await;
    let operator = core.operator();
    let request = v1::PluginManagerLogsRequest {
        name: "child".to_owned(),
        follow: true,
        ..Default::default()
    };
    let logs = operator.plugin_manager().logs(request).await.expect("logs");
    let mut logs = logs.into_inner();
    let mut generations = std::collections::BTreeSet::new();
    while generations.len() < 3 {
        let message = core_tests::within("a line", logs.message())
            .await
            .expect("no error");
        for record in message.expect("it is followed").records {
            if record.stream == "stderr" {
                assert_eq!(
                    (record.message.as_str(), record.level.as_str()),
                    ("boom: it cannot go on", "warn")
                );
                generations.insert(record.generation);
            }
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_that_misses_heartbeats_is_degraded_and_a_pong_clears_it() {
    let core = TestCore::builder()
        .configure(|config| config.limits.heartbeat_interval = Duration::from_millis(100))
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let hello = Hello::ready().feature("heartbeat").services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    assert_eq!(lamp.welcome.features, ["heartbeat"]);
    assert!(lamp.welcome.heartbeat_interval.is_some());
    lamp.answers_pings = false;
    let mut nonces = Vec::new();
    let degraded = async {
        loop {
            if let Ok(v1::core_message::Message::Ping(ping)) = lamp.next().await {
                nonces.push(ping.nonce);
            }
        }
    };
    tokio::select! {
        () = degraded => {}
        plugin = operator.until_phase("lamp", "degraded") => assert_eq!(plugin.reason, "heartbeat"),
    }
    let refused = operator
        .call("lamp.on", json!({}))
        .await
        .expect_err("it fails fast");
    let told = Told::by(&refused);
    told.is(Code::Unavailable, "PROVIDER_DEGRADED");
    assert!(told.retry);
    lamp.answers_pings = true;
    for nonce in nonces {
        lamp.send(v1::plugin_message::Message::Pong(v1::Pong { nonce }))
            .await;
    }
    let call = operator.clone();
    let recovered = async {
        operator.until_phase("lamp", "ready").await;
        call.call("lamp.on", json!({})).await
    };
    let answering = async {
        let call = lamp.expect_call().await;
        lamp.answer(call.call_id, json!("well again")).await;
        // Whoever stops answering pings is degraded again.
        while lamp.next().await.is_ok() {}
    };
    tokio::select! {
        answer = recovered => assert_eq!(answer.expect("answered"), "well again"),
        () = answering => panic!("the channel ended"),
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_child_that_is_busy_or_frozen_for_a_moment_is_not_killed() {
    let core = TestCore::builder()
        .configure(|config| config.limits.heartbeat_interval = Duration::from_millis(100))
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    let before = operator.until_phase("child", "ready").await;
    core_tests::signal(before.pid, Signal::STOP);
    operator.until_phase("child", "degraded").await;
    core_tests::signal(before.pid, Signal::CONT);
    let after = operator.until_phase("child", "ready").await;
    assert_eq!(
        (after.pid, after.generation),
        (before.pid, before.generation)
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_dozen_plugins_that_die_together_all_come_back() {
    let names: Vec<String> = (0..12).map(|number| format!("child-{number}")).collect();
    let builder = names.iter().fold(TestCore::builder(), |builder, name| {
        builder.plugin(Declared::process(name, MISBEHAVING).args(&["crashes-on-call"]))
    });
    let core = builder.start().await;
    let operator = core.operator();
    for name in &names {
        let pid = operator.until_phase(name, "ready").await.pid;
        core_tests::signal(pid, Signal::KILL);
    }
    for name in &names {
        operator
            .until(name, "ready again", |p| {
                p.generation == 2 && p.phase == "ready"
            })
            .await;
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_failing_plugin_that_is_stopped_has_no_process_and_is_not_tried_again() {
    let core = core_with(misbehaving(&["exit-at-start", "3"])).await;
    let operator = core.operator();
    operator.until_phase("child", "backoff").await;
    let stopped = operator.stop("child").await.expect("accepted");
    // A run that was on its way fails yet; none follows.
    let idle = operator
        .until("child", "its rest", |plugin| {
            plugin.phase == "idle" && plugin.pid == 0
        })
        .await;
    assert!(idle.generation <= stopped.generation + 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let later = operator.plugin("child").await;
    assert_eq!((later.generation, later.pid), (idle.generation, 0));
    assert_eq!(
        (later.state(), later.desired(), later.phase.as_str()),
        (PluginState::Unloaded, PluginState::Stopped, "idle")
    );
    assert!(later.message.contains("by request"), "{}", later.message);
    operator.start("child").await.expect_err("it fails again");
    operator
        .until("child", "another try", |plugin| {
            plugin.generation > idle.generation && plugin.phase == "backoff"
        })
        .await;
    let mut client = operator.plugin_manager();
    let request = v1::PluginManagerStopAllRequest::default();
    client.stop_all(request).await.expect("accepted");
    let idle = operator.until_phase("child", "idle").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(operator.plugin("child").await.generation, idle.generation);
    core.shutdown().await;
}
