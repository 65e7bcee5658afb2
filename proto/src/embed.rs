//! Plugins inside the core's own process: the seam between an SDK and the core, which do not know
//! each other. Such a plugin speaks the same contract over an in-memory connection.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::DuplexStream;

/// How an embedded plugin reaches the core; handed to [`EmbeddedPlugin::run`] for each run.
#[derive(Clone)]
pub struct Embedding {
    /// The credential of this run, as `CORE_TOKEN` is for a child process.
    pub token: String,
    /// Opens a connection to the core. May be used any number of times during the run.
    pub connect: Arc<dyn Fn() -> io::Result<DuplexStream> + Send + Sync>,
}

impl fmt::Debug for Embedding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret.
        formatter.debug_struct("Embedding").finish_non_exhaustive()
    }
}

/// How a run of an embedded plugin ended, if it failed.
pub type RunError = Box<dyn std::error::Error + Send + Sync>;

/// A plugin that can run inside the core's process. SDKs implement it for their plugins.
pub trait EmbeddedPlugin: Send + Sync + 'static {
    /// The plugin's name: `[a-z][a-z0-9_-]{0,47}`.
    fn name(&self) -> &str;

    /// Names of the plugins that must be STARTED before this one starts.
    fn requires(&self) -> Vec<String>;

    /// One run: connects, says `Hello`, serves until it is told to unload. Called on a thread of its
    /// own with a current-thread runtime; called again for each new run. A panic ends the run.
    fn run(
        self: Arc<Self>,
        embedding: Embedding,
    ) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>;
}
