//! A live subscription: two tasks, one that reads and one that handles.

use std::sync::Arc;
use std::time::Duration;

use core_proto::v1;
use core_proto::v1::event_bus_subscribe_response::Control;
use tokio::sync::oneshot;
use tokio_util::sync::DropGuard;
use tracing::Instrument as _;

use super::queue::{Item, Queue};
use super::{Event, Gap, Subscription};
use crate::backoff::Backoff;
use crate::context::{Ctx, Parent, Scope};
use crate::error::{Code, Error, Result};
use crate::guard::guarded;
use crate::run::{Position, Run};

/// Longest wait before a broken stream is opened again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Wait after a refusal that waiting rarely cures (a grant was taken away).
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// A dynamic subscription. It ends with the run, with [`Self::unsubscribe`], or when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the subscription; `keep` lets it live as long as the run"]
pub struct Subscribed {
    cancel: DropGuard,
}

impl Subscribed {
    /// Ends the subscription: no handler begins after this; one that is running is dropped.
    pub fn unsubscribe(self) {
        drop(self.cancel);
    }

    /// Lets the subscription live as long as the run.
    pub fn keep(self) {
        // The token stays uncancelled; the run's own end ends the tasks.
        drop(self.cancel.disarm());
    }
}

/// Opens a subscription, and returns when it is live.
///
/// # Errors
/// What the core refuses: `BAD_PATTERN`, `NOT_GRANTED`, `TOO_MANY_SUBSCRIPTIONS`.
pub(crate) async fn open(
    run: &Arc<Run>,
    subscription: &Subscription,
    position: Position,
) -> Result<Subscribed> {
    let cancel = run.ended.child_token();
    let guard = cancel.clone().drop_guard();
    let queue = Arc::new(Queue::default());
    let (live, is_live) = oneshot::channel();
    let span = tracing::info_span!(
        "subscription",
        plugin = %run.name,
        patterns = %subscription.options.patterns.join(" ")
    );
    let reader = Reader {
        run: Arc::clone(run),
        subscription: subscription.clone(),
        position,
        queue: Arc::clone(&queue),
        live: Some(live),
    };
    let reading = cancel.clone();
    let read = async move { reading.run_until_cancelled(reader.run()).await };
    tokio::spawn(read.instrument(span.clone()));
    let handle = handle_all(Arc::clone(run), subscription.clone(), queue);
    let handled = async move { cancel.run_until_cancelled(handle).await };
    tokio::spawn(handled.instrument(span));
    match is_live.await {
        Ok(result) => result.map(|()| Subscribed { cancel: guard }),
        Err(_) => Err(Error::run_ended()),
    }
}

struct Reader {
    run: Arc<Run>,
    subscription: Subscription,
    /// The last event that was queued.
    position: Position,
    queue: Arc<Queue>,
    /// Told once: it is live, or it was refused.
    live: Option<oneshot::Sender<Result<()>>>,
}

/// Why a stream ended.
enum Ended {
    QueueFull,
    Broken(Error),
}

impl Reader {
    async fn run(mut self) {
        let mut backoff = Backoff::new(LONGEST_WAIT);
        loop {
            self.queue.half_empty().await;
            let was_live = self.live.is_none();
            let error = match self.read().await {
                Ended::QueueFull => {
                    tracing::debug!("the handler is slow; the stream waits in the core's log");
                    continue;
                }
                Ended::Broken(error) => error,
            };
            if self.live.is_none() && !was_live {
                backoff.reset();
            }
            let refused = matches!(
                error.code(),
                Code::InvalidArgument
                    | Code::PermissionDenied
                    | Code::ResourceExhausted
                    | Code::Unauthenticated
            );
            if refused && let Some(live) = self.live.take() {
                self.queue.finish();
                drop(live.send(Err(error)));
                return;
            }
            let wait = match refused {
                true => REFUSED_WAIT,
                false => error.retry_after().unwrap_or_else(|| backoff.next()),
            };
            tracing::debug!(%error, ?wait, "a subscription broke and will be opened again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn read(&mut self) -> Ended {
        let request = self.subscription.options.request(*self.position.lock());
        let response = self.run.streams.event_bus().subscribe(request).await;
        let mut stream = match response {
            Ok(response) => response.into_inner(),
            Err(status) => return Ended::Broken(Error::from_grpc(&status)),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.take(message),
                Ok(None) => return Ended::Broken(Error::unavailable("the stream ended")),
                Err(status) => return Ended::Broken(Error::from_grpc(&status)),
            }
            if self.queue.is_full() {
                return Ended::QueueFull;
            }
        }
    }

    fn take(&mut self, message: v1::EventBusSubscribeResponse) {
        for event in message.events {
            let at = v1::Position {
                epoch: event.epoch,
                seq: event.seq,
            };
            if self.advance(at) {
                self.queue.push(Item::Event(Box::new(Event::from(event))));
            }
        }
        match message.control {
            Some(Control::Subscribed(subscribed)) => self.subscribed(subscribed),
            Some(Control::Gap(gap)) => {
                let epoch = self.position.lock().map_or(0, |position| position.epoch);
                self.advance(v1::Position {
                    epoch,
                    seq: gap.to_seq,
                });
                self.queue.push(Item::Gap(Gap::from(gap)));
            }
            Some(Control::Bookmark(position)) => {
                self.advance(position);
            }
            None => {}
        }
    }

    fn subscribed(&mut self, subscribed: v1::Subscribed) {
        let before_next = v1::Position {
            epoch: subscribed.epoch,
            seq: subscribed.next_seq.saturating_sub(1),
        };
        {
            // Also where nothing ever arrived there must be a place to go on from. A resumed stream
            // of another epoch goes on from what the core says.
            let mut position = self.position.lock();
            if position.is_none_or(|position| position.epoch != subscribed.epoch) {
                *position = Some(before_next);
            }
        }
        if let Some(live) = self.live.take() {
            drop(live.send(Ok(())));
        }
    }

    /// Moves the place to go on from; false for what has been seen already.
    fn advance(&self, to: v1::Position) -> bool {
        let mut position = self.position.lock();
        let seen = position.is_some_and(|at| at.epoch == to.epoch && to.seq <= at.seq);
        if !seen {
            *position = Some(to);
        }
        !seen
    }
}

async fn handle_all(run: Arc<Run>, subscription: Subscription, queue: Arc<Queue>) {
    while let Some(item) = queue.pop().await {
        // Until STARTED, and again after a stop, what is queued waits.
        let (gate, stopped) = loop {
            let gate = run.event_gate.read().await;
            if let crate::run::Stage::Started(stopped) = run.stage() {
                break (gate, stopped);
            }
            drop(gate);
            if run.started().await.is_none() {
                return;
            }
        };
        tokio::select! {
            // The handler first: most are done at once, and none begins after the stop, for it takes the
            // gate.
            biased;
            () = handle(&run, &subscription, item) => {}
            () = stopped.cancelled() => tracing::warn!("an event handler was dropped by the stop"),
        }
        drop(gate);
    }
}

async fn handle(run: &Arc<Run>, subscription: &Subscription, item: Item) {
    let result = match item {
        Item::Event(event) => {
            let (epoch, seq) = (event.epoch, event.seq);
            let span = tracing::info_span!("event", topic = %event.topic, seq);
            let scope = Scope {
                parent: Parent::Event { epoch, seq },
                caller: event.source.clone(),
                traceparent: event.traceparent.clone(),
                ..Scope::none()
            };
            let ctx = Ctx::new(Arc::clone(run), scope);
            let handler = guarded(async { (subscription.on_event)(ctx, *event).await });
            if span.is_disabled() {
                handler.await
            } else {
                handler.instrument(span).await
            }
        }
        Item::Gap(gap) => match &subscription.options.on_gap {
            Some(on_gap) => {
                let ctx = Ctx::new(Arc::clone(run), Scope::none());
                guarded(async { on_gap(ctx, gap).await }).await
            }
            None => {
                tracing::warn!(
                    reason = ?gap.reason,
                    from_seq = gap.from_seq,
                    to_seq = gap.to_seq,
                    "events were missed"
                );
                Ok(())
            }
        },
    };
    if let Err(error) = result {
        tracing::error!(%error, "an event handler failed");
    }
}
