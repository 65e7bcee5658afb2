//! Frames on their way to the core.
//!
//! Two lanes. *Urgent* frames (`Pong`, `RequestCancel`) overtake; the others leave in the order in
//! which they were pushed. The ordinary lane is bounded in bytes: when it is full, pushing waits, first
//! come first served, so that a plugin that publishes faster than the core reads is slowed down and
//! loses nothing. Urgent frames and the few that the channel itself makes (`Hello`, `HookDone`, `Bye`)
//! do not wait: there is at most one per ping interval, request in flight or hook.
//!
//! Events published in the background that wait at the end of the ordinary lane leave as one request
//! ([`Outbox::join`]): what is queued together needs one frame and one answer, not one each.
//!
//! [`Frames`] yields everything that is queued without ever returning `Pending` in between, so that
//! tonic puts small frames together into one HTTP/2 DATA frame; when it was woken, it lets everybody else
//! who is ready run first, once. No timer is involved.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use core_proto::v1::plugin_message::Message as Kind;
use core_proto::v1::{NewEvent, PluginMessage, Request, RequestCancel};
use core_proto::{contract, encoded};
use futures_util::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Room of the ordinary lane, in bytes.
const CAPACITY_BYTES: usize = 8 << 20;

/// Most events of one batch (`event_bus.proto`).
const BATCH_EVENTS: u64 = 1_000;
/// A batch takes no more events above this, in bytes: nothing large sits on the channel.
const BATCH_BYTES: usize = contract::MAX_FRAME_REQUEST_BYTES;

/// The channel is gone; the frame was not sent.
#[derive(Debug)]
pub(crate) struct Closed;

pub(crate) struct Outbox {
    /// Guards both lanes; held only to move a frame.
    lanes: Mutex<Lanes>,
    room: Semaphore,
}

#[derive(Default)]
struct Lanes {
    urgent: VecDeque<Kind>,
    ordinary: VecDeque<Queued>,
    waker: Option<Waker>,
    /// No more frames are taken; the stream ends after those that are queued.
    closed: bool,
}

/// What waits in the ordinary lane, with the bytes to give back to `room`.
enum Queued {
    Frame(Kind, usize),
    Batch(Batch, usize),
}

/// Events published in the background under one request.
pub(crate) struct Batch {
    request_id: u64,
    /// An encoded `EventBusPublishBatchRequest`: each event is encoded when it joins.
    message: Vec<u8>,
    /// How many; whoever waits for the answer knows what is lost with it.
    count: Arc<AtomicU64>,
}

impl Batch {
    /// A batch of this one event; `count` is 1.
    pub(crate) fn new(request_id: u64, event: &NewEvent, count: Arc<AtomicU64>) -> Self {
        let mut message = Vec::new();
        encoded::append_entry(event, event.encoded_len(), &mut message);
        Self {
            request_id,
            message,
            count,
        }
    }

    fn into_frame(self) -> Kind {
        Kind::Request(Request {
            request_id: self.request_id,
            method: "EventBus/PublishBatch".to_owned(),
            message: self.message.into(),
            // Each event has its own.
            ..Default::default()
        })
    }
}

impl Outbox {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            lanes: Mutex::default(),
            room: Semaphore::new(CAPACITY_BYTES),
        })
    }

    /// Queues a frame, waiting for room.
    ///
    /// # Cancel safety
    /// A cancelled push has queued nothing and has lost its place in the line.
    pub(crate) async fn push(&self, kind: Kind) -> Result<(), Closed> {
        let bytes = kind.encoded_len().clamp(1, CAPACITY_BYTES);
        let permit = self.room.acquire_many(permits(bytes)).await;
        let permit = permit.map_err(|_| Closed)?;
        let waker = {
            let mut lanes = self.lanes.lock();
            if lanes.closed {
                return Err(Closed);
            }
            lanes.ordinary.push_back(Queued::Frame(kind, bytes));
            lanes.waker.take()
        };
        permit.forget();
        wake(waker);
        Ok(())
    }

    /// Adds an event to the batch that waits at the end of the lane; false where there is none that has
    /// room.
    pub(crate) fn join(&self, event: &NewEvent) -> bool {
        let length = event.encoded_len();
        let bytes = room_of(length);
        let Ok(permit) = self.room.try_acquire_many(permits(bytes)) else {
            return false;
        };
        let mut lanes = self.lanes.lock();
        if lanes.closed {
            return false;
        }
        match lanes.ordinary.back_mut() {
            Some(Queued::Batch(batch, waiting))
                if batch.count.load(Ordering::Relaxed) < BATCH_EVENTS
                    && *waiting + bytes <= BATCH_BYTES =>
            {
                encoded::append_entry(event, length, &mut batch.message);
                batch.count.fetch_add(1, Ordering::Relaxed);
                *waiting += bytes;
                permit.forget();
                true
            }
            _ => false,
        }
    }

    /// Waits for room for an event.
    ///
    /// # Cancel safety
    /// As [`Self::push`].
    pub(crate) async fn room_for(&self, event: &NewEvent) -> Result<SemaphorePermit<'_>, Closed> {
        let wanted = permits(room_of(event.encoded_len()));
        self.room.acquire_many(wanted).await.map_err(|_| Closed)
    }

    /// Queues a new batch, whose room was waited for.
    pub(crate) fn push_batch(&self, batch: Batch, room: SemaphorePermit<'_>) -> Result<(), Closed> {
        let waker = {
            let mut lanes = self.lanes.lock();
            if lanes.closed {
                return Err(Closed);
            }
            lanes
                .ordinary
                .push_back(Queued::Batch(batch, room.num_permits()));
            lanes.waker.take()
        };
        room.forget();
        wake(waker);
        Ok(())
    }

    /// Queues a frame of the channel itself behind the others, without waiting.
    pub(crate) fn push_now(&self, kind: Kind) {
        let waker = {
            let mut lanes = self.lanes.lock();
            if lanes.closed {
                return;
            }
            lanes.ordinary.push_back(Queued::Frame(kind, 0));
            lanes.waker.take()
        };
        wake(waker);
    }

    /// Queues a frame that overtakes the others.
    pub(crate) fn push_urgent(&self, kind: Kind) {
        let waker = {
            let mut lanes = self.lanes.lock();
            if lanes.closed {
                return;
            }
            lanes.urgent.push_back(kind);
            lanes.waker.take()
        };
        wake(waker);
    }

    /// Takes a request back: out of the queue if it is still there, else by telling the core.
    pub(crate) fn withdraw(&self, request_id: u64) {
        let queued = {
            let mut lanes = self.lanes.lock();
            let place = lanes.ordinary.iter().position(
                |queued| matches!(queued, Queued::Frame(Kind::Request(request), _) if request.request_id == request_id),
            );
            place.and_then(|place| lanes.ordinary.remove(place))
        };
        match queued {
            Some(Queued::Frame(_, bytes) | Queued::Batch(_, bytes)) => self.room.add_permits(bytes),
            None => self.push_urgent(Kind::RequestCancel(RequestCancel { request_id })),
        }
    }

    /// Takes no more frames; what is queued still leaves.
    pub(crate) fn close(&self) {
        let waker = {
            let mut lanes = self.lanes.lock();
            lanes.closed = true;
            lanes.waker.take()
        };
        self.room.close();
        wake(waker);
    }

    /// The frames, for the transport. There is one stream per outbox.
    pub(crate) fn frames(self: &Arc<Self>) -> Frames {
        Frames {
            outbox: Arc::clone(self),
            idle: false,
        }
    }
}

/// What an event of that encoded length takes of the room: at most all.
fn room_of(length: usize) -> usize {
    encoded::entry_len(length).min(CAPACITY_BYTES)
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("CAPACITY_BYTES fits")
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The receiving end of an [`Outbox`]. Dropping it closes the outbox.
pub(crate) struct Frames {
    outbox: Arc<Outbox>,
    /// It found nothing and waits: whoever wakes it is seldom the only one with a frame.
    idle: bool,
}

impl Stream for Frames {
    type Item = PluginMessage;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<PluginMessage>> {
        if std::mem::take(&mut self.idle) {
            // Tokio runs a task that another one has woken next, before those that were ready earlier:
            // each frame would leave alone, in a system call of its own.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let outbox = Arc::clone(&self.outbox);
        let mut lanes = outbox.lanes.lock();
        let kind = if let Some(kind) = lanes.urgent.pop_front() {
            kind
        } else if let Some(queued) = lanes.ordinary.pop_front() {
            let (kind, bytes) = match queued {
                Queued::Frame(kind, bytes) => (kind, bytes),
                Queued::Batch(batch, bytes) => (batch.into_frame(), bytes),
            };
            outbox.room.add_permits(bytes);
            return Poll::Ready(Some(PluginMessage {
                message: Some(kind),
            }));
        } else if lanes.closed {
            return Poll::Ready(None);
        } else {
            lanes.waker = Some(context.waker().clone());
            drop(lanes);
            self.idle = true;
            return Poll::Pending;
        };
        Poll::Ready(Some(PluginMessage {
            message: Some(kind),
        }))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

#[cfg(test)]
mod tests {
    use core_proto::v1::{CallResponse, EventBusPublishBatchRequest, Pong, Request};
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;

    fn response(call_id: u64) -> Kind {
        Kind::CallResponse(CallResponse {
            call_id,
            ..Default::default()
        })
    }

    fn request(request_id: u64, bytes: usize) -> Kind {
        Kind::Request(Request {
            request_id,
            message: vec![0; bytes].into(),
            ..Default::default()
        })
    }

    #[tokio::test]
    async fn a_pong_overtakes_and_the_rest_keeps_its_order() {
        let outbox = Outbox::new();
        let frames = outbox.frames();
        outbox.push(response(1)).await.expect("room");
        outbox.push_now(response(2));
        outbox.push_urgent(Kind::Pong(Pong { nonce: 9 }));
        outbox.close();
        let sent: Vec<_> = frames
            .map(|frame| frame.message.expect("a kind"))
            .collect()
            .await;
        let pong = Kind::Pong(Pong { nonce: 9 });
        assert_eq!(sent, [pong, response(1), response(2)]);
    }

    fn event(subject: &str) -> NewEvent {
        NewEvent {
            topic: "lamp.changed".to_owned(),
            subject: subject.to_owned(),
            ..Default::default()
        }
    }

    /// Queues an event as a publish in the background does; the request that it is under, if it is a new one.
    async fn publish(outbox: &Outbox, request_id: u64, event: NewEvent) -> Option<Arc<AtomicU64>> {
        if outbox.join(&event) {
            return None;
        }
        let room = outbox.room_for(&event).await.expect("open");
        let count = Arc::new(AtomicU64::new(1));
        let batch = Batch::new(request_id, &event, Arc::clone(&count));
        outbox.push_batch(batch, room).expect("open");
        Some(count)
    }

    fn subjects(message: PluginMessage) -> (u64, Vec<String>) {
        let Some(Kind::Request(request)) = message.message else {
            panic!("no request: {message:?}");
        };
        assert_eq!(request.method, "EventBus/PublishBatch");
        let batch = EventBusPublishBatchRequest::decode(request.message).expect("a batch");
        let subjects = batch.events.into_iter().map(|event| event.subject);
        (request.request_id, subjects.collect())
    }

    #[tokio::test]
    async fn events_that_wait_together_leave_as_one_batch_in_their_place() {
        let outbox = Outbox::new();
        let mut frames = outbox.frames();
        let count = publish(&outbox, 1, event("a")).await.expect("a new batch");
        assert!(publish(&outbox, 2, event("b")).await.is_none(), "it joins");
        outbox.push(response(9)).await.expect("room");
        assert!(
            publish(&outbox, 3, event("c")).await.is_some(),
            "not past what was queued after b"
        );
        assert_eq!(count.load(Ordering::Relaxed), 2);
        let next = subjects(frames.next().await.expect("a frame"));
        assert_eq!(next, (1, vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(
            frames.next().await.expect("a frame").message,
            Some(response(9))
        );
        let next = subjects(frames.next().await.expect("a frame"));
        assert_eq!(next, (3, vec!["c".to_owned()]));
        assert_eq!(
            outbox.room.available_permits(),
            CAPACITY_BYTES,
            "all room is back"
        );
    }

    #[tokio::test]
    async fn a_batch_is_bounded_in_events_and_bytes() {
        let outbox = Outbox::new();
        publish(&outbox, 1, event("")).await.expect("a new batch");
        let joined = (1..).take_while(|_| outbox.join(&event(""))).count();
        assert_eq!(joined as u64 + 1, BATCH_EVENTS);
        let outbox = Outbox::new();
        let large = || event(&"x".repeat(20 << 10));
        publish(&outbox, 1, large()).await.expect("a new batch");
        assert!(
            publish(&outbox, 2, large()).await.is_some(),
            "too large to join"
        );
    }

    #[tokio::test]
    async fn no_event_joins_what_is_closed() {
        let outbox = Outbox::new();
        let _frames = outbox.frames();
        publish(&outbox, 1, event("a")).await.expect("a new batch");
        outbox.close();
        assert!(!outbox.join(&event("b")));
    }

    #[tokio::test]
    async fn a_full_outbox_makes_pushes_wait_in_order() {
        let outbox = Outbox::new();
        let mut frames = outbox.frames();
        outbox.push(request(1, CAPACITY_BYTES)).await.expect("room");
        let mut second = Box::pin(outbox.push(request(2, 1000)));
        let mut third = Box::pin(outbox.push(request(3, 1)));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        frames.next().await.expect("the first");
        second.await.expect("room now");
        third.await.expect("room now");
    }

    #[tokio::test]
    async fn a_request_that_has_not_left_is_taken_out_of_the_queue() {
        let outbox = Outbox::new();
        let mut frames = outbox.frames();
        outbox.push(request(1, 10)).await.expect("room");
        outbox.push(request(2, 10)).await.expect("room");
        frames.next().await.expect("the first");
        outbox.withdraw(2);
        outbox.withdraw(1);
        outbox.close();
        let left: Vec<_> = frames
            .map(|frame| frame.message.expect("a kind"))
            .collect()
            .await;
        assert_eq!(left, [Kind::RequestCancel(RequestCancel { request_id: 1 })]);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_channel_that_is_gone() {
        let outbox = Outbox::new();
        let frames = outbox.frames();
        outbox.push(request(1, CAPACITY_BYTES)).await.expect("room");
        let waiting = outbox.push(request(2, 1));
        drop(frames);
        waiting.await.expect_err("closed");
    }
}
