//! Where the core is and what proves who we are: parsed once, trusted afterwards.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a core listens: `unix:/path` or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, without TLS.
    Tcp {
        /// Name or IP address, without brackets.
        host: String,
        /// Port, not 0.
        port: u16,
    },
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address of a core: {rule}; write unix:/path/to/core.sock or host:port")]
pub struct BadAddress {
    text: String,
    rule: &'static str,
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = |rule| BadAddress {
            text: text.to_owned(),
            rule,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err(bad("the path of a unix socket must be absolute"))
            };
        }
        if text.contains("//") {
            return Err(bad("it is a URL"));
        }
        let (host, port) = text.rsplit_once(':').ok_or(bad("it names no port"))?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest
                .strip_suffix(']')
                .ok_or(bad("a bracket is not closed"))?,
            None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(bad("it names no host"));
        }
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self::Tcp {
                host: host.to_owned(),
                port,
            }),
            _ => Err(bad("the port must be a number from 1 to 65535")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(formatter, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(formatter, "{host}:{port}"),
        }
    }
}

/// A secret that proves who its bearer is. Never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes the token as it is, without white space around it.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for text in [
            "unix:/run/core.sock",
            "localhost:7070",
            "10.0.0.7:1",
            "[::1]:7070",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        let url_like: Address = "unix:///run/core.sock".parse().expect("three slashes");
        assert_eq!(url_like.to_string(), "unix:/run/core.sock");
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        for (text, rule) in [
            ("unix:core.sock", "absolute"),
            ("http://localhost:7070", "URL"),
            ("localhost", "no port"),
            (":7070", "no host"),
            ("::1:7070", "brackets"),
            ("[::1:7070", "not closed"),
            ("localhost:0", "1 to 65535"),
            ("localhost:seven", "1 to 65535"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn a_token_is_trimmed_and_never_shown() {
        let token = Token::new(" secret\n");
        assert_eq!(token.reveal(), "secret");
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}
