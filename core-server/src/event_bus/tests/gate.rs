//! A plugin's events flow only while it is STARTED.

use tokio::sync::watch;

use super::*;

fn gated(bus: &EventBus, gate: Gate) -> (watch::Sender<Gate>, Subscription) {
    let (sender, receiver) = watch::channel(gate);
    let gate = Some(receiver);
    let subscription = bus
        .subscribe(Subscribe {
            gate,
            ..to(&["a.b"])
        })
        .unwrap();
    (sender, subscription)
}

#[tokio::test]
async fn before_its_first_start_a_subscription_waits_and_then_misses_nothing() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Waiting);
    publish_many(&bus, "a.b", 3);
    assert!(matches!(
        ready(&mut subscription),
        Some(Delivery::Subscribed { next_seq: 1, .. })
    ));
    assert!(ready(&mut subscription).is_none());
    gate.send(Gate::Open).unwrap();
    assert_eq!(seqs(&mut subscription), [1, 2, 3]);
    drop(gate);
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [4]);
}

#[tokio::test]
async fn what_passed_while_it_was_stopped_is_told_exactly() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Open);
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [1]);
    gate.send(Gate::Closed).unwrap();
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish(&bus, "a.other");
    publish_many(&bus, "a.b", 3);
    publish(&bus, "a.other");
    assert_eq!(seqs(&mut subscription), NOTHING);
    gate.send(Gate::Open).unwrap();
    let expected = Delivery::Gap(Gap {
        reason: GapReason::Stopped,
        from: 3,
        to: 5,
    });
    assert_eq!(ready(&mut subscription), Some(expected));
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [7]);
    assert_eq!(bus.stats().gaps, 1);
}

#[tokio::test]
async fn what_was_not_read_before_the_stop_passes_too() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Open);
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish_many(&bus, "a.b", 2);
    gate.send(Gate::Closed).unwrap();
    assert_eq!(seqs(&mut subscription), NOTHING);
    assert_eq!(bus.stats().lane_bytes, 0);
    gate.send(Gate::Open).unwrap();
    assert!(matches!(
        ready(&mut subscription),
        Some(Delivery::Gap(Gap { from: 1, to: 2, .. }))
    ));
}

#[tokio::test]
async fn a_stop_in_which_nothing_passed_leaves_no_gap() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Open);
    assert_eq!(seqs(&mut subscription), NOTHING);
    gate.send(Gate::Closed).unwrap();
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish_many(&bus, "a.other", 5_000);
    gate.send(Gate::Open).unwrap();
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [5_001]);
}

#[tokio::test]
async fn a_gate_that_closes_again_while_looking_back_forgets_nothing() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Closed);
    publish(&bus, "a.b");
    publish_many(&bus, "a.other", 30_000);
    gate.send(Gate::Open).unwrap();
    assert!(matches!(
        ready(&mut subscription),
        Some(Delivery::Subscribed { .. })
    ));
    // One poll looks at a part of what passed.
    assert!(ready(&mut subscription).is_none());
    gate.send(Gate::Closed).unwrap();
    assert!(ready(&mut subscription).is_none());
    publish(&bus, "a.b");
    gate.send(Gate::Open).unwrap();
    assert!(matches!(
        next(&mut subscription).await,
        Delivery::Gap(Gap {
            reason: GapReason::Stopped,
            from: 1,
            to: 30_002
        })
    ));
}

#[tokio::test]
async fn what_left_the_log_during_a_stop_counts_as_passed() {
    let bus = small_bus(100);
    let (gate, mut subscription) = gated(&bus, Gate::Closed);
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish_many(&bus, "a.other", 300);
    gate.send(Gate::Open).unwrap();
    assert!(matches!(
        ready(&mut subscription),
        Some(Delivery::Gap(Gap {
            reason: GapReason::Stopped,
            from: 1,
            to: 200
        }))
    ));
}

#[tokio::test]
async fn who_waited_too_long_was_not_slow() {
    let bus = small_bus(100);
    let (gate, mut subscription) = gated(&bus, Gate::Waiting);
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish_many(&bus, "a.b", 300);
    assert_eq!(bus.stats().became_slow, 0);
    gate.send(Gate::Open).unwrap();
    assert!(matches!(
        ready(&mut subscription),
        Some(Delivery::Gap(Gap {
            reason: GapReason::Stopped,
            from: 1,
            to: 200
        }))
    ));
    assert!(seqs(&mut subscription).into_iter().eq(201..=300));
}

#[tokio::test(start_paused = true)]
async fn bookmarks_of_a_closed_gate_do_not_hide_what_passes() {
    let bus = bus();
    let (gate, mut subscription) = gated(&bus, Gate::Open);
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [1]);
    gate.send(Gate::Closed).unwrap();
    assert_eq!(seqs(&mut subscription), NOTHING);
    publish_many(&bus, "a.b", 5);
    let bookmark = Delivery::Bookmark(Position {
        epoch: bus.epoch(),
        seq: 1,
    });
    assert_eq!(next(&mut subscription).await, bookmark);
}
