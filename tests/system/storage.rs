//! Durable data over the wire, and what is left of it when the core is killed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use core_proto::v1::{self, StorageApplyRequest, StorageOp, storage_op::Op};
use core_tests::{CoreProcess, Declared, Hello, RawPlugin, Scratch, TestCore, Told, eventually};
use serde_json::json;
use tonic::Code;

use super::CORE;

/// Writers at once; several share one transaction.
const WRITERS: usize = 16;
/// Acknowledged writes of a round before the core is killed in the middle of the next ones.
const WRITES_BEFORE_THE_KILL: usize = 200;

#[tokio::test]
async fn what_was_acknowledged_is_there_after_the_core_was_killed() {
    let mut core = CoreProcess::new(CORE, "");
    // The ledger: key -> value of every write that was acknowledged, over all rounds.
    let ledger: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let mut revision = 0;
    for round in 0..3 {
        let operator = core.start().await;
        let acknowledged = ledger.lock().unwrap().clone();
        for (key, value) in acknowledged {
            let stored = operator.stored("ledger", &key).await.expect("read");
            assert_eq!(
                stored,
                Some(value),
                "{key} was acknowledged before the kill"
            );
        }
        let first = operator
            .store("ledger", "round", &round.to_string())
            .await
            .expect("written");
        assert!(first > revision, "revisions rise over restarts");
        revision = first;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (ledger, operator) = (Arc::clone(&ledger), operator.clone());
                tokio::spawn(async move {
                    for number in 0.. {
                        let key = format!("{round}/{writer}/{number}");
                        let value = json!({ "round": round, "number": number }).to_string();
                        if operator.store("ledger", &key, &value).await.is_err() {
                            return;
                        }
                        ledger.lock().unwrap().insert(key, value);
                    }
                })
            })
            .collect();
        let goal = (round + 1) * WRITES_BEFORE_THE_KILL;
        eventually!(ledger.lock().unwrap().len() >= goal);
        core.kill().await;
        for writer in writers {
            core_tests::within("a writer notices", writer)
                .await
                .expect("no panic");
        }
    }
    let operator = core.start().await;
    let ledger = ledger.lock().unwrap().clone();
    assert!(ledger.len() >= 3 * WRITES_BEFORE_THE_KILL);
    for (key, value) in ledger {
        assert_eq!(
            operator.stored("ledger", &key).await.expect("read"),
            Some(value),
            "{key}"
        );
    }
    core.kill().await;
}

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
    let lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let plugin = lamp.client();
    let mut heard = core.operator().subscribe(&["lamp.>"]).await;
    let set = |key: &str, value: &str| StorageOp {
        op: Some(Op::Set(v1::StorageOpSet {
            key: key.to_owned(),
            value: value.to_owned().into(),
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
    let mut lamp = RawPlugin::open(&core.remote("lamp"), Hello::ready())
        .await
        .expect("admitted");
    core.operator().until_phase("lamp", "ready").await;
    let mut requests = Vec::new();
    for number in 0..200_u64 {
        let set = v1::StorageSetRequest {
            namespace: "lamp".to_owned(),
            key: "last".to_owned(),
            value: number.to_string().into(),
            if_revision: None,
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
