//! The end of everything: nothing survives, nothing is waited for without a bound.

use std::time::{Duration, Instant};

use core_tests::{CoreProcess, Declared, Hello, RawPlugin, TestCore, Told, eventually, is_alive};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::{CORE, ECHO, MISBEHAVING};

fn plugin_toml(name: &str, program: &str, arguments: &[&str]) -> String {
    format!("name = \"{name}\"\n[run]\ncommand = \"{program}\"\nargs = {arguments:?}\n")
}

/// The real binary with well-behaved and ill-behaved children, all started; and all their pids.
async fn home() -> (CoreProcess, Vec<u32>) {
    let mut core = CoreProcess::new(CORE, "")
        .env("RUNTIME_SHUTDOWN_TIMEOUT", "6")
        .plugin("good", &plugin_toml("good", ECHO, &[]))
        .plugin("forks", &plugin_toml("forks", MISBEHAVING, &["forks"]))
        .plugin(
            "stubborn",
            &plugin_toml("stubborn", MISBEHAVING, &["stubborn"]),
        )
        .plugin(
            "lost",
            &plugin_toml("lost", MISBEHAVING, &["never-connects"]),
        );
    let operator = core.start().await;
    let mut pids = vec![core.pid()];
    for name in ["good", "forks", "stubborn"] {
        pids.push(operator.until_phase(name, "ready").await.pid);
    }
    pids.push(
        operator
            .until("lost", "a process", |plugin| plugin.pid != 0)
            .await
            .pid,
    );
    let grandchild = operator
        .call("forks.child", json!({}))
        .await
        .expect("answered");
    pids.push(u32::try_from(grandchild.as_u64().expect("a pid")).expect("a pid"));
    operator.store("notes", "k", "1").await.expect("written");
    (core, pids)
}

#[tokio::test]
async fn ctrl_c_leaves_no_process_behind_and_exits_0_in_time() {
    let (mut core, pids) = home().await;
    for pid in &pids {
        assert!(is_alive(*pid));
    }
    let began = Instant::now();
    core.signal(Signal::INT);
    let status = core.wait(core_tests::patience()).await;
    let took = began.elapsed();
    for pid in &pids {
        assert!(
            !is_alive(*pid),
            "{pid} of {pids:?} survived:\n{}",
            core.log()
        );
    }
    assert_eq!(status.code(), Some(0), "{}", core.log());
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    assert!(
        !core.directory().join("data/run/core.sock").exists(),
        "sockets are removed"
    );
}

#[tokio::test]
async fn a_second_signal_skips_all_grace_and_still_closes_the_storage() {
    let (mut core, pids) = home().await;
    let began = Instant::now();
    core.signal(Signal::TERM);
    let log = || core.log();
    eventually!(log().contains("stopping"));
    core.signal(Signal::TERM);
    let status = core.wait(core_tests::patience()).await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "grace was not skipped: {:?}",
        began.elapsed()
    );
    for pid in &pids {
        assert!(!is_alive(*pid), "{pid} of {pids:?} survived");
    }
    assert_eq!(status.code(), Some(0), "{}", core.log());
    let operator = core.start().await;
    assert_eq!(
        operator
            .stored("notes", "k")
            .await
            .expect("read")
            .as_deref(),
        Some("1")
    );
    core.kill().await;
}

#[tokio::test]
async fn children_of_a_killed_core_end_by_themselves_and_the_next_core_starts_afresh() {
    let mut core = CoreProcess::new(CORE, "").plugin("good", &plugin_toml("good", ECHO, &[]));
    let pid = core.start().await.until_phase("good", "ready").await.pid;
    core.kill().await;
    eventually!(!is_alive(pid));
    let operator = core.start().await;
    let again = operator.until_phase("good", "ready").await;
    assert_ne!(again.pid, pid);
    core.signal(Signal::TERM);
    assert_eq!(
        core.wait(core_tests::patience()).await.code(),
        Some(0),
        "{}",
        core.log()
    );
}

#[tokio::test]
async fn a_shutdown_refuses_newcomers_says_goodbye_and_ends_streams_with_a_reason() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let mut lamp = core.ready_plugin("lamp").await;
    let heard = core
        .operator()
        .another_connection()
        .subscribe(&["scene.>"])
        .await;
    let own = lamp.client().subscribe(&["lamp.>"]).await;
    let stopping = tokio::spawn(core.shutdown());
    let mut said_goodbye = false;
    let end = loop {
        match lamp.next().await {
            Ok(core_proto::v1::core_message::Message::GoingAway(_)) => said_goodbye = true,
            Ok(core_proto::v1::core_message::Message::RunHook(hook)) => lamp.hook_done(&hook).await,
            Ok(other) => panic!("{other:?}"),
            Err(end) => break end,
        }
    };
    assert!(
        said_goodbye,
        "GoingAway comes before the end; the channel ended with {end:?}"
    );
    Told::by(&heard.end().await).is(Code::Unavailable, "SHUTTING_DOWN");
    assert_eq!(own.end().await.code(), Code::Unavailable);
    core_tests::within("stopped", stopping)
        .await
        .expect("clean");
}

#[tokio::test]
async fn silent_peers_and_open_streams_do_not_delay_the_end() {
    let core = TestCore::builder().tcp().start().await;
    let _silent = tokio::net::TcpStream::connect(core.tcp_address())
        .await
        .expect("connected");
    let _open = core.operator().another_connection().subscribe(&[">"]).await;
    let _watch = core.operator().another_connection().watch_plugins().await;
    let began = Instant::now();
    core.shutdown().await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_call_in_flight_may_finish_while_the_core_stops() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    let stopping = tokio::spawn(core.shutdown());
    // The first sign of the stop.
    let first = lamp.next().await.expect("a frame");
    assert!(
        matches!(first, core_proto::v1::core_message::Message::GoingAway(_)),
        "{first:?}"
    );
    lamp.answer(arrived.call_id, json!("just in time")).await;
    let answer = core_tests::within("answered", call).await.unwrap();
    assert_eq!(answer.expect("it was let finish"), "just in time");
    lamp.end().await;
    core_tests::within("stopped", stopping)
        .await
        .expect("clean");
}
