//! Tokens: 32 random bytes per run for children and embedded plugins, configured ones for remote
//! plugins. Only hashes are kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::types::{PluginName, RunId};

/// A secret. Shown by nothing but [`Token::reveal`].
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A new secret: 32 random bytes in hex.
    #[must_use]
    pub fn random() -> Self {
        Self(format!(
            "{:032x}{:032x}",
            rand::random::<u128>(),
            rand::random::<u128>()
        ))
    }

    /// A secret from elsewhere, white space around it ignored. `None` when it is shorter than 16
    /// bytes, which no real secret is.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim();
        (text.len() >= 16).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for the one who is to use it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Compares two secrets that the core itself holds, in constant time all the same.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(redacted)")
    }
}

/// Whom a token speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The plugin.
    pub plugin: PluginName,
    /// Tokens made for one run of a child or embedded plugin name it and die with it.
    pub run: Option<RunId>,
    /// The user that the peer of a unix socket must have.
    pub uid: Option<u32>,
}

/// The tokens in force. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// By hash. Short lock: no await inside.
    by_hash: Arc<RwLock<HashMap<[u8; 32], Credential>>>,
}

impl Credentials {
    /// Makes a token for one run of a child (`uid`: its user) or embedded plugin.
    #[must_use]
    pub fn issue(&self, plugin: &PluginName, run: &RunId, uid: Option<u32>) -> Token {
        let token = Token::random();
        let credential = Credential {
            plugin: plugin.clone(),
            run: Some(run.clone()),
            uid,
        };
        self.by_hash
            .write()
            .insert(hash(token.reveal()), credential);
        token
    }

    /// Ends the tokens of a run.
    pub fn revoke_run(&self, run: &RunId) {
        self.by_hash
            .write()
            .retain(|_, credential| credential.run.as_ref() != Some(run));
    }

    /// Makes `token` the only configured token of a remote plugin.
    pub fn set_static(&self, plugin: &PluginName, token: &Token) {
        let mut by_hash = self.by_hash.write();
        by_hash.retain(|_, credential| credential.run.is_some() || credential.plugin != *plugin);
        let credential = Credential {
            plugin: plugin.clone(),
            run: None,
            uid: None,
        };
        by_hash.insert(hash(token.reveal()), credential);
    }

    /// Ends the configured token of a plugin, if it has one.
    pub fn remove_static(&self, plugin: &PluginName) {
        self.by_hash
            .write()
            .retain(|_, credential| credential.run.is_some() || credential.plugin != *plugin);
    }

    /// Whom a presented token speaks for.
    #[must_use]
    pub fn verify(&self, presented: &str) -> Option<Credential> {
        let presented = hash(presented.trim());
        let by_hash = self.by_hash.read();
        // The look-up leaks timing of a hash only; the comparison of what it finds is constant-time.
        let (held, credential) = by_hash.get_key_value(&presented)?;
        bool::from(held.as_slice().ct_eq(presented.as_slice())).then(|| credential.clone())
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lamp() -> PluginName {
        PluginName::parse("lamp").expect("good name")
    }

    #[test]
    fn a_token_of_a_run_dies_with_it() {
        let credentials = Credentials::default();
        let run = RunId::random();
        let token = credentials.issue(&lamp(), &run, Some(7));
        let credential = credentials.verify(token.reveal()).expect("valid");
        assert_eq!(
            credential,
            Credential {
                plugin: lamp(),
                run: Some(run.clone()),
                uid: Some(7)
            }
        );
        credentials.revoke_run(&run);
        assert_eq!(credentials.verify(token.reveal()), None);
    }

    #[test]
    fn a_new_static_token_replaces_the_old_one() {
        let credentials = Credentials::default();
        let (old, new) = (Token::random(), Token::random());
        credentials.set_static(&lamp(), &old);
        credentials.set_static(&lamp(), &new);
        assert_eq!(credentials.verify(old.reveal()), None);
        assert_eq!(
            credentials
                .verify(&format!(" {}\n", new.reveal()))
                .map(|c| c.plugin),
            Some(lamp())
        );
    }

    #[test]
    fn a_removed_static_token_is_none() {
        let credentials = Credentials::default();
        let (run, token) = (RunId::random(), Token::random());
        credentials.set_static(&lamp(), &token);
        let own = credentials.issue(&lamp(), &run, None);
        credentials.remove_static(&lamp());
        assert_eq!(credentials.verify(token.reveal()), None);
        assert!(credentials.verify(own.reveal()).is_some(), "a run's stays");
    }

    #[test]
    fn secrets_are_not_shown() {
        let token = Token::random();
        assert_eq!(format!("{token:?}"), "Token(redacted)");
        assert!(Token::from_text("short").is_none());
    }
}
