//! Which services there are, who provides each, and how they fare.
//!
//! Owns: the table of services, their descriptions and counters, and the watchers of the table. Does
//! not own: calling them (`routing/`), nor whether their providers live (it is told so).
//!
//! Invariants
//! - One service has one provider. A name belongs to the plugin that registered it until that
//!   registration ends.
//! - A registration belongs to a run and ends with it; the name stays known, so that its callers learn
//!   "not now" instead of "no such service".
//! - What a plugin may offer is decided above. One that it may not is not in the table; it is kept beside it
//!   where it is to appear as soon as the plugin may.
//! - Finding a service is one look into a hash map under a read lock that nobody holds long.
//!
//! Limits: 1,000 names per plugin, known ones included (`TOO_MANY_SERVICES`); a name that is known
//! but not registered gives way to a new one. A watcher holds at most one pending entry per service:
//! slow, it gets the newest only.

mod description;
mod error;
mod table;
mod watch;

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

pub use description::ServiceDescription;
pub use error::Error;
pub use table::{Reviewed, Service, ServiceStats};
pub use watch::{Watch, WatchItem};

use crate::channel::Run;
use crate::error::did_you_mean;
use crate::types::{Pattern, PluginName, RunId, ServiceName};
use table::Table;
use watch::Watchers;

/// A service as it is now.
#[derive(Clone, Debug)]
pub struct ServiceInfo {
    /// The latest description.
    pub description: Arc<ServiceDescription>,
    /// Who registered it.
    pub provider: PluginName,
    /// Calls would be dispatched now.
    pub available: bool,
    /// When the current registration was made; `None` while there is none.
    pub registered_at: Option<SystemTime>,
    /// Counters since the core started.
    pub stats: Arc<ServiceStats>,
}

/// The registry's handle. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServiceRegistry {
    /// Guards the table; short, no await and no callback inside.
    table: Arc<RwLock<Table>>,
    watchers: Watchers,
}

impl ServiceRegistry {
    /// An empty registry with the contract's limit.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty registry where a plugin may have `max_services` names.
    #[must_use]
    pub fn with_limit(max_services: usize) -> Self {
        let table = Arc::new(RwLock::new(Table::new(max_services)));
        Self {
            table,
            watchers: Watchers::default(),
        }
    }

    /// Registers a service for a run; what this run registered before is described anew.
    ///
    /// # Errors
    /// [`Error::Taken`], [`Error::TooMany`], [`Error::RunEnded`].
    pub fn register(&self, run: &Run, description: ServiceDescription) -> Result<(), Error> {
        let name = description.name.clone();
        let mut table = self.table.write();
        // Under the lock: a run is ended before `end_run` takes it, so that nothing slips in behind.
        if run.ended().is_cancelled() {
            let (service, plugin) = (name.to_string(), run.plugin().clone());
            return Err(Error::RunEnded { service, plugin });
        }
        table.register(run.plugin(), run.id(), description, SystemTime::now())?;
        drop(table);
        self.watchers.changed(&name);
        Ok(())
    }

    /// Keeps a service that a run offers and may not, until [`Self::review`] finds that it may.
    pub fn withhold(&self, run: &Run, description: ServiceDescription) {
        let mut table = self.table.write();
        if !run.ended().is_cancelled() {
            table.withhold(run.id(), description);
        }
    }

    /// What a run may offer has changed: what it may not any more is withdrawn, what was withheld or
    /// withdrawn and it may by now is registered.
    pub fn review(&self, run: &Run, may: impl Fn(&str) -> bool) -> Reviewed {
        let mut table = self.table.write();
        if run.ended().is_cancelled() {
            return Reviewed::default();
        }
        let reviewed = table.review(run.plugin(), run.id(), may, SystemTime::now());
        drop(table);
        let changed = reviewed.withdrawn.iter().chain(&reviewed.taken_in);
        changed.for_each(|name| self.watchers.changed(name));
        reviewed
    }

    /// Takes a registration back. `false`: this run had not made it.
    pub fn unregister(&self, run: &RunId, name: &str) -> bool {
        let ended = self.table.write().unregister(run, name);
        if let Some(name) = &ended {
            self.watchers.changed(name);
        }
        ended.is_some()
    }

    /// Ends all registrations of a run, whose end has been made known ([`Run::ended`]) before.
    pub fn end_run(&self, run: &RunId) {
        let ended = self.table.write().end_run(run);
        ended.iter().for_each(|name| self.watchers.changed(name));
    }

    /// Notes whether calls to a plugin would be dispatched now.
    pub fn set_available(&self, plugin: &PluginName, available: bool) {
        let names = self.table.write().set_available(plugin, available);
        names.iter().for_each(|name| self.watchers.changed(name));
    }

    /// Finds a known service.
    ///
    /// # Errors
    /// [`Error::NotFound`], with a suggestion.
    pub fn find(&self, name: &str) -> Result<Arc<Service>, Error> {
        let table = self.table.read();
        table.find(name).ok_or_else(|| Error::NotFound {
            service: name.chars().take(300).collect(),
            suggestion: did_you_mean(name, table.names()),
        })
    }

    /// One service as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`], with a suggestion.
    pub fn describe(&self, name: &str) -> Result<ServiceInfo, Error> {
        self.find(name)?;
        self.table.read().info(name).ok_or_else(|| Error::NotFound {
            service: name.to_owned(),
            suggestion: String::new(),
        })
    }

    /// Up to `limit` services after a name, in order of name.
    #[must_use]
    pub fn list(
        &self,
        pattern: Option<&Pattern>,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<ServiceInfo> {
        self.table.read().list(pattern, after, limit)
    }

    /// Names that a run has registered, in order.
    #[must_use]
    pub fn registered_by(&self, run: &RunId) -> Vec<ServiceName> {
        self.table.read().registered_by(run)
    }

    /// Watches the table: first what is there, then changes.
    pub fn watch(&self, pattern: Option<Pattern>) -> Watch {
        self.watchers.watch(self.clone(), pattern)
    }
}

#[cfg(test)]
mod tests;
