//! Who may do what: credentials, the two sockets, a plugin's own area.

use core_proto::v1::{self, IntrospectionGetInfoRequest};
use core_tests::{Client, Declared, Hello, RawPlugin, TestCore, Told};
use serde_json::json;
use tonic::Code;

use super::MISBEHAVING;

#[tokio::test]
async fn a_child_that_drops_its_token_is_nobody_and_the_operator_socket_is_closed_to_it() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", MISBEHAVING).args(&["drops-its-token"]))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    let findings = operator
        .call("child.findings", json!({}))
        .await
        .expect("answered");
    let expected = json!({
        "without_token": "Unauthenticated BAD_CREDENTIAL",
        "wrong_token": "Unauthenticated BAD_CREDENTIAL",
        "as_operator": "PermissionDenied NOT_ALLOWED",
        "as_operator_from_a_grandchild_with_a_cleared_environment":
            "PermissionDenied NOT_ALLOWED",
    });
    assert_eq!(findings, expected);
    core.shutdown().await;
}

#[tokio::test]
async fn a_second_claimant_of_a_run_is_refused_and_the_first_unharmed() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", MISBEHAVING).args(&["claims-twice"]))
        .start()
        .await;
    core.operator().until_phase("child", "ready").await;
    let verdict = core
        .operator()
        .call("child.verdict", json!({}))
        .await
        .expect("the first answers");
    assert_eq!(verdict, "AlreadyExists ALREADY_CONNECTED");
    core.shutdown().await;
}

#[tokio::test]
async fn a_child_starts_with_a_cleared_environment_in_a_session_of_its_own() {
    let core = TestCore::builder()
        .plugin(
            Declared::process("child", MISBEHAVING)
                .args(&["environment"])
                .env("OWN", "value"),
        )
        .start()
        .await;
    core.operator().until_phase("child", "ready").await;
    let report = core
        .operator()
        .call("child.report", json!({}))
        .await
        .expect("answered");
    let variables = report["variables"].as_object().expect("an object");
    let allowed = [
        "PATH",
        "LANG",
        "TZ",
        "HOME",
        "OWN",
        "CORE_ADDR",
        "CORE_TOKEN",
        "CORE_PLUGIN",
        "CORE_COOKIE",
    ];
    for name in variables.keys() {
        assert!(allowed.contains(&name.as_str()), "{name} was passed on");
    }
    assert_eq!(variables["OWN"], "value");
    assert_eq!(variables["CORE_PLUGIN"], "child");
    assert_eq!(report["group"], report["pid"]);
    assert_eq!(report["session"], report["pid"]);
    assert_eq!(report["umask"], "077");
    let directory = core.directory().join("data/plugins/child");
    assert_eq!(report["directory"], directory.to_str().expect("UTF-8"));
    let inherited: Vec<_> = report["descriptors"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|target| **target != "/dev/null")
        .collect();
    assert!(
        inherited.is_empty(),
        "descriptors of the core: {inherited:?}"
    );
    // What runs inside a plugin's process says nothing of its token to others.
    let token = variables["CORE_TOKEN"].as_str().expect("text");
    assert!(!core.log().contains(token), "the token stands in the log");
    core.shutdown().await;
}

#[tokio::test]
async fn the_token_of_a_dead_run_is_worth_nothing() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", MISBEHAVING).args(&["environment"]))
        .start()
        .await;
    let operator = core.operator();
    let pid = operator.until_phase("child", "ready").await.pid;
    let report = operator
        .call("child.report", json!({}))
        .await
        .expect("answered");
    let token = report["variables"]["CORE_TOKEN"]
        .as_str()
        .expect("text")
        .to_owned();
    let thief = core.anonymous().with_token(&token);
    let info = async || {
        thief
            .introspection()
            .get_info(IntrospectionGetInfoRequest::default())
            .await
    };
    info().await.expect("valid while the run lives");
    core_tests::signal(pid, rustix::process::Signal::KILL);
    operator
        .until("child", "another run", |plugin| plugin.generation == 2)
        .await;
    Told::by(&info().await.expect_err("revoked")).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    core.shutdown().await;
}

#[tokio::test]
async fn without_a_credential_only_health_answers() {
    let core = TestCore::builder().tcp().start().await;
    for anybody in [core.anonymous(), Client::new(core.tcp_address())] {
        let health = tonic_health::pb::HealthCheckRequest::default();
        anybody
            .health()
            .check(health)
            .await
            .expect("open to anybody");
        let refused = anybody.publish("a.b", json!(1)).await.expect_err("nobody");
        Told::by(&refused)
            .is(Code::Unauthenticated, "BAD_CREDENTIAL")
            .says("CORE_TOKEN");
        let refused = anybody.start("a").await.expect_err("nobody");
        Told::by(&refused).is(Code::Unauthenticated, "BAD_CREDENTIAL");
        let wrong = anybody.with_token("not-a-token-of-this-core");
        let refused = wrong.publish("a.b", json!(1)).await.expect_err("nobody");
        Told::by(&refused).is(Code::Unauthenticated, "BAD_CREDENTIAL");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_may_not_do_an_operator_s_work_nor_an_operator_a_plugin_s() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("door"))
        .start()
        .await;
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let plugin = lamp.client();
    for refused in [
        plugin.start("lamp").await.map(drop),
        plugin.stop("lamp").await.map(drop),
        plugin
            .introspection()
            .get_stats(v1::IntrospectionGetStatsRequest::default())
            .await
            .map(drop),
    ] {
        let told = Told::by(&refused.expect_err("not granted"));
        told.is(Code::PermissionDenied, "NOT_GRANTED")
            .says("manage");
    }
    let request = v1::PluginManagerReloadRequest::default();
    let refused = plugin.plugin_manager().reload(request).await;
    Told::by(&refused.expect_err("an operator's"))
        .is(Code::PermissionDenied, "NOT_ALLOWED")
        .says("operator socket");
    assert_eq!(
        plugin.plugin("lamp").await.name,
        "lamp",
        "itself it may see"
    );
    let request = v1::PluginManagerGetRequest {
        name: "door".to_owned(),
    };
    let other = plugin
        .plugin_manager()
        .get(request.clone())
        .await
        .expect_err("another");
    assert_eq!(other.code(), Code::PermissionDenied, "{other:?}");
    // The same over the channel: one table for both ways.
    let error = lamp
        .request::<v1::PluginManagerGetResponse>("PluginManager/Stop", &request)
        .await;
    let code = Code::from_i32(error.expect_err("refused").code);
    assert!(
        matches!(code, Code::PermissionDenied | Code::Unimplemented),
        "{code:?}"
    );

    let refused = RawPlugin::open(core.operator(), Hello::ready())
        .await
        .expect_err("no plugin");
    Told::by(&refused).is(Code::PermissionDenied, "NOT_ALLOWED");
    let register = v1::ServiceRegistryRegisterRequest {
        service: Some(v1::ServiceDescription {
            name: "a.b".to_owned(),
            ..Default::default()
        }),
    };
    let refused = core.operator().service_registry().register(register).await;
    Told::by(&refused.expect_err("no plugin")).is(Code::PermissionDenied, "NOT_ALLOWED");
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_s_own_area_is_free_and_everything_else_needs_a_grant() {
    let granted = Declared::remote("lamp")
        .may_publish("scene.>")
        .may_subscribe("scene.>")
        .may_call("door.open");
    let core = TestCore::builder()
        .plugin(granted)
        .plugin(Declared::remote("door"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let services = Hello::ready().services(&["door.open", "door.close"]);
    let mut door = RawPlugin::open(&core.remote("door"), services)
        .await
        .expect("admitted");
    for name in ["lamp", "door"] {
        core.operator().until_phase(name, "ready").await;
    }
    let plugin = lamp.client();
    plugin
        .publish("lamp.changed", json!(1))
        .await
        .expect("its own");
    plugin
        .publish("scene.evening", json!(1))
        .await
        .expect("granted");
    plugin.set_state("lamp.on", "1").await.expect("its own");
    plugin.store("lamp", "k", "1").await.expect("its own");
    plugin.store("lamp.cache", "k", "1").await.expect("its own");
    plugin
        .subscribe(&["lamp.>", "scene.*", "core.plugin.>"])
        .await;
    let subscribe = |pattern: &str| v1::EventBusSubscribeRequest {
        patterns: vec![pattern.to_owned()],
        ..Default::default()
    };
    let denied = [
        (
            "door.opened",
            plugin.publish("door.opened", json!(1)).await.map(drop),
        ),
        (
            "lampshade.on",
            plugin.publish("lampshade.on", json!(1)).await.map(drop),
        ),
        (
            "door.open",
            plugin.set_state("door.open", "1").await.map(drop),
        ),
        ("door", plugin.store("door", "k", "1").await.map(drop)),
        ("door", plugin.stored("door", "k").await.map(drop)),
        (
            "door.close",
            plugin.call("door.close", json!({})).await.map(drop),
        ),
        // Overlapping what is granted is not enough.
        (">", plugin.subscribe_as(subscribe(">")).await.map(drop)),
        (
            "*.changed",
            plugin.subscribe_as(subscribe("*.changed")).await.map(drop),
        ),
    ];
    for (resource, denied) in denied {
        let told = Told::by(&denied.expect_err(resource));
        told.is(Code::PermissionDenied, "NOT_GRANTED");
        assert_eq!(
            (told.fact("resource"), told.fact("plugin")),
            (resource, "lamp"),
            "{told:?}"
        );
    }
    // What is the core's own cannot be granted to anybody.
    let denied = plugin.publish("core.plugin.started", json!(1)).await;
    let told = Told::by(&denied.expect_err("the core's own"));
    told.is(Code::PermissionDenied, "NOT_GRANTED");
    assert_eq!(told.fact("resource"), "core.plugin.started");
    let call = tokio::spawn(async move { plugin.call("door.open", json!({})).await });
    let arrived = door.expect_call().await;
    assert_eq!(arrived.caller, "lamp", "stamped by the core");
    door.answer(arrived.call_id, json!("opened")).await;
    assert_eq!(call.await.unwrap().expect("granted"), "opened");
    core.shutdown().await;
}

#[tokio::test]
async fn every_denial_is_counted() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let counted = async || {
        let request = v1::IntrospectionGetStatsRequest::default();
        let stats = core
            .operator()
            .introspection()
            .get_stats(request)
            .await
            .expect("stats");
        let mut counters = std::collections::BTreeMap::new();
        for metric in stats.into_inner().metrics {
            if let Some(v1::metric::Value::Counter(value)) = metric.value {
                counters.insert(metric.name, value);
            }
        }
        let sum = |part: &str| -> u64 {
            counters
                .iter()
                .filter(|(name, _)| name.contains(part))
                .map(|(_, value)| value)
                .sum()
        };
        (sum("unauthenticated"), sum("denied"))
    };
    let before = counted().await;
    core.anonymous()
        .publish("a.b", json!(1))
        .await
        .expect_err("nobody");
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    lamp.client()
        .publish("door.b", json!(1))
        .await
        .expect_err("not granted");
    let after = counted().await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1));
    core.shutdown().await;
}
