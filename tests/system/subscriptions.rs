//! Where subscriptions begin, what they select, and what else they are told, over the wire.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use core_proto::v1::event_bus_subscribe_request::{Policy, Start};
use core_proto::v1::gap::Reason;
use core_proto::v1::{self, EventBusSubscribeRequest, NewEvent};
use core_tests::{
    Client, Declared, Heard, Hello, RawPlugin, TestCore, Told, eventually, json as data, within,
};
use plugin_sdk::{Ctx, Event, Gap, GapReason, Plugin, Subscribe};
use serde_json::json;
use tonic::Code;

use super::ECHO;
use super::counters::counter;

fn subscribe(patterns: &[&str]) -> EventBusSubscribeRequest {
    EventBusSubscribeRequest {
        patterns: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
        ..Default::default()
    }
}

fn from(start: Start) -> EventBusSubscribeRequest {
    EventBusSubscribeRequest {
        start: Some(start),
        ..subscribe(&["scene.>"])
    }
}

fn after(epoch: u64, seq: u64) -> Start {
    Start::After(v1::Position { epoch, seq })
}

async fn publish(operator: &Client, number: u64) -> u64 {
    operator
        .publish("scene.count", json!(number))
        .await
        .expect("published")
}

#[tokio::test]
async fn each_start_begins_where_it_says() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let first = publish(operator, 1).await;
    publish(operator, 2).await;
    let mut oldest = operator
        .subscribe_as(from(Start::Oldest(v1::Oldest {})))
        .await
        .expect("admitted");
    let epoch = oldest.subscribed.epoch;
    assert!(oldest.subscribed.oldest_seq <= first);
    let event = oldest.event().await;
    assert_eq!(data(&event), json!(1));
    let second = oldest.event().await.time.expect("stamped");
    let mut since = operator
        .subscribe_as(from(Start::Since(second)))
        .await
        .expect("admitted");
    let mut resumed = operator
        .subscribe_as(from(after(epoch, first)))
        .await
        .expect("admitted");
    // A position that was not given out yet is the next one; so is a time to come.
    let future = SystemTime::now() + Duration::from_secs(3_600);
    let mut later = Vec::new();
    for start in [
        None,
        Some(after(epoch, u64::MAX)),
        Some(Start::Since(future.into())),
    ] {
        let request = EventBusSubscribeRequest {
            start,
            ..subscribe(&["scene.>"])
        };
        let subscription = operator.subscribe_as(request).await.expect("admitted");
        assert_eq!(subscription.subscribed.next_seq, first + 2);
        later.push(subscription);
    }
    publish(operator, 3).await;
    for subscription in [&mut since, &mut resumed] {
        assert_eq!(data(&subscription.event().await), json!(2));
        assert_eq!(data(&subscription.event().await), json!(3));
    }
    for subscription in &mut later {
        assert_eq!(data(&subscription.event().await), json!(3));
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_start_that_has_left_the_log_is_answered_by_the_policy() {
    let core = TestCore::builder()
        .configure(|config| {
            config.limits.event_log_events = 16;
            config.limits.slow_subscriber_events = 16;
        })
        .start()
        .await;
    let operator = core.operator();
    let first = publish(operator, 0).await;
    for number in 1..40 {
        publish(operator, number).await;
    }
    let epoch = operator.subscribe(&["scene.>"]).await.subscribed.epoch;
    let mut heard = operator
        .subscribe_as(from(after(epoch, first)))
        .await
        .expect("admitted");
    let gap = heard.gap().await;
    assert_eq!(gap.reason(), Reason::TooOld);
    assert_eq!(gap.from_seq, first + 1);
    assert_eq!(gap.to_seq + 1, heard.subscribed.oldest_seq);
    assert_eq!(heard.event().await.seq, gap.to_seq + 1);
    for (start, policy) in [
        (after(epoch, first), Policy::Disconnect),
        (after(epoch ^ 1, first), Policy::Disconnect),
    ] {
        let request = EventBusSubscribeRequest {
            policy: policy.into(),
            ..from(start)
        };
        let refused = operator.subscribe_as(request).await.expect_err("too old");
        let told = Told::by(&refused);
        told.is(Code::OutOfRange, "FELL_BEHIND");
        assert!(!told.fact("oldest_seq").is_empty(), "{told:?}");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn silence_is_broken_by_a_bookmark_past_the_events_of_others() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["scene.>"]).await;
    let mut last = 0;
    for _ in 0..5 {
        last = operator
            .publish("door.opened", json!(1))
            .await
            .expect("published");
    }
    match heard.next().await {
        Ok(Heard::Bookmark(at)) => {
            assert_eq!((at.epoch, at.seq), (heard.subscribed.epoch, last));
        }
        other => panic!("a bookmark is awaited, not {other:?}"),
    }
    core.shutdown().await;
}

#[tokio::test]
async fn filters_and_exclude_own_select() {
    let plugin = |name| {
        Declared::remote(name)
            .may_publish("scene.>")
            .may_subscribe("scene.>")
    };
    let core = TestCore::builder()
        .plugin(plugin("lamp"))
        .plugin(plugin("door"))
        .start()
        .await;
    let mut plugins = Vec::new();
    for name in ["lamp", "door"] {
        let raw = RawPlugin::open(&core.remote(name), Hello::ready())
            .await
            .expect("admitted");
        core.operator().until_phase(name, "ready").await;
        plugins.push(raw);
    }
    let [lamp, door] = [plugins[0].client(), plugins[1].client()];
    let all = || subscribe(&["scene.>"]);
    let mut others = lamp
        .subscribe_as(EventBusSubscribeRequest {
            exclude_own: true,
            ..all()
        })
        .await
        .expect("admitted");
    let mut of_lamp = door
        .subscribe_as(EventBusSubscribeRequest {
            source: "lamp".to_owned(),
            ..all()
        })
        .await
        .expect("admitted");
    let mut of_attic = door
        .subscribe_as(EventBusSubscribeRequest {
            subject: "attic".to_owned(),
            ..all()
        })
        .await
        .expect("admitted");
    let mut number = 0;
    for (client, subject) in [
        (&lamp, "attic"),
        (&door, "attic"),
        (&lamp, "attic.left"),
        (&door, ""),
        (&door, "attic"),
        (&lamp, "attic"),
    ] {
        number += 1;
        let event = NewEvent {
            topic: "scene.count".to_owned(),
            subject: subject.to_owned(),
            data: number.to_string().into(),
            ..Default::default()
        };
        let request = v1::EventBusPublishRequest { event: Some(event) };
        client
            .event_bus()
            .publish(request)
            .await
            .expect("published");
    }
    for (subscription, expected) in [
        (&mut others, &[2, 4, 5][..]),
        (&mut of_lamp, &[1, 3, 6]),
        (&mut of_attic, &[1, 2, 5, 6]),
    ] {
        for number in expected {
            assert_eq!(data(&subscription.event().await), json!(number));
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_publish_stream_goes_on_after_bad_events_and_counts_them_from_its_beginning() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["scene.>"]).await;
    let event = |topic: &str| NewEvent {
        topic: topic.to_owned(),
        data: "1".into(),
        ..Default::default()
    };
    let batch = |topics: &[&str]| v1::EventBusPublishStreamRequest {
        events: topics.iter().map(|topic| event(topic)).collect(),
    };
    let batches = [
        batch(&["scene.a", "no topic", "scene.b"]),
        batch(&[]),
        batch(&["core.mine", "scene.c"]),
    ];
    let stream = operator
        .event_bus()
        .publish_stream(tokio_stream::iter(batches))
        .await;
    let mut stream = stream.expect("opened").into_inner();
    let (mut acknowledged, mut rejected, mut last_seq) = (Vec::new(), Vec::new(), 0);
    while let Some(answer) = within("an acknowledgement", stream.message())
        .await
        .expect("no error")
    {
        acknowledged.push(answer.acknowledged);
        last_seq = answer.last_seq;
        let codes = answer.rejected.into_iter();
        rejected.extend(codes.map(|bad| (bad.index, bad.error.expect("why").code)));
    }
    assert_eq!(acknowledged, [3, 3, 5], "all before that count are decided");
    let (bad, denied) = (Code::InvalidArgument.into(), Code::PermissionDenied.into());
    assert_eq!(rejected, [(1, bad), (3, denied)]);
    for topic in ["scene.a", "scene.b", "scene.c"] {
        let event = heard.event().await;
        assert_eq!(event.topic, topic);
        if topic == "scene.c" {
            assert_eq!(event.seq, last_seq);
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn news_of_slowness_is_heard_by_name_and_not_by_a_monitor_of_everything() {
    let core = TestCore::builder()
        .configure(|config| config.limits.slow_subscriber_events = 8)
        .start()
        .await;
    let operator = core.operator();
    let _asleep = operator.another_connection().subscribe(&["scene.>"]).await;
    let mut everything = operator.another_connection().subscribe(&[">"]).await;
    let mut advisories = operator.another_connection().subscribe(&["$core.>"]).await;
    // Beyond what HTTP/2 takes in on behalf of one that does not read.
    let big = "x".repeat(32 << 10);
    let mut last = 0;
    let mut published = 0;
    while counter(operator, "event_bus_became_slow_total").await == 0 {
        for _ in 0..16 {
            last = operator
                .publish("scene.big", json!(big))
                .await
                .expect("published");
            published += 1;
            while everything.event().await.seq < last {}
        }
        assert!(published < 2_000, "nobody becomes slow");
    }
    let advisory = advisories.event().await;
    assert_eq!(advisory.topic, "$core.slow_subscriber");
    assert_eq!(
        (advisory.source.as_str(), advisory.subject.as_str()),
        ("core", "operator")
    );
    assert_eq!(data(&advisory)["patterns"], json!(["scene.>"]));
    // The monitor has read on beyond it, and all that it heard was what was published.
    while advisory.seq > last {
        last = operator
            .publish("scene.last", json!(1))
            .await
            .expect("published");
        assert_eq!(everything.event().await.topic, "scene.last");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn an_sdk_tells_its_handler_of_gaps_and_goes_on() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = Arc::clone(&heard);
    let note = move |line: String| {
        let heard = Arc::clone(&kept);
        async move {
            heard.lock().expect("no panic inside").push(line);
            Ok(())
        }
    };
    let (events, gaps) = (note.clone(), note.clone());
    let subscription = Subscribe::to("scene.>")
        .on_gap(move |_: Ctx, gap: Gap| {
            let reason = match gap.reason {
                GapReason::Stopped => "stopped",
                _ => "other",
            };
            gaps(format!("gap {reason} {}", gap.to_seq - gap.from_seq + 1))
        })
        .handle(move |_: Ctx, event: Event| events(String::from_utf8_lossy(event.data()).into()));
    let plugin = Plugin::builder("listener").subscribe(subscription).build();
    let core = TestCore::builder()
        .plugin(Declared::embedded("listener").hears_scenes())
        .embed(plugin)
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("listener", "ready").await;
    publish(operator, 1).await;
    eventually!(heard.lock().unwrap().len() == 1);
    operator.stop("listener").await.expect("stopped");
    publish(operator, 2).await;
    publish(operator, 3).await;
    operator.start("listener").await.expect("started");
    publish(operator, 4).await;
    eventually!(heard.lock().unwrap().len() == 3);
    assert_eq!(*heard.lock().unwrap(), ["1", "gap stopped 2", "4"]);
    core.shutdown().await;
}

#[tokio::test]
async fn an_sdk_keeps_events_on_a_connection_of_their_own_and_asks_by_frames() {
    let core = TestCore::builder()
        .plugin(Declared::process("deaf", ECHO).by_hand())
        .plugin(Declared::process("hears", ECHO).hears_scenes().by_hand())
        .start()
        .await;
    let operator = core.operator();
    let mut connections = vec![counter(operator, "connections").await];
    for name in ["deaf", "hears"] {
        operator.start(name).await.expect("started");
        let already = connections.last().copied().expect("one");
        let more = if name == "hears" { 2 } else { 1 };
        eventually!(counter(operator, "connections").await == already + more);
        connections.push(already + more);
    }
    // A publish of a plugin is a frame on its channel.
    let frames = counter(operator, "channel_requests_total").await;
    operator
        .call("hears.emit", json!({ "topic": "hears.said", "data": 1 }))
        .await
        .expect("published");
    assert_eq!(
        counter(operator, "channel_requests_total").await,
        frames + 1
    );
    core.shutdown().await;
}
