//! The store against a plain sorted map: random steps, time and crashes included; and a watcher against
//! the store.

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};

use super::watches::{Mirror, initial};
use super::*;
use crate::storage::clock::{ManualClocks, StoreClock};

#[derive(Clone, Debug)]
enum Step {
    /// Conditions; writes with their values, if any, and minutes to live, if not for ever.
    Apply(Vec<(u8, u64)>, Vec<(u8, Option<u16>, Option<u8>)>),
    /// So many minutes.
    Pass(u8),
    Get(u8),
    List {
        prefix: String,
        after: String,
        descending: bool,
        page_size: u32,
    },
    Crash,
}

/// Few names, so that steps meet; some of them prefixes of others.
fn name(index: u8) -> String {
    const PARTS: [&str; 6] = ["a", "a~", "a\u{a0}", "b", "b\u{d7ff}", "\u{10ffff}"];
    PARTS[usize::from(index) % PARTS.len()].repeat(1 + usize::from(index) % 2)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (
        0..8_u8,
        proptest::option::weighted(0.7, any::<u16>()),
        proptest::option::weighted(0.3, 1..4_u8),
    );
    let step = prop_oneof![
        6 => (
            proptest::collection::vec((0..8_u8, 0..6_u64), 0..2),
            proptest::collection::vec(write, 1..4),
        )
            .prop_map(|(checks, ops)| Step::Apply(checks, ops)),
        3 => (0..8_u8).prop_map(Step::Get),
        3 => (
            "[ab\u{10ffff}]{0,1}",
            "[ab~\u{a0}\u{10ffff}]{0,1}",
            any::<bool>(),
            1..4_u32,
        )
            .prop_map(|(prefix, after, descending, page_size)| Step::List {
                prefix,
                after,
                descending,
                page_size,
            }),
        2 => (1..3_u8).prop_map(Step::Pass),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Revision, value, and the minute at which it is gone.
type Model = BTreeMap<String, (u64, String, Option<u64>)>;

/// The world of one run.
struct World {
    model: Model,
    revision: u64,
    minute: u64,
    clocks: Arc<ManualClocks>,
}

impl World {
    fn open(&self, bench: &Bench, adapter: Arc<dyn StorageAdapter>) -> Storage {
        let clock = StoreClock::new(self.clocks.clone());
        Storage::open_by(adapter, &bench.config, clock).expect("opens")
    }

    /// Time passes; what has expired is removed by one commit of the store's own.
    async fn pass(&mut self, storage: &Storage, minutes: u8) {
        self.minute += u64::from(minutes);
        self.clocks
            .pass(Duration::from_secs(60) * u32::from(minutes));
        let minute = self.minute;
        let before = self.model.len();
        self.model
            .retain(|_, (_, _, gone)| gone.is_none_or(|at| at > minute));
        self.revision += u64::from(self.model.len() < before);
        storage.inner.shared.mailbox.call();
        let swept = async {
            while storage.revision() < Revision(self.revision) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, swept).await.expect("it is swept");
    }
}

async fn perform(storage: &Storage, world: &mut World, step: Step) {
    let minute = world.minute;
    let World {
        model, revision, ..
    } = world;
    let space = namespace("n");
    match step {
        Step::Apply(checks, ops) => {
            let mut seen = HashSet::new();
            let ops: Vec<_> = ops
                .into_iter()
                .map(|(index, value, ttl)| (name(index), value, ttl))
                .filter(|(name, ..)| seen.insert(name.clone()))
                .collect();
            let checks: Vec<_> = checks.into_iter().map(|(at, r)| (name(at), r)).collect();
            let current = |name: &String| model.get(name).map_or(0, |(revision, ..)| *revision);
            let failing = checks
                .iter()
                .find(|(name, expected)| current(name) != *expected);
            let checks: Vec<_> = checks.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let writes = ops.iter().map(|(name, value, ttl)| {
                let ttl = ttl.map(|minutes| Duration::from_secs(60) * u32::from(minutes));
                match value {
                    Some(value) => set_op(name, &value.to_string()).lasting(ttl),
                    None => delete_op(name),
                }
            });
            let write = apply(&space, &checks, writes.collect());
            let result = storage.apply(write, soon()).await;
            if let Some((failing, _)) = failing {
                match result.expect_err("a check fails") {
                    Error::RevisionMismatch {
                        key,
                        current: found,
                    } => {
                        assert_eq!((&key, found.0), (failing, current(failing)));
                    }
                    other => panic!("{other}"),
                }
                return;
            }
            let existed: Vec<_> = ops
                .iter()
                .map(|(name, ..)| model.contains_key(name))
                .collect();
            if ops
                .iter()
                .zip(&existed)
                .any(|((_, value, _), there)| value.is_some() || *there)
            {
                *revision += 1;
            }
            for (name, value, ttl) in ops {
                let gone = ttl.map(|minutes| minute + u64::from(minutes));
                match value {
                    Some(value) => model.insert(name, (*revision, value.to_string(), gone)),
                    None => model.remove(&name),
                };
            }
            let applied = result.expect("all hold");
            assert_eq!((applied.revision.0, applied.existed), (*revision, existed));
        }
        Step::Get(index) => {
            let entry = storage
                .get(&space, &key(&name(index)))
                .await
                .expect("reads");
            let found = entry.map(|e| (e.revision.0, e.value.as_str().to_owned()));
            let held = model.get(&name(index));
            assert_eq!(
                found,
                held.map(|(revision, value, _)| (*revision, value.clone()))
            );
        }
        Step::List {
            prefix,
            after,
            descending,
            page_size,
        } => {
            let mut expected: Vec<_> = model
                .keys()
                .filter(|name| name.starts_with(&prefix))
                .filter(|name| {
                    after.is_empty()
                        || if descending {
                            **name < after
                        } else {
                            **name > after
                        }
                })
                .cloned()
                .collect();
            if descending {
                expected.reverse();
            }
            let mut query = Query {
                prefix,
                start_after: after,
                page_size,
                ..Query::all(space)
            };
            if descending {
                query.direction = Direction::Descending;
            }
            let mut found = Vec::new();
            loop {
                let page = storage.scan(query.clone()).await.expect("reads");
                assert_eq!(page.revision.0, *revision);
                for entry in page.items {
                    let name = entry.key.to_string();
                    let (revision, value, _) = model.get(&name).expect("there");
                    let held = (entry.revision.0, entry.value.as_str());
                    assert_eq!(held, (*revision, value.as_str()));
                    found.push(name);
                }
                if page.next_page_token.is_empty() {
                    break;
                }
                query.page_token = page.next_page_token;
            }
            assert_eq!(found, expected);
        }
        Step::Pass(_) | Step::Crash => unreachable!("performed by the caller"),
    }
}

/// Whoever applies all that a watch tells has what is there.
async fn follow(mirror: &mut Mirror, watch: &mut Watch, world: &World) {
    mirror.up_to(watch, Revision(world.revision)).await;
    let held = world.model.iter();
    let held = held.map(|(name, (revision, value, _))| (name.clone(), (*revision, value.clone())));
    assert_eq!(mirror.entries, held.collect());
}

/// The seed of a failure is printed; `PROPTEST_RNG_SEED` takes it back.
pub(super) fn it_behaves_like_a_sorted_map(kind: AdapterKind) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(1)
        .build()
        .expect("runtime");
    let config = ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            runtime.block_on(async {
                let mut bench = Bench::new(kind);
                // A cache so small that it forgets all the time.
                bench.config.cache_bytes = 2_048;
                let adapter = bench.adapter();
                let mut world = World {
                    model: Model::new(),
                    revision: 0,
                    minute: 0,
                    clocks: ManualClocks::at(1_800_000_000),
                };
                let mut storage = world.open(&bench, Arc::clone(&adapter));
                let mut watch = storage.watch(initial(&namespace("n"))).expect("opens");
                let mut mirror = Mirror::snapshot(&mut watch).await;
                for step in steps {
                    match step {
                        Step::Crash => {
                            follow(&mut mirror, &mut watch, &world).await;
                            let adapter = bench.survivor(&adapter);
                            // A copy of files has no other writer; what is in memory would have two:
                            // the old store could remove what expires later, unseen by the new one.
                            storage.close().await;
                            storage = world.open(&bench, adapter);
                            watch = storage.watch(initial(&namespace("n"))).expect("opens");
                            mirror = Mirror::snapshot(&mut watch).await;
                        }
                        Step::Pass(minutes) => world.pass(&storage, minutes).await,
                        step => perform(&storage, &mut world, step).await,
                    }
                }
                follow(&mut mirror, &mut watch, &world).await;
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
