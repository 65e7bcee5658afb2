//! What the core calls again when it loses a provider, with real providers.

use core_proto::v1::{self, ServiceRegistryCallRequest};
use core_tests::{
    Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, patience, within,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use super::ECHO;
use super::counters::counter;
use super::whole_path::in_flight;

type Answer = tokio::task::JoinHandle<Result<Value, Status>>;

fn begin(client: &Client, service: &str, arguments: Value, wait_for_ready: bool) -> Answer {
    let client = client.clone();
    let mut request = Request::new(ServiceRegistryCallRequest {
        service: service.to_owned(),
        arguments: arguments.to_string().into(),
        wait_for_ready,
        ..Default::default()
    });
    request.set_timeout(patience());
    tokio::spawn(async move { client.call_as(request).await })
}

/// Hello of `lamp`, a process that keeps its instance, with an idempotent service and one that is not.
fn lamp() -> Hello {
    let mut hello = Hello::ready()
        .services(&["lamp.set", "lamp.toggle"])
        .instance(vec![7; 16]);
    hello.0.services[0].idempotent = true;
    hello
}

#[tokio::test]
async fn an_idempotent_call_survives_the_death_of_its_provider_when_its_caller_waits() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    let before = operator.until_phase("child", "ready").await;
    // It answers only in another process than this one.
    let not_here = json!({ "pid": before.pid });
    let waits = begin(operator, "child.elsewhere", not_here.clone(), true);
    let does_not = begin(operator, "child.elsewhere", not_here, false);
    let not_idempotent = begin(operator, "child.wait", json!({ "millis": 3_600_000 }), true);
    eventually!(in_flight(operator, "child.elsewhere").await == 2);
    eventually!(in_flight(operator, "child.wait").await == 1);
    core_tests::signal(before.pid, Signal::KILL);
    for lost in [does_not, not_idempotent] {
        let status = within("answered", lost).await.unwrap().expect_err("lost");
        let told = Told::by(&status);
        told.is(Code::Unavailable, "PROVIDER_LOST");
        assert_eq!(told.outcome, "unknown");
    }
    let answer = within("answered", waits).await.unwrap();
    let after = operator.until_phase("child", "ready").await;
    assert_ne!(after.pid, before.pid);
    assert_eq!(answer.expect("by the next run"), json!(after.pid));
    // Both idempotent ones went back in line; one of them had not asked to wait there.
    assert_eq!(counter(operator, "calls_repeated_total").await, 2);
    core.shutdown().await;
}

#[tokio::test]
async fn a_call_goes_over_the_next_channel_of_the_same_process() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let mut first = RawPlugin::open(&core.remote("lamp"), lamp())
        .await
        .expect("admitted");
    operator.until_phase("lamp", "ready").await;
    let set = begin(operator, "lamp.set", json!({ "level": 3 }), false);
    let sent = first.expect_call().await;
    let toggle = begin(operator, "lamp.toggle", json!({}), false);
    first.expect_call().await;
    let run = first.welcome.run.clone();
    drop(first);
    let status = within("answered", toggle).await.unwrap().expect_err("lost");
    Told::by(&status).is(Code::Unavailable, "PROVIDER_LOST");
    let mut second = RawPlugin::open(&core.remote("lamp"), lamp())
        .await
        .expect("admitted");
    assert_eq!((second.welcome.resumed, &second.welcome.run), (true, &run));
    let again = second.expect_call().await;
    assert_eq!(
        (again.call_id, again.arguments),
        (sent.call_id, sent.arguments)
    );
    second.answer(again.call_id, json!("set")).await;
    let answer = within("answered", set).await.unwrap();
    assert_eq!(answer.expect("a result"), "set");
    core.shutdown().await;
}

#[tokio::test]
async fn a_call_that_kills_its_providers_is_sent_three_times_and_no_more() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let mut set = None;
    for _ in 0..3 {
        let mut lamp = RawPlugin::open(&core.remote("lamp"), lamp())
            .await
            .expect("admitted");
        operator.until_phase("lamp", "ready").await;
        set.get_or_insert_with(|| begin(operator, "lamp.set", json!({}), true));
        lamp.expect_call().await;
    }
    let status = within("answered", set.expect("begun")).await.unwrap();
    let told = Told::by(&status.expect_err("lost for good"));
    told.is(Code::Unavailable, "PROVIDER_LOST");
    assert_eq!(told.outcome, "unknown");
    core.shutdown().await;
}

#[tokio::test]
async fn counters_of_a_raw_plugin_s_service_are_kept_by_the_core() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let mut raw = RawPlugin::open(&core.remote("lamp"), lamp())
        .await
        .expect("admitted");
    operator.until_phase("lamp", "ready").await;
    for number in 0..3 {
        let call = begin(operator, "lamp.set", json!({}), false);
        let arrived = raw.expect_call().await;
        if number < 2 {
            raw.answer(arrived.call_id, json!(1)).await;
            within("answered", call).await.unwrap().expect("a result");
        } else {
            let error = core_proto::google::rpc::Status {
                code: 5,
                ..Default::default()
            };
            let response = v1::CallResponse {
                call_id: arrived.call_id,
                error: Some(error),
                ..Default::default()
            };
            raw.send(v1::plugin_message::Message::CallResponse(response))
                .await;
            within("answered", call)
                .await
                .unwrap()
                .expect_err("refused");
        }
    }
    let under_way = begin(operator, "lamp.set", json!({}), false);
    raw.expect_call().await;
    let request = v1::ServiceRegistryDescribeRequest {
        name: "lamp.set".to_owned(),
    };
    let described = operator.service_registry().describe(request).await;
    let service = described.expect("known").into_inner().service.expect("one");
    let stats = service.stats.expect("counters");
    assert_eq!((stats.calls, stats.errors, stats.in_flight), (3, 1, 1));
    let in_buckets: u64 = stats.latency.iter().map(|bucket| bucket.calls).sum();
    assert_eq!(in_buckets, 3, "{stats:?}");
    assert!(stats.latency.iter().all(|bucket| bucket.calls > 0));
    under_way.abort();
    core.shutdown().await;
}
