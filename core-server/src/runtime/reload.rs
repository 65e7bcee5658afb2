//! The configuration read again, and what of it can change while the core runs.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::changed::{changed, listed};
use crate::config::{self, Candidate, Config, Loaded, Quotas, UpgradeSource, needs_restart};
use crate::error::{Classify, ErrorKind, Failure, Reason};
use crate::grpc;
use crate::plugin_manager::{self, Kind, Manifest, PluginInfo, PluginManager, Reloaded};
use crate::security::audit::{Record, decision};
use crate::security::{Access, Audit, Metering};
use crate::task::blocking;
use crate::transport;
use crate::types::PluginName;

/// Reads the configuration as it was read at the start, with an upgrade in force that somebody asks for.
/// Called on a thread that may block.
pub type Loader = Arc<dyn Fn(Option<&Candidate>) -> Result<Loaded, config::Error> + Send + Sync>;

/// Why nothing was reloaded. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is bad: everything that is wrong, a line each.
    #[error("the configuration is refused, and nothing was changed:\n{0}")]
    Refused(config::Error),
    /// There is nothing to read it with.
    #[error(
        "this core has no configuration that it could read again: it is part of another program, \
         which gives it one"
    )]
    NoLoader,
    /// It cannot be done with these plugins, or now.
    #[error(transparent)]
    Plugins(#[from] plugin_manager::Error),
}

impl Classify for ReloadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) | Self::NoLoader => ErrorKind::FailedPrecondition,
            Self::Plugins(error) => error.kind(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Refused(_) => Reason::ConfigRefused,
            Self::NoLoader => Reason::NoLoader,
            Self::Plugins(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Refused(_) | Self::NoLoader => Vec::new(),
            Self::Plugins(error) => error.metadata(),
        }
    }
}

/// Why a plugin was not upgraded.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// What should take its place cannot. Nothing has changed.
    #[error("plugin \"{plugin}\" is not upgraded, and nothing was changed:\n{why}")]
    Refused {
        /// Which.
        plugin: PluginName,
        /// Everything that is wrong, a line each.
        why: String,
    },
    /// There is nothing to read manifests with.
    #[error(
        "this core has no configuration that it could read again: it is part of another program, \
         which upgrades its plugins"
    )]
    NoLoader,
    /// The plugin manager's no.
    #[error(transparent)]
    Plugins(#[from] plugin_manager::Error),
}

impl Classify for UpgradeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. } | Self::NoLoader => ErrorKind::FailedPrecondition,
            Self::Plugins(error) => error.kind(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::UpgradeRefused,
            Self::NoLoader => Reason::NoLoader,
            Self::Plugins(error) => error.reason(),
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Refused { plugin, .. } => vec![("plugin", plugin.to_string())],
            Self::NoLoader => Vec::new(),
            Self::Plugins(error) => error.metadata(),
        }
    }
}

/// Changes the configuration. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reloader {
    inner: Arc<Inner>,
}

struct Inner {
    manager: PluginManager,
    /// Of the embedded plugins: used where the configuration says nothing of them.
    embedded: Vec<Manifest>,
    /// The configuration of the start: what cannot change is still as it says.
    started_with: Config,
    loader: Option<Loader>,
    access: Access,
    /// What is shown to whoever connects with TLS.
    tls: Option<transport::Tls>,
    metering: Metering,
    /// The plugins of the configuration that was taken last.
    configured: parking_lot::Mutex<Vec<Manifest>>,
    /// Its quotas for everybody.
    quotas: parking_lot::Mutex<Quotas>,
    audit: Audit,
    /// One change at a time: what is read must be handed over before anything is read again.
    turn: Mutex<()>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    pub(super) fn new(
        manager: PluginManager,
        embedded: Vec<Manifest>,
        started_with: Config,
        loader: Option<Loader>,
        access: Access,
        tls: Option<transport::Tls>,
        metering: Metering,
        audit: Audit,
    ) -> Self {
        let configured = parking_lot::Mutex::new(started_with.plugins.clone());
        let quotas = parking_lot::Mutex::new(started_with.quotas);
        let inner = Inner {
            manager,
            embedded,
            started_with,
            loader,
            access,
            tls,
            metering,
            configured,
            quotas,
            audit,
            turn: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Takes another configuration.
    pub(super) async fn reload(&self, config: Config) -> Result<Reloaded, ReloadError> {
        let _turn = self.inner.turn.lock().await;
        let asked = asked_by("program");
        let result = self.apply(config, Vec::new(), &asked).await;
        self.note_refusal(asked, result)
    }

    /// Reads the configuration again and takes it. `asked`: who asks, for the audit log.
    pub(super) async fn load_and_reload(&self, asked: Record) -> Result<Reloaded, ReloadError> {
        let loader = self.inner.loader.clone().ok_or(ReloadError::NoLoader)?;
        let _turn = self.inner.turn.lock().await;
        let result = match blocking(move || loader(None)).await {
            Ok(loaded) => {
                let warnings = loaded.warnings.iter().map(ToString::to_string).collect();
                self.apply(loaded.config, warnings, &asked).await
            }
            Err(refused) => Err(ReloadError::Refused(refused)),
        };
        self.note_refusal(asked, result)
    }

    /// What was wrong is told by its places: what stands there may be a secret in the wrong one.
    fn note_refusal(
        &self,
        asked: Record,
        result: Result<Reloaded, ReloadError>,
    ) -> Result<Reloaded, ReloadError> {
        if let Err(error) = &result {
            let places: Vec<_> = match error {
                ReloadError::Refused(refused) => refused
                    .problems
                    .iter()
                    .map(|problem| problem.origin.to_string())
                    .collect(),
                ReloadError::NoLoader | ReloadError::Plugins(_) => Vec::new(),
            };
            self.inner.audit.note(Record {
                decision: decision::DENIED,
                rule: error.reason().as_str().to_owned(),
                resource: listed(&places),
                ..asked
            });
        }
        result
    }

    async fn apply(
        &self,
        config: Config,
        warnings: Vec<String>,
        asked: &Record,
    ) -> Result<Reloaded, ReloadError> {
        let needs_restart = needs_restart(&self.inner.started_with, &config);
        let mut names = {
            let (configured, quotas) = (self.inner.configured.lock(), *self.inner.quotas.lock());
            changed((&configured, quotas), (&config.plugins, config.quotas))
        };
        names.extend(
            needs_restart
                .iter()
                .map(|key| format!("{key} (at the next start)")),
        );
        let mut warnings = warnings;
        if let Some(tls) = self.inner.tls.clone()
            && let Err(error) = blocking(move || tls.reload()).await
        {
            let why = crate::error::chain(&error);
            warnings.push(format!("the TLS certificate before is kept: {why}"));
        }
        let reloaded = self.take(config.plugins).await?;
        self.inner.metering.set_everybody(config.quotas);
        *self.inner.quotas.lock() = config.quotas;
        self.inner.audit.note(Record {
            decision: decision::ALLOWED,
            rule: "operator".to_owned(),
            resource: listed(&names),
            ..asked.clone()
        });
        let reloaded = Reloaded {
            needs_restart,
            warnings,
            ..reloaded
        };
        say(&reloaded);
        Ok(reloaded)
    }

    /// Has the manager take the plugins of a configuration, those of this program, and those that only
    /// have a credential.
    async fn take(&self, configured: Vec<Manifest>) -> Result<Reloaded, plugin_manager::Error> {
        let manifests = with_embedded(configured.clone(), &self.inner.embedded);
        let access = self.inner.access.clone();
        let manifests = blocking(move || with_enrolled(manifests, &access)).await;
        let reloaded = self.inner.manager.reload(manifests).await?;
        *self.inner.configured.lock() = configured;
        Ok(reloaded)
    }

    /// Makes plugins known that have got a credential, and forgets those that have none any more. Nothing
    /// else changes.
    pub(super) async fn make_known(&self) -> Result<(), ReloadError> {
        let _turn = self.inner.turn.lock().await;
        let known: std::collections::BTreeSet<_> = self
            .inner
            .manager
            .list()
            .iter()
            .map(|info| info.name.clone())
            .collect();
        let configured = self.inner.configured.lock().clone();
        let configured = with_embedded(configured, &self.inner.embedded);
        let is_configured = |name: &PluginName| configured.iter().any(|one| one.name == *name);
        let access = self.inner.access.clone();
        // Whoever makes a credential holds its lock until that is on the disk.
        let enrolled = blocking(move || access.plugins()).await;
        let remove: Vec<_> = known
            .iter()
            .filter(|name| !is_configured(name) && !enrolled.contains(*name))
            .cloned()
            .collect();
        let add: Vec<_> = enrolled
            .into_iter()
            .filter(|name| !is_configured(name))
            .map(enrolled_manifest)
            .collect();
        if remove.is_empty() && add.is_empty() {
            return Ok(());
        }
        // Also of those that are known: one may be on its way out.
        let reloaded = self.inner.manager.know(add, remove).await?;
        if !reloaded.changes.is_empty() {
            say(&reloaded);
        }
        Ok(())
    }

    /// As the gRPC shell takes it.
    pub(super) fn make_known_as_rpc(&self) -> grpc::MakeKnown {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            async move { reloader.make_known().await.map_err(Failure::from) }.boxed()
        })
    }

    /// Puts another version in a plugin's place; see [`PluginManager::upgrade`].
    pub(super) async fn upgrade(
        &self,
        name: &str,
        path: PathBuf,
        deadline: Instant,
    ) -> Result<PluginInfo, UpgradeError> {
        let plugin = self.inner.manager.upgradable(name)?;
        let loader = self.inner.loader.clone().ok_or(UpgradeError::NoLoader)?;
        let refused = |why: String| UpgradeError::Refused {
            plugin: plugin.clone(),
            why,
        };
        let upgraded = {
            let _turn = self.inner.turn.lock().await;
            let name = plugin.clone();
            let load = move || {
                let source = match std::fs::metadata(&path) {
                    Ok(data) if data.is_dir() => UpgradeSource::Directory(path),
                    Ok(_) => UpgradeSource::Program(path),
                    Err(error) => return Err(format!("{}: {error}", path.display())),
                };
                let candidate = Candidate {
                    plugin: name,
                    source,
                };
                loader(Some(&candidate)).map_err(|error| error.to_string())
            };
            let Loaded {
                config, upgrade, ..
            } = blocking(load).await.map_err(refused)?;
            let mut manifests = config.plugins.into_iter();
            let manifest = manifests.find(|manifest| manifest.name == plugin);
            let gone = || refused("the configuration does not know it any more".to_owned());
            let (manifest, record) = (manifest.ok_or_else(gone)?, upgrade.ok_or_else(gone)?);
            let begin = self.inner.manager.begin_upgrade(manifest, record, deadline);
            begin.await?
        };
        // Others need not wait for its end.
        Ok(upgraded.await?)
    }

    /// As the gRPC shell takes it.
    pub(super) fn upgrade_as_rpc(&self) -> grpc::Upgrade {
        let reloader = self.clone();
        Arc::new(move |name, path, deadline| {
            let reloader = reloader.clone();
            let upgrade = async move { reloader.upgrade(&name, path, deadline).await };
            async move { upgrade.await.map_err(Failure::from) }.boxed()
        })
    }

    /// As the gRPC shell takes it.
    pub(super) fn as_rpc(&self) -> grpc::Reload {
        let reloader = self.clone();
        Arc::new(move |asked| {
            let reloader = reloader.clone();
            async move { reloader.load_and_reload(asked).await.map_err(Failure::from) }.boxed()
        })
    }
}

/// A reload that no request asks for, but this.
pub(super) fn asked_by(who: &str) -> Record {
    Record {
        action: "reload".to_owned(),
        operator: who.to_owned(),
        ..Record::default()
    }
}

/// The manifests of a configuration and the bare ones of embedded plugins that it does not mention.
pub(super) fn with_embedded(mut manifests: Vec<Manifest>, embedded: &[Manifest]) -> Vec<Manifest> {
    for bare in embedded {
        if !manifests.iter().any(|manifest| manifest.name == bare.name) {
            manifests.push(bare.clone());
        }
    }
    manifests
}

/// Those, and the plugins that only have a credential: remote ones, with their own area. In order of name.
pub(super) fn with_enrolled(mut manifests: Vec<Manifest>, access: &Access) -> Vec<Manifest> {
    for name in access.plugins() {
        if !manifests.iter().any(|manifest| manifest.name == name) {
            manifests.push(enrolled_manifest(name));
        }
    }
    manifests.sort_by(|one, other| one.name.cmp(&other.name));
    manifests
}

/// Of a plugin that only has a credential.
fn enrolled_manifest(name: PluginName) -> Manifest {
    Manifest::new(name, Kind::Remote { token: None })
}

/// Whoever reads the log learns the same as whoever asked.
fn say(reloaded: &Reloaded) {
    for change in &reloaded.changes {
        let (plugin, done, why) = (&change.name, change.kind.as_str(), &change.message);
        tracing::info!(%plugin, done, why, "reload");
    }
    for warning in &reloaded.warnings {
        tracing::warn!("{warning}");
    }
    let (changed, unchanged) = (reloaded.changes.len(), reloaded.unchanged);
    if reloaded.needs_restart.is_empty() {
        tracing::info!(changed, unchanged, "configuration reloaded");
    } else {
        let settings = reloaded.needs_restart.join(", ");
        tracing::warn!(
            changed,
            unchanged,
            "configuration reloaded; these settings need a restart of the core: {settings}"
        );
    }
}
