//! What plugins may do, put in force: the merge of `security::Review`, whenever one of its sources changes.
//!
//! What operators grant is kept in one small file, written by the keeper; it is in force at once, and nobody
//! is told that it is granted before it is on the disk. A plugin that is not granted what it cannot do
//! without waits (`Event::Grants`), unless it has been let in before: a newer version that asks for more keeps
//! what it has and goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::keeper::{Keeper, Standing as Kept, Version};
use super::plugin::Plugin;
use super::worker::{Worker, sent};
use super::{Error, Kind};
use crate::channel::{Hello, Outbound};
use crate::config::{Need, Permission};
use crate::security::operator_grants::{Full, MAX_GRANTS, OperatorGrants};
use crate::security::{Action, Effective, Granting, Listed, Mode, Standing};
use crate::supervisor::lifecycle::Event;
use crate::types::{PluginName, Source};

/// The file, below the data directory.
const FILE_NAME: &str = "security/grants.json";
/// How long whoever grants something waits for the disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads what operators have granted; a file that is not there is as good as an empty one.
///
/// # Errors
/// It cannot be read, or is not what the core wrote (`InvalidData`).
pub(crate) fn read_grants(data_dir: &Path) -> std::io::Result<OperatorGrants> {
    match std::fs::read(data_dir.join(FILE_NAME)) {
        Ok(text) => OperatorGrants::from_text(&text)
            .map_err(|why| std::io::Error::new(std::io::ErrorKind::InvalidData, why)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(OperatorGrants::default()),
        Err(error) => Err(error),
    }
}

/// What is to be done with what operators have granted to a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantChange {
    /// Nothing: it is looked at.
    None,
    /// These are granted, by somebody.
    Give(Vec<Permission>, String),
    /// These are taken back; all, if none is named.
    Take(Vec<Permission>),
}

/// How a plugin stands after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// What was given or taken, and had not been before.
    pub changed: Vec<Permission>,
    /// Each permission that anybody says anything of, in order.
    pub standings: Vec<Standing>,
}

/// What operators have granted, and the file that keeps it.
pub(super) struct Grants {
    path: PathBuf,
    given: OperatorGrants,
    /// The content of the file that holds the newest.
    version: Version,
    /// Done, but for being on the disk.
    unkept: Vec<Unkept>,
}

/// A change of grants as it is asked for.
pub(super) type Reply = oneshot::Sender<Result<Granted, Error>>;

struct Unkept {
    plugin: PluginName,
    version: Version,
    deadline: Instant,
    answer: Granted,
    reply: Reply,
}

impl Grants {
    pub(super) fn new(data_dir: &Path, given: OperatorGrants) -> Self {
        Self {
            path: data_dir.join(FILE_NAME),
            given,
            version: Version::default(),
            unkept: Vec::new(),
        }
    }

    fn keep(&mut self, keeper: &Keeper) {
        self.version = keeper.keep(&self.path, self.given.to_text());
    }

    /// When somebody has waited for the disk for long enough.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.unkept.iter().map(|unkept| unkept.deadline).min()
    }

    fn answer(&mut self, keeper: &Keeper, now: Instant) {
        let path = &self.path;
        let done = self.unkept.extract_if(.., |unkept| {
            keeper.standing(path, unkept.version) != Kept::Waits || unkept.deadline <= now
        });
        for unkept in done.collect::<Vec<_>>() {
            let cause = match keeper.standing(&self.path, unkept.version) {
                Kept::Kept => None,
                Kept::Waits => Some("the disk has not answered yet".to_owned()),
                Kept::Failed(why) => Some(why),
            };
            let answer = match cause {
                None => Ok(unkept.answer),
                Some(cause) => Err(Error::NotKept {
                    plugin: unkept.plugin,
                    cause,
                }),
            };
            // Whoever asked may be gone; what was done stands.
            drop(unkept.reply.send(answer));
        }
    }
}

impl Plugin {
    fn review<'a>(
        &'a self,
        given: &'a OperatorGrants,
        granting: Granting,
    ) -> crate::security::Review<'a> {
        self.manifest
            .review(&self.asks, given.of(self.name()), granting)
    }
}

impl Worker {
    /// What a plugin is granted and denied now.
    pub(super) fn effective(&self, plugin: &Plugin) -> Effective {
        let granting = self.work.gatekeeper.policy().granting;
        plugin.review(&self.grants.given, granting).effective()
    }

    /// Puts in force what all plugins may do. Those for whom it is news, and who run, are told.
    pub(super) fn put_permissions_in_force(&mut self) {
        let plugins = self.plugins.values();
        let permissions = plugins.map(|plugin| (plugin.name().clone(), self.effective(plugin)));
        let before = self.work.gatekeeper.set_permissions(permissions.collect());
        for plugin in self.plugins.values() {
            let now = self.effective(plugin);
            if before.get(plugin.name()) != Some(&now) {
                self.tell_permissions(plugin, now.listed());
            }
        }
    }

    /// Withdraws what may not be provided any more, takes in what may by now, and says so.
    fn tell_permissions(&self, plugin: &Plugin, listed: Listed) {
        let Some(run) = &plugin.run else {
            return;
        };
        let source = Source::Plugin(plugin.name().clone());
        let may = |service: &str| {
            let provide = Action::Provide(service);
            self.work.gatekeeper.may(&source, provide)
        };
        let changed = self.work.registry.review(run, may);
        for name in &changed.withdrawn {
            tracing::warn!(plugin = %plugin.name(), service = %name, "withdrawn: not granted any more");
        }
        for error in &changed.refused {
            tracing::warn!(plugin = %plugin.name(), "granted by now, and not registered: {error}");
        }
        if let Some(link) = run.link() {
            sent(
                link.outbox
                    .push(Outbound::PermissionsChanged(Box::new(listed))),
            );
        }
    }

    /// What a plugin waits for, if it waits for a grant. One that has all that it needs is let in for good.
    pub(super) fn ungranted(&mut self, name: &PluginName) -> Option<String> {
        let policy = self.work.gatekeeper.policy();
        let plugin = self.plugins.get(name)?;
        if policy.mode == Mode::Audit || self.grants.given.is_let_in(name) {
            return None;
        }
        let missing = plugin.review(&self.grants.given, policy.granting).missing();
        // What asking grants is never missing; of a remote plugin it is known once it has said `Hello`.
        let is_remote = matches!(plugin.manifest.kind, Kind::Remote { .. });
        let could_wait = if is_remote {
            plugin.has_said_hello
        } else {
            policy.granting == Granting::Reviewed
        };
        // One that is on its way out was forgotten a moment ago.
        let may_be_let_in = could_wait && !plugin.leaving;
        if missing.is_none() && may_be_let_in && self.grants.given.let_in(name) {
            self.grants.keep(&self.keeper);
        }
        if let Some(plugin) = self.plugins.get_mut(name)
            && plugin.lacks != missing
        {
            if let Some(missing) = &missing {
                tracing::warn!(plugin = %name, "{missing}");
            }
            plugin.lacks.clone_from(&missing);
        }
        missing
    }

    /// A remote plugin says itself what it asks for, beside what the configuration says.
    pub(super) fn take_asks(&mut self, name: &PluginName, hello: &Hello) {
        if let Some(plugin) = self.plugins.get_mut(name)
            && matches!(plugin.manifest.kind, Kind::Remote { .. })
        {
            plugin.asks.clone_from(&hello.permissions);
            plugin.has_said_hello = true;
        }
        let ungranted = self.ungranted(name);
        self.feed(name, Event::Grants(ungranted));
    }

    /// Changes what operators have granted to a plugin, and tells how it stands.
    pub(super) fn change_grants(&mut self, name: &PluginName, change: GrantChange, reply: Reply) {
        let known = self.plugins.get(name).filter(|plugin| !plugin.leaving);
        if known.is_none() {
            let (name, suggestion) = (name.to_string(), String::new());
            return drop(reply.send(Err(Error::NoSuchPlugin { name, suggestion })));
        }
        let changed = match change {
            GrantChange::None => {
                let answer = self.granted(name, Vec::new());
                return drop(reply.send(Ok(answer)));
            }
            GrantChange::Give(permissions, by) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let now = now.map_or(0, |since| since.as_secs());
                match self.grants.given.give(name, permissions, &by, now) {
                    Ok(given) => given,
                    Err(Full) => {
                        let (plugin, limit) = (name.clone(), MAX_GRANTS);
                        return drop(reply.send(Err(Error::GrantsFull { plugin, limit })));
                    }
                }
            }
            GrantChange::Take(permissions) => self.grants.given.take(name, &permissions),
        };
        self.put_permissions_in_force();
        let ungranted = self.ungranted(name);
        self.feed(name, Event::Grants(ungranted));
        // Also when nothing has changed: what is there already may not be on the disk yet.
        self.grants.keep(&self.keeper);
        let answer = self.granted(name, changed);
        self.grants.unkept.push(Unkept {
            plugin: name.clone(),
            version: self.grants.version,
            deadline: Instant::now() + PATIENCE,
            answer,
            reply,
        });
    }

    fn granted(&self, name: &PluginName, changed: Vec<Permission>) -> Granted {
        let granting = self.work.gatekeeper.policy().granting;
        let plugin = self.plugins.get(name);
        let standings =
            plugin.map(|plugin| plugin.review(&self.grants.given, granting).standings());
        Granted {
            changed,
            standings: standings.unwrap_or_default(),
        }
    }

    pub(super) fn answer_grants(&mut self) {
        self.grants.answer(&self.keeper, Instant::now());
    }

    /// Of one whose last credential is gone nothing is left that a stranger of the same name would find.
    pub(super) fn forget_grants(&mut self, name: &PluginName) {
        if self.grants.given.forget(name) {
            self.grants.keep(&self.keeper);
        }
    }
}

/// What a plugin asks for.
pub(super) type Asks = Vec<(Permission, Need)>;
