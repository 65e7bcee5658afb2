//! Tests of the whole engine; the table against a plain map, watchers against the table.

mod lifetimes;
mod model;

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};

use super::*;
use crate::error::Classify as _;

fn engine() -> StateEngine {
    StateEngine::new(Config::default(), Revision::ABSENT)
}

fn plugin(name: &str) -> Source {
    Source::Plugin(PluginName::parse(name).unwrap())
}

fn key(text: &str) -> StateKey {
    StateKey::parse(text).unwrap()
}

fn set(engine: &StateEngine, name: &str, value: &str) -> SetReceipt {
    let value = Bytes::copy_from_slice(value.as_bytes());
    engine
        .set(&plugin("lamp"), &key(name), value, None, None)
        .unwrap()
}

fn delete(engine: &StateEngine, name: &str) -> DeleteReceipt {
    engine
        .delete(&plugin("lamp"), &key(name), None, None)
        .unwrap()
}

fn request(patterns: &[&str]) -> WatchRequest {
    WatchRequest {
        watcher: plugin("watcher"),
        patterns: patterns
            .iter()
            .map(|text| Pattern::parse(text).unwrap())
            .collect(),
        include_initial: true,
        include_reports: false,
    }
}

/// The next item; every wait is bounded.
async fn next(watch: &mut Watch) -> WatchItem {
    tokio::time::timeout(Duration::from_secs(60), watch.next())
        .await
        .expect("an item within a minute")
        .expect("it goes on")
        .expect("it is not too slow")
}

/// Kind, key, value, old value and mark of the next changes.
async fn told(watch: &mut Watch) -> Vec<(ChangeKind, String, String, String, bool)> {
    let WatchItem::Changes(changes) = next(watch).await else {
        panic!("no changes");
    };
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let changes = changes.iter().map(|change| {
        (
            change.kind,
            change.entry.key.to_string(),
            text(&change.entry.value),
            change.old_value.as_ref().map_or_else(String::new, text),
            change.conflated,
        )
    });
    changes.collect()
}

fn line(
    kind: ChangeKind,
    key: &str,
    value: &str,
    old: &str,
    conflated: bool,
) -> (ChangeKind, String, String, String, bool) {
    (
        kind,
        key.to_owned(),
        value.to_owned(),
        old.to_owned(),
        conflated,
    )
}

#[test]
fn the_same_value_again_is_a_report_and_no_change() {
    let engine = engine();
    let first = set(&engine, "lamp.hall", "1");
    assert_eq!((first.revision, first.changed), (Revision(1), true));
    let before = engine.get(&key("lamp.hall")).unwrap();
    let value = Bytes::from_static(b"1");
    let again = engine
        .set(&Source::Operator, &key("lamp.hall"), value, None, None)
        .unwrap();
    assert_eq!((again.revision, again.changed), (Revision(1), false));
    let after = engine.get(&key("lamp.hall")).unwrap();
    assert_eq!(after.changed_at, before.changed_at);
    assert!(after.reported_at >= before.reported_at);
    assert_eq!(after.writer, Source::Operator);
    assert_eq!(set(&engine, "lamp.hall", "1.0").revision, Revision(2));
}

#[test]
fn a_compare_and_set_wins_or_says_what_is() {
    let engine = engine();
    let name = key("lamp.hall");
    let set = |value: &'static str, expected| {
        let value = Bytes::from_static(value.as_bytes());
        engine.set(
            &Source::Operator,
            &name,
            value,
            Some(Revision(expected)),
            None,
        )
    };
    let delete = |expected| engine.delete(&Source::Operator, &name, Some(Revision(expected)), None);
    assert!(set("1", 7).is_err());
    assert_eq!(set("1", 0).unwrap().revision, Revision(1));
    let error = set("2", 0).unwrap_err();
    assert_eq!(
        error,
        Error::RevisionMismatch {
            key: name.clone(),
            expected: Revision(0),
            current: Revision(1),
        }
    );
    assert_eq!(error.reason().as_str(), "REVISION_MISMATCH");
    assert!(
        error
            .metadata()
            .contains(&("current_revision", "1".to_owned()))
    );
    assert_eq!(set("2", 1).unwrap().revision, Revision(2));
    assert!(delete(1).is_err());
    let removed = delete(2).unwrap();
    assert_eq!((removed.existed, removed.revision), (true, Revision(3)));
    assert!(!delete(0).unwrap().existed);
    assert!(delete(2).is_err());
    assert_eq!(set("2", 0).unwrap().revision, Revision(4));
}

#[test]
fn values_are_json_of_bounded_size() {
    let engine = engine();
    let set = |value: Vec<u8>| engine.set(&Source::Operator, &key("a"), value.into(), None, None);
    let error = set(b"{\n  on: true}".to_vec()).unwrap_err();
    assert_eq!(error.reason().as_str(), "NOT_JSON");
    assert_eq!(
        crate::error::chain(&error),
        "the value of \"a\" is not one JSON text: key must be a string at line 2, column 3"
    );
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes();
    assert_eq!(
        set(text(65_537)).unwrap_err().reason().as_str(),
        "TOO_LARGE"
    );
    set(text(65_536)).unwrap();
}

#[test]
fn a_full_table_refuses_what_makes_it_larger() {
    let engine = StateEngine::new(
        Config {
            max_keys: 2,
            max_value_bytes: 8,
            max_bytes: 10,
            ..Config::default()
        },
        Revision::ABSENT,
    );
    let set = |name: &str, value: &'static str| {
        let value = Bytes::from_static(value.as_bytes());
        engine.set(&Source::Operator, &key(name), value, None, None)
    };
    set("a", "1234567").unwrap();
    assert!(matches!(
        set("b", "1234"),
        Err(Error::Full {
            unit: "bytes of values",
            ..
        })
    ));
    set("b", "123").unwrap();
    assert!(matches!(
        set("c", "1"),
        Err(Error::Full {
            unit: "keys",
            limit: 2,
            ..
        })
    ));
    assert!(set("b", "1234").is_err());
    set("b", "12").unwrap();
    set("a", "12345678").unwrap();
    engine
        .delete(&Source::Operator, &key("a"), None, None)
        .unwrap();
    set("c", "1").unwrap();
    let stats = engine.stats();
    assert_eq!((stats.keys, stats.bytes), (2, 3));
}

#[test]
fn pages_follow_the_keys_and_end_early_when_they_are_large() {
    let engine = StateEngine::new(
        Config {
            page_bytes: 20,
            ..Config::default()
        },
        Revision::ABSENT,
    );
    for name in ["b", "a.x", "a.y", "a-z", "a.z", "c"] {
        set(&engine, name, "1");
    }
    let keys = |page: &Page| {
        let keys = page.entries.iter().map(|entry| entry.key.to_string());
        keys.collect::<Vec<_>>().join(" ")
    };
    let page = engine.list("a.", None, 2);
    assert_eq!(
        (keys(&page).as_str(), &page.more_after),
        ("a.x a.y", &Some(key("a.y")))
    );
    assert_eq!(page.revision, Revision(6));
    let page = engine.list("a.", Some("a.y"), 2);
    assert_eq!((keys(&page).as_str(), &page.more_after), ("a.z", &None));
    assert_eq!(keys(&engine.list("", None, 100)), "a-z a.x a.y a.z b c");
    assert_eq!(keys(&engine.list("a", Some("a.x"), 100)), "a.y a.z");
    assert_eq!(keys(&engine.list("b", Some("a"), 100)), "b");
    assert_eq!(keys(&engine.list("zz", None, 100)), "");
    set(&engine, "a.y", "\"0123456789\"");
    let page = engine.list("", None, 100);
    assert_eq!(
        (keys(&page).as_str(), &page.more_after),
        ("a-z a.x", &Some(key("a.x")))
    );
}

#[tokio::test]
async fn a_watch_tells_what_is_there_then_the_end_then_changes() {
    let engine = engine();
    set(&engine, "lamp.b", "1");
    set(&engine, "lamp.a", "2");
    set(&engine, "door", "3");
    let mut watch = engine.watch(request(&["lamp.*", "lamp.a"])).unwrap();
    assert_eq!(
        told(&mut watch).await,
        [
            line(ChangeKind::Initial, "lamp.a", "2", "", false),
            line(ChangeKind::Initial, "lamp.b", "1", "", false),
        ]
    );
    assert_eq!(next(&mut watch).await, WatchItem::SnapshotEnd(Revision(3)));
    assert!(watch.next().now_or_never().is_none());
    let cause = Some(Cause::Call(7));
    let value = Bytes::from_static(b"5");
    engine
        .set(&plugin("lamp"), &key("lamp.a"), value, None, cause)
        .unwrap();
    set(&engine, "lamp.b", "1");
    set(&engine, "door", "4");
    let WatchItem::Changes(changes) = next(&mut watch).await else {
        panic!("no changes");
    };
    assert_eq!(changes.len(), 1);
    assert_eq!(
        (changes[0].cause, &changes[0].entry.writer),
        (cause, &plugin("lamp"))
    );
    assert_eq!(changes[0].old_value.as_deref(), Some(&b"2"[..]));
    delete(&engine, "lamp.a");
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Deleted, "lamp.a", "", "5", false)]
    );
    let watcher = PluginName::parse("watcher").unwrap();
    assert_eq!(engine.list_watches(&watcher).len(), 2);
    drop(watch);
    assert_eq!(engine.stats().watches, 0);
}

#[tokio::test]
async fn a_watch_without_the_initial_entries_says_at_once_that_it_is_live() {
    let engine = engine();
    set(&engine, "a", "1");
    let mut watch = engine
        .watch(WatchRequest {
            include_initial: false,
            ..request(&[">"])
        })
        .unwrap();
    set(&engine, "a", "2");
    assert_eq!(next(&mut watch).await, WatchItem::SnapshotEnd(Revision(1)));
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Set, "a", "2", "1", false)]
    );
}

#[tokio::test]
async fn reports_are_told_to_who_asks() {
    let engine = engine();
    set(&engine, "a", "1");
    let mut watch = engine
        .watch(WatchRequest {
            include_reports: true,
            ..request(&[">"])
        })
        .unwrap();
    told(&mut watch).await;
    next(&mut watch).await;
    set(&engine, "a", "1");
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Reported, "a", "1", "1", false)]
    );
    // A change that is only confirmed before it is told stays that change.
    set(&engine, "a", "2");
    set(&engine, "a", "2");
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Set, "a", "2", "1", false)]
    );
}

#[tokio::test]
async fn a_slow_watcher_is_told_the_newest_of_each_key_and_what_it_last_knew() {
    let engine = engine();
    set(&engine, "a", "0");
    set(&engine, "b", "0");
    let mut watch = engine.watch(request(&[">"])).unwrap();
    told(&mut watch).await;
    next(&mut watch).await;
    for value in ["1", "2", "3"] {
        set(&engine, "a", value);
        set(&engine, "c", value);
        set(&engine, "d", value);
        delete(&engine, "d");
    }
    set(&engine, "b", "9");
    delete(&engine, "a");
    assert_eq!(
        told(&mut watch).await,
        [
            line(ChangeKind::Set, "c", "3", "", true),
            line(ChangeKind::Set, "b", "9", "0", false),
            line(ChangeKind::Deleted, "a", "", "0", true),
        ]
    );
    assert!(engine.stats().conflated > 0);
}

#[tokio::test]
async fn a_watch_of_nothing_is_refused() {
    let engine = engine();
    let error = engine.watch(request(&[])).unwrap_err();
    assert_eq!(error.reason().as_str(), "BAD_FIELD");
    assert_eq!(Config::default().validate(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_watcher_is_woken() {
    let engine = engine();
    let mut watch = engine.watch(request(&["a"])).unwrap();
    assert_eq!(next(&mut watch).await, WatchItem::SnapshotEnd(Revision(0)));
    let writer = std::thread::spawn({
        let engine = engine.clone();
        move || {
            for value in 0..1_000 {
                set(&engine, "a", &value.to_string());
            }
        }
    });
    loop {
        let changes = told(&mut watch).await;
        if changes.iter().any(|(_, _, value, ..)| value == "999") {
            break;
        }
    }
    writer.join().unwrap();
}

#[tokio::test]
async fn a_watch_of_a_large_table_looks_at_it_step_by_step() {
    let engine = engine();
    for index in 0..3_000 {
        set(&engine, &format!("k.{index:04}"), "1");
    }
    set(&engine, "z", "1");
    let mut watch = engine.watch(request(&["z", "k.0000", "k.2999"])).unwrap();
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Initial, "k.0000", "1", "", false)]
    );
    // One behind the walk, which is told as a change; one before it, which it will find.
    set(&engine, "k.0000", "2");
    set(&engine, "z", "2");
    assert!(watch.next().now_or_never().is_none());
    delete(&engine, "k.2999");
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Initial, "z", "2", "", false)]
    );
    assert_eq!(
        next(&mut watch).await,
        WatchItem::SnapshotEnd(Revision(3_001))
    );
    assert_eq!(
        told(&mut watch).await,
        [line(ChangeKind::Set, "k.0000", "2", "1", false)]
    );
    assert!(watch.next().now_or_never().is_none());
}

#[tokio::test]
async fn what_is_held_for_a_stalled_watcher_is_bounded_and_the_others_go_on() {
    let engine = engine();
    let value = |byte: u8| format!("\"{}\"", char::from(byte).to_string().repeat(60 << 10));
    let keys: Vec<_> = (0..300).map(|index| format!("lamp.k{index}")).collect();
    let rewrite = |byte| {
        for key in &keys {
            set(&engine, key, &value(byte));
        }
    };
    rewrite(b'a');
    let mut stalled = engine.watch(request(&[">"])).expect("opens");
    while next(&mut stalled).await != WatchItem::SnapshotEnd(Revision(300)) {}
    let mut other = WatchRequest {
        include_initial: false,
        ..request(&["lamp.k299"])
    };
    other.watcher = plugin("other");
    let mut other = engine.watch(other).expect("opens");
    next(&mut other).await;
    rewrite(b'b');
    assert_eq!(stalled.next().await, Some(Err(Error::Compacted)));
    assert_eq!(stalled.next().await, None, "it has ended");
    assert_eq!(told(&mut other).await.len(), 1);
    // Who is cut off may begin anew, and is held to no more than before.
    drop(stalled);
    let mut anew = engine.watch(request(&["lamp.k1"])).expect("opens");
    assert_eq!(told(&mut anew).await[0].0, ChangeKind::Initial);
    rewrite(b'c');
    next(&mut anew).await;
    assert_eq!(told(&mut anew).await[0].0, ChangeKind::Set);
}

#[test]
fn no_name_takes_more_than_its_share_and_the_core_has_no_bound() {
    let config = Config {
        max_keys: 3,
        max_value_bytes: 4,
        max_owner_keys: 2,
        max_owner_bytes: 6,
        ..Config::default()
    };
    let engine = StateEngine::new(config, Revision::ABSENT);
    let set = |name: &str, value: &'static str| {
        let value = Bytes::from_static(value.as_bytes());
        let done = engine.set(&Source::Operator, &key(name), value, None, None);
        done.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(set("lamp.a", "1234"), Ok(()));
    assert_eq!(set("lamp.b", "1"), Ok(()));
    assert!(set("lamp.c", "1").unwrap_err().contains("at most 2 keys"));
    assert!(
        set("lamp.b", "123")
            .unwrap_err()
            .contains("at most 6 bytes")
    );
    assert_eq!(set("lamp.a", "12"), Ok(()), "less is always possible");
    assert_eq!(set("lamp.b", "123"), Ok(()), "and makes room");
    assert_eq!(set("lampshade.a", "1"), Ok(()), "another's share");
    assert!(set("door.a", "1").unwrap_err().contains("at most 3 keys"));
    assert_eq!(set("core.plugin.door", "1"), Ok(()));
    let gone = engine.delete(&Source::Operator, &key("lamp.a"), None, None);
    assert!(gone.expect("deleted").existed);
    assert_eq!(set("lamp.b", "1"), Ok(()));
}

#[test]
fn revisions_of_earlier_starts_are_not_given_again() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(
        unused_revision(at(1_800_000_000)),
        Revision(1_800_000_000_000_000)
    );
    let year_2020 = Revision(1_577_836_800_000_000);
    for unset in [at(0), at(86_400), at(1_577_836_799)] {
        assert!(unused_revision(unset) < year_2020);
    }
    assert_ne!(unused_revision(at(0)), unused_revision(at(0)));
    let engine = StateEngine::new(Config::default(), Revision(7));
    assert_eq!(set(&engine, "lamp.a", "1").revision, Revision(8));
    assert_eq!(engine.stats().revision, Revision(8));
}
