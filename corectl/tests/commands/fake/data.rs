//! The fake's servers for events, state and storage.

use std::time::SystemTime;

use core_proto::encoded::{self, SubscribeResponse};
use core_proto::servers::event_bus_server::EventBus;
use core_proto::servers::state_engine_server::StateEngine;
use core_proto::servers::storage_server::Storage;
use core_proto::v1::event_bus_subscribe_request::Start;
use core_proto::v1::event_bus_subscribe_response::Control;
use core_proto::v1::state_change::Kind;
use core_proto::v1::*;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answers, EPOCH, Shared, matches, page, refusal};

impl Shared {
    /// Appends an event and tells subscribers; its seq.
    pub(crate) fn publish(&self, mut event: Event) -> u64 {
        let mut world = self.world.lock();
        event.epoch = EPOCH;
        event.seq = world.events.len() as u64 + 1;
        event.time.get_or_insert(SystemTime::now().into());
        world.events.push(event.clone());
        let seq = event.seq;
        // Nobody listening is fine.
        self.published.send(event).ok();
        seq
    }
}

fn check_name(name: &str, reason: &str) -> Result<(), Status> {
    let legal = |character: char| character.is_ascii_alphanumeric() || "_-*>".contains(character);
    let good = name
        .split('.')
        .all(|token| !token.is_empty() && token.chars().all(legal));
    if good {
        return Ok(());
    }
    let message = format!("{name:?} has a token that is empty or has other characters");
    Err(refusal(Code::InvalidArgument, reason, &message, &[]))
}

fn check_revision(key: &str, expected: Option<u64>, current: u64) -> Result<(), Status> {
    if expected.is_none_or(|expected| expected == current) {
        return Ok(());
    }
    let message = format!("{key:?} has another revision");
    let current = current.to_string();
    let facts = [("key", key), ("current_revision", &current)];
    Err(refusal(
        Code::Aborted,
        "REVISION_MISMATCH",
        &message,
        &facts,
    ))
}

#[tonic::async_trait]
impl EventBus for Shared {
    type PublishStreamStream = Answers<EventBusPublishStreamResponse>;
    type SubscribeStream = Answers<SubscribeResponse>;

    async fn publish(
        &self,
        request: Request<EventBusPublishRequest>,
    ) -> Result<Response<EventBusPublishResponse>, Status> {
        let event = request.into_inner().event.unwrap_or_default();
        check_name(&event.topic, "BAD_TOPIC")?;
        let seq = Self::publish(
            self,
            Event {
                topic: event.topic,
                source: "operator".to_owned(),
                subject: event.subject,
                content_type: event.content_type,
                data: event.data,
                ..Event::default()
            },
        );
        Ok(Response::new(EventBusPublishResponse { epoch: EPOCH, seq }))
    }

    async fn publish_batch(
        &self,
        _request: Request<EventBusPublishBatchRequest>,
    ) -> Result<Response<EventBusPublishBatchResponse>, Status> {
        Err(Status::unimplemented("corectl publishes one by one"))
    }

    async fn publish_stream(
        &self,
        _request: Request<Streaming<EventBusPublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        Err(Status::unimplemented("corectl publishes one by one"))
    }

    /// With `oldest` a gap comes first, as if the log had lost its beginning.
    async fn subscribe(
        &self,
        request: Request<EventBusSubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let request = request.into_inner();
        for pattern in &request.patterns {
            check_name(pattern, "BAD_PATTERN")?;
        }
        let world = self.world.lock();
        let live = BroadcastStream::new(self.published.subscribe());
        let past: Vec<Event> = match &request.start {
            Some(Start::Oldest(_)) => world.events.clone(),
            Some(Start::Since(since)) => {
                let then = (since.seconds, since.nanos);
                let at =
                    |event: &Event| event.time.map_or((0, 0), |time| (time.seconds, time.nanos));
                let events = world.events.iter().filter(|event| at(event) >= then);
                events.cloned().collect()
            }
            _ => Vec::new(),
        };
        let mut controls = vec![Control::Subscribed(Subscribed {
            epoch: EPOCH,
            next_seq: world.events.len() as u64 + 1,
            oldest_seq: 1,
        })];
        if matches!(request.start, Some(Start::Oldest(_))) {
            controls.push(Control::Gap(Gap {
                reason: gap::Reason::TooOld.into(),
                from_seq: 1,
                to_seq: 5,
            }));
        }
        let wanted = move |event: &Event| {
            request
                .patterns
                .iter()
                .any(|pattern| matches(pattern, &event.topic))
                && (request.source.is_empty() || request.source == event.source)
                && (request.subject.is_empty() || request.subject == event.subject)
        };
        let events = tokio_stream::iter(past)
            .chain(live.filter_map(Result::ok))
            .filter(wanted)
            .map(|event| SubscribeResponse::Events(vec![encoded::entry(&event).into()]));
        let controls = tokio_stream::iter(controls).map(SubscribeResponse::Control);
        Ok(Response::new(Box::pin(controls.chain(events).map(Ok))))
    }
}

#[tonic::async_trait]
impl StateEngine for Shared {
    type WatchStream = Answers<StateEngineWatchResponse>;

    async fn get(
        &self,
        request: Request<StateEngineGetRequest>,
    ) -> Result<Response<StateEngineGetResponse>, Status> {
        let key = request.into_inner().key;
        check_name(&key, "BAD_STATE_KEY")?;
        let entry = self.world.lock().state.get(&key).cloned();
        Ok(Response::new(StateEngineGetResponse { entry }))
    }

    async fn set(
        &self,
        request: Request<StateEngineSetRequest>,
    ) -> Result<Response<StateEngineSetResponse>, Status> {
        let request = request.into_inner();
        check_name(&request.key, "BAD_STATE_KEY")?;
        let mut world = self.world.lock();
        let before = world.state.get(&request.key).cloned();
        let current = before.as_ref().map_or(0, |entry| entry.revision);
        check_revision(&request.key, request.if_revision, current)?;
        if before
            .as_ref()
            .is_some_and(|entry| entry.value == request.value)
        {
            return Ok(Response::new(StateEngineSetResponse {
                revision: current,
                changed: false,
            }));
        }
        world.revision += 1;
        let revision = world.revision;
        let entry = StateEntry {
            key: request.key.clone(),
            value: request.value,
            revision,
            writer: "operator".to_owned(),
            changed_at: Some(SystemTime::now().into()),
            reported_at: Some(SystemTime::now().into()),
            ..Default::default()
        };
        world.state.insert(request.key, entry.clone());
        let old_value = before.map(|entry| entry.value).unwrap_or_default();
        let change = state_change(Kind::Set, entry, old_value);
        self.state_changed.send(change).ok();
        Ok(Response::new(StateEngineSetResponse {
            revision,
            changed: true,
        }))
    }

    async fn delete(
        &self,
        request: Request<StateEngineDeleteRequest>,
    ) -> Result<Response<StateEngineDeleteResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.world.lock();
        let current = world
            .state
            .get(&request.key)
            .map_or(0, |entry| entry.revision);
        check_revision(&request.key, request.if_revision, current)?;
        let removed = world.state.remove(&request.key);
        let existed = removed.is_some();
        if let Some(mut entry) = removed {
            world.revision += 1;
            entry.revision = world.revision;
            let old_value = std::mem::take(&mut entry.value);
            let change = state_change(Kind::Deleted, entry, old_value);
            self.state_changed.send(change).ok();
        }
        Ok(Response::new(StateEngineDeleteResponse { existed }))
    }

    async fn list(
        &self,
        request: Request<StateEngineListRequest>,
    ) -> Result<Response<StateEngineListResponse>, Status> {
        let request = request.into_inner();
        let world = self.world.lock();
        let entries = world.state.values();
        let entries: Vec<_> = entries
            .filter(|entry| entry.key.starts_with(&request.prefix))
            .cloned()
            .collect();
        let (entries, next_page_token) = page(&entries, &request.page_token)?;
        Ok(Response::new(StateEngineListResponse {
            entries,
            next_page_token,
            revision: world.revision,
        }))
    }

    async fn watch(
        &self,
        request: Request<StateEngineWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let patterns = request.patterns;
        let wanted = move |change: &StateChange| {
            let key = change.entry.as_ref().map_or("", |entry| &entry.key);
            patterns.iter().any(|pattern| matches(pattern, key))
        };
        let world = self.world.lock();
        let live = BroadcastStream::new(self.state_changed.subscribe());
        let initial = world.state.values().filter(|_| request.include_initial);
        let initial: Vec<_> = initial
            .map(|entry| state_change(Kind::Initial, entry.clone(), prost::bytes::Bytes::new()))
            .filter(&wanted)
            .collect();
        let snapshot = StateEngineWatchResponse {
            changes: initial,
            snapshot_end: true,
            revision: world.revision,
        };
        let changes =
            live.filter_map(Result::ok)
                .filter(wanted)
                .map(|change| StateEngineWatchResponse {
                    changes: vec![change],
                    ..Default::default()
                });
        Ok(Response::new(Box::pin(
            tokio_stream::once(snapshot).chain(changes).map(Ok),
        )))
    }
}

fn state_change(kind: Kind, entry: StateEntry, old_value: prost::bytes::Bytes) -> StateChange {
    StateChange {
        kind: kind.into(),
        entry: Some(entry),
        old_value,
        ..StateChange::default()
    }
}

#[tonic::async_trait]
impl Storage for Shared {
    async fn get(
        &self,
        request: Request<StorageGetRequest>,
    ) -> Result<Response<StorageGetResponse>, Status> {
        let request = request.into_inner();
        let place = (request.namespace, request.key);
        let entry = self.world.lock().storage.get(&place).cloned();
        Ok(Response::new(StorageGetResponse { entry }))
    }

    async fn get_many(
        &self,
        _request: Request<StorageGetManyRequest>,
    ) -> Result<Response<StorageGetManyResponse>, Status> {
        Err(Status::unimplemented("corectl reads one by one"))
    }

    async fn set(
        &self,
        request: Request<StorageSetRequest>,
    ) -> Result<Response<StorageSetResponse>, Status> {
        let request = request.into_inner();
        let place = (request.namespace, request.key.clone());
        let mut world = self.world.lock();
        let current = world.storage.get(&place).map_or(0, |entry| entry.revision);
        check_revision(&request.key, request.if_revision, current)?;
        world.revision += 1;
        let revision = world.revision;
        let entry = StorageEntry {
            key: request.key,
            value: request.value,
            revision,
            updated_at: Some(SystemTime::now().into()),
            ..Default::default()
        };
        let created = world.storage.insert(place, entry).is_none();
        Ok(Response::new(StorageSetResponse { revision, created }))
    }

    async fn delete(
        &self,
        request: Request<StorageDeleteRequest>,
    ) -> Result<Response<StorageDeleteResponse>, Status> {
        let request = request.into_inner();
        let place = (request.namespace, request.key.clone());
        let mut world = self.world.lock();
        let current = world.storage.get(&place).map_or(0, |entry| entry.revision);
        check_revision(&request.key, request.if_revision, current)?;
        let existed = world.storage.remove(&place).is_some();
        world.revision += u64::from(existed);
        let revision = world.revision;
        Ok(Response::new(StorageDeleteResponse { existed, revision }))
    }

    async fn apply(
        &self,
        _request: Request<StorageApplyRequest>,
    ) -> Result<Response<StorageApplyResponse>, Status> {
        Err(Status::unimplemented("corectl writes one by one"))
    }

    async fn list_keys(
        &self,
        request: Request<StorageListKeysRequest>,
    ) -> Result<Response<StorageListKeysResponse>, Status> {
        let request = request.into_inner();
        let entries = self.entries(&request.namespace, &request.prefix);
        let (entries, next_page_token) = page(&entries, &request.page_token)?;
        Ok(Response::new(StorageListKeysResponse {
            keys: entries.into_iter().map(|entry| entry.key).collect(),
            next_page_token,
            revision: self.world.lock().revision,
        }))
    }

    async fn scan(
        &self,
        request: Request<StorageScanRequest>,
    ) -> Result<Response<StorageScanResponse>, Status> {
        let request = request.into_inner();
        let entries = self.entries(&request.namespace, &request.prefix);
        let (entries, next_page_token) = page(&entries, &request.page_token)?;
        Ok(Response::new(StorageScanResponse {
            entries,
            next_page_token,
            revision: self.world.lock().revision,
        }))
    }

    type WatchStream = Answers<StorageWatchResponse>;

    /// Tells what is there, then one put and one removal, and is silent.
    async fn watch(
        &self,
        request: Request<StorageWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use core_proto::v1::storage_change::Kind;
        let request = request.into_inner();
        let change = |kind: Kind, entry: StorageEntry| StorageChange {
            kind: kind.into(),
            entry: Some(entry),
            conflated: kind == Kind::Put,
        };
        let entries = self.entries(&request.namespace, "");
        let initial = entries.iter().cloned();
        let snapshot = StorageWatchResponse {
            changes: initial.map(|entry| change(Kind::Initial, entry)).collect(),
            snapshot_end: true,
            cursor: Some(StorageCursor {
                epoch: 1,
                revision: 7,
            }),
        };
        let later = entries.first().cloned().unwrap_or_default();
        let gone = StorageEntry {
            key: later.key.clone(),
            revision: 9,
            ..Default::default()
        };
        let later = StorageWatchResponse {
            changes: vec![change(Kind::Put, later), change(Kind::Expired, gone)],
            ..Default::default()
        };
        let told = tokio_stream::iter([snapshot, later]).map(Ok);
        Ok(Response::new(Box::pin(told.chain(tokio_stream::pending()))))
    }

    async fn usage(
        &self,
        request: Request<StorageUsageRequest>,
    ) -> Result<Response<StorageUsageResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let keys = self.entries(&namespace, "").len() as u64;
        Ok(Response::new(StorageUsageResponse {
            usage: Some(StorageNamespaceUsage {
                namespace,
                keys,
                bytes: 100 * keys,
                max_keys: 100_000,
                max_bytes: 64 << 20,
                owner: None,
            }),
        }))
    }
}

impl Shared {
    fn entries(&self, namespace: &str, prefix: &str) -> Vec<StorageEntry> {
        let world = self.world.lock();
        let entries = world
            .storage
            .iter()
            .filter(|((place, key), _)| place == namespace && key.starts_with(prefix));
        entries.map(|(_, entry)| entry.clone()).collect()
    }
}
