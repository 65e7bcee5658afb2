//! The ring, positions in it, and backlogs.

use std::time::SystemTime;

use bytes::Bytes;

use super::*;
use crate::budgets::BACKLOG_BYTES;
use crate::types::json::Json;

const EPOCH: Epoch = Epoch(7);

fn namespace(text: &str) -> Namespace {
    Namespace::parse(text).expect("good")
}

fn key(text: &str) -> Key {
    Key::parse(text).expect("good")
}

fn put(space: &str, name: &str, revision: u64) -> Noted {
    let entry = Entry {
        key: key(name),
        value: Json::trusted(Bytes::from(revision.to_string())),
        revision: Revision(revision),
        updated_at: SystemTime::UNIX_EPOCH,
        expires_at: None,
    };
    Noted {
        namespace: namespace(space),
        change: Change {
            key: key(name),
            revision: Revision(revision),
            what: What::Put(entry),
            conflated: false,
        },
    }
}

fn delete(space: &str, name: &str, revision: u64) -> Noted {
    let mut noted = put(space, name, revision);
    noted.change.what = What::Deleted;
    noted
}

fn note(changes: &mut Changes, noted: Noted) {
    let last = noted.change.revision;
    drop(changes.note([noted], last));
}

/// Key, revision, conflated; and the revision of the cursor.
type Told = (Vec<(String, u64, bool)>, Option<u64>);

fn told(changes: &mut Changes, id: WatcherId) -> Option<Told> {
    match changes.take(id, None, Waker::noop()).expect("goes on") {
        Taken::Changes(found, cursor) => {
            let each =
                |change: &Change| (change.key.to_string(), change.revision.0, change.conflated);
            let found = found.iter().map(each).collect();
            Some((found, cursor.map(|cursor| cursor.revision.0)))
        }
        Taken::Progress(cursor) => Some((Vec::new(), Some(cursor.revision.0))),
        Taken::Nothing(_) => None,
    }
}

fn join(changes: &mut Changes, space: &str, prefixes: &[&str]) -> WatcherId {
    let prefixes = prefixes.iter().map(ToString::to_string).collect();
    let joined = changes.join("", namespace(space), prefixes, None);
    joined.expect("open").0
}

#[test]
fn a_watcher_gets_what_it_wants_in_order_and_a_cursor_behind_it() {
    let mut changes = Changes::new(EPOCH, Revision(10), 100);
    let id = join(&mut changes, "a", &["x", "y."]);
    assert_eq!(told(&mut changes, id), None);
    for (space, name, revision) in [
        ("a", "x1", 11),
        ("b", "x1", 12),
        ("a", "z", 13),
        ("a", "y.1", 14),
        ("a", "y", 15),
    ] {
        note(&mut changes, put(space, name, revision));
    }
    let expected = [("x1", 11), ("y.1", 14)];
    let expected = expected.map(|(name, revision)| (name.to_owned(), revision, false));
    assert_eq!(told(&mut changes, id), Some((expected.to_vec(), Some(15))));
    assert_eq!(told(&mut changes, id), None);
}

#[test]
fn a_cursor_resumes_as_long_as_all_behind_it_is_there() {
    let mut changes = Changes::new(EPOCH, Revision(10), 3);
    for revision in 11..=15 {
        note(&mut changes, put("a", &format!("k{revision}"), revision));
    }
    let mut from = |epoch, revision| {
        let cursor = Cursor {
            epoch: Epoch(epoch),
            revision: Revision(revision),
        };
        changes
            .join("", namespace("a"), Vec::new(), Some(cursor))
            .map(|(id, _)| id)
    };
    for (epoch, revision) in [(7, 11), (7, 10), (7, 16), (8, 13)] {
        assert_eq!(
            from(epoch, revision),
            Err(End::Compacted),
            "{epoch} {revision}"
        );
    }
    let [all, last, none] = [12, 14, 15].map(|revision| from(7, revision).expect("there"));
    assert_eq!(told(&mut changes, all).expect("three").0.len(), 3);
    assert_eq!(told(&mut changes, last).expect("one").0.len(), 1);
    assert_eq!(told(&mut changes, none), None);
}

#[test]
fn a_slow_watcher_gets_the_newest_of_each_key_marked_and_then_the_ring() {
    let mut changes = Changes::new(EPOCH, Revision(0), 2);
    let id = join(&mut changes, "a", &[]);
    for noted in [
        put("a", "hot", 1),
        put("a", "once", 2),
        put("a", "hot", 3),
        put("a", "came", 4),
        delete("a", "came", 5),
        delete("a", "known", 6),
        put("a", "hot", 7),
        put("a", "last", 8),
    ] {
        note(&mut changes, noted);
    }
    let expected = [
        ("once", 2, false),
        ("hot", 3, true),
        ("came", 5, true),
        ("known", 6, false),
        ("hot", 7, false),
        ("last", 8, false),
    ];
    let expected =
        expected.map(|(name, revision, conflated)| (name.to_owned(), revision, conflated));
    assert_eq!(told(&mut changes, id), Some((expected.to_vec(), Some(8))));
}

#[test]
fn a_backlog_beyond_its_bound_ends_the_watch() {
    let mut changes = Changes::new(EPOCH, Revision(0), 1);
    let (slow, other) = (join(&mut changes, "a", &[]), join(&mut changes, "b", &[]));
    for revision in 1..=BACKLOG_KEYS as u64 + 2 {
        note(&mut changes, put("a", &format!("k{revision}"), revision));
    }
    assert_eq!(changes.take(slow, None, Waker::noop()), Err(End::Compacted));
    assert!(matches!(told(&mut changes, other), Some((none, Some(_))) if none.is_empty()));
}

/// However many watches somebody lets stand, they hold no more than one would.
#[test]
fn the_backlogs_of_one_owner_share_a_bound() {
    let mut changes = Changes::new(EPOCH, Revision(0), 1);
    let mut by = |owner| {
        let joined = changes.join(owner, namespace("a"), Vec::new(), None);
        joined.expect("open").0
    };
    let hogs = [0; 4].map(|_| by("hog"));
    let modest = by("modest");
    let long = Json::trusted(Bytes::from("1".repeat(1 << 20)));
    for revision in 1..=10 {
        let mut noted = put("a", &format!("k{revision}"), revision);
        if let What::Put(entry) = &mut noted.change.what {
            entry.value = long.clone();
        }
        note(&mut changes, noted);
        assert!(
            changes
                .budgets
                .0
                .values()
                .all(|held| *held <= BACKLOG_BYTES)
        );
    }
    let ended = hogs.map(|id| changes.take(id, None, Waker::noop()).is_err());
    let ended = ended.iter().filter(|ended| **ended).count();
    assert!((1..4).contains(&ended), "{ended}");
    assert!(told(&mut changes, modest).is_some(), "goes on");
    while told(&mut changes, modest).is_some() {}
    assert!(!changes.budgets.0.contains_key("modest"), "given back");
    for id in hogs {
        changes.leave(id);
    }
    assert!(changes.budgets.0.is_empty());
}

#[test]
fn a_revision_is_told_whole() {
    let mut changes = Changes::new(EPOCH, Revision(0), 10_000);
    let id = join(&mut changes, "a", &[]);
    let apply = |revision: u64| (0..300).map(move |at| put("a", &format!("{at}"), revision));
    for revision in 1..=5 {
        drop(changes.note(apply(revision), Revision(revision)));
    }
    let (first, cursor) = told(&mut changes, id).expect("changes");
    assert_eq!((first.len(), cursor), (1_200, Some(4)));
    let (second, cursor) = told(&mut changes, id).expect("changes");
    assert_eq!((second.len(), cursor), (300, Some(5)));
}

#[test]
fn who_hears_nothing_is_told_how_far_it_is() {
    let mut changes = Changes::new(EPOCH, Revision(0), 10_000);
    let id = join(&mut changes, "a", &[]);
    for revision in 1..=PROGRESS_CHANGES {
        assert_eq!(told(&mut changes, id), None);
        note(&mut changes, put("b", "k", revision));
    }
    assert_eq!(
        told(&mut changes, id),
        Some((Vec::new(), Some(PROGRESS_CHANGES)))
    );
}

#[test]
fn beginning_anew_ends_all_and_forgets_all() {
    let mut changes = Changes::new(EPOCH, Revision(0), 10);
    let id = join(&mut changes, "a", &[]);
    note(&mut changes, put("a", "k", 1));
    drop(changes.begin_anew(Epoch(8), Revision(1)));
    assert_eq!(changes.take(id, None, Waker::noop()), Err(End::Compacted));
    let old = Cursor {
        epoch: EPOCH,
        revision: Revision(1),
    };
    let joined = changes.join("", namespace("a"), Vec::new(), Some(old));
    assert_eq!(joined.map(|_| ()), Err(End::Compacted));
    changes.leave(id);
    assert_eq!(changes.watchers(), 0);
    assert!(changes.by_namespace.is_empty());
}
