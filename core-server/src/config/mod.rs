//! The configuration: read at the start and with each reload, checked as a whole, typed, trusted
//! afterwards.
//!
//! Owns: `core.toml`, `plugin.toml`, the names of environment variables and flags, every default and
//! every bound ([`Limits`]). Does not own: what the settings mean to a component, nor whether a
//! program or an address can be had; that shows when it is used.
//!
//! How it works: `settings.rs` describes what may be said, as data (`shape.rs`). Each layer (file,
//! environment, flags) becomes a tree whose values know their place (`tree.rs`), is checked against
//! the description by itself, and is laid over the one before. Then it is typed.
//!
//! Invariants
//! - Defaults < file < environment < flags; of a plugin: defaults < `plugin.toml` <
//!   `[plugins.NAME]` < environment. Tables are joined, lists and values replaced.
//! - A mistake in any layer is reported with its place even if another layer overrides it; all of them
//!   at once; before anything is bound, written or started.
//! - Unknown keys, and unknown variables that begin with `RUNTIME_`, are mistakes.
//! - No secret is in a message, in `Debug`, or in what `check-config` prints.
//!
//! When full: files above 1 MiB and secrets above 64 KiB are refused.

mod environment;
mod error;
mod fixed;
mod flags;
mod isolation;
mod limits;
mod listening;
mod load;
mod origins;
mod permission;
mod permissions;
mod plugins;
mod quotas;
mod schema;
mod secrets;
mod settings;
mod shape;
#[cfg(test)]
mod tests;
mod tree;
mod units;
mod upgraded;
mod upgrades;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::plugin_manager::Manifest;
use crate::security::{Granting, Mode};

pub use environment::process_environment;
pub use error::{Error, Origin, Problem, SourceFile};
pub use fixed::needs_restart;
pub use flags::Flags;
pub use limits::{Limit, Limits, http2};
pub use load::{Loaded, core_file_path, load, load_candidate, load_core};
pub(crate) use origins::REDACTED;
pub use origins::{Origins, Setting};
pub use permission::{Act, BadPermission, Permission, quoted};
pub use permissions::{CallPermission, Manage, Need, Permissions, ReadWrite};
pub use quotas::{OwnQuotas, Quota, Quotas};
pub use schema::json_schemas;
pub(crate) use settings::check_log_filter;
pub use upgrades::{Candidate, Replaced, Upgrade, UpgradeSource, Upgrades};

/// Read if it is there and no other is named.
const DEFAULT_FILE: &str = "core.toml";
const DEFAULT_PLUGINS_DIR: &str = "plugins";
const DEFAULT_DATA_DIR: &str = "data";
/// In the data directory.
const DEFAULT_DATABASE: &str = "runtime.db";
/// In the data directory.
const DEFAULT_RUNTIME_DIR: &str = "run";
const DEFAULT_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// One thread: whatever runs on it meets no lock that another holds, wakes nobody on another processor, and
/// gathers what is ready into fewer system calls (`docs/decisions/0008-one-worker-thread.md`).
const DEFAULT_THREADS: usize = 1;
const MAX_THREADS: u64 = 64;
const DEFAULT_CERTIFICATE_LIFE: Duration = Duration::from_secs(24 * 3_600);
const DEFAULT_LOG_FILTER: &str = "info";

/// A configuration that holds. [`load()`] makes one from files; a program that embeds the core begins
/// with [`Config::default`] and sets fields.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from. `None`: there was none.
    pub file: Option<PathBuf>,
    /// Where plugins were looked for.
    pub plugins_dir: PathBuf,
    /// Where the core and its child plugins keep their data.
    pub data_dir: PathBuf,
    /// Bounds a graceful stop.
    pub shutdown_timeout: Duration,
    /// Worker threads of the core's own program; one that embeds the core has its own.
    pub threads: usize,
    /// Durable data.
    pub storage: Storage,
    /// Where the core can be reached.
    pub listen: Listen,
    /// Users who may use the operator socket besides the core's own.
    pub operators: Vec<u32>,
    /// What plugins may do by their manifests alone.
    pub security: Security,
    /// The core's own log.
    pub log: Log,
    /// What keeps children from outliving the core.
    pub supervision: Supervision,
    /// Bounds.
    pub limits: Limits,
    /// How much each plugin may use of the core.
    pub quotas: Quotas,
    /// The enabled plugins, in order of name.
    pub plugins: Vec<Manifest>,
}

/// Durable data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// What keeps it.
    pub adapter: Adapter,
    /// The database, where the adapter has one.
    pub path: PathBuf,
    /// What a write must survive before it is acknowledged.
    pub durability: Durability,
}

/// What keeps durable data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adapter {
    /// An SQLite database.
    #[default]
    Sqlite,
    /// Memory: everything is forgotten at the end.
    Memory,
}

/// What a write must survive before it is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A power cut.
    #[default]
    Full,
    /// The end of the core; a power cut may take back the writes since the last checkpoint, which can be hours, never
    /// a part of one.
    Normal,
}

/// Where the core can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Holds the unix sockets.
    pub runtime_dir: PathBuf,
    /// TCP addresses where everything can be read on the way.
    pub tcp: Vec<SocketAddr>,
    /// TCP addresses where TLS is spoken.
    pub tls: Vec<SocketAddr>,
    /// Names and addresses by which other machines reach the core; empty: as it finds them.
    pub tls_names: Vec<String>,
    /// A certificate of the operator's own with its key, instead of the one that the core makes.
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Plaintext from other machines is allowed. Loud in status and logs.
    pub insecure_plaintext: bool,
}

impl Listen {
    /// The socket for plugins.
    #[must_use]
    pub fn core_socket(&self) -> PathBuf {
        self.runtime_dir.join("core.sock")
    }

    /// The socket for people.
    #[must_use]
    pub fn operator_socket(&self) -> PathBuf {
        self.runtime_dir.join("operator.sock")
    }
}

/// What plugins may do by their manifests alone, and how long they are let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Security {
    /// Whether a manifest is granted as it asks.
    pub granting: Granting,
    /// Whether what is not granted is refused, or only noted.
    pub mode: Mode,
    /// Life of a plugin's certificate; two thirds of it, and its plugin asks for another.
    pub certificate_life: Duration,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            granting: Granting::default(),
            mode: Mode::default(),
            certificate_life: DEFAULT_CERTIFICATE_LIFE,
        }
    }
}

/// The core's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or levels by target.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON lines.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The layers that keep children from outliving the core. All are on; each can be switched off to see
/// what the others do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supervision {
    /// The kernel kills children with the core.
    pub parent_death_signal: bool,
    /// A guardian process kills what a killed core leaves.
    pub guardian: bool,
    /// The core adopts orphans of its plugins, ends them with their run, and reaps them.
    pub subreaper: bool,
    /// The core notes its children, and ends those that another core of this machine has left.
    pub boot_sweep: bool,
}

impl Default for Supervision {
    fn default() -> Self {
        Self {
            parent_death_signal: true,
            guardian: true,
            subreaper: true,
            boot_sweep: true,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: DEFAULT_LOG_FILTER.to_owned(),
            format: LogFormat::Auto,
        }
    }
}

impl Default for Config {
    /// What [`load()`] gives where nothing is set and no plugin is installed, with relative paths and
    /// the sockets in the data directory.
    fn default() -> Self {
        let data_dir = PathBuf::from(DEFAULT_DATA_DIR);
        Self {
            file: None,
            plugins_dir: PathBuf::from(DEFAULT_PLUGINS_DIR),
            shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
            threads: DEFAULT_THREADS,
            storage: Storage {
                adapter: Adapter::default(),
                path: data_dir.join(DEFAULT_DATABASE),
                durability: Durability::default(),
            },
            listen: Listen {
                runtime_dir: data_dir.join(DEFAULT_RUNTIME_DIR),
                tcp: Vec::new(),
                tls: Vec::new(),
                tls_names: Vec::new(),
                tls_certificate: None,
                tls_key: None,
                insecure_plaintext: false,
            },
            data_dir,
            operators: Vec::new(),
            security: Security::default(),
            log: Log::default(),
            supervision: Supervision::default(),
            limits: Limits::default(),
            quotas: Quotas::default(),
            plugins: Vec::new(),
        }
    }
}

impl Config {
    /// Everything inside one directory, data in memory, no TCP, no plugins: for tests, and for
    /// programs that embed the core and want to leave no trace. The directory's path must be short
    /// enough for unix sockets (about 90 bytes).
    #[must_use]
    pub fn for_tests(directory: &Path) -> Self {
        let default = Self::default();
        Self {
            plugins_dir: directory.join(DEFAULT_PLUGINS_DIR),
            data_dir: directory.join(DEFAULT_DATA_DIR),
            storage: Storage {
                adapter: Adapter::Memory,
                path: directory.join(DEFAULT_DATA_DIR).join(DEFAULT_DATABASE),
                ..default.storage
            },
            listen: Listen {
                runtime_dir: directory.join(DEFAULT_RUNTIME_DIR),
                ..default.listen
            },
            ..default
        }
    }
}
