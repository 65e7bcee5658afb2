//! The client's end of a TLS connection.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::verify::Verifier;
use crate::{ALPN, Pin, provider};

/// A client's TLS connection.
pub type TlsStream<T> = tokio_rustls::client::TlsStream<T>;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds no certificate.
    #[error("{what} holds no certificate in PEM")]
    NoCertificate {
        /// What should.
        what: String,
    },
    /// It holds no private key.
    #[error("{what} holds no private key in PEM")]
    NoKey {
        /// What should.
        what: String,
    },
    /// The certificates or the key cannot be used.
    #[error("the certificates cannot be used")]
    Unusable(#[from] rustls::Error),
    /// No authority.
    #[error("the CA's certificates cannot be used")]
    Authorities(#[from] rustls::server::VerifierBuilderError),
}

/// How a client makes its connections safe. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientTls(..)")
    }
}

impl ClientTls {
    /// Trusts the CAs of a PEM file; shows a certificate where one is given, with its key.
    ///
    /// # Errors
    /// [`Error`].
    pub fn from_files(ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Self, Error> {
        let identity = identity
            .map(|(certificate, key)| Ok::<_, Error>((read(certificate)?, read(key)?)))
            .transpose()?;
        let identity = identity
            .as_ref()
            .map(|(certificate, key)| (certificate.as_slice(), key.as_slice()));
        Self::from_pem(&read(ca)?, identity)
    }

    /// As [`Self::from_files`], with what would stand in them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn from_pem(ca: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca, "the CA file")? {
            roots.add(authority)?;
        }
        Self::with(Verifier::authorities(roots)?, identity)
    }

    /// Trusts the CA whose certificate has this digest, once it shows it.
    ///
    /// # Errors
    /// [`Error::Unusable`].
    pub fn pinned(pin: Pin) -> Result<Self, Error> {
        Self::with(Verifier::pinned(pin), None)
    }

    fn with(verifier: Verifier, identity: Option<(&[u8], &[u8])>) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate, "the certificate file")?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| Error::NoKey {
                    what: "the key file".to_owned(),
                })?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self(Arc::new(config)))
    }

    /// Makes a connection safe. `host`: the name or IP address that was dialled; the certificate must be
    /// for it.
    ///
    /// # Errors
    /// `InvalidInput` when it is no name; `InvalidData` when the certificate is not taken, and by whom not;
    /// what the connection gave.
    ///
    /// # Cancel safety
    /// The connection is lost with it.
    pub async fn connect<T>(&self, io: T, host: &str) -> io::Result<TlsStream<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let host = host.trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.0))
            .connect(name, io)
            .await
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let none = || Error::NoCertificate {
        what: what.to_owned(),
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|_| none())?;
    if found.is_empty() {
        Err(none())
    } else {
        Ok(found)
    }
}
