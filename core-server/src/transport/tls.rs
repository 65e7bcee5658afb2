//! TLS on a listener: the certificate it shows, which can be replaced while it listens, and whose
//! certificates it takes.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

/// A server's TLS connection.
pub(super) type TlsStream<T> = tokio_rustls::server::TlsStream<T>;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("cannot use {}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not fit, or are of a kind that is not known.
    #[error("the certificate in {} cannot be used with its key", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority's own.
    #[error("the CA's certificate cannot be used: {0}")]
    Authority(String),
}

/// The certificate that is shown, and whose certificates are taken. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ArcSwap<ServerConfig>>,
    clients: Arc<dyn ClientCertVerifier>,
    certificate: PathBuf,
    key: PathBuf,
    /// As it was when they were read first.
    follower: Follower,
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tls")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Shows the certificate of these files and takes clients' certificates that one of `authorities`
    /// (PEM) has signed.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(certificate: &Path, key: &Path, authorities: &str) -> Result<Self, TlsError> {
        let clients: Arc<dyn ClientCertVerifier> = Arc::new(Timeless::new(authorities)?);
        // Before they are read: what is written meanwhile is noticed.
        let seen = Seen::of(certificate, key);
        let config = config(certificate, key, &clients)?;
        Ok(Self {
            follower: Follower::new(seen),
            config: Arc::new(ArcSwap::from_pointee(config)),
            clients,
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Reads the files again. Connections that there are stay as they are.
    ///
    /// # Errors
    /// [`TlsError`]; the certificate before is shown then.
    pub fn reload(&self) -> Result<(), TlsError> {
        let config = config(&self.certificate, &self.key, &self.clients)?;
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// What its files are on the disk now: another, when one of them was written or replaced.
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen::of(&self.certificate, &self.key)
    }

    /// Who follows its files from when they were read first.
    #[must_use]
    pub fn follower(&self) -> Follower {
        self.follower.clone()
    }

    /// Makes a connection safe.
    pub(super) async fn accept<T>(&self, io: T) -> std::io::Result<TlsStream<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(self.config.load_full()).accept(io).await
    }
}

/// Two files as they were seen: when they were written, how long they are, which they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen([Option<(SystemTime, u64, u64)>; 2]);

impl Seen {
    fn of(certificate: &Path, key: &Path) -> Self {
        Self([certificate, key].map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len(), data.ino()))
        }))
    }
}

/// Says when files that are looked at now and then are to be read again.
#[derive(Clone, Debug)]
pub struct Follower {
    read: Seen,
    last: Seen,
}

impl Follower {
    /// One for files that were read when they were like this.
    #[must_use]
    pub fn new(read: Seen) -> Self {
        let last = read.clone();
        Self { read, last }
    }

    /// Whether they are to be read now: they are other ones, and have been like this for two looks. A
    /// certificate and its key are written one after the other, and do not fit meanwhile.
    pub fn look(&mut self, now: Seen) -> bool {
        let changed = now != self.read && now == self.last;
        if changed {
            self.read.clone_from(&now);
        }
        self.last = now;
        changed
    }
}

/// The digest of the certificate that the peer has shown and proven to be its own.
pub(super) fn peer_certificate<T>(stream: &TlsStream<T>) -> Option<[u8; 32]> {
    let (_, connection) = stream.get_ref();
    let certificate = connection.peer_certificates()?.first()?;
    Some(*core_tls::Pin::of(certificate).as_bytes())
}

fn config(
    certificate: &Path,
    key: &Path,
    clients: &Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, TlsError> {
    let bad = |path: &Path, why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| bad(certificate, error.to_string()));
    let chain = chain?;
    if chain.is_empty() {
        return Err(bad(
            certificate,
            "it holds no certificate in PEM".to_owned(),
        ));
    }
    let text = crate::security::read_private(key)
        .map_err(|error| bad(key, crate::error::chain(&error)))?;
    let private = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| bad(key, "it holds no private key in PEM".to_owned()))?;
    let unusable = |source| TlsError::Unusable {
        path: certificate.to_owned(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(core_tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(Arc::clone(clients))
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    config.alpn_protocols = vec![core_tls::ALPN.to_vec()];
    // Every connection shows what it has anew: a ticket would outlive a revocation.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Takes the certificates of clients whatever the time is: when one has expired it is judged with each
/// request, where it is known whether the clock can be believed, and what the request is.
#[derive(Debug)]
struct Timeless {
    inner: Arc<dyn ClientCertVerifier>,
}

impl Timeless {
    fn new(authorities: &str) -> Result<Self, TlsError> {
        let bad = |error: &dyn std::error::Error| TlsError::Authority(crate::error::chain(error));
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            let authority = authority.map_err(|error| bad(&error))?;
            roots.add(authority).map_err(|error| bad(&error))?;
        }
        let provider = core_tls::provider();
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| bad(&error))?;
        Ok(Self { inner })
    }
}

impl ClientCertVerifier for Timeless {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let at = UnixTime::since_unix_epoch(core_tls::NOT_BEFORE + Duration::from_secs(1));
        self.inner.verify_client_cert(end_entity, intermediates, at)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_once_they_have_been_the_same_for_two_looks() {
        let seen = |length| Seen([Some((SystemTime::UNIX_EPOCH, length, 1)), None]);
        let mut follower = Follower::new(seen(1));
        // As they are at each look, and whether they are read then.
        for (length, read) in [
            (1, false),
            (2, false),
            (3, false),
            (3, true),
            (3, false),
            (1, false),
            (3, false),
            (4, false),
            (4, true),
        ] {
            assert_eq!(follower.look(seen(length)), read, "{length}");
        }
    }
}
