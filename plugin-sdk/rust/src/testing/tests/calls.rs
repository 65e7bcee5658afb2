use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::prelude::*;
use crate::testing::TestRuntime;
use crate::{Origin, Outcome};

#[derive(Deserialize, JsonSchema)]
struct Place {
    room: String,
    floor: Option<i8>,
}

/// Tells when a handler has begun, and when its future is gone.
#[derive(Clone, Default)]
struct Probe {
    begun: Arc<Notify>,
    dropped: Arc<Notify>,
    drops: Arc<AtomicUsize>,
}

struct OnDrop(Probe);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.drops.fetch_add(1, Ordering::SeqCst);
        self.0.dropped.notify_one();
    }
}

#[derive(Default)]
struct Lamp {
    probe: Probe,
}

/// A lamp with all kinds of handlers.
#[plugin(name = "lamp")]
impl Lamp {
    /// Switch one lamp
    /// on.
    ///
    /// More than callers need to know.
    #[service(idempotent, timeout = secs(3))]
    async fn turn_on(
        &self,
        ctx: &Ctx,
        /// Which one.
        device_id: String,
        level: Option<u8>,
    ) -> Result<u8> {
        let level = level.unwrap_or(100);
        ctx.publish("lamp.changed", json!({ "id": device_id, "level": level }))
            .await?;
        Ok(level)
    }
    #[service(read_only)]
    async fn place(&self, place: Place) -> Result<String> {
        Ok(format!("{} {:?}", place.room, place.floor))
    }
    #[service]
    async fn apart(&self, Place { room, .. }: Place) -> Result<String> {
        Ok(room)
    }
    #[service]
    async fn one_place(&self, #[arg] place: Place) -> Result<String> {
        Ok(place.room)
    }
    #[service(name = "deep.any")]
    async fn any(&self, #[args] anything: Value) -> Result<Value> {
        Ok(anything)
    }
    #[service]
    fn blocking(&self, ctx: &Ctx, number: u64) -> Result<String> {
        Ok(format!("{} {number}", ctx.caller()))
    }
    #[service]
    async fn nothing(&self) -> Result {
        Ok(())
    }
    #[service]
    async fn refuse(&self) -> Result {
        Err(Error::not_found("no such lamp")
            .with_reason("NO_SUCH_LAMP")
            .with_metadata("id", "x"))
    }
    #[service]
    async fn fail(&self) -> Result<u8> {
        Ok("x".parse::<u8>()?)
    }
    #[service]
    async fn panic(&self, number: u8) -> Result {
        panic!("number {number}");
    }
    #[service]
    async fn hang(&self) -> Result {
        let _gone = OnDrop(self.probe.clone());
        self.probe.begun.notify_one();
        std::future::pending().await
    }
    #[service]
    async fn forward(&self, ctx: &Ctx, timeout_ms: Option<u64>) -> Result<u64> {
        let mut options = CallOptions::new();
        if let Some(timeout) = timeout_ms {
            options = options.timeout(millis(timeout));
        }
        ctx.call_with("other.answer", &("x", 1), options).await
    }
    #[service]
    async fn big(&self, bytes: usize) -> Result<String> {
        Ok("x".repeat(bytes))
    }
    #[service]
    async fn guarded(&self, ctx: &Ctx) -> Result {
        ctx.require_caller(&["automation"])
    }
    #[service]
    async fn more(&self, ctx: &Ctx) -> Result {
        let double = Service::new("double")
            .handle(|_, number: [u8; 1]| async move { Ok(u16::from(number[0]) * 2) });
        ctx.register(double).await
    }
    #[service]
    async fn less(&self, ctx: &Ctx) -> Result<bool> {
        ctx.unregister("double").await
    }
}

async fn lamp() -> (TestRuntime, Probe) {
    let lamp = Lamp::default();
    let probe = lamp.probe.clone();
    (TestRuntime::start(lamp).await.expect("it starts"), probe)
}

#[tokio::test(start_paused = true)]
async fn arguments_and_results_are_typed() {
    let (core, _) = lamp().await;
    for (service, arguments, expected) in [
        ("turn_on", json!({ "device_id": "k", "level": 7 }), json!(7)),
        ("turn_on", json!({ "device_id": "k" }), json!(100)),
        ("turn_on", json!(["k", 9]), json!(9)),
        (
            "place",
            json!({ "room": "hall", "floor": -1 }),
            json!("hall Some(-1)"),
        ),
        ("place", json!(["hall"]), json!("hall None")),
        ("apart", json!({ "room": "hall" }), json!("hall")),
        (
            "one_place",
            json!({ "place": { "room": "hall" } }),
            json!("hall"),
        ),
        ("deep.any", json!({ "a": [1] }), json!({ "a": [1] })),
        ("blocking", json!(["5"]), json!(null)),
        ("blocking", json!([5]), json!("operator 5")),
        ("nothing", json!(null), json!(null)),
    ] {
        let service = format!("lamp.{service}");
        let result: Result<Value> = core.call(&service, &arguments).await;
        match result {
            Ok(result) => assert_eq!(result, expected, "{service} {arguments}"),
            Err(error) => assert_eq!(expected, Value::Null, "{service}: {error}"),
        }
    }
    assert_eq!(core.published("lamp.changed").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn wrong_arguments_are_answered_with_the_path_of_the_fault() {
    let (core, _) = lamp().await;
    for (service, arguments, field) in [
        ("turn_on", json!({}), "device_id"),
        ("turn_on", json!({ "device_id": 5 }), "device_id"),
        ("turn_on", json!({ "device_id": "k", "levl": 5 }), "levl"),
        ("turn_on", json!(["k", 256]), "level"),
        ("one_place", json!({ "place": { "room": 5 } }), "place.room"),
        ("nothing", json!([1]), "."),
    ] {
        let result: Result<Value> = core.call(&format!("lamp.{service}"), &arguments).await;
        let error = result.expect_err(service);
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert_eq!(error.metadata("field"), Some(field), "{error}");
        assert_eq!(error.origin(), Origin::Provider);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handlers_no_is_told_apart_from_its_failure() {
    let (core, _) = lamp().await;
    let refused = core.call::<()>("lamp.refuse", &()).await.expect_err("no");
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.reason(), "NO_SUCH_LAMP");
    assert_eq!(refused.metadata("id"), Some("x"));
    let failed = core
        .call::<u8>("lamp.fail", &())
        .await
        .expect_err("no number");
    assert_eq!(failed.code(), Code::Unknown);
    assert_eq!(failed.message(), "invalid digit found in string");
    let panicked = core
        .call::<()>("lamp.panic", &7)
        .await
        .expect_err("a panic");
    assert_eq!(panicked.code(), Code::Internal);
    let id = panicked.metadata("error_id").expect("an id");
    assert!(panicked.message().contains(id) && !panicked.message().contains("number 7"));
    // The plugin goes on.
    core.call::<()>("lamp.nothing", &()).await.expect("alive");
}

#[tokio::test(start_paused = true)]
async fn the_description_is_derived_from_the_types() {
    let (core, _) = lamp().await;
    let services = core.services();
    let of = |name: &str| {
        services
            .iter()
            .find(|service| service.name == name)
            .expect("there")
    };
    let turn_on = of("lamp.turn_on");
    assert_eq!(turn_on.summary, "Switch one lamp on.");
    assert!(turn_on.idempotent && !turn_on.read_only);
    assert_eq!(turn_on.default_timeout, Some(secs(3)));
    assert_eq!(turn_on.parameters, ["device_id", "level"]);
    let schema = &turn_on.input_schema;
    assert_eq!(schema["properties"]["device_id"]["type"], "string");
    assert_eq!(
        schema["properties"]["device_id"]["description"],
        "Which one."
    );
    assert_eq!(schema["required"], json!(["device_id"]));
    assert_eq!(turn_on.output_schema["type"], "integer");
    assert!(of("lamp.place").read_only);
    assert_eq!(of("lamp.place").parameters, ["room", "floor"]);
    assert_eq!(of("lamp.one_place").parameters, ["place"]);
    assert_eq!(of("lamp.nothing").input_schema["properties"], json!({}));
    of("lamp.deep.any");
}

#[tokio::test]
async fn a_hundred_calls_run_at_the_same_time() {
    const CALLS: usize = 100;
    let barrier = Arc::new(tokio::sync::Barrier::new(CALLS));
    let meet = Service::new("meet").handle(move |_, number: [usize; 1]| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            Ok(number[0])
        }
    });
    let core = TestRuntime::start(Plugin::builder("crowd").service(meet))
        .await
        .expect("starts");
    let calls = (0..CALLS).map(|number| {
        let core = &core;
        async move { (number, core.call::<usize>("crowd.meet", &number).await) }
    });
    for (number, answer) in futures_util::future::join_all(calls).await {
        assert_eq!(answer.expect("all meet"), number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_drops_its_handler_and_is_answered_once() {
    let (core, probe) = lamp().await;
    tokio::select! {
        _ = core.call::<()>("lamp.hang", &()) => panic!("it never ends"),
        () = probe.begun.notified() => {}
    }
    // Dropping the call's future has cancelled it.
    probe.dropped.notified().await;
    core.call::<()>("lamp.nothing", &()).await.expect("alive");
    let stray = core.core.desk.lock().stray_responses.clone();
    assert_eq!(stray.len(), 1);
    let status = stray[0].error.as_ref().expect("cancelled");
    assert_eq!(status.code, Code::Cancelled as i32);
    assert_eq!(probe.drops.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_dropped_at_its_deadline() {
    let (core, probe) = lamp().await;
    let began = tokio::time::Instant::now();
    let error = core
        .call_as::<()>("automation", "lamp.hang", &(), Some(millis(500)))
        .await
        .expect_err("too long");
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() >= millis(500) && began.elapsed() < secs(2));
    probe.dropped.notified().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_made_in_a_handler_names_what_caused_it() {
    let (core, _) = lamp().await;
    core.stub("other.answer", |arguments| async move {
        assert_eq!(arguments, json!(["x", 1]));
        Ok(42)
    });
    let answer: u64 = core
        .call("lamp.forward", &())
        .await
        .expect("the stub answers");
    assert_eq!(answer, 42);
    let requests = core.core.desk.lock().requests.clone();
    let call = requests
        .iter()
        .find(|request| request.method == "ServiceRegistry/Call");
    let parent = &call.expect("it was made").parent;
    assert!(parent.starts_with("call/"), "{parent}");
    core.call::<u8>("lamp.turn_on", &["k"])
        .await
        .expect("it publishes");
    assert!(
        core.published("lamp.changed")[0]
            .cause()
            .starts_with("call/")
    );
}

#[tokio::test(start_paused = true)]
async fn another_plugins_error_arrives_as_it_was_made() {
    let (core, _) = lamp().await;
    core.stub("other.answer", |_| async move {
        Err::<u64, _>(Error::already_exists("twice").with_reason("TWICE"))
    });
    let error = core
        .call::<u64>("lamp.forward", &())
        .await
        .expect_err("the stub refuses");
    assert_eq!(
        (error.code(), error.reason()),
        (Code::AlreadyExists, "TWICE")
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_to_another_plugin_ends_at_its_deadline_and_is_withdrawn() {
    let (core, _) = lamp().await;
    core.stub("other.answer", |_| std::future::pending::<Result<u64>>());
    let error = core
        .call::<u64>("lamp.forward", &json!({ "timeout_ms": 200 }))
        .await
        .expect_err("nobody answers");
    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn large_arguments_and_results_travel_unary_or_are_refused_in_time() {
    let (core, _) = lamp().await;
    let error = core
        .call::<String>("lamp.big", &300_000)
        .await
        .expect_err("too large");
    assert_eq!(error.reason(), "TOO_LARGE");
    assert_eq!(error.metadata("limit_bytes"), Some("262144"));
    let text: String = core.call("lamp.big", &200_000).await.expect("fits");
    assert_eq!(text.len(), 200_000);
}

#[tokio::test(start_paused = true)]
async fn only_named_callers_pass_a_guard() {
    let (core, _) = lamp().await;
    let error = core
        .call::<()>("lamp.guarded", &())
        .await
        .expect_err("the operator");
    assert_eq!(error.code(), Code::PermissionDenied);
    core.call_as::<()>("automation", "lamp.guarded", &(), None)
        .await
        .expect("allowed");
}

#[tokio::test(start_paused = true)]
async fn services_come_and_go_while_the_plugin_runs() {
    let (core, _) = lamp().await;
    let call = || core.call::<u16>("lamp.double", &21);
    assert_eq!(
        call().await.expect_err("not yet").reason(),
        "NO_SUCH_SERVICE"
    );
    core.call::<()>("lamp.more", &()).await.expect("registers");
    assert_eq!(call().await.expect("now"), 42);
    assert!(
        core.call::<bool>("lamp.less", &())
            .await
            .expect("unregisters")
    );
    assert_eq!(call().await.expect_err("gone").reason(), "NO_SUCH_SERVICE");
}

#[tokio::test(start_paused = true)]
async fn a_pong_comes_while_handlers_hang() {
    let (core, probe) = lamp().await;
    tokio::select! {
        _ = core.call::<()>("lamp.hang", &()) => panic!("it never ends"),
        pong = async {
            probe.begun.notified().await;
            core.ping().await
        } => pong.expect("alive"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_channel_breaks_ends_for_both_sides() {
    let (core, probe) = lamp().await;
    let call = core.call::<()>("lamp.hang", &());
    let cut = async {
        probe.begun.notified().await;
        core.disconnect();
        std::future::pending::<()>().await;
    };
    let error = tokio::select! {
        result = call => result.expect_err("lost"),
        () = cut => unreachable!(),
    };
    assert_eq!(error.reason(), "PROVIDER_LOST");
    assert_eq!(error.outcome(), Outcome::Unknown);
    probe.dropped.notified().await;
    core.call::<()>("lamp.nothing", &())
        .await
        .expect("it is back");
}
