//! `PluginManager`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use core_proto::servers::plugin_manager_server;
use core_proto::v1;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::convert::{BadField, page_size, plugins, time, up_to_page_bytes};
use super::{gate, status};
use crate::channel::Run;
use crate::config::Manage;
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::plugin_manager::{Error, PluginInfo, PluginKind, PluginManager, WatchItem};
use crate::security::audit::Record;
use crate::security::{self, Audit, Caller, Gatekeeper, NotGranted, Read};
use crate::supervisor::output::{Level, LogQuery, Verbosity};
use crate::task::TaskScope;
use crate::telemetry::logging;
use crate::types::{PluginName, Source};

/// Deadline of a lifecycle request that gives none: the longest start and the longest stop, and some.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Deadline of an upgrade that gives none.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(300);
/// The name under which `SetLogLevel` means the core; no plugin can have it.
const CORE: &str = "core";
/// Records of one message of `Logs`.
const RECORDS_AT_ONCE: usize = 100;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) manager: PluginManager,
    pub(super) audit: Audit,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) reload: super::Reload,
    pub(super) upgrade: super::Upgrade,
    pub(super) scope: TaskScope,
    /// The core's own log, where it is the core's.
    pub(super) log: Option<logging::Control>,
}

impl Api {
    fn result((info, result): (PluginInfo, Result<(), Error>)) -> v1::PluginResult {
        v1::PluginResult {
            plugin: Some(plugins::info(info)),
            error: result.err().map(|error| status::body(&error.into())),
        }
    }
}

impl Api {
    /// The run whose lines are sent. What a child writes is read anyway: it may not be told twice.
    fn pusher(&self, caller: &Caller) -> Result<Arc<Run>, Failure> {
        let refused = |caller: String| security::Error::NotAllowed {
            method: "PluginManager/PushLogs".to_owned(),
            caller,
            advice: "; what a child process writes to stdout and stderr is read by the core",
        };
        let Some(run) = &caller.run else {
            return Err(refused(caller.source.as_str().to_owned()).into());
        };
        if self.manager.get(run.plugin().as_str())?.kind == PluginKind::Process {
            return Err(refused(format!("child process \"{}\"", run.plugin())).into());
        }
        Ok(Arc::clone(run))
    }

    /// A plugin may ask about itself, and about all with `plugins.view`.
    fn may_see(&self, caller: &Caller, name: &str) -> Result<(), Failure> {
        match &caller.source {
            Source::Plugin(plugin)
                if plugin.as_str() != name
                    && !self.gatekeeper.may_manage(plugin, Manage::ViewPlugins) =>
            {
                let error = security::Error::NotManaging(Box::new(NotGranted::of_management(
                    plugin,
                    "PluginManager/Get of another plugin",
                    Manage::ViewPlugins,
                )));
                Err(error.into())
            }
            _ => Ok(()),
        }
    }

    /// Notes what is about to be done. What is asked for of a name that nobody knows changes nothing.
    fn note(&self, caller: &Caller, action: &str, name: &str, resource: &str) {
        if name.is_empty() || self.manager.get(name).is_ok() {
            self.audit.note_allowed(caller, action, name, resource);
        }
    }

    fn core_level(&self, level: Option<&str>) -> Result<String, Failure> {
        let Some(log) = &self.log else {
            return Err(CoreLogShared.into());
        };
        if let Some(filter) = level {
            log.set(filter).map_err(|error| BadField::Malformed {
                field: "level",
                why: crate::error::chain(&error),
            })?;
            tracing::info!(level = log.filter(), "the log level was set");
        }
        Ok(log.filter())
    }
}

/// The core's log is not the core's.
#[derive(Debug, thiserror::Error)]
#[error(
    "this core is embedded: it writes to the log of the program around it, with the level of that"
)]
struct CoreLogShared;

impl Classify for CoreLogShared {
    fn kind(&self) -> ErrorKind {
        ErrorKind::FailedPrecondition
    }

    fn reason(&self) -> Reason {
        Reason::LogShared
    }
}

fn verbosity(word: &str) -> Result<Verbosity, BadField> {
    Verbosity::parse(word).ok_or_else(|| BadField::Malformed {
        field: "level",
        why: format!("\"{word}\" is none of off, error, warn, info, debug, trace"),
    })
}

fn deadline(caller: &Caller) -> Instant {
    caller
        .deadline
        .unwrap_or_else(|| Instant::now() + DEFAULT_TIMEOUT)
}

/// The lifecycle requests differ in their names only.
macro_rules! lifecycle {
    ($this:ident, $request:ident, $verb:ident, $action:literal, $response:ident) => {{
        let caller = gate::caller(&$request)?;
        let name = $request.into_inner().name;
        $this.note(&caller, $action, &name, "");
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
        self.may_see(&caller, &name).map_err(status::from_failure)?;
        let info = self.manager.get(&name).map_err(status::from_failure)?;
        let mut info = plugins::info(info);
        let crashes = self.manager.crash_reports(&name);
        info.crash_reports =
            up_to_page_bytes(crashes.iter().map(|report| plugins::crash_report(report)));
        Ok(Response::new(v1::PluginManagerGetResponse {
            plugin: Some(info),
        }))
    }

    async fn load(
        &self,
        request: Request<v1::PluginManagerLoadRequest>,
    ) -> Result<Response<v1::PluginManagerLoadResponse>, Status> {
        lifecycle!(
            self,
            request,
            load,
            "PluginManager/Load",
            PluginManagerLoadResponse
        )
    }

    async fn start(
        &self,
        request: Request<v1::PluginManagerStartRequest>,
    ) -> Result<Response<v1::PluginManagerStartResponse>, Status> {
        lifecycle!(
            self,
            request,
            start,
            "PluginManager/Start",
            PluginManagerStartResponse
        )
    }

    async fn stop(
        &self,
        request: Request<v1::PluginManagerStopRequest>,
    ) -> Result<Response<v1::PluginManagerStopResponse>, Status> {
        lifecycle!(
            self,
            request,
            stop,
            "PluginManager/Stop",
            PluginManagerStopResponse
        )
    }

    async fn unload(
        &self,
        request: Request<v1::PluginManagerUnloadRequest>,
    ) -> Result<Response<v1::PluginManagerUnloadResponse>, Status> {
        lifecycle!(
            self,
            request,
            unload,
            "PluginManager/Unload",
            PluginManagerUnloadResponse
        )
    }

    async fn restart(
        &self,
        request: Request<v1::PluginManagerRestartRequest>,
    ) -> Result<Response<v1::PluginManagerRestartResponse>, Status> {
        lifecycle!(
            self,
            request,
            restart,
            "PluginManager/Restart",
            PluginManagerRestartResponse
        )
    }

    async fn start_all(
        &self,
        request: Request<v1::PluginManagerStartAllRequest>,
    ) -> Result<Response<v1::PluginManagerStartAllResponse>, Status> {
        let caller = gate::caller(&request)?;
        self.note(&caller, "PluginManager/StartAll", "", "");
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
        self.note(&caller, "PluginManager/StopAll", "", "");
        let results = self
            .manager
            .stop_all(deadline(&caller))
            .await
            .map_err(status::from_failure)?;
        let results = results.into_iter().map(Self::result).collect();
        Ok(Response::new(v1::PluginManagerStopAllResponse { results }))
    }

    async fn reload(
        &self,
        request: Request<v1::PluginManagerReloadRequest>,
    ) -> Result<Response<v1::PluginManagerReloadResponse>, Status> {
        // Whoever asks may go away: what was begun goes on in the worker.
        let work = async |caller: Caller, _| {
            self.note(&caller, "PluginManager/Reload", "", "");
            let asked = Record::of(&caller, "reload", "", "");
            Ok(plugins::reloaded((self.reload)(asked).await?))
        };
        super::unary(request, work).await
    }

    async fn upgrade(
        &self,
        request: Request<v1::PluginManagerUpgradeRequest>,
    ) -> Result<Response<v1::PluginManagerUpgradeResponse>, Status> {
        let caller = gate::caller(&request)?;
        let deadline = caller
            .deadline
            .unwrap_or_else(|| Instant::now() + UPGRADE_TIMEOUT);
        let request = request.into_inner();
        let path = PathBuf::from(request.path);
        if !path.is_absolute() {
            let why = "it is to be an absolute path on the core's machine".to_owned();
            let bad = BadField::Malformed { field: "path", why };
            return Err(status::from_failure(bad));
        }
        let shown = path.display().to_string();
        self.note(&caller, "PluginManager/Upgrade", &request.name, &shown);
        let upgraded = (self.upgrade)(request.name, path, deadline).await;
        let info = upgraded.map_err(status::from_failure)?;
        Ok(Response::new(v1::PluginManagerUpgradeResponse {
            plugin: Some(plugins::info(info)),
        }))
    }

    type WatchStream = super::ResponseStream<v1::PluginManagerWatchResponse>;

    async fn watch(
        &self,
        request: Request<v1::PluginManagerWatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use v1::plugin_manager_watch_response::Item;
        let caller = gate::caller(&request)?;
        let names = request.into_inner().names;
        let listed = move |plugin: &PluginName| {
            names.is_empty() || names.iter().any(|name| name == plugin.as_str())
        };
        let items = self.manager.watch().filter_map(move |item| {
            let item = match item {
                WatchItem::Plugin(info) if listed(&info.name) => {
                    Some(Item::Plugin(plugins::info(*info)))
                }
                WatchItem::Plugin(_) => None,
                WatchItem::SnapshotEnd => Some(Item::SnapshotEnd(true)),
                WatchItem::Removed(name) if listed(&name) => Some(Item::Removed(name.to_string())),
                WatchItem::Removed(_) => None,
            };
            let response = |item| Ok(v1::PluginManagerWatchResponse { item: Some(item) });
            std::future::ready(item.map(response))
        });
        let read = Read::Management("PluginManager/Watch", Manage::ViewPlugins);
        let lost = self.gatekeeper.loses(&caller, [read]);
        let items = super::granted_stream(items, &caller, &self.scope, lost);
        Ok(Response::new(items))
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
        let read = Read::Management("PluginManager/Logs", Manage::ReadLogs);
        let lost = self.gatekeeper.loses(&caller, [read]);
        let batches = super::granted_stream(batches, &caller, &self.scope, lost);
        Ok(Response::new(batches))
    }

    async fn push_logs(
        &self,
        request: Request<Streaming<v1::PluginManagerPushLogsRequest>>,
    ) -> Result<Response<v1::PluginManagerPushLogsResponse>, Status> {
        let caller = gate::caller(&request)?;
        let run = self.pusher(&caller).map_err(status::from_failure)?;
        let ended = super::ended(&caller, &self.scope);
        let mut batches = request.into_inner();
        let mut answer = v1::PluginManagerPushLogsResponse::default();
        let take = async {
            while let Some(batch) = batches.message().await? {
                let records = batch.records.into_iter().map(plugins::pushed);
                let taken = self.manager.push_logs(&run, records);
                let (accepted, suppressed) = taken.map_err(status::from_failure)?;
                answer.accepted += accepted;
                answer.suppressed += suppressed.lines;
            }
            Ok::<(), Status>(())
        };
        tokio::select! {
            taken = take => taken?,
            failure = ended => return Err(status::from_failure(failure)),
        }
        Ok(Response::new(answer))
    }

    async fn set_log_level(
        &self,
        request: Request<v1::PluginManagerSetLogLevelRequest>,
    ) -> Result<Response<v1::PluginManagerSetLogLevelResponse>, Status> {
        super::unary(request, async |caller, request| {
            if let Some(level) = &request.level {
                let action = "PluginManager/SetLogLevel";
                match request.name.as_str() {
                    CORE => self.note(&caller, action, "", &format!("{CORE} {level}")),
                    name => self.note(&caller, action, name, level),
                }
            }
            let level = if request.name == CORE {
                self.core_level(request.level.as_deref())?
            } else {
                let level = request.level.as_deref().map(verbosity).transpose()?;
                let level = self.manager.set_log_level(&request.name, level).await?;
                level.as_str().to_owned()
            };
            Ok(v1::PluginManagerSetLogLevelResponse { level })
        })
        .await
    }
}
