//! The whole path with real processes: plugins of all three kinds, calling and hearing each other.

use core_proto::v1::ServiceRegistryCallRequest;
use core_tests::{Client, Declared, Outsider, TestCore, eventually, patience, plugins};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Request};

use super::ECHO;

const NAMES: [&str; 3] = ["child", "remote", "inside"];

fn sociable(plugin: Declared) -> Declared {
    let plugin = plugin.may_publish("scene.>").hears_scenes();
    NAMES
        .iter()
        .fold(plugin, |plugin, name| plugin.may_call(&format!("{name}.>")))
}

/// A child process, a process elsewhere over TCP, and a plugin inside the core, all started.
async fn home() -> (TestCore, Outsider) {
    let core = TestCore::builder()
        .tcp()
        .plugin(sociable(Declared::process("child", ECHO)))
        .plugin(sociable(Declared::remote("remote")))
        .plugin(sociable(Declared::embedded("inside")))
        .embed(plugins::echo("inside"))
        .start()
        .await;
    let address = core.tcp_address().into();
    let remote = Outsider::start(ECHO, &address, core.token("remote"), "remote");
    for name in NAMES {
        core.operator().until_phase(name, "ready").await;
    }
    (core, remote)
}

async fn heard(operator: &Client, plugin: &str) -> Vec<String> {
    let service = format!("{plugin}.heard");
    let notes = operator
        .call(&service, json!({}))
        .await
        .expect("it answers");
    let notes = notes.as_array().expect("a list").iter();
    let mut sources: Vec<_> = notes
        .map(|note| {
            assert_eq!(
                note["topic"],
                format!("scene.{}", note["source"].as_str().expect("a name"))
            );
            note["data"]["from"].as_str().expect("a name").to_owned()
        })
        .collect();
    sources.sort();
    sources
}

#[tokio::test]
async fn plugins_of_all_three_kinds_call_each_other_and_hear_each_other() {
    let (core, remote) = home().await;
    let operator = core.operator();
    for caller in NAMES {
        for provider in NAMES {
            let relay = json!({
                "service": format!("{provider}.say"),
                "arguments": { "text": format!("{caller} to {provider}") },
            });
            let answer = operator.call(&format!("{caller}.relay"), relay).await;
            let expected = json!({
                "plugin": provider,
                "caller": caller,
                "text": format!("{caller} to {provider}"),
            });
            assert_eq!(answer.expect("answered"), expected);
        }
    }
    for name in NAMES {
        let event = json!({ "topic": format!("scene.{name}"), "data": { "from": name } });
        operator
            .call(&format!("{name}.emit"), event)
            .await
            .expect("published");
    }
    for name in NAMES {
        eventually!(heard(operator, name).await == ["child", "inside", "remote"]);
    }
    core.shutdown().await;
    // It is nobody's child: it waits for a core to come back.
    assert!(core_tests::is_alive(remote.pid()));
}

#[tokio::test]
async fn a_thousand_concurrent_calls_are_answered_right() {
    let (core, _remote) = home().await;
    let operator = core.operator();
    let calls: Vec<_> = (0..1_000)
        .map(|number| {
            let operator = operator.clone();
            let plugin = NAMES[number % NAMES.len()];
            tokio::spawn(async move {
                let text = format!("call {number}");
                let answer = operator
                    .call(&format!("{plugin}.say"), json!({ "text": text }))
                    .await;
                let answer = answer.unwrap_or_else(|status| panic!("{text}: {status:?}"));
                assert_eq!(
                    answer,
                    json!({ "plugin": plugin, "caller": "operator", "text": text })
                );
            })
        })
        .collect();
    for call in calls {
        core_tests::within("a call ends", call)
            .await
            .expect("answered right");
    }
    core.shutdown().await;
}

/// A call that its provider has and does not answer for a minute.
pub(crate) async fn long_call(
    operator: &Client,
    plugin: &str,
) -> tokio::task::JoinHandle<Result<Value, tonic::Status>> {
    let service = format!("{plugin}.wait");
    let mut request = Request::new(ServiceRegistryCallRequest {
        service: service.clone(),
        arguments: json!({ "millis": 60_000 }).to_string().into(),
        ..Default::default()
    });
    request.set_timeout(patience());
    let caller = operator.clone();
    let call = tokio::spawn(async move { caller.call_as(request).await });
    eventually!(in_flight(operator, &service).await == 1);
    call
}

/// Calls of a service that are at its provider now.
pub(crate) async fn in_flight(operator: &Client, service: &str) -> u64 {
    let name = service.to_owned();
    let request = core_proto::v1::ServiceRegistryDescribeRequest { name };
    let answer = operator.service_registry().describe(request).await;
    let service = answer.expect("a known service").into_inner().service;
    service
        .and_then(|service| service.stats)
        .expect("counters")
        .in_flight
}

#[tokio::test]
async fn killing_a_provider_answers_its_callers_and_it_is_callable_again_unaided() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    let before = operator.until_phase("child", "ready").await;
    let call = long_call(operator, "child").await;
    core_tests::signal(before.pid, Signal::KILL);
    let status = core_tests::within("the caller is answered", call)
        .await
        .expect("no panic");
    let told = core_tests::Told::by(&status.expect_err("the provider died"));
    told.is(Code::Unavailable, "PROVIDER_LOST");
    assert_eq!(told.outcome, "unknown");

    // Nobody does anything: a caller who is ready to wait gets its answer.
    let request = ServiceRegistryCallRequest {
        service: "child.say".to_owned(),
        arguments: json!({ "text": "again" }).to_string().into(),
        wait_for_ready: true,
        ..Default::default()
    };
    let mut request = Request::new(request);
    request.set_timeout(patience());
    let answer = operator
        .call_as(request)
        .await
        .expect("answered by the next run");
    assert_eq!(answer["text"], "again");
    let after = operator.until_phase("child", "ready").await;
    assert_eq!(
        (after.generation, after.restarts),
        (before.generation + 1, 1)
    );
    assert_ne!(after.pid, before.pid);
    let exit = after.last_exit.expect("how the first run ended");
    assert_eq!(
        (exit.signal, exit.code, exit.forced),
        (Some(9), None, false)
    );
    core.shutdown().await;
}
