//! The queue between a subscription's stream and its handler.
//!
//! Filled without waiting. Whoever fills it looks at [`Queue::is_full`] after each message and stops
//! until [`Queue::half_empty`]; so it holds at most its bound and one message more. Events wait as they
//! came, encoded, all of a message together.

use std::collections::VecDeque;

use core_proto::received::Events;
use core_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Gap;

const MAX_EVENTS: usize = 4096;
const MAX_BYTES: usize = 4 << 20;
/// What an item weighs beside its bytes.
const ITEM_BYTES: usize = 64;

#[derive(Debug)]
pub(super) enum Item {
    /// The events of one message.
    Events(Events),
    Gap(Gap),
    /// Nothing to handle before this place.
    Reached(v1::Position),
}

impl Item {
    /// How many events it counts as.
    fn events(&self) -> usize {
        match self {
            Self::Events(events) => events.len(),
            Self::Gap(_) | Self::Reached(_) => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Events(events) => ITEM_BYTES + events.bytes(),
            Self::Gap(_) | Self::Reached(_) => ITEM_BYTES,
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    /// Held only to move an item.
    content: Mutex<Content>,
    filled: Notify,
    drained: Notify,
}

#[derive(Default)]
struct Content {
    items: VecDeque<Item>,
    events: usize,
    bytes: usize,
    /// The stream will not go on.
    finished: bool,
}

impl Queue {
    pub(super) fn push(&self, item: Item) {
        {
            let mut content = self.content.lock();
            // Of two places only the later one counts: they never fill the queue.
            if let (Item::Reached(_), Some(Item::Reached(_))) = (&item, content.items.back())
                && let Some(before) = content.items.pop_back()
            {
                content.events -= before.events();
                content.bytes -= before.bytes();
            }
            content.events += item.events();
            content.bytes += item.bytes();
            content.items.push_back(item);
        }
        self.filled.notify_one();
    }

    pub(super) fn finish(&self) {
        self.content.lock().finished = true;
        self.filled.notify_one();
    }

    pub(super) fn is_full(&self) -> bool {
        let content = self.content.lock();
        content.events >= MAX_EVENTS || content.bytes >= MAX_BYTES
    }

    /// Waits until no more than half of the bound is used.
    pub(super) async fn half_empty(&self) {
        loop {
            {
                let content = self.content.lock();
                if content.events <= MAX_EVENTS / 2 && content.bytes <= MAX_BYTES / 2 {
                    return;
                }
            }
            self.drained.notified().await;
        }
    }

    /// Waits for the next item; `None` after the last.
    ///
    /// # Cancel safety
    /// A cancelled wait has taken nothing.
    pub(super) async fn pop(&self) -> Option<Item> {
        loop {
            {
                let mut content = self.content.lock();
                if let Some(item) = content.items.pop_front() {
                    content.events -= item.events();
                    content.bytes -= item.bytes();
                    drop(content);
                    self.drained.notify_one();
                    return Some(item);
                }
                if content.finished {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use core_proto::received;
    use futures_util::FutureExt as _;
    use prost::Message as _;

    use super::*;
    use crate::events::GapReason;

    fn gap(from_seq: u64) -> Item {
        Item::Gap(Gap {
            reason: GapReason::Slow,
            from_seq,
            to_seq: from_seq,
        })
    }

    fn events(count: usize, bytes: usize) -> Item {
        let event = v1::Event {
            data: vec![0; bytes].into(),
            ..Default::default()
        };
        let message = v1::EventBusSubscribeResponse {
            events: vec![event; count],
            control: None,
        };
        let received = received::SubscribeResponse::decode(message.encode_to_vec().as_slice());
        Item::Events(received.expect("valid").events)
    }

    #[tokio::test]
    async fn a_full_queue_reopens_when_half_is_gone() {
        let queue = Queue::default();
        for seq in 0..MAX_EVENTS {
            assert!(!queue.is_full());
            queue.push(gap(seq as u64));
        }
        assert!(queue.is_full());
        let mut room = Box::pin(queue.half_empty());
        for _ in 0..MAX_EVENTS / 2 - 1 {
            queue.pop().await.expect("an item");
        }
        assert!(room.as_mut().now_or_never().is_none());
        queue.pop().await.expect("an item");
        room.await;
    }

    #[tokio::test]
    async fn events_count_one_by_one_and_by_their_bytes() {
        let queue = Queue::default();
        queue.push(events(MAX_EVENTS - 1, 0));
        assert!(!queue.is_full());
        queue.push(events(1, 0));
        assert!(queue.is_full());
        let queue = Queue::default();
        queue.push(events(1, MAX_BYTES));
        assert!(queue.is_full());
        queue.pop().await.expect("an item");
        assert!(!queue.is_full());
    }

    #[tokio::test]
    async fn of_places_only_the_last_one_waits() {
        let queue = Queue::default();
        let place = |seq| Item::Reached(v1::Position { epoch: 1, seq });
        for seq in 1..=2 * MAX_EVENTS as u64 {
            queue.push(place(seq));
        }
        assert!(!queue.is_full());
        queue.push(gap(1));
        queue.push(place(1));
        assert!(matches!(queue.pop().await, Some(Item::Reached(at)) if at.seq == 8192));
        assert!(matches!(queue.pop().await, Some(Item::Gap(_))));
        assert!(matches!(queue.pop().await, Some(Item::Reached(at)) if at.seq == 1));
        let content = queue.content.lock();
        assert_eq!((content.events, content.bytes), (0, 0));
    }

    #[tokio::test]
    async fn what_is_queued_comes_before_the_end() {
        let queue = Queue::default();
        queue.push(gap(1));
        queue.finish();
        assert!(matches!(queue.pop().await, Some(Item::Gap(gap)) if gap.from_seq == 1));
        assert!(queue.pop().await.is_none());
    }
}
