//! `EventBus`.

use std::collections::HashSet;

use core_proto::encoded::SubscribeResponse;
use core_proto::servers::event_bus_server;
use core_proto::v1;
use futures_util::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{BadField, events};
use super::{gate, status, unary};
use crate::config::Quota;
use crate::error::Failure;
use crate::event_bus::{BatchReceipt, EventBus};
use crate::security::{Action, Caller, Gatekeeper, Read};
use crate::task::TaskScope;
use crate::types::Topic;

/// Batches of one publish stream that may be answered but not yet read by the publisher; beyond it,
/// the next batch is not read before an acknowledgement is.
const UNREAD_ACKNOWLEDGEMENTS: usize = 64;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) bus: EventBus,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) scope: TaskScope,
}

/// Topics that a caller may publish to, as far as they were judged for one request.
#[derive(Default)]
struct Judged {
    latest: Option<Topic>,
    others: HashSet<Topic>,
}

impl Judged {
    /// The topic of that name, if it was judged.
    fn topic(&self, name: &str) -> Option<&Topic> {
        match &self.latest {
            Some(latest) if latest.as_str() == name => Some(latest),
            _ => self.others.get(name),
        }
    }

    fn insert(&mut self, topic: &Topic) {
        if let Some(before) = self.latest.replace(topic.clone()) {
            self.others.insert(before);
        }
    }
}

/// What publishing costs.
pub(super) fn cost_of(events: usize, bytes: usize) -> [(Quota, u64); 2] {
    [
        (Quota::PublishesPerSecond, events as u64),
        (Quota::PublishBytesPerSecond, bytes as u64),
    ]
}

impl Api {
    /// An event of this caller, judged: publishing it cannot fail any more. It has been charged by then.
    pub(super) fn check(
        &self,
        caller: &Caller,
        event: v1::NewEvent,
    ) -> Result<crate::event_bus::NewEvent, Failure> {
        self.check_among(&mut Judged::default(), caller, event)
    }

    /// As [`Self::check`], for one of several events of a caller.
    fn check_among(
        &self,
        judged: &mut Judged,
        caller: &Caller,
        event: v1::NewEvent,
    ) -> Result<crate::event_bus::NewEvent, Failure> {
        let known = judged.topic(&event.topic);
        let event = events::new_event(event, known, caller)?;
        if known.is_none() {
            self.gatekeeper
                .authorize(caller, Action::Publish(event.topic.as_str()))?;
            judged.insert(&event.topic);
        }
        self.bus.check(&event)?;
        Ok(event)
    }

    pub(super) fn publish(
        &self,
        caller: &Caller,
        request: v1::EventBusPublishRequest,
    ) -> Result<v1::EventBusPublishResponse, Failure> {
        let event = request.event.ok_or(BadField::Missing { field: "event" })?;
        caller.meter.charge(&cost_of(1, event.data.len()))?;
        let event = self.check(caller, event)?;
        let position = self.bus.publish(&caller.source, event)?;
        Ok(v1::EventBusPublishResponse {
            epoch: position.epoch.0,
            seq: position.seq,
        })
    }

    pub(super) fn publish_batch(
        &self,
        caller: &Caller,
        request: v1::EventBusPublishBatchRequest,
    ) -> Result<v1::EventBusPublishBatchResponse, Failure> {
        let (receipt, rejected) = self.publish_all(caller, request.events)?;
        Ok(v1::EventBusPublishBatchResponse {
            epoch: receipt.epoch.0,
            first_seq: receipt.first_seq,
            published: u32::try_from(receipt.count).unwrap_or(u32::MAX),
            rejected,
        })
    }

    /// Publishes what can be published, in order, and tells the rest by index.
    pub(super) fn publish_all(
        &self,
        caller: &Caller,
        events: Vec<v1::NewEvent>,
    ) -> Result<(BatchReceipt, Vec<v1::RejectedEvent>), Failure> {
        let bytes = events.iter().map(|event| event.data.len()).sum();
        self.bus.check_batch(events.len(), bytes)?;
        caller.meter.charge(&cost_of(events.len(), bytes))?;
        let mut rejected: Vec<(usize, Failure)> = Vec::new();
        let mut good = Vec::with_capacity(events.len());
        let mut places = Vec::with_capacity(events.len());
        let mut judged = Judged::default();
        for (index, event) in events.into_iter().enumerate() {
            match self.check_among(&mut judged, caller, event) {
                Ok(event) => {
                    good.push(event);
                    places.push(index);
                }
                Err(failure) => rejected.push((index, failure)),
            }
        }
        let receipt = self.bus.publish_batch(&caller.source, good)?;
        let refused = receipt.rejected.iter();
        rejected
            .extend(refused.map(|(index, error)| (places[*index], Failure::from(error.clone()))));
        rejected.sort_by_key(|(index, _)| *index);
        let rejected = rejected
            .into_iter()
            .map(|(index, failure)| v1::RejectedEvent {
                index: index as u64,
                error: Some(status::body(&failure)),
            })
            .collect();
        Ok((receipt, rejected))
    }

    /// Reads batches until the publisher closes, its run ends or the core stops.
    async fn serve_stream(
        self,
        caller: Caller,
        mut batches: Streaming<v1::EventBusPublishStreamRequest>,
        answers: tokio::sync::mpsc::Sender<Result<v1::EventBusPublishStreamResponse, Status>>,
    ) {
        let mut acknowledged = 0;
        let mut last_seq = 0;
        loop {
            // Room for the answer first: a publisher that does not read its acknowledgements is not
            // read either, and nothing it sent is lost.
            let Ok(place) = answers.reserve().await else {
                return;
            };
            let batch = match batches.message().await {
                Ok(Some(batch)) => batch,
                Ok(None) => return,
                Err(error) => return place.send(Err(error)),
            };
            let count = batch.events.len() as u64;
            let answer = if batch.events.is_empty() {
                Ok((None, Vec::new()))
            } else {
                self.publish_all(&caller, batch.events)
                    .map(|(receipt, rejected)| (Some(receipt), rejected))
            };
            let (receipt, mut rejected) = match answer {
                Ok(answer) => answer,
                Err(failure) => return place.send(Err(status::from_failure(failure))),
            };
            if let Some(receipt) = receipt.filter(|receipt| receipt.count > 0) {
                last_seq = receipt.first_seq + receipt.count as u64 - 1;
            }
            rejected
                .iter_mut()
                .for_each(|event| event.index += acknowledged);
            acknowledged += count;
            let epoch = self.bus.epoch().0;
            place.send(Ok(v1::EventBusPublishStreamResponse {
                epoch,
                acknowledged,
                last_seq,
                rejected,
            }));
        }
    }
}

#[tonic::async_trait]
impl event_bus_server::EventBus for Api {
    async fn publish(
        &self,
        request: Request<v1::EventBusPublishRequest>,
    ) -> Result<Response<v1::EventBusPublishResponse>, Status> {
        unary(request, async |caller, message| {
            self.publish(&caller, message)
        })
        .await
    }

    async fn publish_batch(
        &self,
        request: Request<v1::EventBusPublishBatchRequest>,
    ) -> Result<Response<v1::EventBusPublishBatchResponse>, Status> {
        unary(request, async |caller, message| {
            self.publish_batch(&caller, message)
        })
        .await
    }

    type PublishStreamStream = ReceiverStream<Result<v1::EventBusPublishStreamResponse, Status>>;

    async fn publish_stream(
        &self,
        request: Request<Streaming<v1::EventBusPublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        let caller = gate::caller(&request)?;
        let held = caller.meter.hold(Quota::RequestsInFlight);
        let held = held.map_err(status::from_failure)?;
        let (answers, stream) = tokio::sync::mpsc::channel(UNREAD_ACKNOWLEDGEMENTS);
        let ended = super::ended(&caller, &self.scope);
        let last = answers.clone();
        let serve = self
            .clone()
            .serve_stream(caller, request.into_inner(), answers);
        self.scope.spawn_droppable("publish-stream", async move {
            let _held = held;
            tokio::select! {
                () = serve => {}
                failure = ended => {
                    // A publisher that does not read learns it by the end of the stream.
                    let _unread = last.try_send(Err(status::from_failure(failure)));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type SubscribeStream = super::ResponseStream<SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<v1::EventBusSubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = gate::caller(&request)?;
        let mut patterns = Vec::new();
        let subscribe = || {
            let subscribe = events::subscribe(request.into_inner(), &caller)?;
            patterns.clone_from(&subscribe.patterns);
            for pattern in &subscribe.patterns {
                self.gatekeeper
                    .authorize(&caller, Action::Subscribe(pattern))?;
            }
            let place = caller.meter.hold(Quota::Subscriptions)?;
            Ok::<_, Failure>((self.bus.subscribe(subscribe)?, place))
        };
        let (subscription, place) = subscribe().map_err(status::from_failure)?;
        let items = subscription.map(move |item| {
            let _held = &place;
            item.map(events::delivery).map_err(Failure::from)
        });
        let lost = self
            .gatekeeper
            .loses(&caller, patterns.into_iter().map(Read::Events));
        let items = super::granted_stream(items, &caller, &self.scope, lost);
        Ok(Response::new(items))
    }
}
