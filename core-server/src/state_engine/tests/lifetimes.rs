//! Time to live, and keys that belong to a run.

use tokio::task::JoinSet;

use super::*;

/// Far less than what [`next`] waits for.
const WHILE: Duration = Duration::from_secs(10);

fn set_with(
    engine: &StateEngine,
    name: &str,
    value: &'static str,
    options: SetOptions,
) -> SetReceipt {
    let value = Bytes::from_static(value.as_bytes());
    let set = engine.set_with(&plugin("lamp"), &key(name), value, options);
    set.expect("good")
}

fn lasting(ttl: Duration) -> SetOptions {
    SetOptions {
        ttl: Some(ttl),
        ..SetOptions::default()
    }
}

fn owned(run: &RunId) -> SetOptions {
    SetOptions {
        owner: Some(run.clone()),
        ..SetOptions::default()
    }
}

/// A live watch of everything.
async fn live(engine: &StateEngine) -> Watch {
    let mut watch = engine.watch(request(&[">"])).expect("opens");
    while !matches!(next(&mut watch).await, WatchItem::SnapshotEnd(_)) {}
    watch
}

#[tokio::test(start_paused = true)]
async fn what_has_a_time_to_live_is_gone_when_it_has_passed_and_watchers_hear_of_it() {
    let engine = engine();
    let stop = CancellationToken::new();
    let mut worker = JoinSet::new();
    worker.spawn(engine.clone().run(stop.clone()));
    let first = set_with(&engine, "lamp.a", "1", lasting(WHILE));
    set_with(&engine, "lamp.b", "1", lasting(3 * WHILE));
    let entry = engine.get(&key("lamp.a")).expect("there");
    assert!(entry.expires_at.is_some());
    let mut watch = live(&engine).await;
    // Sleeps by the clock that the test has paused: it jumps to when something happens.
    let told = told(&mut watch).await;
    assert_eq!(told, [line(ChangeKind::Expired, "lamp.a", "", "1", false)]);
    assert_eq!(engine.get(&key("lamp.a")), None);
    assert!(engine.stats().revision > first.revision);
    assert_eq!(engine.stats().keys, 1);
    stop.cancel();
    worker.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_absent_before_anybody_removed_it() {
    let engine = engine();
    set_with(&engine, "lamp.a", "1", lasting(WHILE));
    set_with(&engine, "lamp.b", "1", SetOptions::default());
    let mut watch = live(&engine).await;
    tokio::time::advance(WHILE).await;
    assert_eq!(engine.get(&key("lamp.a")), None);
    let page = engine.list("", None, 10);
    assert_eq!(page.entries.len(), 1);
    let value = Bytes::from_static(b"1");
    let absent = Some(Revision::ABSENT);
    let again = engine.set(&plugin("lamp"), &key("lamp.a"), value, absent, None);
    assert!(again.expect("absent").changed, "not a report");
    let both = [line(ChangeKind::Set, "lamp.a", "1", "1", true)];
    assert_eq!(told(&mut watch).await, both);
    tokio::time::advance(WHILE).await;
    assert!(
        engine.get(&key("lamp.a")).is_some(),
        "without a time to live"
    );
    assert!(!delete(&engine, "lamp.c").existed);
}

#[tokio::test(start_paused = true)]
async fn a_report_says_anew_how_long_it_lasts() {
    let engine = engine();
    set_with(&engine, "lamp.a", "1", lasting(WHILE));
    tokio::time::advance(WHILE / 2).await;
    assert!(!set_with(&engine, "lamp.a", "1", lasting(WHILE)).changed);
    tokio::time::advance(WHILE * 3 / 4).await;
    assert!(engine.get(&key("lamp.a")).is_some());
    for bad in [Duration::ZERO, MAX_TTL + Duration::from_secs(1)] {
        let value = Bytes::from_static(b"1");
        let refused = engine.set_with(&plugin("lamp"), &key("lamp.a"), value, lasting(bad));
        assert!(
            matches!(refused, Err(Error::BadField { field: "ttl", .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn keys_of_a_run_become_stale_live_again_or_are_removed() {
    let engine = StateEngine::new(
        Config {
            stale_ttl: WHILE,
            ..Config::default()
        },
        Revision::ABSENT,
    );
    let stop = CancellationToken::new();
    let mut worker = JoinSet::new();
    worker.spawn(engine.clone().run(stop.clone()));
    let (run, next_run) = (RunId::random(), RunId::random());
    let before = set_with(&engine, "lamp.a", "1", owned(&run));
    set_with(&engine, "lamp.b", "1", owned(&run));
    set_with(&engine, "lamp.c", "1", SetOptions::default());
    set_with(&engine, "lamp.d", "1", owned(&run));
    // No longer the run's.
    set_with(&engine, "lamp.d", "1", SetOptions::default());
    let mut watch = live(&engine).await;
    engine.end_run(&run);
    let stale = ["lamp.a", "lamp.b"].map(|name| line(ChangeKind::Stale, name, "1", "1", false));
    assert_eq!(told(&mut watch).await, stale);
    let entry = engine.get(&key("lamp.a")).expect("still readable");
    assert!(entry.stale && entry.expires_at.is_some());
    assert_eq!(entry.revision, before.revision, "the value is the same");
    assert!(!engine.get(&key("lamp.c")).expect("there").stale);

    // Another run of the same plugin says that it is still so.
    let again = set_with(&engine, "lamp.a", "1", owned(&next_run));
    assert_eq!((again.revision, again.changed), (before.revision, false));
    let live = [line(ChangeKind::Live, "lamp.a", "1", "1", false)];
    assert_eq!(told(&mut watch).await, live);
    assert!(!engine.get(&key("lamp.a")).expect("there").stale);
    // The run that ended has nothing more to say.
    engine.end_run(&run);
    let gone = [line(ChangeKind::Expired, "lamp.b", "", "1", false)];
    assert_eq!(told(&mut watch).await, gone);
    let keys = engine.list("", None, 10).entries;
    let keys: Vec<_> = keys.iter().map(|entry| entry.key.to_string()).collect();
    assert_eq!(keys, ["lamp.a", "lamp.c", "lamp.d"]);
    stop.cancel();
    worker.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_key_does_not_outlive_its_own_time() {
    let engine = engine();
    let run = RunId::random();
    let options = SetOptions {
        ttl: Some(WHILE),
        ..owned(&run)
    };
    set_with(&engine, "lamp.a", "1", options);
    engine.end_run(&run);
    tokio::time::advance(WHILE).await;
    assert_eq!(engine.get(&key("lamp.a")), None);
}

#[test]
fn many_keys_of_a_run_become_stale_each_once() {
    let engine = engine();
    let run = RunId::random();
    for index in 0..3 * AT_ONCE {
        set_with(&engine, &format!("lamp.k{index}"), "1", owned(&run));
    }
    let mut watch = engine.watch(request(&[">"])).expect("opens");
    engine.end_run(&run);
    let mut stale = 0;
    while let Some(Some(item)) = watch.next().now_or_never() {
        if let Ok(WatchItem::Changes(changes)) = item {
            stale += changes.iter().filter(|change| change.entry.stale).count();
        }
    }
    assert_eq!(stale, 3 * AT_ONCE);
    assert_eq!(engine.stats().keys, 3 * AT_ONCE);
}
