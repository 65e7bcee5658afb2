//! Watching.

use tokio::task::JoinSet;

use super::*;

fn request(space: &Namespace) -> WatchRequest {
    WatchRequest {
        namespace: space.clone(),
        prefixes: Vec::new(),
        from: None,
        include_initial: false,
    }
}

pub(super) fn initial(space: &Namespace) -> WatchRequest {
    WatchRequest {
        include_initial: true,
        ..request(space)
    }
}

async fn next(watch: &mut Watch) -> WatchItem {
    let item = timeout(PATIENCE, watch.next()).await.expect("in time");
    item.expect("goes on")
}

/// What a watcher knows who applies everything that it is told.
#[derive(Default)]
pub(super) struct Mirror {
    pub(super) entries: BTreeMap<String, (u64, String)>,
    last: u64,
    conflated: bool,
    cursor: Option<Cursor>,
}

impl Mirror {
    fn apply(&mut self, item: WatchItem) -> bool {
        let mut ended = false;
        match item {
            WatchItem::Changes(changes, cursor) => {
                for change in changes {
                    let name = change.key.to_string();
                    self.conflated |= change.conflated;
                    match change.what {
                        What::Initial(entry) => {
                            let held = (entry.revision.0, entry.value.as_str().to_owned());
                            assert!(self.entries.insert(name, held).is_none(), "once");
                        }
                        What::Put(entry) => {
                            assert!(change.revision.0 >= self.last, "in order");
                            self.last = change.revision.0;
                            let held = (entry.revision.0, entry.value.as_str().to_owned());
                            self.entries.insert(name, held);
                        }
                        What::Deleted | What::Expired => {
                            assert!(change.revision.0 >= self.last, "in order");
                            self.last = change.revision.0;
                            self.entries.remove(&name);
                        }
                    }
                }
                self.cursor = cursor.or(self.cursor);
            }
            WatchItem::SnapshotEnd(cursor) => {
                self.cursor = Some(cursor);
                ended = true;
            }
            WatchItem::Progress(cursor) => self.cursor = Some(cursor),
        }
        ended
    }

    pub(super) async fn snapshot(watch: &mut Watch) -> Self {
        let mut mirror = Self::default();
        while !mirror.apply(next(watch).await) {}
        mirror
    }

    pub(super) async fn up_to(&mut self, watch: &mut Watch, revision: Revision) {
        while self.cursor.is_none_or(|cursor| cursor.revision < revision) {
            self.apply(next(watch).await);
        }
    }
}

async fn stored(storage: &Storage, space: &Namespace) -> BTreeMap<String, (u64, String)> {
    let mut query = Query {
        page_size: 1_000,
        ..Query::all(space.clone())
    };
    let mut all = BTreeMap::new();
    loop {
        let page = storage.scan(query.clone()).await.expect("reads");
        all.extend(page.items.into_iter().map(|entry| {
            let held = (entry.revision.0, entry.value.as_str().to_owned());
            (entry.key.to_string(), held)
        }));
        if page.next_page_token.is_empty() {
            return all;
        }
        query.page_token = page.next_page_token;
    }
}

pub(super) async fn a_watch_tells_what_is_there_and_then_each_change(bench: Bench) {
    let storage = bench.open();
    let (space, other) = (namespace("n"), namespace("other"));
    set(&storage, &space, "a", "1").await.expect("writes");
    set(&storage, &other, "a", "1").await.expect("writes");
    let mut watch = storage.watch(initial(&space)).expect("opens");
    let mirror = Mirror::snapshot(&mut watch).await;
    assert_eq!(mirror.entries.len(), 1);
    assert_eq!(
        mirror.cursor.map(|cursor| cursor.revision),
        Some(Revision(2))
    );

    set(&storage, &other, "b", "1").await.expect("writes");
    let both = vec![set_op("b", "2"), delete_op("a"), delete_op("never")];
    storage
        .apply(apply(&space, &[], both), soon())
        .await
        .expect("writes");
    let WatchItem::Changes(changes, Some(cursor)) = next(&mut watch).await else {
        panic!("changes");
    };
    let told: Vec<_> = changes
        .iter()
        .map(|change| {
            (
                change.key.as_str(),
                change.revision.0,
                change.what == What::Deleted,
            )
        })
        .collect();
    assert_eq!(told, [("b", 4, false), ("a", 4, true)]);
    assert_eq!(cursor.revision, Revision(4));
    assert_eq!(cursor.epoch, storage.epoch());
}

pub(super) async fn a_watch_resumes_behind_its_cursor_or_says_that_it_cannot(mut bench: Bench) {
    let adapter = bench.adapter();
    let storage = Storage::open(Arc::clone(&adapter), &bench.config).expect("opens");
    let space = namespace("n");
    set(&storage, &space, "a", "1").await.expect("writes");
    let mut watch = storage.watch(initial(&space)).expect("opens");
    let mut mirror = Mirror::snapshot(&mut watch).await;
    drop(watch);
    for index in 0..100 {
        set(
            &storage,
            &space,
            &format!("k{}", index % 7),
            &index.to_string(),
        )
        .await
        .expect("writes");
    }
    let resumed = WatchRequest {
        from: mirror.cursor,
        ..request(&space)
    };
    let mut watch = storage.watch(resumed.clone()).expect("opens");
    mirror.up_to(&mut watch, storage.revision()).await;
    assert_eq!(mirror.entries, stored(&storage, &space).await);
    assert_eq!(storage.watches(), 1);

    // Another incarnation has none of it.
    let again = bench.after_crash(&adapter);
    let refused = again.watch(resumed).expect_err("another epoch");
    assert_eq!(refused.reason(), Reason::Compacted);
    let both = WatchRequest {
        include_initial: true,
        from: mirror.cursor,
        ..request(&space)
    };
    assert_eq!(
        again.watch(both).expect_err("one of them").reason(),
        Reason::BadField
    );
}

/// Watchers that begin at any moment and read at any pace end with exactly what is stored.
pub(super) async fn watchers_miss_nothing_while_others_write(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let long = "x".repeat(500);
    for index in 0..3_000 {
        let batch = (0..1).map(|_| set_op(&format!("old{index}"), &format!("\"{long}\"")));
        let write = storage.apply(apply(&space, &[], batch.collect()), soon());
        if index % 500 == 0 {
            write.await.expect("writes");
        }
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let mut writers = JoinSet::new();
    for writer in 0..4_u32 {
        let (storage, space, stop) = (storage.clone(), space.clone(), stop.clone());
        writers.spawn(async move {
            let mut round = 0_u32;
            while !stop.is_cancelled() {
                round += 1;
                let ops = vec![
                    set_op(
                        &format!("k{}", (round * 7 + writer) % 50),
                        &round.to_string(),
                    ),
                    set_op(&format!("old{}", (round * 13 + writer) % 3_000), "1"),
                    delete_op(&format!("old{}", (round * 11 + writer + 5) % 3_000)),
                ];
                let mut seen = HashSet::new();
                let ops = ops.into_iter().filter(|op| seen.insert(op.key().clone()));
                let write = storage.apply(apply(&space, &[], ops.collect()), soon());
                write.await.expect("writes");
            }
        });
    }
    let mut watchers = JoinSet::new();
    for index in 0..4 {
        let (storage, space) = (storage.clone(), space.clone());
        watchers.spawn(async move {
            let mut watch = storage.watch(initial(&space)).expect("opens");
            let mut mirror = Mirror::snapshot(&mut watch).await;
            // One of them is slow: it reads on when the others are done.
            if index > 0 {
                let goal = Revision(storage.revision().0 + 200);
                mirror.up_to(&mut watch, goal).await;
            }
            (watch, mirror)
        });
    }
    let begun = timeout(PATIENCE, watchers.join_all()).await;
    let begun = begun.expect("in time");
    stop.cancel();
    writers.join_all().await;
    let expected = stored(&storage, &space).await;
    for (mut watch, mut mirror) in begun {
        mirror.up_to(&mut watch, storage.revision()).await;
        assert_eq!(mirror.entries, expected);
    }
    assert_eq!(storage.watches(), 0);
}

pub(super) async fn a_slow_watcher_gets_the_newest_of_each_key_marked(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let mut watch = storage.watch(initial(&space)).expect("opens");
    let mut mirror = Mirror::snapshot(&mut watch).await;
    // More than the ring holds, so that its beginning is only in the watcher's own backlog.
    let writes: Vec<_> = (0..100_u32)
        .map(|round| {
            let ops = (0..100).map(|at| set_op(&format!("k{at}"), &round.to_string()));
            storage.apply(apply(&space, &[], ops.collect()), soon())
        })
        .collect();
    for write in writes {
        write.await.expect("writes");
    }
    mirror.up_to(&mut watch, storage.revision()).await;
    assert!(mirror.conflated, "marked");
    assert_eq!(mirror.entries, stored(&storage, &space).await);
}

pub(super) async fn prefixes_choose_and_bounds_are_kept(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    for name in ["a", "ab", "abc", "b", "\u{10ffff}"] {
        set(&storage, &space, name, "1").await.expect("writes");
    }
    let of = |prefixes: &[&str]| WatchRequest {
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
        ..initial(&space)
    };
    for (prefixes, expected) in [
        (&["ab"][..], &["ab", "abc"][..]),
        (&["ab", "a", "abc"], &["a", "ab", "abc"]),
        (&["\u{10ffff}", "b"], &["b", "\u{10ffff}"]),
        (&["", "b"], &["a", "ab", "abc", "b", "\u{10ffff}"]),
        (&["x"], &[]),
    ] {
        let mut watch = storage.watch(of(prefixes)).expect("opens");
        let mirror = Mirror::snapshot(&mut watch).await;
        let keys: Vec<_> = mirror.entries.keys().map(String::as_str).collect();
        assert_eq!(keys, expected, "{prefixes:?}");
    }
    let many = vec!["p"; 17];
    assert_eq!(
        storage.watch(of(&many)).expect_err("many").reason(),
        Reason::BadField
    );
    let bad = storage.watch(of(&["a\n"])).expect_err("no prefix");
    assert_eq!(bad.reason(), Reason::BadKey);
    let mut watch = storage.watch(request(&space)).expect("opens");
    assert!(matches!(next(&mut watch).await, WatchItem::SnapshotEnd(_)));
    storage.close().await;
    let end = timeout(PATIENCE, watch.next()).await.expect("ends");
    assert_eq!(end.expect_err("closed").reason(), Reason::ShuttingDown);
    let late = storage.watch(request(&space)).expect_err("closed");
    assert_eq!(late.reason(), Reason::ShuttingDown);
}
