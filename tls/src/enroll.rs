//! How a plugin on another machine gets its certificate, and the next one: the client of `Enrollment`.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use core_proto::v1;
use core_proto::v1::enrollment_client::EnrollmentClient;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::client::{ClientTls, Error};
use crate::join::JoinString;

/// A host that does not answer is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No key could be made, or the key that there is cannot be used.
    #[error("no certificate can be asked for")]
    Key(#[from] rcgen::Error),
    /// Nothing is safe.
    #[error(transparent)]
    Tls(#[from] Error),
    /// None of the addresses answers as the core should.
    #[error("no core answers: {tried}")]
    Unreachable {
        /// Each address, and what happened there.
        tried: String,
    },
    /// The core says no.
    #[error("the core refuses: {}", .0.message())]
    Refused(Box<Status>),
    /// The answer lacks something.
    #[error("the core's answer lacks {0}")]
    Incomplete(&'static str),
}

/// A key pair, and the request for a certificate of it. `Debug` shows no key.
pub struct NewKey {
    /// The private key, PKCS#8 in PEM.
    pub key_pem: String,
    /// The request, PKCS#10 in DER.
    pub csr_der: Vec<u8>,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NewKey(..)")
    }
}

impl NewKey {
    /// Makes a key pair (ECDSA P-256).
    ///
    /// # Errors
    /// [`EnrollError::Key`].
    pub fn generate() -> Result<Self, EnrollError> {
        Self::request_for(&KeyPair::generate()?)
    }

    /// A request for a key that there is.
    ///
    /// # Errors
    /// [`EnrollError::Key`].
    pub fn from_pem(key_pem: &str) -> Result<Self, EnrollError> {
        Self::request_for(&KeyPair::from_pem(key_pem)?)
    }

    fn request_for(key: &KeyPair) -> Result<Self, EnrollError> {
        let request = CertificateParams::new(Vec::new())?.serialize_request(key)?;
        Ok(Self {
            key_pem: key.serialize_pem(),
            csr_der: request.der().to_vec(),
        })
    }
}

/// A plugin's certificate with all that belongs to it. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The plugin's name.
    pub plugin: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PEM.
    pub key_pem: String,
    /// Whom to trust, PEM.
    pub ca_pem: String,
    /// When to ask for another.
    pub renew_at: SystemTime,
    /// When it expires.
    pub expires_at: SystemTime,
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Enrolled")
            .field("plugin", &self.plugin)
            .field("renew_at", &self.renew_at)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Gets a certificate for an invitation. Answers with it and with the address that answered.
///
/// # Errors
/// [`EnrollError`]. After [`EnrollError::Refused`] the invitation may be used up.
///
/// # Cancel safety
/// The invitation may be used up.
pub async fn join(invitation: &JoinString) -> Result<(Enrolled, String), EnrollError> {
    let tls = ClientTls::pinned(invitation.pin)?;
    let key = NewKey::generate()?;
    let (channel, address) = connect_to_any(&invitation.addresses, &tls).await?;
    let answer = EnrollmentClient::new(channel)
        .join(v1::EnrollmentJoinRequest {
            id: invitation.id.clone(),
            secret: invitation.secret.clone(),
            csr: key.csr_der.into(),
        })
        .await;
    let answer = answer.map_err(|status| EnrollError::Refused(Box::new(status)))?;
    Ok((
        enrolled(answer.into_inner().identity, key.key_pem)?,
        address,
    ))
}

/// Gets another certificate with the one there is, for the same key.
///
/// # Errors
/// [`EnrollError`].
///
/// # Cancel safety
/// Safe: the certificate there is stays good.
pub async fn renew(
    addresses: &[String],
    tls: &ClientTls,
    key_pem: &str,
) -> Result<(Enrolled, String), EnrollError> {
    let key = NewKey::from_pem(key_pem)?;
    let (channel, address) = connect_to_any(addresses, tls).await?;
    let request = v1::EnrollmentRenewRequest {
        csr: key.csr_der.into(),
    };
    let answer = EnrollmentClient::new(channel).renew(request).await;
    let answer = answer.map_err(|status| EnrollError::Refused(Box::new(status)))?;
    Ok((
        enrolled(answer.into_inner().identity, key.key_pem)?,
        address,
    ))
}

fn enrolled(identity: Option<v1::Identity>, key_pem: String) -> Result<Enrolled, EnrollError> {
    let identity = identity.ok_or(EnrollError::Incomplete("the identity"))?;
    let time = |at: Option<core_proto::Timestamp>, what| {
        let at = at.ok_or(EnrollError::Incomplete(what))?;
        SystemTime::try_from(at).map_err(|_| EnrollError::Incomplete(what))
    };
    Ok(Enrolled {
        renew_at: time(identity.renew_at, "renew_at")?,
        expires_at: time(identity.expires_at, "expires_at")?,
        plugin: identity.plugin,
        certificate_pem: identity.certificate_pem,
        ca_pem: identity.ca_pem,
        key_pem,
    })
}

async fn connect_to_any(
    addresses: &[String],
    tls: &ClientTls,
) -> Result<(Channel, String), EnrollError> {
    let mut tried = Vec::new();
    for address in addresses {
        match connect(address, tls).await {
            Ok(channel) => return Ok((channel, address.clone())),
            Err(error) => tried.push(format!("{address}: {error}")),
        }
    }
    let tried = tried.join("; ");
    Err(EnrollError::Unreachable { tried })
}

async fn connect(address: &str, tls: &ClientTls) -> io::Result<Channel> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let (target, host) = (address.to_owned(), host.to_owned());
    let dial = async {
        let tcp = TcpStream::connect(&target).await?;
        tcp.set_nodelay(true)?;
        tls.connect(tcp, &host).await
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
    // The connection there is, once: an invitation is not sent twice.
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_| {
        let stream = stream.take();
        std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    Endpoint::from_static("http://core.local")
        .timeout(ANSWER_TIMEOUT)
        .connect_with_connector(once)
        .await
        .map_err(io::Error::other)
}
