//! Shared state over the wire.

use core_proto::v1::state_change::Kind;
use core_proto::v1::{self, StateEngineWatchRequest};
use core_tests::{Declared, Hello, RawPlugin, TestCore, Told, eventually, within};
use serde_json::{Value, json};
use tonic::{Code, Streaming};

async fn watch(
    client: &core_tests::Client,
    pattern: &str,
) -> Streaming<v1::StateEngineWatchResponse> {
    let request = StateEngineWatchRequest {
        patterns: vec![pattern.to_owned()],
        include_initial: true,
        include_reports: false,
    };
    let watch = client.state_engine().watch(request).await;
    watch.expect("a watch").into_inner()
}

async fn next(watch: &mut Streaming<v1::StateEngineWatchResponse>) -> v1::StateEngineWatchResponse {
    let message = within("the state is told", watch.message()).await;
    message.expect("no error").expect("not the end")
}

#[tokio::test]
async fn no_page_names_a_key_that_may_not_be_read() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .plugin(Declared::remote("safe"))
        .plugin(Declared::remote("zone"))
        .start()
        .await;
    let set = async |plugin: &RawPlugin, key: &str| {
        let request = v1::StateEngineSetRequest {
            key: key.to_owned(),
            value: "1".into(),
            ..Default::default()
        };
        let set = plugin.client().state_engine().set(request).await;
        set.expect("its own");
    };
    let mut open = Vec::new();
    for name in ["lamp", "safe", "zone"] {
        let plugin = RawPlugin::open(&core.remote(name), Hello::ready()).await;
        let plugin = plugin.expect("admitted");
        for key in ["a", "b", "c"] {
            set(&plugin, &format!("{name}.{key}")).await;
        }
        open.push(plugin);
    }
    let zone = open.last().expect("three").client();
    let (mut token, mut found) = (String::new(), Vec::new());
    loop {
        let request = v1::StateEngineListRequest {
            page_size: 1,
            page_token: token,
            ..Default::default()
        };
        let page = zone.state_engine().list(request).await;
        let page = page.expect("a page").into_inner();
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        token = page.next_page_token;
        let told = |name| token.starts_with(name);
        assert!(!told("lamp") && !told("safe"), "{token} is told");
        if token.is_empty() {
            break;
        }
    }
    found.retain(|key| !key.starts_with("core."));
    assert_eq!(found, ["zone.a", "zone.b", "zone.c"]);
    core.shutdown().await;
}

#[tokio::test]
async fn a_watcher_gets_what_is_there_and_then_every_change_with_its_writer() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    let plugin = lamp.client();
    plugin
        .set_state("lamp.kitchen", "\"on\"")
        .await
        .expect("written");
    let mut watching = watch(core.operator(), "lamp.>").await;
    let mut snapshot = Vec::new();
    loop {
        let message = next(&mut watching).await;
        snapshot.extend(message.changes);
        if message.snapshot_end {
            assert!(message.revision > 0);
            break;
        }
    }
    assert_eq!(snapshot.len(), 1);
    let initial = &snapshot[0];
    assert_eq!(initial.kind(), Kind::Initial);
    assert_eq!(
        initial.entry.as_ref().map(|entry| entry.writer.as_str()),
        Some("lamp")
    );

    let again = plugin
        .set_state("lamp.kitchen", "\"on\"")
        .await
        .expect("written");
    assert!(!again.changed, "the same value is a report");
    let off = plugin
        .set_state("lamp.kitchen", "\"off\"")
        .await
        .expect("written");
    assert!(off.changed && off.revision > again.revision);
    let change = next(&mut watching).await.changes.remove(0);
    let entry = change.entry.as_ref().expect("an entry");
    assert_eq!((change.kind(), entry.revision), (Kind::Set, off.revision));
    assert_eq!(
        (&change.old_value[..], &entry.value[..]),
        (&b"\"on\""[..], &b"\"off\""[..])
    );
    core.shutdown().await;
}

#[tokio::test]
async fn of_two_writers_with_the_same_revision_one_loses_and_is_told_the_present_one() {
    let core = TestCore::start().await;
    let operator = core.operator();
    let before = operator
        .set_state("home.mode", "1")
        .await
        .expect("written")
        .revision;
    let set = |value: &'static str| v1::StateEngineSetRequest {
        key: "home.mode".to_owned(),
        value: value.into(),
        if_revision: Some(before),
        ..Default::default()
    };
    let won = operator
        .state_engine()
        .set(set("2"))
        .await
        .expect("written")
        .into_inner();
    let lost = operator
        .state_engine()
        .set(set("3"))
        .await
        .expect_err("too late");
    let told = Told::by(&lost);
    told.is(Code::Aborted, "REVISION_MISMATCH");
    assert_eq!(told.fact("current_revision"), won.revision.to_string());
    assert_eq!(
        operator
            .state("home.mode")
            .await
            .expect("read")
            .expect("there")
            .value,
        "2"
    );
    core.shutdown().await;
}

#[tokio::test]
async fn the_core_keeps_the_state_of_every_plugin_and_of_itself() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let operator = core.operator();
    let phase = async || {
        let entry = operator.state("core.plugin.lamp").await.expect("read");
        let value = entry.map(|entry| serde_json::from_slice::<Value>(&entry.value));
        value.map(|value| value.expect("JSON")).unwrap_or_default()
    };
    eventually!(phase().await["phase"] == json!("connecting"));
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    eventually!(phase().await["phase"] == json!("ready"));
    assert_eq!(phase().await["generation"], lamp.welcome.generation);
    assert!(operator.state("core.info").await.expect("read").is_some());
    // Plugins may read it and nobody may write it.
    let read = lamp
        .client()
        .state("core.plugin.lamp")
        .await
        .expect("free to read");
    assert!(read.is_some());
    let denied = lamp
        .client()
        .set_state("core.plugin.lamp", "1")
        .await
        .expect_err("the core's own");
    Told::by(&denied).is(Code::PermissionDenied, "NOT_GRANTED");
    core.shutdown().await;
}

#[tokio::test]
async fn what_a_run_owns_is_stale_when_it_ends_and_live_when_it_is_said_again() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let owned = || v1::StateEngineSetRequest {
        key: "lamp.kitchen".to_owned(),
        value: "\"on\"".into(),
        owned: true,
        ..Default::default()
    };
    let lamp = core.ready_plugin("lamp").await;
    let first = lamp.client().state_engine().set(owned()).await;
    let first = first.expect("written").into_inner();
    let refused = core.operator().state_engine().set(owned()).await;
    Told::by(&refused.expect_err("no run")).is(Code::InvalidArgument, "BAD_FIELD");
    let mut watching = watch(core.operator(), "lamp.>").await;
    while !next(&mut watching).await.snapshot_end {}

    lamp.bye("a new version").await;
    let change = next(&mut watching).await.changes.remove(0);
    assert_eq!(change.kind(), Kind::Stale);
    let entry = change.entry.expect("an entry");
    assert!(entry.stale && entry.owned && entry.expires_at.is_some());
    assert_eq!(
        (&entry.value[..], entry.revision),
        (&b"\"on\""[..], first.revision)
    );

    let lamp = within("a new run begins", async {
        loop {
            match RawPlugin::open(&core.remote("lamp"), Hello::ready()).await {
                Ok(next) => break next,
                Err(refused) => drop(Told::by(&refused).is(Code::Unavailable, "BACKOFF")),
            }
        }
    })
    .await;
    core.operator().until_phase("lamp", "ready").await;
    let again = lamp.client().state_engine().set(owned()).await;
    assert!(!again.expect("written").into_inner().changed);
    let change = next(&mut watching).await.changes.remove(0);
    assert_eq!(change.kind(), Kind::Live);
    assert!(!change.entry.expect("an entry").stale);
    core.shutdown().await;
}
