//! What waits to be sent to one plugin.
//!
//! Bounded in bytes. Above the limit new calls are refused ([`Push::Full`]); answers to the plugin's
//! own requests and lifecycle frames still enter, up to twice the limit, because the plugin's requests
//! are bounded themselves; beyond that the outbox closes with `CHANNEL_STALLED`. Frames that are ready
//! together are handed out together: a reader that was woken lets everybody else who is ready run first,
//! once, and then never yields while there is a frame. No timer is involved.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::frame::{CallFrame, Outbound};
use crate::error::{Classify, ErrorKind, Failure, Reason};

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Push {
    /// It will be sent, unless the channel ends first.
    Queued,
    /// The plugin does not read fast enough: a new call is refused.
    Full,
    /// The channel has ended.
    Closed,
}

/// Why a channel ended, where the core ended it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// It does not read.
    #[error("the plugin does not read its channel: {queued_bytes} bytes wait; it was closed")]
    Stalled {
        /// What waited.
        queued_bytes: usize,
    },
    /// A newer `Open` of the same process.
    #[error("a newer channel of the same instance took this one's place")]
    Replaced,
    /// The run has ended.
    #[error("the run has ended: {reason}")]
    RunEnded {
        /// For people.
        reason: String,
    },
    /// Its credential is worth nothing any more.
    #[error("the credential that this was opened with was revoked, or has expired")]
    Revoked,
    /// The core is stopping.
    #[error("the core is stopping")]
    ShuttingDown,
}

impl Classify for Closed {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stalled { .. } => ErrorKind::ResourceExhausted,
            Self::Replaced => ErrorKind::Aborted,
            Self::Revoked => ErrorKind::Unauthenticated,
            Self::RunEnded { .. } | Self::ShuttingDown => ErrorKind::Unavailable,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Stalled { .. } => Reason::ChannelStalled,
            Self::Replaced => Reason::ChannelReplaced,
            Self::Revoked => Reason::BadCredential,
            Self::RunEnded { .. } => Reason::RunEnded,
            Self::ShuttingDown => Reason::ShuttingDown,
        }
    }
}

/// The sending side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbox {
    shared: Arc<Shared>,
}

/// The receiving side: a stream of frames, at the end perhaps the reason. Dropping it closes the
/// outbox.
#[derive(Debug)]
pub struct OutboxReader {
    shared: Arc<Shared>,
    /// It found nothing and waits: whoever wakes it is seldom the only one with a frame.
    idle: bool,
}

#[derive(Debug)]
struct Shared {
    limit_bytes: usize,
    /// The queue and everything that must agree with it. Short lock: no await, no callback inside;
    /// the waker is called after it is released.
    queue: Mutex<Queue>,
    /// Cancelled when nothing more will be sent.
    gone: CancellationToken,
}

#[derive(Debug)]
struct Queue {
    urgent: VecDeque<Outbound>,
    ordinary: VecDeque<Outbound>,
    bytes: usize,
    /// Calls that will not be sent any more, until routing takes them back. No more than were queued
    /// when the channel ended, and those that found it ended.
    #[expect(clippy::vec_box, reason = "they come boxed and go on boxed")]
    unsent: Vec<Box<CallFrame>>,
    /// Since when the oldest waiting frame has been waiting without any frame leaving.
    stuck_since: Option<Instant>,
    /// The ping last taken by the reader, and when.
    handed_ping: Option<(u64, Instant)>,
    end: End,
    reader: Option<Waker>,
}

#[derive(Debug)]
enum End {
    Open,
    /// What is queued is still sent, then this.
    Closing(Option<Failure>),
    /// Nothing more is sent.
    Gone,
}

impl Outbox {
    /// An outbox that refuses calls above `limit_bytes`.
    #[must_use]
    pub fn new(limit_bytes: usize) -> (Self, OutboxReader) {
        let queue = Queue {
            urgent: VecDeque::new(),
            ordinary: VecDeque::new(),
            bytes: 0,
            unsent: Vec::new(),
            stuck_since: None,
            handed_ping: None,
            end: End::Open,
            reader: None,
        };
        let shared = Arc::new(Shared {
            limit_bytes,
            queue: Mutex::new(queue),
            gone: CancellationToken::new(),
        });
        (
            Self {
                shared: Arc::clone(&shared),
            },
            OutboxReader {
                shared,
                idle: false,
            },
        )
    }

    /// Queues a frame. Never waits.
    pub fn push(&self, frame: Outbound) -> Push {
        let weight = frame.weight();
        let mut queue = self.shared.queue.lock();
        if !matches!(queue.end, End::Open) {
            if let Outbound::Call(call) = frame {
                queue.unsent.push(call);
            }
            return Push::Closed;
        }
        let limit = self.shared.limit_bytes;
        if queue.bytes > 0 && queue.bytes + weight > limit {
            if matches!(frame, Outbound::Call(_)) {
                return Push::Full;
            }
            if queue.bytes + weight > 2 * limit {
                let stalled = Closed::Stalled {
                    queued_bytes: queue.bytes,
                };
                let waker = queue.abandon(Some(stalled.into()));
                drop(queue);
                self.shared.gone.cancel();
                wake(waker);
                return Push::Closed;
            }
        }
        queue.bytes += weight;
        if queue.stuck_since.is_none() {
            queue.stuck_since = Some(Instant::now());
        }
        if frame.overtakes() {
            queue.urgent.push_back(frame);
        } else {
            queue.ordinary.push_back(frame);
        }
        let waker = queue.reader.take();
        drop(queue);
        wake(waker);
        Push::Queued
    }

    /// Withdraws a call: `true` when it was still queued and is gone, `false` when a `CallCancel` was
    /// sent after it (or the channel has ended).
    pub fn cancel_call(&self, call_id: u64) -> bool {
        let mut queue = self.shared.queue.lock();
        let queued = queue
            .ordinary
            .iter()
            .position(|frame| matches!(frame, Outbound::Call(call) if call.call_id == call_id));
        let Some(frame) = queued.and_then(|index| queue.ordinary.remove(index)) else {
            drop(queue);
            // A channel that has ended cancels all its calls anyway.
            let _closed = self.push(Outbound::CallCancel { call_id });
            return false;
        };
        queue.bytes = queue.bytes.saturating_sub(frame.weight());
        if queue.bytes == 0 {
            queue.stuck_since = None;
        }
        true
    }

    /// Takes back the calls that the plugin has not been sent: those still queued, which are never sent
    /// then, and those that found the channel ended. Each is given out once.
    pub fn take_calls(&self) -> Vec<Box<CallFrame>> {
        let mut queue = self.shared.queue.lock();
        queue.set_calls_aside();
        if queue.urgent.is_empty() && queue.ordinary.is_empty() {
            queue.stuck_since = None;
        }
        std::mem::take(&mut queue.unsent)
    }

    /// As [`Self::take_calls`], for one call that found the channel ended.
    pub fn take_call(&self, call_id: u64) -> Option<Box<CallFrame>> {
        let mut queue = self.shared.queue.lock();
        let place = queue
            .unsent
            .iter()
            .position(|call| call.call_id == call_id)?;
        Some(queue.unsent.swap_remove(place))
    }

    /// Ends the channel after what is queued has been sent.
    pub fn close(&self) {
        self.end(|queue| {
            // An end that says why stands.
            if matches!(queue.end, End::Open) {
                queue.end = End::Closing(None);
            }
            queue.reader.take()
        });
    }

    /// Ends the channel now; what is queued is dropped and the plugin is told `why`.
    pub fn abort(&self, why: Closed) {
        self.end(|queue| queue.abandon(Some(why.into())));
        self.shared.gone.cancel();
    }

    /// Waits until nothing more will be sent: the core or the plugin has ended the channel.
    pub async fn gone(&self) {
        self.shared.gone.cancelled().await;
    }

    fn end(&self, how: impl FnOnce(&mut Queue) -> Option<Waker>) {
        let mut queue = self.shared.queue.lock();
        if matches!(queue.end, End::Gone) {
            return;
        }
        let waker = how(&mut queue);
        drop(queue);
        wake(waker);
    }

    /// Bytes that wait.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.shared.queue.lock().bytes
    }

    /// Since when frames have been waiting without a single one leaving.
    #[must_use]
    pub fn stuck_since(&self) -> Option<Instant> {
        self.shared.queue.lock().stuck_since
    }

    /// The `Ping` last handed to the transport, and when: its clock starts then.
    #[must_use]
    pub fn handed_ping(&self) -> Option<(u64, Instant)> {
        self.shared.queue.lock().handed_ping
    }

    /// Whether the channel has ended or is ending.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !matches!(self.shared.queue.lock().end, End::Open)
    }
}

impl Queue {
    /// Moves the queued calls out of the way of the transport.
    fn set_calls_aside(&mut self) {
        for frame in std::mem::take(&mut self.ordinary) {
            match frame {
                Outbound::Call(call) => {
                    self.bytes = self.bytes.saturating_sub(call.weight());
                    self.unsent.push(call);
                }
                frame => self.ordinary.push_back(frame),
            }
        }
    }

    fn abandon(&mut self, why: Option<Failure>) -> Option<Waker> {
        self.set_calls_aside();
        self.urgent.clear();
        self.ordinary.clear();
        self.bytes = 0;
        self.stuck_since = None;
        self.end = End::Closing(why);
        self.reader.take()
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Stream for OutboxReader {
    type Item = Result<Outbound, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.idle) {
            // Tokio runs a task that another one has woken next, before those that were ready earlier:
            // each frame would leave alone, in a system call of its own.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.queue.lock();
        if let Some(frame) = queue
            .urgent
            .pop_front()
            .or_else(|| queue.ordinary.pop_front())
        {
            queue.bytes = queue.bytes.saturating_sub(frame.weight());
            let empty = queue.urgent.is_empty() && queue.ordinary.is_empty();
            queue.stuck_since = (!empty).then(Instant::now);
            if let Outbound::Ping { nonce } = &frame {
                queue.handed_ping = Some((*nonce, Instant::now()));
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut queue.end {
            End::Open => {
                match &queue.reader {
                    Some(waker) if waker.will_wake(context.waker()) => {}
                    _ => queue.reader = Some(context.waker().clone()),
                }
                drop(queue);
                self.idle = true;
                Poll::Pending
            }
            End::Closing(why) => {
                let why = why.take();
                queue.end = End::Gone;
                drop(queue);
                shared.gone.cancel();
                Poll::Ready(why.map(Err))
            }
            End::Gone => Poll::Ready(None),
        }
    }
}

impl Drop for OutboxReader {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        // Its own waker: nobody is left to wake.
        let _own = queue.abandon(None);
        queue.end = End::Gone;
        drop(queue);
        self.shared.gone.cancel();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio_stream::StreamExt as _;

    use super::*;

    fn response(request_id: u64, size: usize) -> Outbound {
        Outbound::Response {
            request_id,
            result: Ok(Bytes::from(vec![0; size])),
        }
    }

    fn call(size: usize) -> Outbound {
        Outbound::Call(Box::new(super::super::CallFrame {
            call_id: 1,
            service: "a.b".into(),
            arguments: crate::types::Payload {
                data: Bytes::from(vec![0; size]),
                ..Default::default()
            },
            deadline: Instant::now(),
            caller: crate::types::Source::Operator,
            depth: 1,
            cause: None,
            traceparent: String::new(),
        }))
    }

    async fn next_id(reader: &mut OutboxReader) -> u64 {
        match reader.next().await {
            Some(Ok(Outbound::Response { request_id, .. })) => request_id,
            Some(Ok(Outbound::Ping { nonce })) => 1000 + nonce,
            other => panic!("unexpected {other:?}"),
        }
    }

    #[tokio::test]
    async fn frames_keep_their_order_and_pings_overtake() {
        let (outbox, mut reader) = Outbox::new(10_000);
        assert_eq!(outbox.push(response(1, 1)), Push::Queued);
        assert_eq!(outbox.push(response(2, 1)), Push::Queued);
        assert_eq!(outbox.push(Outbound::Ping { nonce: 7 }), Push::Queued);
        assert_eq!(outbox.handed_ping(), None, "it waits");
        assert_eq!(next_id(&mut reader).await, 1007);
        assert_eq!(outbox.handed_ping().map(|(nonce, _)| nonce), Some(7));
        assert_eq!(next_id(&mut reader).await, 1);
        assert_eq!(next_id(&mut reader).await, 2);
        assert_eq!(outbox.queued_bytes(), 0);
        assert_eq!(outbox.stuck_since(), None);
    }

    #[tokio::test]
    async fn a_full_outbox_refuses_calls_only_and_a_stalled_one_closes() {
        let (outbox, mut reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(response(1, 700)), Push::Queued);
        assert_eq!(outbox.push(call(700)), Push::Full);
        assert_eq!(outbox.push(response(2, 700)), Push::Queued);
        assert_eq!(outbox.push(response(3, 700)), Push::Closed);
        match reader.next().await {
            Some(Err(Failure::System(failure))) => {
                assert_eq!(failure.reason, Reason::ChannelStalled)
            }
            other => panic!("unexpected {other:?}"),
        }
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn closing_sends_what_is_queued_first() {
        let (outbox, mut reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(response(1, 1)), Push::Queued);
        outbox.close();
        assert_eq!(outbox.push(response(2, 1)), Push::Closed);
        assert_eq!(next_id(&mut reader).await, 1);
        assert!(reader.next().await.is_none());
    }

    #[tokio::test]
    async fn a_cancelled_call_that_is_still_queued_is_never_sent() {
        let (outbox, mut reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(call(1)), Push::Queued);
        assert!(outbox.cancel_call(1));
        assert_eq!((outbox.queued_bytes(), outbox.stuck_since()), (0, None));
        assert!(!outbox.cancel_call(1), "the second time it is gone");
        assert!(matches!(
            reader.next().await,
            Some(Ok(Outbound::CallCancel { call_id: 1 }))
        ));
    }

    #[tokio::test]
    async fn calls_that_were_not_sent_are_given_back_once_and_never_sent() {
        let ids = |calls: Vec<Box<CallFrame>>| -> Vec<u64> {
            calls.iter().map(|call| call.call_id).collect()
        };
        let (outbox, mut reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(call(1)), Push::Queued);
        assert_eq!(outbox.push(response(2, 1)), Push::Queued);
        let with_response = outbox.queued_bytes();
        assert_eq!(ids(outbox.take_calls()), [1]);
        assert!(outbox.queued_bytes() < with_response);
        assert_eq!(next_id(&mut reader).await, 2, "the rest is still sent");
        assert_eq!(ids(outbox.take_calls()), [0; 0]);

        // Queued when the channel ends, and too late for it.
        assert_eq!(outbox.push(call(1)), Push::Queued);
        outbox.abort(Closed::Replaced);
        assert_eq!(outbox.push(call(1)), Push::Closed);
        assert_eq!(outbox.take_call(1).expect("unsent").call_id, 1);
        assert!(outbox.take_call(2).is_none());
        assert_eq!(ids(outbox.take_calls()), [1]);

        let (outbox, reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(call(1)), Push::Queued);
        drop(reader);
        assert_eq!(ids(outbox.take_calls()), [1]);
    }

    #[tokio::test]
    async fn an_abort_is_told_although_it_is_closed_afterwards() {
        let (outbox, mut reader) = Outbox::new(1_000);
        outbox.abort(Closed::Replaced);
        outbox.close();
        match reader.next().await {
            Some(Err(Failure::System(failure))) => {
                assert_eq!(failure.reason, Reason::ChannelReplaced);
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_dropped_reader_closes_the_outbox() {
        let (outbox, reader) = Outbox::new(1_000);
        drop(reader);
        assert_eq!(outbox.push(response(1, 1)), Push::Closed);
    }

    #[tokio::test]
    async fn one_frame_above_the_limit_still_passes_when_the_queue_is_empty() {
        let (outbox, _reader) = Outbox::new(1_000);
        assert_eq!(outbox.push(call(5_000)), Push::Queued);
        assert_eq!(outbox.push(call(1)), Push::Full);
    }
}
