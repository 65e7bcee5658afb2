//! What a program says of its core before it runs.

use std::path::PathBuf;
use std::sync::Arc;

use core_proto::embed::EmbeddedPlugin;

use super::{Error, Loader, Runtime};
use crate::config::{self, Candidate, Config, Loaded};
use crate::storage::StorageAdapter;
use crate::telemetry::logging;

/// What a runtime is made of, before it runs.
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    pub(super) config: Config,
    pub(super) embedded: Vec<Arc<dyn EmbeddedPlugin>>,
    pub(super) adapter: Option<Arc<dyn StorageAdapter>>,
    pub(super) loader: Option<Loader>,
    pub(super) log: Option<logging::Control>,
    pub(super) whole: WholeProcess,
}

/// What only the program knows that the core runs in.
#[derive(Clone, Debug, Default)]
pub(super) struct WholeProcess {
    /// Can be started as guardian.
    pub(super) guardian: Option<PathBuf>,
    /// Nobody else in this process starts children.
    pub(super) adopts_orphans: bool,
}

impl Builder {
    /// Adds a plugin that runs inside this process.
    pub fn embed(mut self, plugin: impl Into<Arc<dyn EmbeddedPlugin>>) -> Self {
        self.embedded.push(plugin.into());
        self
    }

    /// Takes this storage instead of the configured one.
    pub fn storage(mut self, adapter: Arc<dyn StorageAdapter>) -> Self {
        self.adapter = Some(adapter);
        self
    }

    /// Has a guardian end the children of this process should it be killed: a second process, of this
    /// program started with the one argument `guardian`. That is a `core-server`, or a program that
    /// then calls [`guardian_main`](crate::supervisor::custody::guardian_main) and nothing else.
    /// Without it that layer is missing; `core-server` itself has it.
    pub fn guardian(mut self, program: impl Into<PathBuf>) -> Self {
        self.whole.guardian = Some(program.into());
        self
    }

    /// Lets the core adopt the orphans of its plugins (it becomes subreaper), end them with their
    /// run, and reap them; as the first process of a container too. Only for a program that starts no
    /// processes of its own in any other way: the core would take them for a plugin's, end and reap
    /// them. Without it that layer is missing; `core-server` itself has it.
    pub fn adopt_orphans(mut self) -> Self {
        self.whole.adopts_orphans = true;
        self
    }

    /// The log of this process is the core's: operators may set its level.
    pub fn log(mut self, log: logging::Control) -> Self {
        self.log = Some(log);
        self
    }

    /// Reads the configuration again with this when an operator asks for a reload or an upgrade
    /// ([`config::load_candidate`]). Without it only [`Runtime::reload`] changes the configuration.
    pub fn loader(
        mut self,
        loader: impl Fn(Option<&Candidate>) -> Result<Loaded, config::Error> + Send + Sync + 'static,
    ) -> Self {
        self.loader = Some(Arc::new(loader));
        self
    }

    /// Opens the storage, binds the sockets, serves, and begins to start what should run. Returns as
    /// soon as the core serves; plugins start beside it.
    ///
    /// # Errors
    /// [`Error`]; nothing is left running.
    pub async fn start(self) -> Result<Runtime, Error> {
        Runtime::start(self).await
    }
}
