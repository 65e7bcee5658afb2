//! The one authorisation point. Every RPC passes [`Gatekeeper::admit`], every request frame of a
//! channel [`Gatekeeper::admit_frame`], every use of a topic, service, key or namespace
//! [`Gatekeeper::authorize`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::audit;
use super::credentials::{Credential, Credentials, Holder, OperatorToken, Worth};
use super::grants::{Effective, Mode, Verdict};
use super::identity::{Caller, Peer, Principal};
use super::permissions::{Action, Denied, Needs, NotGranted, Rule, part_of, reserved, rule_of};
use super::policy::{Policy, Reads};
use super::quota::Metering;
use super::refusal::{Error, expired, shortened};
use crate::channel::{Run, Runs};
use crate::config::Manage;
use crate::error::{Classify as _, ErrorKind};
use crate::types::{Cause, Pattern, PluginName, Source};

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
    /// Uses that were allowed in audit mode only.
    pub would_be_denied: AtomicU64,
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
    permissions: ArcSwap<HashMap<PluginName, Effective>>,
    /// Rises with each change of them, after it is in force.
    changed: watch::Sender<u64>,
    policy: Policy,
    /// Users who may act as operators.
    operators: HashSet<u32>,
    stats: Stats,
}

impl Gatekeeper {
    /// An authorisation point over the credentials and runs in force. `operators` are the users who may
    /// use the operator socket, the core's own among them.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        runs: Runs,
        permissions: HashMap<PluginName, Effective>,
        operators: impl IntoIterator<Item = u32>,
        policy: Policy,
    ) -> Self {
        let inner = Inner {
            credentials,
            runs,
            permissions: ArcSwap::from_pointee(permissions),
            changed: watch::Sender::new(0),
            policy,
            operators: operators.into_iter().collect(),
            stats: Stats::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What plugins may do from now on. Streams that were opened before and are not granted any more end:
    /// see [`Self::loses`].
    pub fn set_permissions(&self, permissions: HashMap<PluginName, Effective>) {
        self.inner.permissions.store(Arc::new(permissions));
        self.inner.changed.send_modify(|revision| *revision += 1);
    }

    /// How grants come about, and what becomes of uses without one.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.inner.policy
    }

    /// What plugins use of the core.
    #[must_use]
    pub fn metering(&self) -> &Metering {
        &self.inner.policy.metering
    }

    /// Completes when one of the patterns may not be read any more, which was granted before.
    pub fn loses(
        &self,
        source: &Source,
        reads: Reads,
        patterns: Vec<Pattern>,
    ) -> impl Future<Output = Denied> + Send + use<> {
        let source = source.clone();
        self.refuses(move |gatekeeper| {
            patterns.iter().try_for_each(|pattern| {
                let action = match reads {
                    Reads::Events => Action::Subscribe(pattern),
                    Reads::State => Action::WatchState(pattern),
                };
                gatekeeper.authorize_quietly(&source, action)
            })
        })
    }

    /// As [`Self::loses`], for a namespace of the storage.
    pub fn loses_storage(
        &self,
        source: &Source,
        namespace: String,
    ) -> impl Future<Output = Denied> + Send + use<> {
        let source = source.clone();
        self.refuses(move |gatekeeper| {
            gatekeeper.authorize_quietly(&source, Action::ReadStorage(&namespace))
        })
    }

    /// As [`Self::loses`], for a part of the core's management.
    pub fn loses_management(
        &self,
        source: &Source,
        method: &'static str,
        part: Manage,
    ) -> impl Future<Output = Denied> + Send + use<> {
        let source = source.clone();
        self.refuses(move |gatekeeper| match &source {
            Source::Plugin(plugin) if !gatekeeper.may_manage(plugin, part) => {
                Err(NotGranted::of_management(plugin, method, part).into())
            }
            _ => Ok(()),
        })
    }

    /// As [`Self::authorize`]; what is done all the same is not noted again with each change.
    fn authorize_quietly(&self, source: &Source, action: Action<'_>) -> Result<(), Denied> {
        if self.may(source, action) {
            return Ok(());
        }
        self.authorize(source, action)
    }

    /// Completes with what `judge` refuses, now or after a change of the permissions.
    fn refuses<J>(&self, judge: J) -> impl Future<Output = Denied> + Send + use<J>
    where
        J: Fn(&Self) -> Result<(), Denied> + Send + 'static,
    {
        let gatekeeper = self.clone();
        async move {
            let mut changed = gatekeeper.inner.changed.subscribe();
            loop {
                if let Err(denied) = judge(&gatekeeper) {
                    return denied;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
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
            self.inner.policy.audit.note(audit::Record {
                action: shortened(method),
                decision: audit::decision::DENIED,
                plugin: error.plugin().map(ToString::to_string).unwrap_or_default(),
                peer: peer.to_string(),
                rule: error.reason().as_str().to_owned(),
                ..audit::Record::default()
            });
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
        let credential = match self.identify(peer, method, presented)? {
            Identified::Plugin(credential) => credential,
            Identified::Operator(token) => {
                return self.admit_operator_token(peer, &token, method, rule, presented);
            }
            Identified::Outdated(credential, since) => {
                return Self::admit_outdated(credential, since, rule);
            }
        };
        match (peer, credential.uid) {
            (_, None) => {}
            (Peer::PluginSocket { uid }, Some(expected)) if *uid == expected => {}
            (Peer::PluginSocket { uid }, Some(expected)) => {
                self.note_wrong_user(&credential, *uid, expected);
                return Err(Error::WrongUser);
            }
            // Whose process it is shows on the socket only, and children are sent nowhere else.
            (_, Some(_)) => return Err(Error::WrongUser),
        }
        let needs = rule.and_then(|rule| rule.allows(Principal::Plugin));
        let needs = match (needs, part_of(method)) {
            (None, Some(part)) => Some(self.manages(&credential.plugin, method, part)?),
            (needs, _) => needs,
        };
        match needs.ok_or_else(|| Error::NotAllowed {
            method: shortened(method),
            caller: format!("plugin \"{}\"", credential.plugin),
            advice: "; it is served on the operator socket",
        })? {
            Needs::Certificate if presented.token.is_some() || !has_certificate(peer) => {
                Err(Error::NoCertificate {
                    method: shortened(method),
                })
            }
            Needs::Credential | Needs::Certificate => Ok(Admitted::Plugin(credential)),
            Needs::Run => {
                let run = self.live_run(&credential, presented.run)?;
                Ok(Admitted::Caller(self.plugin_caller(
                    run,
                    &credential,
                    presented,
                )?))
            }
        }
    }

    /// Whether a plugin may use what a part of the management opens.
    fn manages(&self, plugin: &PluginName, method: &str, part: Manage) -> Result<Needs, Error> {
        if self.may_manage(plugin, part) {
            return Ok(Needs::Run);
        }
        let missing = NotGranted::of_management(plugin, method, part);
        Err(Error::NotManaging(Box::new(missing)))
    }

    /// Whether a plugin may use a part of the core's management.
    #[must_use]
    pub fn may_manage(&self, plugin: &PluginName, part: Manage) -> bool {
        let permissions = self.inner.permissions.load();
        permissions
            .get(plugin)
            .is_some_and(|held| held.manages(part))
    }

    /// Whom the request's token, else the connection's certificate, speaks for.
    fn identify(
        &self,
        peer: &Peer,
        method: &str,
        presented: &Presented<'_>,
    ) -> Result<Identified, Error> {
        let now = SystemTime::now();
        let credentials = &self.inner.credentials;
        let (worth, is_token) = match (presented.token, peer) {
            (Some(token), _) => (credentials.token(token, now), true),
            (
                None,
                Peer::Tls {
                    certificate: Some(digest),
                    ..
                },
            ) => (credentials.certificate(digest, now), false),
            (None, _) => {
                return Err(Error::NoCredential {
                    method: shortened(method),
                });
            }
        };
        match worth.ok_or(Error::BadCredential)? {
            Worth::Good(Holder::Plugin(credential)) => Ok(Identified::Plugin(credential)),
            Worth::Good(Holder::Operator(token)) => Ok(Identified::Operator(token)),
            Worth::Expired(Holder::Plugin(credential), since) if !is_token => {
                // A connection outlives the certificate that it began with, as long as its plugin
                // keeps renewing: otherwise each renewal would cost it its calls in flight.
                let was_good = matches!(peer, Peer::Tls { since: began, .. } if *began < since);
                if was_good && credentials.has_certificate(&credential.plugin, now) {
                    return Ok(Identified::Plugin(credential));
                }
                Ok(Identified::Outdated(credential, since))
            }
            Worth::Expired(holder, since) => Err(expired(&holder, since)),
        }
    }

    /// With a certificate that has expired a plugin can get another one, and nothing else.
    fn admit_outdated(
        credential: Credential,
        since: SystemTime,
        rule: Option<&Rule>,
    ) -> Result<Admitted, Error> {
        let needs = rule.and_then(|rule| rule.allows(Principal::Plugin));
        let is_renewal = needs == Some(Needs::Certificate);
        if is_renewal && since + super::access::RENEWABLE_FOR > SystemTime::now() {
            return Ok(Admitted::Plugin(credential));
        }
        Err(expired(&Holder::Plugin(credential), since))
    }

    fn admit_operator_token(
        &self,
        peer: &Peer,
        token: &OperatorToken,
        method: &str,
        rule: Option<&Rule>,
        presented: &Presented<'_>,
    ) -> Result<Admitted, Error> {
        if peer.address().is_none() {
            let advice = "; on this machine use the operator socket";
            return Err(Error::OperatorToken { advice });
        }
        if !peer.is_private() {
            let advice = ": it could be read on the way. Listen with listen.tls";
            return Err(Error::OperatorToken { advice });
        }
        let name = format!("an operator (token {})", token.id);
        let mut caller = self.operator_caller(name, method, rule, presented)?;
        caller.revoked = Some(token.revoked.clone());
        Ok(Admitted::Caller(caller))
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
        let name = format!("an operator (uid {uid})");
        let caller = self.operator_caller(name, method, rule, presented)?;
        Ok(Admitted::Caller(caller))
    }

    fn operator_caller(
        &self,
        name: String,
        method: &str,
        rule: Option<&Rule>,
        presented: &Presented<'_>,
    ) -> Result<Caller, Error> {
        if rule
            .and_then(|rule| rule.allows(Principal::Operator))
            .is_none()
        {
            return Err(Error::NotAllowed {
                method: shortened(method),
                caller: name,
                advice: "; it needs a plugin's run",
            });
        }
        Ok(Caller {
            source: Source::Operator,
            run: None,
            meter: Arc::clone(self.metering().of_operators()),
            deadline: presented.deadline,
            cause: presented.parent.map(str::parse::<Cause>).transpose()?,
            traceparent: presented.traceparent.unwrap_or_default().to_owned(),
            revoked: None,
        })
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
            // Made while a plugin of that name ran elsewhere: it is worth nothing for the core's own.
            None if live.is_hosted() => Err(Error::BadCredential),
            _ => Ok(live),
        }
    }

    fn plugin_caller(
        &self,
        run: Arc<Run>,
        credential: &Credential,
        presented: &Presented<'_>,
    ) -> Result<Caller, Error> {
        Ok(Caller {
            source: Source::Plugin(run.plugin().clone()),
            meter: self.metering().of(run.plugin()),
            run: Some(run),
            deadline: presented.deadline,
            cause: presented.parent.map(str::parse::<Cause>).transpose()?,
            traceparent: presented.traceparent.unwrap_or_default().to_owned(),
            // The credential of one run ends with it.
            revoked: (credential.run.is_none()).then(|| credential.revoked.clone()),
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
                    method: shortened(method),
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
            meter: self.metering().of(run.plugin()),
            run: Some(Arc::clone(run)),
            deadline: None,
            cause: None,
            traceparent: String::new(),
            // The channel ends with it.
            revoked: None,
        }
    }

    /// Whether a caller may use a resource. Operators may use all but what is the core's own.
    #[must_use]
    pub fn may(&self, source: &Source, action: Action<'_>) -> bool {
        match self.verdict(source, action) {
            Verdict::Allowed => true,
            Verdict::NotGranted | Verdict::Denied => self.inner.policy.mode == Mode::Audit,
            Verdict::Reserved => false,
        }
    }

    fn verdict(&self, source: &Source, action: Action<'_>) -> Verdict {
        let Source::Plugin(plugin) = source else {
            return match reserved(action) {
                Some(_) if *source != Source::Core => Verdict::Reserved,
                _ => Verdict::Allowed,
            };
        };
        let permissions = self.inner.permissions.load();
        match permissions.get(plugin) {
            Some(held) => held.judge(plugin, action),
            None => Effective::default().judge(plugin, action),
        }
    }

    /// Judges the use of a resource; a denial is counted and audited. In audit mode what is not granted is
    /// done all the same, and noted.
    ///
    /// # Errors
    /// [`Denied`]; a missing grant comes with the entry that would allow it.
    pub fn authorize(&self, source: &Source, action: Action<'_>) -> Result<(), Denied> {
        let verdict = self.verdict(source, action);
        let denied = match (verdict, source) {
            (Verdict::Allowed, _) => return Ok(()),
            (Verdict::NotGranted, Source::Plugin(plugin)) => NotGranted::new(plugin, action).into(),
            (Verdict::Denied, Source::Plugin(plugin)) => NotGranted::denied(plugin, action).into(),
            (Verdict::Reserved | Verdict::NotGranted | Verdict::Denied, _) => {
                let resource = reserved(action).unwrap_or_default();
                Denied::Reserved {
                    resource: resource.chars().take(300).collect(),
                }
            }
        };
        let is_done = verdict != Verdict::Reserved && self.inner.policy.mode == Mode::Audit;
        let (counter, decision) = if is_done {
            (
                &self.inner.stats.would_be_denied,
                audit::decision::WOULD_BE_DENIED,
            )
        } else {
            (&self.inner.stats.denied, audit::decision::DENIED)
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.note_denial(source, &denied, verdict, decision);
        if is_done { Ok(()) } else { Err(denied) }
    }

    fn note_denial(
        &self,
        source: &Source,
        denied: &Denied,
        verdict: Verdict,
        decision: &'static str,
    ) {
        let run = self.inner.runs.get(source.as_str());
        let (action, resource) = match denied {
            Denied::NotGranted(missing) => missing.subject(),
            Denied::Reserved { resource } => ("write", resource.as_str()),
        };
        self.inner.policy.audit.note(audit::Record {
            action: action.to_owned(),
            decision,
            plugin: source.as_str().to_owned(),
            generation: run.map(|run| run.generation().0),
            resource: resource.to_owned(),
            rule: match verdict {
                Verdict::Reserved => "reserved",
                Verdict::Denied => "deny",
                Verdict::NotGranted | Verdict::Allowed => "not_granted",
            }
            .to_owned(),
            ..audit::Record::default()
        });
    }
}

/// Whom a credential speaks for, as far as it is good.
enum Identified {
    Plugin(Credential),
    Operator(OperatorToken),
    /// A certificate that expired then.
    Outdated(Credential, SystemTime),
}

fn has_certificate(peer: &Peer) -> bool {
    matches!(
        peer,
        Peer::Tls {
            certificate: Some(_),
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_token_on_the_plugins_socket_speaks_for_a_child() {
        use crate::channel::{ChannelId, Link, Outbox};
        use crate::types::Generation;
        let lamp = PluginName::parse("lamp").expect("good name");
        let (credentials, runs) = (Credentials::default(), Runs::default());
        let elsewhere = super::super::credentials::Token::random();
        credentials.set_static(&lamp, &elsewhere);
        let run = Run::hosted(lamp.clone(), Generation(1));
        let (outbox, _frames) = Outbox::new(1 << 20);
        let link = Link {
            channel: ChannelId::next(),
            plugin: lamp.clone(),
            outbox,
            max_calls_in_flight: 1,
        };
        drop(run.set_link(Some(link)));
        runs.insert(Arc::clone(&run));
        let own = credentials.issue(&lamp, run.id(), Some(7));
        let gatekeeper = Gatekeeper::new(credentials, runs, HashMap::new(), [], Policy::default());
        let admit = |peer: Peer, token: &super::super::credentials::Token| {
            let presented = Presented {
                token: Some(token.reveal()),
                ..Presented::default()
            };
            gatekeeper.admit(&peer, "coreruntime.v1.Storage/Get", &presented)
        };
        let socket = Peer::PluginSocket { uid: 7 };
        let tcp = Peer::Tcp(([127, 0, 0, 1], 1).into());
        assert!(matches!(
            admit(socket.clone(), &own),
            Ok(Admitted::Caller(_))
        ));
        assert!(matches!(admit(tcp.clone(), &own), Err(Error::WrongUser)));
        for peer in [socket, tcp] {
            assert!(matches!(admit(peer, &elsewhere), Err(Error::BadCredential)));
        }
    }

    #[test]
    fn only_listed_users_who_are_no_plugins_are_operators() {
        let gatekeeper = Gatekeeper::new(
            Credentials::default(),
            Runs::default(),
            HashMap::new(),
            [7, 8],
            Policy::default(),
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
