//! The standing of a connection: whether its peer is known, and what it may do until then.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::places::{Bounds, Entered, Id, Kind, Places};
use crate::channel::Slot;

/// Places for connections, shared by all listeners. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct House {
    /// Short lock: no await, no callback inside.
    places: Arc<Mutex<Places<CancellationToken>>>,
}

/// What a newcomer got, and whether somebody else had to go for it.
pub(super) struct Admission {
    pub(super) place: Place,
    pub(super) somebody_gave_way: bool,
}

impl House {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            places: Arc::new(Mutex::new(Places::new(bounds))),
        }
    }

    /// Lets a connection in, if it may come.
    pub(super) fn admit(&self, known_by_socket: bool) -> Option<Admission> {
        let gives_way = CancellationToken::new();
        let entered = {
            let mut places = self.places.lock();
            if known_by_socket {
                places.enter_identified()
            } else {
                places.enter_unidentified(gives_way.clone())
            }
        };
        let Entered {
            id,
            kind,
            gives_way: other,
        } = entered?;
        let somebody_gave_way = other.is_some();
        if let Some(other) = other {
            other.cancel();
        }
        let standing = Standing {
            inner: Arc::new(Inner {
                house: self.clone(),
                id,
                known: AtomicBool::new(kind != Kind::Unidentified),
                anonymous: AtomicUsize::new(0),
                slot: Mutex::new(None),
            }),
        };
        let place = Place {
            kind,
            gives_way,
            standing,
        };
        Some(Admission {
            place,
            somebody_gave_way,
        })
    }

    /// Ends the oldest connection whose peer is not known, if there is one.
    pub(super) fn oldest_gives_way(&self) -> bool {
        let oldest = self.places.lock().oldest_gives_way();
        oldest.inspect(CancellationToken::cancel).is_some()
    }

    /// Connections open now, and those of them whose peer is not known.
    pub(super) fn count(&self) -> (usize, usize) {
        let places = self.places.lock();
        (places.len(), places.unidentified())
    }
}

/// A connection's place. Dropping it makes the place free.
#[must_use]
#[derive(Debug)]
pub(super) struct Place {
    kind: Kind,
    gives_way: CancellationToken,
    standing: Standing,
}

impl Place {
    /// Cancelled when the connection has to end for another.
    pub(super) fn gives_way(&self) -> &CancellationToken {
        &self.gives_way
    }

    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let inner = &self.standing.inner;
        let mut places = inner.house.places.lock();
        // Under the lock, as the change is: what is read here is what was counted.
        let kind = match self.kind {
            Kind::Unidentified if inner.known.load(Ordering::Relaxed) => Kind::Identified,
            kind => kind,
        };
        places.leave(inner.id, kind);
        drop(places);
        // Requests may outlive their connection.
        drop(inner.slot.lock().take());
    }
}

/// Whether the peer of a connection is known. Goes with each of its requests; cheap to clone.
#[derive(Clone, Debug)]
pub struct Standing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    house: House,
    id: Id,
    /// Set under the lock of the house, once.
    known: AtomicBool,
    /// Requests in progress that came while the peer was not known.
    anonymous: AtomicUsize,
    /// The connection's place among those of whoever was known first. Locked by whoever holds the house's lock, or alone.
    slot: Mutex<Option<Slot>>,
}

impl Standing {
    /// A request of this connection carried a valid credential, of somebody who has a slot for it: it is
    /// kept until the connection ends. Without effect when the peer is known.
    pub fn identify(&self, slot: Slot) {
        let mut places = self.inner.house.places.lock();
        if places.identify(self.inner.id) {
            // Under the lock, so that the end of the connection comes before it or after.
            *self.inner.slot.lock() = Some(slot);
            self.inner.known.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the peer is known.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.inner.known.load(Ordering::Relaxed)
    }

    /// Counts a request of an unknown peer. `None`: it has `limit` of them in progress already.
    #[must_use]
    pub fn anonymous_request(&self, limit: usize) -> Option<AnonymousRequest> {
        let before = self.inner.anonymous.fetch_add(1, Ordering::Relaxed);
        // Made first: dropping it takes the count back.
        let request = AnonymousRequest(self.clone());
        (before < limit).then_some(request)
    }
}

/// A request of an unknown peer that is in progress until this is dropped.
#[must_use]
#[derive(Debug)]
pub struct AnonymousRequest(Standing);

impl AnonymousRequest {
    /// It is in progress until this, its answer, has been sent or given up.
    pub fn lasts_as_long_as(self, answer: tonic::body::Body) -> tonic::body::Body {
        tonic::body::Body::new(Answer {
            body: answer,
            _request: self,
        })
    }
}

/// The answer to an anonymous request.
struct Answer {
    body: tonic::body::Body,
    _request: AnonymousRequest,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnonymousRequest {
    fn drop(&mut self) {
        self.0.inner.anonymous.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::channel::CallerSlots;

    /// Of somebody who is not known yet.
    pub(in super::super) fn place() -> Place {
        house().admit(false).expect("room").place
    }

    /// Somebody's only one.
    pub(in super::super) fn slot() -> Slot {
        Arc::<CallerSlots>::default().take(1).expect("free")
    }

    fn house() -> House {
        House::new(Bounds {
            connections: 3,
            unidentified: 1,
            reserved: 0,
        })
    }

    #[test]
    fn whoever_is_known_stays_and_leaves_its_place_at_its_end() {
        let house = house();
        let first = house.admit(false).expect("room").place;
        let standing = first.standing().clone();
        standing.identify(slot());
        standing.identify(slot());
        assert!(standing.is_known());
        assert_eq!(house.count(), (1, 0));
        let second = house.admit(false).expect("room");
        assert!(!second.somebody_gave_way);
        let third = house.admit(false).expect("room");
        assert!(third.somebody_gave_way && second.place.gives_way().is_cancelled());
        assert!(!first.gives_way().is_cancelled());
        second.place.standing().identify(slot());
        assert!(!second.place.standing().is_known(), "it was too late");
        drop(second);
        drop(first);
        assert_eq!(house.count(), (1, 1));
        standing.identify(slot());
        assert_eq!(house.count(), (1, 1), "a request outlived its connection");
        drop(third);
        assert_eq!(house.count(), (0, 0));
    }

    #[test]
    fn requests_of_the_unknown_are_counted_while_they_last() {
        let house = house();
        let place = house.admit(false).expect("room").place;
        let first = place.standing().anonymous_request(2).expect("the first");
        let second = place.standing().anonymous_request(2);
        assert!(second.is_some());
        assert!(place.standing().anonymous_request(2).is_none());
        drop(first);
        assert!(place.standing().anonymous_request(2).is_some());
    }

    #[test]
    fn a_slot_is_kept_by_the_connection_and_not_by_what_outlives_it() {
        let house = house();
        let slots = Arc::<CallerSlots>::default();
        let take = || slots.take(2).expect("free");
        let place = house.admit(false).expect("room").place;
        let request = place.standing().clone();
        request.identify(take());
        assert_eq!(slots.taken(), 1);
        request.identify(take());
        assert_eq!(slots.taken(), 1, "one connection is one");
        drop(place);
        assert_eq!(slots.taken(), 0);
        request.identify(take());
        assert_eq!(slots.taken(), 0, "it came too late");
    }
}
