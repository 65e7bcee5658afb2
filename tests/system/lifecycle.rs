//! The four states, what is wanted, dependencies and order.

use std::time::Duration;

use core_proto::v1::run_hook::Hook;
use core_proto::v1::{self, PluginState};
use core_server::plugin_manager::OnLoss;
use core_tests::{Client, Declared, Hello, RawPlugin, Subscription, TestCore, Told, within};
use rustix::process::Signal;
use tonic::Code;

use super::ECHO;

/// Subjects of the next events of this topic, in order.
async fn subjects(news: &mut Subscription, topic: &str, count: usize) -> Vec<String> {
    let mut subjects = Vec::new();
    while subjects.len() < count {
        let event = news.event().await;
        if event.topic == topic {
            subjects.push(event.subject);
        }
    }
    subjects
}

/// From the oldest event on.
async fn all_news(operator: &Client) -> Subscription {
    let request = v1::EventBusSubscribeRequest {
        patterns: vec!["core.plugin.>".to_owned()],
        start: Some(v1::event_bus_subscribe_request::Start::Oldest(
            v1::Oldest {},
        )),
        ..Default::default()
    };
    operator.subscribe_as(request).await.expect("admitted")
}

/// `top` requires `middle`, which requires `base`; their names stand in no helpful order.
fn chain() -> [Declared; 3] {
    [
        Declared::process("a-top", ECHO).requires(&["m-middle"]),
        Declared::process("m-middle", ECHO).requires(&["z-base"]),
        Declared::process("z-base", ECHO),
    ]
}

async fn chain_core() -> TestCore {
    let builder = TestCore::builder();
    let core = chain()
        .into_iter()
        .fold(builder, |builder, plugin| builder.plugin(plugin));
    let core = core.start().await;
    core.operator().until_phase("a-top", "ready").await;
    core
}

/// StartAll answered for each plugin of the chain, and each is STARTED and ready.
fn assert_all_started(results: &[v1::PluginResult]) {
    let mut names = Vec::new();
    for result in results {
        assert_eq!(result.error, None);
        let plugin = result.plugin.as_ref().expect("a plugin");
        assert_eq!(
            (plugin.state(), plugin.phase.as_str()),
            (PluginState::Started, "ready"),
            "{plugin:?}"
        );
        names.push(plugin.name.as_str());
    }
    names.sort_unstable();
    assert_eq!(names, ["a-top", "m-middle", "z-base"]);
}

#[tokio::test]
async fn plugins_start_in_order_of_dependency_and_stop_in_the_reverse() {
    let core = chain_core().await;
    let operator = core.operator();
    let mut news = all_news(operator).await;
    let started = subjects(&mut news, "core.plugin.started", 3).await;
    assert_eq!(started, ["z-base", "m-middle", "a-top"]);
    let results = operator
        .plugin_manager()
        .stop_all(v1::PluginManagerStopAllRequest::default())
        .await
        .expect("stopped")
        .into_inner()
        .results;
    assert!(
        results.iter().all(|result| result.error.is_none()),
        "{results:?}"
    );
    let stopped = subjects(&mut news, "core.plugin.stopped", 3).await;
    assert_eq!(stopped, ["a-top", "m-middle", "z-base"]);
    let results = operator
        .plugin_manager()
        .start_all(v1::PluginManagerStartAllRequest::default())
        .await
        .expect("answered")
        .into_inner()
        .results;
    assert_all_started(&results);
    core.shutdown().await;
}

#[tokio::test]
async fn start_all_after_stop_all_starts_in_order_of_dependency_again() {
    let core = chain_core().await;
    let operator = core.operator();
    let mut manager = operator.plugin_manager();
    manager
        .stop_all(v1::PluginManagerStopAllRequest::default())
        .await
        .expect("stopped");
    let mut news = operator.subscribe(&["core.plugin.started"]).await;
    for name in ["a-top", "m-middle", "z-base"] {
        assert_eq!(operator.plugin(name).await.state(), PluginState::Stopped);
    }
    let results = manager
        .start_all(v1::PluginManagerStartAllRequest::default())
        .await
        .expect("answered")
        .into_inner()
        .results;
    assert_all_started(&results);
    for name in ["a-top", "m-middle", "z-base"] {
        let plugin = operator.plugin(name).await;
        assert_eq!((plugin.state(), plugin.restarts), (PluginState::Started, 0));
    }
    let started = subjects(&mut news, "core.plugin.started", 3).await;
    assert_eq!(started, ["z-base", "m-middle", "a-top"]);
    core.shutdown().await;
}

#[tokio::test]
async fn start_all_waits_for_no_absent_remote_plugin_and_leaves_the_unwanted_alone() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .plugin(Declared::process("unwanted", ECHO).by_hand())
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let all = v1::PluginManagerStartAllRequest::default();
    let mut manager = operator.plugin_manager();
    let results = within("it does not wait", manager.start_all(all))
        .await
        .expect("answered");
    for result in results.into_inner().results {
        let plugin = result.plugin.expect("a plugin");
        match plugin.name.as_str() {
            "child" => assert_eq!((plugin.state(), result.error), (PluginState::Started, None)),
            "lamp" => assert_eq!(plugin.phase, "connecting"),
            other => panic!("{other} was not concerned"),
        }
    }
    assert_eq!(operator.plugin("unwanted").await.phase, "idle");
    core.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_stops_dependents_first() {
    let core = chain_core().await;
    let mut news = core
        .operator()
        .another_connection()
        .subscribe(&["core.plugin.*"])
        .await;
    let reading = tokio::spawn(async move {
        let mut unloaded = Vec::new();
        loop {
            match news.next().await {
                Ok(core_tests::Heard::Event(event)) if event.topic == "core.plugin.unloaded" => {
                    unloaded.push(event.subject);
                }
                Ok(_) => {}
                Err(status) => return (unloaded, status),
            }
        }
    });
    core.shutdown().await;
    let (unloaded, end) = within("the subscription ends", reading)
        .await
        .expect("no panic");
    // The stream ends with the core, right after the last plugin, whose news it may not bring any more.
    assert!(unloaded.len() >= 2, "{unloaded:?}");
    assert!(
        ["a-top", "m-middle", "z-base"]
            .map(str::to_owned)
            .starts_with(&unloaded),
        "{unloaded:?}"
    );
    Told::by(&end).is(Code::Unavailable, "SHUTTING_DOWN");
}

#[tokio::test]
async fn a_circle_of_dependencies_is_refused_with_its_path_and_harms_no_other() {
    let core = TestCore::builder()
        .plugin(Declared::process("a", ECHO).requires(&["b"]))
        .plugin(Declared::process("b", ECHO).requires(&["c"]))
        .plugin(Declared::process("c", ECHO).requires(&["a"]))
        .plugin(Declared::process("free", ECHO))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("free", "ready").await;
    for name in ["a", "b", "c"] {
        let refused = operator.start(name).await.expect_err("a circle");
        let told = Told::by(&refused);
        told.is(Code::FailedPrecondition, "DEPENDENCY_CYCLE");
        for part in ["a", "b", "c"] {
            assert!(told.fact("path").contains(part), "{told:?}");
        }
        told.says(told.fact("path"));
        assert_eq!(operator.plugin(name).await.reason, "dependency_cycle");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn an_unknown_dependency_keeps_the_plugin_waiting_visibly() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).requires(&["nobody"]))
        .start()
        .await;
    let waiting = core
        .operator()
        .until_phase("child", "waiting_dependency")
        .await;
    assert_eq!(waiting.state(), PluginState::Unloaded);
    assert!(waiting.message.contains("nobody"), "{waiting:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn wrong_transitions_are_refused_by_name_and_right_ones_are_made() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).by_hand())
        .start()
        .await;
    let operator = core.operator();
    let refused = |status: tonic::Status, state: &str, request: &str| {
        let told = Told::by(&status);
        told.is(Code::FailedPrecondition, "WRONG_STATE")
            .says(state)
            .says(request)
            .says("child");
        assert_eq!((told.fact("state"), told.fact("request")), (state, request));
        assert!(!told.fact("allowed").is_empty());
    };
    assert_eq!(operator.plugin("child").await.phase, "idle");
    refused(
        operator.stop("child").await.expect_err("UNLOADED"),
        "UNLOADED",
        "stop",
    );
    let loaded = operator.load("child").await.expect("loaded");
    assert_eq!(
        (loaded.state(), loaded.phase.as_str()),
        (PluginState::Loaded, "idle")
    );
    operator.load("child").await.expect("it is so already");
    refused(
        operator.stop("child").await.expect_err("LOADED"),
        "LOADED",
        "stop",
    );
    let started = operator.start("child").await.expect("started");
    assert_eq!(
        (started.state(), started.generation),
        (PluginState::Started, loaded.generation)
    );
    operator.start("child").await.expect("it is so already");
    refused(
        operator.load("child").await.expect_err("STARTED"),
        "STARTED",
        "load",
    );
    let stopped = operator.stop("child").await.expect("stopped");
    assert_eq!(
        (stopped.state(), stopped.pid),
        (PluginState::Stopped, started.pid)
    );
    refused(
        operator.load("child").await.expect_err("STOPPED"),
        "STOPPED",
        "load",
    );
    operator.start("child").await.expect("started again");
    let unloaded = operator.unload("child").await.expect("unloaded");
    assert_eq!(
        (unloaded.state(), unloaded.phase.as_str()),
        (PluginState::Unloaded, "idle")
    );
    assert!(!core_tests::is_alive(started.pid));
    let request = v1::PluginManagerRestartRequest {
        name: "child".to_owned(),
    };
    let restarted = operator
        .plugin_manager()
        .restart(request)
        .await
        .expect("restarted");
    let restarted = restarted.into_inner().plugin.expect("a plugin");
    assert_eq!(restarted.state(), PluginState::Started);
    assert_eq!(restarted.generation, started.generation + 1);
    let unknown = operator.start("chidl").await.expect_err("no such plugin");
    Told::by(&unknown)
        .is(Code::NotFound, "NO_SUCH_PLUGIN")
        .says("did you mean \"child\"");
    core.shutdown().await;
}

#[tokio::test]
async fn hooks_run_in_order_and_services_answer_only_when_started() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let hello = Hello::with_hooks().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    let call = async || operator.call("lamp.on", serde_json::json!({})).await;
    let load = lamp.expect_hook(Hook::Load).await;
    assert!(load.timeout.is_some());
    Told::by(&call().await.expect_err("not STARTED")).is(Code::Unavailable, "NO_PROVIDER");
    lamp.hook_done(&load).await;
    let start = lamp.expect_hook(Hook::Start).await;
    assert!(start.hook_id > load.hook_id);
    // In LOADED it may use storage and state, publish and call.
    lamp.client()
        .store("lamp", "k", "1")
        .await
        .expect("written");
    lamp.client()
        .set_state("lamp.k", "1")
        .await
        .expect("written");
    lamp.client()
        .publish("lamp.k", serde_json::json!(1))
        .await
        .expect("published");
    lamp.hook_done(&start).await;
    operator.until_phase("lamp", "ready").await;
    let asked = operator.clone();
    let stopping = tokio::spawn(async move { asked.stop("lamp").await });
    let stop = lamp.expect_hook(Hook::Stop).await;
    lamp.hook_done(&stop).await;
    let stopped = within("stopped", stopping).await.unwrap().expect("stopped");
    assert_eq!(stopped.state(), PluginState::Stopped);
    lamp.client()
        .store("lamp", "k", "2")
        .await
        .expect("STOPPED is no bar to storage");
    let asked = operator.clone();
    let unloading = tokio::spawn(async move { asked.unload("lamp").await });
    lamp.expect_hook(Hook::Unload).await;
    lamp.close().await;
    within("unloaded", unloading)
        .await
        .unwrap()
        .expect("closing is answer enough");
    let refused = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect_err("not wanted");
    let told = Told::by(&refused);
    told.is(Code::Unavailable, "NOT_WANTED");
    assert!(told.retry, "{told:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn what_is_wanted_outlives_the_core() {
    let place = core_tests::Scratch::new();
    let data = place.path().join("data");
    let start = || {
        let data = data.clone();
        TestCore::builder()
            .sqlite()
            .configure(|config| config.data_dir = data)
            .plugin(Declared::process("child", ECHO))
            .plugin(Declared::process("other", ECHO))
            .start()
    };
    let core = start().await;
    for name in ["child", "other"] {
        core.operator().until_phase(name, "ready").await;
    }
    core.operator().unload("child").await.expect("unloaded");
    core.shutdown().await;
    let core = start().await;
    core.operator().until_phase("other", "ready").await;
    let child = core.operator().plugin("child").await;
    assert_eq!(
        (child.desired(), child.phase.as_str()),
        (PluginState::Unloaded, "idle")
    );
    assert_eq!(child.generation, 0);
    core.shutdown().await;
}

#[tokio::test]
async fn the_newest_request_wins_and_the_one_in_progress_is_told() {
    let core = TestCore::builder()
        .plugin(
            Declared::process("child", super::MISBEHAVING)
                .args(&["never-ends", "start"])
                .timeouts(|timeouts| timeouts.stop = Duration::from_millis(300))
                .by_hand(),
        )
        .start()
        .await;
    let operator = core.operator();
    let asked = operator.clone();
    let starting = tokio::spawn(async move { asked.start("child").await });
    operator.until_phase("child", "starting").await;
    operator.unload("child").await.expect("unloaded");
    let superseded = within("answered", starting)
        .await
        .unwrap()
        .expect_err("superseded");
    Told::by(&superseded).is(Code::Aborted, "SUPERSEDED");
    core.shutdown().await;
}

#[tokio::test]
async fn after_the_loss_of_a_dependency_each_does_as_declared_and_all_come_back() {
    let core = TestCore::builder()
        .plugin(Declared::process("base", ECHO))
        .plugin(
            Declared::process("restarts", ECHO)
                .requires(&["base"])
                .on_loss("base", OnLoss::Restart),
        )
        .plugin(
            Declared::process("stops", ECHO)
                .requires(&["base"])
                .on_loss("base", OnLoss::Stop),
        )
        .plugin(Declared::process("stays", ECHO).requires(&["base"]))
        .start()
        .await;
    let operator = core.operator();
    let mut before = Vec::new();
    for name in ["base", "restarts", "stops", "stays"] {
        before.push(operator.until_phase(name, "ready").await);
    }
    let mut news = operator.subscribe(&["core.plugin.stopped"]).await;
    core_tests::signal(before[0].pid, Signal::KILL);
    assert_eq!(subjects(&mut news, "core.plugin.stopped", 1).await.len(), 1);
    let again = operator.until("base", "ready again", |plugin| {
        plugin.phase == "ready" && plugin.generation == 2
    });
    again.await;
    operator
        .until("restarts", "another run", |plugin| {
            plugin.phase == "ready" && plugin.generation == 2
        })
        .await;
    let stops = operator.until_phase("stops", "ready").await;
    assert_eq!(
        (stops.generation, stops.pid),
        (1, before[2].pid),
        "its process stayed"
    );
    let stays = operator.plugin("stays").await;
    assert_eq!((stays.phase.as_str(), stays.pid), ("ready", before[3].pid));
    core.shutdown().await;
}

#[tokio::test]
async fn dependents_are_told_of_a_dependency_s_loss_and_return() {
    let core = TestCore::builder()
        .plugin(Declared::process("base", ECHO))
        .plugin(Declared::remote("lamp").requires(&["base"]))
        .start()
        .await;
    let operator = core.operator();
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    operator.until_phase("lamp", "ready").await;
    core_tests::signal(operator.plugin("base").await.pid, Signal::KILL);
    for available in [false, true] {
        loop {
            match lamp.next().await.expect("the channel goes on") {
                v1::core_message::Message::DependencyChanged(change) => {
                    assert_eq!(change.name, "base");
                    // The first news after Welcome may be that it is there.
                    if change.available == available {
                        break;
                    }
                    assert!(!available, "lost twice");
                }
                other => panic!("{other:?}"),
            }
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_whole_life_shows_each_step_to_a_watch_and_legal_pairs_only() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp").by_hand())
        .start()
        .await;
    let operator = core.operator();
    let seen =
        async |state: &str, phase: &str| core.witness().until_seen("lamp", state, phase).await;
    seen("UNLOADED", "idle").await;
    let asked = operator.clone();
    let loading = tokio::spawn(async move { asked.load("lamp").await });
    seen("UNLOADED", "connecting").await;
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::with_hooks())
        .await
        .expect("admitted");
    let load = lamp.expect_hook(Hook::Load).await;
    seen("UNLOADED", "loading").await;
    lamp.hook_done(&load).await;
    within("loaded", loading).await.unwrap().expect("loaded");
    seen("LOADED", "idle").await;
    let asked = operator.clone();
    let starting = tokio::spawn(async move { asked.start("lamp").await });
    let start = lamp.expect_hook(Hook::Start).await;
    seen("LOADED", "starting").await;
    lamp.hook_done(&start).await;
    within("started", starting).await.unwrap().expect("started");
    let unwell = v1::Health {
        status: v1::health::Status::Degraded.into(),
        text: "no answer from the gateway".to_owned(),
    };
    lamp.send(v1::plugin_message::Message::Health(unwell)).await;
    seen("STARTED", "degraded").await;
    let degraded = operator.plugin("lamp").await;
    assert_eq!(
        (degraded.reason.as_str(), degraded.message.as_str()),
        ("health", "no answer from the gateway")
    );
    let well = v1::Health {
        status: v1::health::Status::Ok.into(),
        text: String::new(),
    };
    lamp.send(v1::plugin_message::Message::Health(well)).await;
    seen("STARTED", "ready").await;
    let asked = operator.clone();
    let stopping = tokio::spawn(async move { asked.stop("lamp").await });
    let stop = lamp.expect_hook(Hook::Stop).await;
    seen("STARTED", "stopping").await;
    lamp.hook_done(&stop).await;
    within("stopped", stopping).await.unwrap().expect("stopped");
    seen("STOPPED", "idle").await;
    let asked = operator.clone();
    let unloading = tokio::spawn(async move { asked.unload("lamp").await });
    lamp.expect_hook(Hook::Unload).await;
    seen("STOPPED", "unloading").await;
    lamp.close().await;
    within("unloaded", unloading)
        .await
        .unwrap()
        .expect("unloaded");
    seen("UNLOADED", "idle").await;
    core.shutdown().await;
}
