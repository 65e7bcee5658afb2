use serde_json::json;
use tokio::sync::mpsc;

use crate::prelude::*;
use crate::testing::TestRuntime;
use crate::{Origin, StateChangeKind, StorageChange};

/// Runs a function with a context of a plugin named `keeper`.
async fn with_ctx<F, Fut>(work: F) -> TestRuntime
where
    F: Fn(Ctx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result> + Send + 'static,
{
    let service = Service::new("work").handle(move |ctx, (): ()| work(ctx));
    let core = TestRuntime::start(Plugin::builder("keeper").service(service))
        .await
        .expect("starts");
    core.call::<()>("keeper.work", &())
        .await
        .expect("the work is done");
    core
}

#[tokio::test(start_paused = true)]
async fn storage_keeps_what_it_is_given() {
    let core = with_ctx(|ctx| async move {
        let storage = ctx.storage();
        assert_eq!(storage.get::<u8>("a").await?, None);
        let first = storage.set("a", &json!({ "n": 1 })).await?;
        let entry = storage.entry("a").await?.expect("stored");
        assert_eq!((entry.revision, entry.parse()?), (first, json!({ "n": 1 })));
        let error = storage
            .set_if("a", &2, first + 1)
            .await
            .expect_err("another revision");
        assert_eq!(
            (error.code(), error.reason()),
            (Code::Aborted, "REVISION_MISMATCH")
        );
        assert_eq!(
            error.metadata("current_revision"),
            Some(first.to_string().as_str())
        );
        storage.set_if("a", &2, first).await?;
        storage.set_if("b", &3, 0).await?;
        let both = storage.get_many(["b", "x", "a"]).await?;
        assert_eq!(
            both.iter()
                .map(|entry| entry.key.as_str())
                .collect::<Vec<_>>(),
            ["b", "a"]
        );
        let wrong = storage.get::<String>("a").await.expect_err("a number");
        assert_eq!(wrong.code(), Code::InvalidArgument);
        assert!(storage.delete("b").await?);
        assert!(!storage.delete("b").await?);
        storage.namespace("keeper.cache").set("a", &9).await?;
        Ok(())
    })
    .await;
    assert_eq!(core.stored("keeper", "a"), Some(json!(2)));
    assert_eq!(core.stored("keeper", "b"), None);
    assert_eq!(core.stored("keeper.cache", "a"), Some(json!(9)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_happens_as_a_whole() {
    let core = with_ctx(|ctx| async move {
        let storage = ctx.storage();
        storage.set("old", &1).await?;
        let event = || NewEvent::new("keeper.moved", json!({})).map(|event| event.subject("x"));
        let batch = Batch::new()
            .check("new", 0)
            .set("new", &2)?
            .delete("old")
            .event(event()?);
        storage.apply(batch.clone()).await?;
        let error = storage.apply(batch).await.expect_err("new is there");
        assert_eq!(error.reason(), "REVISION_MISMATCH");
        let bad = Batch::new()
            .set("bad", &1)?
            .event(NewEvent::new("no topic", json!({}))?);
        let error = storage.apply(bad).await.expect_err("a space");
        assert_eq!(error.reason(), "BAD_TOPIC");
        let twice = Batch::new().set("k", &1)?.set("k", &2)?;
        assert_eq!(
            storage.apply(twice).await.expect_err("twice").reason(),
            "DUPLICATE_KEY"
        );
        Ok(())
    })
    .await;
    assert_eq!(core.stored("keeper", "old"), None);
    assert_eq!(core.stored("keeper", "bad"), None);
    assert_eq!(core.stored("keeper", "new"), Some(json!(2)));
    assert_eq!(core.published("keeper.moved").len(), 1);
    assert_eq!(core.published("keeper.moved")[0].subject(), "x");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_at_once_is_refused_as_the_core_does() {
    with_ctx(|ctx| async move {
        let storage = ctx.storage();
        let quarter = "x".repeat((256 << 10) - 2);
        for key in ["a", "b", "c", "d"] {
            storage.set(key, &quarter).await?;
        }
        let refused = storage.get_many(["a", "b", "c", "d"]).await;
        assert_eq!(refused.expect_err("and the keys").reason(), "TOO_LARGE");
        assert_eq!(storage.get_many(["a", "b", "c"]).await?.len(), 3);
        let keys = |count: u32| (0..count).map(|number| format!("k{number}"));
        assert_eq!(storage.get_many(keys(100)).await?.len(), 0);
        for count in [0, 101] {
            let refused = storage.get_many(keys(count)).await;
            assert_eq!(refused.expect_err("100").reason(), "BAD_FIELD");
        }
        let deletes = |count| keys(count).fold(Batch::new(), Batch::delete);
        storage.apply(deletes(128)).await?;
        let checks = keys(129).fold(deletes(1), |batch, key| batch.check(key, 0));
        let event = NewEvent::new("keeper.moved", json!({}))?;
        let events = (0..17).fold(deletes(1), |batch, _| batch.event(event.clone()));
        for batch in [Batch::new(), deletes(129), checks, events] {
            let refused = storage.apply(batch).await;
            assert_eq!(refused.expect_err("too many").reason(), "BAD_FIELD");
        }
        let mut batch = ["a", "b", "c", "d"].into_iter();
        let batch = batch.try_fold(Batch::new(), |batch, key| batch.set(key, &quarter))?;
        let refused = storage.apply(batch).await.expect_err("and the keys");
        assert_eq!(refused.reason(), "TOO_LARGE");
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn keys_are_listed_over_pages() {
    with_ctx(|ctx| async move {
        let storage = ctx.storage();
        for number in 0..1500 {
            storage.set(format!("k{number:04}"), &number).await?;
        }
        storage.set("other", &0).await?;
        let keys = storage.list_keys("k").await?;
        assert_eq!(keys.len(), 1500);
        assert!(keys.is_sorted());
        let last = storage
            .list_keys(Range::prefix("k").reverse().limit(2))
            .await?;
        assert_eq!(last, ["k1499", "k1498"]);
        let some = storage
            .scan(Range::prefix("k").after("k1497").limit(1))
            .await?;
        assert_eq!(some.len(), 1);
        assert_eq!(some[0].parse::<u32>()?, 1498);
        assert_eq!(storage.list_keys("").await?.len(), 1501);
        assert!(
            storage
                .list_keys(Range::prefix("k").limit(0))
                .await?
                .is_empty()
        );
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn large_values_travel_unary_with_their_cause() {
    let core = with_ctx(|ctx| async move {
        let text = "x".repeat(100_000);
        ctx.storage().set("large", &text).await?;
        assert_eq!(ctx.storage().get::<String>("large").await?, Some(text));
        let error = ctx
            .storage()
            .set("huge", &"x".repeat(300_000))
            .await
            .expect_err("too large");
        assert_eq!(
            (error.reason(), error.origin()),
            ("TOO_LARGE", Origin::Core)
        );
        Ok(())
    })
    .await;
    let unary = core.core.desk.lock().unary.clone();
    let methods: Vec<_> = unary.iter().map(|(method, _)| method.as_str()).collect();
    assert_eq!(methods, ["Storage/Set", "Storage/Set"]);
    assert!(
        unary.iter().all(|(_, parent)| parent.starts_with("call/")),
        "{unary:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn state_is_shared_and_watched() {
    let core = with_ctx(|ctx| async move {
        let state = ctx.state();
        state.set("keeper.mode", &"day").await?;
        let mut watch = state.watch("keeper.*").await?;
        let change = watch.next().await?.expect("the snapshot");
        assert_eq!(change.kind, StateChangeKind::Initial);
        let revision = state.set("keeper.mode", &"night").await?;
        assert_eq!(
            state.set("keeper.mode", &"night").await?,
            revision,
            "a report"
        );
        let change = watch.next().await?.expect("a change");
        assert_eq!(
            (change.kind, change.entry.revision),
            (StateChangeKind::Set, revision)
        );
        assert_eq!(change.old_value, "\"day\"");
        assert!(change.cause.starts_with("call/"), "{}", change.cause);
        assert_eq!(change.entry.writer, "keeper");
        assert!(state.delete("keeper.mode").await?);
        assert_eq!(
            watch.next().await?.expect("a change").kind,
            StateChangeKind::Deleted
        );
        assert_eq!(state.get::<String>("keeper.mode").await?, None);
        state.set_if("keeper.once", &1, 0).await?;
        let error = state
            .set_if("keeper.once", &2, 0)
            .await
            .expect_err("it is there");
        assert_eq!(error.code(), Code::Aborted);
        assert_eq!(state.list("keeper.").await?.len(), 1);
        assert_eq!(
            state.set("no key", &1).await.expect_err("a space").reason(),
            "BAD_STATE_KEY"
        );
        Ok(())
    })
    .await;
    assert_eq!(core.state("keeper.once"), Some(json!(1)));
}

#[tokio::test(start_paused = true)]
async fn faults_reach_the_plugin_as_errors() {
    let service = Service::new("save").handle(|ctx: Ctx, (): ()| async move {
        let began = tokio::time::Instant::now();
        let saved = ctx.storage().set("a", &1).await;
        Ok((
            saved.map_err(|error| error.reason().to_owned()).err(),
            began.elapsed().as_secs(),
        ))
    });
    let core = TestRuntime::start(Plugin::builder("keeper").service(service))
        .await
        .expect("starts");
    let save = || core.call::<(Option<String>, u64)>("keeper.save", &());
    assert_eq!(save().await.expect("fine"), (None, 0));
    core.fail_storage(Some(
        Error::resource_exhausted("full").with_reason("DISK_LOW"),
    ));
    assert_eq!(
        save().await.expect("told"),
        (Some("DISK_LOW".to_owned()), 0)
    );
    core.fail_storage(None);
    core.slow(secs(4));
    assert_eq!(save().await.expect("late"), (None, 4));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_channel_waits_for_the_next_one() {
    let (told, mut outcome) = mpsc::channel(4);
    let plugin = Plugin::builder("keeper").task("save", move |ctx| {
        let told = told.clone();
        async move {
            ctx.every(secs(100), || async {
                let saved = ctx.storage().set("a", &1).await;
                Ok(told
                    .send(saved.err().map(|error| error.reason().to_owned()))
                    .await?)
            })
            .await
        }
    });
    let core = TestRuntime::start(plugin).await.expect("starts");
    assert_eq!(outcome.recv().await, Some(None));
    core.go_offline();
    tokio::time::sleep(secs(95)).await;
    // The next turn, at 100 s, meets no channel; it comes back within the request's 10 s.
    tokio::time::sleep(secs(7)).await;
    assert!(outcome.try_recv().is_err());
    core.go_online();
    let saved = outcome.recv().await.expect("told");
    assert!(saved.is_none() || saved.as_deref() == Some("CHANNEL_LOST"));
}

#[tokio::test(start_paused = true)]
async fn what_lasts_for_a_time_is_gone_afterwards() {
    with_ctx(|ctx| async move {
        let (storage, state) = (ctx.storage(), ctx.state());
        storage.set_for("a", &1, secs(2)).await?;
        state.set_for("keeper.a", &1, secs(2)).await?;
        let batch = Batch::new().set_for("b", &2, secs(4))?.set("c", &3)?;
        storage.apply(batch).await?;
        let entry = storage.entry("a").await?.expect("stored");
        assert!(entry.expires_at > entry.updated_at);
        assert!(
            state
                .entry("keeper.a")
                .await?
                .expect("there")
                .expires_at
                .is_some()
        );
        let usage = storage.usage().await?;
        let bytes = 3 * (64 + "keeper".len() as u64) + 6;
        assert_eq!(
            (usage.keys, usage.bytes, usage.max_keys),
            (3, bytes, 100_000)
        );
        tokio::time::advance(secs(3)).await;
        assert_eq!(storage.get::<u8>("a").await?, None);
        assert_eq!(state.get::<u8>("keeper.a").await?, None);
        assert_eq!(storage.list_keys("").await?, ["b", "c"]);
        storage.set_if("a", &4, 0).await?;
        let refused = storage.set_for("a", &1, secs(0)).await;
        assert_eq!(refused.expect_err("no time at all").reason(), "BAD_FIELD");
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_is_watched_from_what_is_there_to_what_comes() {
    with_ctx(|ctx| async move {
        let storage = ctx.storage();
        storage.set("lamp/a", &1).await?;
        storage.set("other", &1).await?;
        let mut watch = storage.watch("lamp/").await?;
        let next = watch.next().await?.expect("a change");
        assert!(matches!(next, StorageChange::Initial(entry) if entry.key == "lamp/a"));
        let next = watch.next().await?.expect("a change");
        assert_eq!(next, StorageChange::SnapshotEnd);
        let batch = Batch::new()
            .set("lamp/b", &2)?
            .delete("lamp/a")
            .delete("other");
        let revision = storage.apply(batch).await?;
        let next = watch.next().await?.expect("a change");
        let StorageChange::Put { entry, conflated } = next else {
            panic!("a put, not {next:?}");
        };
        assert_eq!(
            (entry.parse::<u8>()?, entry.revision, conflated),
            (2, revision, false)
        );
        let next = watch.next().await?.expect("a change");
        let key = "lamp/a".to_owned();
        assert_eq!(next, StorageChange::Deleted { key, revision });
        Ok(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_it_was_after_a_break() {
    let (told, mut hears) = mpsc::channel(8);
    let plugin = Plugin::builder("keeper").task("watch", move |ctx: Ctx| {
        let told = told.clone();
        async move {
            let mut watch = ctx.storage().watch("").await?;
            while let Some(change) = watch.next().await? {
                // Nobody listens any more: the test is over.
                told.send(change).await.ok();
            }
            Ok(())
        }
    });
    let core = TestRuntime::start(plugin).await.expect("starts");
    assert_eq!(hears.recv().await, Some(StorageChange::SnapshotEnd));
    core.go_offline();
    core.store("keeper", "a", 1).expect("stored");
    core.go_online();
    let next = hears.recv().await.expect("a change");
    assert!(matches!(next, StorageChange::Put { entry, .. } if entry.key == "a"));
}

#[tokio::test(start_paused = true)]
async fn an_owned_key_is_stale_when_its_run_has_ended() {
    let core = with_ctx(|ctx| async move {
        ctx.state().set_owned("keeper.a", &1).await?;
        let entry = ctx.state().entry("keeper.a").await?.expect("there");
        assert!(entry.owned && !entry.stale);
        Ok(())
    })
    .await;
    core.end_run();
    assert_eq!(core.state("keeper.a"), Some(json!(1)));
    assert!(core.is_stale("keeper.a"));
    core.set_state("keeper.a", 1)
        .expect("somebody says it again");
    assert!(!core.is_stale("keeper.a"));
}
