//! The one authorisation point. Every RPC passes [`Gatekeeper::admit`], every request frame of a
//! channel [`Gatekeeper::admit_frame`], every use of a topic, service, key or namespace
//! [`Gatekeeper::authorize`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::credentials::{Credential, Credentials};
use super::identity::{Caller, Peer, Principal};
use super::permissions::{Action, Denied, Needs, NotGranted, Rule, allows, reserved, rule_of};
use crate::channel::{CallerSlots, Run, Runs};
use crate::config::Permissions;
use crate::error::{Classify, ErrorKind, Reason};
use crate::types::{BadCause, Cause, PluginName, Source};

/// Why a request was not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no credential where one is needed.
    #[error(
        "{method} needs a credential: send the metadata `authorization: Bearer <token>`; a child process has its token in CORE_TOKEN"
    )]
    NoCredential {
        /// What was asked for.
        method: String,
    },
    /// Unknown, revoked, or of an ended run.
    #[error("the token is not valid: it is unknown, or its run has ended")]
    BadCredential,
    /// The peer's user is not the one the token was made for.
    #[error("the token was made for another user")]
    WrongUser,
    /// The peer of the operator socket is no operator.
    #[error("uid {uid} is not an operator of this core; add it to `operators` in core.toml")]
    NotOperator {
        /// The peer's user.
        uid: u32,
    },
    /// A plugin's process came through the operator socket.
    #[error("processes of a plugin may not use the operator socket; use CORE_ADDR and CORE_TOKEN")]
    SupervisedPeer,
    /// This kind of caller may not use this RPC.
    #[error("{caller} may not use {method}{advice}")]
    NotAllowed {
        /// What was asked for.
        method: String,
        /// Who asked.
        caller: String,
        /// Where it is to be had.
        advice: &'static str,
    },
    /// The plugin has no live channel.
    #[error("plugin \"{plugin}\" has no live channel: open one (PluginChannel.Open) first")]
    NoRun {
        /// Which.
        plugin: PluginName,
    },
    /// The request names an ended run.
    #[error("run {run} of plugin \"{plugin}\" has ended; use the run of the latest Welcome")]
    StaleRun {
        /// Which plugin.
        plugin: PluginName,
        /// Which run, as it was sent.
        run: String,
    },
    /// `core-parent` cannot be read.
    #[error(transparent)]
    BadParent(#[from] BadCause),
}

impl Error {
    /// Whether the caller is known all the same: the credential was valid, the request was not.
    #[must_use]
    pub fn is_told_to_somebody_known(&self) -> bool {
        match self {
            Self::NotAllowed { .. }
            | Self::NoRun { .. }
            | Self::StaleRun { .. }
            | Self::BadParent(_) => true,
            Self::NoCredential { .. }
            | Self::BadCredential
            | Self::WrongUser
            | Self::NotOperator { .. }
            | Self::SupervisedPeer => false,
        }
    }
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoCredential { .. } | Self::BadCredential | Self::WrongUser => {
                ErrorKind::Unauthenticated
            }
            Self::NotOperator { .. } | Self::SupervisedPeer | Self::NotAllowed { .. } => {
                ErrorKind::PermissionDenied
            }
            Self::NoRun { .. } | Self::StaleRun { .. } => ErrorKind::FailedPrecondition,
            Self::BadParent(_) => ErrorKind::InvalidArgument,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NoCredential { .. } | Self::BadCredential | Self::WrongUser => {
                Reason::BadCredential
            }
            Self::NotOperator { .. } | Self::SupervisedPeer | Self::NotAllowed { .. } => {
                Reason::NotAllowed
            }
            Self::NoRun { .. } => Reason::NoRun,
            Self::StaleRun { .. } => Reason::StaleRun,
            Self::BadParent(_) => Reason::BadField,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NoCredential { method } => vec![("method", method.clone())],
            Self::NotAllowed { method, caller, .. } => {
                vec![("method", method.clone()), ("caller", caller.clone())]
            }
            Self::NoRun { plugin } => vec![("plugin", plugin.to_string())],
            Self::StaleRun { plugin, run } => {
                vec![("plugin", plugin.to_string()), ("run", run.clone())]
            }
            Self::BadParent(_) => vec![("field", "core-parent".to_owned())],
            Self::BadCredential | Self::WrongUser | Self::SupervisedPeer => Vec::new(),
            Self::NotOperator { uid } => vec![("uid", uid.to_string())],
        }
    }
}

/// What a request carries of its caller, out of its metadata.
#[derive(Clone, Debug, Default)]
pub struct Presented<'a> {
    /// The bearer token.
    pub token: Option<&'a str>,
    /// The run named.
    pub run: Option<&'a str>,
    /// What the caller was handling.
    pub parent: Option<&'a str>,
    /// Time that is left.
    pub deadline: Option<Instant>,
    /// W3C trace context.
    pub traceparent: Option<&'a str>,
}

/// Who was admitted.
#[derive(Clone, Debug)]
pub enum Admitted {
    /// To an RPC that is open to anybody.
    Anonymous,
    /// A plugin to an RPC that needs no run.
    Plugin(Credential),
    /// A plugin with a live run, or an operator.
    Caller(Caller),
}

/// What the gatekeeper counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests without a valid credential.
    pub unauthenticated: AtomicU64,
    /// Requests of known callers that were not allowed.
    pub denied: AtomicU64,
}

/// The authorisation point. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gatekeeper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    credentials: Credentials,
    runs: Runs,
    permissions: ArcSwap<HashMap<PluginName, Permissions>>,
    /// Users who may act as operators.
    operators: HashSet<u32>,
    operator_slots: Arc<CallerSlots>,
    stats: Stats,
}

impl Gatekeeper {
    /// An authorisation point over the credentials and runs in force. `operators` are the users who may
    /// use the operator socket, the core's own among them.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        runs: Runs,
        permissions: HashMap<PluginName, Permissions>,
        operators: impl IntoIterator<Item = u32>,
    ) -> Self {
        let inner = Inner {
            credentials,
            runs,
            permissions: ArcSwap::from_pointee(permissions),
            operators: operators.into_iter().collect(),
            operator_slots: Arc::default(),
            stats: Stats::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What plugins may do from now on; streams that were opened before stay open.
    pub fn set_permissions(&self, permissions: HashMap<PluginName, Permissions>) {
        self.inner.permissions.store(Arc::new(permissions));
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// Judges one RPC: `method` is "package.Service/Method".
    ///
    /// # Errors
    /// [`Error`], by what the caller can do.
    pub fn admit(
        &self,
        peer: &Peer,
        method: &str,
        presented: &Presented<'_>,
    ) -> Result<Admitted, Error> {
        let admitted = self.judge(peer, method, presented);
        if let Err(error) = &admitted {
            let counter = match error.kind() {
                ErrorKind::Unauthenticated => &self.inner.stats.unauthenticated,
                _ => &self.inner.stats.denied,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn judge(
        &self,
        peer: &Peer,
        method: &str,
        presented: &Presented<'_>,
    ) -> Result<Admitted, Error> {
        let rule = rule_of(method);
        if rule.is_some_and(Rule::is_open) {
            return Ok(Admitted::Anonymous);
        }
        if let Peer::OperatorSocket { uid, supervised } = *peer {
            return self.admit_operator(uid, supervised, method, rule, presented);
        }
        let Some(token) = presented.token else {
            return Err(Error::NoCredential {
                method: method.to_owned(),
            });
        };
        let credential = self
            .inner
            .credentials
            .verify(token)
            .ok_or(Error::BadCredential)?;
        if let (Peer::PluginSocket { uid }, Some(expected)) = (peer, credential.uid)
            && *uid != expected
        {
            self.note_wrong_user(&credential, *uid, expected);
            return Err(Error::WrongUser);
        }
        let needs = rule.and_then(|rule| rule.allows(Principal::Plugin));
        match needs.ok_or_else(|| Error::NotAllowed {
            method: method.to_owned(),
            caller: format!("plugin \"{}\"", credential.plugin),
            advice: "; it is served on the operator socket",
        })? {
            Needs::Credential => Ok(Admitted::Plugin(credential)),
            Needs::Run => {
                let run = self.live_run(&credential, presented.run)?;
                Ok(Admitted::Caller(self.plugin_caller(run, presented)?))
            }
        }
    }

    fn admit_operator(
        &self,
        uid: u32,
        supervised: bool,
        method: &str,
        rule: Option<&Rule>,
        presented: &Presented<'_>,
    ) -> Result<Admitted, Error> {
        if supervised {
            return Err(Error::SupervisedPeer);
        }
        if !self.inner.operators.contains(&uid) {
            return Err(Error::NotOperator { uid });
        }
        if rule
            .and_then(|rule| rule.allows(Principal::Operator))
            .is_none()
        {
            return Err(Error::NotAllowed {
                method: method.to_owned(),
                caller: format!("an operator (uid {uid})"),
                advice: "; it needs a plugin's run",
            });
        }
        Ok(Admitted::Caller(Caller {
            source: Source::Operator,
            run: None,
            slots: Arc::clone(&self.inner.operator_slots),
            deadline: presented.deadline,
            cause: presented.parent.map(str::parse::<Cause>).transpose()?,
            traceparent: presented.traceparent.unwrap_or_default().to_owned(),
        }))
    }

    /// A child that changes its user can never open its channel: its run is told, so that it is not
    /// tried again and again.
    fn note_wrong_user(&self, credential: &Credential, uid: u32, expected: u32) {
        let run = self.inner.runs.get(credential.plugin.as_str());
        if let Some(run) = run.filter(|run| credential.run.as_ref() == Some(run.id())) {
            run.note_refusal(format!(
                "its token was made for uid {expected}, and a process of uid {uid} presents it"
            ));
        }
    }

    fn live_run(&self, credential: &Credential, named: Option<&str>) -> Result<Arc<Run>, Error> {
        let plugin = &credential.plugin;
        let stale = |run: &str| Error::StaleRun {
            plugin: plugin.clone(),
            run: run.to_owned(),
        };
        let live = self.inner.runs.get(plugin.as_str());
        let live = match (live, named) {
            (Some(live), Some(named)) if live.id().as_str() != named => return Err(stale(named)),
            (None, Some(named)) => return Err(stale(named)),
            (live, _) => live.filter(|run| run.link().is_some()),
        };
        let live = live.ok_or_else(|| Error::NoRun {
            plugin: plugin.clone(),
        })?;
        match &credential.run {
            Some(run) if run != live.id() => Err(stale(run.as_str())),
            _ => Ok(live),
        }
    }

    fn plugin_caller(&self, run: Arc<Run>, presented: &Presented<'_>) -> Result<Caller, Error> {
        Ok(Caller {
            source: Source::Plugin(run.plugin().clone()),
            slots: Arc::clone(run.slots()),
            run: Some(run),
            deadline: presented.deadline,
            cause: presented.parent.map(str::parse::<Cause>).transpose()?,
            traceparent: presented.traceparent.unwrap_or_default().to_owned(),
        })
    }

    /// Judges a request frame on a plugin's channel: `method` is "Service/Method".
    ///
    /// # Errors
    /// [`Error::NotAllowed`]; frames of ended runs do not get here.
    pub fn admit_frame(&self, method: &str, plugin: &PluginName) -> Result<(), Error> {
        let full = format!("coreruntime.v1.{method}");
        match rule_of(&full).and_then(|rule| rule.allows(Principal::Plugin)) {
            Some(_) => Ok(()),
            None => {
                self.inner.stats.denied.fetch_add(1, Ordering::Relaxed);
                Err(Error::NotAllowed {
                    // It may be as long as a message, and stands twice in the answer.
                    method: method.chars().take(80).collect(),
                    caller: format!("plugin \"{plugin}\""),
                    advice: "; it is served on the operator socket",
                })
            }
        }
    }

    /// The caller of a channel's frames; made once per channel.
    #[must_use]
    pub fn channel_caller(&self, run: &Arc<Run>) -> Caller {
        Caller {
            source: Source::Plugin(run.plugin().clone()),
            slots: Arc::clone(run.slots()),
            run: Some(Arc::clone(run)),
            deadline: None,
            cause: None,
            traceparent: String::new(),
        }
    }

    /// Whether a caller may use a resource. Operators may use all but what is the core's own.
    #[must_use]
    pub fn may(&self, source: &Source, action: Action<'_>) -> bool {
        let Source::Plugin(plugin) = source else {
            return *source == Source::Core || reserved(action).is_none();
        };
        let permissions = self.inner.permissions.load();
        match permissions.get(plugin) {
            Some(granted) => allows(granted, plugin, action),
            None => allows(&Permissions::default(), plugin, action),
        }
    }

    /// Judges the use of a resource; a denial is counted.
    ///
    /// # Errors
    /// [`Denied`]; a missing grant comes with the entry that would allow it.
    pub fn authorize(&self, source: &Source, action: Action<'_>) -> Result<(), Denied> {
        if self.may(source, action) {
            return Ok(());
        }
        self.inner.stats.denied.fetch_add(1, Ordering::Relaxed);
        Err(match (reserved(action), source) {
            (None, Source::Plugin(plugin)) => NotGranted::new(plugin, action).into(),
            (resource, _) => {
                let resource = resource.unwrap_or_default().chars().take(300).collect();
                Denied::Reserved { resource }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_users_who_are_no_plugins_are_operators() {
        let gatekeeper = Gatekeeper::new(
            Credentials::default(),
            Runs::default(),
            HashMap::new(),
            [7, 8],
        );
        let admit = |uid, supervised| {
            let peer = Peer::OperatorSocket { uid, supervised };
            let method = "coreruntime.v1.PluginManager/List";
            gatekeeper.admit(&peer, method, &Presented::default())
        };
        assert!(matches!(admit(7, false), Ok(Admitted::Caller(_))));
        assert!(matches!(admit(8, true), Err(Error::SupervisedPeer)));
        assert!(matches!(
            admit(9, false),
            Err(Error::NotOperator { uid: 9 })
        ));
    }
}
