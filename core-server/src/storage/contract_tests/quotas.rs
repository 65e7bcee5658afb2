//! Quotas, usage, dropping, lines out and in.

use super::*;
use crate::storage::{ENTRY_BYTES, Exporter, Importer, OwnQuota};

async fn usage(storage: &Storage, space: &Namespace) -> (u64, u64) {
    let usage = storage.usage(space).await.expect("reads").usage;
    (usage.keys, usage.bytes)
}

/// What so many entries count in a namespace whose name has one byte, with so many bytes of keys and values.
fn counted(keys: u64, texts: u64) -> (u64, u64) {
    (keys, keys * (1 + ENTRY_BYTES) + texts)
}

pub(super) async fn usage_is_what_is_there(bench: Bench) {
    let storage = bench.open();
    let (space, other) = (namespace("n"), namespace("m"));
    assert_eq!(usage(&storage, &space).await, (0, 0));
    set(&storage, &space, "abc", "12345").await.expect("writes");
    set(&storage, &space, "d", "\"\u{e9}\"")
        .await
        .expect("writes");
    set(&storage, &other, "x", "1").await.expect("writes");
    assert_eq!(usage(&storage, &space).await, counted(2, 13));
    set(&storage, &space, "abc", "1").await.expect("writes");
    assert_eq!(usage(&storage, &space).await, counted(2, 9));
    let batch = vec![delete_op("d"), delete_op("nothing"), set_op("e", "1")];
    storage
        .apply(apply(&space, &[], batch), soon())
        .await
        .expect("writes");
    assert_eq!(usage(&storage, &space).await, counted(2, 6));
    let all = storage.namespaces().await.expect("reads");
    let all: Vec<_> = all
        .iter()
        .map(|used| (used.namespace.as_str(), used.usage.keys))
        .collect();
    assert_eq!(all, [("m", 1), ("n", 2)]);
    let removed = storage.drop_namespace(&space, soon()).await.expect("drops");
    assert_eq!(removed, 2);
    assert_eq!(usage(&storage, &space).await, (0, 0));
    assert_eq!(storage.namespaces().await.expect("reads").len(), 1);
}

pub(super) async fn empty_entries_are_not_free(mut bench: Bench) {
    // Room for four: each has two bytes of names and one of a value.
    bench.config.namespace_bytes = 4 * (3 + ENTRY_BYTES) + 2;
    let storage = bench.open();
    let space = namespace("n");
    for name in ["a", "b", "c", "d"] {
        set(&storage, &space, name, "1").await.expect("room");
    }
    let refused = set(&storage, &space, "e", "1").await.expect_err("a fifth");
    assert_eq!(refused.reason(), Reason::QuotaBytes);
    // The same, but for a longer name of the namespace.
    let longer = namespace("longer");
    for name in ["a", "b", "c"] {
        set(&storage, &longer, name, "1").await.expect("room");
    }
    let refused = set(&storage, &longer, "d", "1").await.expect_err("longer");
    assert_eq!(refused.reason(), Reason::QuotaBytes);
}

pub(super) async fn only_growth_beyond_a_quota_is_refused(mut bench: Bench) {
    bench.config.namespace_keys = 3;
    // Three entries with 100 bytes of keys and values.
    let (_, bytes) = counted(3, 100);
    bench.config.namespace_bytes = bytes;
    bench.config.store_bytes = bytes + ENTRY_BYTES + 50;
    let adapter = bench.adapter();
    let storage = Storage::open(Arc::clone(&adapter), &bench.config).expect("opens");
    let (space, other) = (namespace("n"), namespace("m"));
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    for name in ["a", "b", "c"] {
        set(&storage, &space, name, "1").await.expect("room");
    }
    let refused = set(&storage, &space, "d", "1").await.expect_err("a fourth");
    assert_eq!(refused.reason(), Reason::QuotaKeys);
    assert_eq!(refused.outcome(), crate::error::Outcome::NotApplied);
    // All or nothing, also here; and one that makes room for itself is fine.
    let ops = vec![set_op("a", "2"), set_op("d", "1")];
    let refused = storage.apply(apply(&space, &[], ops), soon()).await;
    assert_eq!(refused.expect_err("a fourth").reason(), Reason::QuotaKeys);
    assert_eq!(value(&storage, &space, "a").await.as_deref(), Some("1"));
    let ops = vec![delete_op("c"), set_op("d", "1")];
    storage
        .apply(apply(&space, &[], ops), soon())
        .await
        .expect("no growth");
    let refused = set(&storage, &space, "a", &text(96))
        .await
        .expect_err("a byte too much");
    assert_eq!(refused.reason(), Reason::QuotaBytes);
    set(&storage, &space, "a", &text(95))
        .await
        .expect("just so");
    let refused = set(&storage, &other, "a", &text(50))
        .await
        .expect_err("the store is full");
    assert_eq!(refused.reason(), Reason::QuotaBytes);
    assert!(
        refused.metadata().contains(&("scope", "store".to_owned())),
        "{refused}"
    );
    assert_eq!(storage.stats().over_quota, 4);
    let deleted = storage.delete(&space, key("a"), None, soon());
    assert!(deleted.await.expect("always").existed);

    // Another one for this namespace, kept over a restart.
    let own = OwnQuota {
        keys: Some(4),
        bytes: None,
    };
    let quota = storage.set_quota(&space, own, soon()).await;
    let quota = quota.expect("sets").quota;
    assert_eq!((quota.keys, quota.bytes), (4, bytes));
    let again = bench.after_crash(&adapter);
    for name in ["e", "f"] {
        set(&again, &space, name, "1").await.expect("four");
    }
    let refused = set(&again, &space, "g", "1").await.expect_err("a fifth");
    assert_eq!(refused.reason(), Reason::QuotaKeys);
    let none = OwnQuota::default();
    assert_eq!(
        again
            .set_quota(&space, none, soon())
            .await
            .expect("sets")
            .quota
            .keys,
        3
    );
    set(&again, &space, "f", "2").await.expect("no growth");
}

pub(super) async fn an_owner_gains_nothing_by_more_namespaces(bench: Bench) {
    let config = Config {
        namespace_keys: 3,
        ..bench.config.clone()
    };
    let storage = Storage::open(bench.adapter(), &config).expect("opens");
    let [first, second, third] = ["lamp", "lamp.a", "lamp.b"].map(namespace);
    set(&storage, &first, "k", "1").await.expect("writes");
    // Together, so that they are one transaction.
    let writes = [&second, &third].map(|space| {
        let value = Bytes::from_static(b"1");
        storage.set(space, key("k"), value, None, soon())
    });
    for write in writes {
        write.await.expect("writes");
    }
    for space in [&first, &second, &third, &namespace("lamp.c")] {
        let refused = set(&storage, space, "other", "1").await.expect_err("full");
        assert_eq!(refused.reason(), Reason::QuotaKeys, "{space}");
        let scope = ("scope", "owner".to_owned());
        assert!(refused.metadata().contains(&scope), "{refused:?}");
    }
    // It is said why: each has room of its own, all together have none.
    let used = storage.usage(&namespace("lamp.c")).await.expect("reads");
    assert_eq!((used.usage, used.quota.keys), (Usage::default(), 3));
    let owned = used.owned;
    assert_eq!((owned.owner.as_str(), owned.quota.keys), ("lamp", 3));
    let held = owned.held;
    let bytes = 3 * (64 + 2) + "lamplamp.alamp.b".len() as u64;
    assert_eq!((held.namespaces, held.usage.keys), (3, 3));
    assert_eq!(held.usage.bytes, bytes);
    let more = OwnQuota {
        keys: Some(1_000),
        bytes: None,
    };
    let set_one = storage.set_quota(&second, more, soon()).await;
    let set_one = set_one.expect("sets");
    assert_eq!((set_one.quota.keys, set_one.owned.quota.keys), (1_000, 3));
    let full = set(&storage, &second, "other", "1").await;
    full.expect_err("the owner is");
    let all = storage.namespaces().await.expect("reads");
    let of_lamp = all.iter().filter(|used| used.owned.owner == "lamp");
    assert_eq!(of_lamp.clone().count(), 3);
    assert!(of_lamp.into_iter().all(|used| used.owned.held == held));
    let others = namespace("lamp-other");
    set(&storage, &others, "k", "1")
        .await
        .expect("another owner");
    let deleted = storage.delete(&second, key("k"), None, soon());
    deleted.await.expect("deletes");
    set(&storage, &third, "other", "1")
        .await
        .expect("room again");
}

pub(super) async fn lines_bring_everything_back_byte_for_byte(bench: Bench) {
    let storage = bench.open();
    let (space, other) = (namespace("n"), namespace("m"));
    let values = [
        "{ \"a\" :\n1 }",
        "1.0",
        " 2 ",
        "\"\\u00e9 \u{e9} \\n\"",
        "\t[]\r\n",
        "1e400",
        "null",
    ];
    for (index, text) in values.iter().enumerate() {
        set(&storage, &space, &format!("k\u{e9}{index}"), text)
            .await
            .expect("writes");
        set(&storage, &other, &format!("k{index}"), text)
            .await
            .expect("writes");
    }
    let many = (0..2_500).map(|index| {
        let value = Bytes::from_static(b"1");
        storage.set(&other, key(&format!("many{index}")), value, None, soon())
    });
    for write in many.collect::<Vec<_>>() {
        write.await.expect("writes");
    }
    let ttl = Some(Duration::from_secs(3_600));
    let value = Bytes::from_static(b"1");
    let lasting = storage.set_for(&space, key("lasting"), value, ttl, None, soon());
    lasting.await.expect("writes");
    let mut exporter = Exporter::begin(storage.clone(), None)
        .await
        .expect("begins");
    let mut lines = Vec::new();
    while let Some(piece) = exporter.next().await.expect("reads") {
        assert_eq!(piece.last(), Some(&b'\n'), "whole lines");
        lines.push(piece);
    }
    let before = contents(&storage, &[&space, &other]).await;
    assert_eq!(exporter.entries(), before.len() as u64);
    for namespace in [&space, &other] {
        storage
            .drop_namespace(namespace, soon())
            .await
            .expect("drops");
    }
    let mut importer = Importer::new(storage.clone(), |_| Ok(()));
    for piece in &lines {
        importer.take(piece).await.expect("imports");
    }
    assert_eq!(importer.entries(), before.len() as u64);
    assert_eq!(contents(&storage, &[&space, &other]).await, before);
    let entry = storage.get(&space, &key("lasting")).await.expect("reads");
    assert!(entry.expect("there").expires_at.is_some());

    let bad = b"{\"namespace\":\"n\",\"key\":\"good\",\"value\":1}\n{\"namespace\":\"n\"}\n";
    let refused = Importer::new(storage.clone(), |_| Ok(()))
        .take(bad)
        .await
        .expect_err("no key");
    assert_eq!(refused.reason(), Reason::BadLine);
    assert_eq!(refused.metadata(), [("line", "2".to_owned())]);
    assert_eq!(
        super::value(&storage, &space, "good").await.as_deref(),
        Some("1")
    );
    let foreign = b"{\"namespace\":\"n\",\"key\":\"first\",\"value\":1}\n{\"namespace\":\"core.x\",\"key\":\"k\",\"value\":1}\n";
    let permit = |namespace: &Namespace| {
        let own = namespace.as_str() == "n";
        own.then_some(()).ok_or_else(|| "not yours".to_owned())
    };
    let mut importer = Importer::new(storage.clone(), permit);
    let refused = importer.take(foreign).await.expect_err("not allowed");
    assert_eq!(refused.reason(), Reason::NotGranted);
    assert_eq!(refused.metadata(), [("line", "2".to_owned())]);
    assert_eq!(importer.entries(), 1);
    let quota = b"{\"namespace\":\"core\",\"key\":\"quota/n\",\"value\":{\"keys\":9}}";
    importer.take(quota).await.expect("quotas are exported too");
    let other = b"{\"namespace\":\"core\",\"key\":\"quota\",\"value\":{}}";
    importer.take(other).await.expect_err("no quota");
    let gone = b"{\"namespace\":\"n\",\"key\":\"gone\",\"value\":1,\"expires_at\":\"2020-01-01T00:00:00Z\"}";
    let mut importer = Importer::new(storage.clone(), |_| Ok(()));
    importer.take(gone).await.expect("left out");
    assert_eq!((importer.entries(), importer.expired()), (0, 1));
}

pub(super) async fn an_export_of_everything_brings_its_quotas_first(bench: Bench) {
    let config = Config {
        namespace_keys: 10,
        ..bench.config.clone()
    };
    let storage = Storage::open(bench.adapter(), &config).expect("opens");
    // Before the core's own in the alphabet.
    let alpha = namespace("alpha");
    let own = OwnQuota {
        keys: Some(100),
        bytes: None,
    };
    storage.set_quota(&alpha, own, soon()).await.expect("sets");
    for index in 0..40 {
        set(&storage, &alpha, &format!("k{index}"), "1")
            .await
            .expect("room");
    }
    let mut exporter = Exporter::begin(storage.clone(), None)
        .await
        .expect("begins");
    let mut lines = Vec::new();
    while let Some(piece) = exporter.next().await.expect("reads") {
        lines.extend(piece);
    }
    let fresh = Config {
        path: bench.directory.path().join("fresh").join("store.db"),
        ..config
    };
    let fresh = Storage::open(fresh.open_adapter().expect("opens"), &fresh).expect("opens");
    let mut importer = Importer::new(fresh.clone(), |_| Ok(()));
    importer.take(&lines).await.expect("all of it");
    assert_eq!(importer.entries(), 41);
    let used = fresh.usage(&alpha).await.expect("reads");
    assert_eq!((used.usage.keys, used.quota.keys), (40, 100));
}

pub(super) async fn an_import_names_the_line_up_to_which_it_took_effect(bench: Bench) {
    let config = Config {
        namespace_keys: 3,
        ..bench.config.clone()
    };
    let storage = Storage::open(bench.adapter(), &config).expect("opens");
    let space = namespace("n");
    let line = |key: &str| format!("{{\"namespace\":\"n\",\"key\":\"{key}\",\"value\":1}}\n");
    let quota =
        |value: &str| format!("{{\"namespace\":\"core\",\"key\":\"quota/n\",\"value\":{value}}}\n");
    let take = async |text: &str| {
        let mut importer = Importer::new(storage.clone(), |_| Ok(()));
        let refused = importer.take(text.as_bytes()).await.expect_err("too much");
        let facts = refused.metadata();
        let named = facts.iter().find(|(name, _)| *name == "line");
        let named = named.expect("a line").1.clone();
        (refused.reason(), named, importer.entries())
    };
    // Written together, and blank lines count; then a good one of another namespace.
    let text = [
        line("a"),
        "\n".to_owned(),
        " \r\n".to_owned(),
        line("b"),
        line("c"),
        line("d"),
        line("e"),
        quota("{\"keys\":9}"),
    ];
    let told = take(&text.concat()).await;
    assert_eq!(told, (Reason::QuotaKeys, "6".to_owned(), 3));
    for (name, there) in [("c", true), ("d", false), ("e", false)] {
        let found = value(&storage, &space, name).await;
        assert_eq!(found.is_some(), there, "{name}");
    }
    // What is no quota would count as none.
    for bad in ["\"nonsense\"", "null", "{\"keys\":-1}"] {
        let told = take(&[line("a"), quota(bad)].concat()).await;
        assert_eq!(told, (Reason::BadLine, "2".to_owned(), 1), "{bad}");
    }
    // Entries beyond a quota that comes with them are growth like any other: its line is the one to change.
    let told = take(&[quota("{\"keys\":2}"), line("a"), line("x")].concat()).await;
    assert_eq!(told, (Reason::QuotaKeys, "3".to_owned(), 2));
}

async fn contents(storage: &Storage, spaces: &[&Namespace]) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for space in spaces {
        let mut query = Query::all((*space).clone());
        loop {
            let page = storage.scan(query.clone()).await.expect("reads");
            all.extend(page.items.iter().map(|entry| {
                let place = (space.to_string(), entry.key.to_string());
                (place, entry.value.as_str().to_owned())
            }));
            if page.next_page_token.is_empty() {
                break;
            }
            query.page_token = page.next_page_token;
        }
    }
    all
}
