use std::sync::Arc;

use serde_json::json;
use tokio::sync::mpsc;

use crate::prelude::*;
use crate::testing::TestRuntime;
use crate::{GapReason, Subscribe};

/// Sends what its handlers get to the test.
struct Listener(mpsc::Sender<String>);

impl Listener {
    async fn tell(&self, line: String) -> Result {
        self.0.send(line).await?;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Presence {
    who: String,
}

#[plugin(name = "listener")]
impl Listener {
    #[on("presence.*", "number.>", on_gap = missed)]
    async fn any(&self, ctx: &Ctx, event: Event) -> Result {
        match event.topic() {
            "number.panic" => panic!("on demand"),
            "number.fail" => return Err(Error::internal("on demand")),
            "number.block" => {
                self.tell("blocks".to_owned()).await?;
                std::future::pending().await
            }
            _ => {}
        }
        ctx.publish("listener.seen", event.seq()).await?;
        self.tell(format!("{} {}", event.topic(), event.json()?))
            .await
    }
    async fn missed(&self, _ctx: &Ctx, gap: Gap) -> Result {
        self.tell(format!(
            "gap {:?} {}-{}",
            gap.reason, gap.from_seq, gap.to_seq
        ))
        .await
    }
    #[on("who.came", source = "door", subject = "front")]
    async fn came(&self, presence: Presence) -> Result {
        self.tell(presence.who).await
    }
    #[on("many.here")]
    async fn many(&self, ctx: &Ctx) -> Result {
        for number in 0..200 {
            match number % 3 {
                0 => ctx.publish("listener.many", number).await.map(drop)?,
                1 => {
                    let large = json!({ "n": number, "text": "x".repeat(50_000) });
                    ctx.publish_nowait("listener.many", large).await?;
                }
                _ => ctx.publish_nowait("listener.many", number).await?,
            }
        }
        Ok(())
    }
    #[service]
    async fn publish(&self, ctx: &Ctx, topic: String) -> Result<u64> {
        ctx.publish_nowait(topic, 1).await?;
        ctx.publish("listener.after", 1).await?;
        Ok(ctx.publish_failures())
    }
    /// Ends its subscription with the first event.
    #[service]
    async fn once(&self, ctx: &Ctx, pattern: String) -> Result {
        let sender = self.0.clone();
        let own = Arc::<std::sync::Mutex<Option<crate::Subscribed>>>::default();
        let kept = Arc::clone(&own);
        let subscription = ctx
            .on(pattern, move |_, event| {
                let ended = own.lock().expect("no panic").take();
                ended.expect("no handler begins any more").unsubscribe();
                let told = sender.try_send(format!("once {}", event.topic()));
                async move { Ok(told?) }
            })
            .await?;
        kept.lock().expect("no panic").replace(subscription);
        Ok(())
    }
    #[service]
    async fn follow(&self, ctx: &Ctx, pattern: String) -> Result {
        let sender = self.0.clone();
        let subscription = ctx
            .on(pattern, move |_, event| {
                let sender = sender.clone();
                async move { Ok(sender.send(format!("dynamic {}", event.topic())).await?) }
            })
            .await?;
        subscription.keep();
        Ok(())
    }
}

async fn listener() -> (TestRuntime, mpsc::Receiver<String>) {
    let (sender, receiver) = mpsc::channel(1024);
    (
        TestRuntime::start(Listener(sender)).await.expect("starts"),
        receiver,
    )
}

#[tokio::test(start_paused = true)]
async fn events_arrive_in_order_and_typed() {
    let (core, mut seen) = listener().await;
    for number in 0..100 {
        core.emit("number.next", number).expect("a topic");
    }
    core.emit("other.topic", 1).expect("a topic");
    for number in 0..100 {
        assert_eq!(
            seen.recv().await.expect("told"),
            format!("number.next {number}")
        );
    }
    core.emit_as("window", "who.came", "front", json!({ "who": "no" }))
        .expect("a topic");
    core.emit_as("door", "who.came", "back", json!({ "who": "no" }))
        .expect("a topic");
    core.emit_as("door", "who.came", "front", json!({ "who": "Ann" }))
        .expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "Ann");
    let causes = core.published("listener.seen");
    assert_eq!(causes[0].cause(), "event/1/1");
}

#[tokio::test(start_paused = true)]
async fn a_failing_handler_affects_nothing_else() {
    let (core, mut seen) = listener().await;
    for topic in ["number.panic", "number.fail", "who.came", "number.good"] {
        core.emit_as("door", topic, "front", json!("no presence"))
            .expect("a topic");
    }
    assert_eq!(
        seen.recv().await.expect("told"),
        "number.good \"no presence\""
    );
    assert!(seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_goes_on_after_the_last_event() {
    let (core, mut seen) = listener().await;
    core.emit("number.next", 1).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 1");
    core.disconnect();
    core.emit("number.next", 2).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 2");
    // Also where nothing had come before the break.
    core.go_offline();
    core.emit_as("door", "who.came", "front", json!({ "who": "Ann" }))
        .expect("a topic");
    core.go_online();
    assert_eq!(seen.recv().await.expect("told"), "Ann");
    assert!(seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_left_the_log_is_told_as_a_gap() {
    let (core, mut seen) = listener().await;
    core.emit("number.next", 1).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 1");
    core.go_offline();
    let missed = core.published(">").len() + 1;
    for number in 2..6 {
        core.emit("number.next", number).expect("a topic");
    }
    core.forget_events();
    core.emit("number.next", 6).expect("a topic");
    core.go_online();
    let gap = seen.recv().await.expect("told");
    assert!(
        gap.starts_with("gap TooOld ") && gap.ends_with(&format!("-{}", missed + 4)),
        "{gap}"
    );
    assert_eq!(seen.recv().await.expect("told"), "number.next 6");
}

#[tokio::test(start_paused = true)]
async fn a_new_run_goes_on_where_the_old_one_ended() {
    let (core, mut seen) = listener().await;
    core.emit("number.next", 1).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 1");
    core.end_run();
    core.emit("number.next", 2).expect("a topic");
    core.started().await.expect("again");
    assert_eq!(seen.recv().await.expect("told"), "number.next 2");
    core.restart_core();
    core.started().await.expect("again");
    assert!(
        seen.recv()
            .await
            .expect("told")
            .starts_with("gap EpochChanged")
    );
    core.emit("number.next", 3).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 3");
}

#[tokio::test(start_paused = true)]
async fn a_new_run_begins_with_what_waited_for_its_handler() {
    let (core, mut seen) = listener().await;
    core.go_offline();
    core.emit("number.block", 1).expect("a topic");
    core.emit("number.next", 2).expect("a topic");
    core.go_online();
    assert_eq!(seen.recv().await.expect("told"), "blocks");
    core.end_run();
    core.started().await.expect("again");
    assert_eq!(seen.recv().await.expect("told"), "number.next 2");
}

#[tokio::test(start_paused = true)]
async fn no_handler_begins_after_unsubscribe() {
    let (core, mut seen) = listener().await;
    core.call::<()>("listener.once", &("many.*",))
        .await
        .expect("subscribed");
    core.go_offline();
    for number in 0..50 {
        core.emit("many.there", number).expect("a topic");
    }
    core.emit("number.next", 1).expect("a topic");
    core.go_online();
    let mut told = vec![seen.recv().await, seen.recv().await];
    told.sort_unstable();
    assert_eq!(
        told,
        [
            Some("number.next 1".to_owned()),
            Some("once many.there".to_owned())
        ]
    );
    assert!(seen.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_plugin_learns_what_passed() {
    let (core, mut seen) = listener().await;
    core.stop().await.expect("stops");
    core.emit("number.next", 1).expect("a topic");
    core.start_again().await.expect("starts");
    assert_eq!(seen.recv().await.expect("told"), "gap Stopped 1-1");
    core.emit("number.next", 2).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 2");
}

#[tokio::test(start_paused = true)]
async fn publishes_of_all_kinds_and_sizes_keep_their_order() {
    let (core, _seen) = listener().await;
    core.emit("many.here", 1).expect("a topic");
    let events = core
        .wait_published("listener.many", 200)
        .await
        .expect("all");
    for (number, event) in events.iter().enumerate() {
        let data = event.json().expect("JSON");
        let told = data.get("n").unwrap_or(&data).as_u64();
        assert_eq!(told, Some(number as u64));
    }
    let unary = core.core.desk.lock().unary.clone();
    assert!(
        unary
            .iter()
            .all(|(method, _)| !method.starts_with("EventBus")),
        "{unary:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_nobody_waits_for_is_counted_when_it_fails() {
    let (core, _seen) = listener().await;
    assert_eq!(
        core.call::<u64>("listener.publish", &"listener.x")
            .await
            .expect("fine"),
        0
    );
    assert_eq!(
        core.call::<u64>("listener.publish", &"bad topic")
            .await
            .expect("counted"),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn a_subscription_may_begin_later_and_may_be_refused() {
    let (core, mut seen) = listener().await;
    core.call::<()>("listener.follow", &"late.*")
        .await
        .expect("live");
    core.emit("late.one", 1).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "dynamic late.one");
    let error = core
        .call::<()>("listener.follow", &"late.>.x")
        .await
        .expect_err("no pattern");
    assert_eq!(error.reason(), "BAD_PATTERN");
    let plugin = Plugin::builder("bad").on("a..b", |_, _| async { Ok(()) });
    let error = TestRuntime::start(plugin).await.expect_err("no pattern");
    assert_eq!(error.reason(), "BAD_PATTERN");
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_loses_nothing_that_is_still_in_the_log() {
    const EVENTS: u64 = 10_000;
    let (sender, mut seen) = mpsc::channel(1);
    let subscription = Subscribe::to("number.next")
        .on_gap(|_, gap| async move {
            assert_eq!(gap.reason, GapReason::Other, "no gap is expected");
            Ok(())
        })
        .handle(move |_, event| {
            let sender = sender.clone();
            async move { Ok(sender.send(event.parse::<u64>()?).await?) }
        });
    let plugin = Plugin::builder("slow").subscribe(subscription);
    let core = TestRuntime::start(plugin).await.expect("starts");
    for number in 0..EVENTS {
        core.emit("number.next", number).expect("a topic");
    }
    // More than the queue holds: the stream is ended and taken up again.
    for number in 0..EVENTS {
        assert_eq!(seen.recv().await, Some(number));
    }
    drop(Arc::new(core));
}

#[tokio::test(start_paused = true)]
async fn what_passed_while_nobody_wanted_the_plugin_is_not_made_up_for() {
    let (core, mut seen) = listener().await;
    core.emit("number.next", 1).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 1");
    core.unload().await.expect("unloads");
    core.emit("number.next", 2).expect("a topic");
    core.start_again().await.expect("starts");
    core.emit("number.next", 3).expect("a topic");
    assert_eq!(seen.recv().await.expect("told"), "number.next 3");
}
