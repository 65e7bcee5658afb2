//! Slow subscribers, those that fall off the log, and starts that are gone.

use super::*;

fn gap(reason: GapReason, from: u64, to: u64) -> Delivery {
    Delivery::Gap(Gap { reason, from, to })
}

#[tokio::test]
async fn a_slow_subscriber_is_told_of_once_until_it_has_caught_up() {
    let bus = bus();
    let mut advisories = bus
        .subscribe(Subscribe::new(Source::Operator, patterns(&["$core.>"])))
        .unwrap();
    let mut slow = bus.subscribe(to(&["a.b", "a.c"])).unwrap();
    let mut idle = bus.subscribe(to(&["never.heard"])).unwrap();
    assert_eq!(seqs(&mut slow), NOTHING);
    assert_eq!(seqs(&mut idle), NOTHING);
    publish_many(&bus, "a.b", 4_096);
    assert_eq!(seqs(&mut advisories), NOTHING);
    assert_eq!(bus.stats().slow, 0);
    publish(&bus, "a.b");
    let Some(Delivery::Events(pieces)) = ready(&mut advisories) else {
        panic!("no advisory");
    };
    let told = decode(&pieces);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].topic, SLOW_SUBSCRIBER);
    assert_eq!(
        (told[0].source.as_str(), told[0].subject.as_str()),
        ("core", "listener")
    );
    let data: serde_json::Value = serde_json::from_slice(&told[0].data).unwrap();
    assert_eq!(data["subscriber"], "listener");
    assert_eq!(data["patterns"], serde_json::json!(["a.b", "a.c"]));
    assert_eq!(
        (&data["seq"], &data["behind_events"]),
        (&1.into(), &4_097.into())
    );
    publish_many(&bus, "a.b", 10_000);
    assert_eq!(seqs(&mut advisories), NOTHING);
    let stats = bus.stats();
    assert_eq!((stats.slow, stats.became_slow, stats.gaps), (1, 1, 0));
    // It catches up, loses nothing, and may become slow again.
    assert_eq!(seqs(&mut slow).len(), 14_097);
    assert_eq!(bus.stats().slow, 0);
    publish_many(&bus, "a.b", 5_000);
    assert_eq!(seqs(&mut advisories).len(), 1);
    assert_eq!(bus.stats().became_slow, 2);
}

#[tokio::test]
async fn bytes_make_slow_too() {
    let bus = bus();
    let mut slow = bus.subscribe(to(&["a.b"])).unwrap();
    assert_eq!(seqs(&mut slow), NOTHING);
    for expected in [0, 1] {
        assert_eq!(bus.stats().slow, expected);
        for _ in 0..16 {
            bus.publish(&plugin("talker"), event_with("a.b", 256 << 10))
                .unwrap();
        }
    }
    assert_eq!(seqs(&mut slow).len(), 32);
}

#[tokio::test]
async fn who_is_lapped_in_its_lane_loses_nothing_that_is_in_the_log() {
    let bus = small_bus(10_000);
    let mut stalled = bus.subscribe(to(&["a.b"])).unwrap();
    let mut prompt = bus.subscribe(to(&["a.b"])).unwrap();
    assert_eq!(seqs(&mut stalled), NOTHING);
    for seq in 1..=1_000 {
        publish(&bus, "a.b");
        publish(&bus, "a.other");
        assert_eq!(seqs(&mut prompt), [2 * seq - 1]);
    }
    assert!(bus.stats().lane_bytes <= 256);
    let expected: Vec<_> = (1..=1_000).map(|seq| 2 * seq - 1).collect();
    assert_eq!(seqs(&mut stalled), expected);
    // And it is back in its lane.
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut stalled), [2_001]);
    assert_eq!(seqs(&mut prompt), [2_001]);
}

#[tokio::test]
async fn who_falls_off_the_log_is_told_what_it_missed() {
    let bus = small_bus(100);
    let mut stalled = bus.subscribe(to(&["a.b"])).unwrap();
    assert_eq!(seqs(&mut stalled), NOTHING);
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut stalled), [1]);
    publish_many(&bus, "a.b", 500);
    let stats = bus.stats();
    assert_eq!(stats.log_events, 100);
    let Some(Delivery::Gap(told)) = ready(&mut stalled) else {
        panic!("no gap");
    };
    assert_eq!((told.reason, told.from), (GapReason::Slow, 2));
    assert_eq!(told.to, stats.oldest_seq - 1);
    let rest = seqs(&mut stalled);
    // The advisory stands among them.
    assert_eq!((rest[0], rest.last().copied()), (told.to + 1, Some(502)));
    assert_eq!(bus.stats().gaps, 1);
}

#[tokio::test]
async fn who_chose_to_be_disconnected_is() {
    let bus = small_bus(100);
    let policy = Policy::Disconnect;
    let mut stalled = bus
        .subscribe(Subscribe {
            policy,
            ..to(&["a.b"])
        })
        .unwrap();
    assert_eq!(seqs(&mut stalled), NOTHING);
    publish_many(&bus, "a.b", 500);
    let oldest_seq = bus.stats().oldest_seq;
    let error = stalled.next().now_or_never().unwrap().unwrap().unwrap_err();
    assert_eq!(
        error,
        Error::FellBehind {
            from_seq: 1,
            to_seq: oldest_seq - 1,
            oldest_seq,
        }
    );
    assert_eq!(stalled.next().now_or_never(), Some(None));
    assert_eq!(
        crate::error::Classify::reason(&error).as_str(),
        "FELL_BEHIND"
    );
}

#[tokio::test]
async fn a_start_that_is_gone_is_answered_by_the_policy() {
    let bus = small_bus(100);
    publish_many(&bus, "a.b", 500);
    let epoch = bus.epoch();
    let other = Epoch(epoch.0 ^ 1);
    let after = |epoch, seq| Start::After(Position { epoch, seq });
    for (start, expected) in [
        (after(epoch, 10), Some(gap(GapReason::TooOld, 11, 400))),
        (after(epoch, 399), Some(gap(GapReason::TooOld, 400, 400))),
        (after(epoch, 400), None),
        (after(other, 10), Some(gap(GapReason::EpochChanged, 1, 400))),
        (
            Start::Since(SystemTime::UNIX_EPOCH),
            Some(gap(GapReason::TooOld, 1, 400)),
        ),
        (Start::Oldest, None),
    ] {
        let mut told = bus
            .subscribe(Subscribe {
                start,
                ..to(&["a.*"])
            })
            .unwrap();
        let subscribed = Delivery::Subscribed {
            epoch,
            next_seq: 401,
            oldest_seq: 401,
        };
        assert_eq!(ready(&mut told), Some(subscribed));
        if let Some(expected) = &expected {
            assert_eq!(ready(&mut told).as_ref(), Some(expected));
        }
        assert!(seqs(&mut told).into_iter().eq(401..=500));
        let policy = Policy::Disconnect;
        let refused = bus.subscribe(Subscribe {
            start,
            policy,
            ..to(&["a.*"])
        });
        assert_eq!(refused.is_err(), expected.is_some(), "{start:?}");
    }
}

#[tokio::test]
async fn in_a_new_log_an_old_position_means_all_that_is_there() {
    let bus = bus();
    publish_many(&bus, "a.b", 3);
    let epoch = Epoch(bus.epoch().0 ^ 1);
    let start = Start::After(Position { epoch, seq: 77 });
    let mut told = bus
        .subscribe(Subscribe {
            start,
            ..to(&["a.b"])
        })
        .unwrap();
    assert!(matches!(
        ready(&mut told),
        Some(Delivery::Subscribed { next_seq: 1, .. })
    ));
    assert_eq!(ready(&mut told), Some(gap(GapReason::EpochChanged, 1, 0)));
    assert_eq!(seqs(&mut told), [1, 2, 3]);
}

#[tokio::test]
async fn a_stalled_subscriber_costs_the_others_nothing_but_its_lanes_bound() {
    let bus = bus();
    let mut stalled = bus.subscribe(to(&[">"])).unwrap();
    let mut prompt = bus.subscribe(to(&[">"])).unwrap();
    assert_eq!(seqs(&mut stalled), NOTHING);
    assert_eq!(seqs(&mut prompt), NOTHING);
    let mut seen = 0;
    for _ in 0..200 {
        publish_many(&bus, "a.b", 500);
        seen += seqs(&mut prompt).len();
        assert!(bus.stats().lane_bytes <= Config::default().lane_bytes);
    }
    assert_eq!(seen, 100_000);
    assert_eq!(bus.stats().gaps, 0);
    assert!(matches!(
        ready(&mut stalled),
        Some(Delivery::Gap(Gap {
            reason: GapReason::Slow,
            from: 1,
            ..
        }))
    ));
}

#[tokio::test]
async fn who_replays_an_old_log_is_not_slow_for_that() {
    let bus = bus();
    publish_many(&bus, "a.b", 20_000);
    let start = Start::Oldest;
    let mut replay = bus
        .subscribe(Subscribe {
            start,
            ..to(&["a.b"])
        })
        .unwrap();
    next(&mut replay).await;
    publish_many(&bus, "a.b", 100);
    assert!(ready(&mut replay).is_some());
    assert_eq!(bus.stats().became_slow, 0);
    publish_many(&bus, "a.b", 4_000);
    assert_eq!(bus.stats().became_slow, 1);
}

#[tokio::test]
async fn ten_thousand_others_are_not_asked() {
    let bus = bus();
    let everybody: Vec<_> = (0..10_000)
        .map(|index| {
            let topic = format!("other.t{index}");
            let start = Subscribe::new(Source::Operator, patterns(&[&topic]));
            let subject = Some(format!("s{index}").into());
            let same_topic = Subscribe::new(Source::Operator, patterns(&["a.b"]));
            (
                bus.subscribe(start).unwrap(),
                bus.subscribe(Subscribe {
                    subject,
                    ..same_topic
                })
                .unwrap(),
            )
        })
        .collect();
    let mut one = bus.subscribe(to(&["a.*"])).unwrap();
    let begun = tokio::time::Instant::now();
    publish_many(&bus, "a.b", 10_000);
    // Asking each would be a hundred million looks. The bound is generous: this is no benchmark.
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(seqs(&mut one).len(), 10_000);
    drop(everybody);
    assert_eq!(bus.stats().subscriptions, 1);
}
