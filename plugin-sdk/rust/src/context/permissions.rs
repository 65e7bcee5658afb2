//! What the core allows this plugin beyond its own area.

use std::fmt;
use std::sync::Arc;

use core_proto::v1;
use tokio::sync::watch;

use super::Ctx;
use crate::run::Run;

/// Something that a plugin may do with something. Shown as "publish=home.>".
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Permission {
    /// "publish", "subscribe", "provide", "call", "storage.read", "storage.write", "state.read",
    /// "state.write", "manage" or "env".
    pub action: String,
    /// A topic, service, key or namespace, or a pattern of them; a part of the core's management; the name
    /// of an environment variable.
    pub resource: String,
}

impl fmt::Display for Permission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.action, self.resource)
    }
}

impl From<v1::Permission> for Permission {
    fn from(permission: v1::Permission) -> Self {
        Self {
            action: permission.action,
            resource: permission.resource,
        }
    }
}

/// What the core allows a plugin beyond its own area, and what it denies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Permissions {
    /// What is granted, in order. It may hold what is denied.
    pub granted: Vec<Permission>,
    /// What is denied, whatever is granted.
    pub denied: Vec<Permission>,
}

impl Permissions {
    pub(crate) fn new(granted: Vec<v1::Permission>, denied: Vec<v1::Permission>) -> Self {
        Self {
            granted: granted.into_iter().map(Into::into).collect(),
            denied: denied.into_iter().map(Into::into).collect(),
        }
    }
}

/// Changes of permissions, from [`Ctx::watch_permissions`] on. Whoever is slow gets the newest.
pub struct PermissionsWatch {
    run: Arc<Run>,
    news: watch::Receiver<Permissions>,
}

impl fmt::Debug for PermissionsWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PermissionsWatch")
            .field("newest", &*self.news.borrow())
            .finish_non_exhaustive()
    }
}

impl PermissionsWatch {
    /// Waits for the next change; `None`: the run is over.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Permissions> {
        let changed = self.run.ended.run_until_cancelled(self.news.changed());
        changed.await?.ok()?;
        Some(self.news.borrow_and_update().clone())
    }
}

impl Ctx {
    /// What the core allows the plugin now, beyond its own area.
    #[must_use]
    pub fn permissions(&self) -> Permissions {
        self.run.permissions.borrow().clone()
    }

    /// Tells when that changes, from now on: an operator grants or takes back, or the configuration changes.
    /// Subscriptions and watches that are not granted any more end by themselves; services are withdrawn,
    /// and come back with their grant.
    #[must_use]
    pub fn watch_permissions(&self) -> PermissionsWatch {
        let mut news = self.run.permissions.subscribe();
        news.mark_unchanged();
        PermissionsWatch {
            run: Arc::clone(&self.run),
            news,
        }
    }
}
