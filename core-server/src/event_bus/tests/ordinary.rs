//! Publishing, matching, filters, starts, limits, order.

use super::*;

#[tokio::test]
async fn an_event_reaches_who_asked_for_it_and_nobody_else() {
    let bus = bus();
    let mut exact = bus.subscribe(to(&["lamp.changed"])).unwrap();
    let mut wide = bus.subscribe(to(&[">"])).unwrap();
    let mut other = bus.subscribe(to(&["door.*"])).unwrap();
    let mut sent = event_about("lamp.changed", "kitchen");
    sent.payload.data = Bytes::from_static(b"{\"on\":true}");
    let position = bus.publish(&plugin("lamp"), sent).unwrap();
    assert_eq!(
        position,
        Position {
            epoch: bus.epoch(),
            seq: 1
        }
    );
    let expected = Got {
        seq: 1,
        topic: "lamp.changed".to_owned(),
        source: "lamp".to_owned(),
        subject: "kitchen".to_owned(),
        data: Bytes::from_static(b"{\"on\":true}"),
    };
    for subscription in [&mut exact, &mut wide] {
        let subscribed = Delivery::Subscribed {
            epoch: bus.epoch(),
            next_seq: 1,
            oldest_seq: 1,
        };
        assert_eq!(next(subscription).await, subscribed);
        let Delivery::Events(pieces) = next(subscription).await else {
            panic!("no events");
        };
        assert_eq!(decode(&pieces), std::slice::from_ref(&expected));
    }
    assert_eq!(seqs(&mut other), NOTHING);
    let stats = bus.stats();
    assert_eq!(
        (stats.published, stats.delivered, stats.subscriptions),
        (1, 2, 3)
    );
}

#[tokio::test]
async fn an_event_that_several_patterns_match_is_delivered_once() {
    let bus = bus();
    let mut subscription = bus
        .subscribe(to(&["a.b", "a.*", "a.>", ">", "a.b"]))
        .unwrap();
    publish(&bus, "a.b");
    assert_eq!(seqs(&mut subscription), [1]);
}

#[tokio::test]
async fn a_monitor_of_everything_does_not_hear_advisories() {
    let bus = bus();
    let mut everything = bus.subscribe(to(&[">"])).unwrap();
    let mut advisories = bus.subscribe(to(&["$core.>"])).unwrap();
    bus.publish(&Source::Core, event("$core.slow_subscriber"))
        .unwrap();
    bus.publish(&Source::Core, event("core.plugin.started"))
        .unwrap();
    assert_eq!(seqs(&mut everything), [2]);
    assert_eq!(seqs(&mut advisories), [1]);
}

#[tokio::test]
async fn filters_and_exclude_own_leave_out_the_rest() {
    let bus = bus();
    let mut by_source = bus
        .subscribe(Subscribe {
            source: Some(plugin("lamp")),
            ..to(&["a.*"])
        })
        .unwrap();
    let mut by_subject = bus
        .subscribe(Subscribe {
            subject: Some("kitchen".into()),
            ..to(&["a.*"])
        })
        .unwrap();
    let mut by_both = bus
        .subscribe(Subscribe {
            source: Some(plugin("lamp")),
            subject: Some("kitchen".into()),
            ..to(&["a.*"])
        })
        .unwrap();
    let mut not_own = bus
        .subscribe(Subscribe {
            exclude_own: true,
            ..to(&["a.*"])
        })
        .unwrap();
    bus.publish(&plugin("lamp"), event_about("a.b", "kitchen"))
        .unwrap();
    bus.publish(&plugin("lamp"), event_about("a.b", "hall"))
        .unwrap();
    bus.publish(&plugin("listener"), event_about("a.b", "kitchen"))
        .unwrap();
    bus.publish(&Source::Operator, event("a.b")).unwrap();
    assert_eq!(seqs(&mut by_source), [1, 2]);
    assert_eq!(seqs(&mut by_subject), [1, 3]);
    assert_eq!(seqs(&mut by_both), [1]);
    assert_eq!(seqs(&mut not_own), [1, 2, 4]);
    // The same from the log as from the lanes.
    for (subscribe, expected) in [
        (
            Subscribe {
                source: Some(plugin("lamp")),
                ..to(&["a.*"])
            },
            vec![1, 2],
        ),
        (
            Subscribe {
                subject: Some("kitchen".into()),
                ..to(&["a.*"])
            },
            vec![1, 3],
        ),
        (
            Subscribe {
                exclude_own: true,
                ..to(&["a.*"])
            },
            vec![1, 2, 4],
        ),
    ] {
        let start = Start::Oldest;
        let mut replay = bus.subscribe(Subscribe { start, ..subscribe }).unwrap();
        assert_eq!(seqs(&mut replay), expected);
    }
}

#[tokio::test]
async fn each_start_begins_where_it_says() {
    let hour = Duration::from_secs(3_600);
    let after = |seq| move |epoch| Start::After(Position { epoch, seq });
    let starts: [(&dyn Fn(Epoch) -> Start, u64); 8] = [
        (&|_| Start::Live, 6),
        (&|_| Start::Oldest, 1),
        (&after(0), 1),
        (&after(3), 4),
        (&after(5), 6),
        // Not given out yet: live.
        (&after(99), 6),
        (&|_| Start::Since(SystemTime::UNIX_EPOCH), 1),
        (&|_| Start::Since(SystemTime::now() + hour), 6),
    ];
    for (start, first) in starts {
        let bus = bus();
        publish_many(&bus, "a.b", 5);
        let start = start(bus.epoch());
        let mut subscription = bus
            .subscribe(Subscribe {
                start,
                ..to(&["a.*"])
            })
            .unwrap();
        publish(&bus, "a.b");
        let subscribed = Delivery::Subscribed {
            epoch: bus.epoch(),
            next_seq: first,
            oldest_seq: 1,
        };
        assert_eq!(next(&mut subscription).await, subscribed, "{start:?}");
        let expected: Vec<_> = (first..=6).collect();
        assert_eq!(seqs(&mut subscription), expected, "{start:?}");
    }
}

#[tokio::test]
async fn a_batch_has_contiguous_seqs_and_leaves_out_what_is_not_valid() {
    let bus = bus();
    publish(&bus, "a.b");
    let batch = vec![
        event("a.b"),
        event_about("a.b", &"x".repeat(256)),
        event("a.c"),
        event_with("a.b", (256 << 10) + 1),
    ];
    let receipt = bus.publish_batch(&plugin("talker"), batch).unwrap();
    assert_eq!(
        (receipt.epoch, receipt.first_seq, receipt.count),
        (bus.epoch(), 2, 2)
    );
    let rejected: Vec<_> = receipt.rejected.iter().map(|(index, _)| *index).collect();
    assert_eq!(rejected, [1, 3]);
    assert!(matches!(
        receipt.rejected[0].1,
        Error::BadField {
            field: "subject",
            ..
        }
    ));
    assert!(matches!(
        receipt.rejected[1].1,
        Error::TooLarge { field: "data", .. }
    ));
    let none = bus.publish_batch(&plugin("talker"), Vec::new()).unwrap();
    assert_eq!((none.first_seq, none.count), (0, 0));
    let too_many = vec![event("a.b"); 1_001];
    assert!(matches!(
        bus.publish_batch(&plugin("talker"), too_many),
        Err(Error::BatchTooLarge { events: 1_001, .. })
    ));
    let too_large = vec![event_with("a.b", 256 << 10); 5];
    assert!(matches!(
        bus.publish_batch(&plugin("talker"), too_large),
        Err(Error::BatchTooLarge { .. })
    ));
    assert_eq!(bus.stats().published, 3);
}

#[test]
fn fields_are_held_to_their_limits() {
    let bus = bus();
    let refused = |event| bus.publish(&plugin("talker"), event).unwrap_err();
    for (event, name) in [
        (event_about("a.b", &"x".repeat(256)), "subject"),
        (
            NewEvent {
                id: "x".repeat(129),
                ..event("a.b")
            },
            "id",
        ),
        (
            NewEvent {
                traceparent: "x".repeat(129),
                ..event("a.b")
            },
            "traceparent",
        ),
    ] {
        assert!(matches!(refused(event), Error::BadField { field, .. } if field == name));
    }
    assert_eq!(
        refused(event_with("a.b", 262_145)),
        Error::TooLarge {
            field: "data",
            size_bytes: 262_145,
            limit_bytes: 262_144,
        }
    );
    for good in [
        event_about("a.b", &"x".repeat(255)),
        event_with("a.b", 262_144),
        NewEvent {
            id: "x".repeat(128),
            ..event("a.b")
        },
    ] {
        bus.publish(&plugin("talker"), good).unwrap();
    }
}

#[tokio::test]
async fn subscriptions_are_listed_by_plugin_and_counted_together() {
    let bus = bus();
    let mut held: Vec<_> = (0..64)
        .map(|_| bus.subscribe(to(&["a.b"])).unwrap())
        .collect();
    let operator = || Subscribe::new(Source::Operator, patterns(&["a.b"]));
    let others: Vec<_> = (0..100)
        .map(|_| bus.subscribe(operator()).unwrap())
        .collect();
    assert_eq!(bus.stats().subscriptions, 164);
    held.pop();
    held.push(bus.subscribe(to(&["a.c", "a.b"])).unwrap());
    let listener = PluginName::parse("listener").unwrap();
    assert_eq!(bus.list_subscriptions(&listener), patterns(&["a.b", "a.c"]));
    drop((held, others));
    assert_eq!(bus.stats().subscriptions, 0);
    assert_eq!(bus.list_subscriptions(&listener), []);
    assert!(matches!(
        bus.subscribe(to(&[])),
        Err(Error::BadField {
            field: "patterns",
            ..
        })
    ));
}

#[tokio::test]
async fn deliveries_are_bounded_and_large_events_come_alone() {
    let bus = bus();
    let mut subscription = bus.subscribe(to(&["a.b"])).unwrap();
    next(&mut subscription).await;
    for bytes in [100, 200_000, 100, 40_000, 20_000, 30_000, 100] {
        bus.publish(&plugin("talker"), event_with("a.b", bytes))
            .unwrap();
    }
    let mut seen = 0;
    while let Some(Delivery::Events(pieces)) = ready(&mut subscription) {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let events = decode(&pieces);
        assert!(bytes <= 64 << 10 || events.len() == 1, "{bytes}");
        for event in events {
            seen += 1;
            assert_eq!(event.seq, seen);
        }
    }
    assert_eq!(seen, 7);
}

#[tokio::test]
async fn subscribers_of_the_same_patterns_share_the_bytes() {
    let bus = bus();
    let mut left = bus.subscribe(to(&["a.b"])).unwrap();
    let mut right = bus.subscribe(to(&["a.b"])).unwrap();
    for subscription in [&mut left, &mut right] {
        next(subscription).await;
        assert!(ready(subscription).is_none());
    }
    publish_many(&bus, "a.b", 10);
    let (Delivery::Events(left), Delivery::Events(right)) =
        (next(&mut left).await, next(&mut right).await)
    else {
        panic!("no events");
    };
    assert_eq!((left.len(), right.len()), (1, 1));
    assert_eq!(left[0].as_ptr(), right[0].as_ptr());
    assert_eq!(bus.stats().lane_bytes, 0);
}

#[tokio::test]
async fn who_reads_old_events_shares_the_bytes_of_the_log() {
    let bus = bus();
    publish_many(&bus, "a.b", 5_000);
    let start = Start::Oldest;
    let mut first = Vec::new();
    for pattern in ["a.b", ">"] {
        let subscribe = Subscribe {
            start,
            ..to(&[pattern])
        };
        let mut replay = bus.subscribe(subscribe).unwrap();
        next(&mut replay).await;
        let Delivery::Events(pieces) = next(&mut replay).await else {
            panic!("no events");
        };
        assert_eq!(pieces.len(), 1);
        first.push(pieces[0].as_ptr());
        assert!(decode(&pieces).iter().map(|got| got.seq).eq(1..=2_048));
        assert!(seqs(&mut replay).into_iter().eq(2_049..=5_000));
    }
    assert_eq!(first[0], first[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_subscribers_see_concurrent_publishers_in_one_order() {
    const EACH: usize = 2_000;
    let bus = bus();
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let pattern = if reader % 2 == 0 { "a.*" } else { ">" };
            let mut subscription = bus.subscribe(to(&[pattern])).unwrap();
            async move {
                let mut seen = Vec::new();
                while seen.len() < 4 * EACH {
                    if let Delivery::Events(pieces) = next(&mut subscription).await {
                        seen.extend(decode(&pieces));
                    }
                }
                seen
            }
        })
        .collect();
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let bus = bus.clone();
            std::thread::spawn(move || {
                for index in 0..EACH {
                    let subject = format!("{publisher}/{index}");
                    bus.publish(&plugin("talker"), event_about("a.b", &subject))
                        .unwrap();
                }
            })
        })
        .collect();
    let seen = futures_util::future::join_all(readers).await;
    publishers
        .into_iter()
        .for_each(|publisher| publisher.join().unwrap());
    for other in &seen[1..] {
        assert!(*other == seen[0]);
    }
    assert!(seen[0].is_sorted_by(|left, right| left.seq < right.seq));
    for publisher in 0..4 {
        let own = format!("{publisher}/");
        let subjects = seen[0].iter().map(|got| got.subject.as_str());
        let mine = subjects.filter(|subject| subject.starts_with(&own));
        assert!(mine.eq((0..EACH).map(|index| format!("{publisher}/{index}"))));
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_broken_by_a_bookmark() {
    let bus = bus();
    let mut subscription = bus.subscribe(to(&["a.b"])).unwrap();
    next(&mut subscription).await;
    let begun = tokio::time::Instant::now();
    publish(&bus, "a.other");
    let bookmark = |seq| {
        Delivery::Bookmark(Position {
            epoch: bus.epoch(),
            seq,
        })
    };
    assert_eq!(next(&mut subscription).await, bookmark(1));
    assert_eq!(begun.elapsed().as_secs(), 10);
    tokio::time::advance(Duration::from_secs(6)).await;
    publish(&bus, "a.b");
    assert!(matches!(next(&mut subscription).await, Delivery::Events(_)));
    assert_eq!(next(&mut subscription).await, bookmark(2));
    assert_eq!(begun.elapsed().as_secs(), 26);
}

#[test]
fn the_default_bounds_are_valid_and_others_are_checked() {
    assert_eq!(Config::default().validate(), Ok(()));
    let bad = Config {
        slow_events: 0,
        ..Config::default()
    };
    assert!(bad.validate().unwrap_err().contains("slow_events"));
    let bad = Config {
        max_data_bytes: 2 << 20,
        ..Config::default()
    };
    assert!(bad.validate().unwrap_err().contains("max_data_bytes"));
}
