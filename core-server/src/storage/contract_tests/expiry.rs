//! Time to live, by a clock that the test moves.

use super::*;
use crate::storage::clock::{ManualClocks, StoreClock, trusted_from};

const NOW: u64 = 1_800_000_000;
const MINUTE: Duration = Duration::from_secs(60);

fn open(bench: &Bench, adapter: &Arc<dyn StorageAdapter>, clocks: &Arc<ManualClocks>) -> Storage {
    let clock = StoreClock::new(clocks.clone());
    Storage::open_by(Arc::clone(adapter), &bench.config, clock).expect("opens")
}

/// Time passes, and the writer looks at its clock.
fn pass(storage: &Storage, clocks: &ManualClocks, time: Duration) {
    clocks.pass(time);
    storage.inner.shared.mailbox.call();
}

async fn set_for(
    storage: &Storage,
    space: &Namespace,
    name: &str,
    ttl: Duration,
    if_revision: Option<u64>,
) -> Result<Written, Error> {
    let value = Bytes::from_static(b"1");
    let if_revision = if_revision.map(Revision);
    storage
        .set_for(space, key(name), value, Some(ttl), if_revision, soon())
        .await
}

fn watch(storage: &Storage, space: &Namespace) -> Watch {
    let request = WatchRequest {
        namespace: space.clone(),
        prefixes: Vec::new(),
        from: None,
        include_initial: false,
    };
    storage.watch(request).expect("open")
}

/// The keys that expire next, of one message.
async fn expired(watch: &mut Watch) -> Vec<String> {
    loop {
        let item = timeout(PATIENCE, watch.next()).await.expect("in time");
        let WatchItem::Changes(changes, _) = item.expect("goes on") else {
            continue;
        };
        let gone = changes.iter().filter(|change| change.what == What::Expired);
        let gone: Vec<_> = gone.map(|change| change.key.to_string()).collect();
        if !gone.is_empty() {
            return gone;
        }
    }
}

pub(super) async fn what_has_expired_is_absent_at_once_and_then_removed(bench: Bench) {
    let clocks = ManualClocks::at(NOW);
    let adapter = bench.adapter();
    let storage = open(&bench, &adapter, &clocks);
    let space = namespace("n");
    let written = set_for(&storage, &space, "a", MINUTE, None)
        .await
        .expect("writes");
    set_for(&storage, &space, "b", 2 * MINUTE, None)
        .await
        .expect("writes");
    set(&storage, &space, "c", "1").await.expect("writes");
    let entry = storage
        .get(&space, &key("a"))
        .await
        .expect("reads")
        .expect("there");
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW) + MINUTE;
    assert_eq!(entry.expires_at, Some(at));

    // Nobody has removed it yet: the writer sleeps by another clock, and was not called.
    clocks.pass(MINUTE);
    assert_eq!(value(&storage, &space, "a").await, None, "from memory");
    let keys = [key("a"), key("b"), key("c")];
    let many = storage.get_many(&space, &keys).await.expect("reads");
    assert_eq!(many.entries.len(), 2);
    for query in [
        Query::all(space.clone()),
        Query {
            page_size: 1,
            ..Query::all(space.clone())
        },
    ] {
        let page = storage.list_keys(query.clone()).await.expect("reads");
        assert_eq!(page.items[0], key("b"));
        let page = storage.scan(query).await.expect("reads");
        assert_eq!(page.items[0].key, key("b"));
    }
    let mismatch = storage.set(
        &space,
        key("a"),
        Bytes::from_static(b"2"),
        Some(written.revision),
        soon(),
    );
    assert_eq!(
        mismatch.await.expect_err("absent").reason(),
        Reason::RevisionMismatch
    );
    // That write was a batch, so the sweep came after it: the key is gone for good by the next one.
    let again = set_for(&storage, &space, "a", MINUTE, Some(0))
        .await
        .expect("absent");
    assert!(again.created);
    let usage = storage.usage(&space).await.expect("reads").usage;
    assert_eq!(usage.keys, 3);

    let mut watch = watch(&storage, &space);
    pass(&storage, &clocks, MINUTE);
    let mut gone = expired(&mut watch).await;
    if gone.len() == 1 {
        gone.extend(expired(&mut watch).await);
    }
    gone.sort();
    assert_eq!(gone, ["a", "b"]);
    assert_eq!(storage.usage(&space).await.expect("reads").usage.keys, 1);
    assert_eq!(storage.stats().expirations, 3);
    let deleted = storage.delete(&space, key("a"), None, soon());
    assert!(!deleted.await.expect("idempotent").existed);
}

pub(super) async fn each_write_says_anew_how_long_it_lasts(bench: Bench) {
    let clocks = ManualClocks::at(NOW);
    let adapter = bench.adapter();
    let storage = open(&bench, &adapter, &clocks);
    let space = namespace("n");
    for name in ["kept", "longer", "deleted", "last"] {
        set_for(&storage, &space, name, MINUTE, None)
            .await
            .expect("writes");
    }
    set(&storage, &space, "kept", "2").await.expect("writes");
    set_for(&storage, &space, "longer", 3 * MINUTE, None)
        .await
        .expect("writes");
    let deleted = storage.delete(&space, key("deleted"), None, soon());
    assert!(deleted.await.expect("deletes").existed);
    let mut watch = watch(&storage, &space);
    pass(&storage, &clocks, MINUTE);
    assert_eq!(expired(&mut watch).await, ["last"]);
    pass(&storage, &clocks, 2 * MINUTE);
    assert_eq!(expired(&mut watch).await, ["longer"]);
    assert_eq!(value(&storage, &space, "kept").await.as_deref(), Some("2"));
}

pub(super) async fn many_expire_in_several_transactions_and_all_are_told(bench: Bench) {
    let clocks = ManualClocks::at(NOW);
    let adapter = bench.adapter();
    let storage = open(&bench, &adapter, &clocks);
    let spaces = ["a", "b"].map(namespace);
    let writes = (0..1_500).map(|index| {
        let name = format!("k{index}");
        let value = Bytes::from_static(b"1");
        let space = &spaces[index % 2];
        storage.set_for(space, key(&name), value, Some(MINUTE), None, soon())
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.expect("writes");
    }
    let mut watches = spaces.each_ref().map(|space| watch(&storage, space));
    pass(&storage, &clocks, MINUTE);
    for watch in &mut watches {
        let mut gone = HashSet::new();
        while gone.len() < 750 {
            for name in expired(watch).await {
                assert!(gone.insert(name), "each once");
            }
        }
    }
    assert_eq!(storage.namespaces().await.expect("reads"), []);
}

pub(super) async fn time_goes_on_while_no_core_runs(mut bench: Bench) {
    let clocks = ManualClocks::at(NOW);
    let adapter = bench.adapter();
    let space = namespace("n");
    let storage = open(&bench, &adapter, &clocks);
    for (name, minutes) in [("short", 1), ("long", 60)] {
        set_for(&storage, &space, name, minutes * MINUTE, None)
            .await
            .expect("writes");
    }
    storage.close().await;
    if bench.kind == AdapterKind::Sqlite {
        bench.config.cache_bytes = 0;
    }
    let adapter = match bench.kind {
        AdapterKind::Memory => adapter,
        AdapterKind::Sqlite => bench.adapter(),
    };
    let later = ManualClocks::at(NOW + 120);
    let storage = open(&bench, &adapter, &later);
    assert_eq!(value(&storage, &space, "short").await, None);
    assert_eq!(value(&storage, &space, "long").await.as_deref(), Some("1"));
}

/// A machine that boots in 1970 and learns the time later.
pub(super) async fn an_unset_clock_costs_nobody_an_entry(bench: Bench) {
    let clocks = ManualClocks::at(30);
    let adapter = bench.adapter();
    let space = namespace("n");
    let storage = open(&bench, &adapter, &clocks);
    set_for(&storage, &space, "k", 10 * MINUTE, None)
        .await
        .expect("writes");
    clocks.pass(MINUTE);
    set_for(&storage, &space, "other", 10 * MINUTE, None)
        .await
        .expect("writes");
    assert_eq!(value(&storage, &space, "k").await.as_deref(), Some("1"));
    clocks.set_wall(NOW);
    let mut watch = watch(&storage, &space);
    storage.inner.shared.mailbox.call();
    // The writer has looked once something was written.
    set(&storage, &space, "mark", "1").await.expect("writes");
    set(&storage, &space, "mark", "2").await.expect("writes");
    let expiry = async |name: &str| {
        let entry = storage.get(&space, &key(name)).await.expect("reads");
        entry.expect("there").expires_at.expect("expires")
    };
    let (first, other) = (expiry("k").await, expiry("other").await);
    assert!(
        first > trusted_from() && other > trusted_from(),
        "{first:?}"
    );
    assert_eq!(
        other.duration_since(first).expect("later"),
        MINUTE,
        "as before"
    );
    clocks.pass(8 * MINUTE);
    assert_eq!(
        value(&storage, &space, "k").await.as_deref(),
        Some("1"),
        "not early"
    );
    pass(&storage, &clocks, 2 * MINUTE);
    assert_eq!(expired(&mut watch).await[0], "k");
}

/// The same machine, stopped before it learned the time and started after.
pub(super) async fn an_unset_clock_before_a_restart_costs_nobody_an_entry(mut bench: Bench) {
    let adapter = bench.adapter();
    let space = namespace("n");
    let storage = open(&bench, &adapter, &ManualClocks::at(30));
    for (name, minutes) in [("k", 10), ("other", 20)] {
        set_for(&storage, &space, name, minutes * MINUTE, None)
            .await
            .expect("writes");
    }
    let survivor = bench.survivor(&adapter);
    let clocks = ManualClocks::at(NOW);
    let storage = open(&bench, &survivor, &clocks);
    assert_eq!(value(&storage, &space, "k").await.as_deref(), Some("1"));
    let mut watch = watch(&storage, &space);
    pass(&storage, &clocks, 10 * MINUTE);
    assert_eq!(expired(&mut watch).await, ["k"]);
    assert_eq!(value(&storage, &space, "other").await.as_deref(), Some("1"));
}

/// The first thing that the writer hears of the new time is a write.
pub(super) async fn a_write_right_after_the_clock_was_set_costs_nobody_an_entry(bench: Bench) {
    let clocks = ManualClocks::at(30);
    let adapter = bench.adapter();
    let space = namespace("n");
    let storage = open(&bench, &adapter, &clocks);
    set_for(&storage, &space, "old", 10 * MINUTE, None)
        .await
        .expect("writes");
    // Else it might learn the time after the write before.
    storage.inner.shared.mailbox.until_at_rest();
    clocks.set_wall(NOW);
    set_for(&storage, &space, "new", 10 * MINUTE, None)
        .await
        .expect("writes");
    // Whatever the writer does after that write, it has done before this one.
    set(&storage, &space, "mark", "1").await.expect("writes");
    for name in ["old", "new"] {
        let entry = storage.get(&space, &key(name)).await.expect("reads");
        let expires_at = entry.expect(name).expires_at.expect("expires");
        assert!(expires_at > trusted_from(), "{name}: {expires_at:?}");
    }
    assert_eq!(storage.stats().expirations, 0);
}

pub(super) async fn setting_the_clock_expires_nothing(bench: Bench) {
    let clocks = ManualClocks::at(NOW);
    let adapter = bench.adapter();
    let space = namespace("n");
    let storage = open(&bench, &adapter, &clocks);
    set_for(&storage, &space, "k", MINUTE, None)
        .await
        .expect("writes");
    for wall in [NOW + 86_400, NOW - 86_400] {
        clocks.set_wall(wall);
        storage.inner.shared.mailbox.call();
        set(&storage, &space, "other", "1").await.expect("writes");
        assert_eq!(value(&storage, &space, "k").await.as_deref(), Some("1"));
    }
}
