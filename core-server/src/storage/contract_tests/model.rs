//! The store against a plain sorted map: random steps, crashes included.

use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<(u8, u64)>, Vec<(u8, Option<u16>)>),
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
    let write = (0..8_u8, proptest::option::weighted(0.7, any::<u16>()));
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
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

type Model = BTreeMap<String, (u64, String)>;

async fn perform(storage: &Storage, model: &mut Model, revision: &mut u64, step: Step) {
    let space = namespace("n");
    match step {
        Step::Apply(checks, ops) => {
            let mut seen = HashSet::new();
            let ops: Vec<_> = ops
                .into_iter()
                .map(|(index, value)| (name(index), value))
                .filter(|(name, _)| seen.insert(name.clone()))
                .collect();
            let checks: Vec<_> = checks.into_iter().map(|(at, r)| (name(at), r)).collect();
            let current = |name: &String| model.get(name).map_or(0, |(revision, _)| *revision);
            let failing = checks
                .iter()
                .find(|(name, expected)| current(name) != *expected);
            let checks: Vec<_> = checks.iter().map(|(n, r)| (n.as_str(), *r)).collect();
            let writes = ops.iter().map(|(name, value)| match value {
                Some(value) => set_op(name, &value.to_string()),
                None => delete_op(name),
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
                .map(|(name, _)| model.contains_key(name))
                .collect();
            if ops
                .iter()
                .zip(&existed)
                .any(|((_, value), there)| value.is_some() || *there)
            {
                *revision += 1;
            }
            for (name, value) in ops {
                match value {
                    Some(value) => model.insert(name, (*revision, value.to_string())),
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
            assert_eq!(found.as_ref(), model.get(&name(index)));
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
                    let held = (entry.revision.0, entry.value.as_str().to_owned());
                    assert_eq!(model.get(&name), Some(&held));
                    found.push(name);
                }
                if page.next_page_token.is_empty() {
                    break;
                }
                query.page_token = page.next_page_token;
            }
            assert_eq!(found, expected);
        }
        Step::Crash => unreachable!("performed by the caller"),
    }
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
                let mut storage =
                    Storage::open(Arc::clone(&adapter), &bench.config).expect("opens");
                let (mut model, mut revision) = (Model::new(), 0);
                for step in steps {
                    if matches!(step, Step::Crash) {
                        storage = bench.after_crash(&adapter);
                    } else {
                        perform(&storage, &mut model, &mut revision, step).await;
                    }
                }
            });
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}
