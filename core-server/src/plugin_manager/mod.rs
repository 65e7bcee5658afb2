//! Which plugins there are, what is wanted of each, and everything that brings them there.
//!
//! Owns: the manifests, the state of each plugin's lifecycle, runs and their beginnings and ends,
//! dependencies, the order of starting and stopping, admission of channels, what is `desired` (kept
//! over restarts of the core). Does not own: the rules of one life (`supervisor/`), channels and
//! calls (`channel/`, `routing/`), nor reading manifests (`config/`).
//!
//! One task, the [`Worker`], owns all of it. It learns of the world by bounded means only: a mailbox
//! of requests, whose senders wait; one place per run for what its channel reports (`reports`), so
//! that a plugin that sends without end harms nobody; and the reports of its own hosts. It never
//! waits for a plugin: what takes time is a task of its own, or a deadline.
//!
//! Invariants
//! - A plugin has at most one run, and the next one begins only when nothing is left of the process
//!   of the one before.
//! - A plugin begins only once all it requires is STARTED. A circle is refused with its path.
//! - Channels of ended runs, and replaced channels, change nothing.
//! - `Welcome` is the first frame of every channel.
//! - Shutdown ends by its deadline, whatever plugins do; what then still lives is named.
//!
//! Stopping: `shutdown` ends the plugins, dependents first, and refuses requests from its begin on.
//! The worker itself ends with its token; whatever child still lives is killed then.
//!
//! Limits: 4 plugins at once on their way from spawn to ready; 256 requests in the mailbox; 1,000
//! lines of output per plugin.

mod admission;
mod dependencies;
mod desired;
mod error;
mod info;
mod manifest;
mod operations;
mod perform;
mod plugin;
mod reports;
mod shutdown;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use core_proto::embed::EmbeddedPlugin;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::Stream;

use crate::channel::{ChannelId, Hello, Outbox, Run, Runs};
use crate::error::did_you_mean;
use crate::routing::Router;
use crate::security::{Credential, Credentials, Gatekeeper};
use crate::service_registry::ServiceRegistry;
use crate::supervisor::lifecycle::Request;
use crate::supervisor::output::{LogBook, LogQuery, LogRecord};
use crate::types::PluginName;

pub use dependencies::Graph;
pub use error::Error;
pub use info::{LastExit, PluginInfo, PluginKind, WatchItem};
pub use manifest::{Command, Kind, Manifest, OnLoss, RestartMode, RestartPolicy, Timeouts};
pub use shutdown::Report;
pub use worker::Worker;

use info::Board;
use reports::Reports;

/// Requests that wait for the worker.
const MAILBOX: usize = 256;

/// Settings of the plugin manager; the defaults are the design's.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where what is wanted is kept.
    pub data_dir: PathBuf,
    /// Keep what is wanted over restarts of the core.
    pub keep_desired: bool,
    /// Where children find the core: `CORE_ADDR`.
    pub core_address: String,
    /// This core's instance: `CORE_COOKIE` of its children.
    pub cookie: String,
    /// Time between pings.
    pub heartbeat: Duration,
    /// A channel from which nothing is read for so long is closed.
    pub stalled_after: Duration,
    /// Plugins at once on their way from spawn to ready.
    pub max_starting: usize,
    /// Calls at once, for a plugin that does not say.
    pub max_calls_in_flight: usize,
    /// Told to plugins: the largest message.
    pub max_message_bytes: usize,
    /// Told to plugins: the largest payload.
    pub max_payload_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("data"),
            keep_desired: true,
            core_address: String::new(),
            cookie: format!("{:032x}", rand::random::<u128>()),
            heartbeat: Duration::from_secs(5),
            stalled_after: Duration::from_secs(15),
            max_starting: 4,
            max_calls_in_flight: 256,
            max_message_bytes: core_proto::contract::MAX_MESSAGE_BYTES,
            max_payload_bytes: 256 << 10,
        }
    }
}

/// Who is told of plugins: the event bus and the state engine, connected by the runtime. Called from
/// the worker: an implementation hands over and returns.
pub trait Announcer: Send + Sync {
    /// A transition: `core.plugin.<topic>`, the plugin's name in `subject`, `details` as data.
    fn plugin_event(&self, topic: &'static str, plugin: &PluginName, details: serde_json::Value);

    /// The newest of a plugin: state key `core.plugin.<name>`.
    fn plugin_state(&self, info: &PluginInfo);

    /// Patterns that a plugin subscribes to now, for [`PluginInfo::subscriptions`]. May be called
    /// from any task.
    fn subscriptions(&self, plugin: &PluginName) -> Vec<String>;
}

/// Opens an in-memory connection to the core, for plugins inside its process.
pub type Connect = Arc<dyn Fn() -> io::Result<DuplexStream> + Send + Sync>;

/// What the plugin manager works with.
#[derive(Clone)]
pub struct Dependencies {
    /// The live runs; written by the plugin manager alone.
    pub runs: Runs,
    /// Services.
    pub registry: ServiceRegistry,
    /// Calls.
    pub router: Router,
    /// Credentials of runs and of remote plugins.
    pub credentials: Credentials,
    /// What plugins may do.
    pub gatekeeper: Gatekeeper,
    /// Who is told.
    pub announcer: Arc<dyn Announcer>,
    /// Plugins inside the core's process; their manifests are [`Kind::Embedded`].
    pub embedded: HashMap<PluginName, Arc<dyn EmbeddedPlugin>>,
    /// How those reach the core.
    pub connect: Connect,
}

impl fmt::Debug for Dependencies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Dependencies")
            .finish_non_exhaustive()
    }
}

/// An accepted channel.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its run.
    pub run: Arc<Run>,
    /// Its id.
    pub channel: ChannelId,
}

/// What became of one plugin in a request for all.
pub type PluginResult = (PluginInfo, Result<(), Error>);

/// The plugin manager's handle. Cheap to clone.
#[derive(Clone)]
pub struct PluginManager {
    mailbox: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

impl fmt::Debug for PluginManager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PluginManager")
            .finish_non_exhaustive()
    }
}

/// What handle and worker share.
struct Shared {
    board: Arc<Board>,
    logs: BTreeMap<PluginName, Arc<LogBook>>,
    reports: Reports,
    registry: ServiceRegistry,
    announcer: Arc<dyn Announcer>,
}

/// Which of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum All {
    Start,
    Stop,
}

#[derive(Debug)]
enum Message {
    Request {
        plugin: PluginName,
        request: Request,
        deadline: Instant,
        reply: oneshot::Sender<Result<PluginInfo, Error>>,
    },
    All {
        which: All,
        deadline: Instant,
        reply: oneshot::Sender<Vec<PluginResult>>,
    },
    Open {
        credential: Credential,
        hello: Box<Hello>,
        outbox: Outbox,
        reply: oneshot::Sender<Result<Admitted, Error>>,
    },
    ChannelLost {
        run: Arc<Run>,
        channel: ChannelId,
    },
    Shutdown {
        deadline: Instant,
        reply: oneshot::Sender<Report>,
    },
}

impl PluginManager {
    /// A plugin manager and its worker. Nothing runs yet: plugins that are wanted begin when
    /// [`Worker::run`] does, so listeners must stand by then. Of several manifests with one name the
    /// first counts.
    #[must_use]
    pub fn new(
        config: Config,
        manifests: Vec<Manifest>,
        dependencies: Dependencies,
    ) -> (Self, Worker) {
        let (mailbox, messages) = mpsc::channel(MAILBOX);
        let logs = manifests
            .iter()
            .map(|manifest| (manifest.name.clone(), Arc::default()));
        let shared = Arc::new(Shared {
            board: Arc::default(),
            logs: logs.collect(),
            reports: Reports::default(),
            registry: dependencies.registry.clone(),
            announcer: Arc::clone(&dependencies.announcer),
        });
        let worker = Worker::new(
            config,
            manifests,
            dependencies,
            Arc::clone(&shared),
            messages,
        );
        (Self { mailbox, shared }, worker)
    }

    /// All plugins, in order of name.
    #[must_use]
    pub fn list(&self) -> Vec<PluginInfo> {
        self.shared
            .board
            .list()
            .into_iter()
            .map(|info| self.filled(info))
            .collect()
    }

    /// One plugin.
    ///
    /// # Errors
    /// [`Error::NoSuchPlugin`], with a suggestion.
    pub fn get(&self, name: &str) -> Result<PluginInfo, Error> {
        let info = self
            .shared
            .board
            .get(name)
            .ok_or_else(|| self.no_such_plugin(name))?;
        Ok(self.filled(info))
    }

    /// Wants it LOADED.
    ///
    /// # Errors
    /// `NoSuchPlugin`, `WrongState`, `DependencyCycle`, `Superseded`, `PluginFailed`, `Deadline`,
    /// `ShuttingDown`.
    ///
    /// # Cancel safety
    /// As of all requests: dropped, the request stands, and nobody waits for its end.
    pub async fn load(&self, name: &str, deadline: Instant) -> Result<PluginInfo, Error> {
        self.request(name, Request::Load, deadline).await
    }

    /// Wants it STARTED. See [`PluginManager::load`] for errors.
    ///
    /// # Errors
    /// As of `load`, but never `WrongState`.
    pub async fn start(&self, name: &str, deadline: Instant) -> Result<PluginInfo, Error> {
        self.request(name, Request::Start, deadline).await
    }

    /// Wants it STOPPED.
    ///
    /// # Errors
    /// As of `load`.
    pub async fn stop(&self, name: &str, deadline: Instant) -> Result<PluginInfo, Error> {
        self.request(name, Request::Stop, deadline).await
    }

    /// Wants it UNLOADED; answers when nothing is left of its process.
    ///
    /// # Errors
    /// As of `load`, but never `WrongState`.
    pub async fn unload(&self, name: &str, deadline: Instant) -> Result<PluginInfo, Error> {
        self.request(name, Request::Unload, deadline).await
    }

    /// Wants another run, STARTED.
    ///
    /// # Errors
    /// As of `load`, but never `WrongState`.
    pub async fn restart(&self, name: &str, deadline: Instant) -> Result<PluginInfo, Error> {
        self.request(name, Request::Restart, deadline).await
    }

    /// Starts all that are not wanted UNLOADED, in order of dependency. Answers when nothing more
    /// happens by itself: absent remote plugins, and those behind them, are not waited for.
    ///
    /// # Errors
    /// `ShuttingDown`. What became of each plugin stands in its result.
    pub async fn start_all(&self, deadline: Instant) -> Result<Vec<PluginResult>, Error> {
        self.all(All::Start, deadline).await
    }

    /// Stops all, dependents first.
    ///
    /// # Errors
    /// `ShuttingDown`. What became of each plugin stands in its result.
    pub async fn stop_all(&self, deadline: Instant) -> Result<Vec<PluginResult>, Error> {
        self.all(All::Stop, deadline).await
    }

    /// Watches plugins: first all, then [`WatchItem::SnapshotEnd`], then each change. Slow, it gets
    /// the newest per plugin.
    pub fn watch(&self) -> impl Stream<Item = WatchItem> + Send + use<> {
        let manager = self.clone();
        let items = self.shared.board.watch();
        tokio_stream::StreamExt::map(items, move |item| match item {
            WatchItem::Plugin(info) => WatchItem::Plugin(Box::new(manager.filled(*info))),
            item @ WatchItem::SnapshotEnd => item,
        })
    }

    /// What a plugin wrote.
    ///
    /// # Errors
    /// [`Error::NoSuchPlugin`].
    pub fn logs(
        &self,
        name: &str,
        query: LogQuery,
    ) -> Result<impl Stream<Item = LogRecord> + Send + use<>, Error> {
        let book = self
            .shared
            .logs
            .get(name)
            .ok_or_else(|| self.no_such_plugin(name))?;
        Ok(book.read(query))
    }

    /// Ends all plugins, dependents first, by the deadline whatever they do. New channels and
    /// requests are refused from now on. Asked again with an earlier deadline it skips all grace.
    pub async fn shutdown(&self, deadline: Instant) -> Report {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            let message = Message::Shutdown { deadline, reply };
            self.mailbox.send(message).await.ok()?;
            answer.await.ok()
        };
        // The worker answers by its own clock; the bound here is for a worker that is gone or stuck,
        // perhaps with a full mailbox.
        let limit = deadline + Duration::from_millis(500);
        let report = tokio::time::timeout_at(limit, ask).await;
        report.ok().flatten().unwrap_or_default()
    }

    // ---- channels

    /// Admits a channel: the begin of a run, or its going on. `Welcome` is in the outbox then.
    ///
    /// # Errors
    /// `BadCredential`, `WireVersion`, `AlreadyConnected`, `NotWanted`, `Backoff`,
    /// `DependencyCycle`, `ShuttingDown`.
    ///
    /// # Cancel safety
    /// Dropped, the channel counts as lost.
    pub async fn open(
        &self,
        credential: Credential,
        hello: Hello,
        outbox: Outbox,
    ) -> Result<Admitted, Error> {
        let (reply, answer) = oneshot::channel();
        let hello = Box::new(hello);
        let message = Message::Open {
            credential,
            hello,
            outbox,
            reply,
        };
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// A hook ended. Never waits; only the end of the awaited hook is kept.
    pub fn hook_done(
        &self,
        run: &Run,
        channel: ChannelId,
        hook_id: u64,
        result: Result<(), String>,
    ) {
        self.shared.reports.hook_done(run, channel, hook_id, result);
    }

    /// More time is asked for. Never waits.
    pub fn extend(&self, run: &Run, channel: ChannelId, hook_id: u64, by: Duration) {
        self.shared.reports.extend(run, channel, hook_id, by);
    }

    /// A plugin's own report on its health. Never waits; the newest counts, once a second.
    pub fn health(&self, run: &Run, channel: ChannelId, degraded: Option<String>) {
        self.shared.reports.health(run, channel, degraded);
    }

    /// A plugin ends by its own will. Never waits.
    pub fn bye(&self, run: &Run, channel: ChannelId, reason: String) {
        self.shared.reports.bye(run, channel, reason);
    }

    /// A channel is gone. Waits for room in the mailbox: this must not be lost. (Should it be, the
    /// closed outbox is noticed within a second.)
    pub async fn channel_lost(&self, run: &Arc<Run>, channel: ChannelId) {
        let run = Arc::clone(run);
        if self
            .mailbox
            .send(Message::ChannelLost { run, channel })
            .await
            .is_err()
        {
            tracing::debug!(%channel, "a channel was lost after the worker ended");
        }
    }

    /// Reports of channels that were dropped: of ended runs, replaced channels or unknown hooks.
    #[must_use]
    pub fn dropped_reports(&self) -> u64 {
        self.shared.reports.dropped()
    }

    // ---- inside

    async fn request(
        &self,
        name: &str,
        request: Request,
        deadline: Instant,
    ) -> Result<PluginInfo, Error> {
        let plugin = self.get(name)?.name;
        let (reply, answer) = oneshot::channel();
        let message = Message::Request {
            plugin,
            request,
            deadline,
            reply,
        };
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let info = answer.await.unwrap_or(Err(Error::ShuttingDown))?;
        Ok(self.filled(info))
    }

    async fn all(&self, which: All, deadline: Instant) -> Result<Vec<PluginResult>, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::All {
            which,
            deadline,
            reply,
        };
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        let results = answer.await.map_err(|_| Error::ShuttingDown)?;
        let filled = results
            .into_iter()
            .map(|(info, result)| (self.filled(info), result));
        Ok(filled.collect())
    }

    fn filled(&self, mut info: PluginInfo) -> PluginInfo {
        if let Some(run) = &info.run {
            let services = self.shared.registry.registered_by(run);
            info.services = services.iter().map(ToString::to_string).collect();
            info.subscriptions = self.shared.announcer.subscriptions(&info.name);
        }
        info
    }

    fn no_such_plugin(&self, name: &str) -> Error {
        Error::NoSuchPlugin {
            name: name.chars().take(80).collect(),
            suggestion: did_you_mean(name, self.shared.logs.keys().map(PluginName::as_str)),
        }
    }
}
