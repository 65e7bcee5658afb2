//! What the core tells of the plugins that this one requires or wants.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::Ctx;
use crate::run::Run;

/// A plugin that this one requires or wants came or went.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DependencyChange {
    /// Its name.
    pub name: String,
    /// It is STARTED and is to stay so. Otherwise calls to it fail at once.
    pub available: bool,
}

/// Changes of dependencies, from [`Ctx::dependencies`] on. Whoever is slow misses what was undone
/// meanwhile, and nothing else.
pub struct Dependencies {
    run: Arc<Run>,
    news: watch::Receiver<BTreeMap<String, bool>>,
    seen: BTreeMap<String, bool>,
}

impl std::fmt::Debug for Dependencies {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Dependencies")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Dependencies {
    /// Waits for the next change; `None`: the run is over.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<DependencyChange> {
        loop {
            if let Some(change) = self.change() {
                return Some(change);
            }
            let changed = self.run.ended.run_until_cancelled(self.news.changed());
            changed.await?.ok()?;
        }
    }

    fn change(&mut self) -> Option<DependencyChange> {
        let now = self.news.borrow_and_update();
        let differs =
            |(name, available): &(&String, &bool)| self.seen.get(*name) != Some(*available);
        let (name, available) = now.iter().find(differs)?;
        let change = DependencyChange {
            name: name.clone(),
            available: *available,
        };
        self.seen.insert(change.name.clone(), change.available);
        Some(change)
    }
}

impl Ctx {
    /// Tells when a plugin that this one `requires` or `wants` comes or goes, from now on. Where the manifest
    /// says `on_loss = "restart"` or `"stop"` the core acts on a loss by itself; this is for those that
    /// go on.
    ///
    /// ```no_run
    /// # use plugin_sdk::prelude::*;
    /// # async fn task(ctx: Ctx) -> Result {
    /// let mut dependencies = ctx.dependencies();
    /// while let Some(change) = dependencies.next().await {
    ///     tracing::info!(name = change.name, available = change.available, "a dependency");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn dependencies(&self) -> Dependencies {
        let mut news = self.run.dependencies.subscribe();
        let seen = news.borrow_and_update().clone();
        Dependencies {
            run: Arc::clone(&self.run),
            news,
            seen,
        }
    }

    /// Waits until the core says that it is about to end, and why. The plugin is stopped in its turn, as
    /// always; what it wants to finish with others' help, it should finish now. Never returns where the
    /// core ends without a word.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn going_away(&self) -> String {
        let mut news = self.run.going_away.subscribe();
        let said = news.wait_for(Option::is_some).await;
        // The sender lives as long as the run, which this context holds.
        said.map_or_else(|_| String::new(), |said| said.clone().unwrap_or_default())
    }
}
