//! Calls across plugins: every way in which one can end.

use std::time::Duration;

use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, ServiceRegistryCallRequest, ServiceRegistryCallResponse};
use core_tests::{
    Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, patience, within,
};
use serde_json::json;
use tonic::{Code, Request};

use super::whole_path::in_flight;
use super::{ECHO, MISBEHAVING};

/// A core and a raw provider of `lamp.on`, started.
async fn lamp() -> (TestCore, RawPlugin) {
    lamp_with(Hello::ready().services(&["lamp.on"])).await
}

async fn lamp_with(hello: Hello) -> (TestCore, RawPlugin) {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    (core, lamp)
}

fn begin_call(
    client: &Client,
    service: &str,
) -> tokio::task::JoinHandle<Result<serde_json::Value, tonic::Status>> {
    let (client, service) = (client.clone(), service.to_owned());
    tokio::spawn(async move { client.call(&service, json!({ "a": 1 })).await })
}

#[tokio::test]
async fn a_call_arrives_with_the_caller_s_name_the_time_left_and_its_bytes() {
    let (core, mut lamp) = lamp().await;
    let mut request = Request::new(ServiceRegistryCallRequest {
        service: "lamp.on".to_owned(),
        content_type: "application/x-own".to_owned(),
        arguments: vec![0, 159, 146, 150].into(),
        wait_for_ready: false,
    });
    request.set_timeout(Duration::from_secs(7));
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.service_registry().call(request).await });
    let arrived = lamp.expect_call().await;
    assert_eq!(
        (arrived.service.as_str(), arrived.caller.as_str()),
        ("lamp.on", "operator")
    );
    assert_eq!((arrived.depth, arrived.cause.as_str()), (1, ""));
    assert_eq!(arrived.content_type, "application/x-own");
    assert_eq!(&arrived.arguments[..], [0, 159, 146, 150]);
    let left = arrived.timeout.expect("always a deadline");
    assert!((1..=7).contains(&left.seconds), "{left:?}");
    let response = v1::CallResponse {
        call_id: arrived.call_id,
        content_type: "application/y-own".to_owned(),
        result: vec![255, 0].into(),
        error: None,
    };
    lamp.send(ToCore::CallResponse(response)).await;
    let answer = within("answered", call)
        .await
        .unwrap()
        .expect("a result")
        .into_inner();
    assert_eq!(answer.content_type, "application/y-own");
    assert_eq!(&answer.result[..], [255, 0]);
    core.shutdown().await;
}

#[tokio::test]
async fn the_application_s_error_reaches_the_caller_verbatim() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    let status = operator
        .call("child.refuse", json!({}))
        .await
        .expect_err("it says no");
    let told = Told::by(&status);
    assert!(told.from_provider);
    told.is(Code::NotFound, "NO_SUCH_LAMP")
        .says("no lamp of this name");
    assert_eq!(told.fact("lamp"), "attic");

    let status = operator
        .call("child.panic", json!({}))
        .await
        .expect_err("it panics");
    let told = Told::by(&status);
    assert_eq!(told.code, Code::Internal);
    assert!(!told.message.contains("secret"), "{told:?}");
    let answer = operator.call("child.say", json!({ "text": "well" })).await;
    assert_eq!(
        answer.expect("a panic stays in its handler")["text"],
        "well"
    );

    let status = operator
        .call("child.say", json!({ "txet": "?" }))
        .await
        .expect_err("bad arguments");
    let told = Told::by(&status);
    assert!(told.from_provider);
    assert_eq!(told.code, Code::InvalidArgument);
    core.shutdown().await;
}

#[tokio::test]
async fn a_call_made_in_a_handler_names_its_cause_and_its_depth() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).may_call("lamp.on"))
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    for name in ["child", "lamp"] {
        core.operator().until_phase(name, "ready").await;
    }
    let operator = core.operator().clone();
    let relay = json!({ "service": "lamp.on", "arguments": { "level": 3 } });
    let call = tokio::spawn(async move { operator.call("child.relay", relay).await });
    let arrived = lamp.expect_call().await;
    assert_eq!((arrived.caller.as_str(), arrived.depth), ("child", 2));
    assert!(arrived.cause.starts_with("call/"), "{:?}", arrived.cause);
    let left = arrived.timeout.expect("always a deadline").seconds;
    assert!(left <= 10, "no more than the outer call has left: {left} s");
    // What it publishes while handling the call names that call.
    let mut heard = core.operator().subscribe(&["lamp.>"]).await;
    let parent = format!("call/{}", arrived.call_id);
    let handling = lamp.client().presenting("core-parent", &parent);
    handling
        .publish("lamp.changed", json!(3))
        .await
        .expect("published");
    assert_eq!(heard.event().await.cause, parent);
    lamp.answer(arrived.call_id, json!("on")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "on");
    core.shutdown().await;
}

#[tokio::test]
async fn one_slow_call_blocks_no_other_on_the_same_channel() {
    let (core, mut lamp) = lamp().await;
    let slow = begin_call(core.operator(), "lamp.on");
    let slow_id = lamp.expect_call().await.call_id;
    for number in 0..20 {
        let quick = begin_call(core.operator(), "lamp.on");
        let call = lamp.expect_call().await;
        lamp.answer(call.call_id, json!(number)).await;
        assert_eq!(
            within("answered", quick).await.unwrap().unwrap(),
            json!(number)
        );
    }
    lamp.answer(slow_id, json!("at last")).await;
    assert_eq!(
        within("answered", slow).await.unwrap().unwrap(),
        json!("at last")
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_provider_is_told() {
    let (core, mut lamp) = lamp().await;
    let request = ServiceRegistryCallRequest {
        service: "lamp.on".to_owned(),
        ..Default::default()
    };
    let request = v1::Request {
        request_id: 1,
        method: "ServiceRegistry/Call".to_owned(),
        message: prost::Message::encode_to_vec(&request).into(),
        timeout: Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
        ..Default::default()
    };
    // A plugin may call itself; so the test sees the error as the core made it, not its own client's.
    lamp.send(ToCore::Request(request)).await;
    let call = lamp.expect_call().await;
    let mut cancelled = false;
    let mut answered = None;
    while !cancelled || answered.is_none() {
        match lamp.next().await.expect("the channel goes on") {
            FromCore::CallCancel(cancel) => cancelled = cancel.call_id == call.call_id,
            FromCore::Response(response) => answered = response.error,
            other => panic!("{other:?}"),
        }
    }
    let error = answered.expect("an error");
    assert_eq!(error.code, i32::from(Code::DeadlineExceeded));
    // A late answer is dropped and harms nobody.
    lamp.answer(call.call_id, json!("late")).await;
    let next = begin_call(core.operator(), "lamp.on");
    let call = lamp.expect_call().await;
    lamp.answer(call.call_id, json!("fine")).await;
    assert_eq!(
        within("answered", next).await.unwrap().unwrap(),
        json!("fine")
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_is_told_to_the_provider() {
    let (core, mut lamp) = lamp().await;
    let call = begin_call(core.operator(), "lamp.on");
    let arrived = lamp.expect_call().await;
    call.abort();
    match lamp.next().await.expect("the channel goes on") {
        FromCore::CallCancel(cancel) => assert_eq!(cancel.call_id, arrived.call_id),
        other => panic!("{other:?}"),
    }
    lamp.answer(arrived.call_id, json!(null)).await;
    let operator = core.operator();
    eventually!(in_flight(operator, "lamp.on").await == 0);
    core.shutdown().await;
}

#[tokio::test]
async fn a_withdrawn_request_is_cancelled_at_the_provider_and_still_answered() {
    let (core, mut lamp) = lamp().await;
    let call = ServiceRegistryCallRequest {
        service: "lamp.on".to_owned(),
        ..Default::default()
    };
    let request_id = lamp.send_request("ServiceRegistry/Call", &call).await;
    let arrived = lamp.expect_call().await;
    lamp.send(ToCore::RequestCancel(v1::RequestCancel { request_id }))
        .await;
    let error = lamp.response(request_id).await.error.expect("cancelled");
    assert_eq!(error.code, i32::from(Code::Cancelled));
    match lamp.next().await.expect("the channel goes on") {
        FromCore::CallCancel(cancel) => assert_eq!(cancel.call_id, arrived.call_id),
        other => panic!("{other:?}"),
    }
    lamp.answer(arrived.call_id, json!(null)).await;
    core.shutdown().await;
}

#[tokio::test]
async fn second_late_and_foreign_answers_are_dropped() {
    let (core, mut lamp) = lamp().await;
    lamp.answer(4_711, json!("to nobody")).await;
    let call = begin_call(core.operator(), "lamp.on");
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("first")).await;
    lamp.answer(arrived.call_id, json!("second")).await;
    assert_eq!(
        within("answered", call).await.unwrap().unwrap(),
        json!("first")
    );
    let call = begin_call(core.operator(), "lamp.on");
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("another")).await;
    assert_eq!(
        within("answered", call).await.unwrap().unwrap(),
        json!("another")
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_provider_without_places_makes_callers_wait_and_then_refuses_them() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .configure(|config| config.limits.calls_waiting = 2)
        .start()
        .await;
    let mut hello = Hello::ready().services(&["lamp.on"]);
    hello.0.max_calls_in_flight = 1;
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let calls: Vec<_> = (0..4)
        .map(|_| begin_call(core.operator(), "lamp.on"))
        .collect();
    let mut ends = Vec::new();
    let (told, mut ended) = tokio::sync::mpsc::channel(4);
    for call in calls {
        let told = told.clone();
        ends.push(tokio::spawn(
            async move { told.send(call.await.unwrap()).await },
        ));
    }
    let refused = within("one too many", ended.recv())
        .await
        .unwrap()
        .expect_err("refused");
    let busy = Told::by(&refused);
    busy.is(Code::ResourceExhausted, "PROVIDER_BUSY");
    assert_eq!((busy.retry, busy.outcome.as_str()), (true, "not_applied"));
    for number in 0..3 {
        let call = lamp.expect_call().await;
        lamp.answer(call.call_id, json!(number)).await;
        assert_eq!(
            within("answered", ended.recv()).await.unwrap().unwrap(),
            json!(number)
        );
    }
    core.shutdown().await;
}

#[tokio::test]
async fn the_callers_of_a_lost_channel_are_answered() {
    let (core, mut lamp) = lamp().await;
    let call = begin_call(core.operator(), "lamp.on");
    lamp.expect_call().await;
    drop(lamp);
    let status = within("answered", call).await.unwrap().expect_err("lost");
    let told = Told::by(&status);
    told.is(Code::Unavailable, "PROVIDER_LOST");
    assert_eq!(told.outcome, "unknown");
    core.shutdown().await;
}

#[tokio::test]
async fn a_provider_that_crashes_in_a_call_answers_its_caller_by_that() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", MISBEHAVING).args(&["crashes-on-call"]))
        .start()
        .await;
    core.operator().until_phase("child", "ready").await;
    let status = core
        .operator()
        .call("child.crash", json!({}))
        .await
        .expect_err("it crashes");
    Told::by(&status).is(Code::Unavailable, "PROVIDER_LOST");
    let again = core.operator().until("child", "ready again", |plugin| {
        plugin.generation == 2 && plugin.phase == "ready"
    });
    assert_eq!(again.await.last_exit.expect("an exit").signal, Some(6));
    core.shutdown().await;
}

#[tokio::test]
async fn a_known_service_whose_provider_is_not_started_is_unavailable_until_it_is() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    operator.stop("child").await.expect("stopped");
    let status = operator
        .call("child.say", json!({ "text": "?" }))
        .await
        .expect_err("stopped");
    let told = Told::by(&status);
    told.is(Code::Unavailable, "NO_PROVIDER");
    assert_eq!(told.outcome, "not_applied");
    let mut waiting = Request::new(ServiceRegistryCallRequest {
        service: "child.say".to_owned(),
        arguments: json!({ "text": "waited" }).to_string().into(),
        wait_for_ready: true,
        ..Default::default()
    });
    waiting.set_timeout(patience());
    let caller = operator.clone();
    let waiting = tokio::spawn(async move { caller.call_as(waiting).await });
    operator.start("child").await.expect("started");
    let answer = within("answered", waiting)
        .await
        .unwrap()
        .expect("answered after the start");
    assert_eq!(answer["text"], "waited");
    core.shutdown().await;
}

#[tokio::test]
async fn calls_that_go_round_in_a_circle_are_stopped_at_the_depth_limit() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).may_call("child.>"))
        .start()
        .await;
    core.operator().until_phase("child", "ready").await;
    // relay(relay(relay(… say))): each level is one nested call.
    let nested = |levels: usize| {
        let mut arguments = json!({ "text": "deep" });
        let mut service = "child.say";
        for _ in 0..levels {
            arguments = json!({ "service": service, "arguments": arguments });
            service = "child.relay";
        }
        (service, arguments)
    };
    let (service, arguments) = nested(15);
    let answer = core
        .operator()
        .call(service, arguments)
        .await
        .expect("16 levels are allowed");
    assert_eq!(answer["text"], "deep");
    let (service, arguments) = nested(16);
    let status = core
        .operator()
        .call(service, arguments)
        .await
        .expect_err("one too deep");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn a_thousand_requests_on_one_channel_are_each_answered_once() {
    let (core, mut lamp) = lamp().await;
    let mut requests = Vec::new();
    for number in 0..1_000_u32 {
        let call = ServiceRegistryCallRequest {
            service: "lamp.on".to_owned(),
            arguments: number.to_string().into(),
            ..Default::default()
        };
        requests.push(lamp.send_request("ServiceRegistry/Call", &call).await);
    }
    let mut answered = vec![false; requests.len()];
    let mut left = requests.len();
    while left > 0 {
        match lamp.next().await.expect("the channel goes on") {
            FromCore::CallRequest(call) => {
                let number: u32 = serde_json::from_slice(&call.arguments).unwrap();
                lamp.answer(call.call_id, json!(number + 1)).await;
            }
            FromCore::Response(response) => {
                assert_eq!(response.error, None);
                let number = requests
                    .iter()
                    .position(|id| *id == response.request_id)
                    .unwrap();
                assert!(
                    !std::mem::replace(&mut answered[number], true),
                    "answered twice"
                );
                let answer: ServiceRegistryCallResponse =
                    prost::Message::decode(response.message).unwrap();
                assert_eq!(answer.result, (number + 1).to_string());
                left -= 1;
            }
            other => panic!("{other:?}"),
        }
    }
    core.shutdown().await;
}
