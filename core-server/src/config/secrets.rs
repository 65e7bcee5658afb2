//! Fetches what `{ file = "…" }`, `{ env = "…" }`, `token_file` and `token_env` name. No message ever
//! holds what was fetched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::security::Token;

use super::error::{Origin, Problems, label};
use super::tree::{Data, Node, Reference};

/// Largest file that holds a secret.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// Largest configuration file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Whoever the system lets.
    Anybody,
    /// Its owner only, or it is refused.
    Owner,
}

/// Fetches secrets.
pub(super) struct Secrets<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) cwd: &'a Path,
    pub(super) problems: &'a mut Problems,
}

impl Secrets<'_> {
    /// What a reference names; one line end after a file's text does not belong to it.
    pub(super) fn fetch(
        &mut self,
        reference: &Reference,
        origin: &Origin,
        path: &str,
    ) -> Option<String> {
        match reference {
            Reference::File(file) => {
                let mut text = self.read(file, Readers::Anybody, origin, path)?;
                let end = text.strip_suffix('\n').unwrap_or(&text);
                text.truncate(end.strip_suffix('\r').unwrap_or(end).len());
                Some(text)
            }
            Reference::Environment(name) => self.variable(name, origin, path),
        }
    }

    /// The token in a file that only its owner can read.
    pub(super) fn token_file(&mut self, file: &Path, origin: &Origin, path: &str) -> Option<Token> {
        let text = self.read(file, Readers::Owner, origin, path)?;
        self.token(&text, origin, path)
    }

    /// The token in an environment variable.
    pub(super) fn token_variable(
        &mut self,
        name: &str,
        origin: &Origin,
        path: &str,
    ) -> Option<Token> {
        let text = self.variable(name, origin, path)?;
        self.token(&text, origin, path)
    }

    /// A checked value as JSON. `pointer` is where it stands in the whole, as a JSON pointer; those of
    /// secrets are added to `secrets`.
    pub(super) fn json(
        &mut self,
        node: &Node,
        path: &str,
        pointer: &str,
        secrets: &mut Vec<String>,
    ) -> Value {
        match &node.data {
            Data::Switch(switch) => (*switch).into(),
            Data::Integer(integer) => (*integer).into(),
            Data::Float(float) => (*float).into(),
            Data::Text(text) => text.as_str().into(),
            Data::List(items) => {
                let items = items.iter().enumerate();
                items
                    .map(|(index, item)| {
                        let pointer = format!("{pointer}/{index}");
                        self.json(item, path, &pointer, secrets)
                    })
                    .collect()
            }
            Data::Table(table) => {
                let members = table.iter().map(|(key, entry)| {
                    let escaped = key.replace('~', "~0").replace('/', "~1");
                    let pointer = format!("{pointer}/{escaped}");
                    let path = format!("{path}.{key}");
                    let value = self.json(&entry.node, &path, &pointer, secrets);
                    (key.clone(), value)
                });
                Value::Object(members.collect())
            }
            Data::Secret(reference) => {
                secrets.push(pointer.to_owned());
                self.fetch(reference, &node.origin, path)
                    .map_or(Value::Null, Value::String)
            }
            Data::Concealed(value) => {
                secrets.push(pointer.to_owned());
                value.clone()
            }
            // The rest does not occur where anything may stand, or has been reported.
            Data::Unread(_) | Data::Time(_) | Data::Size(_) | Data::Path(_) | Data::Invalid => {
                Value::Null
            }
        }
    }

    fn token(&mut self, text: &str, origin: &Origin, path: &str) -> Option<Token> {
        let token = Token::from_text(text);
        if token.is_none() {
            let message = format!("{path}: the token there has fewer than 16 characters");
            self.problems.add(origin, message);
        }
        token
    }

    fn variable(&mut self, name: &str, origin: &Origin, path: &str) -> Option<String> {
        let value = self.environment.get(name);
        if value.is_none() {
            let message = format!("{path}: environment variable {name} is not set");
            self.problems.add(origin, message);
        }
        value.cloned()
    }

    fn read(
        &mut self,
        file: &Path,
        readers: Readers,
        origin: &Origin,
        path: &str,
    ) -> Option<String> {
        match read_text(file, MAX_SECRET_BYTES, readers) {
            Ok(text) => Some(text),
            Err(wrong) => {
                let file = label(file, self.cwd);
                self.problems.add(origin, format!("{path}: {file} {wrong}"));
                None
            }
        }
    }
}

/// The text of a configuration file.
///
/// # Errors
/// What is wrong with it, as the rest of a sentence that begins with its name.
pub(super) fn read_config(path: &Path) -> Result<String, String> {
    read_text(path, MAX_FILE_BYTES, Readers::Anybody)
}

fn read_text(path: &Path, max_bytes: u64, readers: Readers) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    // Before opening, which waits for a writer if it is a pipe.
    if !path.metadata().map_err(cannot)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode() & 0o777;
    if readers == Readers::Owner && mode & 0o077 != 0 {
        return Err(format!(
            "holds a token and is open to others (mode {mode:03o}); run: chmod 600 {}",
            path.display()
        ));
    }
    let mut bytes = Vec::new();
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > max_bytes {
        return Err(format!(
            "is larger than {}",
            super::units::show_size(max_bytes)
        ));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}
