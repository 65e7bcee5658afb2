//! Crashing, closing, opening again.

use super::*;

pub(super) async fn what_was_answered_survives_a_crash(mut bench: Bench) {
    let space = namespace("n");
    let mut expected = BTreeMap::new();
    let adapter = bench.adapter();
    let mut storage = Storage::open(Arc::clone(&adapter), &bench.config).expect("opens");
    let mut epochs = HashSet::from([storage.epoch().0]);
    for round in 0..5_u64 {
        for index in 0..20_u64 {
            let (name, text) = (format!("k{}", index * (round + 1)), index.to_string());
            let written = set(&storage, &space, &name, &text).await.expect("writes");
            expected.insert(name, (text, written.revision));
        }
        if let Some((name, _)) = expected.pop_first() {
            let deleted = storage.delete(&space, key(&name), None, soon());
            assert!(deleted.await.expect("deletes").existed);
        }
        let revision = storage.revision();
        // The crashed one stays open behind: nothing was closed in order.
        let crashed = storage;
        storage = bench.after_crash(&adapter);
        drop(crashed);
        assert_eq!(storage.revision(), revision);
        assert!(epochs.insert(storage.epoch().0), "a new epoch");
        let query = Query {
            page_size: 1_000,
            ..Query::all(space.clone())
        };
        let page = storage.scan(query).await.expect("reads");
        let found: BTreeMap<_, _> = page
            .items
            .iter()
            .map(|entry| {
                let text = entry.value.as_str().to_owned();
                (entry.key.to_string(), (text, entry.revision))
            })
            .collect();
        assert_eq!(found, expected);
    }
}

pub(super) async fn a_closed_store_refuses_and_opens_again_as_it_was(bench: Bench) {
    let adapter = bench.adapter();
    let storage = Storage::open(Arc::clone(&adapter), &bench.config).expect("opens");
    let space = namespace("n");
    let queued: Vec<_> = (0..50)
        .map(|index| {
            let write = apply(&space, &[], vec![set_op(&format!("k{index}"), "1")]);
            storage.apply(write, soon())
        })
        .collect();
    let both = async { tokio::join!(storage.close(), storage.close()) };
    timeout(PATIENCE, both).await.expect("in time");
    storage.close().await;
    for answer in queued {
        answer.await.expect("what was queued is written");
    }
    for error in [
        set(&storage, &space, "k", "1").await.expect_err("closed"),
        storage.get(&space, &key("k1")).await.expect_err("closed"),
        storage
            .list_keys(Query::all(space.clone()))
            .await
            .expect_err("closed"),
    ] {
        assert_eq!(error.reason(), Reason::ShuttingDown, "{error}");
    }
    let storage = match bench.kind {
        AdapterKind::Memory => Storage::open(adapter, &bench.config).expect("opens"),
        AdapterKind::Sqlite => bench.open(),
    };
    assert_eq!(storage.revision(), Revision(50));
    assert_eq!(value(&storage, &space, "k49").await.as_deref(), Some("1"));
}
