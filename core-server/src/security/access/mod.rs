//! Who may come in: credentials that are made while the core runs.
//!
//! Owns: tokens that somebody makes, invitations, certificates of plugins, the file that keeps them over
//! restarts. Does not own: the credentials of runs and of the configuration (`credentials`), nor what a
//! known caller may do (`gatekeeper`).
//!
//! Invariants
//! - Nothing is handed out before it is on the disk. What was revoked is refused from that moment on,
//!   even if the disk does not take it.
//! - Secrets are handed out once and kept as hashes. Invitations live in memory and end with the core.
//! - A certificate is worth something as long as its record is there: a list of those allowed, so that
//!   losing it lets nobody in.
//!
//! Limits: 1,024 credentials, 8 live certificates of one plugin (the oldest gives way), 256 invitations.
//! Every function that changes something writes to the disk: not to be called on the runtime's threads.

mod invitations;
mod store;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use core_tls::JoinString;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::authority::{self, Authority};
use super::credentials::{Credential, Credentials, Holder, OperatorToken, Token, digest_of};
use crate::error::{Classify, ErrorKind, Outcome, Reason};
use crate::types::PluginName;
pub use invitations::Promised;
use invitations::{Invitation, Invitations, No};
use store::{Content, Store};
pub use store::{Kind, Record};

/// Credentials that are kept at once.
const MAX_RECORDS: usize = 1_024;
/// Certificates of one plugin that are good at once: renewals keep the one before.
const MAX_CERTIFICATES: usize = 8;
/// So long after its end a certificate is good for another one: devices are switched off.
pub const RENEWABLE_FOR: Duration = Duration::from_secs(30 * 86_400);
/// Time between two renewals of one plugin: each writes to the disk.
const RENEWALS_APART: Duration = Duration::from_secs(1);
/// Usual life of an invitation.
pub const INVITATION_LIFE: Duration = Duration::from_secs(600);

/// Why a credential is not made, used or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are too many.
    #[error("there are {limit} already; revoke some: corectl tokens list")]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// It could not be written, and so is not there.
    #[error("it cannot be written to the data directory, so nothing was made")]
    NotMade(#[source] io::Error),
    /// It is refused from now on, but could not be written.
    #[error(
        "it is revoked, but that cannot be written to the data directory: it would be good again after a restart of the core"
    )]
    NotKept(#[source] io::Error),
    /// No credential has this name.
    #[error("there is no credential \"{id}\"; corectl tokens list shows them")]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// This core does not listen with TLS.
    #[error(
        "this core does not listen with TLS: set listen.tls in core.toml (`core-server init` does it) and restart it"
    )]
    NoTls,
    /// The invitation is not good.
    #[error(
        "the invitation is not good: it was used, it is over (they last 10 min), or it was mistyped; make another with `corectl plugins invite`"
    )]
    BadInvitation,
    /// The certificate was revoked while another was being made.
    #[error("the certificate was revoked; invite the plugin again: corectl plugins invite")]
    Revoked,
    /// It has just been tried from there, or by that plugin.
    #[error("one attempt a second is allowed; try again")]
    TooSoon,
    /// The request for a certificate is not good.
    #[error("the request for a certificate cannot be used")]
    BadRequest(#[from] authority::Error),
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } | Self::TooSoon => ErrorKind::ResourceExhausted,
            Self::NotMade(_) | Self::NotKept(_) => ErrorKind::Unavailable,
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::NoTls => ErrorKind::FailedPrecondition,
            Self::BadInvitation | Self::Revoked => ErrorKind::Unauthenticated,
            Self::BadRequest(_) => ErrorKind::InvalidArgument,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Full { .. } => Reason::CredentialsFull,
            Self::NotMade(_) | Self::NotKept(_) => Reason::NotKept,
            Self::Unknown { .. } => Reason::NoSuchCredential,
            Self::NoTls => Reason::NoTls,
            Self::BadInvitation => Reason::BadInvitation,
            Self::Revoked => Reason::BadCredential,
            Self::TooSoon => Reason::TooManyAttempts,
            Self::BadRequest(_) => Reason::BadField,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::NotMade(cause) | Self::NotKept(cause) => vec![("cause", cause.to_string())],
            Self::Unknown { id } => vec![("id", id.clone())],
            Self::Full { limit } => vec![("limit", limit.to_string())],
            Self::BadRequest(_) => vec![("field", "csr".to_owned())],
            Self::NoTls | Self::BadInvitation | Self::Revoked | Self::TooSoon => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        matches!(self, Self::TooSoon).then_some(Duration::from_secs(1))
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::NotKept(_) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }
}

/// What a plugin on another machine is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub plugin: PluginName,
    /// Its certificate.
    pub certificate_pem: String,
    /// Whom it is to trust.
    pub ca_pem: String,
    /// When the certificate expires.
    pub expires_at: SystemTime,
    /// When to ask for another.
    pub renew_at: SystemTime,
}

/// Which credentials to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// These.
    Ids(Vec<String>),
    /// All of a plugin.
    OfPlugin(PluginName),
}

/// The credentials that are made while the core runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    credentials: Credentials,
    /// Guards the file. Held while it is written: never taken on the runtime's threads but to read.
    store: Mutex<Store>,
    invitations: Mutex<Invitations>,
    /// Which plugins have just renewed; no more than have certificates.
    renewed: Mutex<HashMap<PluginName, Instant>>,
    tls: Option<Tls>,
}

/// What certificates need.
#[derive(Debug)]
pub struct Tls {
    /// Who signs them.
    pub authority: Authority,
    /// Where plugins on other machines reach the core, likeliest first.
    pub addresses: Vec<String>,
    /// Life of a plugin's certificate.
    pub certificate_life: Duration,
}

impl Access {
    /// Reads what is kept in `directory` and puts it in force.
    ///
    /// # Errors
    /// The file cannot be read or understood.
    pub fn open(directory: &Path, credentials: Credentials, tls: Option<Tls>) -> io::Result<Self> {
        let store = Store::open(directory)?;
        for record in &store.content.credentials {
            hold(&credentials, record);
        }
        let inner = Inner {
            credentials,
            store: Mutex::new(store),
            invitations: Mutex::default(),
            renewed: Mutex::default(),
            tls,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The plugins that have a credential here, whether the configuration knows them or not.
    #[must_use]
    pub fn plugins(&self) -> BTreeSet<PluginName> {
        self.inner.store.lock().content.plugins()
    }

    /// Makes a token: a plugin's, or an operator's.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::NotMade`].
    pub fn create_token(
        &self,
        plugin: Option<&PluginName>,
        label: &str,
        valid_for: Option<Duration>,
    ) -> Result<(Record, Token), Error> {
        let token = Token::random();
        let now = SystemTime::now();
        let record = Record {
            plugin: plugin.map(ToString::to_string),
            label: label.to_owned(),
            expires_at: valid_for.map(|life| seconds(now + life)),
            ..self.record(Kind::Token, hex(&digest_of(&token)), now)
        };
        self.keep(&mut self.inner.store.lock(), record.clone(), now)?;
        Ok((record, token))
    }

    /// Whether this is a token of that plugin (`None`: of an operator) that was made by this core, was not
    /// revoked, and has not expired.
    #[must_use]
    pub fn is_token_of(&self, plugin: Option<&PluginName>, token: &Token) -> bool {
        let (digest, now) = (hex(&digest_of(token)), SystemTime::now());
        let plugin = plugin.map(PluginName::as_str);
        let store = self.inner.store.lock();
        store.content.credentials.iter().any(|record| {
            record.kind == Kind::Token
                && record.plugin.as_deref() == plugin
                && record.digest == digest
                && record.judged_expiry().is_none_or(|at| at > now)
        })
    }

    /// Whether the configuration gives a plugin a token: that one ends with the configuration.
    #[must_use]
    pub fn has_configured_token(&self, plugin: &PluginName) -> bool {
        self.inner.credentials.has_static(plugin)
    }

    /// Makes an invitation. What is promised is handed over by [`Self::join`].
    ///
    /// # Errors
    /// [`Error::NoTls`], [`Error::Full`].
    pub fn invite(
        &self,
        plugin: &PluginName,
        valid_for: Duration,
        promised: Promised,
    ) -> Result<(Record, JoinString), Error> {
        let tls = self.tls()?;
        let (secret, now) = (Token::random(), SystemTime::now());
        let record = Record {
            plugin: Some(plugin.to_string()),
            expires_at: Some(seconds(now + valid_for)),
            ..self.record(Kind::Invitation, String::new(), now)
        };
        let times = (record.created_at, seconds(now + valid_for));
        let digest = digest_of(&secret);
        let until = Instant::now() + valid_for;
        let invitation = Invitation::new(plugin.clone(), digest, until, times, promised);
        let mut invitations = self.inner.invitations.lock();
        if !invitations.add(record.id.clone(), invitation, Instant::now()) {
            return Err(Error::Full { limit: 256 });
        }
        let join = JoinString {
            id: record.id.clone(),
            secret: secret.reveal().to_owned(),
            pin: tls.authority.pin(),
            addresses: tls.addresses.clone(),
        };
        Ok((record, join))
    }

    /// Uses an invitation up. What was promised with it is to be granted by the caller.
    ///
    /// # Errors
    /// [`Error::NoTls`], [`Error::TooSoon`], [`Error::BadInvitation`], [`Error::BadRequest`],
    /// [`Error::Full`], [`Error::NotMade`]; but for the first three the invitation is used up.
    pub fn join(
        &self,
        id: &str,
        secret: &str,
        request: &[u8],
        from: Option<IpAddr>,
    ) -> Result<(Identity, Promised), Error> {
        self.tls()?;
        // Whatever is no secret is a wrong one, and counts as a guess.
        let secret = Token::from_text(secret).map_or([0; 32], |secret| digest_of(&secret));
        // Held until the certificate is kept: whoever revokes meanwhile waits, and finds it.
        let mut store = self.inner.store.lock();
        let taken = self
            .inner
            .invitations
            .lock()
            .take(id, &secret, from, Instant::now());
        let invitation = taken.map_err(|no| match no {
            No::Invalid => Error::BadInvitation,
            No::TooSoon => Error::TooSoon,
        })?;
        let identity = self.certify(&mut store, &invitation.plugin, request, "joined")?;
        Ok((identity, invitation.promised))
    }

    /// Another certificate for a plugin that has shown the one it has.
    ///
    /// # Errors
    /// [`Error::Revoked`], [`Error::TooSoon`], [`Error::NoTls`], [`Error::BadRequest`], [`Error::Full`],
    /// [`Error::NotMade`].
    pub fn renew(&self, shown: &Credential, request: &[u8]) -> Result<Identity, Error> {
        let mut store = self.inner.store.lock();
        // Under the lock, as revoking is: what was admitted before that must not come out of it anew.
        let is_held = |id: &Arc<str>| self.inner.credentials.has_certificate_named(id);
        if !shown.id.as_ref().is_some_and(is_held) {
            return Err(Error::Revoked);
        }
        let (renewed, now) = (&mut self.inner.renewed.lock(), Instant::now());
        renewed.retain(|_, at| now < *at + RENEWALS_APART);
        if renewed.contains_key(&shown.plugin) {
            return Err(Error::TooSoon);
        }
        renewed.insert(shown.plugin.clone(), now);
        self.certify(&mut store, &shown.plugin, request, "renewed")
    }

    fn certify(
        &self,
        store: &mut Store,
        plugin: &PluginName,
        request: &[u8],
        label: &str,
    ) -> Result<Identity, Error> {
        let Tls {
            authority,
            certificate_life,
            ..
        } = self.tls()?;
        let now = SystemTime::now();
        let known = store.content.clock;
        // Devices must not be locked out once the clock is right.
        let issued = authority.sign(request, plugin, at_least(now, known), *certificate_life)?;
        let record = Record {
            plugin: Some(plugin.to_string()),
            label: label.to_owned(),
            expires_at: Some(seconds(issued.expires_at)),
            clock_was_behind: is_behind(now, known),
            ..self.record(Kind::Certificate, issued.digest.to_string(), now)
        };
        self.keep(store, record, now)?;
        let expires_at = issued.expires_at;
        Ok(Identity {
            plugin: plugin.clone(),
            certificate_pem: issued.pem,
            ca_pem: authority.bundle_pem().to_owned(),
            expires_at,
            renew_at: expires_at - *certificate_life / 3,
        })
    }

    /// All credentials and open invitations, of one plugin or of everybody.
    #[must_use]
    pub fn list(&self, plugin: Option<&PluginName>) -> Vec<Record> {
        let mut records = self.inner.store.lock().content.credentials.clone();
        let invitations = self.inner.invitations.lock();
        records.extend(
            invitations
                .open(Instant::now())
                .map(|(id, invitation)| Record {
                    id: id.clone(),
                    kind: Kind::Invitation,
                    plugin: Some(invitation.plugin.to_string()),
                    label: String::new(),
                    digest: String::new(),
                    created_at: invitation.created_at,
                    expires_at: Some(invitation.expires_at),
                    clock_was_behind: false,
                }),
        );
        drop(invitations);
        let wanted = plugin.map(PluginName::as_str);
        records.retain(|record| wanted.is_none() || record.plugin.as_deref() == wanted);
        records.sort_by(|a, b| {
            (&a.plugin, a.created_at, &a.id).cmp(&(&b.plugin, b.created_at, &b.id))
        });
        records
    }

    /// Ends credentials: at once, then on the disk. How many.
    ///
    /// # Errors
    /// [`Error::Unknown`]: nothing ended; [`Error::NotKept`].
    pub fn revoke(&self, which: &Which) -> Result<usize, Error> {
        let ends = |id: &str, plugin: Option<&str>| match which {
            Which::Ids(ids) => ids.iter().any(|one| one == id),
            Which::OfPlugin(name) => plugin == Some(name.as_str()),
        };
        if let Which::Ids(ids) = which {
            let known = self.list(None);
            let unknown = ids
                .iter()
                .find(|id| !known.iter().any(|record| record.id == **id));
            if let Some(id) = unknown {
                return Err(Error::Unknown { id: id.clone() });
            }
        }
        let invitations = self
            .inner
            .invitations
            .lock()
            .close(|id, invitation| ends(id, Some(invitation.plugin.as_str())));
        let mut store = self.inner.store.lock();
        let mut content = store.content.clone();
        let (over, left): (Vec<_>, Vec<_>) = content
            .credentials
            .into_iter()
            .partition(|record| ends(&record.id, record.plugin.as_deref()));
        for record in &over {
            self.inner.credentials.revoke(&record.id);
        }
        content.credentials = left;
        let ended = invitations + over.len();
        if !over.is_empty() {
            let now = seconds(SystemTime::now());
            store.replace(content, now).map_err(Error::NotKept)?;
        }
        Ok(ended)
    }

    /// The authority, where this core listens with TLS.
    ///
    /// # Errors
    /// [`Error::NoTls`].
    pub fn tls(&self) -> Result<&Tls, Error> {
        self.inner.tls.as_ref().ok_or(Error::NoTls)
    }

    fn record(&self, kind: Kind, digest: String, now: SystemTime) -> Record {
        Record {
            id: format!("{:016x}", rand::random::<u64>()),
            kind,
            plugin: None,
            label: String::new(),
            digest,
            created_at: seconds(now),
            expires_at: None,
            clock_was_behind: false,
        }
    }

    /// Writes a record, then puts it in force. What is over for good makes room.
    fn keep(&self, store: &mut Store, record: Record, now: SystemTime) -> Result<(), Error> {
        let mut content = store.content.clone();
        let is_behind = is_behind(now, content.clock);
        let mut over = tidy(&mut content, now, is_behind);
        if record.kind == Kind::Certificate {
            over.extend(make_place(&mut content, &record));
        }
        if content.credentials.len() >= MAX_RECORDS {
            return Err(Error::Full { limit: MAX_RECORDS });
        }
        content.credentials.push(record.clone());
        // A clock that was set back for a moment does not take the memory of the right time with it.
        let clock = seconds(now).max(content.clock);
        store.replace(content, clock).map_err(Error::NotMade)?;
        for record in &over {
            match record.kind {
                Kind::Certificate => self.inner.credentials.retire_certificate(&record.id),
                Kind::Token | Kind::Invitation => self.inner.credentials.revoke(&record.id),
            }
        }
        hold(&self.inner.credentials, &record);
        Ok(())
    }
}

/// Takes out what nobody can use any more.
fn tidy(content: &mut Content, now: SystemTime, clock_is_behind: bool) -> Vec<Record> {
    if clock_is_behind {
        return Vec::new();
    }
    let is_over = |record: &Record| {
        let useful = match record.kind {
            Kind::Certificate => RENEWABLE_FOR,
            Kind::Token | Kind::Invitation => Duration::ZERO,
        };
        record.judged_expiry().is_some_and(|at| at + useful <= now)
    };
    let (over, left) = std::mem::take(&mut content.credentials)
        .into_iter()
        .partition(is_over);
    content.credentials = left;
    over
}

/// Takes out the oldest certificates of a plugin that is about to have one too many; of the same second,
/// those that were kept first.
fn make_place(content: &mut Content, newcomer: &Record) -> Vec<Record> {
    let same =
        |record: &&Record| record.kind == Kind::Certificate && record.plugin == newcomer.plugin;
    let mut certificates: Vec<_> = content.credentials.iter().filter(same).collect();
    certificates.sort_by_key(|record| record.created_at);
    let surplus = (certificates.len() + 1).saturating_sub(MAX_CERTIFICATES);
    let over = certificates.into_iter().take(surplus);
    let over: BTreeSet<_> = over.map(|record| record.id.clone()).collect();
    let (over, left) = std::mem::take(&mut content.credentials)
        .into_iter()
        .partition(|record| over.contains(&record.id));
    content.credentials = left;
    over
}

/// Whether a clock says an earlier time than it once did.
fn is_behind(now: SystemTime, known: u64) -> bool {
    seconds(now) < known || core_tls::believable(now) != now
}

fn at_least(now: SystemTime, known: u64) -> SystemTime {
    now.max(SystemTime::UNIX_EPOCH + Duration::from_secs(known))
}

/// Puts a kept credential in force.
fn hold(credentials: &Credentials, record: &Record) {
    let Some(digest) = record.parsed_digest() else {
        return;
    };
    let id: Arc<str> = record.id.as_str().into();
    let holder = match (&record.plugin, record.parsed_plugin()) {
        (None, _) => Holder::Operator(OperatorToken {
            id,
            label: record.label.as_str().into(),
            revoked: tokio_util::sync::CancellationToken::new(),
        }),
        (Some(_), Some(plugin)) => Holder::Plugin(Credential {
            id: Some(id),
            ..Credential::of_remote(&plugin)
        }),
        // A name that is none: somebody edited the file.
        (Some(_), None) => return,
    };
    match record.kind {
        Kind::Token => credentials.hold_token(digest, holder, record.judged_expiry()),
        Kind::Certificate => credentials.hold_certificate(digest, holder, record.judged_expiry()),
        Kind::Invitation => {}
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
