//! What goes back in line when a link is lost, and what does not.

use super::*;
use crate::error::Outcome;

/// A router with "lamp.on", which is not idempotent, and "lamp.set", which is.
fn with_both() -> Fixture {
    let fixture = fixture(8, Config::default());
    let name = ServiceName::parse("lamp.set").expect("good name");
    let description = ServiceDescription {
        idempotent: true,
        ..ServiceDescription::bare(name)
    };
    let registry = &fixture.router.shared.registry;
    registry
        .register(&fixture.run, description)
        .expect("registered");
    fixture
}

impl Fixture {
    fn begin(&self, call: Call) -> Ends {
        let (ends, on_end) = record();
        self.router.call(call, on_end).forget();
        ends
    }

    /// The link is lost as when its channel breaks.
    fn lose_link(&self) {
        self.link.outbox.abort(crate::channel::Closed::Replaced);
        self.router.link_lost(&plugin("lamp"), self.link.channel);
    }

    /// The provider is back over another link.
    fn come_back(&mut self) {
        (self.link, self.frames) = new_link(8);
        self.ready();
    }

    fn repeated(&self) -> u64 {
        self.router.stats().repeated.load(Ordering::Relaxed)
    }
}

fn end(ends: &Ends) -> (Reason, Outcome) {
    let reason = reason(ends);
    match &ends.lock().expect("not poisoned")[0] {
        Err(Failure::System(failure)) => (reason, failure.outcome),
        other => panic!("{other:?}"),
    }
}

const LOST: (Reason, Outcome) = (Reason::ProviderLost, Outcome::Unknown);

#[tokio::test(start_paused = true)]
async fn an_idempotent_call_goes_to_the_next_link_and_another_does_not() {
    let mut fixture = with_both();
    fixture.ready();
    let once = fixture.begin(call("lamp.on"));
    let again = fixture.begin(call("lamp.set"));
    fixture.next_call().await;
    let first = fixture.next_call().await;
    let old = fixture.link.channel;
    fixture.lose_link();
    assert_eq!(end(&once), LOST);
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 1));
    fixture.come_back();
    let second = fixture.next_call().await;
    assert_eq!(
        (second.call_id, &*second.service),
        (first.call_id, "lamp.set")
    );
    assert_eq!(second.deadline, first.deadline, "inside the deadline");
    // From the grave: that link is no more.
    let late = Ok(Payload::default());
    let router = &fixture.router;
    router.complete(&plugin("lamp"), old, second.call_id, late);
    assert!(again.lock().expect("not poisoned").is_empty());
    fixture.answer(second.call_id, "1");
    assert!(again.lock().expect("not poisoned")[0].is_ok());
    assert_eq!(fixture.repeated(), 1);
    assert_eq!(fixture.router.timers(), 1, "of the suspension");
}

#[tokio::test(start_paused = true)]
async fn it_is_dispatched_three_times_at_most() {
    let mut fixture = with_both();
    fixture.ready();
    let ends = fixture.begin(call("lamp.set"));
    for _ in 0..2 {
        fixture.next_call().await;
        fixture.lose_link();
        fixture.come_back();
    }
    fixture.next_call().await;
    assert!(ends.lock().expect("not poisoned").is_empty());
    fixture.lose_link();
    assert_eq!(end(&ends), LOST);
    assert_eq!(fixture.repeated(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_never_left_the_core_goes_again_whatever_it_is() {
    let mut fixture = with_both();
    fixture.ready();
    // Queued in the outbox when the link is lost, in this order.
    let ends: Vec<_> = (0..3).map(|_| fixture.begin(call("lamp.on"))).collect();
    fixture.lose_link();
    let behind = fixture.begin(call("lamp.on"));
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 4));
    fixture.come_back();
    for ends in ends.iter().chain([&behind]) {
        let frame = fixture.next_call().await;
        fixture.answer(frame.call_id, "1");
        assert!(ends.lock().expect("not poisoned")[0].is_ok(), "in order");
    }
    // A link that closes while nobody knows it yet: the push finds it closed.
    let gone = fixture.link.outbox.clone();
    fixture.router.set_availability(
        &plugin("lamp"),
        Availability::Ready(Link {
            outbox: gone.clone(),
            ..fixture.link.clone()
        }),
    );
    let waits = fixture.begin(call("lamp.on"));
    let frame = fixture.next_call().await;
    fixture.answer(frame.call_id, "1");
    assert!(waits.lock().expect("not poisoned")[0].is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_queued_call_of_a_lost_link_is_never_sent_over_it() {
    let mut fixture = with_both();
    fixture.ready();
    let ends = fixture.begin(call("lamp.on"));
    // The reader of the channel ended first: what is queued would still be sent.
    let lost = fixture.link.channel;
    fixture.router.link_lost(&plugin("lamp"), lost);
    fixture.link.outbox.close();
    assert!(fixture.frames.next().await.is_none(), "sent twice");
    assert!(ends.lock().expect("not poisoned").is_empty());
    fixture.come_back();
    fixture.next_call().await;
}

#[tokio::test(start_paused = true)]
async fn in_line_again_a_call_waits_as_others_do_and_ends_as_what_it_is() {
    // (asked to wait, sent before, what is told next, how it ends)
    let absent = || Availability::Absent { retry_after: None };
    let cases = [
        (false, true, Some(absent()), LOST),
        (false, true, Some(Availability::Degraded), LOST),
        // Nothing is told: the suspension ends by itself.
        (false, true, None, LOST),
        (
            false,
            false,
            Some(absent()),
            (Reason::NoProvider, Outcome::NotApplied),
        ),
        // Those that wait for the provider, to their deadline.
        (
            true,
            true,
            Some(absent()),
            (Reason::Deadline, Outcome::Unknown),
        ),
        (
            true,
            false,
            Some(absent()),
            (Reason::Deadline, Outcome::NotApplied),
        ),
    ];
    for (wait_for_ready, sent, next, expected) in cases {
        let mut fixture = with_both();
        fixture.ready();
        let ends = fixture.begin(Call {
            wait_for_ready,
            ..call("lamp.set")
        });
        if sent {
            fixture.next_call().await;
        }
        let before = Instant::now();
        fixture.lose_link();
        let told = next.is_some();
        if let Some(next) = next {
            fixture.router.set_availability(&plugin("lamp"), next);
        }
        while ends.lock().expect("not poisoned").is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let case = format!("waits: {wait_for_ready} sent: {sent} told: {told}");
        assert_eq!(end(&ends), expected, "{case}");
        let longest = match (wait_for_ready, told) {
            (true, _) => Duration::from_secs(10),
            (false, true) => Duration::ZERO,
            (false, false) => Duration::from_secs(3),
        };
        assert!(
            before.elapsed() <= longest + Duration::from_millis(200),
            "{case}"
        );
        assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0), "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_provider_is_gone_before_its_loss_is_told() {
    let mut fixture = with_both();
    fixture.ready();
    let ends = fixture.begin(call("lamp.set"));
    fixture.next_call().await;
    fixture.absent();
    fixture.lose_link();
    assert_eq!(end(&ends), LOST, "nothing to wait for");

    // And back before it is told: at once over the new link.
    fixture.come_back();
    let ends = fixture.begin(call("lamp.set"));
    fixture.next_call().await;
    let old = fixture.link.channel;
    fixture.come_back();
    fixture.router.link_lost(&plugin("lamp"), old);
    let frame = fixture.next_call().await;
    fixture.answer(frame.call_id, "1");
    assert!(ends.lock().expect("not poisoned")[0].is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_gave_up_is_not_called_again() {
    let mut fixture = with_both();
    fixture.ready();
    let (ends, on_end) = record();
    let ticket = fixture.router.call(call("lamp.set"), on_end);
    fixture.next_call().await;
    drop(ticket);
    assert_eq!(end(&ends), (Reason::Cancelled, Outcome::Unknown));
    fixture.lose_link();
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
    // In line again, and given up there.
    fixture.come_back();
    let (ends, on_end) = record();
    let ticket = fixture.router.call(call("lamp.set"), on_end);
    fixture.next_call().await;
    fixture.lose_link();
    drop(ticket);
    assert_eq!(end(&ends), (Reason::Cancelled, Outcome::Unknown));
    assert_eq!(fixture.router.load(&plugin("lamp")), (0, 0));
    // Never sent.
    let (ends, on_end) = record();
    drop(fixture.router.call(call("lamp.set"), on_end));
    assert_eq!(end(&ends), (Reason::Cancelled, Outcome::NotApplied));
}
