//! The bus against a plain list of all events ever published: whatever is published, read, stopped and
//! dropped in whatever order, each subscription gets each of its events once, in order, or a gap over
//! it.

use proptest::prelude::*;
use tokio::sync::watch;

use super::*;

const TOPICS: [&str; 4] = ["a.b", "a.c", "b", SLOW_SUBSCRIBER];
const PLUGINS: [&str; 3] = ["ann", "bob", "cyd"];
const SUBJECTS: [&str; 3] = ["", "one", "two"];
/// An advisory, which no filter by source or subject selects.
const ADVISORY: Published = Published {
    topic: 3,
    source: usize::MAX,
    subject: usize::MAX,
    bytes: 0,
};
const PATTERNS: [&str; 6] = [">", "a.*", "a.b", "*", "$core.>", "b"];

#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<Published>),
    Subscribe(Wanted),
    Poll { who: usize, times: usize },
    Turn { who: usize, gate: Gate },
    Drop { who: usize },
}

#[derive(Clone, Debug)]
struct Published {
    topic: usize,
    source: usize,
    subject: usize,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Wanted {
    patterns: Vec<usize>,
    who: usize,
    source: Option<usize>,
    subject: Option<usize>,
    exclude_own: bool,
    start: Option<u64>,
    disconnect: bool,
    gate: Option<Gate>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let published = (
        0..4_usize,
        0..3_usize,
        0..3_usize,
        prop::sample::select(vec![0_usize, 10, 300]),
    )
        .prop_map(|(topic, source, subject, bytes)| Published {
            topic,
            source,
            subject,
            bytes,
        });
    let gate = || prop::sample::select(vec![Gate::Waiting, Gate::Open, Gate::Closed]);
    let wanted = (
        prop::collection::vec(0..6_usize, 1..3),
        0..3_usize,
        prop::option::weighted(0.2, 0..3_usize),
        prop::option::weighted(0.2, 0..3_usize),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.4, 0..60_u64),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.3, gate()),
    )
        .prop_map(
            |(patterns, who, source, subject, exclude_own, start, disconnect, gate)| Wanted {
                patterns,
                who,
                source,
                subject,
                exclude_own,
                start,
                disconnect,
                gate,
            },
        );
    let step = prop_oneof![
        4 => prop::collection::vec(published, 1..6).prop_map(Step::Publish),
        1 => wanted.prop_map(Step::Subscribe),
        4 => (0..8_usize, 1..4_usize).prop_map(|(who, times)| Step::Poll { who, times }),
        1 => (0..8_usize, gate()).prop_map(|(who, gate)| Step::Turn { who, gate }),
        1 => (0..8_usize).prop_map(|who| Step::Drop { who }),
    ];
    prop::collection::vec(step, 1..80)
}

/// A subscription under test, and all that it was told.
struct Listener {
    wanted: Wanted,
    subscription: Subscription,
    gate: Option<watch::Sender<Gate>>,
    /// First event that it may get.
    begins: u64,
    /// Everything below was delivered, passed or missed.
    told_to: u64,
    got: Vec<u64>,
    gaps: Vec<Gap>,
    ended: bool,
}

impl Listener {
    /// Polls once; false when there is nothing ready.
    fn poll(&mut self) -> bool {
        let Some(item) = self.subscription.next().now_or_never() else {
            return false;
        };
        match item {
            None => assert!(self.ended),
            Some(Err(Error::FellBehind { from_seq, .. })) => {
                assert!(self.wanted.disconnect && from_seq >= self.told_to);
                self.told_to = u64::MAX;
                self.gaps.push(Gap {
                    reason: GapReason::Slow,
                    from: from_seq,
                    to: u64::MAX,
                });
                self.ended = true;
            }
            Some(Err(error)) => panic!("{error}"),
            Some(Ok(Delivery::Subscribed { next_seq, .. })) => {
                (self.begins, self.told_to) = (next_seq, next_seq);
            }
            Some(Ok(Delivery::Events(pieces))) => {
                for got in decode(&pieces) {
                    assert!(got.seq >= self.told_to, "{} again or out of order", got.seq);
                    self.told_to = got.seq + 1;
                    self.got.push(got.seq);
                }
            }
            Some(Ok(Delivery::Gap(gap))) if gap.reason == GapReason::TooOld => {
                assert_eq!(gap.to + 1, self.begins);
            }
            Some(Ok(Delivery::Gap(gap))) => {
                assert!(gap.from >= self.told_to && gap.to >= gap.from, "{gap:?}");
                assert!(!self.wanted.disconnect || gap.reason == GapReason::Stopped);
                self.told_to = gap.to + 1;
                self.gaps.push(gap);
            }
            Some(Ok(Delivery::Bookmark(_))) => panic!("no time has passed"),
        }
        !self.ended
    }

    fn selects(&self, event: &Published) -> bool {
        let wanted = &self.wanted;
        let matches = |pattern: &usize| {
            let pattern = Pattern::parse(PATTERNS[*pattern]).unwrap();
            pattern.matches(TOPICS[event.topic])
        };
        wanted.patterns.iter().any(matches)
            && wanted.source.is_none_or(|source| source == event.source)
            && wanted
                .subject
                .is_none_or(|subject| subject == event.subject)
            && !(wanted.exclude_own && wanted.who == event.source)
    }
}

fn run(steps: Vec<Step>) {
    let config = Config {
        log_events: 25,
        log_bytes: 3_000,
        slow_events: 20,
        lane_bytes: 400,
        all_lanes_bytes: 900,
        delivery_bytes: 350,
        ..Config::default()
    };
    let bus = EventBus::new(config, encode);
    let mut all: Vec<Published> = Vec::new();
    let mut listeners: Vec<Listener> = Vec::new();
    for step in steps {
        match step {
            Step::Publish(batch) => publish_all(&bus, batch, &mut all),
            Step::Subscribe(wanted) => listeners.extend(listen(&bus, wanted)),
            Step::Poll { who, times } => {
                if let Some(listener) = listeners.get_mut(who) {
                    (0..times).all(|_| listener.poll());
                }
            }
            Step::Turn { who, gate } => {
                if let Some(Listener {
                    gate: Some(sender), ..
                }) = listeners.get(who)
                {
                    sender.send(gate).unwrap();
                }
            }
            Step::Drop { who } => {
                if who < listeners.len() {
                    listeners.swap_remove(who);
                }
            }
        }
        let stats = bus.stats();
        assert!(stats.log_events <= 25 && stats.lane_bytes <= 900);
    }
    let trimmed = bus.stats().oldest_seq > 1;
    for listener in &mut listeners {
        if let Some(gate) = &listener.gate {
            gate.send(Gate::Open).unwrap();
        }
        while listener.poll() {}
        assert!(
            trimmed
                || listener
                    .gaps
                    .iter()
                    .all(|gap| gap.reason == GapReason::Stopped)
        );
        let selected = (1..).zip(&all).filter(|(_, event)| listener.selects(event));
        let expected: Vec<u64> = selected
            .map(|(seq, _)| seq)
            .filter(|seq| *seq >= listener.begins)
            .filter(|seq| {
                !listener
                    .gaps
                    .iter()
                    .any(|gap| (gap.from..=gap.to).contains(seq))
            })
            .collect();
        assert_eq!(
            listener.got, expected,
            "{:?} {:?}",
            listener.wanted, listener.gaps
        );
    }
    drop(listeners);
    assert_eq!((bus.stats().subscriptions, bus.stats().lane_bytes), (0, 0));
}

fn publish_all(bus: &EventBus, batch: Vec<Published>, all: &mut Vec<Published>) {
    for same in batch.chunk_by(|left, right| left.source == right.source) {
        let source = plugin(PLUGINS[same[0].source]);
        let new = same.iter().map(|published| {
            let event = event_with(TOPICS[published.topic], published.bytes);
            NewEvent {
                subject: SUBJECTS[published.subject].into(),
                ..event
            }
        });
        let receipt = bus.publish_batch(&source, new.collect()).unwrap();
        assert_eq!(receipt.first_seq, all.len() as u64 + 1);
        all.extend_from_slice(same);
        let published = bus.stats().next_seq - 1;
        all.resize(usize::try_from(published).unwrap(), ADVISORY);
    }
}

fn listen(bus: &EventBus, wanted: Wanted) -> Option<Listener> {
    let (sender, receiver) = wanted.gate.map(watch::channel).unzip();
    let epoch = bus.epoch();
    let subscription = bus.subscribe(Subscribe {
        subscriber: plugin(PLUGINS[wanted.who]),
        patterns: wanted
            .patterns
            .iter()
            .map(|pattern| Pattern::parse(PATTERNS[*pattern]).unwrap())
            .collect(),
        source: wanted.source.map(|source| plugin(PLUGINS[source])),
        subject: wanted.subject.map(|subject| SUBJECTS[subject].into()),
        exclude_own: wanted.exclude_own,
        start: wanted
            .start
            .map_or(Start::Live, |seq| Start::After(Position { epoch, seq })),
        policy: if wanted.disconnect {
            Policy::Disconnect
        } else {
            Policy::Gap
        },
        gate: receiver,
    });
    let subscription = match subscription {
        Ok(subscription) => subscription,
        Err(Error::FellBehind { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    Some(Listener {
        wanted,
        subscription,
        gate: sender,
        begins: 0,
        told_to: 0,
        got: Vec::new(),
        gaps: Vec::new(),
        ended: false,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_event_is_delivered_once_in_order_or_lies_in_a_gap(steps in steps()) {
        // Timers want a runtime; nothing here waits.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        run(steps);
    }
}
