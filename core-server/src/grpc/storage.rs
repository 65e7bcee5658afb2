//! `Storage`.
//!
//! Writes join the storage's queue when the handler is first polled, before anything is awaited: the
//! order in which a channel's requests are polled is the order of their writes.

use core_proto::servers::storage_server;
use core_proto::v1;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::convert::{BadField, time_to_proto};
use super::{DEFAULT_TIMEOUT, event_bus, unary};
use crate::error::Failure;
use crate::security::{Action, Caller, Gatekeeper};
use crate::storage::{Apply, Check, Direction, Entry, Key, Namespace, Op, Query, Storage};
use crate::types::Revision;

/// Most events of one `Apply`.
const MAX_APPLY_EVENTS: usize = 16;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) storage: Storage,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) events: event_bus::Api,
}

fn entry(entry: Entry) -> v1::StorageEntry {
    v1::StorageEntry {
        key: entry.key.as_str().to_owned(),
        value: entry.value.into_bytes(),
        revision: entry.revision.0,
        updated_at: Some(time_to_proto(entry.updated_at)),
    }
}

fn deadline(caller: &Caller) -> Instant {
    caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT)
}

impl Api {
    fn readable(&self, caller: &Caller, namespace: &str) -> Result<Namespace, Failure> {
        let namespace = Namespace::parse(namespace)?;
        self.gatekeeper
            .authorize(&caller.source, Action::ReadStorage(namespace.as_str()))?;
        Ok(namespace)
    }

    fn writable(&self, caller: &Caller, namespace: &str) -> Result<Namespace, Failure> {
        let namespace = Namespace::parse(namespace)?;
        self.gatekeeper
            .authorize(&caller.source, Action::WriteStorage(namespace.as_str()))?;
        Ok(namespace)
    }

    pub(super) async fn get(
        &self,
        caller: &Caller,
        request: v1::StorageGetRequest,
    ) -> Result<v1::StorageGetResponse, Failure> {
        let namespace = self.readable(caller, &request.namespace)?;
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
        let namespace = self.readable(caller, &request.namespace)?;
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
        let namespace = self.writable(caller, &request.namespace)?;
        let key = Key::parse(&request.key)?;
        let if_revision = request.if_revision.map(Revision);
        let written = self
            .storage
            .set(
                &namespace,
                key,
                request.value,
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
        let namespace = self.writable(caller, &request.namespace)?;
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
        let namespace = self.writable(caller, &request.namespace)?;
        let checks = request.checks.into_iter().map(|check| {
            Ok(Check {
                key: Key::parse(&check.key)?,
                revision: Revision(check.revision),
            })
        });
        let checks = checks.collect::<Result<Vec<_>, Failure>>()?;
        let ops = request.ops.into_iter().map(|op| match op.op {
            Some(v1::storage_op::Op::Set(set)) => Ok(Op::set(Key::parse(&set.key)?, set.value)?),
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
            namespace: self.readable(caller, &request.namespace)?,
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
            namespace: self.readable(caller, &request.namespace)?,
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
}
