//! A directory with what a plugin has been given: `ca.pem`, `certificate.pem`, `key.pem` (0600) and
//! `core.json` (where the core is, and when to renew). What `CORE_CREDENTIALS_DIR` names.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::enroll::Enrolled;

/// A directory of credentials, there or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialsDir(PathBuf);

/// `core.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// The plugin's name.
    pub plugin: String,
    /// Where the core may be reached, `host:port`; the one that answered first.
    pub addresses: Vec<String>,
    /// When to ask for another certificate, in seconds since 1970.
    pub renew_at: u64,
    /// When the certificate expires, in seconds since 1970.
    pub expires_at: u64,
}

impl Stored {
    /// How long to wait before another certificate is asked for.
    #[must_use]
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        (SystemTime::UNIX_EPOCH + Duration::from_secs(self.renew_at))
            .duration_since(now)
            .unwrap_or(Duration::ZERO)
    }
}

impl CredentialsDir {
    /// A directory by its path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The certificates to trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// The plugin's certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    /// Its private key.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.join("key.pem")
    }

    /// Whether it holds a certificate already.
    #[must_use]
    pub fn holds_certificate(&self) -> bool {
        self.certificate().exists()
    }

    /// What stands in `core.json`.
    ///
    /// # Errors
    /// It cannot be read, or says something else (`InvalidData`).
    pub fn read(&self) -> io::Result<Stored> {
        let text = fs::read(self.0.join("core.json"))?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    }

    /// The private key.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_key(&self) -> io::Result<String> {
        fs::read_to_string(self.key())
    }

    /// Puts everything in its place, for the user's own eyes. Each file is replaced as a whole, the
    /// certificate last: it counts only with its key, which a renewal keeps.
    ///
    /// # Errors
    /// What writing gave; the old certificate stands then.
    pub fn write(&self, enrolled: &Enrolled, addresses: &[String]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)?;
        let stored = Stored {
            plugin: enrolled.plugin.clone(),
            addresses: addresses.to_vec(),
            renew_at: seconds(enrolled.renew_at),
            expires_at: seconds(enrolled.expires_at),
        };
        let stored = serde_json::to_vec_pretty(&stored)?;
        replace(&self.key(), enrolled.key_pem.as_bytes())?;
        replace(&self.ca(), enrolled.ca_pem.as_bytes())?;
        replace(&self.0.join("core.json"), &stored)?;
        replace(&self.certificate(), enrolled.certificate_pem.as_bytes())?;
        File::open(&self.0)?.sync_all()
    }
}

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_for_its_user_only_and_found_again() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = CredentialsDir::new(home.path().join("new/lamp"));
        assert!(!directory.holds_certificate());
        let enrolled = Enrolled {
            plugin: "lamp".to_owned(),
            certificate_pem: "certificate".to_owned(),
            key_pem: "key".to_owned(),
            ca_pem: "ca".to_owned(),
            renew_at: SystemTime::UNIX_EPOCH + Duration::from_secs(100),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(150),
        };
        let addresses = ["core.lan:7443".to_owned()];
        for _again in 0..2 {
            directory.write(&enrolled, &addresses).expect("written");
        }
        let stored = directory.read().expect("there");
        assert_eq!((stored.renew_at, stored.expires_at), (100, 150));
        assert_eq!(stored.addresses, addresses);
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        assert_eq!(stored.renew_in(at(40)), Duration::from_secs(60));
        assert_eq!(stored.renew_in(at(400)), Duration::ZERO);
        for path in [directory.ca(), directory.certificate(), directory.key()] {
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }
}
