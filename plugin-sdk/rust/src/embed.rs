//! Plugins inside the core's own process, over an in-memory connection: same contract, same code.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use core_proto::embed::{EmbeddedPlugin, Embedding, RunError};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::host::{self, Ending, Settings};
use crate::plugin::Plugin;

impl EmbeddedPlugin for Plugin {
    fn name(&self) -> &str {
        &self.definition.name
    }

    fn requires(&self) -> Vec<String> {
        self.definition.requires.clone()
    }

    fn run(
        self: Arc<Self>,
        embedding: Embedding,
    ) -> Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>> {
        Box::pin(async move {
            let settings = Settings::embedded(embedding);
            // The core ends an embedded plugin by UNLOAD, or by ending its runtime.
            let stop = CancellationToken::new();
            match host::run(Plugin::clone(&self), settings, stop).await {
                Ending::Clean => Ok(()),
                Ending::NoChannel(error) | Ending::Refused(error) | Ending::BadConfig(error) => {
                    Err(Error::into(error))
                }
            }
        })
    }
}

impl From<Plugin> for Arc<dyn EmbeddedPlugin> {
    fn from(plugin: Plugin) -> Self {
        Arc::new(plugin)
    }
}
