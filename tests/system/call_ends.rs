//! The table of codes (`docs/concepts/calls.md`), row by row and from outside: what a caller is told, as a
//! unary RPC and as a frame, which must be the same.

use core_proto::google::rpc;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::{self, ServiceRegistryCallRequest, response};
use core_server::config::Quota;
use core_tests::{Client, Declared, Hello, RawPlugin, TestCore, Told, eventually, within};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Status};

use super::counters::counter;

/// What the table says of a row.
#[derive(Debug, PartialEq, Eq)]
struct End {
    code: Code,
    reason: String,
    outcome: String,
    /// "true", "false", or empty where nobody asks.
    dispatched: String,
    retry: bool,
    from_provider: bool,
    message: String,
}

impl End {
    /// As the unary caller sees it; the plain trailers are compared with the details by `Told`.
    fn unary(status: &Status) -> Self {
        let told = Told::by(status);
        Self {
            code: told.code,
            reason: told.reason.clone(),
            outcome: told.outcome.clone(),
            dispatched: told.fact("dispatched").to_owned(),
            retry: told.retry,
            from_provider: told.from_provider,
            message: told.message,
        }
    }

    fn frame(response: v1::Response) -> Self {
        let from_provider = response.origin() == response::Origin::Provider;
        let error = response.error.expect("an error");
        let (mut info, mut retry) = (rpc::ErrorInfo::default(), false);
        for detail in &error.details {
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    info = rpc::ErrorInfo::decode(detail.value.as_slice()).expect("an ErrorInfo");
                }
                Some("google.rpc.RetryInfo") => retry = true,
                _ => {}
            }
        }
        let fact = |name: &str| info.metadata.get(name).cloned().unwrap_or_default();
        Self {
            code: Code::from_i32(error.code),
            outcome: fact("outcome"),
            dispatched: fact("dispatched"),
            reason: info.reason,
            retry,
            from_provider,
            message: error.message,
        }
    }

    #[track_caller]
    fn is(&self, code: Code, reason: &str, outcome: &str, retry: bool) -> &Self {
        let told = (self.code, self.reason.as_str());
        assert_eq!(told, (code, reason), "{self:?}");
        let told = (self.outcome.as_str(), self.retry);
        assert_eq!(told, (outcome, retry), "{self:?}");
        assert!(!self.from_provider, "{self:?}");
        self
    }

    #[track_caller]
    fn was_dispatched(&self, dispatched: &str) -> &Self {
        assert_eq!(self.dispatched, dispatched, "{self:?}");
        self
    }
}

/// A core with the provider `lamp` of `lamp.on` and a caller that may call it.
struct Scene {
    core: TestCore,
    lamp: RawPlugin,
    caller: RawPlugin,
}

async fn scene(hello: Hello) -> Scene {
    scene_with(hello, |_| {}).await
}

async fn scene_with(hello: Hello, limits: impl FnOnce(&mut core_server::config::Limits)) -> Scene {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("caller").may_call("lamp.>"))
        .configure(|config| limits(&mut config.limits))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    let caller = RawPlugin::open(&core.remote("caller"), Hello::ready())
        .await
        .expect("admitted");
    for name in ["lamp", "caller"] {
        core.operator().until_phase(name, "ready").await;
    }
    Scene { core, lamp, caller }
}

fn lamp_on() -> Hello {
    Hello::ready().services(&["lamp.on"])
}

/// `lamp.on` whose calls have so long when their caller gives no time. So the core's own answer is
/// seen: a client that gives a time gives up by itself at the same moment.
fn hasty_lamp(places: u32) -> Hello {
    let mut hello = lamp_on();
    hello.0.max_calls_in_flight = places;
    hello.0.services[0].default_timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 200_000_000,
    });
    hello
}

fn call(service: &str) -> ServiceRegistryCallRequest {
    ServiceRegistryCallRequest {
        service: service.to_owned(),
        ..Default::default()
    }
}

fn begin_unary(
    client: &Client,
    request: ServiceRegistryCallRequest,
) -> tokio::task::JoinHandle<Status> {
    let client = client.clone();
    tokio::spawn(async move {
        let answer = within(
            "a call is answered",
            client.service_registry().call(request),
        )
        .await;
        answer.expect_err("a failure")
    })
}

/// Calls twice, as a frame and as a unary RPC at once; both must be told the same.
async fn both(caller: &mut RawPlugin, request: ServiceRegistryCallRequest) -> End {
    let (unary, request_id) = begin_both(caller, request).await;
    end_both(caller, unary, request_id).await
}

async fn begin_both(
    caller: &mut RawPlugin,
    request: ServiceRegistryCallRequest,
) -> (tokio::task::JoinHandle<Status>, u64) {
    let request_id = caller.send_request("ServiceRegistry/Call", &request).await;
    (begin_unary(&caller.client(), request), request_id)
}

async fn end_both(
    caller: &mut RawPlugin,
    unary: tokio::task::JoinHandle<Status>,
    request_id: u64,
) -> End {
    let framed = End::frame(caller.response(request_id).await);
    let unary = End::unary(
        &within("the unary call ends", unary)
            .await
            .expect("no panic"),
    );
    assert_eq!(framed, unary);
    framed
}

#[tokio::test]
async fn nobody_ever_declared_it() {
    let Scene {
        core,
        mut caller,
        lamp: _lamp,
    } = scene(lamp_on()).await;
    let end = both(&mut caller, call("lamp.of")).await;
    end.is(Code::NotFound, "NO_SUCH_SERVICE", "not_applied", false);
    assert!(end.message.contains("did you mean \"lamp.on\"?"), "{end:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn its_provider_is_known_and_not_started() {
    let Scene {
        core,
        mut caller,
        lamp,
    } = scene(hasty_lamp(1)).await;
    core.operator().stop("lamp").await.expect("stopped");
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(Code::Unavailable, "NO_PROVIDER", "not_applied", true);
    // The same when it is not there at all.
    lamp.bye("enough").await;
    core.operator()
        .until("lamp", "unloaded", |lamp| {
            lamp.state() == v1::PluginState::Unloaded
        })
        .await;
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(Code::Unavailable, "NO_PROVIDER", "not_applied", true);
    // Who waits for it does so inside its deadline.
    let waits = ServiceRegistryCallRequest {
        wait_for_ready: true,
        ..call("lamp.on")
    };
    let end = both(&mut caller, waits).await;
    end.is(Code::DeadlineExceeded, "DEADLINE", "not_applied", false)
        .was_dispatched("false");
    core.shutdown().await;
}

#[tokio::test]
async fn the_caller_may_not() {
    let Scene {
        core,
        mut caller,
        lamp: _lamp,
    } = scene(lamp_on()).await;
    let end = both(&mut caller, call("door.open")).await;
    end.is(Code::PermissionDenied, "NOT_GRANTED", "not_applied", false);
    assert!(end.message.contains("door.open"), "{end:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn its_provider_misses_heartbeats() {
    let hello = lamp_on().feature("heartbeat");
    let limits = |limits: &mut core_server::config::Limits| {
        limits.heartbeat_interval = std::time::Duration::from_millis(100);
    };
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene_with(hello, limits).await;
    lamp.answers_pings = false;
    core.operator().until_phase("lamp", "degraded").await;
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(Code::Unavailable, "PROVIDER_DEGRADED", "not_applied", true);
    core.shutdown().await;
}

#[tokio::test]
async fn places_and_waiting_line_are_full() {
    let mut hello = lamp_on();
    hello.0.max_calls_in_flight = 1;
    let limits = |limits: &mut core_server::config::Limits| limits.calls_waiting = 0;
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene_with(hello, limits).await;
    let operator = core.operator().clone();
    let first = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(
        Code::ResourceExhausted,
        "PROVIDER_BUSY",
        "not_applied",
        true,
    );
    lamp.answer(arrived.call_id, json!(1)).await;
    within("answered", first).await.unwrap().expect("a result");
    core.shutdown().await;
}

#[tokio::test]
async fn the_caller_has_too_many_in_flight() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(
            Declared::remote("caller")
                .may_call("lamp.>")
                .quota(Quota::RequestsInFlight, 1),
        )
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), lamp_on()).await;
    let mut lamp = lamp.expect("admitted");
    let caller = RawPlugin::open(&core.remote("caller"), Hello::ready()).await;
    let mut caller = caller.expect("admitted");
    for name in ["lamp", "caller"] {
        core.operator().until_phase(name, "ready").await;
    }
    let first = caller
        .send_request("ServiceRegistry/Call", &call("lamp.on"))
        .await;
    let arrived = lamp.expect_call().await;
    let (unary, framed) = begin_both(&mut caller, call("lamp.on")).await;
    let framed = End::frame(caller.response(framed).await);
    framed.is(Code::ResourceExhausted, "CALLER_BUSY", "not_applied", true);
    let unary = End::unary(&within("refused", unary).await.expect("no panic"));
    unary.is(Code::ResourceExhausted, "CALLER_BUSY", "not_applied", true);
    lamp.answer(arrived.call_id, json!(1)).await;
    assert_eq!(caller.response(first).await.error, None);
    core.shutdown().await;
}

#[tokio::test]
async fn its_time_ran_out_at_the_provider_and_in_line() {
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene(hasty_lamp(2)).await;
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(Code::DeadlineExceeded, "DEADLINE", "unknown", false)
        .was_dispatched("true");
    // Both places are held by calls that the provider has not acknowledged.
    let end = both(&mut caller, call("lamp.on")).await;
    end.is(Code::DeadlineExceeded, "DEADLINE", "not_applied", false)
        .was_dispatched("false");
    for _ in 0..2 {
        lamp.expect_call().await;
    }
    core.shutdown().await;
}

#[tokio::test]
async fn its_caller_took_it_back() {
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene({
        let mut hello = lamp_on();
        hello.0.max_calls_in_flight = 1;
        hello
    })
    .await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        begun.push(
            caller
                .send_request("ServiceRegistry/Call", &call("lamp.on"))
                .await,
        );
    }
    let arrived = lamp.expect_call().await;
    // The one in line first: its place is nobody's, so the provider never hears of it.
    for (request_id, outcome, dispatched) in [
        (begun[1], "not_applied", "false"),
        (begun[0], "unknown", "true"),
    ] {
        caller
            .send(ToCore::RequestCancel(v1::RequestCancel { request_id }))
            .await;
        let end = End::frame(caller.response(request_id).await);
        end.is(Code::Cancelled, "CANCELLED", outcome, false)
            .was_dispatched(dispatched);
    }
    match lamp.next().await.expect("the channel goes on") {
        FromCore::CallCancel(cancel) => assert_eq!(cancel.call_id, arrived.call_id),
        other => panic!("{other:?}"),
    }
    // A unary caller that goes away: nobody is left to be told, but its provider.
    lamp.answer(arrived.call_id, json!(1)).await;
    let gone = begin_unary(&caller.client(), call("lamp.on"));
    let arrived = lamp.expect_call().await;
    gone.abort();
    match lamp.next().await.expect("the channel goes on") {
        FromCore::CallCancel(cancel) => assert_eq!(cancel.call_id, arrived.call_id),
        other => panic!("{other:?}"),
    }
    core.shutdown().await;
}

#[tokio::test]
async fn its_provider_died_with_it() {
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene(lamp_on()).await;
    let (unary, framed) = begin_both(&mut caller, call("lamp.on")).await;
    for _ in 0..2 {
        lamp.expect_call().await;
    }
    drop(lamp);
    let end = end_both(&mut caller, unary, framed).await;
    end.is(Code::Unavailable, "PROVIDER_LOST", "unknown", true);
    core.shutdown().await;
}

#[tokio::test]
async fn answers_that_nobody_waits_for_are_dropped_and_counted() {
    let Scene {
        core,
        caller,
        mut lamp,
    } = scene(lamp_on()).await;
    let before = counter(core.operator(), "calls_answers_dropped_total").await;
    // Foreign, second, late.
    lamp.answer(4_711, json!(0)).await;
    let client = caller.client();
    let answered = tokio::spawn(async move { client.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!(1)).await;
    lamp.answer(arrived.call_id, json!(2)).await;
    let answered = within("answered", answered).await.unwrap();
    assert_eq!(answered.expect("a result"), json!(1));
    let given_up = begin_unary(&caller.client(), call("lamp.on"));
    let arrived = lamp.expect_call().await;
    given_up.abort();
    assert!(matches!(lamp.next().await, Ok(FromCore::CallCancel(_))));
    lamp.answer(arrived.call_id, json!(3)).await;
    lamp.answer(arrived.call_id, json!(4)).await;
    let operator = core.operator();
    // The first after a cancel frees the place; it is no answer to anybody, but awaited.
    eventually!(counter(operator, "calls_answers_dropped_total").await == before + 3);
    core.shutdown().await;
}

#[tokio::test]
async fn its_handler_said_no() {
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene(lamp_on()).await;
    let (unary, framed) = begin_both(&mut caller, call("lamp.on")).await;
    let error = rpc::Status {
        code: Code::OutOfRange.into(),
        message: "no such level: 200 %".to_owned(),
        details: vec![prost_types::Any {
            type_url: "type.example/lamp.Level".to_owned(),
            value: vec![200],
        }],
    };
    for _ in 0..2 {
        let arrived = lamp.expect_call().await;
        let response = v1::CallResponse {
            call_id: arrived.call_id,
            error: Some(error.clone()),
            ..Default::default()
        };
        lamp.send(ToCore::CallResponse(response)).await;
    }
    let framed = caller.response(framed).await;
    assert_eq!(framed.origin(), response::Origin::Provider);
    assert_eq!(framed.error, Some(error.clone()));
    let unary = within("answered", unary).await.expect("no panic");
    assert_eq!(
        (unary.code(), unary.message()),
        (Code::OutOfRange, error.message.as_str())
    );
    let body = rpc::Status::decode(unary.details()).expect("a body");
    assert_eq!(body, error, "verbatim");
    let trailer = |name| {
        unary
            .metadata()
            .get(name)
            .map(|value| value.to_str().expect("text"))
    };
    assert_eq!(trailer("core-origin"), Some("provider"));
    for name in ["core-reason", "core-outcome", "core-retry-ms", "core-cut"] {
        assert_eq!(trailer(name), None, "{name}");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn it_is_nested_too_deep() {
    let limits = |limits: &mut core_server::config::Limits| limits.call_depth = 1;
    let Scene {
        core,
        caller,
        mut lamp,
    } = scene_with(lamp_on(), limits).await;
    let outer = begin_unary(&caller.client(), call("lamp.on"));
    let arrived = lamp.expect_call().await;
    let parent = format!("call/{}", arrived.call_id);
    // lamp may call itself; what it asks for while it handles that call is one deeper.
    let unary = lamp.client().presenting("core-parent", &parent);
    let unary = unary.service_registry().call(call("lamp.on")).await;
    let unary = End::unary(&unary.expect_err("too deep"));
    unary.is(Code::FailedPrecondition, "CALL_DEPTH", "not_applied", false);
    let request = v1::Request {
        request_id: 77,
        method: "ServiceRegistry/Call".to_owned(),
        message: call("lamp.on").encode_to_vec().into(),
        parent,
        ..Default::default()
    };
    lamp.send(ToCore::Request(request)).await;
    assert_eq!(End::frame(lamp.response(77).await), unary);
    outer.abort();
    caller.bye("enough").await;
    core.shutdown().await;
}

#[tokio::test]
async fn an_error_that_is_too_long_for_trailers_is_cut_for_unary_callers_only() {
    let Scene {
        core,
        mut caller,
        mut lamp,
    } = scene(lamp_on()).await;
    let (unary, framed) = begin_both(&mut caller, call("lamp.on")).await;
    let detail = |bytes: usize| prost_types::Any {
        type_url: "type.example/lamp.Log".to_owned(),
        value: vec![1; bytes],
    };
    let error = rpc::Status {
        code: Code::Aborted.into(),
        message: "лампа ".repeat(10_000),
        details: vec![detail(1_000), detail(100_000)],
    };
    for _ in 0..2 {
        let arrived = lamp.expect_call().await;
        let response = v1::CallResponse {
            call_id: arrived.call_id,
            error: Some(error.clone()),
            ..Default::default()
        };
        lamp.send(ToCore::CallResponse(response)).await;
    }
    let framed = caller.response(framed).await;
    assert_eq!(framed.error.expect("an error"), error, "whole");
    // A client as it comes, with the limits on headers that it has by default.
    let unary = within("answered", unary).await.expect("no panic");
    assert_eq!(unary.code(), Code::Aborted, "{unary:?}");
    assert!(unary.message().starts_with("лампа лампа "), "{unary:?}");
    let mark = format!("[cut: {} bytes in all]", error.message.len());
    assert!(unary.message().ends_with(&mark), "{unary:?}");
    let cut = unary.metadata().get("core-cut").expect("marked");
    assert_eq!(cut, "message,details");
    let body = rpc::Status::decode(unary.details()).expect("a body");
    assert_eq!(body.details, [detail(1_000)]);
    core.shutdown().await;
}
