//! Runs and their channels: what is said first, who may go on with a run, and what an ended run may
//! still do (nothing).

use std::time::Duration;

use bytes::Bytes;
use core_proto::v1;
use core_proto::v1::plugin_message::Message as ToCore;
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told, eventually, within};
use prost::Message as _;
use serde_json::json;
use tonic::Code;

async fn core() -> TestCore {
    TestCore::builder()
        .tcp()
        .plugin(Declared::remote("lamp"))
        .start()
        .await
}

#[tokio::test]
async fn the_configuration_of_a_plugin_arrives_with_its_welcome() {
    let config = json!({ "rooms": ["kitchen"], "dim": { "to": 0.3 } });
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp").config(config.clone()))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let sent: serde_json::Value = serde_json::from_slice(&lamp.welcome.config).expect("JSON");
    assert_eq!(sent, config);
    core.shutdown().await;
}

#[tokio::test]
async fn unknown_fields_and_features_of_a_hello_are_ignored() {
    let core = core().await;
    let hello = Hello::ready().feature("telepathy").feature("heartbeat");
    // Field 1000 inside the Hello: what a newer SDK may send.
    let mut inner = hello.0.encode_to_vec();
    inner.extend_from_slice(&[0xc2, 0x3e, 2, 8, 1]);
    let mut frame = vec![0x0a];
    prost::encoding::encode_varint(inner.len() as u64, &mut frame);
    frame.extend(inner);
    let lamp = RawPlugin::open_with(&core.remote("lamp"), frame)
        .await
        .expect("admitted");
    assert_eq!(lamp.welcome.features, ["heartbeat"]);
    core.shutdown().await;
}

#[tokio::test]
async fn the_same_instance_resumes_its_run_and_everything_stands() {
    let core = core().await;
    let client = core.remote("lamp");
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut first = RawPlugin::open(&client, hello.clone())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let mut heard = first.client().subscribe(&["lamp.>"]).await;
    let operator = core.operator().clone();
    let lost = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    first.expect_call().await;
    // While the first channel still stands: it is replaced at once.
    let mut second = RawPlugin::open(&client.another_connection(), hello.clone())
        .await
        .expect("resumed");
    assert!(second.welcome.resumed);
    assert_eq!(second.welcome.run, first.welcome.run);
    assert_eq!(second.welcome.generation, first.welcome.generation);
    let end = first.end().await;
    Told::by(&end).is(Code::Aborted, "CHANNEL_REPLACED");
    let lost = within("answered", lost)
        .await
        .unwrap()
        .expect_err("lost with its channel");
    Told::by(&lost).is(Code::Unavailable, "PROVIDER_LOST");
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = second.expect_call().await;
    second.answer(arrived.call_id, json!("here")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "here");
    core.operator()
        .publish("lamp.news", json!(1))
        .await
        .expect("published");
    assert_eq!(
        heard.event().await.topic,
        "lamp.news",
        "its subscription stands"
    );

    // After a loss: suspended, then resumed, hooks not run again.
    drop(second);
    core.operator().until_phase("lamp", "suspended").await;
    let third = RawPlugin::open(&client.another_connection(), hello)
        .await
        .expect("resumed");
    assert!(third.welcome.resumed);
    assert_eq!(third.welcome.run, first.welcome.run);
    let back = core.operator().until_phase("lamp", "ready").await;
    assert_eq!(
        (back.generation, back.restarts),
        (first.welcome.generation, 0)
    );
    core.shutdown().await;
}

#[tokio::test]
async fn the_callers_of_a_suspended_provider_wait_for_its_return() {
    let core = core().await;
    let client = core.remote("lamp");
    let hello = Hello::ready().services(&["lamp.on"]);
    let lamp = RawPlugin::open(&client, hello.clone())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    drop(lamp);
    core.operator().until_phase("lamp", "suspended").await;
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let mut lamp = RawPlugin::open(&client.another_connection(), hello)
        .await
        .expect("resumed");
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("back")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "back");
    core.shutdown().await;
}

#[tokio::test]
async fn a_run_whose_channel_does_not_come_back_ends() {
    let plugin = Declared::remote("lamp").suspend(Duration::from_millis(300));
    let core = TestCore::builder().plugin(plugin).start().await;
    let client = core.remote("lamp");
    let hello = Hello::ready();
    let lamp = RawPlugin::open(&client, hello.clone())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let run = lamp.welcome.run.clone();
    drop(lamp);
    let ended = core
        .operator()
        .until("lamp", "its run is over", |p| p.last_exit.is_some())
        .await;
    assert!(!ended.last_exit.expect("an exit").message.is_empty());
    eventually!(
        match RawPlugin::open(&client.another_connection(), hello.clone()).await {
            Ok(lamp) => {
                assert!(!lamp.welcome.resumed && lamp.welcome.run != run);
                assert_eq!(lamp.welcome.generation, 2);
                true
            }
            Err(refused) => {
                Told::by(&refused).is(Code::Unavailable, "BACKOFF");
                assert!(Told::by(&refused).retry);
                false
            }
        }
    );
    core.shutdown().await;
}

#[tokio::test]
async fn another_instance_or_none_is_refused_while_the_run_lives() {
    let core = core().await;
    let client = core.remote("lamp");
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&client, hello).await.expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    for other in [Hello::ready(), Hello::ready().instance(Bytes::new())] {
        let refused = RawPlugin::open(&client.another_connection(), other).await;
        let told = Told::by(&refused.expect_err("another copy"));
        told.is(Code::AlreadyExists, "ALREADY_CONNECTED")
            .says("lamp");
        assert!(told.retry, "{told:?}");
    }
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("unharmed")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "unharmed");
    core.shutdown().await;
}

#[tokio::test]
async fn a_request_of_an_ended_run_is_refused_and_changes_nothing() {
    let core = core().await;
    let client = core.remote("lamp");
    let before = client
        .publish("lamp.x", json!(1))
        .await
        .expect_err("no channel yet");
    Told::by(&before)
        .is(Code::FailedPrecondition, "NO_RUN")
        .says("PluginChannel.Open");
    let lamp = RawPlugin::open(&client, Hello::ready())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let stale = lamp.client();
    stale.store("lamp", "k", "1").await.expect("its run lives");
    lamp.bye("a new version").await;
    core.operator()
        .until("lamp", "its run is over", |p| p.last_exit.is_some())
        .await;
    let next = within("a new run begins", async {
        loop {
            match RawPlugin::open(&client.another_connection(), Hello::ready()).await {
                Ok(next) => break next,
                Err(refused) => drop(Told::by(&refused).is(Code::Unavailable, "BACKOFF")),
            }
        }
    })
    .await;
    let refused = stale
        .store("lamp", "k", "2")
        .await
        .expect_err("the old run");
    Told::by(&refused).is(Code::FailedPrecondition, "STALE_RUN");
    assert_eq!(
        next.client()
            .stored("lamp", "k")
            .await
            .expect("read")
            .as_deref(),
        Some("1")
    );
    client
        .store("lamp", "k", "3")
        .await
        .expect("without a run the live one is meant");
    let invented = client
        .with_run("0123456789abcdef")
        .store("lamp", "k", "4")
        .await;
    Told::by(&invented.expect_err("no such run")).is(Code::FailedPrecondition, "STALE_RUN");
    core.shutdown().await;
}

#[tokio::test]
async fn frames_of_a_replaced_channel_change_nothing() {
    let core = core().await;
    let client = core.remote("lamp");
    let hello = Hello::ready().services(&["lamp.on"]);
    let old = RawPlugin::open(&client, hello.clone())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let mut new = RawPlugin::open(&client.another_connection(), hello)
        .await
        .expect("resumed");
    old.try_bye("from the grave").await;
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = new.expect_call().await;
    new.answer(arrived.call_id, json!("alive")).await;
    assert_eq!(within("answered", call).await.unwrap().unwrap(), "alive");
    assert_eq!(core.operator().plugin("lamp").await.phase, "ready");
    core.shutdown().await;
}

#[tokio::test]
async fn a_wire_version_that_the_core_does_not_speak_is_refused_naming_who_should_be_updated() {
    let core = core().await;
    let refused = RawPlugin::open(&core.remote("lamp"), Hello::ready().wire(2, 3)).await;
    let told = Told::by(&refused.expect_err("from the future"));
    told.is(Code::FailedPrecondition, "WIRE_VERSION");
    told.says("2-3").says("1-1").says("update the core");
    let shown = core.operator().until_phase("lamp", "incompatible").await;
    assert!(shown.message.contains("update the core"), "{shown:?}");
    let updated = RawPlugin::open(&core.remote("lamp"), Hello::ready().wire(1, 3)).await;
    assert_eq!(
        updated.as_ref().expect("1 is common").welcome.wire_version,
        1
    );
    core.operator().until_phase("lamp", "ready").await;
    core.shutdown().await;
}

#[tokio::test]
async fn the_first_message_must_be_a_hello_and_must_come_in_time() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .configure(|config| config.limits.hello_timeout = Duration::from_millis(200))
        .start()
        .await;
    let client = core.remote("lamp");
    let pong = v1::PluginMessage {
        message: Some(ToCore::Pong(v1::Pong { nonce: 1 })),
    };
    for first in [pong.encode_to_vec(), Vec::new()] {
        let refused = RawPlugin::open_with(&client, first)
            .await
            .expect_err("no Hello");
        Told::by(&refused)
            .is(Code::InvalidArgument, "BAD_HELLO")
            .says("Hello");
    }
    let late = RawPlugin::open_stream(&client, tokio_stream::pending()).await;
    let late = late.expect_err("nothing was said");
    Told::by(&late).is(Code::DeadlineExceeded, "HELLO_TIMEOUT");
    let garbage = RawPlugin::open_with(&client, vec![0xff; 64])
        .await
        .expect_err("no protobuf");
    assert!(
        matches!(garbage.code(), Code::Internal | Code::InvalidArgument),
        "{garbage:?}"
    );
    RawPlugin::open(&client, Hello::ready())
        .await
        .expect("a good Hello is welcome all the same");
    core.shutdown().await;
}
