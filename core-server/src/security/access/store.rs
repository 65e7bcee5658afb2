//! What is kept of credentials: a file in the data directory, for the core's user only. Names, times and
//! hashes; no secret.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files::{Outlives, write_atomically};
use crate::security::credentials::Digest;
use crate::types::PluginName;

/// Version of the file's form.
const VERSION: u32 = 1;

/// What kind of credential it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A secret.
    Token,
    /// Of a key that never left its machine.
    Certificate,
    /// May become a certificate. Never in the file: it does not outlive the core.
    Invitation,
}

impl Kind {
    /// The word of `CredentialInfo.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Certificate => "certificate",
            Self::Invitation => "invitation",
        }
    }
}

/// One credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Unique, never reused.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// The plugin that it speaks for; `None`: an operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// SHA-256 of the secret, or of the certificate, in hex.
    pub(super) digest: String,
    /// In seconds since 1970.
    pub created_at: u64,
    /// In seconds since 1970; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// It was made by a clock that was known to be behind: its expiry is not judged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clock_was_behind: bool,
}

impl Record {
    /// When it is judged to expire.
    pub(super) fn judged_expiry(&self) -> Option<SystemTime> {
        let at = self.expires_at.filter(|_| !self.clock_was_behind)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(at))
    }

    pub(super) fn parsed_digest(&self) -> Option<Digest> {
        self.digest
            .parse::<core_tls::Pin>()
            .ok()
            .map(|pin| *pin.as_bytes())
    }

    pub(super) fn parsed_plugin(&self) -> Option<PluginName> {
        PluginName::parse(self.plugin.as_deref()?).ok()
    }
}

/// What the file holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Content {
    version: u32,
    /// What the clock said when this was written, in seconds since 1970.
    pub(super) clock: u64,
    pub(super) credentials: Vec<Record>,
}

impl Default for Content {
    fn default() -> Self {
        Self {
            version: VERSION,
            clock: 0,
            credentials: Vec::new(),
        }
    }
}

impl Content {
    /// The plugins that have a credential here.
    pub(super) fn plugins(&self) -> BTreeSet<PluginName> {
        let plugins = self.credentials.iter().filter_map(Record::parsed_plugin);
        plugins.collect()
    }
}

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    pub(super) content: Content,
}

impl Store {
    /// Reads the file; one that is not there is as good as an empty one.
    ///
    /// # Errors
    /// It cannot be read or understood (`InvalidData`).
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("credentials.json");
        let content = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Content>(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Content::default(),
            Err(error) => return Err(error),
        };
        if content.version != VERSION {
            let newer = format!(
                "its version is {}, this core knows {VERSION}",
                content.version
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, newer));
        }
        Ok(Self { path, content })
    }

    /// Writes `content`, and takes it once it is on the disk.
    ///
    /// # Errors
    /// What writing gave; the content before stands.
    pub(super) fn replace(&mut self, mut content: Content, now: u64) -> io::Result<()> {
        content.clock = now;
        let text = serde_json::to_vec_pretty(&content)?;
        write_atomically(&self.path, &text, Outlives::Power)?;
        self.content = content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_a_newer_form_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let mut store = Store::open(home.path()).expect("none yet");
        assert!(store.content.credentials.is_empty());
        let record = Record {
            id: "a1".to_owned(),
            kind: Kind::Token,
            plugin: Some("lamp".to_owned()),
            label: String::new(),
            digest: "ab".repeat(32),
            created_at: 5,
            expires_at: Some(9),
            clock_was_behind: false,
        };
        let content = Content {
            credentials: vec![record.clone()],
            ..Content::default()
        };
        store.replace(content, 7).expect("written");
        let again = Store::open(home.path()).expect("there");
        assert_eq!(again.content.credentials, [record]);
        assert_eq!(again.content.clock, 7);
        let path = home.path().join("credentials.json");
        let newer = fs::read_to_string(&path).expect("text");
        let newer = newer.replace("\"version\": 1", "\"version\": 2");
        fs::write(&path, newer).expect("written");
        let error = Store::open(home.path()).expect_err("newer");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
