//! Settings of the store: section `[storage]` of the configuration.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::adapter::StorageAdapter;
use super::error::OpenError;
use super::memory::MemoryAdapter;
use super::sqlite::SqliteAdapter;

/// Settings of the store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which engine.
    pub adapter: AdapterKind,
    /// The database's file. Its directory is created.
    pub path: PathBuf,
    /// What an answered write survives.
    pub durability: Durability,
    /// Largest value, in bytes; at most 1 MiB.
    pub max_value_bytes: usize,
    /// Writes that may wait for the writer; above it, QUEUE_FULL.
    pub queue_commands: usize,
    /// Bytes of keys and values that may wait; above it, QUEUE_FULL.
    pub queue_bytes: usize,
    /// Reads that run at once, each with a connection of its own.
    pub readers: usize,
    /// Memory for entries read or written lately; 0: none is kept.
    pub cache_bytes: usize,
    /// Most keys of a namespace for which nothing else was set; above it, QUOTA_KEYS.
    pub namespace_keys: u64,
    /// Most bytes of such a namespace, of each entry its namespace, key and value, and 64; above it,
    /// QUOTA_BYTES.
    pub namespace_bytes: u64,
    /// Most bytes of all namespaces, counted so; above it, QUOTA_BYTES.
    pub store_bytes: u64,
}

/// The engines there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// SQLite in one file.
    #[default]
    Sqlite,
    /// Nothing is kept: tests, `--ephemeral`.
    Memory,
}

/// What an answered write survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A crash of the core and the loss of power: each transaction is synced before it is answered.
    #[default]
    Full,
    /// A crash of the core only. The loss of power (or a crash of the operating system) takes back
    /// the last answered writes: those since the last checkpoint, which in a quiet house may be hours
    /// old. What is left is a state that the store once had, never a mixture.
    Normal,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            adapter: AdapterKind::Sqlite,
            path: PathBuf::from("data/runtime.db"),
            durability: Durability::Full,
            max_value_bytes: 256 << 10,
            queue_commands: 4_096,
            queue_bytes: 16 << 20,
            readers: 4,
            cache_bytes: 16 << 20,
            namespace_keys: 100_000,
            namespace_bytes: 64 << 20,
            store_bytes: 2 << 30,
        }
    }
}

impl Config {
    /// Settings that keep nothing on disk.
    #[must_use]
    pub fn memory() -> Self {
        Self {
            adapter: AdapterKind::Memory,
            ..Self::default()
        }
    }

    /// Settings for a database at `path`.
    #[must_use]
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`OpenError::BadConfig`], naming the setting and its bounds.
    pub fn validate(&self) -> Result<(), OpenError> {
        let within = |setting, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let rule = format!("{value} is not between {least} and {most}");
            Err(OpenError::BadConfig { setting, rule })
        };
        within("max_value_bytes", self.max_value_bytes, 1 << 10, 1 << 20)?;
        within("queue_commands", self.queue_commands, 1, 1 << 20)?;
        // One largest Apply must fit.
        within("queue_bytes", self.queue_bytes, 2 << 20, 1 << 30)?;
        within("readers", self.readers, 1, 64)?;
        within("cache_bytes", self.cache_bytes, 0, 1 << 34)?;
        if self.adapter == AdapterKind::Sqlite && self.path.file_name().is_none() {
            return Err(OpenError::BadConfig {
                setting: "path",
                rule: format!("\"{}\" names no file", self.path.display()),
            });
        }
        Ok(())
    }

    /// Opens the engine that the settings name: the one line to add for a new adapter.
    ///
    /// # Errors
    /// [`OpenError`]; the file is then as it was.
    pub fn open_adapter(&self) -> Result<Arc<dyn StorageAdapter>, OpenError> {
        self.validate()?;
        Ok(match self.adapter {
            AdapterKind::Sqlite => Arc::new(SqliteAdapter::open(&self.path, self.durability)?),
            AdapterKind::Memory => Arc::new(MemoryAdapter::default()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_bounds() {
        assert!(Config::default().validate().is_ok());
        let parsed: Config = toml::from_str("").expect("all settings have defaults");
        assert_eq!(parsed, Config::default());
    }

    #[test]
    fn bad_settings_are_named_with_their_bounds() {
        let config = Config {
            readers: 0,
            ..Config::default()
        };
        let error = config.validate().expect_err("no readers");
        assert_eq!(
            error.to_string(),
            "storage.readers: 0 is not between 1 and 64"
        );
        let error = Config::sqlite("").validate().expect_err("no path");
        assert!(error.to_string().contains("names no file"), "{error}");
        assert!(toml::from_str::<Config>("adaptor = \"sqlite\"").is_err());
    }
}
