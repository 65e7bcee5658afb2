//! Publish and subscribe over the wire. Semantics in the small are tested beside the code; here:
//! isolation, loss that is told, and who owns what.

use core_proto::v1::event_bus_subscribe_request::Policy;
use core_proto::v1::gap::Reason;
use core_proto::v1::{self, EventBusSubscribeRequest, NewEvent};
use core_tests::{
    Declared, Heard, Hello, RawPlugin, TestCore, Told, eventually, json as data, within,
};
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;

use super::ECHO;

fn subscribe(patterns: &[&str]) -> EventBusSubscribeRequest {
    EventBusSubscribeRequest {
        patterns: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn an_event_reaches_every_matching_subscriber_with_the_core_s_stamp() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let operator = core.operator();
    operator.until_phase("lamp", "ready").await;
    let mut all = operator.subscribe(&["lamp.>"]).await;
    let mut one = operator.subscribe(&["lamp.*", "lamp.changed"]).await;
    let mut other = operator.subscribe(&["door.>"]).await;
    let seq = lamp
        .client()
        .publish("lamp.changed", json!({ "on": true }))
        .await
        .expect("published");
    operator
        .publish("door.opened", json!(1))
        .await
        .expect("published");
    for subscription in [&mut all, &mut one] {
        let event = subscription.event().await;
        assert_eq!(
            (event.topic.as_str(), event.source.as_str()),
            ("lamp.changed", "lamp")
        );
        assert_eq!((event.seq, data(&event)), (seq, json!({ "on": true })));
        assert_eq!(event.epoch, subscription.subscribed.epoch);
        assert!(event.time.is_some());
    }
    let event = other.event().await;
    assert_eq!(
        (event.topic.as_str(), event.source.as_str()),
        ("door.opened", "operator")
    );
    core.shutdown().await;
}

#[tokio::test]
async fn events_of_one_batch_one_stream_or_one_channel_keep_their_order() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let mut lamp = core.ready_plugin("lamp").await;
    let mut heard = core.operator().subscribe(&["lamp.count"]).await;
    let event = |number: u64| NewEvent {
        topic: "lamp.count".to_owned(),
        data: number.to_string().into(),
        ..Default::default()
    };
    let batch = v1::EventBusPublishBatchRequest {
        events: (0..100).map(event).collect(),
    };
    let batch = lamp
        .client()
        .event_bus()
        .publish_batch(batch)
        .await
        .expect("published");
    assert_eq!(batch.into_inner().published, 100);
    let stream = (1..4).map(move |part| v1::EventBusPublishStreamRequest {
        events: (part * 100..part * 100 + 100).map(event).collect(),
    });
    let acknowledgements = lamp
        .client()
        .event_bus()
        .publish_stream(tokio_stream::iter(stream))
        .await;
    let mut acknowledgements = acknowledgements.expect("opened").into_inner();
    let mut acknowledged = 0;
    while let Some(message) = within("an acknowledgement", acknowledgements.message())
        .await
        .expect("no error")
    {
        assert!(
            message.acknowledged >= acknowledged,
            "acknowledgements are cumulative"
        );
        acknowledged = message.acknowledged;
    }
    assert_eq!(acknowledged, 300);
    let mut requests = Vec::new();
    for number in 400..500 {
        let message = v1::EventBusPublishRequest {
            event: Some(event(number)),
        };
        requests.push(lamp.send_request("EventBus/Publish", &message).await);
    }
    for request in requests {
        assert_eq!(lamp.response(request).await.error, None);
    }
    let mut previous = 0;
    for number in 0..500 {
        let event = heard.event().await;
        assert_eq!(data(&event), json!(number));
        assert!(event.seq > previous);
        previous = event.seq;
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_failing_subscriber_affects_no_other() {
    let core = TestCore::builder()
        .plugin(Declared::process("fails", ECHO).hears_scenes())
        .plugin(Declared::process("works", ECHO).hears_scenes())
        .start()
        .await;
    let operator = core.operator();
    for name in ["fails", "works"] {
        operator
            .until(name, "subscribed", |plugin| {
                !plugin.subscriptions.is_empty()
            })
            .await;
        operator.until_phase(name, "ready").await;
    }
    let mut here = operator.subscribe(&["scene.>"]).await;
    let gone = operator.another_connection().subscribe(&["scene.>"]).await;
    let pid = operator.plugin("fails").await.pid;
    for number in 0..50 {
        if number == 20 {
            core_tests::signal(pid, Signal::KILL);
        }
        operator
            .publish("scene.count", json!(number))
            .await
            .expect("published");
    }
    drop(gone);
    for number in 50..100 {
        operator
            .publish("scene.count", json!(number))
            .await
            .expect("published");
    }
    for number in 0..100 {
        assert_eq!(data(&here.event().await), json!(number));
    }
    let heard = async || {
        let notes = operator
            .call("works.heard", json!({}))
            .await
            .expect("answered");
        notes.as_array().expect("a list").len()
    };
    eventually!(heard().await == 100);
    core.shutdown().await;
}

#[tokio::test]
async fn a_handler_that_fails_goes_on_with_the_next_event() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).hears_scenes())
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    let no_json = NewEvent {
        topic: "scene.bad".to_owned(),
        content_type: "text/plain".to_owned(),
        data: "{{{".into(),
        ..Default::default()
    };
    let request = v1::EventBusPublishRequest {
        event: Some(no_json),
    };
    operator
        .event_bus()
        .publish(request)
        .await
        .expect("the core does not look inside");
    operator
        .publish("scene.good", json!("heard"))
        .await
        .expect("published");
    let heard = async || {
        operator
            .call("child.heard", json!({}))
            .await
            .expect("answered")
    };
    eventually!(
        heard().await
            == json!([
                { "topic": "scene.good", "source": "operator", "data": "heard" }
            ])
    );
    core.shutdown().await;
}

/// Reads until `last` has been heard or told as missed; checks that nothing is missing without a word.
async fn account_for(subscription: &mut core_tests::Subscription, first: u64, last: u64) -> u64 {
    let mut next = first;
    let mut missed = 0;
    while next <= last {
        match subscription.next().await.expect("the stream goes on") {
            Heard::Event(event) => {
                assert_eq!(event.seq, next, "a hole that no Gap tells of");
                next += 1;
            }
            Heard::Gap(gap) => {
                assert_eq!((gap.reason(), gap.from_seq), (Reason::Slow, next));
                assert!(gap.to_seq >= gap.from_seq);
                missed += gap.to_seq - gap.from_seq + 1;
                next = gap.to_seq + 1;
            }
            Heard::Bookmark(_) => {}
        }
    }
    missed
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_slows_nobody_and_is_told_what_it_missed() {
    let core = TestCore::builder()
        .configure(|config| config.limits.event_log_events = 512)
        .start()
        .await;
    let operator = core.operator();
    let mut asleep = operator.another_connection().subscribe(&[">"]).await;
    let refuses_gaps = EventBusSubscribeRequest {
        policy: Policy::Disconnect.into(),
        ..subscribe(&[">"])
    };
    let strict = operator
        .another_connection()
        .subscribe_as(refuses_gaps)
        .await
        .expect("admitted");
    let mut awake = operator.another_connection().subscribe(&[">"]).await;
    let first = asleep.subscribed.next_seq;
    let big = "x".repeat(4 << 10);
    let mut last = 0;
    for number in 0..3_000_u32 {
        // Bounded: were the publisher made to wait for the sleepers, this would never end.
        let at = operator
            .publish("scene.big", json!({ "n": number, "big": big }))
            .await;
        last = at.expect("published");
        if number % 100 == 0 {
            while awake.event().await.seq < last {}
        }
    }
    let missed = account_for(&mut asleep, first, last).await;
    assert!(missed > 0 && missed < 3_000, "{missed} missed");
    let told = Told::by(&strict.end().await);
    told.is(Code::OutOfRange, "FELL_BEHIND");
    assert!(told.fact("oldest_seq").parse::<u64>().expect("a number") > first);
    core.shutdown().await;
}

#[tokio::test]
async fn a_stopped_process_slows_no_publisher_and_hears_everything_afterwards() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO).hears_scenes())
        .start()
        .await;
    let operator = core.operator();
    let pid = operator.until_phase("child", "ready").await.pid;
    core_tests::signal(pid, Signal::STOP);
    for number in 0..2_000 {
        operator
            .publish("scene.count", json!(number))
            .await
            .expect("published");
    }
    core_tests::signal(pid, Signal::CONT);
    let heard = async || {
        let notes = operator.call("child.heard", json!({})).await;
        notes.map(|notes| notes.as_array().expect("a list").len())
    };
    eventually!(heard().await.is_ok_and(|heard| heard == 2_000));
    core.shutdown().await;
}

#[tokio::test]
async fn what_passed_while_a_plugin_was_stopped_is_told_after_its_start() {
    let plugin = Declared::remote("lamp").may_subscribe("scene.>");
    let core = TestCore::builder().plugin(plugin).start().await;
    let operator = core.operator();
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    operator.until_phase("lamp", "ready").await;
    let mut heard = lamp.client().subscribe(&["scene.>"]).await;
    operator
        .publish("scene.before", json!(1))
        .await
        .expect("published");
    assert_eq!(heard.event().await.topic, "scene.before");
    operator.stop("lamp").await.expect("stopped");
    let first = operator
        .publish("scene.meanwhile", json!(2))
        .await
        .expect("published");
    operator
        .publish("scene.meanwhile", json!(3))
        .await
        .expect("published");
    operator.start("lamp").await.expect("started");
    operator
        .publish("scene.after", json!(4))
        .await
        .expect("published");
    let gap = heard.gap().await;
    assert_eq!(gap.reason(), Reason::Stopped);
    assert!(gap.from_seq <= first && gap.to_seq > first, "{gap:?}");
    assert_eq!(heard.event().await.topic, "scene.after");
    core.shutdown().await;
}

#[tokio::test]
async fn events_flow_only_from_the_start_on_and_nothing_before_it_is_lost() {
    let plugin = Declared::remote("lamp").may_subscribe("scene.>");
    let core = TestCore::builder().plugin(plugin).start().await;
    let operator = core.operator();
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::with_hooks())
        .await
        .expect("admitted");
    let load = lamp.expect_hook(v1::run_hook::Hook::Load).await;
    let mut heard = lamp.client().subscribe(&["scene.>"]).await;
    operator
        .publish("scene.early", json!(1))
        .await
        .expect("published");
    lamp.hook_done(&load).await;
    let start = lamp.expect_hook(v1::run_hook::Hook::Start).await;
    operator
        .publish("scene.later", json!(2))
        .await
        .expect("published");
    let silence = tokio::time::timeout(std::time::Duration::from_millis(100), heard.next()).await;
    assert!(
        silence.is_err(),
        "not STARTED yet, but it heard {silence:?}"
    );
    lamp.hook_done(&start).await;
    assert_eq!(heard.event().await.topic, "scene.early");
    assert_eq!(heard.event().await.topic, "scene.later");
    core.shutdown().await;
}

#[tokio::test]
async fn a_subscriber_resumes_where_it_was_and_another_epoch_is_a_gap() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["scene.>"]).await;
    let first = operator
        .publish("scene.one", json!(1))
        .await
        .expect("published");
    let epoch = heard.event().await.epoch;
    drop(heard);
    operator
        .publish("scene.two", json!(2))
        .await
        .expect("published");
    let after = |epoch, seq| EventBusSubscribeRequest {
        start: Some(v1::event_bus_subscribe_request::Start::After(
            v1::Position { epoch, seq },
        )),
        ..subscribe(&["scene.>"])
    };
    let mut resumed = operator
        .subscribe_as(after(epoch, first))
        .await
        .expect("admitted");
    assert_eq!(resumed.event().await.topic, "scene.two");
    let mut elsewhere = operator
        .subscribe_as(after(epoch ^ 1, first))
        .await
        .expect("admitted");
    assert_eq!(elsewhere.gap().await.reason(), Reason::EpochChanged);
    core.shutdown().await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_run_and_says_so() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = core.ready_plugin("lamp").await;
    let heard = lamp.client().subscribe(&["lamp.>"]).await;
    lamp.bye("done for today").await;
    Told::by(&heard.end().await).is(Code::Unavailable, "RUN_ENDED");
    core.shutdown().await;
}

#[tokio::test]
async fn the_lifecycle_of_plugins_is_news_that_a_monitor_of_everything_hears() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let mut news = core.operator().subscribe(&[">"]).await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    for topic in ["core.plugin.loaded", "core.plugin.started"] {
        let event = news.event().await;
        assert_eq!(
            (event.topic.as_str(), event.subject.as_str()),
            (topic, "lamp")
        );
        assert_eq!(event.source, "core");
    }
    lamp.bye("enough").await;
    let event = news.event().await;
    assert_eq!(event.subject, "lamp");
    assert!(
        ["core.plugin.unloaded", "core.plugin.crashed"].contains(&event.topic.as_str()),
        "{event:?}"
    );
    core.shutdown().await;
}
