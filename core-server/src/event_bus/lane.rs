//! Lanes: the newest events of one selection, ready to send, shared by all its subscriptions. Pure.
//!
//! A committed event is appended to the open segment of each lane that selects it. The first reader
//! seals that segment; from then on all members of the lane hand out the same bytes. A segment goes
//! away when every member has read it, or when the lane is full: members that had not read it leave
//! the lane and read the log itself until they have caught up. So a lane holds only what is on its
//! way, and a member that stalls costs at most the lane's bound.
//!
//! Members stand at borders of segments only; nothing is ever cut.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::event::Selection;
use super::log::{CHUNK_BYTES, Entry};

/// Names a subscription inside the bus; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SubscriptionId(pub(super) u64);

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) selection: Arc<Selection>,
    /// Subscriptions of this selection, members or not.
    pub(super) subscriptions: usize,
    /// Those that read here; each stands at the end of all segments or before one of them.
    members: HashSet<SubscriptionId>,
    /// Members that wait for the next event.
    parked: Vec<SubscriptionId>,
    sealed: VecDeque<Segment>,
    /// Number of the first sealed segment.
    first_segment: u64,
    open: Open,
    /// Bytes of all segments.
    bytes: usize,
}

#[derive(Debug)]
struct Segment {
    first_seq: u64,
    last_seq: u64,
    events: usize,
    bytes: Bytes,
    /// Members that have not read it.
    unread: usize,
}

#[derive(Debug, Default)]
struct Open {
    first_seq: u64,
    last_seq: u64,
    events: usize,
    bytes: Vec<u8>,
    /// Capacity that the previous one needed.
    expected_bytes: usize,
}

/// What a member read.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) pieces: Vec<Bytes>,
    pub(super) events: usize,
    pub(super) last_seq: u64,
}

impl Lane {
    pub(super) fn new(selection: Arc<Selection>) -> Self {
        Self {
            selection,
            subscriptions: 0,
            members: HashSet::new(),
            parked: Vec::new(),
            sealed: VecDeque::new(),
            first_segment: 0,
            open: Open::default(),
            bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether anybody reads here; otherwise nothing need be appended.
    pub(super) fn is_read(&self) -> bool {
        !self.members.is_empty()
    }

    /// Appends an event.
    pub(super) fn append(&mut self, seq: u64, entry: &Entry<'_>) {
        match entry {
            Entry::Small(entry) => {
                if self.open.bytes.len() + entry.len() > CHUNK_BYTES {
                    self.seal();
                }
                let open = &mut self.open;
                if open.events == 0 {
                    open.first_seq = seq;
                    open.bytes.reserve(open.expected_bytes.max(entry.len()));
                }
                open.bytes.extend_from_slice(entry);
                open.last_seq = seq;
                open.events += 1;
                self.bytes += entry.len();
            }
            Entry::Large(bytes) => {
                self.seal();
                self.bytes += bytes.len();
                self.sealed.push_back(Segment {
                    first_seq: seq,
                    last_seq: seq,
                    events: 1,
                    bytes: bytes.clone(),
                    unread: self.members.len(),
                });
            }
        }
    }

    fn seal(&mut self) {
        if self.open.events == 0 {
            return;
        }
        let expected_bytes = self.open.bytes.len();
        let open = std::mem::take(&mut self.open);
        self.open.expected_bytes = expected_bytes;
        self.sealed.push_back(Segment {
            first_seq: open.first_seq,
            last_seq: open.last_seq,
            events: open.events,
            bytes: open.bytes.into(),
            unread: self.members.len(),
        });
    }

    fn end(&self) -> u64 {
        self.first_segment + self.sealed.len() as u64
    }

    /// Makes it a member that reads what comes from now on; returns where it stands.
    pub(super) fn join(&mut self, id: SubscriptionId) -> u64 {
        self.seal();
        self.members.insert(id);
        self.end()
    }

    /// The member at `cursor` leaves.
    pub(super) fn leave(&mut self, id: SubscriptionId, cursor: u64) {
        // What is open is unread by everybody; sealing it counts the leaver too, so it leaves after.
        self.seal();
        if !self.members.remove(&id) {
            return;
        }
        self.parked.retain(|other| *other != id);
        let unread = self.position(cursor);
        for segment in self.sealed.range_mut(unread..) {
            segment.unread -= 1;
        }
        self.drop_read();
    }

    /// Seq of the first event that a member at `cursor` has not read.
    pub(super) fn first_unread(&self, cursor: u64) -> Option<u64> {
        match self.sealed.get(self.position(cursor)) {
            Some(segment) => Some(segment.first_seq),
            None => (self.open.events > 0).then_some(self.open.first_seq),
        }
    }

    /// What a member at `cursor` reads next: whole segments, up to `budget` bytes or one.
    pub(super) fn take(&mut self, cursor: &mut u64, budget: usize) -> Option<Taken> {
        self.seal();
        let mut taken = Taken {
            pieces: Vec::new(),
            events: 0,
            last_seq: 0,
        };
        let mut bytes = 0;
        let unread = self.position(*cursor);
        for segment in self.sealed.range_mut(unread..) {
            bytes += segment.bytes.len();
            if taken.events > 0 && bytes > budget {
                break;
            }
            taken.pieces.push(segment.bytes.clone());
            taken.events += segment.events;
            taken.last_seq = segment.last_seq;
            segment.unread -= 1;
            *cursor += 1;
        }
        self.drop_read();
        (taken.events > 0).then_some(taken)
    }

    fn drop_read(&mut self) {
        while self
            .sealed
            .front()
            .is_some_and(|segment| segment.unread == 0)
        {
            self.drop_front();
        }
    }

    fn drop_front(&mut self) {
        if let Some(segment) = self.sealed.pop_front() {
            self.first_segment += 1;
            self.bytes -= segment.bytes.len();
        }
    }

    /// Drops the oldest segments until at most `bound` bytes are left, and says which: number and
    /// first seq of each, in order. Members that stand before what is left must be expelled.
    pub(super) fn shrink(&mut self, bound: usize) -> Vec<(u64, u64)> {
        let mut dropped = Vec::new();
        if self.bytes > bound {
            self.seal();
        }
        while self.bytes > bound
            && let Some(segment) = self.sealed.front()
        {
            dropped.push((self.first_segment, segment.first_seq));
            self.drop_front();
        }
        dropped
    }

    /// Takes out a member whose next segment was dropped: it has not read any of what is left.
    pub(super) fn expel(&mut self, id: SubscriptionId) {
        self.members.remove(&id);
        for segment in &mut self.sealed {
            segment.unread -= 1;
        }
        self.drop_read();
    }

    /// The members.
    pub(super) fn members(&self) -> impl Iterator<Item = SubscriptionId> {
        self.members.iter().copied()
    }

    /// The member waits for the next event.
    pub(super) fn park(&mut self, id: SubscriptionId) {
        self.parked.push(id);
    }

    /// Those that waited.
    pub(super) fn unpark(&mut self) -> std::vec::Drain<'_, SubscriptionId> {
        self.parked.drain(..)
    }

    /// Index of the segment of that number. A member never stands before the first.
    fn position(&self, number: u64) -> usize {
        usize::try_from(number - self.first_segment).expect("a lane holds few segments")
    }
}
