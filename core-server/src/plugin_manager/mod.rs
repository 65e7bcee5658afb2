//! Which plugins there are, what is wanted of each, and everything that brings them there.
//!
//! Owns: the manifests, the state of each plugin's lifecycle, runs and their beginnings and ends,
//! dependencies, the order of starting and stopping, admission of channels, what is `desired` (kept
//! over restarts of the core), the change to other manifests while all runs (`reload`), what operators
//! have granted, and the moment at which it comes into force. Does not own: the rules of one life (`supervisor/`), channels and
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
//! - Who holds a run keeps it against another instance as long as it gives a sign of life (`knocks`).
//! - Channels of ended runs, and replaced channels, change nothing.
//! - `Welcome` is the first frame of every channel.
//! - A plugin that was taken out of the configuration is there until nothing is left of its run.
//! - Shutdown ends by its deadline, whatever plugins do; what then still lives is named.
//!
//! Stopping: `shutdown` ends the plugins, dependents first, and refuses requests from its begin on.
//! The worker itself ends with its token; whatever child still lives is killed then.
//!
//! Limits: 4 plugins at once on their way from spawn to ready, 64 starts in a row refilled at 8 a second,
//! of all plugins together; whoever comes later waits (reason `start_slot`), in order; 256 requests in the mailbox; 1,000
//! lines of output and 20 crash reports per plugin.

mod admission;
mod changes;
mod channels;
mod crashes;
mod dependencies;
mod desired;
mod error;
mod grants;
mod info;
mod keeper;
mod knocks;
mod manifest;
mod offers;
mod operations;
pub mod order;
mod perform;
mod plugin;
mod programs;
mod reload;
mod reports;
mod setup;
mod shutdown;
mod time;
mod trial;
mod upgrade;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::Stream;

use crate::channel::{ChannelId, Hello, Outbox, Run};
use crate::config;
use crate::error::did_you_mean;
use crate::security::Credential;
use crate::service_registry::ServiceRegistry;
use crate::supervisor::lifecycle::Request;
use crate::supervisor::output::rate::Suppressed;
use crate::supervisor::output::{LogBook, LogQuery, LogRecord, Pushed, Verbosity};
use crate::types::PluginName;

pub use crashes::CrashReport;
pub use dependencies::Graph;
pub use error::Error;
pub(crate) use grants::read_grants;
pub use grants::{GrantChange, Granted};
pub use info::{LastExit, PluginInfo, PluginKind, WatchItem};
pub use manifest::{Command, Kind, Manifest, OnLoss, RestartMode, RestartPolicy, Timeouts};
pub use reload::{ChangeKind, PluginChange, Reloaded};
pub use setup::{Announcer, Config, Connect, Dependencies};
pub use shutdown::Report;
pub use worker::Worker;

use crashes::Crashes;
use info::Board;
use reports::Reports;

/// Requests that wait for the worker.
const MAILBOX: usize = 256;

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
    /// Written by the worker. Short lock: no await, no callback inside.
    logs: Mutex<BTreeMap<PluginName, Arc<LogBook>>>,
    crashes: Crashes,
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

/// An `Open` that is to be judged.
#[derive(Debug)]
struct Opening {
    credential: Credential,
    hello: Box<Hello>,
    outbox: Outbox,
    reply: oneshot::Sender<Result<Admitted, Error>>,
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
    SetLogLevel {
        plugin: PluginName,
        level: Option<Verbosity>,
        reply: oneshot::Sender<Result<Verbosity, Error>>,
    },
    Open(Opening),
    ChannelLost {
        run: Arc<Run>,
        channel: ChannelId,
    },
    Know {
        add: Vec<Manifest>,
        remove: Vec<PluginName>,
        reply: oneshot::Sender<Result<Reloaded, Error>>,
    },
    Grants(
        PluginName,
        GrantChange,
        oneshot::Sender<Result<Granted, Error>>,
    ),
    Reload {
        manifests: Vec<Manifest>,
        reply: oneshot::Sender<Result<Reloaded, Error>>,
    },
    Upgrade {
        manifest: Box<Manifest>,
        record: config::Upgrade,
        deadline: Instant,
        reply: oneshot::Sender<Result<PluginInfo, Error>>,
    },
    TakeTurn(oneshot::Sender<()>),
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
        let shared = Arc::new(Shared {
            board: Arc::default(),
            logs: Mutex::default(),
            crashes: Crashes::default(),
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
            item @ (WatchItem::SnapshotEnd | WatchItem::Removed(_)) => item,
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
        let book = self.shared.logs.lock().get(name).cloned();
        let book = book.ok_or_else(|| self.no_such_plugin(name))?;
        Ok(book.read(query))
    }

    /// Brings everything in line with these manifests: what is not among them ends and disappears,
    /// what is new appears, what has changed takes the change or is restarted. Of several with one
    /// name the first counts. Answers when every plugin that was sent another configuration has
    /// answered, in 5 s at most; starts and stops go on.
    ///
    /// # Errors
    /// `DependencyCycle` for a circle that was not there before, `ShuttingDown`; nothing has changed
    /// then.
    ///
    /// # Cancel safety
    /// Dropped, the reload stands.
    pub async fn reload(&self, manifests: Vec<Manifest>) -> Result<Reloaded, Error> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(Message::Reload { manifests, reply })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Makes remote plugins known that stand in no configuration, unless they are known, and lets go of
    /// others, as [`Self::reload`] would. Nothing else changes.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`].
    ///
    /// # Cancel safety
    /// As of [`Self::reload`].
    pub async fn know(
        &self,
        add: Vec<Manifest>,
        remove: Vec<PluginName>,
    ) -> Result<Reloaded, Error> {
        let (reply, answer) = oneshot::channel();
        self.mailbox
            .send(Message::Know { add, remove, reply })
            .await
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Changes what operators have granted to a plugin, or only looks at it. What changes is in force at
    /// once, and on the disk when this answers.
    ///
    /// # Errors
    /// `NoSuchPlugin`, `GrantsFull`: nothing has changed; `NotKept`, `ShuttingDown`.
    ///
    /// # Cancel safety
    /// Dropped, the change stands.
    pub async fn change_grants(&self, name: &str, change: GrantChange) -> Result<Granted, Error> {
        let plugin = self.get(name)?.name;
        let (reply, answer) = oneshot::channel();
        let message = Message::Grants(plugin, change, reply);
        let sent = self.mailbox.send(message).await;
        sent.map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Takes lines that a plugin sends itself, as far as its rates allow: how many were kept, and what
    /// was dropped. Never waits.
    ///
    /// # Errors
    /// [`Error::NoSuchPlugin`].
    pub fn push_logs(
        &self,
        run: &Run,
        records: impl IntoIterator<Item = Pushed>,
    ) -> Result<(u64, Suppressed), Error> {
        let name = run.plugin();
        let book = self.shared.logs.lock().get(name).cloned();
        let book = book.ok_or_else(|| self.no_such_plugin(name.as_str()))?;
        Ok(book.take_pushed(records, run.generation(), Instant::now()))
    }

    /// How much a plugin logs from now on and in its next runs; `None` changes nothing. The answer is
    /// what it is asked for now.
    ///
    /// # Errors
    /// `NoSuchPlugin`, `LogShared`, `ShuttingDown`.
    ///
    /// # Cancel safety
    /// Dropped, the wish stands.
    pub async fn set_log_level(
        &self,
        name: &str,
        level: Option<Verbosity>,
    ) -> Result<Verbosity, Error> {
        let plugin = self.get(name)?.name;
        let (reply, answer) = oneshot::channel();
        let message = Message::SetLogLevel {
            plugin,
            level,
            reply,
        };
        let sent = self.mailbox.send(message).await;
        sent.map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    /// Returns once the worker has taken its turn, which shows that it lives; never after its end.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn takes_its_turn(&self) {
        let (reply, answer) = oneshot::channel();
        let asked = self.mailbox.send(Message::TakeTurn(reply)).await;
        if asked.is_err() || answer.await.is_err() {
            std::future::pending().await
        }
    }

    /// How the last runs of a plugin ended that nobody ended on purpose, newest first, at most 20.
    #[must_use]
    pub fn crash_reports(&self, name: &str) -> Vec<Arc<CrashReport>> {
        self.shared.crashes.of(name)
    }

    /// Whether a plugin is one that could be upgraded: its name, typed.
    ///
    /// # Errors
    /// `NoSuchPlugin`, `NotUpgradable`.
    pub fn upgradable(&self, name: &str) -> Result<PluginName, Error> {
        let info = self.get(name)?;
        upgrade::upgradable_kind(&info.name, info.kind)?;
        Ok(info.name)
    }

    /// Puts another version in a plugin's place: `manifest` is what runs from now on, `record` how it is
    /// kept. Answers when it is ready, or when the version before was taken back because it was not. One
    /// that fails within 30 s of ready is taken back as well, once.
    ///
    /// # Errors
    /// `NoSuchPlugin`, `NotUpgradable`, `DependencyCycle`, `ShuttingDown`: nothing has changed;
    /// `RolledBack`; `Superseded`, `Deadline`: it goes on.
    ///
    /// # Cancel safety
    /// Dropped, the upgrade goes on.
    pub async fn upgrade(
        &self,
        manifest: Manifest,
        record: config::Upgrade,
        deadline: Instant,
    ) -> Result<PluginInfo, Error> {
        let upgraded = self.begin_upgrade(manifest, record, deadline).await?;
        upgraded.await
    }

    /// As [`Self::upgrade`], in two steps: it is in its turn among other changes once this returns; what
    /// is returned waits for its end.
    ///
    /// # Errors
    /// `ShuttingDown`.
    ///
    /// # Cancel safety
    /// Dropped, nothing has changed; what is returned may be dropped, the upgrade goes on.
    pub async fn begin_upgrade(
        &self,
        manifest: Manifest,
        record: config::Upgrade,
        deadline: Instant,
    ) -> Result<impl Future<Output = Result<PluginInfo, Error>> + use<'_>, Error> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Upgrade {
            manifest: Box::new(manifest),
            record,
            deadline,
            reply,
        };
        self.mailbox
            .send(message)
            .await
            .map_err(|_| Error::ShuttingDown)?;
        Ok(async {
            let info = answer.await.unwrap_or(Err(Error::ShuttingDown))?;
            Ok(self.filled(info))
        })
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
        if let Some(book) = self.shared.logs.lock().get(&info.name) {
            info.suppressed_lines = book.suppressed_lines();
        }
        if let Some(run) = &info.run {
            let services = self.shared.registry.registered_by(run);
            info.services = services.iter().map(ToString::to_string).collect();
            info.subscriptions = self.shared.announcer.subscriptions(&info.name);
        }
        info
    }

    fn no_such_plugin(&self, name: &str) -> Error {
        let logs = self.shared.logs.lock();
        Error::NoSuchPlugin {
            name: name.chars().take(80).collect(),
            suggestion: did_you_mean(name, logs.keys().map(PluginName::as_str)),
        }
    }
}
