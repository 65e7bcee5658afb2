//! Writing: revisions, conditions, order, the queue.

use super::*;

pub(super) async fn revisions_rise_by_one_with_each_change(bench: Bench) {
    let storage = bench.open();
    let (left, right) = (namespace("a"), namespace("b"));
    let first = set(&storage, &left, "k", "1").await.expect("writes");
    let second = set(&storage, &right, "k", "1").await.expect("writes");
    let third = set(&storage, &left, "k", "1").await.expect("writes");
    let pairs: Vec<_> = [first, second, third]
        .iter()
        .map(|written| (written.revision.0, written.created))
        .collect();
    assert_eq!(pairs, [(1, true), (2, true), (3, false)]);

    let absent = storage.delete(&left, key("x"), None, soon());
    let absent = absent.await.expect("is idempotent");
    assert_eq!((absent.revision.0, absent.existed), (3, false));
    let ops = vec![delete_op("x"), delete_op("y")];
    let nothing = storage.apply(apply(&left, &[("k", 3)], ops), soon());
    assert_eq!(nothing.await.expect("applies").revision, Revision(3));
    let there = storage.delete(&left, key("k"), None, soon());
    let there = there.await.expect("deletes");
    assert_eq!((there.revision.0, there.existed), (4, true));
    assert_eq!(value(&storage, &left, "k").await, None);
    let many = vec![set_op("a", "1"), set_op("b", "2"), delete_op("k")];
    let many = storage.apply(apply(&left, &[], many), soon());
    let many = many.await.expect("applies");
    assert_eq!(many.revision, Revision(5));
    assert_eq!(many.existed, [false, false, false]);
    let keys = [key("b"), key("k"), key("a"), key("b")];
    let snapshot = storage.get_many(&left, &keys).await.expect("reads");
    assert_eq!(snapshot.revision, Revision(5));
    let found: Vec<_> = snapshot
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.revision.0))
        .collect();
    assert_eq!(found, [("b", 5), ("a", 5), ("b", 5)]);
    assert_eq!(storage.revision(), Revision(5));
}

pub(super) async fn an_apply_is_all_or_nothing(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    set(&storage, &space, "a", "1").await.expect("writes");
    set(&storage, &space, "b", "1").await.expect("writes");
    for (checks, at, current) in [
        (&[("a", 1), ("b", 1)][..], "b", 2),
        (&[("a", 0)][..], "a", 1),
        (&[("c", 1)][..], "c", 0),
        (&[("c", 7), ("a", 7)][..], "c", 0),
    ] {
        let ops = vec![set_op("c", "3"), delete_op("a")];
        let refused = storage.apply(apply(&space, checks, ops), soon());
        match refused.await.expect_err("a check fails") {
            Error::RevisionMismatch {
                key,
                current: found,
            } => {
                assert_eq!((key.as_str(), found), (at, Revision(current)));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(value(&storage, &space, "a").await.as_deref(), Some("1"));
    assert_eq!(value(&storage, &space, "c").await, None);
    assert_eq!(storage.revision(), Revision(2));
    let checks = [("a", 1), ("b", 2), ("c", 0)];
    let ops = vec![set_op("c", "3"), delete_op("a")];
    let applied = storage.apply(apply(&space, &checks, ops), soon());
    let applied = applied.await.expect("all hold");
    assert_eq!(applied.existed, [false, true]);
    let page = storage.list_keys(Query::all(space)).await.expect("reads");
    assert_eq!(page.items, [key("b"), key("c")]);
}

pub(super) async fn of_many_who_compare_and_set_one_wins_each_round(bench: Bench) {
    const RIVALS: usize = 8;
    const ROUNDS: u64 = 25;
    let storage = bench.open();
    let space = namespace("n");
    let rival = |storage: Storage| {
        let space = space.clone();
        async move {
            let mut wins = 0;
            while wins < ROUNDS {
                let before = storage.get(&space, &key("counter")).await.expect("reads");
                let (revision, number) = before.map_or((Revision::ABSENT, 0), |entry| {
                    (
                        entry.revision,
                        entry.value.as_str().parse::<u64>().expect("number"),
                    )
                });
                let next = Bytes::from((number + 1).to_string());
                let set = storage.set(&space, key("counter"), next, Some(revision), soon());
                match set.await {
                    Ok(_) => wins += 1,
                    Err(Error::RevisionMismatch { current, .. }) => assert!(current > revision),
                    Err(other) => panic!("{other}"),
                }
            }
        }
    };
    // Of threads and not of tasks, so that the adapter meets true concurrency.
    let threads: Vec<_> = (0..RIVALS)
        .map(|_| {
            let (rival, runtime) = (rival(storage.clone()), tokio::runtime::Handle::current());
            std::thread::spawn(move || runtime.block_on(rival))
        })
        .collect();
    let all = async {
        for thread in threads {
            #[expect(clippy::disallowed_methods, reason = "joining a thread blocks")]
            let joined = tokio::task::spawn_blocking(|| thread.join());
            joined.await.expect("joins").expect("no rival fails");
        }
    };
    timeout(PATIENCE, all).await.expect("in time");
    let total = RIVALS as u64 * ROUNDS;
    assert_eq!(
        value(&storage, &space, "counter").await,
        Some(total.to_string())
    );
    assert_eq!(storage.revision(), Revision(total));
    assert_eq!(storage.stats().commits, total);
}

pub(super) async fn writes_take_effect_in_the_order_of_the_calls(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let told = Arc::new(Mutex::new(Vec::new()));
    // None of the futures is polled before all calls were made, and half of them never.
    let mut pending = Vec::new();
    for index in 0..500_u64 {
        let mut write = apply(&space, &[], vec![set_op("k", &index.to_string())]);
        let told = Arc::clone(&told);
        write.after_commit = Some(Box::new(move |revision| told.lock().push(revision.0)));
        let answer = storage.apply(write, soon());
        if index % 2 == 0 {
            pending.push((index, answer));
        }
    }
    for (index, answer) in pending.into_iter().rev() {
        assert_eq!(answer.await.expect("writes").revision.0, index + 1);
    }
    storage.close().await;
    let expected: Vec<u64> = (1..=500).collect();
    assert_eq!(*told.lock(), expected);
}

pub(super) async fn what_follows_a_commit_runs_before_the_answer_or_never(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = |name: &'static str| -> Option<AfterCommit> {
        let told = Arc::clone(&told);
        Some(Box::new(move |revision| {
            told.lock().push((name, revision.0))
        }))
    };
    let mut good = apply(&space, &[], vec![set_op("a", "1")]);
    good.after_commit = hook("good");
    storage.apply(good, soon()).await.expect("applies");
    assert_eq!(*told.lock(), [("good", 1)], "at the latest with the answer");

    let mut mismatch = apply(&space, &[("a", 7)], vec![set_op("a", "1")]);
    mismatch.after_commit = hook("mismatch");
    storage.apply(mismatch, soon()).await.expect_err("mismatch");
    let mut late = apply(&space, &[], vec![set_op("a", "1")]);
    late.after_commit = hook("late");
    let error = storage.apply(late, Instant::now()).await.expect_err("late");
    assert_eq!(error.reason(), Reason::Deadline);
    assert_eq!(error.outcome(), crate::error::Outcome::NotApplied);

    let mut panics = apply(&space, &[], vec![set_op("a", "2")]);
    panics.after_commit = Some(Box::new(|_| panic!("on purpose")));
    let applied = storage.apply(panics, soon()).await.expect("stands");
    assert_eq!(applied.revision, Revision(2));
    let mut nothing = apply(&space, &[], vec![delete_op("x")]);
    nothing.after_commit = hook("nothing changed");
    storage.apply(nothing, soon()).await.expect("applies");
    assert_eq!(*told.lock(), [("good", 1), ("nothing changed", 2)]);
}

pub(super) async fn a_full_queue_refuses_at_once_and_recovers(bench: Bench) {
    let config = Config {
        queue_commands: 4,
        ..bench.config.clone()
    };
    let storage = Storage::open(bench.adapter(), &config).expect("opens");
    let space = namespace("n");
    // The writer is held inside a commit's aftermath, so what follows stays queued.
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let mut blocker = apply(&space, &[], vec![set_op("k", "0")]);
    blocker.after_commit = Some(Box::new(move |_| {
        held.send(()).expect("awaited");
        released.recv_timeout(PATIENCE).expect("released");
    }));
    let blocked = storage.apply(blocker, soon());
    is_held.recv_timeout(PATIENCE).expect("the writer is held");
    let write = |text: &str| storage.apply(apply(&space, &[], vec![set_op("k", text)]), soon());
    let queued: Vec<_> = ["1", "2", "3", "4"].map(write).into();
    for _ in 0..3 {
        let error = write("5").await.expect_err("full");
        assert_eq!(error.reason(), Reason::QueueFull);
        assert_eq!(error.outcome(), crate::error::Outcome::NotApplied);
    }
    assert_eq!(storage.stats().queue_full, 3);
    release.send(()).expect("still held");
    blocked.await.expect("writes");
    for answer in queued {
        answer.await.expect("writes");
    }
    write("6").await.expect("room again");
    assert_eq!(value(&storage, &space, "k").await.as_deref(), Some("6"));
    assert_eq!(storage.revision(), Revision(6));
}

pub(super) async fn a_write_still_queued_at_its_deadline_never_happens(bench: Bench) {
    let storage = bench.open();
    let space = namespace("n");
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let mut blocker = apply(&space, &[], vec![set_op("k", "0")]);
    blocker.after_commit = Some(Box::new(move |_| {
        held.send(()).expect("awaited");
        released.recv_timeout(PATIENCE).expect("released");
    }));
    let blocked = storage.apply(blocker, soon());
    is_held.recv_timeout(PATIENCE).expect("the writer is held");
    let late = storage.apply(
        apply(&space, &[], vec![set_op("k", "1")]),
        Instant::now() + Duration::from_millis(5),
    );
    let error = late.await.expect_err("late");
    assert_eq!(error.reason(), Reason::Deadline);
    assert_eq!(error.outcome(), crate::error::Outcome::NotApplied);
    release.send(()).expect("still held");
    blocked.await.expect("writes");
    storage.close().await;
    assert_eq!(storage.revision(), Revision(1));
    assert_eq!(storage.stats().expired, 1);
}
