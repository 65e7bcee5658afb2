//! The core's own small certificate authority: its key never leaves the data directory; it signs the
//! core's own certificate and those of plugins on other machines.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use core_tls::Pin;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use crate::files::{Outlives, write_atomically};
use crate::types::PluginName;

/// Life of the authority's and of the core's own certificate: longer than the box. Whoever trusts them
/// was told their fingerprint, and is told anew when it changes.
const LONG: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Largest request for a certificate.
const MAX_CSR_BYTES: usize = 8 << 10;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key is open to others.
    #[error(
        "{} holds a private key and is open to others (mode {mode:03o}); run: chmod 600 {}",
        path.display(), path.display()
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A key belongs to another user.
    #[error("{} holds a private key and belongs to uid {owner}, not to the core's user", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// One of the two files is there and the other is not.
    #[error("{} is missing, and without it {} is worth nothing; restore it from a backup, or remove both for a new CA: every plugin on another machine has to be invited again then", missing.display(), present.display())]
    Half {
        /// The one that is not there.
        missing: PathBuf,
        /// The one that is.
        present: PathBuf,
    },
    /// It cannot be made or read.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// The file holds none.
    #[error("{} holds no certificate in PEM", path.display())]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
    /// The request is larger than any real one.
    #[error("a request for a certificate has at most {MAX_CSR_BYTES} bytes")]
    LargeRequest,
}

/// A certificate for a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// In PEM.
    pub pem: String,
    /// Its digest.
    pub digest: Pin,
    /// When it expires.
    pub expires_at: SystemTime,
}

/// The authority.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// The certificate that signs.
    certificate: CertificateDer<'static>,
    /// All that may be trusted, the one that signs first: a list, so that it can be replaced one day.
    bundle_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Authority")
            .field(&self.pin())
            .finish()
    }
}

/// Whether something was made now or was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// Now.
    Now,
    /// It was there.
    Before,
}

impl Authority {
    /// The authority of a directory, which is made if it is absent: `ca.pem` and `ca.key`.
    ///
    /// # Errors
    /// [`Error`], each with the fix.
    pub fn open_or_make(directory: &Path) -> Result<(Self, Made), Error> {
        let (certificate, key) = (directory.join("ca.pem"), directory.join("ca.key"));
        let half = |missing: &Path, present: &Path| Error::Half {
            missing: missing.to_owned(),
            present: present.to_owned(),
        };
        let made = match (certificate.exists(), key.exists()) {
            (true, true) => Made::Before,
            (true, false) => return Err(half(&key, &certificate)),
            // Broken off while it was made: nobody has seen it yet.
            (false, true | false) => {
                make(&certificate, &key)?;
                Made::Now
            }
        };
        Ok((Self::open(directory, &certificate, &key)?, made))
    }

    fn open(directory: &Path, certificate: &Path, key: &Path) -> Result<Self, Error> {
        let bundle_pem = read(certificate)?;
        let key = KeyPair::from_pem(&read_private(key)?)?;
        let first = CertificateDer::from_pem_slice(bundle_pem.as_bytes());
        let signing = first.map_err(|_| Error::NoCertificate {
            path: certificate.to_owned(),
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer: Issuer::from_ca_cert_der(&signing, key)?,
            certificate: signing,
            bundle_pem,
        })
    }

    /// The digest of the certificate that signs: what join strings pin.
    #[must_use]
    pub fn pin(&self) -> Pin {
        Pin::of(&self.certificate)
    }

    /// Names this installation in certificates: 16 hex digits.
    #[must_use]
    pub fn home(&self) -> String {
        self.pin().to_string().chars().take(16).collect()
    }

    /// Whom to trust, in PEM.
    #[must_use]
    pub fn bundle_pem(&self) -> &str {
        &self.bundle_pem
    }

    /// The core's own certificate, for these names and addresses: `server.pem` (with the authority's,
    /// so that a pin can be checked) and `server.key`. Made anew when it is for others.
    ///
    /// # Errors
    /// [`Error`].
    pub fn server_certificate(&self, names: &[String]) -> Result<Made, Error> {
        let (certificate, key) = (
            self.directory.join("server.pem"),
            self.directory.join("server.key"),
        );
        let note = self.directory.join("server.json");
        let wanted = serde_json::json!({ "names": names, "authority": self.pin().to_string() });
        let wanted = wanted.to_string();
        if certificate.exists()
            && key.exists()
            && fs::read_to_string(&note).is_ok_and(|n| n == wanted)
        {
            check_private(&key)?;
            return Ok(Made::Before);
        }
        let pair = KeyPair::generate()?;
        let mut params = params(names.to_vec(), "core")?;
        params.not_after = moment(core_tls::believable(SystemTime::now()) + LONG);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = params.signed_by(&pair, &self.issuer)?;
        let chain = format!("{}{}", signed.pem(), self.bundle_pem);
        write(&key, &pair.serialize_pem())?;
        write(&certificate, &chain)?;
        write(&note, &wanted)?;
        Ok(Made::Now)
    }

    /// Where the core's own certificate and its key are.
    #[must_use]
    pub fn server_files(&self) -> (PathBuf, PathBuf) {
        (
            self.directory.join("server.pem"),
            self.directory.join("server.key"),
        )
    }

    /// A certificate for a plugin, good for `life`. Of the request only the public key is taken, once its signature has
    /// shown that the asker has the private one.
    ///
    /// # Errors
    /// [`Error::LargeRequest`]; [`Error::Certificate`]: it is no request, or of a key that is not known.
    pub fn sign(
        &self,
        request: &[u8],
        plugin: &PluginName,
        now: SystemTime,
        life: Duration,
    ) -> Result<Issued, Error> {
        if request.len() > MAX_CSR_BYTES {
            return Err(Error::LargeRequest);
        }
        let request = CertificateSigningRequestDer::from(request.to_vec());
        let request = CertificateSigningRequestParams::from_der(&request)?;
        let expires_at = core_tls::believable(now) + life;
        let mut params = params(Vec::new(), plugin.as_str())?;
        let uri = format!("core://{}/plugin/{plugin}", self.home());
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.not_after = moment(expires_at);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&request.public_key, &self.issuer)?;
        Ok(Issued {
            pem: signed.pem(),
            digest: Pin::of(signed.der()),
            expires_at,
        })
    }
}

fn make(certificate: &Path, key: &Path) -> Result<(), Error> {
    let pair = KeyPair::generate()?;
    // Two cores of one house are told apart by people too.
    let name = format!("Core Runtime {:08x}", rand::random::<u32>());
    let mut params = params(Vec::new(), &name)?;
    params.not_after = moment(core_tls::believable(SystemTime::now()) + LONG);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let signed = params.self_signed(&pair)?;
    write(key, &pair.serialize_pem())?;
    write(certificate, &signed.pem())
}

fn params(names: Vec<String>, common_name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(names)?;
    params.not_before = moment(SystemTime::UNIX_EPOCH + core_tls::NOT_BEFORE);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // Positive, and not too long for anybody: RFC 5280, 4.1.2.2.
    let serial = (rand::random::<u128>() >> 1).to_be_bytes();
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn moment(time: SystemTime) -> time::OffsetDateTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    rcgen::date_time_ymd(1970, 1, 1) + since.unwrap_or(Duration::ZERO)
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    let written = write_atomically(path, content.as_bytes(), Outlives::Power);
    written.map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads a private key, if it is the core's user's alone.
pub(crate) fn read_private(path: &Path) -> Result<String, Error> {
    check_private(path)?;
    read(path)
}

fn check_private(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let owner = metadata.uid();
    let own = rustix::process::geteuid().as_raw();
    if owner != own && own != 0 {
        return Err(Error::Foreign {
            path: path.to_owned(),
            owner,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(24 * 3_600);

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_the_users_alone() {
        let home = tempfile::tempdir().expect("a directory");
        let (first, made) = Authority::open_or_make(home.path()).expect("made");
        assert_eq!(made, Made::Now);
        let (again, made) = Authority::open_or_make(home.path()).expect("there");
        assert_eq!((made, again.pin()), (Made::Before, first.pin()));
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        assert_eq!(again.server_certificate(&names).expect("made"), Made::Now);
        assert_eq!(
            again.server_certificate(&names).expect("there"),
            Made::Before
        );
        assert_eq!(
            again.server_certificate(&names[..1]).expect("made"),
            Made::Now
        );
        for entry in fs::read_dir(home.path()).expect("there") {
            let entry = entry.expect("readable");
            let mode = entry.metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_fix() {
        let home = tempfile::tempdir().expect("a directory");
        drop(Authority::open_or_make(home.path()).expect("made"));
        let key = home.path().join("ca.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).expect("ours");
        let error = Authority::open_or_make(home.path()).expect_err("exposed");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_ca_without_its_key_is_not_replaced_in_silence() {
        let home = tempfile::tempdir().expect("a directory");
        drop(Authority::open_or_make(home.path()).expect("made"));
        fs::remove_file(home.path().join("ca.key")).expect("there");
        let error = Authority::open_or_make(home.path()).expect_err("half");
        assert!(matches!(error, Error::Half { .. }), "{error}");
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let home = tempfile::tempdir().expect("a directory");
        let (authority, _) = Authority::open_or_make(home.path()).expect("made");
        let key = core_tls::NewKey::generate().expect("made");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let issued = authority.sign(&key.csr_der, &lamp(), now, LIFE);
        let issued = issued.expect("signed");
        assert_eq!(issued.expires_at, now + LIFE);
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).expect("PEM");
        assert_eq!(Pin::of(&der), issued.digest);
        let uri = format!("core://{}/plugin/lamp", authority.home());
        let held = der
            .windows(uri.len())
            .any(|window| window == uri.as_bytes());
        assert!(held, "the name is the core's to give");
        for bad in [&b"nonsense"[..], &[0; MAX_CSR_BYTES + 1], &key.csr_der[1..]] {
            let refused = authority.sign(bad, &lamp(), now, LIFE);
            refused.expect_err("no request");
        }
        let mut forged = key.csr_der.clone();
        *forged.last_mut().expect("bytes") ^= 1;
        authority
            .sign(&forged, &lamp(), now, LIFE)
            .expect_err("no proof of the key");
    }

    #[test]
    fn a_clock_that_is_behind_makes_certificates_that_are_valid() {
        let home = tempfile::tempdir().expect("a directory");
        let (authority, _) = Authority::open_or_make(home.path()).expect("made");
        let key = core_tls::NewKey::generate().expect("made");
        let issued = authority
            .sign(&key.csr_der, &lamp(), SystemTime::UNIX_EPOCH, LIFE)
            .expect("signed");
        assert!(issued.expires_at > SystemTime::UNIX_EPOCH + core_tls::NOT_BEFORE);
    }
}
