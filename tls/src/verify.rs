//! Which certificates of a core a client takes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, server,
};

use crate::{Pin, believable, provider};

/// Whom a client trusts.
#[derive(Debug)]
pub(crate) enum Trusted {
    /// Whoever one of these has signed.
    Authorities(Arc<WebPkiServerVerifier>),
    /// Whoever was signed by a certificate with this digest, which comes with the chain.
    Pinned(Pin),
}

/// Takes the certificates of whom it trusts, by a clock that may be behind.
#[derive(Debug)]
pub(crate) struct Verifier {
    trusted: Trusted,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub(crate) fn authorities(roots: RootCertStore) -> Result<Self, server::VerifierBuilderError> {
        Ok(Self {
            trusted: Trusted::Authorities(web_pki(roots)?),
            provider: provider(),
        })
    }

    pub(crate) fn pinned(pin: Pin) -> Self {
        Self {
            trusted: Trusted::Pinned(pin),
            provider: provider(),
        }
    }
}

fn web_pki(
    roots: RootCertStore,
) -> Result<Arc<WebPkiServerVerifier>, server::VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()
}

fn believable_time(now: UnixTime) -> UnixTime {
    let now = believable(SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()));
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    UnixTime::since_unix_epoch(since.unwrap_or(crate::NOT_BEFORE))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let now = believable_time(now);
        let verify = |verifier: &WebPkiServerVerifier| {
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        match &self.trusted {
            Trusted::Authorities(verifier) => verify(verifier),
            Trusted::Pinned(pin) => {
                let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
                let pinned = intermediates.iter().find(|one| Pin::of(one) == *pin);
                let mut roots = RootCertStore::empty();
                roots.add(pinned.ok_or_else(unknown)?.clone().into_owned())?;
                verify(&*web_pki(roots).map_err(|_| unknown())?)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
