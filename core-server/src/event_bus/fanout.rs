//! What happens under the bus's lock: the commit of events, and the reading of them. Pure but for the
//! wakers that it hands back: no async, no clock, no lock.
//!
//! A subscription is in one of three places. *Held*: it reads nothing (its plugin is not STARTED). In
//! the *log*: it reads what is old, event by event, until it has caught up. In its *lane*: it reads
//! what is new, in segments shared with all who select the same.
//!
//! Slowness is found without looking at everybody: whoever may have something to read stands once in a
//! heap, under a seq that it has to pass; only those that the horizon has overtaken are looked at.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use bytes::Bytes;

use crate::types::Source;

use super::event::{Batch, Encoded, Label, Placed, Selection};
use super::lane::{Lane, SubscriptionId};
use super::log::{Bounds, CHUNK_BYTES, Entry, Log};
use super::routes::{LaneId, Routes};

/// Most events of the log that one read looks at: what bounds how long the lock is held.
const EXAMINE_AT_ONCE: usize = 2_048;

/// Bounds of lanes, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneBounds {
    /// Of one.
    pub(super) each: usize,
    /// Of all together.
    pub(super) all: usize,
}

#[derive(Debug)]
pub(super) struct Fanout {
    log: Log,
    routes: Routes,
    lanes: Vec<Option<Lane>>,
    free_lanes: Vec<LaneId>,
    lane_of: HashMap<Arc<Selection>, LaneId>,
    lane_bounds: LaneBounds,
    lane_bytes: usize,
    subscribers: HashMap<SubscriptionId, Subscriber>,
    next_id: u64,
    /// Whoever is neither held, parked nor slow stands here once, under a seq not above its own.
    to_pass: BinaryHeap<Reverse<(u64, SubscriptionId)>>,
    /// Kept for its capacity.
    found: Vec<LaneId>,
}

#[derive(Debug)]
struct Subscriber {
    owner: Source,
    lane: LaneId,
    /// Everything before this has been read or is not selected.
    next_seq: u64,
    place: Place,
    waker: Option<Waker>,
    parked: bool,
    slow: bool,
    /// It stands in `to_pass`.
    awaited: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Held,
    Log,
    Lane { cursor: u64 },
}

/// What is left to do after a commit, outside the lock.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) first_seq: u64,
    /// To be woken.
    pub(super) wakers: Vec<Waker>,
    /// To be told of.
    pub(super) slow: Vec<Slow>,
}

/// A subscription that became slow.
#[derive(Debug)]
pub(super) struct Slow {
    pub(super) owner: Source,
    pub(super) selection: Arc<Selection>,
    /// Where it stands.
    pub(super) seq: u64,
    pub(super) behind_events: u64,
    pub(super) behind_bytes: usize,
}

/// Answer to a read.
#[derive(Debug)]
pub(super) enum Read {
    Events {
        pieces: Vec<Bytes>,
        events: usize,
    },
    /// These have left the log unread.
    Missed {
        from: u64,
        to: u64,
    },
    /// Nothing so far, but not at the end: read again.
    NotYet,
    /// At the end; the waker is kept.
    End,
}

/// Numbers for statistics.
#[derive(Debug)]
pub(super) struct Levels {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) lane_bytes: usize,
    pub(super) oldest_seq: u64,
    pub(super) next_seq: u64,
    pub(super) subscriptions: usize,
    pub(super) slow: usize,
}

impl Fanout {
    pub(super) fn new(bounds: Bounds, lane_bounds: LaneBounds) -> Self {
        Self {
            log: Log::new(bounds),
            routes: Routes::new(),
            lanes: Vec::new(),
            free_lanes: Vec::new(),
            lane_of: HashMap::new(),
            lane_bounds,
            lane_bytes: 0,
            subscribers: HashMap::new(),
            next_id: 0,
            to_pass: BinaryHeap::new(),
            found: Vec::new(),
        }
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn levels(&self) -> Levels {
        Levels {
            events: self.log.events(),
            bytes: self.log.bytes(),
            lane_bytes: self.lane_bytes,
            oldest_seq: self.log.oldest_seq(),
            next_seq: self.log.next_seq(),
            subscriptions: self.subscribers.len(),
            slow: self.subscribers.values().filter(|one| one.slow).count(),
        }
    }

    // ---- publishing

    /// Commits events in this order: the point that gives all events of the core their order.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Committed {
        let mut committed = Committed {
            first_seq: self.log.next_seq(),
            ..Committed::default()
        };
        let mut start = 0;
        for mut event in batch.events {
            let seq = self.log.next_seq().to_le_bytes();
            let entry = match &mut event.entry {
                Placed::InBatch(end) => {
                    let entry = &mut batch.entries[start..*end];
                    start = *end;
                    end_with(entry, seq);
                    Entry::Small(entry)
                }
                Placed::Large(entry) => {
                    end_with(entry, seq);
                    Entry::Large(std::mem::take(entry).into())
                }
            };
            let (source, time) = (&batch.source, batch.time);
            self.commit_one(&event, source, time, entry, &mut committed.wakers);
        }
        self.find_slow(&mut committed.slow);
        committed
    }

    fn commit_one(
        &mut self,
        event: &Encoded,
        source: &Source,
        time: SystemTime,
        entry: Entry<'_>,
        wakers: &mut Vec<Waker>,
    ) {
        let seq = self.log.next_seq();
        let mut found = std::mem::take(&mut self.found);
        let lanes = &self.lanes;
        let label = self.routes.find(
            &event.topic,
            source,
            &event.subject,
            |id| &lane(lanes, id).selection,
            &mut found,
        );
        self.log.push(Arc::clone(&label), time, &entry);
        for id in found.iter().copied() {
            let lane = lane_mut(&mut self.lanes, id);
            if !lane.is_read() || !lane.selection.accepts_apart_from_topic(&label) {
                continue;
            }
            self.lane_bytes -= lane.bytes();
            lane.append(seq, &entry);
            for subscription in lane.unpark() {
                let Some(subscriber) = self.subscribers.get_mut(&subscription) else {
                    continue;
                };
                subscriber.parked = false;
                wakers.extend(subscriber.waker.take());
                if !subscriber.awaited {
                    subscriber.awaited = true;
                    self.to_pass.push(Reverse((seq, subscription)));
                }
            }
            let bound = if self.lane_bytes + lane.bytes() > self.lane_bounds.all {
                0
            } else {
                self.lane_bounds.each
            };
            shrink(lane, bound, &mut self.subscribers);
            self.lane_bytes += lane.bytes();
        }
        self.found = found;
    }

    fn find_slow(&mut self, slow: &mut Vec<Slow>) {
        let horizon = self.log.horizon_seq();
        while let Some(Reverse((seq, id))) = self.to_pass.peek().copied()
            && seq < horizon
        {
            self.to_pass.pop();
            let Some(subscriber) = self.subscribers.get_mut(&id) else {
                continue;
            };
            subscriber.awaited = false;
            let lane = lane(&self.lanes, subscriber.lane);
            let stands_at = match subscriber.place {
                Place::Held => continue,
                Place::Lane { .. } if subscriber.parked => continue,
                Place::Log => subscriber.next_seq,
                Place::Lane { cursor } => lane.first_unread(cursor).unwrap_or(self.log.next_seq()),
            };
            if stands_at >= horizon {
                subscriber.awaited = true;
                self.to_pass.push(Reverse((stands_at, id)));
                continue;
            }
            subscriber.slow = true;
            slow.push(Slow {
                owner: subscriber.owner.clone(),
                selection: Arc::clone(&lane.selection),
                seq: stands_at,
                behind_events: self.log.next_seq() - stands_at,
                behind_bytes: self.log.bytes_from(stands_at),
            });
        }
    }

    // ---- subscriptions

    /// What it subscribes to.
    pub(super) fn selections_of(&self, owner: &Source) -> Vec<Arc<Selection>> {
        self.subscribers
            .values()
            .filter(|subscriber| subscriber.owner == *owner)
            .map(|subscriber| Arc::clone(&lane(&self.lanes, subscriber.lane).selection))
            .collect()
    }

    /// Adds a subscription, held, at `next_seq`.
    pub(super) fn add(
        &mut self,
        owner: Source,
        selection: Selection,
        next_seq: u64,
    ) -> SubscriptionId {
        let id = SubscriptionId(self.next_id);
        self.next_id += 1;
        let lane = match self.lane_of.get(&selection) {
            Some(lane) => *lane,
            None => self.add_lane(Arc::new(selection)),
        };
        lane_mut(&mut self.lanes, lane).subscriptions += 1;
        let subscriber = Subscriber {
            owner,
            lane,
            next_seq,
            place: Place::Held,
            waker: None,
            parked: false,
            slow: false,
            awaited: false,
        };
        self.subscribers.insert(id, subscriber);
        id
    }

    fn add_lane(&mut self, selection: Arc<Selection>) -> LaneId {
        let lane = Some(Lane::new(Arc::clone(&selection)));
        let id = match self.free_lanes.pop() {
            Some(id) => {
                self.lanes[id.0] = lane;
                id
            }
            None => {
                self.lanes.push(lane);
                LaneId(self.lanes.len() - 1)
            }
        };
        self.routes.insert(&selection, id);
        self.lane_of.insert(selection, id);
        id
    }

    /// Takes it away. Unknown ids are none of ours any more.
    pub(super) fn remove(&mut self, id: SubscriptionId) {
        self.hold(id);
        let Some(subscriber) = self.subscribers.remove(&id) else {
            return;
        };
        let lane = lane_mut(&mut self.lanes, subscriber.lane);
        lane.subscriptions -= 1;
        if lane.subscriptions == 0 {
            let selection = Arc::clone(&lane.selection);
            self.lane_bytes -= lane.bytes();
            self.lanes[subscriber.lane.0] = None;
            self.free_lanes.push(subscriber.lane);
            self.lane_of.remove(&selection);
            self.routes.remove(&selection, subscriber.lane);
        }
    }

    /// Lets it read, from where it stands.
    pub(super) fn release(&mut self, id: SubscriptionId) {
        let subscriber = subscriber_mut(&mut self.subscribers, id);
        if !matches!(subscriber.place, Place::Held) {
            return;
        }
        let next_seq = self.log.next_seq();
        subscriber.place = if subscriber.next_seq == next_seq {
            let cursor = lane_mut(&mut self.lanes, subscriber.lane).join(id);
            Place::Lane { cursor }
        } else {
            Place::Log
        };
        if !subscriber.awaited {
            // What is old already is no fault of its: it is slow if it does not catch up.
            subscriber.awaited = true;
            self.to_pass.push(Reverse((next_seq, id)));
        }
    }

    /// Lets it read no more. Returns where it stands: the first event that it has not read.
    pub(super) fn hold(&mut self, id: SubscriptionId) -> u64 {
        let Some(subscriber) = self.subscribers.get_mut(&id) else {
            return self.log.next_seq();
        };
        if let Place::Lane { cursor } = subscriber.place {
            let lane = lane_mut(&mut self.lanes, subscriber.lane);
            let unread = lane.first_unread(cursor);
            subscriber.next_seq = unread.unwrap_or(self.log.next_seq());
            self.lane_bytes -= lane.bytes();
            lane.leave(id, cursor);
            self.lane_bytes += lane.bytes();
        }
        subscriber.place = Place::Held;
        subscriber.parked = false;
        subscriber.slow = false;
        subscriber.waker = None;
        subscriber.next_seq
    }

    /// Moves one that is held.
    pub(super) fn move_to(&mut self, id: SubscriptionId, next_seq: u64) {
        subscriber_mut(&mut self.subscribers, id).next_seq = next_seq;
    }

    /// Everything before this has been read by it, or is not selected.
    pub(super) fn next_seq(&self, id: SubscriptionId) -> u64 {
        self.subscribers[&id].next_seq
    }

    /// Reads on, up to `budget` bytes or one event; at the end, keeps the waker for the next.
    pub(super) fn read(&mut self, id: SubscriptionId, budget: usize, waker: &Waker) -> Read {
        let subscriber = subscriber_mut(&mut self.subscribers, id);
        let lane = lane_mut(&mut self.lanes, subscriber.lane);
        if matches!(subscriber.place, Place::Log) {
            if subscriber.next_seq < self.log.oldest_seq() {
                let (from, oldest_seq) = (subscriber.next_seq, self.log.oldest_seq());
                subscriber.next_seq = oldest_seq;
                let to = oldest_seq - 1;
                return Read::Missed { from, to };
            }
            let selection = &lane.selection;
            let found = self.log.scan(
                subscriber.next_seq,
                EXAMINE_AT_ONCE,
                budget.min(CHUNK_BYTES),
                |label| selection.accepts(label),
            );
            subscriber.next_seq = found.next_seq;
            if found.events > 0 {
                return Read::Events {
                    pieces: found.pieces,
                    events: found.events,
                };
            }
            if found.next_seq < self.log.next_seq() {
                return Read::NotYet;
            }
            let cursor = lane.join(id);
            subscriber.place = Place::Lane { cursor };
        }
        let Place::Lane { cursor } = &mut subscriber.place else {
            return Read::End;
        };
        self.lane_bytes -= lane.bytes();
        let taken = lane.take(cursor, budget);
        self.lane_bytes += lane.bytes();
        if let Some(taken) = taken {
            subscriber.next_seq = taken.last_seq + 1;
            return Read::Events {
                pieces: taken.pieces,
                events: taken.events,
            };
        }
        subscriber.next_seq = self.log.next_seq();
        subscriber.slow = false;
        match &mut subscriber.waker {
            Some(kept) => kept.clone_from(waker),
            None => subscriber.waker = Some(waker.clone()),
        }
        if !subscriber.parked {
            subscriber.parked = true;
            lane.park(id);
        }
        Read::End
    }

    /// Looks, step by step, for events of [from, to) that a held subscription selects: first and last
    /// seq of those found, and where to go on (`to`: done). What has left the log may have been.
    pub(super) fn probe(
        &self,
        id: SubscriptionId,
        from: u64,
        to: u64,
    ) -> (Option<(u64, u64)>, u64) {
        let oldest_seq = self.log.oldest_seq();
        if from < oldest_seq {
            let end = oldest_seq.min(to);
            return (Some((from, end - 1)), end);
        }
        let selection = &lane(&self.lanes, self.subscribers[&id].lane).selection;
        self.log.probe(from, to, EXAMINE_AT_ONCE, |label: &Label| {
            selection.accepts(label)
        })
    }
}

/// Holds the lane to its bound; whoever had not read what is dropped reads the log from there.
fn shrink(lane: &mut Lane, bound: usize, subscribers: &mut HashMap<SubscriptionId, Subscriber>) {
    let dropped = lane.shrink(bound);
    let Some((first_number, _)) = dropped.first().copied() else {
        return;
    };
    let mut lapped = Vec::new();
    for id in lane.members() {
        let subscriber = subscriber_mut(subscribers, id);
        let Place::Lane { cursor } = subscriber.place else {
            continue;
        };
        let missing = usize::try_from(cursor - first_number).ok();
        if let Some((_, first_seq)) = missing.and_then(|index| dropped.get(index)) {
            subscriber.next_seq = *first_seq;
            subscriber.place = Place::Log;
            lapped.push(id);
        }
    }
    for id in lapped {
        lane.expel(id);
    }
}

/// Puts the seq in the place that was left for it.
fn end_with(entry: &mut [u8], seq: [u8; 8]) {
    let at = entry.len() - seq.len();
    entry[at..].copy_from_slice(&seq);
}

fn lane(lanes: &[Option<Lane>], id: LaneId) -> &Lane {
    lanes[id.0]
        .as_ref()
        .expect("routes and subscribers name live lanes only")
}

fn lane_mut(lanes: &mut [Option<Lane>], id: LaneId) -> &mut Lane {
    lanes[id.0]
        .as_mut()
        .expect("routes and subscribers name live lanes only")
}

fn subscriber_mut(
    subscribers: &mut HashMap<SubscriptionId, Subscriber>,
    id: SubscriptionId,
) -> &mut Subscriber {
    subscribers
        .get_mut(&id)
        .expect("a subscription is removed only when its handle is dropped")
}
