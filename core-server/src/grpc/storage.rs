//! `Storage`.
//!
//! Writes join the storage's queue when the handler is first polled, before anything is awaited: the
//! order in which a channel's requests are polled is the order of their writes.

use core_proto::servers::storage_server;
use core_proto::v1;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::convert::storage::{cursor_from, entry, usage, watch_item};
use super::convert::{BadField, duration};
use super::{DEFAULT_TIMEOUT, event_bus, gate, status, unary};
use crate::config::Quota;
use crate::error::Failure;
use crate::security::{Action, Caller, Gatekeeper, Read};
use crate::storage::{
    Apply, Change, Check, Direction, Key, MAX_GET_KEYS, MAX_OPS, MAX_PAGE_SIZE, Namespace, Op,
    Query, Storage, WatchItem, WatchRequest, What,
};
use crate::task::TaskScope;
use crate::types::Revision;

/// Most events of one `Apply`.
const MAX_APPLY_EVENTS: usize = 16;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) storage: Storage,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) events: event_bus::Api,
    pub(super) scope: TaskScope,
    pub(super) max_watches: usize,
}

fn deadline(caller: &Caller) -> Instant {
    caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT)
}

impl Api {
    fn readable(&self, caller: &Caller, namespace: &str, reads: u64) -> Result<Namespace, Failure> {
        caller
            .meter
            .charge(&[(Quota::StorageReadsPerSecond, reads)])?;
        let namespace = Namespace::parse(namespace)?;
        self.gatekeeper
            .authorize(caller, Action::ReadStorage(namespace.as_str()))?;
        Ok(namespace)
    }

    /// As it is asked for `writes` keys and so many bytes of values, and for events with them.
    fn writable(
        &self,
        caller: &Caller,
        namespace: &str,
        (writes, value_bytes): (usize, usize),
        events: &[v1::NewEvent],
    ) -> Result<Namespace, Failure> {
        let bytes = events.iter().map(|event| event.data.len()).sum();
        let [events, bytes] = event_bus::cost_of(events.len(), bytes);
        let writes = (Quota::StorageWritesPerSecond, writes as u64);
        let values = (Quota::StorageWriteBytesPerSecond, value_bytes as u64);
        caller.meter.charge(&[writes, values, events, bytes])?;
        let namespace = Namespace::parse(namespace)?;
        self.gatekeeper
            .authorize(caller, Action::WriteStorage(namespace.as_str()))?;
        Ok(namespace)
    }

    pub(super) async fn get(
        &self,
        caller: &Caller,
        request: v1::StorageGetRequest,
    ) -> Result<v1::StorageGetResponse, Failure> {
        let namespace = self.readable(caller, &request.namespace, 1)?;
        let found = self
            .storage
            .get(&namespace, &Key::parse(&request.key)?)
            .await?;
        Ok(v1::StorageGetResponse {
            entry: found.map(entry),
        })
    }

    pub(super) async fn get_many(
        &self,
        caller: &Caller,
        request: v1::StorageGetManyRequest,
    ) -> Result<v1::StorageGetManyResponse, Failure> {
        // What is too much is refused later, and costs no more than what is allowed.
        let reads = request.keys.len().clamp(1, MAX_GET_KEYS) as u64;
        let namespace = self.readable(caller, &request.namespace, reads)?;
        let keys = request
            .keys
            .iter()
            .map(|key| Key::parse(key))
            .collect::<Result<Vec<_>, _>>()?;
        let snapshot = self.storage.get_many(&namespace, &keys).await?;
        Ok(v1::StorageGetManyResponse {
            entries: snapshot.entries.into_iter().map(entry).collect(),
            revision: snapshot.revision.0,
        })
    }

    pub(super) async fn set(
        &self,
        caller: &Caller,
        request: v1::StorageSetRequest,
    ) -> Result<v1::StorageSetResponse, Failure> {
        let cost = (1, request.value.len());
        let namespace = self.writable(caller, &request.namespace, cost, &[])?;
        let key = Key::parse(&request.key)?;
        let if_revision = request.if_revision.map(Revision);
        let written = self
            .storage
            .set_for(
                &namespace,
                key,
                request.value,
                duration("ttl", request.ttl)?,
                if_revision,
                deadline(caller),
            )
            .await?;
        Ok(v1::StorageSetResponse {
            revision: written.revision.0,
            created: written.created,
        })
    }

    pub(super) async fn delete(
        &self,
        caller: &Caller,
        request: v1::StorageDeleteRequest,
    ) -> Result<v1::StorageDeleteResponse, Failure> {
        let namespace = self.writable(caller, &request.namespace, (1, 0), &[])?;
        let key = Key::parse(&request.key)?;
        let if_revision = request.if_revision.map(Revision);
        let deleted = self
            .storage
            .delete(&namespace, key, if_revision, deadline(caller))
            .await?;
        Ok(v1::StorageDeleteResponse {
            existed: deleted.existed,
            revision: deleted.revision.0,
        })
    }

    pub(super) async fn apply(
        &self,
        caller: &Caller,
        request: v1::StorageApplyRequest,
    ) -> Result<v1::StorageApplyResponse, Failure> {
        // Each check is looked at by the writer, as each write is.
        let keys = request.ops.len().clamp(1, MAX_OPS) + request.checks.len().min(MAX_OPS);
        let cost = (keys, request.ops.iter().map(value_bytes).sum());
        let namespace = self.writable(caller, &request.namespace, cost, &request.events)?;
        let checks = request.checks.into_iter().map(|check| {
            Ok(Check {
                key: Key::parse(&check.key)?,
                revision: Revision(check.revision),
            })
        });
        let checks = checks.collect::<Result<Vec<_>, Failure>>()?;
        let ops = request.ops.into_iter().map(|op| match op.op {
            Some(v1::storage_op::Op::Set(set)) => {
                let op = Op::set(Key::parse(&set.key)?, set.value)?;
                Ok(op.lasting(duration("ttl", set.ttl)?))
            }
            Some(v1::storage_op::Op::Delete(delete)) => Ok(Op::Delete {
                key: Key::parse(&delete.key)?,
            }),
            None => Err(BadField::Missing { field: "ops.op" }.into()),
        });
        let ops = ops.collect::<Result<Vec<_>, Failure>>()?;
        if request.events.len() > MAX_APPLY_EVENTS {
            let why = format!("more than {MAX_APPLY_EVENTS} events");
            return Err(BadField::Malformed {
                field: "events",
                why,
            }
            .into());
        }
        // They wait with the write, so they are bounded like it.
        let bytes: usize = request.events.iter().map(|event| event.data.len()).sum();
        self.events.bus.check_batch(request.events.len(), bytes)?;
        // Judged before the commit: an event that could not be published must refuse the write, not
        // follow it as a surprise.
        let events = request
            .events
            .into_iter()
            .map(|event| self.events.check(caller, event));
        let events = events.collect::<Result<Vec<_>, Failure>>()?;
        let after_commit: Option<crate::storage::AfterCommit> = (!events.is_empty()).then(|| {
            let (bus, source) = (self.events.bus.clone(), caller.source.clone());
            let publish = move |_| {
                for event in events {
                    // Cannot fail: everything that `publish` refuses was judged above.
                    if let Err(error) = bus.publish(&source, event) {
                        tracing::error!(%error, "an event of a committed Apply was refused");
                    }
                }
            };
            Box::new(publish) as crate::storage::AfterCommit
        });
        let apply = Apply {
            namespace,
            checks,
            ops,
            after_commit,
            after_commit_bytes: bytes,
        };
        let applied = self.storage.apply(apply, deadline(caller)).await?;
        Ok(v1::StorageApplyResponse {
            revision: applied.revision.0,
            existed: applied.existed,
        })
    }

    pub(super) async fn list_keys(
        &self,
        caller: &Caller,
        request: v1::StorageListKeysRequest,
    ) -> Result<v1::StorageListKeysResponse, Failure> {
        let query = Query {
            namespace: self.readable(caller, &request.namespace, reads_of(request.page_size))?,
            prefix: request.prefix,
            start_after: request.start_after,
            direction: direction(request.reverse),
            page_size: request.page_size,
            page_token: request.page_token,
        };
        let page = self.storage.list_keys(query).await?;
        Ok(v1::StorageListKeysResponse {
            keys: page
                .items
                .iter()
                .map(|key| key.as_str().to_owned())
                .collect(),
            next_page_token: page.next_page_token,
            revision: page.revision.0,
        })
    }

    pub(super) async fn scan(
        &self,
        caller: &Caller,
        request: v1::StorageScanRequest,
    ) -> Result<v1::StorageScanResponse, Failure> {
        let query = Query {
            namespace: self.readable(caller, &request.namespace, reads_of(request.page_size))?,
            prefix: request.prefix,
            start_after: request.start_after,
            direction: direction(request.reverse),
            page_size: request.page_size,
            page_token: request.page_token,
        };
        let page = self.storage.scan(query).await?;
        Ok(v1::StorageScanResponse {
            entries: page.items.into_iter().map(entry).collect(),
            next_page_token: page.next_page_token,
            revision: page.revision.0,
        })
    }

    pub(super) async fn usage(
        &self,
        caller: &Caller,
        request: v1::StorageUsageRequest,
    ) -> Result<v1::StorageUsageResponse, Failure> {
        let namespace = self.readable(caller, &request.namespace, 1)?;
        let found = self.storage.usage(&namespace).await?;
        Ok(v1::StorageUsageResponse {
            usage: Some(usage(&found)),
        })
    }
}

/// What a page of this size costs.
fn reads_of(page_size: u32) -> u64 {
    reads_of_entries(u64::from(page_size).min(MAX_PAGE_SIZE as u64)).max(1)
}

/// Reading entries in a row is so much cheaper than one by one.
fn reads_of_entries(entries: u64) -> u64 {
    const ENTRIES_OF_ONE: u64 = 100;
    entries.div_ceil(ENTRIES_OF_ONE)
}

/// What is there when a watch begins costs as much as in pages that are asked for. Nobody asks for these: each
/// is told as soon as it is paid for.
async fn pay(caller: &Caller, item: &WatchItem) {
    let WatchItem::Changes(changes, _) = item else {
        return;
    };
    let is_initial = |change: &&Change| matches!(change.what, What::Initial(_));
    let entries = changes.iter().filter(is_initial).count();
    let reads = reads_of_entries(entries as u64);
    caller
        .meter
        .charge_in_time(Quota::StorageReadsPerSecond, reads)
        .await;
}

fn value_bytes(op: &v1::StorageOp) -> usize {
    match &op.op {
        Some(v1::storage_op::Op::Set(set)) => set.value.len(),
        Some(v1::storage_op::Op::Delete(_)) | None => 0,
    }
}

fn direction(reverse: bool) -> Direction {
    if reverse {
        Direction::Descending
    } else {
        Direction::Ascending
    }
}

#[tonic::async_trait]
impl storage_server::Storage for Api {
    async fn get(
        &self,
        request: Request<v1::StorageGetRequest>,
    ) -> Result<Response<v1::StorageGetResponse>, Status> {
        unary(request, async |caller, message| {
            self.get(&caller, message).await
        })
        .await
    }

    async fn get_many(
        &self,
        request: Request<v1::StorageGetManyRequest>,
    ) -> Result<Response<v1::StorageGetManyResponse>, Status> {
        unary(request, async |caller, message| {
            self.get_many(&caller, message).await
        })
        .await
    }

    async fn set(
        &self,
        request: Request<v1::StorageSetRequest>,
    ) -> Result<Response<v1::StorageSetResponse>, Status> {
        unary(request, async |caller, message| {
            self.set(&caller, message).await
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<v1::StorageDeleteRequest>,
    ) -> Result<Response<v1::StorageDeleteResponse>, Status> {
        unary(request, async |caller, message| {
            self.delete(&caller, message).await
        })
        .await
    }

    async fn apply(
        &self,
        request: Request<v1::StorageApplyRequest>,
    ) -> Result<Response<v1::StorageApplyResponse>, Status> {
        unary(request, async |caller, message| {
            self.apply(&caller, message).await
        })
        .await
    }

    async fn list_keys(
        &self,
        request: Request<v1::StorageListKeysRequest>,
    ) -> Result<Response<v1::StorageListKeysResponse>, Status> {
        unary(request, async |caller, message| {
            self.list_keys(&caller, message).await
        })
        .await
    }

    async fn scan(
        &self,
        request: Request<v1::StorageScanRequest>,
    ) -> Result<Response<v1::StorageScanResponse>, Status> {
        unary(request, async |caller, message| {
            self.scan(&caller, message).await
        })
        .await
    }

    async fn usage(
        &self,
        request: Request<v1::StorageUsageRequest>,
    ) -> Result<Response<v1::StorageUsageResponse>, Status> {
        unary(request, async |caller, message| {
            self.usage(&caller, message).await
        })
        .await
    }

    type WatchStream = super::ResponseStream<v1::StorageWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::StorageWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = gate::caller(&request)?;
        let open = |message: v1::StorageWatchRequest| {
            let request = WatchRequest {
                namespace: self.readable(&caller, &message.namespace, 1)?,
                prefixes: message.prefixes,
                from: message.from.map(cursor_from),
                include_initial: message.include_initial,
            };
            let read = Read::Storage(request.namespace.as_str().to_owned());
            let place = super::place_for_watch(&caller, self.max_watches)?;
            let watch = self.storage.watch_for(caller.source.as_str(), request)?;
            Ok::<_, Failure>(((watch, place), read))
        };
        let (opened, read) = open(request.into_inner()).map_err(status::from_failure)?;
        let opened = (opened, caller.clone());
        let items =
            futures_util::stream::try_unfold(opened, async |((mut watch, place), caller)| {
                let item = watch.next().await?;
                pay(&caller, &item).await;
                Ok(Some((watch_item(item), ((watch, place), caller))))
            });
        let lost = self.gatekeeper.loses(&caller, [read]);
        let items = super::granted_stream(items, &caller, &self.scope, lost);
        Ok(Response::new(items))
    }
}
