//! Tokens: 32 random bytes per run for children and embedded plugins, configured ones for remote
//! plugins, and those made at run time; certificates by their digest. Only hashes are kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::types::{PluginName, RunId};

/// How often it is looked whether a credential has expired.
const EXPIRY_EVERY: Duration = Duration::from_secs(1);

/// A secret. Shown by nothing but [`Token::reveal`].
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A new secret: 32 random bytes in hex.
    #[must_use]
    pub fn random() -> Self {
        Self(format!(
            "{:032x}{:032x}",
            rand::random::<u128>(),
            rand::random::<u128>()
        ))
    }

    /// A secret from elsewhere, white space around it ignored. `None` when it is shorter than 16
    /// bytes, which no real secret is.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        (text.len() >= 16).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the one who is to use it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Compares two secrets that the core itself holds, in constant time all the same.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(redacted)")
    }
}

/// SHA-256 of a secret, or of a certificate in DER.
pub type Digest = [u8; 32];

/// Whom a credential speaks for, if it is a plugin's.
#[derive(Clone, Debug)]
pub struct Credential {
    /// The plugin.
    pub plugin: PluginName,
    /// Tokens made for one run of a child or embedded plugin name it and die with it.
    pub run: Option<RunId>,
    /// The user that the peer of a unix socket must have.
    pub uid: Option<u32>,
    /// Its name, if somebody made it at run time.
    pub id: Option<Arc<str>>,
    /// Cancelled when the credential is worth nothing any more.
    pub revoked: CancellationToken,
}

impl Credential {
    /// A remote plugin's.
    #[must_use]
    pub fn of_remote(plugin: &PluginName) -> Self {
        Self {
            plugin: plugin.clone(),
            run: None,
            uid: None,
            id: None,
            revoked: CancellationToken::new(),
        }
    }
}

/// Whether both speak for the same.
impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        (&self.plugin, &self.run, self.uid, &self.id)
            == (&other.plugin, &other.run, other.uid, &other.id)
    }
}

impl Eq for Credential {}

/// An operator's token, without the secret.
#[derive(Clone, Debug)]
pub struct OperatorToken {
    /// Its name.
    pub id: Arc<str>,
    /// Where it is used, for people; may be empty.
    pub label: Arc<str>,
    /// Cancelled when it is worth nothing any more.
    pub revoked: CancellationToken,
}

impl OperatorToken {
    /// How whoever uses it is called.
    #[must_use]
    pub fn name(&self) -> String {
        match self.label.as_ref() {
            "" => format!("token {}", self.id),
            label => format!("token {} ({label})", self.id),
        }
    }
}

/// Whom a credential speaks for.
#[derive(Clone, Debug)]
pub enum Holder {
    /// A plugin.
    Plugin(Credential),
    /// A person or tool with the operator's rights.
    Operator(OperatorToken),
}

impl Holder {
    fn revoked(&self) -> &CancellationToken {
        match self {
            Self::Plugin(credential) => &credential.revoked,
            Self::Operator(token) => &token.revoked,
        }
    }

    /// The mark of all that was opened with it so far; what is opened from now on has another.
    fn begin_anew(&mut self) -> CancellationToken {
        std::mem::take(match self {
            Self::Plugin(credential) => &mut credential.revoked,
            Self::Operator(token) => &mut token.revoked,
        })
    }

    fn id(&self) -> Option<&Arc<str>> {
        match self {
            Self::Plugin(credential) => credential.id.as_ref(),
            Self::Operator(token) => Some(&token.id),
        }
    }
}

/// What a presented credential is worth.
#[derive(Clone, Debug)]
pub enum Worth {
    /// It is good.
    Good(Holder),
    /// It expired then.
    Expired(Holder, SystemTime),
}

#[derive(Clone, Debug)]
struct Held {
    holder: Holder,
    /// `None`: never, or not judged.
    expires_at: Option<SystemTime>,
}

/// The credentials in force. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Tokens by the hash of the secret, certificates by their digest: neither can be mistaken for the
    /// other, since one is looked for in metadata and the other in the handshake. Short locks: no await
    /// inside.
    tokens: Arc<RwLock<HashMap<Digest, Held>>>,
    certificates: Arc<RwLock<HashMap<Digest, Held>>>,
}

impl Credentials {
    /// Makes a token for one run of a child (`uid`: its user) or embedded plugin.
    #[must_use]
    pub fn issue(&self, plugin: &PluginName, run: &RunId, uid: Option<u32>) -> Token {
        let token = Token::random();
        let credential = Credential {
            run: Some(run.clone()),
            uid,
            ..Credential::of_remote(plugin)
        };
        self.hold(hash(token.reveal()), Holder::Plugin(credential), None);
        token
    }

    /// Ends the tokens of a run.
    pub fn revoke_run(&self, run: &RunId) {
        self.end_tokens(|holder| match holder {
            Holder::Plugin(credential) => credential.run.as_ref() == Some(run),
            Holder::Operator(_) => false,
        });
    }

    /// Makes `token` the only configured token of a remote plugin.
    pub fn set_static(&self, plugin: &PluginName, token: &Token) {
        let digest = hash(token.reveal());
        if !self.is_static(&digest, plugin) {
            self.remove_static(plugin);
            self.hold(digest, Holder::Plugin(Credential::of_remote(plugin)), None);
        }
    }

    fn is_static(&self, digest: &Digest, plugin: &PluginName) -> bool {
        let tokens = self.tokens.read();
        let held = tokens.get(digest);
        held.is_some_and(|held| is_configured(&held.holder, plugin))
    }

    /// Whether a plugin has a configured token.
    #[must_use]
    pub fn has_static(&self, plugin: &PluginName) -> bool {
        let tokens = self.tokens.read();
        tokens
            .values()
            .any(|held| is_configured(&held.holder, plugin))
    }

    /// Ends the configured token of a plugin, if it has one.
    pub fn remove_static(&self, plugin: &PluginName) {
        self.end_tokens(|holder| is_configured(holder, plugin));
    }

    /// Takes a token that somebody made at run time, or that was kept, by its hash.
    pub fn hold_token(&self, digest: Digest, holder: Holder, expires_at: Option<SystemTime>) {
        self.hold(digest, holder, expires_at);
    }

    /// Takes a certificate that was issued, by its digest. All certificates of a plugin have one mark:
    /// what one has opened lives on when that gives way to its successors, and can still be ended.
    pub fn hold_certificate(
        &self,
        digest: Digest,
        mut holder: Holder,
        expires_at: Option<SystemTime>,
    ) {
        let mut certificates = self.certificates.write();
        if let Holder::Plugin(newcomer) = &mut holder {
            let earlier = certificates.values().find_map(|held| match &held.holder {
                Holder::Plugin(one) if one.plugin == newcomer.plugin => Some(one.revoked.clone()),
                _ => None,
            });
            newcomer.revoked = earlier.unwrap_or_default();
        }
        certificates.insert(digest, Held { holder, expires_at });
    }

    /// Ends what has this name. Whatever another certificate of the same plugin has opened ends with it,
    /// and may be opened again.
    pub fn revoke(&self, id: &str) {
        self.end_tokens(|holder| has_name(holder, id));
        let Some(Holder::Plugin(ended)) = self.take_certificate(id) else {
            return;
        };
        let anew = CancellationToken::new();
        let mut over = vec![ended.revoked];
        for held in self.certificates.write().values_mut() {
            if let Holder::Plugin(one) = &mut held.holder
                && one.plugin == ended.plugin
            {
                over.push(std::mem::replace(&mut one.revoked, anew.clone()));
            }
        }
        // Outside the lock: it wakes others.
        over.iter().for_each(CancellationToken::cancel);
    }

    /// A certificate that has successors is worth nothing any more; what it opened lives on.
    pub fn retire_certificate(&self, id: &str) {
        drop(self.take_certificate(id));
    }

    fn take_certificate(&self, id: &str) -> Option<Holder> {
        let mut certificates = self.certificates.write();
        let mut taken = certificates.extract_if(|_, held| has_name(&held.holder, id));
        taken.next().map(|(_, held)| held.holder)
    }

    /// Ends what was opened with credentials that have expired since. They stay known, so that whoever
    /// presents one is told. What a certificate has opened lives on while its plugin has another one.
    pub fn end_expired(&self, now: SystemTime) {
        let is_over = |held: &Held| held.expires_at.is_some_and(|at| at <= now);
        let plugin = |held: &Held| match &held.holder {
            Holder::Plugin(credential) => Some(credential.plugin.clone()),
            Holder::Operator(_) => None,
        };
        let mut over = Vec::new();
        if self.tokens.read().values().any(is_over) {
            let mut tokens = self.tokens.write();
            let expired = tokens.values_mut().filter(|held| is_over(held));
            over.extend(expired.map(|held| held.holder.begin_anew()));
        }
        if self.certificates.read().values().any(is_over) {
            let mut certificates = self.certificates.write();
            let good = certificates.values().filter(|held| !is_over(held));
            let renewed: HashSet<_> = good.filter_map(plugin).collect();
            let expired = certificates.values_mut().filter(|held| is_over(held));
            let left =
                expired.filter(|held| plugin(held).is_none_or(|one| !renewed.contains(&one)));
            // Also those that have all expired keep one mark in common: one of them may be renewed.
            let mut marks: HashMap<PluginName, CancellationToken> = HashMap::new();
            for held in left {
                over.push(held.holder.begin_anew());
                if let Holder::Plugin(one) = &mut held.holder {
                    one.revoked = marks.entry(one.plugin.clone()).or_default().clone();
                }
            }
        }
        // Outside the locks: it wakes others.
        over.iter().for_each(CancellationToken::cancel);
    }

    /// Does [`Self::end_expired`] in time until it is told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EXPIRY_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.end_expired(SystemTime::now()),
            }
        }
    }

    fn hold(&self, digest: Digest, holder: Holder, expires_at: Option<SystemTime>) {
        let held = Held { holder, expires_at };
        self.tokens.write().insert(digest, held);
    }

    fn end_tokens(&self, is_over: impl Fn(&Holder) -> bool) {
        end(&self.tokens, is_over);
    }

    /// What a presented token is worth; `None`: it is none.
    #[must_use]
    pub fn token(&self, presented: &str, now: SystemTime) -> Option<Worth> {
        find(&self.tokens, &hash(presented.trim()), now)
    }

    /// What a certificate is worth that was proven in a handshake; `None`: it was not issued by this
    /// core, or was revoked.
    #[must_use]
    pub fn certificate(&self, digest: &Digest, now: SystemTime) -> Option<Worth> {
        find(&self.certificates, digest, now)
    }

    /// Whether this certificate is still known, expired or not.
    #[must_use]
    pub fn has_certificate_named(&self, id: &str) -> bool {
        let certificates = self.certificates.read();
        let mut ids = certificates.values().filter_map(|held| held.holder.id());
        ids.any(|known| **known == *id)
    }

    /// Whether a plugin has a certificate that is good now.
    #[must_use]
    pub fn has_certificate(&self, plugin: &PluginName, now: SystemTime) -> bool {
        self.certificates.read().values().any(|held| {
            let is_its = matches!(&held.holder, Holder::Plugin(one) if one.plugin == *plugin);
            is_its && held.expires_at.is_none_or(|at| at > now)
        })
    }

    /// Whom a plugin's token speaks for.
    #[cfg(test)]
    #[must_use]
    pub fn verify(&self, presented: &str) -> Option<Credential> {
        match self.token(presented, SystemTime::now())? {
            Worth::Good(Holder::Plugin(credential)) => Some(credential),
            _ => None,
        }
    }
}

fn has_name(holder: &Holder, id: &str) -> bool {
    holder.id().is_some_and(|known| **known == *id)
}

fn is_configured(holder: &Holder, plugin: &PluginName) -> bool {
    match holder {
        Holder::Plugin(credential) => {
            credential.run.is_none() && credential.id.is_none() && credential.plugin == *plugin
        }
        Holder::Operator(_) => false,
    }
}

/// Ends some of them, and what was opened with them.
fn end(held: &RwLock<HashMap<Digest, Held>>, is_over: impl Fn(&Holder) -> bool) {
    let mut over = Vec::new();
    held.write().retain(|_, held| {
        let ends = is_over(&held.holder);
        if ends {
            over.push(held.holder.revoked().clone());
        }
        !ends
    });
    // Outside the lock: it wakes others.
    over.iter().for_each(CancellationToken::cancel);
}

fn find(
    held: &RwLock<HashMap<Digest, Held>>,
    presented: &Digest,
    now: SystemTime,
) -> Option<Worth> {
    let held = held.read();
    // The look-up leaks timing of a hash only; the comparison of what it finds is constant-time.
    let (digest, held) = held.get_key_value(presented)?;
    if !bool::from(digest.as_slice().ct_eq(presented.as_slice())) {
        return None;
    }
    let holder = held.holder.clone();
    Some(match held.expires_at {
        Some(at) if at <= now => Worth::Expired(holder, at),
        _ => Worth::Good(holder),
    })
}

/// The hash under which a secret is kept.
#[must_use]
pub fn digest_of(token: &Token) -> Digest {
    hash(token.reveal())
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    #[test]
    fn a_token_of_a_run_dies_with_it() {
        let credentials = Credentials::default();
        let run = RunId::random();
        let token = credentials.issue(&lamp(), &run, Some(7));
        let credential = credentials.verify(token.reveal()).expect("valid");
        assert_eq!(
            credential,
            Credential {
                run: Some(run.clone()),
                uid: Some(7),
                ..Credential::of_remote(&lamp())
            }
        );
        credentials.revoke_run(&run);
        assert_eq!(credentials.verify(token.reveal()), None);
        assert!(credential.revoked.is_cancelled(), "whoever used it is told");
    }

    #[test]
    fn a_new_static_token_replaces_the_old_one() {
        let credentials = Credentials::default();
        let (old, new) = (Token::random(), Token::random());
        credentials.set_static(&lamp(), &old);
        credentials.set_static(&lamp(), &new);
        assert_eq!(credentials.verify(old.reveal()), None);
        assert_eq!(
            credentials
                .verify(&format!(" {}\n", new.reveal()))
                .map(|c| c.plugin),
            Some(lamp())
        );
    }

    #[test]
    fn a_removed_static_token_is_none() {
        let credentials = Credentials::default();
        let (run, token) = (RunId::random(), Token::random());
        credentials.set_static(&lamp(), &token);
        let own = credentials.issue(&lamp(), &run, None);
        credentials.remove_static(&lamp());
        assert_eq!(credentials.verify(token.reveal()), None);
        assert!(credentials.verify(own.reveal()).is_some(), "a run's stays");
    }

    #[test]
    fn what_was_made_at_run_time_ends_by_its_name_and_by_its_time() {
        let credentials = Credentials::default();
        let (configured, made) = (Token::random(), Token::random());
        credentials.set_static(&lamp(), &configured);
        let holder = |id: &str| {
            Holder::Plugin(Credential {
                id: Some(id.into()),
                ..Credential::of_remote(&lamp())
            })
        };
        let at = |second| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        credentials.hold_token(digest_of(&made), holder("a"), Some(at(100)));
        credentials.hold_certificate([7; 32], holder("b"), Some(at(100)));
        // Another configured token leaves it alone.
        credentials.set_static(&lamp(), &Token::random());
        let worth = |now| credentials.token(made.reveal(), now);
        assert!(matches!(worth(at(99)), Some(Worth::Good(_))));
        assert!(matches!(worth(at(100)), Some(Worth::Expired(_, since)) if since == at(100)));
        let Some(Worth::Good(Holder::Plugin(live))) = credentials.certificate(&[7; 32], at(1))
        else {
            panic!("it is good");
        };
        credentials.revoke("b");
        assert!(live.revoked.is_cancelled() && credentials.certificate(&[7; 32], at(1)).is_none());
        assert!(worth(at(1)).is_some());
        credentials.revoke("a");
        assert!(worth(at(1)).is_none());
    }

    #[test]
    fn what_was_opened_ends_with_its_credential_s_time_unless_the_plugin_has_renewed() {
        let credentials = Credentials::default();
        let holder = |id: &str| {
            Holder::Plugin(Credential {
                id: Some(id.into()),
                ..Credential::of_remote(&lamp())
            })
        };
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let made = Token::random();
        credentials.hold_token(digest_of(&made), holder("a"), Some(at(100)));
        credentials.hold_certificate([1; 32], holder("b"), Some(at(100)));
        credentials.hold_certificate([2; 32], holder("c"), Some(at(200)));
        let mark = |worth| match worth {
            Some(Worth::Good(Holder::Plugin(one)) | Worth::Expired(Holder::Plugin(one), _)) => {
                one.revoked
            }
            other => panic!("not a plugin's: {other:?}"),
        };
        let token = mark(credentials.token(made.reveal(), at(99)));
        let [old, new] = [[1; 32], [2; 32]].map(|one| mark(credentials.certificate(&one, at(99))));
        credentials.end_expired(at(99));
        assert!(!token.is_cancelled());
        credentials.end_expired(at(100));
        assert!(token.is_cancelled());
        assert!(!old.is_cancelled(), "the plugin has renewed");
        assert!(!mark(credentials.token(made.reveal(), at(100))).is_cancelled());
        credentials.end_expired(at(200));
        assert!(old.is_cancelled() && new.is_cancelled());
    }

    #[test]
    fn secrets_are_not_shown() {
        let token = Token::random();
        assert_eq!(format!("{token:?}"), "Token(redacted)");
        assert!(Token::from_text("short").is_none());
    }
}
