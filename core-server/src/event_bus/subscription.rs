//! A subscription: a stream over the log, with its start, its policy and its gate.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;

use crate::types::{Epoch, Pattern, Position, Source};

use super::event::{MAX_SUBJECT_BYTES, Selection};
use super::fanout::Read;
use super::lane::SubscriptionId;
use super::log::Log;
use super::{Error, MAX_PATTERNS, Shared, add};

/// Reads of old events that select nothing, before other tasks get their turn.
const READS_AT_ONCE: usize = 8;

/// What to subscribe to.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Who; its limit counts.
    pub subscriber: Source,
    /// 1 to 64; an event that matches any of them is delivered, once.
    pub patterns: Vec<Pattern>,
    /// Only events of this publisher.
    pub source: Option<Source>,
    /// Only events with exactly this subject.
    pub subject: Option<Arc<str>>,
    /// Leave out the subscriber's own events.
    pub exclude_own: bool,
    /// Where to begin.
    pub start: Start,
    /// What to do about events that are gone.
    pub policy: Policy,
    /// When events flow. `None`: always.
    pub gate: Option<watch::Receiver<Gate>>,
}

impl Subscribe {
    /// Live, without filters, with gaps, always open.
    #[must_use]
    pub fn new(subscriber: Source, patterns: Vec<Pattern>) -> Self {
        Self {
            subscriber,
            patterns,
            source: None,
            subject: None,
            exclude_own: false,
            start: Start::Live,
            policy: Policy::Gap,
            gate: None,
        }
    }
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next event that is published.
    #[default]
    Live,
    /// With the first event after this position. One that was not given out yet means live.
    After(Position),
    /// With the oldest event in the log.
    Oldest,
    /// With the first event at or after this time.
    Since(SystemTime),
}

/// What to do about events that have left the log before they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Tell them by a [`Gap`] and go on with the oldest event there is.
    #[default]
    Gap,
    /// End with [`Error::FellBehind`].
    Disconnect,
}

/// Whether a plugin's events flow. The sender is the plugin's run; if it is dropped, its last word
/// stands.
///
/// What a subscription did not notice did not happen: a gate that closed and opened again between two
/// polls was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Not STARTED yet: the subscription is live but nothing is delivered; it waits where it began.
    #[default]
    Waiting,
    /// STARTED: events are delivered.
    Open,
    /// Stopped: events pass by. When the gate is open again, a [`Gap`] with [`GapReason::Stopped`]
    /// tells the first and the last event that would have been delivered, if there was any; then the
    /// subscription goes on live. `Waiting` after `Open` means the same.
    Closed,
}

/// One item of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The first item.
    Subscribed {
        /// The log's incarnation.
        epoch: Epoch,
        /// Seq of the first event that may be delivered.
        next_seq: u64,
        /// Seq of the oldest event in the log; equal to that of the next one when it is empty.
        oldest_seq: u64,
    },
    /// Wire entries: the concatenation of all pieces holds events in order of seq. At most 64 KiB, or
    /// one event.
    Events(Vec<Bytes>),
    /// Something was missed here.
    Gap(Gap),
    /// Nothing happened for a while; everything up to here was delivered or is not selected.
    Bookmark(Position),
}

/// Events that were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: GapReason,
    /// First seq that may have been missed.
    pub from: u64,
    /// Last seq that may have been missed; `from - 1` if none of this incarnation of the log was.
    pub to: u64,
}

/// Why events were missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Too slow, and so fell off the end of the log.
    Slow,
    /// The start asked for is older than the log.
    TooOld,
    /// The start asked for belongs to another incarnation of the log.
    EpochChanged,
    /// The plugin was not STARTED when they passed.
    Stopped,
}

/// A live subscription: a stream that ends only with an error. Dropping it unsubscribes.
#[must_use = "dropping a subscription ends it"]
pub struct Subscription {
    shared: Arc<Shared>,
    id: SubscriptionId,
    policy: Policy,
    gate: Option<WatchStream<Gate>>,
    flow: Flow,
    /// What a fall off the log would be told as.
    fall: GapReason,
    /// Told before anything else.
    first: Option<Delivery>,
    then: Option<Gap>,
    ended: bool,
    /// When something was last told.
    told_at: Instant,
    silence: Option<Pin<Box<Sleep>>>,
}

/// What the gate makes of the subscription.
#[derive(Clone, Copy, Debug)]
enum Flow {
    /// Never open yet.
    Waiting,
    /// Open.
    Open,
    /// Closed; `from` is the first event that was not delivered.
    Passing { from: u64 },
    /// Open again: looking, step by step, for what passed in [from, to).
    Passed {
        from: u64,
        to: u64,
        looked_to: u64,
        range: Option<(u64, u64)>,
    },
}

impl Subscription {
    pub(super) fn open(shared: Arc<Shared>, subscribe: Subscribe) -> Result<Self, Error> {
        let owner = subscribe.subscriber;
        check(&subscribe.patterns, subscribe.subject.as_deref())?;
        let selection = Selection::new(
            subscribe.patterns,
            subscribe.source,
            subscribe.subject,
            subscribe.exclude_own.then(|| owner.clone()),
        );
        let mut gate = subscribe.gate;
        let open = gate
            .as_mut()
            .map_or(Gate::Open, |gate| *gate.borrow_and_update());
        let mut fanout = shared.fanout.lock();
        let oldest_seq = fanout.log().oldest_seq();
        let (next_seq, gap) = begin(subscribe.start, shared.epoch, fanout.log());
        if let (Some(gap), Policy::Disconnect) = (gap, subscribe.policy) {
            add(&shared.counters.gaps, 1);
            return Err(fell_behind(gap.from, gap.to, oldest_seq));
        }
        let id = fanout.add(owner, selection, next_seq);
        let flow = match open {
            Gate::Waiting => Flow::Waiting,
            Gate::Closed => Flow::Passing { from: next_seq },
            Gate::Open => {
                fanout.release(id);
                Flow::Open
            }
        };
        drop(fanout);
        add(&shared.counters.gaps, usize::from(gap.is_some()));
        Ok(Self {
            id,
            policy: subscribe.policy,
            gate: gate.map(WatchStream::from_changes),
            flow,
            fall: GapReason::Slow,
            first: Some(Delivery::Subscribed {
                epoch: shared.epoch,
                next_seq,
                oldest_seq,
            }),
            then: gap,
            ended: false,
            told_at: Instant::now(),
            silence: None,
            shared,
        })
    }

    fn watch_gate(&mut self, context: &mut Context<'_>) {
        while let Some(gate) = &mut self.gate {
            match Pin::new(gate).poll_next(context) {
                Poll::Ready(Some(gate)) => self.turn(gate),
                Poll::Ready(None) => self.gate = None,
                Poll::Pending => return,
            }
        }
    }

    fn turn(&mut self, gate: Gate) {
        let mut fanout = self.shared.fanout.lock();
        self.flow = match (self.flow, gate) {
            (Flow::Waiting, Gate::Open) => {
                // What fell off the log while it waited was not its slowness.
                self.fall = GapReason::Stopped;
                fanout.release(self.id);
                Flow::Open
            }
            (Flow::Waiting, Gate::Closed) => Flow::Passing {
                from: fanout.next_seq(self.id),
            },
            (Flow::Open, Gate::Closed | Gate::Waiting) => Flow::Passing {
                from: fanout.hold(self.id),
            },
            (Flow::Passing { from }, Gate::Open) => Flow::Passed {
                from,
                to: fanout.log().next_seq(),
                looked_to: from,
                range: None,
            },
            (Flow::Passed { from, .. }, Gate::Closed | Gate::Waiting) => Flow::Passing { from },
            (flow, _) => flow,
        };
    }

    /// One step of looking for what passed; `Some` when it is done and there was something.
    fn look_at_passed(&mut self) -> Option<Gap> {
        let Flow::Passed {
            from,
            to,
            looked_to,
            range,
        } = self.flow
        else {
            return None;
        };
        let mut fanout = self.shared.fanout.lock();
        let (found, looked_to) = fanout.probe(self.id, looked_to, to);
        let range = match (range, found) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (range, found) => range.or(found),
        };
        if looked_to < to {
            self.flow = Flow::Passed {
                from,
                to,
                looked_to,
                range,
            };
            return None;
        }
        fanout.move_to(self.id, to);
        fanout.release(self.id);
        self.flow = Flow::Open;
        range.map(|(from, to)| Gap {
            reason: GapReason::Stopped,
            from,
            to,
        })
    }

    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<Delivery, Error>> {
        for _ in 0..READS_AT_ONCE {
            match self.flow {
                Flow::Waiting | Flow::Passing { .. } => return Poll::Pending,
                Flow::Passed { .. } => {
                    if let Some(gap) = self.look_at_passed() {
                        add(&self.shared.counters.gaps, 1);
                        return Poll::Ready(Ok(Delivery::Gap(gap)));
                    }
                    continue;
                }
                Flow::Open => {}
            }
            let budget = self.shared.config.delivery_bytes;
            let read = self
                .shared
                .fanout
                .lock()
                .read(self.id, budget, context.waker());
            match read {
                Read::Events { pieces, events } => {
                    self.fall = GapReason::Slow;
                    add(&self.shared.counters.delivered, events);
                    return Poll::Ready(Ok(Delivery::Events(pieces)));
                }
                Read::Missed { from, to } => return Poll::Ready(self.missed(from, to)),
                Read::NotYet => {}
                Read::End => {
                    self.fall = GapReason::Slow;
                    return Poll::Pending;
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn missed(&mut self, from: u64, to: u64) -> Result<Delivery, Error> {
        add(&self.shared.counters.gaps, 1);
        let reason = std::mem::replace(&mut self.fall, GapReason::Slow);
        match self.policy {
            Policy::Gap => Ok(Delivery::Gap(Gap { reason, from, to })),
            Policy::Disconnect => Err(fell_behind(from, to, to + 1)),
        }
    }

    fn watch_silence(&mut self, context: &mut Context<'_>) -> Poll<Delivery> {
        let patience = self.shared.config.bookmark_after;
        let silence = self
            .silence
            .get_or_insert_with(|| Box::pin(sleep_until(self.told_at + patience)));
        loop {
            std::task::ready!(silence.as_mut().poll(context));
            // Moving the timer with each delivery would cost more than asking here.
            let due = self.told_at + patience;
            if due > Instant::now() {
                silence.as_mut().reset(due);
                continue;
            }
            silence.as_mut().reset(Instant::now() + patience);
            let next_seq = self.shared.fanout.lock().next_seq(self.id);
            return Poll::Ready(Delivery::Bookmark(Position {
                epoch: self.shared.epoch,
                seq: next_seq - 1,
            }));
        }
    }
}

impl Stream for Subscription {
    type Item = Result<Delivery, Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if let Some(gap) = this.then.take() {
            return Poll::Ready(Some(Ok(Delivery::Gap(gap))));
        }
        this.watch_gate(context);
        let item = match this.read(context) {
            Poll::Ready(item) => item,
            Poll::Pending => Ok(std::task::ready!(this.watch_silence(context))),
        };
        this.ended = item.is_err();
        this.told_at = Instant::now();
        Poll::Ready(Some(item))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.fanout.lock().remove(self.id);
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Subscription")
            .field("id", &self.id)
            .field("flow", &self.flow)
            .finish_non_exhaustive()
    }
}

fn check(patterns: &[Pattern], subject: Option<&str>) -> Result<(), Error> {
    if patterns.is_empty() || patterns.len() > MAX_PATTERNS {
        return Err(Error::BadField {
            field: "patterns",
            rule: format!(
                "there are {}; 1 to {MAX_PATTERNS} are allowed",
                patterns.len()
            ),
        });
    }
    let length = subject.map_or(0, str::len);
    if length > MAX_SUBJECT_BYTES {
        return Err(Error::BadField {
            field: "subject",
            rule: format!("it has {length} bytes; at most {MAX_SUBJECT_BYTES} are allowed"),
        });
    }
    Ok(())
}

/// Where a subscription begins, and what it missed before. Pure.
fn begin(start: Start, epoch: Epoch, log: &Log) -> (u64, Option<Gap>) {
    let oldest_seq = log.oldest_seq();
    let gap = |reason, from| Gap {
        reason,
        from,
        to: oldest_seq - 1,
    };
    match start {
        Start::Live => (log.next_seq(), None),
        Start::Oldest => (oldest_seq, None),
        Start::After(position) if position.epoch != epoch => {
            (oldest_seq, Some(gap(GapReason::EpochChanged, 1)))
        }
        Start::After(position) => {
            let seq = position.seq.saturating_add(1).min(log.next_seq());
            if seq < oldest_seq {
                (oldest_seq, Some(gap(GapReason::TooOld, seq)))
            } else {
                (seq, None)
            }
        }
        Start::Since(time) => {
            let (seq, older_are_gone) = log.seek(time);
            (seq, older_are_gone.then(|| gap(GapReason::TooOld, 1)))
        }
    }
}

fn fell_behind(from_seq: u64, to_seq: u64, oldest_seq: u64) -> Error {
    Error::FellBehind {
        from_seq,
        to_seq,
        oldest_seq,
    }
}
