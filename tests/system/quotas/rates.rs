//! So much a second.

use tokio::task::JoinSet;

use super::super::counters::counter;
use super::*;

/// Surfaces that are played at the same time, each with a core of its own: most of it is waiting for what
/// was used up.
const SIDE_BY_SIDE: usize = 8;

#[tokio::test]
async fn each_surface_is_bounded_for_unary_requests_and_frames_together() {
    let mut waiting = uses().into_iter();
    let mut played = JoinSet::new();
    loop {
        while played.len() < SIDE_BY_SIDE
            && let Some(used) = waiting.next()
        {
            played.spawn(is_bounded(used));
        }
        match played.join_next().await {
            Some(done) => done.expect("what it says above"),
            None => break,
        }
    }
}

async fn is_bounded(used: Use) {
    let quota = used.quota;
    eprintln!("{quota:?} by {}", used.method);
    let (core, mut lamp) = lamp(only(quota, LIMIT)).await;
    let client = lamp.client();
    // Both use the same account: what the one has used up the other does not have. A call that is let in
    // fails, for nobody provides the service; that is no refusal.
    let of_quota = |answer: Result<(), Refusal>| match answer {
        Err(other) if other.reason == "NO_SUCH_SERVICE" => Ok(()),
        answer => answer,
    };
    let refusal = until_refused!(of_quota(unary(&client, &used).await));
    refusal.names(quota, LIMIT);
    let refusal = until_refused!(of_quota(framed(&mut lamp, &used).await));
    let wait = refusal.names(quota, LIMIT);
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    // The time that was told is enough.
    tokio::time::sleep(wait).await;
    let answer = of_quota(framed(&mut lamp, &used).await);
    assert!(answer.is_ok(), "{answer:?}");
    for shown in quotas_of(&core, "lamp").await {
        let is_it = shown.name == quota.key();
        assert_eq!(shown.limit, if is_it { LIMIT } else { 0 }, "{shown:?}");
        assert_eq!(shown.refused > 0, is_it, "{shown:?}");
    }
    assert!(counter(core.operator(), "plugin_quota_refused_total").await >= 2);
    // Another plugin has not used anything.
    let door = RawPlugin::open(&core.remote("door"), Hello::ready()).await;
    let door = door.expect("admitted");
    let elsewhere = Use {
        message: of_door(&used.message),
        ..used
    };
    let answer = of_quota(unary(&door.client(), &elsewhere).await);
    assert!(answer.is_ok(), "{answer:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn a_batch_of_more_than_a_second_is_let_in_when_nothing_is_owed_and_a_refused_one_loses_nothing()
 {
    let (core, mut lamp) = lamp(only(Quota::PublishesPerSecond, 2)).await;
    let mut heard = core.operator().subscribe(&["lamp.>"]).await;
    let batch = |count: usize| v1::EventBusPublishBatchRequest {
        events: vec![event(1); count],
    };
    let answer: v1::EventBusPublishBatchResponse = lamp
        .request("EventBus/PublishBatch", &batch(4))
        .await
        .expect("nothing is owed");
    assert_eq!(answer.published, 4);
    let refused = lamp
        .request::<v1::EventBusPublishBatchResponse>("EventBus/PublishBatch", &batch(2))
        .await
        .expect_err("two seconds are owed");
    let wait = Refusal::frame(&refused).names(Quota::PublishesPerSecond, 2);
    assert!(
        wait > Duration::from_secs(1) && wait <= Duration::from_secs(2),
        "{wait:?}"
    );
    tokio::time::sleep(wait).await;
    let answer: v1::EventBusPublishBatchResponse = lamp
        .request("EventBus/PublishBatch", &batch(2))
        .await
        .expect("it was paid for");
    for _ in 0..6 {
        let last = heard.event().await.seq;
        assert!(last < answer.first_seq + 2, "nothing of the refused batch");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn a_publish_stream_ends_with_the_batch_that_does_not_fit_and_says_what_was_published() {
    let (core, lamp) = lamp(only(Quota::PublishesPerSecond, 3)).await;
    let batch = || v1::EventBusPublishStreamRequest {
        events: vec![event(1); 3],
    };
    let batches = tokio_stream::iter([batch(), batch(), batch()]);
    let stream = lamp.client().event_bus().publish_stream(batches).await;
    let mut stream = stream.expect("opened").into_inner();
    let first = within("acknowledged", stream.message())
        .await
        .expect("fits");
    assert_eq!(first.expect("there").acknowledged, 3);
    let end = within("refused", stream.message()).await;
    let refusal = Refusal::unary(&end.expect_err("it does not fit"));
    refusal.names(Quota::PublishesPerSecond, 3);
    core.shutdown().await;
}

#[tokio::test]
async fn what_a_watch_begins_with_is_paid_for_like_pages_and_waits_instead_of_being_refused() {
    let (core, lamp) = lamp(only(Quota::StorageReadsPerSecond, 1)).await;
    for batch in 0..5 {
        let op = |index: usize| {
            let (key, value) = (format!("{batch}.{index}"), "1".into());
            let set = v1::StorageOpSet {
                key,
                value,
                ..Default::default()
            };
            v1::StorageOp {
                op: Some(v1::storage_op::Op::Set(set)),
            }
        };
        let request = v1::StorageApplyRequest {
            namespace: "lamp".to_owned(),
            ops: (0..100).map(op).collect(),
            ..Default::default()
        };
        let written = core.operator().storage().apply(request).await;
        written.expect("written");
    }
    let client = lamp.client();
    let request = v1::StorageWatchRequest {
        namespace: "lamp".to_owned(),
        include_initial: true,
        ..Default::default()
    };
    let watch = client.storage().watch(request).await.expect("it may");
    let mut watch = watch.into_inner();
    let mut told = 0;
    loop {
        let item = within("the snapshot", watch.message())
            .await
            .expect("goes on");
        let item = item.expect("no end");
        told += item.changes.len();
        if item.snapshot_end {
            break;
        }
    }
    assert_eq!(told, 500);
    let quotas = async || {
        let shown = quotas_of(&core, "lamp").await;
        let key = Quota::StorageReadsPerSecond.key();
        shown
            .into_iter()
            .find(|one| one.name == key)
            .expect("there")
    };
    assert_eq!(quotas().await.refused, 0, "it only waited");
    // Five reads at one a second: the next one has to wait.
    let get = v1::StorageGetRequest {
        namespace: "lamp".to_owned(),
        key: "0.0".to_owned(),
    };
    let refused = client
        .storage()
        .get(get)
        .await
        .expect_err("not paid for yet");
    // Longer than for the one that the beginning of the watch costs.
    let wait = Refusal::unary(&refused).names(Quota::StorageReadsPerSecond, 1);
    assert!(wait > Duration::from_secs(1), "{wait:?}");
    core.shutdown().await;
}
