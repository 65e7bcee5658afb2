//! The order of one channel's publishes and writes (law 5), which take effect in two places: in the
//! log of events and the state at once, in the storage when their transaction is committed. Pure.
//!
//! What takes effect at once waits for the writes sent before it. A write never waits for its
//! predecessors, whose queue keeps their order; it waits only behind a write that waits, and, when it
//! publishes, behind whatever waits. So a write may share a transaction with one sent before it although a
//! publish was sent between them: holding it back would cost every plugin with concurrent handlers a
//! commit of its own for each write.
//!
//! While nothing is being written nothing waits, and a look at [`Order::is_idle`] is all it costs.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Most bytes of one channel's requests that wait. At it, further ones are refused.
pub(super) const MAX_WAITING_BYTES: usize = 8 << 20;

/// What a request does, as far as order goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A publish, or a write of the state.
    AtOnce,
    /// A write of the storage.
    Write {
        /// With events of its own.
        publishes: bool,
    },
}

/// A request that waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) request_id: u64,
    pub(super) effect: Effect,
    pub(super) bytes: usize,
    /// When its sender stops waiting.
    pub(super) deadline: Instant,
    pub(super) request: T,
}

/// Nobody may hold more back than this.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
pub(super) struct Order<T> {
    /// Given to writes and to what waits, as they come.
    next_stamp: u64,
    /// Writes under way: stamp and request, in order of stamp.
    writing: VecDeque<(u64, u64)>,
    /// In order of stamp. Empty when nothing is being written.
    waiting: VecDeque<(u64, Waiting<T>)>,
    waiting_writes: usize,
    waiting_bytes: usize,
    /// Not after the earliest deadline of those that wait.
    expiry: Option<Instant>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self {
            next_stamp: 0,
            writing: VecDeque::new(),
            waiting: VecDeque::new(),
            waiting_writes: 0,
            waiting_bytes: 0,
            expiry: None,
        }
    }
}

impl<T> Order<T> {
    /// Nothing is being written, so nothing must wait.
    pub(super) fn is_idle(&self) -> bool {
        self.writing.is_empty()
    }

    /// Whether a request that comes now must wait.
    pub(super) fn must_wait(&self, effect: Effect) -> bool {
        match effect {
            Effect::AtOnce => !self.is_idle(),
            Effect::Write { publishes } => {
                self.waiting_writes > 0 || (publishes && !self.waiting.is_empty())
            }
        }
    }

    /// Keeps a request that must wait.
    pub(super) fn wait(&mut self, waiting: Waiting<T>) -> Result<(), Full> {
        if self.waiting_bytes + waiting.bytes > MAX_WAITING_BYTES {
            return Err(Full);
        }
        self.waiting_bytes += waiting.bytes;
        self.waiting_writes += usize::from(waiting.is_write());
        let earliest = self
            .expiry
            .map_or(waiting.deadline, |at| at.min(waiting.deadline));
        self.expiry = Some(earliest);
        let stamp = self.stamp();
        self.waiting.push_back((stamp, waiting));
        Ok(())
    }

    /// A write has joined the storage's queue and is not decided.
    pub(super) fn begun(&mut self, request_id: u64) {
        // One that had to wait counts from when it was sent: see `next`.
        if self.writing.back().is_none_or(|(_, id)| *id != request_id) {
            let stamp = self.stamp();
            self.writing.push_back((stamp, request_id));
        }
    }

    /// A request has ended. `true`: it was a write, and others may have their turn.
    pub(super) fn finished(&mut self, request_id: u64) -> bool {
        // In front, as a rule: writes are decided in their order.
        let place = self.writing.iter().position(|(_, id)| *id == request_id);
        place.and_then(|at| self.writing.remove(at)).is_some()
    }

    /// The next request whose turn it is. A write counts as under way from here on.
    pub(super) fn next(&mut self) -> Option<Waiting<T>> {
        let (stamp, first) = self.waiting.front()?;
        let behind_a_write = self
            .writing
            .front()
            .is_some_and(|(writing, _)| writing < stamp);
        if !first.is_write() && behind_a_write {
            return None;
        }
        let stamp = *stamp;
        let next = self.take(0)?;
        if next.is_write() {
            // Behind all that are under way: none sent after a waiting write has begun.
            self.writing.push_back((stamp, next.request_id));
        }
        Some(next)
    }

    /// Takes a request back that waits.
    pub(super) fn withdraw(&mut self, request_id: u64) -> Option<Waiting<T>> {
        let place = self.place(request_id)?;
        self.take(place)
    }

    /// When to ask for [`Self::expired`].
    pub(super) fn expiry(&self) -> Option<Instant> {
        self.expiry
    }

    /// The requests whose time ran out while they waited.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Waiting<T>> {
        let late = |(_, waiting): &(u64, Waiting<T>)| waiting.deadline <= now;
        let mut expired = Vec::new();
        while let Some(place) = self.waiting.iter().position(late) {
            expired.extend(self.take(place));
        }
        let deadlines = self.waiting.iter().map(|(_, waiting)| waiting.deadline);
        self.expiry = deadlines.min();
        expired
    }

    pub(super) fn contains(&self, request_id: u64) -> bool {
        self.place(request_id).is_some()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 1;
        self.next_stamp
    }

    fn place(&self, request_id: u64) -> Option<usize> {
        let is_it = |(_, waiting): &(u64, Waiting<T>)| waiting.request_id == request_id;
        self.waiting.iter().position(is_it)
    }

    fn take(&mut self, place: usize) -> Option<Waiting<T>> {
        let (_, waiting) = self.waiting.remove(place)?;
        self.waiting_bytes -= waiting.bytes;
        self.waiting_writes -= usize::from(waiting.is_write());
        if self.waiting.is_empty() {
            self.expiry = None;
        }
        Some(waiting)
    }
}

impl<T> Waiting<T> {
    fn is_write(&self) -> bool {
        matches!(self.effect, Effect::Write { .. })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const WRITE: Effect = Effect::Write { publishes: false };
    const APPLY: Effect = Effect::Write { publishes: true };

    /// A channel whose requests are numbered as they come.
    struct Channel {
        order: Order<()>,
        now: Instant,
        sent: Vec<Effect>,
        /// In the order in which each took effect: publishes at once, writes when they are decided.
        effects: Vec<usize>,
        /// Writes in the order in which they joined the storage's queue, decided or not.
        queue: Vec<usize>,
        writing: Vec<usize>,
    }

    impl Channel {
        fn new() -> Self {
            Self {
                order: Order::default(),
                now: Instant::now(),
                sent: Vec::new(),
                effects: Vec::new(),
                queue: Vec::new(),
                writing: Vec::new(),
            }
        }

        fn send(&mut self, effect: Effect) {
            let number = self.sent.len();
            self.sent.push(effect);
            if self.order.must_wait(effect) {
                let waiting = Waiting {
                    request_id: number as u64,
                    effect,
                    bytes: 1,
                    deadline: self.now + Duration::from_secs(1),
                    request: (),
                };
                self.order.wait(waiting).expect("room");
            } else {
                self.begin(number);
            }
        }

        fn begin(&mut self, number: usize) {
            match self.sent[number] {
                Effect::AtOnce => self.effects.push(number),
                Effect::Write { .. } => {
                    self.order.begun(number as u64);
                    self.queue.push(number);
                    self.writing.push(number);
                }
            }
        }

        /// The storage decides so many writes, in their order, as one transaction.
        fn commit(&mut self, count: usize) {
            let count = count.min(self.writing.len());
            let decided: Vec<_> = self.writing.drain(..count).collect();
            self.effects.extend(&decided);
            for number in decided {
                assert!(self.order.finished(number as u64));
                while let Some(next) = self.order.next() {
                    self.begin(usize::try_from(next.request_id).expect("small"));
                }
            }
        }
    }

    #[test]
    fn a_publish_waits_for_the_writes_before_it_and_for_no_others() {
        let mut channel = Channel::new();
        for effect in [Effect::AtOnce, WRITE, WRITE, Effect::AtOnce, WRITE, APPLY] {
            channel.send(effect);
        }
        assert_eq!(channel.effects, [0]);
        assert_eq!(
            channel.queue,
            [1, 2, 4],
            "5 publishes, so it waits behind 3"
        );
        channel.commit(1);
        assert_eq!(channel.effects, [0, 1]);
        channel.commit(1);
        assert_eq!(channel.effects, [0, 1, 2, 3]);
        assert_eq!(channel.queue, [1, 2, 4, 5]);
        channel.commit(2);
        assert!(channel.order.is_idle());
        channel.send(Effect::AtOnce);
        assert_eq!(channel.effects, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_waits_can_be_withdrawn_and_runs_out_of_time() {
        let mut order = Order::default();
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        order.begun(1);
        for (request_id, seconds) in [(2, 5), (3, 1), (4, 3)] {
            let waiting = Waiting {
                request_id,
                effect: Effect::AtOnce,
                bytes: 10,
                deadline: after(seconds),
                request: (),
            };
            order.wait(waiting).expect("room");
        }
        assert_eq!(order.expiry(), Some(after(1)));
        let ids = |waiting: Vec<Waiting<()>>| -> Vec<u64> {
            waiting.iter().map(|waiting| waiting.request_id).collect()
        };
        assert_eq!(ids(order.expired(after(1))), [3]);
        assert_eq!(order.expiry(), Some(after(3)));
        assert!(order.contains(4) && order.withdraw(4).is_some() && !order.contains(4));
        assert!(order.withdraw(4).is_none());
        assert_eq!(order.expired(after(4)).len(), 0);
        assert_eq!((order.len(), order.expiry()), (1, Some(after(5))));
        assert!(order.next().is_none(), "1 is being written");
        assert!(!order.finished(2), "no write");
        assert!(order.finished(1));
        assert_eq!(order.next().map(|waiting| waiting.request_id), Some(2));
        assert_eq!((order.len(), order.expiry()), (0, None));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let mut order = Order::default();
        order.begun(1);
        let mut wait = |request_id, bytes| {
            order.wait(Waiting {
                request_id,
                effect: Effect::AtOnce,
                bytes,
                deadline: Instant::now(),
                request: (),
            })
        };
        assert_eq!(wait(2, MAX_WAITING_BYTES), Ok(()));
        assert_eq!(wait(3, 1), Err(Full));
        assert!(order.withdraw(2).is_some());
        let again = Waiting {
            request_id: 4,
            effect: Effect::AtOnce,
            bytes: MAX_WAITING_BYTES,
            deadline: Instant::now(),
            request: (),
        };
        assert_eq!(order.wait(again), Ok(()));
    }

    proptest! {
        #[test]
        fn effects_keep_the_order_sent(
            steps in prop::collection::vec(
                prop_oneof![
                    3 => Just(None),
                    3 => Just(Some(Effect::AtOnce)),
                    3 => Just(Some(WRITE)),
                    1 => Just(Some(APPLY)),
                ],
                0..60,
            ),
            commits in prop::collection::vec(1..4_usize, 60),
        ) {
            let mut channel = Channel::new();
            let mut commits = commits.into_iter().cycle();
            for step in steps {
                match step {
                    Some(effect) => channel.send(effect),
                    None => channel.commit(commits.next().expect("endless")),
                }
            }
            while !channel.writing.is_empty() {
                channel.commit(1);
            }
            prop_assert!(channel.order.is_idle() && channel.order.len() == 0);
            let mut all = channel.effects.clone();
            all.sort_unstable();
            prop_assert_eq!(all.len(), channel.sent.len(), "each once");
            prop_assert!(channel.queue.is_sorted(), "writes keep their order");
            for (place, number) in channel.effects.iter().enumerate() {
                let earlier = channel.effects[place + 1..].iter().filter(|later| *later < number);
                for late in earlier {
                    // Only a write without events may overtake, and only what takes effect at once.
                    prop_assert_eq!(channel.sent[*number], WRITE, "{:?}", channel.effects);
                    prop_assert_eq!(channel.sent[*late], Effect::AtOnce, "{:?}", channel.effects);
                }
            }
        }
    }
}
