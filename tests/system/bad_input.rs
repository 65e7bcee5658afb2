//! Bad input gets an error that helps, and loses nothing.

use core_proto::v1::{self, NewEvent};
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told};
use serde_json::json;
use tonic::Code;

use super::ECHO;

#[tokio::test]
async fn an_unknown_service_is_named_with_the_nearest_one() {
    let core = TestCore::builder()
        .plugin(Declared::remote("devices"))
        .start()
        .await;
    let hello = Hello::ready().services(&["devices.turn_on", "devices.turn_off"]);
    let _devices = RawPlugin::open(&core.remote("devices"), hello)
        .await
        .expect("admitted");
    let status = core
        .operator()
        .call("devices.turn_of", json!({}))
        .await
        .expect_err("a typo");
    let told = Told::by(&status);
    told.is(Code::NotFound, "NO_SUCH_SERVICE");
    told.says("\"devices.turn_of\"")
        .says("did you mean \"devices.turn_off\"?");
    assert_eq!(told.outcome, "not_applied");
    for bad in [
        "",
        "devices",
        "devices..on",
        ".",
        "devices.turn on",
        "devices.*",
    ] {
        let status = core
            .operator()
            .call(bad, json!({}))
            .await
            .expect_err("no name");
        let told = Told::by(&status);
        told.is(Code::InvalidArgument, "BAD_SERVICE_NAME");
        assert!(!told.fact("rule").is_empty(), "{told:?}");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_bad_topic_or_pattern_is_refused_naming_the_rule() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&[">"]).await;
    let long_token = "x".repeat(65);
    let deep = vec!["a"; 17].join(".");
    let long = vec!["x".repeat(60); 5].join(".");
    let bad = [
        "",
        ".",
        "a..b",
        "a.",
        "a b",
        "a.*",
        "a.>",
        "ä.b",
        "a/b",
        &long_token,
        &deep,
        &long,
    ];
    for topic in bad {
        let told = Told::by(&operator.publish(topic, json!(1)).await.expect_err(topic));
        told.is(Code::InvalidArgument, "BAD_TOPIC");
        assert!(!told.fact("rule").is_empty(), "{told:?}");
    }
    for topic in ["core.plugin.started", "$core.slow_subscriber"] {
        let refused = operator.publish(topic, json!(1)).await.expect_err(topic);
        Told::by(&refused)
            .is(Code::PermissionDenied, "NOT_GRANTED")
            .says(topic);
    }
    for pattern in ["", "a..b", ">.a", "a.>.b", "a*", "a.b>"] {
        let request = v1::EventBusSubscribeRequest {
            patterns: vec![pattern.to_owned()],
            ..Default::default()
        };
        let refused = operator.subscribe_as(request).await.expect_err(pattern);
        Told::by(&refused).is(Code::InvalidArgument, "BAD_PATTERN");
    }
    let seq = operator
        .publish("a.good", json!(1))
        .await
        .expect("published");
    assert_eq!(
        heard.event().await.seq,
        seq,
        "nothing bad was heard before it"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn bad_events_of_a_batch_are_refused_one_by_one() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let mut heard = operator.subscribe(&["a.>"]).await;
    let event = |topic: &str| NewEvent {
        topic: topic.to_owned(),
        data: "1".into(),
        ..Default::default()
    };
    let events = vec![event("a.one"), event("a..bad"), event("a.two")];
    let batch = v1::EventBusPublishBatchRequest { events };
    let answer = operator
        .event_bus()
        .publish_batch(batch)
        .await
        .expect("answered")
        .into_inner();
    assert_eq!(answer.published, 2);
    assert_eq!(answer.rejected.len(), 1);
    assert_eq!(answer.rejected[0].index, 1);
    let (one, two) = (heard.event().await, heard.event().await);
    assert_eq!((one.topic.as_str(), two.topic.as_str()), ("a.one", "a.two"));
    assert_eq!((one.seq, two.seq), (answer.first_seq, answer.first_seq + 1));
    let too_many = v1::EventBusPublishBatchRequest {
        events: vec![event("a.b"); 1_001],
    };
    let refused = operator
        .event_bus()
        .publish_batch(too_many)
        .await
        .expect_err("too many");
    Told::by(&refused).is(Code::InvalidArgument, "BATCH_TOO_LARGE");
    core.shutdown().await;
}

#[tokio::test]
async fn a_value_that_is_no_json_is_refused_with_its_place_and_the_old_one_stands() {
    let core = TestCore::builder().sqlite().start().await;
    let operator = core.operator();
    operator
        .store("notes", "k", "{\"good\": 1}")
        .await
        .expect("written");
    for bad in [
        "",
        "{",
        "{\"a\":\n  tru}",
        "1 2",
        "nul",
        "'text'",
        "{\"a\":1,}",
        "\u{feff}1",
    ] {
        let told = Told::by(&operator.store("notes", "k", bad).await.expect_err(bad));
        told.is(Code::InvalidArgument, "NOT_JSON");
        assert_eq!(
            (told.fact("key"), told.outcome.as_str()),
            ("k", "not_applied")
        );
        assert!(
            !told.fact("line").is_empty() && !told.fact("column").is_empty(),
            "{told:?}"
        );
        let told = Told::by(&operator.set_state("home.k", bad).await.expect_err(bad));
        told.is(Code::InvalidArgument, "NOT_JSON");
    }
    let stored = operator.stored("notes", "k").await.expect("read");
    assert_eq!(stored.as_deref(), Some("{\"good\": 1}"));
    assert!(operator.state("home.k").await.expect("read").is_none());
    core.shutdown().await;
}

#[tokio::test]
async fn bad_names_in_storage_and_state_are_refused_by_name() {
    let core = TestCore::start().await;
    let operator = core.operator();
    for namespace in ["", "Upper", "-a", "a b", "ä", &"x".repeat(65)] {
        let refused = operator
            .store(namespace, "k", "1")
            .await
            .expect_err(namespace);
        Told::by(&refused).is(Code::InvalidArgument, "BAD_NAMESPACE");
    }
    for key in ["", "a\nb", "a\0b", &"x".repeat(513)] {
        let refused = operator
            .store("notes", key, "1")
            .await
            .expect_err("a bad key");
        Told::by(&refused).is(Code::InvalidArgument, "BAD_KEY");
    }
    for key in ["", "a..b", "a b", "a.*"] {
        let refused = operator.set_state(key, "1").await.expect_err(key);
        Told::by(&refused).is(Code::InvalidArgument, "BAD_STATE_KEY");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_naming_the_limit_and_the_core_goes_on() {
    let core = TestCore::builder()
        .plugin(Declared::process("child", ECHO))
        .start()
        .await;
    let operator = core.operator();
    operator.until_phase("child", "ready").await;
    let big = json!("x".repeat(256 << 10));
    let too_large = [
        (
            "event data",
            operator.publish("a.b", big.clone()).await.map(drop),
        ),
        (
            "a value",
            operator
                .store("notes", "k", &big.to_string())
                .await
                .map(drop),
        ),
        (
            "a state",
            operator
                .set_state("home.k", &big.to_string())
                .await
                .map(drop),
        ),
        (
            "arguments",
            operator
                .call("child.say", json!({ "text": big }))
                .await
                .map(drop),
        ),
    ];
    for (what, refused) in too_large {
        let told = Told::by(&refused.expect_err(what));
        told.is(Code::InvalidArgument, "TOO_LARGE");
        assert!(
            told.fact("limit_bytes").parse::<u64>().is_ok(),
            "{what}: {told:?}"
        );
    }
    // Above the message limit it is the transport that refuses.
    let huge = json!("x".repeat(5 << 20));
    let refused = operator
        .publish("a.b", huge)
        .await
        .expect_err("above 4 MiB");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    let answer = operator
        .call("child.say", json!({ "text": "fine" }))
        .await
        .expect("it goes on");
    assert_eq!(answer["text"], "fine");
    core.shutdown().await;
}

#[tokio::test]
async fn a_result_that_is_too_large_becomes_the_caller_s_error() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let hello = Hello::ready().services(&["lamp.on"]);
    let mut lamp = RawPlugin::open(&core.remote("lamp"), hello)
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let operator = core.operator().clone();
    let call = tokio::spawn(async move { operator.call("lamp.on", json!({})).await });
    let arrived = lamp.expect_call().await;
    lamp.answer(arrived.call_id, json!("x".repeat(300 << 10)))
        .await;
    let status = core_tests::within("answered", call)
        .await
        .unwrap()
        .expect_err("too large");
    assert_eq!(Told::by(&status).reason, "TOO_LARGE");
    core.shutdown().await;
}

#[tokio::test]
async fn missing_fields_and_bad_metadata_are_named() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let refused = operator
        .event_bus()
        .publish(v1::EventBusPublishRequest { event: None })
        .await;
    let told = Told::by(&refused.expect_err("no event"));
    told.is(Code::InvalidArgument, "BAD_FIELD");
    assert_eq!(told.fact("field"), "event");
    let confused = operator.clone().presenting("core-parent", "yesterday");
    let refused = confused
        .publish("a.b", json!(1))
        .await
        .expect_err("no parent");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_FIELD");
    let page = v1::StorageListKeysRequest {
        namespace: "notes".to_owned(),
        page_token: "made up".to_owned(),
        ..Default::default()
    };
    let refused = operator
        .storage()
        .list_keys(page)
        .await
        .expect_err("no token of ours");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_PAGE_TOKEN");
    core.shutdown().await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_http2_is_sent_away_and_nobody_notices() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let core = TestCore::builder().tcp().start().await;
    let mut stream = tokio::net::TcpStream::connect(core.tcp_address())
        .await
        .expect("connected");
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: core\r\n\r\n")
        .await
        .expect("sent");
    let mut answer = Vec::new();
    let end = core_tests::within("it is closed", stream.read_to_end(&mut answer)).await;
    assert!(end.is_err() || answer.len() < 1_024);
    core.operator()
        .publish("a.b", json!(1))
        .await
        .expect("published");
    core.shutdown().await;
}
