//! The one authorisation point. Every RPC passes [`Gatekeeper::admit`], every request frame of a
//! channel [`Gatekeeper::admit_frame`], every use of a topic, service, key or namespace
//! [`Gatekeeper::authorize`], which is in `uses.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::audit;
use super::credentials::{Credential, Credentials, Holder, OperatorToken, Worth};
use super::grants::Effective;
use super::identity::{Caller, Peer, Principal, RequestId};
use super::permissions::{Needs, NotGranted, Rule, part_of, rule_of};
use super::policy::Policy;
use super::quota::Metering;
use super::refusal::{Error, expired, shortened};
use crate::channel::{Run, Runs};
use crate::config::Manage;
use crate::error::{Classify as _, ErrorKind};
use crate::types::{Cause, PluginName, Source};

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
    /// Which request it is; see [`Gatekeeper::next_request`].
    pub request: RequestId,
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
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    credentials: Credentials,
    runs: Runs,
    pub(super) permissions: ArcSwap<HashMap<PluginName, Effective>>,
    /// Rises with each change of them, after it is in force.
    pub(super) changed: watch::Sender<u64>,
    pub(super) policy: Policy,
    /// Users who may act as operators.
    operators: HashSet<u32>,
    requests: AtomicU64,
    pub(super) stats: Stats,
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
            requests: AtomicU64::new(1),
            stats: Stats::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The name of a request that has just come.
    #[must_use]
    pub fn next_request(&self) -> RequestId {
        RequestId::Rpc(self.inner.requests.fetch_add(1, Ordering::Relaxed))
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

    /// Where it notes what it decides.
    #[must_use]
    pub fn audit(&self) -> &audit::Audit {
        &self.inner.policy.audit
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
                request: presented.request.to_string(),
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
            return self.admit_operator(peer, (uid, supervised), method, rule, presented);
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
                    peer,
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
        let mut caller = self.operator_caller(token.name(), peer, method, rule, presented)?;
        caller.revoked = Some(token.revoked.clone());
        Ok(Admitted::Caller(caller))
    }

    fn admit_operator(
        &self,
        peer: &Peer,
        (uid, supervised): (u32, bool),
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
        let name = format!("uid {uid}");
        let caller = self.operator_caller(name, peer, method, rule, presented)?;
        Ok(Admitted::Caller(caller))
    }

    fn operator_caller(
        &self,
        name: String,
        peer: &Peer,
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
                caller: format!("an operator ({name})"),
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
            operator: Some(name.into()),
            peer: Some(peer.clone()),
            request: presented.request,
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
        peer: &Peer,
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
            operator: None,
            peer: Some(peer.clone()),
            request: presented.request,
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

    /// The caller of a channel's frames; made once per channel, from where it was opened if that is known.
    #[must_use]
    pub fn channel_caller(&self, run: &Arc<Run>, peer: Option<Peer>) -> Caller {
        Caller {
            source: Source::Plugin(run.plugin().clone()),
            meter: self.metering().of(run.plugin()),
            run: Some(Arc::clone(run)),
            deadline: None,
            cause: None,
            traceparent: String::new(),
            // The channel ends with it.
            revoked: None,
            operator: None,
            peer,
            request: RequestId::None,
        }
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
