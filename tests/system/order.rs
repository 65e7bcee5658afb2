//! Publishes and writes of one channel take effect in the order sent (law 5), though a write is durable
//! only later; and what watches and requests are bounded by.

use core_proto::v1::{self, NewEvent};
use core_tests::{Declared, RawPlugin, TestCore, Told, eventually, json as data, within};
use serde_json::json;
use tonic::Code;

use super::counters::counter;

async fn lamp() -> (TestCore, RawPlugin) {
    // A database: a commit takes time.
    let core = TestCore::builder()
        .sqlite()
        .plugin(Declared::remote("lamp"))
        .configure(|config| config.limits.watches_per_plugin = 2)
        .start()
        .await;
    let lamp = core.ready_plugin("lamp").await;
    (core, lamp)
}

fn set(number: u32) -> v1::StorageSetRequest {
    v1::StorageSetRequest {
        namespace: "lamp".to_owned(),
        key: format!("k{number}"),
        value: number.to_string().into(),
        ..Default::default()
    }
}

fn event(topic: &str, number: u32) -> NewEvent {
    NewEvent {
        topic: topic.to_owned(),
        data: number.to_string().into(),
        ..Default::default()
    }
}

fn publish(topic: &str, number: u32) -> v1::EventBusPublishRequest {
    v1::EventBusPublishRequest {
        event: Some(event(topic, number)),
    }
}

#[tokio::test]
async fn who_hears_of_a_write_finds_it_written() {
    let (core, mut lamp) = lamp().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["lamp.>"]).await;
    let before = counter(operator, "channel_put_off_total").await;
    for number in 0..50 {
        // Nobody waits for an answer in between.
        let write = lamp.send_request("Storage/Set", &set(number)).await;
        let state = v1::StateEngineSetRequest {
            key: format!("lamp.k{number}"),
            value: number.to_string().into(),
            ..Default::default()
        };
        let state = lamp.send_request("StateEngine/Set", &state).await;
        let batch = v1::EventBusPublishBatchRequest {
            events: vec![event("lamp.batch", number)],
        };
        let batch = lamp.send_request("EventBus/PublishBatch", &batch).await;
        let told = lamp
            .send_request("EventBus/Publish", &publish("lamp.told", number))
            .await;
        for topic in ["lamp.batch", "lamp.told"] {
            let event = heard.event().await;
            assert_eq!((event.topic.as_str(), data(&event)), (topic, json!(number)));
            let stored = operator.stored("lamp", &format!("k{number}")).await;
            assert_eq!(stored.expect("read"), Some(number.to_string()), "{topic}");
            let state = operator.state(&format!("lamp.k{number}")).await;
            assert!(state.expect("read").is_some(), "{topic}");
        }
        for request in [write, state, batch, told] {
            assert_eq!(lamp.response(request).await.error, None);
        }
    }
    // Else nothing was shown.
    assert!(counter(operator, "channel_put_off_total").await > before);
    core.shutdown().await;
}

#[tokio::test]
async fn many_writes_and_publishes_keep_their_order_and_each_is_answered() {
    let (core, mut lamp) = lamp().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["lamp.>"]).await;
    let mut requests = Vec::new();
    for number in 0..300 {
        let request = match number % 3 {
            0 => lamp.send_request("Storage/Set", &set(number)).await,
            1 => {
                lamp.send_request("EventBus/Publish", &publish("lamp.n", number))
                    .await
            }
            _ => {
                let write = v1::StorageOpSet {
                    key: format!("k{number}"),
                    value: number.to_string().into(),
                    ..Default::default()
                };
                let apply = v1::StorageApplyRequest {
                    namespace: "lamp".to_owned(),
                    ops: vec![v1::StorageOp {
                        op: Some(v1::storage_op::Op::Set(write)),
                    }],
                    events: vec![event("lamp.n", number)],
                    ..Default::default()
                };
                lamp.send_request("Storage/Apply", &apply).await
            }
        };
        requests.push(request);
    }
    for number in (0..300).filter(|number| number % 3 > 0) {
        assert_eq!(data(&heard.event().await), json!(number));
    }
    let mut revision = 0;
    for (number, request) in requests.into_iter().enumerate() {
        let response = lamp.response(request).await;
        assert_eq!(response.error, None);
        if number % 3 == 0 {
            let written: v1::StorageSetResponse =
                prost::Message::decode(response.message).expect("its answer");
            assert!(written.revision > revision, "writes keep their order");
            revision = written.revision;
        }
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_write_that_is_refused_holds_no_publish_back() {
    let (core, mut lamp) = lamp().await;
    let mut heard = core.operator().subscribe(&["lamp.>"]).await;
    let lost = v1::StorageSetRequest {
        if_revision: Some(4_711),
        ..set(1)
    };
    let write = lamp.send_request("Storage/Set", &lost).await;
    let told = lamp
        .send_request("EventBus/Publish", &publish("lamp.told", 1))
        .await;
    assert_eq!(heard.event().await.topic, "lamp.told");
    assert!(lamp.response(write).await.error.is_some());
    assert_eq!(lamp.response(told).await.error, None);
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_has_a_bounded_number_of_watches_and_operators_have_not() {
    let (core, lamp) = lamp().await;
    let client = lamp.client();
    let state = || v1::StateEngineWatchRequest {
        patterns: vec!["lamp.>".to_owned()],
        ..Default::default()
    };
    let services = v1::ServiceRegistryWatchRequest::default;
    let mut first = client
        .state_engine()
        .watch(state())
        .await
        .expect("the first");
    let second = client
        .service_registry()
        .watch(services())
        .await
        .expect("the second");
    within("it lives", first.get_mut().message())
        .await
        .expect("an item");
    let refused = [
        client.state_engine().watch(state()).await.err(),
        client.service_registry().watch(services()).await.err(),
    ];
    for refused in refused {
        let told = Told::by(&refused.expect("one too many"));
        told.is(Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS");
        assert_eq!(told.fact("limit"), "2");
    }
    let operator = core.operator();
    let mut many = Vec::new();
    for _ in 0..3 {
        many.push(
            operator
                .service_registry()
                .watch(services())
                .await
                .expect("no bound"),
        );
    }
    // A watch that ends makes room.
    drop(second);
    eventually!(client.service_registry().watch(services()).await.is_ok());
    core.shutdown().await;
}
