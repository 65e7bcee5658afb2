//! Where the core is and how this process stands to it, read from the environment.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use core_proto::contract::env;
use core_proto::embed::Embedding;
use core_tls::{BadJoinString, ClientTls, CredentialsDir, JoinString};

use super::enrollment::Enrollment;
use crate::client::{self, Address, BadAddress, Dialer, Token};

/// Who looks after this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The core started it and will start it again.
    Child,
    /// It runs by itself, perhaps on another machine, and reconnects for ever.
    Remote,
    /// It lives inside the core's process.
    Embedded,
}

#[derive(Clone, Debug)]
enum Credential {
    Token(Token),
    /// Read anew for each connection, so that a rotated token is taken up.
    File(PathBuf),
    /// The connection shows it.
    Certificate,
}

/// How a plugin reaches its core.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) dialer: Dialer,
    pub(crate) kind: Kind,
    /// The name that the core knows the plugin by, where it is told.
    pub(crate) name: Option<String>,
    credential: Credential,
    /// Where its certificate is kept and renewed.
    pub(crate) enrollment: Option<Enrollment>,
}

/// Why the environment does not say how to reach a core.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A variable that is needed is not set.
    #[error("{name} is not set: {remedy}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// `CORE_ADDR` is no address.
    #[error("CORE_ADDR cannot be used")]
    Address(#[from] BadAddress),
    /// `CORE_JOIN` is no join string.
    #[error("CORE_JOIN cannot be used")]
    Join(#[from] BadJoinString),
}

impl Settings {
    /// Reads `CORE_ADDR`, `CORE_TOKEN` or `CORE_TOKEN_FILE`, `CORE_PLUGIN` and `CORE_COOKIE`; for another
    /// machine also `CORE_CA_FILE`, `CORE_CERT_FILE` with `CORE_KEY_FILE`, or `CORE_CREDENTIALS_DIR`,
    /// once with `CORE_JOIN`. TLS is spoken exactly when a CA is known.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))
    }

    /// Waits before the next try to connect; less if there is another certificate to try with.
    pub(super) async fn wait(&self, wait: Duration) {
        let renewed = async {
            match &self.enrollment {
                Some(enrollment) => enrollment.renewed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = renewed => {}
        }
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let address: Option<Address> = get(env::ADDR).map(|text| text.parse()).transpose()?;
        let enrollment = enrollment(&get)?;
        if address.is_none() && enrollment.is_none() {
            return Err(no_address());
        }
        let certificate = match (get(env::CERT_FILE), get(env::KEY_FILE)) {
            (Some(certificate), Some(key)) => {
                Some((PathBuf::from(certificate), PathBuf::from(key)))
            }
            (None, None) => None,
            (certificate, _) => {
                return Err(SettingsError::Missing {
                    name: match certificate {
                        Some(_) => env::KEY_FILE,
                        None => env::CERT_FILE,
                    },
                    remedy: "certificate and key belong together",
                });
            }
        };
        let has_certificate = enrollment.is_some() || certificate.is_some();
        let credential = match (get(env::TOKEN), get(env::TOKEN_FILE)) {
            (Some(token), _) => Credential::Token(Token::new(token)),
            (None, Some(path)) => Credential::File(path.into()),
            (None, None) if has_certificate => Credential::Certificate,
            (None, None) => {
                return Err(SettingsError::Missing {
                    name: env::TOKEN,
                    remedy: "set it to the plugin's token, or CORE_TOKEN_FILE to a file that \
                             holds it; a plugin on another machine may have CORE_JOIN and \
                             CORE_CREDENTIALS_DIR instead",
                });
            }
        };
        let ca = get(env::CA_FILE);
        if ca.is_none() && certificate.is_some() {
            return Err(SettingsError::Missing {
                name: env::CA_FILE,
                remedy: "without the CA's certificate nobody knows whether the core is the core",
            });
        }
        let dialer = match (&enrollment, address, ca) {
            (Some(enrollment), address, _) => enrolled_dialer(&enrollment.directory, address),
            (None, Some(address), Some(ca)) => secure_dialer(address, ca.into(), certificate),
            (None, Some(address), None) => Dialer::new(address),
            (None, None, _) => return Err(no_address()),
        };
        Ok(Self {
            dialer,
            kind: match get(env::COOKIE) {
                Some(_) => Kind::Child,
                None => Kind::Remote,
            },
            name: get(env::PLUGIN),
            credential,
            enrollment,
        })
    }

    /// A remote plugin: it reconnects for ever.
    #[must_use]
    pub fn remote(address: Address, token: Token) -> Self {
        Self::over(Dialer::new(address), token)
    }

    /// A remote plugin that dials in its own way.
    #[must_use]
    pub fn over(dialer: Dialer, token: Token) -> Self {
        Self {
            dialer,
            kind: Kind::Remote,
            name: None,
            credential: Credential::Token(token),
            enrollment: None,
        }
    }

    pub(crate) fn embedded(embedding: Embedding) -> Self {
        let token = Token::new(&embedding.token);
        let connect = embedding.connect;
        Self {
            kind: Kind::Embedded,
            ..Self::over(Dialer::memory(move || connect()), token)
        }
    }

    /// The core started this process (`CORE_COOKIE` is set) and ends it.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.kind == Kind::Child
    }

    /// What each request carries; `None`: the connection says who it is.
    pub(crate) async fn token(&self) -> Result<Option<Token>, client::Error> {
        match &self.credential {
            Credential::Certificate => Ok(None),
            Credential::Token(token) => Ok(Some(token.clone())),
            Credential::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Some(Token::new(text))),
                Err(source) => Err(client::Error::TokenFile {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }
}

fn no_address() -> SettingsError {
    SettingsError::Missing {
        name: env::ADDR,
        remedy: "a core starts its plugins with it; for a remote plugin set it to unix:/path or \
                 host:port",
    }
}

fn enrollment(get: &impl Fn(&str) -> Option<String>) -> Result<Option<Enrollment>, SettingsError> {
    let invitation: Option<JoinString> = get(env::JOIN).map(|text| text.parse()).transpose()?;
    match get(env::CREDENTIALS_DIR) {
        Some(directory) => {
            let directory = CredentialsDir::new(directory);
            Ok(Some(Enrollment::new(directory, invitation)))
        }
        None if invitation.is_some() => Err(SettingsError::Missing {
            name: env::CREDENTIALS_DIR,
            remedy: "a join string is good once: name a directory where what it gives is kept",
        }),
        None => Ok(None),
    }
}

/// Dials with what a directory of credentials holds, once there is something.
fn enrolled_dialer(directory: &CredentialsDir, address: Option<Address>) -> Dialer {
    let shown = address.as_ref().map_or_else(
        || "the core that was joined".to_owned(),
        ToString::to_string,
    );
    let directory = directory.clone();
    Dialer::secure(&shown, move || {
        let identity = (directory.certificate(), directory.key());
        let tls = ClientTls::from_files(&directory.ca(), Some((&identity.0, &identity.1)));
        let addresses = match &address {
            Some(address) => vec![address.clone()],
            None => {
                let stored = directory.read()?.addresses;
                let parsed: Result<_, _> = stored.iter().map(|text| text.parse()).collect();
                parsed.map_err(io::Error::other)?
            }
        };
        Ok((tls.map_err(io::Error::other)?, addresses))
    })
}

/// Dials with certificates in files, read anew for each connection.
fn secure_dialer(address: Address, ca: PathBuf, identity: Option<(PathBuf, PathBuf)>) -> Dialer {
    Dialer::secure(&address.to_string(), move || {
        let identity = identity.as_ref();
        let identity = identity.map(|(certificate, key)| (certificate.as_path(), key.as_path()));
        let tls = ClientTls::from_files(&ca, identity).map_err(io::Error::other)?;
        Ok((tls, vec![address.clone()]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let get = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::from_variables(get).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cookie_makes_a_child() {
        let base = [("CORE_ADDR", "unix:/x"), ("CORE_TOKEN", "t")];
        assert!(!read(&base).expect("complete").is_child());
        let child = [
            base.as_slice(),
            &[("CORE_COOKIE", "c"), ("CORE_PLUGIN", "lamp-2")],
        ]
        .concat();
        let settings = read(&child).expect("complete");
        assert!(settings.is_child());
        assert_eq!(settings.name.as_deref(), Some("lamp-2"));
    }

    #[test]
    fn another_machine_needs_a_ca_and_a_credential_and_no_more() {
        let join = core_tls::JoinString {
            id: "a".to_owned(),
            secret: "b".to_owned(),
            pin: core_tls::Pin::of(b"x"),
            addresses: vec!["core.lan:7443".to_owned()],
        };
        let join = join.to_string();
        let address = ("CORE_ADDR", "core.lan:7443");
        let ca = ("CORE_CA_FILE", "/ca.pem");
        for good in [
            &[address, ca, ("CORE_TOKEN", "t")][..],
            &[
                address,
                ca,
                ("CORE_CERT_FILE", "/c"),
                ("CORE_KEY_FILE", "/k"),
            ],
            &[("CORE_JOIN", join.as_str()), ("CORE_CREDENTIALS_DIR", "/d")],
            &[("CORE_CREDENTIALS_DIR", "/d")],
        ] {
            read(good).expect("complete");
        }
        for (bad, named) in [
            (
                &[address, ca, ("CORE_CERT_FILE", "/c")][..],
                "CORE_KEY_FILE",
            ),
            (
                &[address, ("CORE_CERT_FILE", "/c"), ("CORE_KEY_FILE", "/k")],
                "CORE_CA_FILE",
            ),
            (&[("CORE_JOIN", join.as_str())], "CORE_CREDENTIALS_DIR"),
            (
                &[
                    ("CORE_JOIN", "corejoin1.cut"),
                    ("CORE_CREDENTIALS_DIR", "/d"),
                ],
                "CORE_JOIN",
            ),
        ] {
            let error = read(bad).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(read(&[]).expect_err("nothing").contains("CORE_ADDR"));
        assert!(
            read(&[("CORE_ADDR", "unix:/x")])
                .expect_err("no token")
                .contains("CORE_TOKEN_FILE")
        );
        assert!(
            read(&[("CORE_ADDR", "x")])
                .expect_err("no port")
                .contains("CORE_ADDR")
        );
    }
}
