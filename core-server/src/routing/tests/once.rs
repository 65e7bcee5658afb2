//! Whatever happens to callers, links and providers, in whatever order: every call ends exactly once,
//! no more is dispatched than may be, and an end that says "not applied" is true.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::error::Outcome;

#[derive(Clone, Debug)]
enum Step {
    Call {
        idempotent: bool,
        waits: bool,
        millis: u64,
    },
    /// The provider reads so many frames.
    Read(usize),
    /// It answers one of those that it has.
    Answer(usize),
    /// The caller of one gives up.
    GiveUp(usize),
    /// The channel breaks; its loss is told, or the outbox only closes.
    Break {
        told: bool,
    },
    ComeBack,
    Suspend,
    Degrade,
    Stop,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), any::<bool>(), prop::sample::select(vec![1_u64, 500, 20_000]))
            .prop_map(|(idempotent, waits, millis)| Step::Call { idempotent, waits, millis }),
        4 => (1..4_usize).prop_map(Step::Read),
        3 => (0..8_usize).prop_map(Step::Answer),
        2 => (0..8_usize).prop_map(Step::GiveUp),
        2 => any::<bool>().prop_map(|told| Step::Break { told }),
        3 => Just(Step::ComeBack),
        1 => Just(Step::Suspend),
        1 => Just(Step::Degrade),
        1 => Just(Step::Stop),
        2 => prop::sample::select(vec![1_u64, 600, 4_000]).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..60)
}

struct Made {
    idempotent: bool,
    ends: Ends,
    ticket: Option<CallTicket>,
}

/// The provider's side: what it has read, by call id.
#[derive(Default)]
struct Seen {
    times: HashMap<u64, u32>,
    open: Vec<(ChannelId, u64)>,
}

impl Seen {
    fn read(&mut self, fixture: &mut Fixture, most: usize) {
        use futures_util::FutureExt as _;
        for _ in 0..most {
            match fixture.frames.next().now_or_never() {
                Some(Some(Ok(Outbound::Call(frame)))) => {
                    *self.times.entry(frame.call_id).or_default() += 1;
                    self.open.push((fixture.link.channel, frame.call_id));
                }
                Some(Some(Ok(_))) => {}
                _ => return,
            }
        }
    }
}

async fn play(steps: Vec<Step>) {
    let mut fixture = fixture(
        2,
        Config {
            max_waiting: 4,
            ..Config::default()
        },
    );
    let name = ServiceName::parse("lamp.set").expect("good name");
    let description = ServiceDescription {
        idempotent: true,
        ..ServiceDescription::bare(name)
    };
    let registry = &fixture.router.shared.registry;
    registry
        .register(&fixture.run, description)
        .expect("registered");
    fixture.ready();
    let mut made: HashMap<u64, Made> = HashMap::new();
    let mut seen = Seen::default();
    for step in steps {
        match step {
            Step::Call {
                idempotent,
                waits,
                millis,
            } => {
                let (ends, on_end) = record();
                // Ids are given in order from 1, also to those that are refused.
                let call_id = made.len() as u64 + 1;
                let ticket = fixture.router.call(
                    Call {
                        timeout: Some(Duration::from_millis(millis)),
                        wait_for_ready: waits,
                        ..call(if idempotent { "lamp.set" } else { "lamp.on" })
                    },
                    on_end,
                );
                let ticket = Some(ticket);
                made.insert(
                    call_id,
                    Made {
                        idempotent,
                        ends,
                        ticket,
                    },
                );
            }
            Step::Read(most) => seen.read(&mut fixture, most),
            Step::Answer(which) if !seen.open.is_empty() => {
                let (channel, call_id) = seen.open[which % seen.open.len()];
                let answer = Ok(Payload::default());
                let router = &fixture.router;
                router.complete(&plugin("lamp"), channel, call_id, answer);
            }
            Step::GiveUp(which) => {
                let call_id = which as u64 % (made.len() as u64 + 1);
                if let Some(made) = made.get_mut(&call_id) {
                    made.ticket = None;
                }
            }
            Step::Break { told } => {
                fixture.link.outbox.close();
                if told {
                    let lost = fixture.link.channel;
                    fixture.router.link_lost(&plugin("lamp"), lost);
                }
            }
            Step::ComeBack => {
                let old = fixture.link.clone();
                old.outbox.abort(crate::channel::Closed::Replaced);
                fixture.router.link_lost(&plugin("lamp"), old.channel);
                (fixture.link, fixture.frames) = new_link(2);
                fixture.ready();
            }
            Step::Suspend => fixture
                .router
                .set_availability(&plugin("lamp"), Availability::Suspended),
            Step::Degrade => fixture
                .router
                .set_availability(&plugin("lamp"), Availability::Degraded),
            Step::Stop => fixture.absent(),
            Step::Pass(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Step::Answer(_) => {}
        }
    }
    // The core's patience is finite: after the longest deadline all have ended by themselves.
    tokio::time::sleep(Duration::from_secs(400)).await;
    for (call_id, made) in &made {
        let ends = made.ends.lock().expect("not poisoned");
        assert_eq!(ends.len(), 1, "call {call_id} ended {} times", ends.len());
        let times = seen.times.get(call_id).copied().unwrap_or_default();
        let most = if made.idempotent { 3 } else { 1 };
        assert!(times <= most, "call {call_id} was sent {times} times");
        if let Err(Failure::System(failure)) = &ends[0]
            && failure.outcome == Outcome::NotApplied
        {
            assert_eq!(times, 0, "call {call_id} was sent: {failure:?}");
        }
    }
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
    assert_eq!(fixture.router.timers(), 0);
}

proptest! {
    #[test]
    fn every_call_ends_exactly_once(steps in steps()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime")
            .block_on(play(steps));
    }
}
