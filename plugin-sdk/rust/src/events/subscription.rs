//! A live subscription: two tasks, one that reads and one that handles.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::received;
use core_proto::v1;
use core_proto::v1::event_bus_subscribe_response::Control;
use tokio::sync::{RwLockReadGuard, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::queue::{Item, Queue};
use super::{Event, Gap, Subscription};
use crate::backoff::Backoff;
use crate::context::{Ctx, Scope};
use crate::error::{Code, Error, Result};
use crate::guard::guarded;
use crate::run::{Position, Run, Stage};

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
        queued: *position.lock(),
        epoch: 0,
        went_live: false,
        queue: Arc::clone(&queue),
        live: Some(live),
    };
    let reading = cancel.clone();
    let read = async move { reading.run_until_cancelled(reader.run()).await };
    tokio::spawn(read.instrument(span.clone()));
    let handler = Handler {
        run: Arc::clone(run),
        subscription: subscription.clone(),
        queue,
        position,
        ended: cancel.clone(),
    };
    let handled = async move { cancel.run_until_cancelled(handler.run()).await };
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
    queued: Option<v1::Position>,
    /// The log's incarnation, as the stream says.
    epoch: u64,
    /// Since the stream was opened it was live.
    went_live: bool,
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
            self.went_live = false;
            let error = match self.read().await {
                Ended::QueueFull => {
                    tracing::debug!("the handler is slow; the stream waits in the core's log");
                    continue;
                }
                Ended::Broken(error) => error,
            };
            if self.went_live {
                backoff.reset();
            }
            let refused = match error.code() {
                Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated => true,
                // Where waiting helps, that is said.
                Code::ResourceExhausted => error.retry_after().is_none(),
                _ => false,
            };
            if refused && let Some(live) = self.live.take() {
                self.queue.finish();
                drop(live.send(Err(error)));
                return;
            }
            let wait = match refused {
                true => REFUSED_WAIT,
                false => backoff.after(&error),
            };
            tracing::debug!(%error, ?wait, "a subscription broke and will be opened again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn read(&mut self) -> Ended {
        let request = self.subscription.options.request(self.queued);
        let mut stream = match self.run.streams.subscribe(request).await {
            Ok(stream) => stream,
            Err(status) => return Ended::Broken(Error::from_grpc(&status)),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if let Err(error) = self.take(message) {
                        return Ended::Broken(error);
                    }
                }
                Ok(None) => return Ended::Broken(Error::unavailable("the stream ended")),
                Err(status) => return Ended::Broken(Error::from_grpc(&status)),
            }
            if self.queue.is_full() {
                return Ended::QueueFull;
            }
        }
    }

    fn take(&mut self, message: received::SubscribeResponse) -> Result<()> {
        if message.events.len() > 0 {
            self.queued = Some(Event::received(message.events.last_event())?.position());
            self.queue.push(Item::Events(message.events));
        }
        match message.control {
            Some(Control::Subscribed(subscribed)) => self.subscribed(subscribed),
            Some(Control::Gap(gap)) => {
                self.queue.push(Item::Gap(Gap::from(gap)));
                self.reached(v1::Position {
                    epoch: self.epoch,
                    seq: gap.to_seq,
                });
            }
            Some(Control::Bookmark(position)) => self.reached(position),
            None => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, subscribed: v1::Subscribed) {
        self.epoch = subscribed.epoch;
        self.went_live = true;
        // Also where nothing ever arrived there must be a place to go on from. A place in another epoch
        // stays until the gap is here that the core tells then: else nobody would hear of it if the
        // stream broke before.
        if self.queued.is_none() {
            self.reached(v1::Position {
                epoch: subscribed.epoch,
                seq: subscribed.next_seq.saturating_sub(1),
            });
        }
        if let Some(live) = self.live.take() {
            drop(live.send(Ok(())));
        }
    }

    fn reached(&mut self, position: v1::Position) {
        // Where nothing happens the core says the same place again and again.
        if self.queued != Some(position) {
            self.queued = Some(position);
            self.queue.push(Item::Reached(position));
        }
    }
}

struct Handler {
    run: Arc<Run>,
    subscription: Subscription,
    queue: Arc<Queue>,
    /// The last event whose handler began.
    position: Position,
    /// Cancelled when the subscription ends, by itself or with its run.
    ended: CancellationToken,
}

/// Until it is dropped the plugin is STARTED, or its stop waits.
struct Turn<'a> {
    _gate: RwLockReadGuard<'a, ()>,
    /// Cancelled when the stop waits no longer.
    stopped: CancellationToken,
}

impl Turn<'_> {
    /// A stop has begun, or it has come and gone while a handler held the thread.
    fn is_over(&self, run: &Run) -> bool {
        self.stopped.is_cancelled() || !run.is_started()
    }
}

impl Handler {
    async fn run(self) {
        while let Some(item) = self.queue.pop().await {
            // Until STARTED, and again after a stop, what is queued waits.
            let Some(mut turn) = self.turn().await else {
                return;
            };
            match item {
                Item::Gap(gap) => self.bounded(&turn, self.tell(gap)).await,
                Item::Reached(position) => drop(self.advance(position)),
                Item::Events(events) => {
                    for event in events {
                        // Many handlers never wait; others must run all the same.
                        tokio::task::coop::consume_budget().await;
                        if self.ended.is_cancelled() {
                            return;
                        }
                        if turn.is_over(&self.run) {
                            drop(turn);
                            match self.turn().await {
                                Some(next) => turn = next,
                                None => return,
                            }
                        }
                        self.bounded(&turn, self.handle(event)).await;
                    }
                }
            }
        }
    }

    /// Waits until the plugin is STARTED; `None`: the subscription or its run is over.
    async fn turn(&self) -> Option<Turn<'_>> {
        loop {
            let gate = self.run.event_gate.read().await;
            if self.ended.is_cancelled() {
                return None;
            }
            if let Stage::Started(stopped) = self.run.stage() {
                return Some(Turn {
                    _gate: gate,
                    stopped,
                });
            }
            drop(gate);
            self.run.started().await?;
        }
    }

    /// Runs a handler until it is done, or the stop has waited long enough.
    async fn bounded(&self, turn: &Turn<'_>, handler: impl Future<Output = Result<()>>) {
        tokio::select! {
            // The handler first: most are done at once, and none begins after the stop, for it takes the
            // gate.
            biased;
            result = handler => if let Err(error) = result {
                tracing::error!(%error, "an event handler failed");
            },
            () = turn.stopped.cancelled() => {
                tracing::warn!("an event handler was dropped by the stop");
            }
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

    async fn handle(&self, encoded: Bytes) -> Result<()> {
        let event = Event::received(encoded)?;
        if !self.advance(event.position()) {
            return Ok(());
        }
        let span = tracing::info_span!("event", topic = %event.topic(), seq = event.seq());
        let ctx = Ctx::new(Arc::clone(&self.run), Scope::event(event.clone()));
        let handler = guarded(async { (self.subscription.on_event)(ctx, event).await });
        if span.is_disabled() {
            handler.await
        } else {
            handler.instrument(span).await
        }
    }

    async fn tell(&self, gap: Gap) -> Result<()> {
        let Some(on_gap) = &self.subscription.options.on_gap else {
            tracing::warn!(
                reason = ?gap.reason,
                from_seq = gap.from_seq,
                to_seq = gap.to_seq,
                "events were missed"
            );
            return Ok(());
        };
        let ctx = Ctx::new(Arc::clone(&self.run), Scope::none());
        guarded(async { on_gap(ctx, gap).await }).await
    }
}
