//! Requests of this plugin that wait for their answer: which one each `Response` belongs to.
//!
//! Every request ends exactly once: with its response, or with the channel. At most
//! [`MAX_IN_FLIGHT`] are under way; further ones wait for a place, first come first served.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use core_proto::v1::{EventBusPublishBatchResponse, Response, response};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Error, Origin, Outcome, Result};

/// Requests in flight on one channel: the core's own limit for a caller.
const MAX_IN_FLIGHT: usize = 1024;

pub(crate) struct Requests {
    next_id: AtomicU64,
    /// `None` after the end of the channel.
    waiting: Mutex<Option<HashMap<u64, Waiter>>>,
    places: Arc<Semaphore>,
    /// Publishes in the background that failed.
    failures: Arc<AtomicU64>,
}

struct Waiter {
    kind: WaiterKind,
    _place: OwnedSemaphorePermit,
}

enum WaiterKind {
    Reply(oneshot::Sender<Result<Bytes>>),
    /// Nobody waits; of so many events those that fail are counted and logged.
    Background(Arc<AtomicU64>),
}

/// A place among the requests in flight.
pub(crate) struct Place(OwnedSemaphorePermit);

impl Requests {
    pub(crate) fn new(failures: Arc<AtomicU64>) -> Self {
        Self {
            next_id: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
            places: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            failures,
        }
    }

    /// Waits for a place.
    pub(crate) async fn place(&self) -> Result<Place> {
        let permit = Arc::clone(&self.places).acquire_owned().await;
        permit
            .map(Place)
            .map_err(|_| Error::channel_lost(Outcome::NotApplied))
    }

    /// Registers a request whose answer somebody waits for.
    pub(crate) fn expect_reply(
        &self,
        place: Place,
    ) -> Result<(u64, oneshot::Receiver<Result<Bytes>>)> {
        let (sender, receiver) = oneshot::channel();
        let id = self.insert(WaiterKind::Reply(sender), place)?;
        Ok((id, receiver))
    }

    /// Registers a batch of events that nobody waits for; `count` says how many it has come to.
    pub(crate) fn expect_background(&self, place: Place, count: Arc<AtomicU64>) -> Result<u64> {
        self.insert(WaiterKind::Background(count), place)
    }

    fn insert(&self, kind: WaiterKind, Place(permit): Place) -> Result<u64> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        let map = waiting
            .as_mut()
            .ok_or_else(|| Error::channel_lost(Outcome::NotApplied))?;
        map.insert(
            id,
            Waiter {
                kind,
                _place: permit,
            },
        );
        Ok(id)
    }

    /// Forgets a request; true if it was still waiting.
    pub(crate) fn forget(&self, id: u64) -> bool {
        let mut waiting = self.waiting.lock();
        waiting
            .as_mut()
            .is_some_and(|map| map.remove(&id).is_some())
    }

    /// Hands an answer to whom it belongs. Unknown ids are ignored: the asker has gone away.
    pub(crate) fn answer(&self, answer: Response) {
        let waiter = {
            let mut waiting = self.waiting.lock();
            waiting
                .as_mut()
                .and_then(|map| map.remove(&answer.request_id))
        };
        let Some(waiter) = waiter else { return };
        let origin = match answer.origin() {
            response::Origin::Provider => Origin::Provider,
            _ => Origin::Core,
        };
        let result = match answer.error {
            None => Ok(answer.message),
            Some(status) => Err(Error::from_status(status, origin)),
        };
        self.end(waiter, result);
    }

    /// Ends all requests: the channel is gone.
    pub(crate) fn end_all(&self) {
        self.places.close();
        let ended = self.waiting.lock().take();
        for waiter in ended.into_iter().flat_map(HashMap::into_values) {
            self.end(waiter, Err(Error::channel_lost(Outcome::Unknown)));
        }
    }

    fn end(&self, waiter: Waiter, result: Result<Bytes>) {
        match (waiter.kind, result) {
            // A send fails when the asker has gone away; then nobody needs the answer.
            (WaiterKind::Reply(sender), result) => drop(sender.send(result)),
            (WaiterKind::Background(_), Ok(answer)) => {
                // What cannot be decoded names nothing that was refused.
                let answer = EventBusPublishBatchResponse::decode(answer).unwrap_or_default();
                for rejected in answer.rejected {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    let error =
                        Error::from_status(rejected.error.unwrap_or_default(), Origin::Core);
                    tracing::warn!(%error, "an event published in the background was refused");
                }
            }
            (WaiterKind::Background(count), Err(error)) => {
                let events = count.load(Ordering::Relaxed);
                self.failures.fetch_add(events, Ordering::Relaxed);
                tracing::warn!(events, %error, "events published in the background are lost");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core_proto::google::rpc::Status;

    use super::*;

    #[tokio::test]
    async fn every_request_ends_once() {
        let failures = Arc::new(AtomicU64::new(0));
        let requests = Requests::new(Arc::clone(&failures));
        let place = requests.place().await.expect("room");
        let (first, reply) = requests.expect_reply(place).expect("open");
        let place = requests.place().await.expect("room");
        let (_second, lost) = requests.expect_reply(place).expect("open");
        let place = requests.place().await.expect("room");
        let third = requests
            .expect_background(place, Arc::new(AtomicU64::new(3)))
            .expect("open");

        let answer = |request_id, error| Response {
            request_id,
            message: Bytes::from_static(b"x"),
            error,
            origin: response::Origin::Core.into(),
        };
        requests.answer(answer(first, None));
        requests.answer(answer(first, None));
        requests.answer(answer(99, None));
        assert_eq!(reply.await.expect("sent").expect("ok"), "x");
        let refusal = Status {
            code: 3,
            ..Default::default()
        };
        requests.answer(answer(third, Some(refusal)));
        assert_eq!(failures.load(Ordering::Relaxed), 3, "all of a batch");

        requests.end_all();
        let error = lost.await.expect("sent").expect_err("the channel is gone");
        assert_eq!(error.reason(), "CHANNEL_LOST");
        assert_eq!(error.outcome(), Outcome::Unknown);
        assert!(requests.place().await.is_err());
    }
}
