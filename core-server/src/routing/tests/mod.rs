mod again;
mod once;

use std::sync::Mutex;

use tokio_stream::StreamExt as _;

use super::*;
use crate::channel::{Link, Outbox, OutboxReader, Run};
use crate::error::Reason;
use crate::service_registry::ServiceDescription;
use crate::types::{Generation, ServiceName};

struct Fixture {
    router: Router,
    run: Arc<Run>,
    link: Link,
    frames: OutboxReader,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn plugin(name: &str) -> PluginName {
    PluginName::parse(name).expect("good name")
}

fn fixture(places: usize, config: Config) -> Fixture {
    let registry = ServiceRegistry::new();
    let run = Run::new(plugin("lamp"), Generation(1));
    let name = ServiceName::parse("lamp.on").expect("good name");
    registry
        .register(&run, ServiceDescription::bare(name))
        .expect("registered");
    let router = Router::new(config, registry);
    let (link, frames) = new_link(places);
    let stop = CancellationToken::new();
    let scope = crate::task::TaskScope::new();
    let (runner, token) = (router.clone(), stop.clone());
    scope.spawn("router", |_| runner.run(token));
    Fixture {
        router,
        run,
        link,
        frames,
        stop,
    }
}

fn new_link(places: usize) -> (Link, OutboxReader) {
    let (outbox, frames) = Outbox::new(1 << 20);
    let link = Link {
        channel: ChannelId::next(),
        plugin: plugin("lamp"),
        outbox,
        max_calls_in_flight: places,
    };
    (link, frames)
}

fn call(service: &str) -> Call {
    Call {
        service: service.to_owned(),
        arguments: Payload::default(),
        timeout: None,
        wait_for_ready: false,
        caller: Source::Operator,
        slot: None,
        cause: None,
        traceparent: String::new(),
    }
}

impl Fixture {
    fn ready(&self) {
        self.router
            .set_availability(&plugin("lamp"), Availability::Ready(self.link.clone()));
    }

    fn absent(&self) {
        self.router
            .set_availability(&plugin("lamp"), Availability::Absent { retry_after: None });
    }

    async fn next_call(&mut self) -> CallFrame {
        match self.frames.next().await {
            Some(Ok(Outbound::Call(frame))) => *frame,
            other => panic!("expected a call, not {other:?}"),
        }
    }

    fn answer(&self, call_id: u64, text: &'static str) {
        let payload = Payload {
            data: text.as_bytes().into(),
            ..Payload::default()
        };
        self.router
            .complete(&plugin("lamp"), self.link.channel, call_id, Ok(payload));
    }
}

type Ends = Arc<Mutex<Vec<Result<Payload, Failure>>>>;

fn record() -> (Ends, OnEnd) {
    let ends = Ends::default();
    let sink = Arc::clone(&ends);
    (
        ends,
        Box::new(move |result| sink.lock().expect("not poisoned").push(result)),
    )
}

fn reason(ends: &Ends) -> Reason {
    let ends = ends.lock().expect("not poisoned");
    assert_eq!(ends.len(), 1, "exactly one end: {ends:?}");
    match &ends[0] {
        Err(Failure::System(failure)) => failure.reason,
        other => panic!("expected the system's failure, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_reaches_its_provider_and_its_answer_comes_back_once() {
    let mut fixture = fixture(4, Config::default());
    fixture.ready();
    let (ends, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    let frame = fixture.next_call().await;
    assert_eq!((&*frame.service, frame.depth), ("lamp.on", 1));
    fixture.answer(frame.call_id, "1");
    fixture.answer(frame.call_id, "2");
    let ends = ends.lock().expect("not poisoned");
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].as_ref().expect("answered").data, "1");
    assert_eq!(
        fixture
            .router
            .stats()
            .answers_dropped
            .load(Ordering::Relaxed),
        1
    );
    assert_eq!(fixture.router.timers(), 0);
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn refusals_follow_the_table() {
    let fixture = fixture(
        1,
        Config {
            max_waiting: 0,
            ..Config::default()
        },
    );
    let end = |call| {
        let (ends, on_end) = record();
        fixture.router.call(call, on_end).forget();
        reason(&ends)
    };
    assert_eq!(end(call("lamp.of")), Reason::NoSuchService);
    assert_eq!(end(call("lamp.on")), Reason::NoProvider);
    fixture
        .router
        .set_availability(&plugin("lamp"), Availability::Degraded);
    assert_eq!(end(call("lamp.on")), Reason::ProviderDegraded);
    fixture.ready();
    let (_, on_end) = record();
    let holds_the_place = fixture.router.call(call("lamp.on"), on_end);
    assert_eq!(end(call("lamp.on")), Reason::ProviderBusy);
    let late = Call {
        timeout: Some(Duration::ZERO),
        ..call("lamp.on")
    };
    assert_eq!(end(late), Reason::Deadline);
    drop(holds_the_place);
    fixture.router.begin_shutdown();
    assert_eq!(end(call("lamp.on")), Reason::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn places_are_given_in_order_of_arrival() {
    let mut fixture = fixture(1, Config::default());
    fixture.ready();
    let ends: Vec<Ends> = (0..3)
        .map(|_| {
            let (ends, on_end) = record();
            fixture.router.call(call("lamp.on"), on_end).forget();
            ends
        })
        .collect();
    assert_eq!(fixture.router.load(&plugin("lamp")), (1, 2));
    for ends in &ends {
        let frame = fixture.next_call().await;
        fixture.answer(frame.call_id, "1");
        assert_eq!(ends.lock().expect("not poisoned").len(), 1);
    }
    assert_eq!(fixture.router.timers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_answers_the_caller_tells_the_provider_and_holds_the_place() {
    let mut fixture = fixture(1, Config::default());
    fixture.ready();
    let (ends, on_end) = record();
    fixture
        .router
        .call(
            Call {
                timeout: Some(Duration::from_secs(1)),
                ..call("lamp.on")
            },
            on_end,
        )
        .forget();
    let frame = fixture.next_call().await;
    match fixture.frames.next().await {
        Some(Ok(Outbound::CallCancel { call_id })) => assert_eq!(call_id, frame.call_id),
        other => panic!("expected a cancel, not {other:?}"),
    }
    assert_eq!(reason(&ends), Reason::Deadline);
    assert_eq!(
        fixture.router.load(&plugin("lamp")),
        (1, 0),
        "the provider has not acknowledged"
    );
    fixture.router.drained(&plugin("lamp")).await;
    assert_eq!(fixture.router.timers(), 0, "freed after 5 s");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_ticket_cancels_and_an_acknowledgement_frees_the_place() {
    let mut fixture = fixture(1, Config::default());
    fixture.ready();
    let (ends, on_end) = record();
    let ticket = fixture.router.call(call("lamp.on"), on_end);
    let frame = fixture.next_call().await;
    drop(ticket);
    assert_eq!(reason(&ends), Reason::Cancelled);
    assert!(matches!(
        fixture.frames.next().await,
        Some(Ok(Outbound::CallCancel { .. }))
    ));
    fixture.answer(frame.call_id, "too late");
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
    assert_eq!(fixture.router.timers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_that_was_not_sent_frees_its_place_at_once() {
    let fixture = fixture(1, Config::default());
    fixture.ready();
    let (_, on_end) = record();
    drop(fixture.router.call(call("lamp.on"), on_end));
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
    assert_eq!(fixture.router.timers(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lost_link_ends_its_calls_once_with_unknown_outcome() {
    let mut fixture = fixture(8, Config::default());
    fixture.ready();
    let ends: Vec<Ends> = (0..8)
        .map(|_| {
            let (ends, on_end) = record();
            fixture.router.call(call("lamp.on"), on_end).forget();
            ends
        })
        .collect();
    let frame = fixture.next_call().await;
    for _ in 1..8 {
        fixture.next_call().await;
    }
    fixture.absent();
    fixture
        .router
        .link_lost(&plugin("lamp"), fixture.link.channel);
    fixture.answer(frame.call_id, "from the grave");
    for ends in &ends {
        assert_eq!(reason(ends), Reason::ProviderLost);
    }
    assert_eq!(fixture.router.timers(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_the_loss_of_a_link_callers_wait_for_what_is_told_next() {
    let mut fixture = fixture(8, Config::default());
    fixture.ready();
    // Closed, and its loss not told yet.
    fixture.link.outbox.close();
    let (early, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    fixture
        .router
        .link_lost(&plugin("lamp"), fixture.link.channel);
    // Told, and nothing is said yet of what follows.
    let (late, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    let waiting = Call {
        wait_for_ready: true,
        ..call("lamp.on")
    };
    let (patient, on_end) = record();
    fixture.router.call(waiting, on_end).forget();
    assert!(early.lock().expect("not poisoned").is_empty());
    fixture.absent();
    assert_eq!(reason(&early), Reason::NoProvider);
    assert_eq!(reason(&late), Reason::NoProvider);
    let (link, frames) = new_link(8);
    (fixture.link, fixture.frames) = (link, frames);
    fixture.ready();
    let frame = fixture.next_call().await;
    fixture.answer(frame.call_id, "1");
    assert!(patient.lock().expect("not poisoned")[0].is_ok());
}

#[tokio::test(start_paused = true)]
async fn waiting_for_ready_ends_with_the_provider_or_the_deadline() {
    let mut fixture = fixture(8, Config::default());
    let waits = || Call {
        wait_for_ready: true,
        ..call("lamp.on")
    };
    let (served, on_end) = record();
    fixture.router.call(waits(), on_end).forget();
    fixture.ready();
    let frame = fixture.next_call().await;
    fixture.answer(frame.call_id, "1");
    assert_eq!(served.lock().expect("not poisoned").len(), 1);
    fixture.absent();
    let result = fixture.router.call_and_wait(waits()).await;
    match result {
        Err(Failure::System(failure)) => {
            assert_eq!(failure.reason, Reason::Deadline);
            assert_eq!(failure.outcome, crate::error::Outcome::NotApplied);
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_suspended_provider_wait_three_seconds() {
    let mut fixture = fixture(8, Config::default());
    fixture
        .router
        .set_availability(&plugin("lamp"), Availability::Suspended);
    let before = Instant::now();
    let result = fixture.router.call_and_wait(call("lamp.on")).await;
    assert!(
        matches!(result, Err(Failure::System(failure)) if failure.reason == Reason::NoProvider)
    );
    assert_eq!(before.elapsed(), Duration::from_secs(3));
    let (ends, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    assert_eq!(
        reason(&ends),
        Reason::NoProvider,
        "the wait is over for everybody"
    );
    fixture.ready();
    fixture
        .router
        .set_availability(&plugin("lamp"), Availability::Suspended);
    let (ends, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    fixture.ready();
    let frame = fixture.next_call().await;
    fixture.answer(frame.call_id, "back");
    assert_eq!(ends.lock().expect("not poisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn nested_calls_inherit_depth_trace_and_the_time_that_is_left() {
    let mut fixture = fixture(64, Config::default());
    fixture.ready();
    let mut cause = None;
    let mut deadline = None;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for depth in 1..=16 {
        let (_, on_end) = record();
        let nested = Call {
            caller: Source::Plugin(plugin("lamp")),
            timeout: Some(Duration::from_secs(5 + u64::from(depth))),
            cause,
            // Named by the outermost only.
            traceparent: if depth == 1 { trace } else { "" }.to_owned(),
            ..call("lamp.on")
        };
        fixture.router.call(nested, on_end).forget();
        let frame = fixture.next_call().await;
        assert_eq!((frame.depth, frame.traceparent.as_str()), (depth, trace));
        assert_eq!(*deadline.get_or_insert(frame.deadline), frame.deadline);
        cause = Some(Cause::Call(frame.call_id));
    }
    let (ends, on_end) = record();
    let too_deep = Call {
        caller: Source::Plugin(plugin("lamp")),
        cause,
        ..call("lamp.on")
    };
    fixture.router.call(too_deep, on_end).forget();
    assert_eq!(reason(&ends), Reason::CallDepth);
    assert_eq!(fixture.run.generation(), Generation(1));
}

#[tokio::test(start_paused = true)]
async fn those_behind_a_call_that_an_outbox_refuses_are_not_forgotten() {
    let mut fixture = fixture(1, Config::default());
    fixture.ready();
    let (_first, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    let frame = fixture.next_call().await;
    let (second, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    let (third, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    let filling = Outbound::Response {
        request_id: 1,
        result: Ok(vec![0; 1 << 20].into()),
    };
    let _queued = fixture.link.outbox.push(filling);
    fixture.answer(frame.call_id, "1");
    assert_eq!(reason(&second), Reason::ProviderBusy);
    assert_eq!(reason(&third), Reason::ProviderBusy);
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_when_a_link_closes_go_over_the_next() {
    let mut fixture = fixture(1, Config::default());
    fixture.ready();
    let (first, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    fixture.next_call().await;
    let (_second, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    fixture.link.outbox.abort(crate::channel::Closed::Replaced);
    let lost = fixture.link.channel;
    fixture.router.link_lost(&plugin("lamp"), lost);
    assert_eq!(reason(&first), Reason::ProviderLost);
    (fixture.link, fixture.frames) = new_link(1);
    fixture.ready();
    assert_eq!(&*fixture.next_call().await.service, "lamp.on");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_was_taken_back_is_not_called() {
    let fixture = fixture(1, Config::default());
    fixture.ready();
    let registry = &fixture.router.shared.registry;
    assert!(registry.unregister(fixture.run.id(), "lamp.on"));
    let (ends, on_end) = record();
    fixture.router.call(call("lamp.on"), on_end).forget();
    assert_eq!(reason(&ends), Reason::NoProvider);
}
