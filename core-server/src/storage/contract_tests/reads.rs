//! Reading: values, snapshots, order, pages.

use super::*;

pub(super) async fn what_is_written_is_read_back_byte_for_byte(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let long = format!("\"{}\"", "x".repeat((256 << 10) - 2));
    for text in [
        "null",
        " {\"b\" : 1.50, \"a\":1, \"b\":2}\n",
        "123456789012345678901234567890.10",
        "\"\\u00e9 \u{e9} \\u0000\"",
        &long,
    ] {
        let written = set(&storage, &space, "k", text).await.expect("writes");
        let entry = storage.get(&space, &key("k")).await.expect("reads");
        let entry = entry.expect("is there");
        assert_eq!(entry.value.as_str(), text);
        assert_eq!(entry.revision, written.revision);
        assert_eq!(entry.key, key("k"));
        // From the engine, past the cache.
        let page = storage
            .scan(Query::all(space.clone()))
            .await
            .expect("reads");
        assert_eq!(page.items, [entry]);
    }
    assert_eq!(value(&storage, &space, "absent").await, None);
    assert_eq!(value(&storage, &namespace("m"), "k").await, None);
}

pub(super) async fn what_is_no_json_is_refused_with_its_place(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    for bad in ["", "{", "1 2", "{\"a\":1}x"] {
        let error = set(&storage, &space, "k", bad).await.expect_err(bad);
        assert_eq!(error.reason(), Reason::NotJson);
        assert!(error.metadata().contains(&("line", "1".to_owned())));
    }
    let long = format!("\"{}\"", "x".repeat(256 << 10));
    let error = set(&storage, &space, "k", &long).await.expect_err("long");
    assert_eq!(error.reason(), Reason::TooLarge);
    assert_eq!(storage.revision(), Revision(0));
}

pub(super) async fn a_reader_never_goes_back_while_others_write(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let writer = {
        let (storage, space) = (storage.clone(), space.clone());
        async move {
            for index in 0..300 {
                let text = index.to_string();
                let ops = vec![set_op("a", &text), set_op("b", &text)];
                storage
                    .apply(apply(&space, &[], ops), soon())
                    .await
                    .expect("writes");
            }
        }
    };
    let reader = |through_scan: bool| {
        let (storage, space) = (storage.clone(), space.clone());
        async move {
            let mut seen = Revision(0);
            while seen < Revision(300) {
                let answered = storage.revision().max(seen);
                let entry = storage.get(&space, &key("a")).await.expect("reads");
                seen = entry.map_or(Revision(0), |entry| entry.revision);
                assert!(seen >= answered, "{seen} after {answered}");
                if through_scan {
                    let keys = [key("a"), key("b")];
                    let snapshot = storage.get_many(&space, &keys).await.expect("reads");
                    let revisions: HashSet<_> = snapshot
                        .entries
                        .iter()
                        .map(|entry| entry.revision)
                        .collect();
                    assert!(revisions.len() <= 1, "half an Apply: {revisions:?}");
                    assert!(revisions.iter().all(|found| *found <= snapshot.revision));
                    seen = seen.max(revisions.into_iter().max().unwrap_or_default());
                }
            }
        }
    };
    let all = async { tokio::join!(writer, reader(false), reader(true), reader(true)) };
    timeout(PATIENCE, all).await.expect("in time");
}

pub(super) async fn keys_come_in_the_order_of_their_bytes_page_by_page(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let names = [
        " ",
        "a",
        "a/",
        "a/1",
        "a/10",
        "a/2",
        "aa",
        "b",
        "z",
        "z\u{7e}",
        "\u{e9}",
        "\u{7ff}",
        "\u{800}",
        "\u{d7ff}",
        "\u{d7ff}x",
        "\u{e000}",
        "\u{ffff}",
        "\u{10000}",
        "\u{10ffff}",
        "\u{10ffff}\u{10ffff}",
    ];
    let ops = names.iter().rev().map(|name| set_op(name, "1")).collect();
    storage
        .apply(apply(&space, &[], ops), soon())
        .await
        .expect("writes");
    for other in ["m", "o", "n.x", "n0"] {
        set(&storage, &namespace(other), "a", "1")
            .await
            .expect("writes");
    }
    for (prefix, after, direction, expected) in [
        ("", "", Direction::Ascending, names.to_vec()),
        (
            "",
            "",
            Direction::Descending,
            names.iter().rev().copied().collect(),
        ),
        (
            "a/",
            "",
            Direction::Ascending,
            vec!["a/", "a/1", "a/10", "a/2"],
        ),
        ("a/", "a/1", Direction::Ascending, vec!["a/10", "a/2"]),
        (
            "a/",
            "a/2",
            Direction::Descending,
            vec!["a/10", "a/1", "a/"],
        ),
        ("a/", "b", Direction::Ascending, vec![]),
        (
            "a/",
            "Z",
            Direction::Ascending,
            vec!["a/", "a/1", "a/10", "a/2"],
        ),
        ("a/", "Z", Direction::Descending, vec![]),
        (
            "a/",
            "z",
            Direction::Descending,
            vec!["a/2", "a/10", "a/1", "a/"],
        ),
        ("q", "", Direction::Ascending, vec![]),
        (
            "\u{d7ff}",
            "",
            Direction::Ascending,
            vec!["\u{d7ff}", "\u{d7ff}x"],
        ),
        (
            "\u{d7ff}",
            "",
            Direction::Descending,
            vec!["\u{d7ff}x", "\u{d7ff}"],
        ),
        (
            "\u{10ffff}",
            "",
            Direction::Descending,
            vec!["\u{10ffff}\u{10ffff}", "\u{10ffff}"],
        ),
        ("", "\u{ffff}", Direction::Ascending, names[17..].to_vec()),
    ] {
        for page_size in [0, 1, 2, 1_000] {
            let mut query = Query {
                prefix: prefix.to_owned(),
                start_after: after.to_owned(),
                direction,
                page_size,
                ..Query::all(space.clone())
            };
            let mut found = Vec::new();
            loop {
                let keys = storage.list_keys(query.clone()).await.expect("reads");
                assert_eq!(keys.revision, Revision(5));
                found.extend(keys.items.iter().map(|key| key.as_str().to_owned()));
                assert!(
                    keys.items.len()
                        <= page_size.max(if page_size == 0 { 100 } else { 0 }) as usize
                );
                if keys.next_page_token.is_empty() {
                    break;
                }
                assert!(!keys.items.is_empty(), "an empty page is the last");
                query.page_token = keys.next_page_token;
            }
            assert_eq!(
                found, expected,
                "{prefix:?} {after:?} {direction:?} {page_size}"
            );
        }
    }
}

pub(super) async fn a_scan_ends_early_before_a_mebibyte_and_goes_on(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let text = format!("\"{}\"", "x".repeat(200 << 10));
    for index in 0..12 {
        set(&storage, &space, &format!("k{index:02}"), &text)
            .await
            .expect("writes");
    }
    let mut query = Query::all(space.clone());
    let mut pages = Vec::new();
    loop {
        let page = storage.scan(query.clone()).await.expect("reads");
        pages.push(page.items.len());
        if page.next_page_token.is_empty() {
            break;
        }
        query.page_token = page.next_page_token;
    }
    assert_eq!(pages, [5, 5, 2]);
    let keys = storage
        .list_keys(Query::all(space.clone()))
        .await
        .expect("reads");
    assert_eq!(keys.items.len(), 12, "keys are small");
    assert_eq!(keys.next_page_token, "");

    query.prefix = "k0".to_owned();
    let error = storage
        .scan(query.clone())
        .await
        .expect_err("another query");
    assert_eq!(error.reason(), Reason::BadPageToken);
    query.page_token.clear();
    query.page_size = 1_001;
    let error = storage.scan(query.clone()).await.expect_err("too many");
    assert_eq!(error.reason(), Reason::BadField);
    query.page_size = 1;
    query.start_after = "a\0".to_owned();
    let error = storage
        .list_keys(query)
        .await
        .expect_err("control character");
    assert_eq!(error.reason(), Reason::BadKey);
    let error = storage.get_many(&space, &[]).await.expect_err("no keys");
    assert_eq!(error.reason(), Reason::BadField);
}

pub(super) async fn many_keys_together_are_bounded_and_one_alone_is_not(bench: Bench) {
    let config = Config {
        max_value_bytes: 1 << 20,
        ..bench.config.clone()
    };
    let storage = Storage::open(bench.adapter(), &config).expect("opens");
    let space = namespace("n");
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    // With their keys exactly as much as is allowed; and one more byte.
    let quarter = MAX_PAGE_BYTES / 4 - 1;
    for name in ["a", "b", "c", "d"] {
        set(&storage, &space, name, &text(quarter))
            .await
            .expect("writes");
    }
    let all = ["a", "b", "c", "absent", "d"].map(key);
    let found = storage.get_many(&space, &all).await.expect("just so");
    assert_eq!(found.entries.len(), 4);
    set(&storage, &space, "d", &text(quarter + 1))
        .await
        .expect("writes");
    let refused = storage.get_many(&space, &all).await.expect_err("too much");
    assert_eq!(refused.reason(), Reason::TooLarge);
    assert!(
        refused.metadata().contains(&("field", "keys".to_owned())),
        "{refused}"
    );
    // What has expired is not there, and has no weight.
    let value = Bytes::from(text(quarter));
    let brief = Some(Duration::from_nanos(1));
    let gone = storage.set_for(&space, key("a"), value, brief, None, soon());
    gone.await.expect("writes");
    let found = storage.get_many(&space, &all).await.expect("less");
    assert_eq!(found.entries.len(), 3);
    let most = MAX_PAGE_BYTES - 5;
    set(&storage, &space, "alone", &text(most))
        .await
        .expect("writes");
    let alone = storage.get_many(&space, &[key("alone")]).await;
    assert_eq!(alone.expect("one").entries.len(), 1);
}
