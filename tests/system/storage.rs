//! Durable data over the wire.

use core_proto::v1::{self, StorageApplyRequest, StorageOp, storage_op::Op};
use core_tests::{Declared, Scratch, TestCore, Told};
use plugin_sdk::StorageChange;
use plugin_sdk::prelude::*;
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn a_clean_restart_on_the_same_database_finds_everything() {
    let place = Scratch::new();
    let database = place.path().join("kept.db");
    let start = || {
        let database = database.clone();
        let builder = TestCore::builder().sqlite();
        builder
            .configure(|config| config.storage.path = database)
            .start()
    };
    let core = start().await;
    let revision = core
        .operator()
        .store("notes", "a", "{\"exact\":  1.0}")
        .await
        .expect("written");
    core.shutdown().await;
    let core = start().await;
    let stored = core.operator().stored("notes", "a").await.expect("read");
    assert_eq!(
        stored.as_deref(),
        Some("{\"exact\":  1.0}"),
        "byte for byte"
    );
    assert!(
        core.operator()
            .store("notes", "b", "2")
            .await
            .expect("written")
            > revision
    );
    core.shutdown().await;
}

#[tokio::test]
async fn a_second_core_on_the_same_database_is_refused_and_the_first_unharmed() {
    let core = TestCore::builder().sqlite().start().await;
    let database = core.directory().join("data/runtime.db");
    assert!(database.exists());
    let second = TestCore::builder().sqlite();
    let second = second
        .configure(|config| config.storage.path = database)
        .try_start()
        .await;
    let said = core_server::error::chain(&second.err().expect("one database, one core"));
    assert!(said.contains("runtime.db"), "{said}");
    core.operator()
        .store("notes", "a", "1")
        .await
        .expect("the first goes on");
    core.shutdown().await;
}

#[tokio::test]
async fn an_apply_is_all_or_nothing_and_its_events_follow_its_commit() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = core.ready_plugin("lamp").await;
    let plugin = lamp.client();
    let mut heard = core.operator().subscribe(&["lamp.>"]).await;
    let set = |key: &str, value: &str| StorageOp {
        op: Some(Op::Set(v1::StorageOpSet {
            key: key.to_owned(),
            value: value.to_owned().into(),
            ..Default::default()
        })),
    };
    let apply = |expected: u64, value: &str| StorageApplyRequest {
        namespace: "lamp".to_owned(),
        checks: vec![v1::StorageCheck {
            key: "a".to_owned(),
            revision: expected,
        }],
        ops: vec![set("a", value), set("b", value)],
        events: vec![v1::NewEvent {
            topic: "lamp.saved".to_owned(),
            data: value.to_owned().into(),
            ..Default::default()
        }],
    };
    let refused = plugin
        .storage()
        .apply(apply(7, "0"))
        .await
        .expect_err("it is absent");
    Told::by(&refused).is(Code::Aborted, "REVISION_MISMATCH");
    let done = plugin
        .storage()
        .apply(apply(0, "1"))
        .await
        .expect("applied")
        .into_inner();
    assert_eq!(done.existed, [false, false]);
    for key in ["a", "b"] {
        assert_eq!(
            plugin.stored("lamp", key).await.expect("read").as_deref(),
            Some("1")
        );
    }
    let event = heard.event().await;
    assert_eq!(
        (event.topic.as_str(), &event.data[..]),
        ("lamp.saved", &b"1"[..])
    );
    core.shutdown().await;
}

#[tokio::test]
async fn writes_of_one_channel_take_effect_in_the_order_sent() {
    let core = TestCore::builder()
        .sqlite()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let mut lamp = core.ready_plugin("lamp").await;
    let mut requests = Vec::new();
    for number in 0..200_u64 {
        let set = v1::StorageSetRequest {
            namespace: "lamp".to_owned(),
            key: "last".to_owned(),
            value: number.to_string().into(),
            ..Default::default()
        };
        requests.push(lamp.send_request("Storage/Set", &set).await);
    }
    let mut previous = 0;
    for request in requests {
        let response = lamp.response(request).await;
        assert_eq!(response.error, None);
        let answer: v1::StorageSetResponse = prost::Message::decode(response.message).unwrap();
        assert!(answer.revision > previous, "revisions in the order sent");
        previous = answer.revision;
    }
    assert_eq!(
        lamp.client()
            .stored("lamp", "last")
            .await
            .expect("read")
            .as_deref(),
        Some("199")
    );
    core.shutdown().await;
}

async fn told(watch: &mut tonic::Streaming<v1::StorageWatchResponse>) -> v1::StorageWatchResponse {
    let message = core_tests::within("the storage is told", watch.message()).await;
    message.expect("no error").expect("not the end")
}

#[tokio::test]
async fn a_plugin_watches_its_namespace_resumes_and_is_told_what_is_gone() {
    use v1::storage_change::Kind;
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = core.ready_plugin("lamp").await;
    let plugin = lamp.client();
    plugin.store("lamp", "a", "1").await.expect("written");
    let request = v1::StorageWatchRequest {
        namespace: "lamp".to_owned(),
        include_initial: true,
        ..Default::default()
    };
    let watching = plugin.storage().watch(request.clone()).await;
    let mut watching = watching.expect("a watch").into_inner();
    let initial = told(&mut watching).await;
    assert_eq!(initial.changes[0].kind(), Kind::Initial);
    let end = told(&mut watching).await;
    assert!(end.snapshot_end && end.changes.is_empty());
    let cursor = end.cursor.expect("a place");
    drop(watching);

    plugin.store("lamp", "b", "2").await.expect("written");
    let brief = v1::StorageSetRequest {
        namespace: "lamp".to_owned(),
        key: "brief".to_owned(),
        value: "3".into(),
        ttl: Some(prost_types::Duration {
            seconds: 0,
            nanos: 50_000_000,
        }),
        ..Default::default()
    };
    plugin.storage().set(brief).await.expect("written");
    let resumed = v1::StorageWatchRequest {
        from: Some(cursor),
        include_initial: false,
        ..request.clone()
    };
    let watching = plugin.storage().watch(resumed.clone()).await;
    let mut watching = watching.expect("a watch").into_inner();
    assert!(told(&mut watching).await.snapshot_end);
    let mut kinds = Vec::new();
    while kinds.len() < 3 {
        let changes = told(&mut watching).await.changes;
        kinds.extend(changes.iter().map(|change| {
            let key = change.entry.as_ref().map_or("", |entry| entry.key.as_str());
            (key.to_owned(), change.kind())
        }));
    }
    let expected = [
        ("b", Kind::Put),
        ("brief", Kind::Put),
        ("brief", Kind::Expired),
    ];
    let expected = expected.map(|(key, kind)| (key.to_owned(), kind));
    assert_eq!(kinds, expected);
    assert_eq!(plugin.stored("lamp", "brief").await.expect("read"), None);

    let other = v1::StorageWatchRequest {
        namespace: "other".to_owned(),
        ..request
    };
    let refused = plugin
        .storage()
        .watch(other)
        .await
        .expect_err("not its own");
    Told::by(&refused).is(Code::PermissionDenied, "NOT_GRANTED");
    let stale = v1::StorageWatchRequest {
        from: Some(v1::StorageCursor {
            epoch: cursor.epoch + 1,
            ..cursor
        }),
        ..resumed
    };
    let refused = plugin
        .storage()
        .watch(stale)
        .await
        .expect_err("another epoch");
    Told::by(&refused).is(Code::OutOfRange, "COMPACTED");
    core.shutdown().await;
}

#[tokio::test]
async fn operators_see_usage_set_quotas_and_carry_entries_over() {
    let core = TestCore::builder()
        .plugin(Declared::remote("lamp"))
        .start()
        .await;
    let lamp = core.ready_plugin("lamp").await;
    let plugin = lamp.client();
    for (key, value) in [("a", "{ \"x\":\n1 }"), ("b", "1.0")] {
        plugin.store("lamp", key, value).await.expect("written");
    }
    let mut admin = core.operator().storage_admin();
    let quota = v1::StorageAdminSetQuotaRequest {
        namespace: "lamp".to_owned(),
        max_keys: Some(2),
        max_bytes: None,
    };
    admin.set_quota(quota.clone()).await.expect("set");
    let full = plugin.store("lamp", "c", "1").await.expect_err("a third");
    Told::by(&full).is(Code::ResourceExhausted, "QUOTA_KEYS");
    let request = v1::StorageUsageRequest {
        namespace: "lamp".to_owned(),
    };
    let usage = plugin
        .storage()
        .usage(request)
        .await
        .expect("told")
        .into_inner();
    let usage = usage.usage.expect("some");
    assert_eq!((usage.keys, usage.max_keys), (2, 2));
    let denied = plugin.storage_admin().set_quota(quota).await;
    assert_eq!(
        denied.expect_err("operators only").code(),
        Code::PermissionDenied
    );
    // What the core keeps there is nobody else's.
    let own = core.operator().store("core", "quota/lamp", "{}").await;
    Told::by(&own.expect_err("the core's")).is(Code::PermissionDenied, "NOT_GRANTED");

    let export = v1::StorageAdminExportRequest::default();
    let mut lines = admin.export(export).await.expect("begins").into_inner();
    let mut exported = Vec::new();
    while let Some(piece) = lines.message().await.expect("goes on") {
        exported.push(v1::StorageAdminImportRequest { lines: piece.lines });
    }
    let drop = v1::StorageAdminDropNamespaceRequest {
        namespace: "lamp".to_owned(),
    };
    let dropped = admin
        .drop_namespace(drop)
        .await
        .expect("dropped")
        .into_inner();
    assert_eq!(dropped.removed, 2);
    let mut progress = admin
        .import(tokio_stream::iter(exported))
        .await
        .expect("begins")
        .into_inner();
    let mut last = v1::StorageAdminImportResponse::default();
    while let Some(so_far) = progress.message().await.expect("goes on") {
        last = so_far;
    }
    // The quota too.
    assert_eq!((last.entries, last.expired), (3, 0));
    let value = plugin.stored("lamp", "a").await.expect("read");
    assert_eq!(value.as_deref(), Some("{ \"x\":\n1 }"), "byte for byte");
    let bad = tokio_stream::iter([v1::StorageAdminImportRequest {
        lines: "nonsense\n".into(),
    }]);
    let mut progress = admin.import(bad).await.expect("begins").into_inner();
    let refused = progress.message().await.expect_err("no entry");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_LINE");
    // Not even by an operator, who could not remove it again.
    let foreign = tokio_stream::iter([v1::StorageAdminImportRequest {
        lines: "{\"namespace\":\"core.x\",\"key\":\"k\",\"value\":null}\n".into(),
    }]);
    let mut progress = admin.import(foreign).await.expect("begins").into_inner();
    let refused = progress.message().await.expect_err("the core's");
    Told::by(&refused).is(Code::PermissionDenied, "NOT_GRANTED");
    // Nothing is kept, so nothing can be backed up.
    let backup = v1::StorageAdminBackupRequest {
        path: "/nowhere/at/all.db".to_owned(),
        ..Default::default()
    };
    let refused = admin.backup(backup).await.expect_err("in memory");
    Told::by(&refused).is(Code::FailedPrecondition, "UNSUPPORTED");
    core.shutdown().await;
}

#[tokio::test]
async fn namespaces_are_listed_page_by_page() {
    let core = TestCore::start().await;
    let mut names: Vec<_> = (0..5).map(|number| format!("n{number}")).collect();
    for name in &names {
        let stored = core.operator().store(name, "k", "1").await;
        stored.expect("written");
    }
    let mut admin = core.operator().storage_admin();
    let mut ask = async |page_size, page_token: &str| {
        let request = v1::StorageAdminListNamespacesRequest {
            page_size,
            page_token: page_token.to_owned(),
        };
        let page = admin.list_namespaces(request).await?.into_inner();
        let found = page.namespaces.into_iter().map(|used| used.namespace);
        Ok::<_, tonic::Status>((found.collect::<Vec<_>>(), page.next_page_token))
    };
    let (first, token) = ask(2, "").await.expect("a page");
    assert_eq!(first, names[..2]);
    // What is gone meanwhile is where a page begins.
    let request = v1::StorageAdminDropNamespaceRequest {
        namespace: "n1".to_owned(),
    };
    let mut other = core.operator().storage_admin();
    other.drop_namespace(request).await.expect("dropped");
    let (second, token) = ask(2, &token).await.expect("a page");
    assert_eq!(second, names[2..4]);
    let (last, token) = ask(2, &token).await.expect("a page");
    assert_eq!((last.as_slice(), token.as_str()), (&names[4..], ""));
    names.remove(1);
    assert_eq!(ask(4, "").await.expect("all"), (names, String::new()));
    let refused = ask(0, "No Namespace").await.expect_err("no token");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_PAGE_TOKEN");
    let refused = ask(1_001, "").await.expect_err("too many");
    Told::by(&refused).is(Code::InvalidArgument, "BAD_FIELD");
    core.shutdown().await;
}

#[tokio::test]
async fn a_plugin_of_the_sdk_watches_bounds_and_owns() {
    let (told, mut hears) = tokio::sync::mpsc::channel(64);
    let watching = move |ctx: Ctx| {
        let told = told.clone();
        async move {
            let mut watch = ctx.storage().watch("k/").await?;
            while let Some(change) = watch.next().await? {
                // Nobody listens any more: the test is over.
                told.send(change).await.ok();
            }
            Ok(())
        }
    };
    let work = async |ctx: Ctx, (): ()| {
        let (storage, state) = (ctx.storage(), ctx.state());
        storage.set("k/stays", &1).await?;
        storage.set_for("k/goes", &2, millis(50)).await?;
        state.set_owned("keeper.on", &true).await?;
        let entry = state.entry("keeper.on").await?.expect("just written");
        let usage = storage.usage().await?;
        Ok(json!({ "owned": entry.owned, "stale": entry.stale, "max_keys": usage.max_keys }))
    };
    let plugin = Plugin::builder("keeper")
        .service(Service::new("work").handle(work))
        .task("watch", watching);
    let core = TestCore::builder().embed(plugin.build()).start().await;
    core.operator().until_phase("keeper", "ready").await;
    assert_eq!(hears.recv().await, Some(StorageChange::SnapshotEnd));
    let answer = core.operator().call("keeper.work", json!({})).await;
    let expected = json!({ "owned": true, "stale": false, "max_keys": 100_000 });
    assert_eq!(answer.expect("works"), expected);
    let mut puts = Vec::new();
    let mut next = async || core_tests::within("a change", hears.recv()).await;
    loop {
        match next().await.expect("the plugin lives") {
            StorageChange::Put { entry, .. } => puts.push(entry.key),
            StorageChange::Expired { key, .. } => {
                assert_eq!(key, "k/goes");
                break;
            }
            other => panic!("not {other:?}"),
        }
    }
    assert_eq!(puts, ["k/stays", "k/goes"]);
    core.shutdown().await;
}
