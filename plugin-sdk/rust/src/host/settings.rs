//! Where the core is and how this process stands to it, read from the environment.

use std::path::PathBuf;

use core_proto::contract::env;
use core_proto::embed::Embedding;

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
}

/// How a plugin reaches its core.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) dialer: Dialer,
    pub(crate) kind: Kind,
    /// The name that the core knows the plugin by, where it is told.
    pub(crate) name: Option<String>,
    credential: Credential,
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
}

impl Settings {
    /// Reads `CORE_ADDR`, `CORE_TOKEN` or `CORE_TOKEN_FILE`, `CORE_PLUGIN` and `CORE_COOKIE`.
    ///
    /// # Errors
    /// What is missing, and what to do about it.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::from_variables(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let address: Address = get(env::ADDR)
            .ok_or(SettingsError::Missing {
                name: env::ADDR,
                remedy: "a core starts its plugins with it; for a remote plugin set it to \
                         unix:/path or host:port",
            })?
            .parse()?;
        let credential = match (get(env::TOKEN), get(env::TOKEN_FILE)) {
            (Some(token), _) => Credential::Token(Token::new(token)),
            (None, Some(path)) => Credential::File(path.into()),
            (None, None) => {
                return Err(SettingsError::Missing {
                    name: env::TOKEN,
                    remedy: "set it to the plugin's token, or CORE_TOKEN_FILE to a file that \
                             holds it",
                });
            }
        };
        Ok(Self {
            dialer: Dialer::new(address),
            kind: match get(env::COOKIE) {
                Some(_) => Kind::Child,
                None => Kind::Remote,
            },
            name: get(env::PLUGIN),
            credential,
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

    pub(crate) async fn token(&self) -> Result<Token, client::Error> {
        match &self.credential {
            Credential::Token(token) => Ok(token.clone()),
            Credential::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => Ok(Token::new(text)),
                Err(source) => Err(client::Error::TokenFile {
                    path: path.clone(),
                    source,
                }),
            },
        }
    }
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
