//! `PluginManager`.

use std::time::Duration;

use core_proto::servers::plugin_manager_server;
use core_proto::v1;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::convert::{BadField, page_size, plugins, time, up_to_page_bytes};
use super::{gate, status};
use crate::error::Failure;
use crate::plugin_manager::{Error, PluginInfo, PluginManager, WatchItem};
use crate::security::{self, Caller};
use crate::supervisor::output::{Level, LogQuery};
use crate::task::TaskScope;
use crate::types::{PluginName, Source};

/// Deadline of a lifecycle request that gives none: the longest start and the longest stop, and some.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Records of one message of `Logs`.
const RECORDS_AT_ONCE: usize = 100;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) manager: PluginManager,
    pub(super) scope: TaskScope,
}

impl Api {
    fn result((info, result): (PluginInfo, Result<(), Error>)) -> v1::PluginResult {
        v1::PluginResult {
            plugin: Some(plugins::info(info)),
            error: result.err().map(|error| status::body(&error.into())),
        }
    }
}

fn deadline(caller: &Caller) -> Instant {
    caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT)
}

/// A plugin may ask about itself.
fn own_or_operator(caller: &Caller, name: &str) -> Result<(), Failure> {
    match &caller.source {
        Source::Plugin(plugin) if plugin.as_str() != name => {
            let error = security::Error::NotAllowed {
                method: "PluginManager/Get of another plugin".to_owned(),
                caller: format!("plugin \"{plugin}\""),
                advice: "",
            };
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// The lifecycle requests differ in their names only.
macro_rules! lifecycle {
    ($this:ident, $request:ident, $verb:ident, $response:ident) => {{
        let caller = gate::caller(&$request)?;
        let name = $request.into_inner().name;
        let reached = $this.manager.$verb(&name, deadline(&caller)).await;
        let info = reached.map_err(status::from_failure)?;
        Ok(Response::new(v1::$response {
            plugin: Some(plugins::info(info)),
        }))
    }};
}

#[tonic::async_trait]
impl plugin_manager_server::PluginManager for Api {
    async fn list(
        &self,
        request: Request<v1::PluginManagerListRequest>,
    ) -> Result<Response<v1::PluginManagerListResponse>, Status> {
        let request = request.into_inner();
        let page = || {
            let limit = page_size(request.page_size, 1_000)?;
            let after = request.page_token.as_str();
            if !after.is_empty() && PluginName::parse(after).is_err() {
                return Err(BadField::PageToken);
            }
            let mut plugins = self.manager.list();
            plugins.retain(|info| info.name.as_str() > after);
            let found = plugins.len();
            plugins.truncate(limit);
            let plugins = up_to_page_bytes(plugins.into_iter().map(plugins::info));
            let last = plugins.last().filter(|_| found > plugins.len());
            let next_page_token = last.map(|info| info.name.clone()).unwrap_or_default();
            Ok(v1::PluginManagerListResponse {
                plugins,
                next_page_token,
            })
        };
        page().map(Response::new).map_err(status::from_failure)
    }

    async fn get(
        &self,
        request: Request<v1::PluginManagerGetRequest>,
    ) -> Result<Response<v1::PluginManagerGetResponse>, Status> {
        let caller = gate::caller(&request)?;
        let name = request.into_inner().name;
        own_or_operator(&caller, &name).map_err(status::from_failure)?;
        let info = self.manager.get(&name).map_err(status::from_failure)?;
        Ok(Response::new(v1::PluginManagerGetResponse {
            plugin: Some(plugins::info(info)),
        }))
    }

    async fn load(
        &self,
        request: Request<v1::PluginManagerLoadRequest>,
    ) -> Result<Response<v1::PluginManagerLoadResponse>, Status> {
        lifecycle!(self, request, load, PluginManagerLoadResponse)
    }

    async fn start(
        &self,
        request: Request<v1::PluginManagerStartRequest>,
    ) -> Result<Response<v1::PluginManagerStartResponse>, Status> {
        lifecycle!(self, request, start, PluginManagerStartResponse)
    }

    async fn stop(
        &self,
        request: Request<v1::PluginManagerStopRequest>,
    ) -> Result<Response<v1::PluginManagerStopResponse>, Status> {
        lifecycle!(self, request, stop, PluginManagerStopResponse)
    }

    async fn unload(
        &self,
        request: Request<v1::PluginManagerUnloadRequest>,
    ) -> Result<Response<v1::PluginManagerUnloadResponse>, Status> {
        lifecycle!(self, request, unload, PluginManagerUnloadResponse)
    }

    async fn restart(
        &self,
        request: Request<v1::PluginManagerRestartRequest>,
    ) -> Result<Response<v1::PluginManagerRestartResponse>, Status> {
        lifecycle!(self, request, restart, PluginManagerRestartResponse)
    }

    async fn start_all(
        &self,
        request: Request<v1::PluginManagerStartAllRequest>,
    ) -> Result<Response<v1::PluginManagerStartAllResponse>, Status> {
        let caller = gate::caller(&request)?;
        let results = self
            .manager
            .start_all(deadline(&caller))
            .await
            .map_err(status::from_failure)?;
        let results = results.into_iter().map(Self::result).collect();
        Ok(Response::new(v1::PluginManagerStartAllResponse { results }))
    }

    async fn stop_all(
        &self,
        request: Request<v1::PluginManagerStopAllRequest>,
    ) -> Result<Response<v1::PluginManagerStopAllResponse>, Status> {
        let caller = gate::caller(&request)?;
        let results = self
            .manager
            .stop_all(deadline(&caller))
            .await
            .map_err(status::from_failure)?;
        let results = results.into_iter().map(Self::result).collect();
        Ok(Response::new(v1::PluginManagerStopAllResponse { results }))
    }

    type WatchStream = super::ResponseStream<v1::PluginManagerWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::PluginManagerWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use v1::plugin_manager_watch_response::Item;
        let caller = gate::caller(&request)?;
        let names = request.into_inner().names;
        let wanted = move |info: &PluginInfo| {
            names.is_empty() || names.iter().any(|name| name == info.name.as_str())
        };
        let items = self.manager.watch().filter_map(move |item| {
            let item = match item {
                WatchItem::Plugin(info) if wanted(&info) => {
                    Some(Item::Plugin(plugins::info(*info)))
                }
                WatchItem::Plugin(_) => None,
                WatchItem::SnapshotEnd => Some(Item::SnapshotEnd(true)),
            };
            let response = |item| Ok(v1::PluginManagerWatchResponse { item: Some(item) });
            std::future::ready(item.map(response))
        });
        Ok(Response::new(super::stream(items, &caller, &self.scope)))
    }

    type LogsStream = super::ResponseStream<v1::PluginManagerLogsResponse>;

    async fn logs(
        &self,
        request: Request<v1::PluginManagerLogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let caller = gate::caller(&request)?;
        let request = request.into_inner();
        let open = || {
            let level = match request.level.as_str() {
                "" => None,
                word => Some(Level::parse(word).ok_or_else(|| BadField::Malformed {
                    field: "level",
                    why: format!("\"{word}\" is none of trace, debug, info, warn, error"),
                })?),
            };
            let query = LogQuery {
                follow: request.follow,
                since: request
                    .since
                    .map(|since| time("since", since))
                    .transpose()?,
                level,
                tail: request.tail as usize,
            };
            Ok::<_, Failure>(self.manager.logs(&request.name, query)?)
        };
        let records = open().map_err(status::from_failure)?;
        let batches = records.ready_chunks(RECORDS_AT_ONCE).map(|records| {
            let records = records.into_iter().map(plugins::log_record).collect();
            Ok(v1::PluginManagerLogsResponse { records })
        });
        Ok(Response::new(super::stream(batches, &caller, &self.scope)))
    }
}
