//! `StateEngine`.

use core_proto::servers::state_engine_server;
use core_proto::v1;
use futures_util::StreamExt as _;
use tonic::{Request, Response, Status};

use super::convert::{BadField, duration, events, page_size, state};
use super::{gate, status, unary};
use crate::config::Quota;
use crate::error::Failure;
use crate::security::{Action, Caller, Gatekeeper, Read};
use crate::state_engine::{SetOptions, StateEngine, WatchItem, WatchRequest};
use crate::task::TaskScope;
use crate::types::{Revision, StateKey};

/// Keys that are looked at in one go, whatever the page: whose they are is judged without the lock.
const KEYS_AT_ONCE: usize = 256;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) state: StateEngine,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) scope: TaskScope,
    pub(super) max_watches: usize,
}

impl Api {
    pub(super) fn get(
        &self,
        caller: &Caller,
        request: &v1::StateEngineGetRequest,
    ) -> Result<v1::StateEngineGetResponse, Failure> {
        let key = StateKey::parse(&request.key).map_err(BadField::from)?;
        self.gatekeeper
            .authorize(caller, Action::ReadState(key.as_str()))?;
        let entry = self.state.get(&key).as_ref().map(state::entry);
        Ok(v1::StateEngineGetResponse { entry })
    }

    pub(super) fn set(
        &self,
        caller: &Caller,
        request: v1::StateEngineSetRequest,
    ) -> Result<v1::StateEngineSetResponse, Failure> {
        let key = self.writable(caller, &request.key)?;
        let owner = match (&caller.run, request.owned) {
            (_, false) => None,
            (Some(run), true) => Some(run),
            (None, true) => {
                let why = "only the run of a plugin owns keys".to_owned();
                return Err(BadField::Malformed {
                    field: "owned",
                    why,
                }
                .into());
            }
        };
        let options = SetOptions {
            if_revision: request.if_revision.map(Revision),
            ttl: duration("ttl", request.ttl)?,
            owner: owner.map(|run| run.id().clone()),
            cause: caller.cause,
        };
        let receipt = self
            .state
            .set_with(&caller.source, &key, request.value, options)?;
        // The end of the run may have been told just before.
        if let Some(run) = owner.filter(|run| run.ended().is_cancelled()) {
            self.state.end_run(run.id());
        }
        Ok(v1::StateEngineSetResponse {
            revision: receipt.revision.0,
            changed: receipt.changed,
        })
    }

    pub(super) fn delete(
        &self,
        caller: &Caller,
        request: &v1::StateEngineDeleteRequest,
    ) -> Result<v1::StateEngineDeleteResponse, Failure> {
        let key = self.writable(caller, &request.key)?;
        let if_revision = request.if_revision.map(Revision);
        let receipt = self
            .state
            .delete(&caller.source, &key, if_revision, caller.cause)?;
        Ok(v1::StateEngineDeleteResponse {
            existed: receipt.existed,
        })
    }

    fn writable(&self, caller: &Caller, key: &str) -> Result<StateKey, Failure> {
        caller.meter.charge(&[(Quota::StateWritesPerSecond, 1)])?;
        let key = StateKey::parse(key).map_err(BadField::from)?;
        self.gatekeeper
            .authorize(caller, Action::WriteState(key.as_str()))?;
        Ok(key)
    }

    /// Entries that the caller may not read are left out, and no token names one: a page may so be short.
    pub(super) fn list(
        &self,
        caller: &Caller,
        request: &v1::StateEngineListRequest,
    ) -> Result<v1::StateEngineListResponse, Failure> {
        let limit = page_size(request.page_size, 100)?;
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        let belongs =
            |token: &str| StateKey::parse(token).is_ok() && token.starts_with(&request.prefix);
        if after.is_some_and(|token| !belongs(token)) {
            return Err(BadField::PageToken.into());
        }
        let readable = |key: &StateKey| {
            self.gatekeeper
                .may(&caller.source, Action::ReadState(key.as_str()))
        };
        let mut after = after.map(str::to_owned);
        loop {
            // As many at once as make passing over those of others cheap.
            let looked_at = limit.max(KEYS_AT_ONCE);
            let page = self
                .state
                .list(&request.prefix, after.as_deref(), looked_at);
            let mut found = page.entries.iter().filter(|entry| readable(&entry.key));
            let entries: Vec<_> = found.by_ref().take(limit).map(state::entry).collect();
            let is_more = page.more_after.is_some() || found.next().is_some();
            let last = entries
                .last()
                .map(|entry: &v1::StateEntry| entry.key.clone());
            match (last, page.more_after) {
                (None, Some(more)) => after = Some(more.to_string()),
                (last, _) => {
                    return Ok(v1::StateEngineListResponse {
                        next_page_token: last.filter(|_| is_more).unwrap_or_default(),
                        revision: page.revision.0,
                        entries,
                    });
                }
            }
        }
    }
}

#[tonic::async_trait]
impl state_engine_server::StateEngine for Api {
    async fn get(
        &self,
        request: Request<v1::StateEngineGetRequest>,
    ) -> Result<Response<v1::StateEngineGetResponse>, Status> {
        unary(request, async |caller, message| self.get(&caller, &message)).await
    }

    async fn set(
        &self,
        request: Request<v1::StateEngineSetRequest>,
    ) -> Result<Response<v1::StateEngineSetResponse>, Status> {
        unary(request, async |caller, message| self.set(&caller, message)).await
    }

    async fn delete(
        &self,
        request: Request<v1::StateEngineDeleteRequest>,
    ) -> Result<Response<v1::StateEngineDeleteResponse>, Status> {
        unary(request, async |caller, message| {
            self.delete(&caller, &message)
        })
        .await
    }

    async fn list(
        &self,
        request: Request<v1::StateEngineListRequest>,
    ) -> Result<Response<v1::StateEngineListResponse>, Status> {
        unary(request, async |caller, message| {
            self.list(&caller, &message)
        })
        .await
    }

    type WatchStream = super::ResponseStream<v1::StateEngineWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::StateEngineWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = gate::caller(&request)?;
        let mut watched = Vec::new();
        let mut open = |message: v1::StateEngineWatchRequest| {
            let patterns = events::patterns(&message.patterns)?;
            watched.clone_from(&patterns);
            for pattern in &patterns {
                self.gatekeeper
                    .authorize(&caller, Action::WatchState(pattern))?;
            }
            let request = WatchRequest {
                watcher: caller.source.clone(),
                patterns,
                include_initial: message.include_initial,
                include_reports: message.include_reports,
            };
            let place = super::place_for_watch(&caller, self.max_watches)?;
            Ok::<_, Failure>((self.state.watch(request)?, place))
        };
        let (watch, place) = open(request.into_inner()).map_err(status::from_failure)?;
        let items = watch.map(move |item| {
            let _held = &place;
            let item = item.map_err(Failure::from);
            item.map(|item| match item {
                WatchItem::Changes(changes) => v1::StateEngineWatchResponse {
                    changes: changes.iter().map(state::change).collect(),
                    ..v1::StateEngineWatchResponse::default()
                },
                WatchItem::SnapshotEnd(revision) => v1::StateEngineWatchResponse {
                    snapshot_end: true,
                    revision: revision.0,
                    ..v1::StateEngineWatchResponse::default()
                },
            })
        });
        let lost = self
            .gatekeeper
            .loses(&caller, watched.into_iter().map(Read::State));
        let items = super::granted_stream(items, &caller, &self.scope, lost);
        Ok(Response::new(items))
    }
}
