//! The table against a plain map, and watchers that read now and then against the table.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 6] = ["a", "a.x", "a.y", "b.x", "b-x", "c"];
const PATTERNS: [&str; 4] = [">", "a.*", "*", "b.x"];

#[derive(Clone, Debug)]
enum Step {
    Set {
        key: usize,
        value: usize,
        if_revision: Option<u64>,
        owned: bool,
    },
    /// Of the run that owns keys; a new one follows.
    EndRun,
    Delete {
        key: usize,
        if_revision: Option<u64>,
    },
    List {
        prefix: usize,
        after: Option<usize>,
        limit: usize,
    },
    Watch {
        pattern: usize,
        reports: bool,
    },
    Read {
        watcher: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let revision = || prop::option::weighted(0.3, 0..12_u64);
    let step = prop_oneof![
        6 => (0..6_usize, 0..3_usize, revision(), prop::bool::ANY)
            .prop_map(|(key, value, if_revision, owned)| Step::Set { key, value, if_revision, owned }),
        1 => Just(Step::EndRun),
        2 => (0..6_usize, revision()).prop_map(|(key, if_revision)| Step::Delete { key, if_revision }),
        1 => (0..6_usize, prop::option::of(0..6_usize), 1..5_usize)
            .prop_map(|(prefix, after, limit)| Step::List { prefix, after, limit }),
        1 => (0..4_usize, prop::bool::ANY).prop_map(|(pattern, reports)| Step::Watch { pattern, reports }),
        4 => (0..6_usize).prop_map(|watcher| Step::Read { watcher }),
    ];
    prop::collection::vec(step, 1..120)
}

/// A watcher that builds a map from what it is told.
struct Follower {
    watch: Watch,
    pattern: Pattern,
    reports: bool,
    map: BTreeMap<String, (Bytes, Revision, bool)>,
    live: bool,
    told_to: Revision,
}

impl Follower {
    /// False when there is nothing to read.
    fn read(&mut self) -> bool {
        match self.watch.next().now_or_never() {
            None => return false,
            Some(None | Some(Err(_))) => panic!("it has no end"),
            Some(Some(Ok(WatchItem::SnapshotEnd(revision)))) => {
                assert!(!self.live);
                (self.live, self.told_to) = (true, revision);
            }
            Some(Some(Ok(WatchItem::Changes(changes)))) => {
                assert!(!changes.is_empty());
                changes.iter().for_each(|change| self.follow(change));
            }
        }
        true
    }

    fn follow(&mut self, change: &Change) {
        let key = change.entry.key.to_string();
        assert!(self.pattern.matches(&key));
        let known = self.map.get(&key).map(|(value, ..)| value.clone());
        assert_eq!(change.old_value, known, "{change:?}");
        assert_eq!(change.kind == ChangeKind::Initial, !self.live);
        match change.kind {
            ChangeKind::Reported => assert!(self.reports),
            ChangeKind::Initial => {}
            ChangeKind::Stale => assert!(change.entry.stale),
            ChangeKind::Live => assert!(!change.entry.stale || change.conflated),
            ChangeKind::Expired => panic!("no time passes"),
            ChangeKind::Set | ChangeKind::Deleted => {
                assert!(change.entry.revision > self.told_to, "out of order");
                self.told_to = change.entry.revision;
            }
        }
        if change.kind == ChangeKind::Deleted {
            assert!(change.entry.value.is_empty());
            assert!(self.map.remove(&key).is_some());
        } else {
            let entry = &change.entry;
            let entry = (entry.value.clone(), entry.revision, entry.stale);
            self.map.insert(key, entry);
        }
    }
}

struct Modelled {
    value: String,
    revision: u64,
    owned: bool,
    stale: bool,
}

fn run(steps: Vec<Step>) {
    // A batch holds one or two changes, so that reading stops in the middle.
    let engine = StateEngine::new(
        Config {
            watch_batch_bytes: 280,
            ..Config::default()
        },
        Revision::ABSENT,
    );
    let mut model: BTreeMap<&str, Modelled> = BTreeMap::new();
    let mut run = RunId::random();
    let mut revision = 0;
    let mut followers: Vec<Follower> = Vec::new();
    for step in steps {
        match step {
            Step::Set {
                key: index,
                value,
                if_revision,
                owned,
            } => {
                let name = KEYS[index];
                let value = value.to_string();
                let current = model.get(name).map_or(0, |held| held.revision);
                let options = SetOptions {
                    if_revision: if_revision.map(Revision),
                    owner: owned.then(|| run.clone()),
                    ..SetOptions::default()
                };
                let bytes = value.clone().into();
                let answer = engine.set_with(&plugin("lamp"), &key(name), bytes, options);
                if if_revision.is_some_and(|expected| expected != current) {
                    assert!(matches!(answer, Err(Error::RevisionMismatch { .. })));
                    continue;
                }
                let changed = model.get(name).is_none_or(|held| held.value != value);
                revision += u64::from(changed);
                let held = Modelled {
                    value,
                    revision: if changed { revision } else { current },
                    owned,
                    stale: false,
                };
                let receipt = SetReceipt {
                    revision: Revision(held.revision),
                    changed,
                };
                model.insert(name, held);
                assert_eq!(answer, Ok(receipt));
            }
            Step::EndRun => {
                engine.end_run(&run);
                run = RunId::random();
                for held in model.values_mut() {
                    held.stale |= held.owned;
                }
            }
            Step::Delete {
                key: index,
                if_revision,
            } => {
                let name = KEYS[index];
                let current = model.get(name).map_or(0, |held| held.revision);
                let expected = if_revision.map(Revision);
                let answer = engine.delete(&plugin("lamp"), &key(name), expected, None);
                if if_revision.is_some_and(|expected| expected != current) {
                    assert!(answer.is_err());
                    continue;
                }
                let existed = model.remove(name).is_some();
                revision += u64::from(existed);
                assert_eq!(
                    answer,
                    Ok(DeleteReceipt {
                        existed,
                        revision: Revision(revision)
                    })
                );
            }
            Step::List {
                prefix,
                after,
                limit,
            } => {
                let (prefix, after) = (KEYS[prefix], after.map(|after| KEYS[after]));
                let page = engine.list(prefix, after, limit);
                let mut expected = model.keys().copied().filter(|key| {
                    key.starts_with(prefix) && after.is_none_or(|after| *key > after)
                });
                let listed: Vec<_> = page
                    .entries
                    .iter()
                    .map(|entry| entry.key.as_str())
                    .collect();
                let first: Vec<_> = expected.by_ref().take(limit).collect();
                assert_eq!(listed, first);
                assert_eq!(page.more_after.is_some(), expected.next().is_some());
            }
            Step::Watch { pattern, reports } => {
                let pattern = PATTERNS[pattern];
                let watch = engine.watch(WatchRequest {
                    include_reports: reports,
                    ..request(&[pattern])
                });
                followers.push(Follower {
                    watch: watch.unwrap(),
                    pattern: Pattern::parse(pattern).unwrap(),
                    reports,
                    map: BTreeMap::new(),
                    live: false,
                    told_to: Revision(0),
                });
            }
            Step::Read { watcher } => {
                if let Some(follower) = followers.get_mut(watcher) {
                    follower.read();
                }
            }
        }
        let stats = engine.stats();
        assert_eq!(
            (stats.keys, stats.revision),
            (model.len(), Revision(revision))
        );
    }
    for follower in &mut followers {
        while follower.read() {}
        assert!(follower.live);
        let watched = model
            .iter()
            .filter(|(key, _)| follower.pattern.matches(key));
        let expected: BTreeMap<_, _> = watched
            .map(|(key, held)| {
                let value = Bytes::from(held.value.clone());
                (
                    (*key).to_owned(),
                    (value, Revision(held.revision), held.stale),
                )
            })
            .collect();
        assert_eq!(follower.map, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_table_is_a_map_and_watchers_converge_to_it(steps in steps()) {
        run(steps);
    }
}
