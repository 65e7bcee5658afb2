//! What can go wrong: to a caller ([`Error`]), when the store is opened ([`OpenError`]), and inside
//! an adapter ([`Fault`]).

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Classify, ErrorKind, Outcome, Reason};
use crate::types::Revision;
use crate::types::json::NotJson;

use super::quota::OverQuota;

/// The engine's own error. Shared: one failed commit answers many.
pub type EngineError = Arc<dyn StdError + Send + Sync>;

/// Why a request was not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Not a namespace.
    #[error("\"{namespace}\" is not a namespace: {rule}")]
    BadNamespace {
        /// The text, cut to 80 characters.
        namespace: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// Not a key.
    #[error("\"{key}\" is not a key: {rule}")]
    BadKey {
        /// The text, cut to 80 characters.
        key: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A value is not one JSON text.
    #[error("the value of \"{key}\" is not one JSON text")]
    NotJson {
        /// The key that it was meant for.
        key: String,
        /// What and where.
        source: NotJson,
    },
    /// Larger than a limit.
    #[error("{what} has {size_bytes} bytes; at most {limit_bytes} are allowed")]
    TooLarge {
        /// The field of the request.
        field: &'static str,
        /// The same for people.
        what: String,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A key stands twice among the writes of one `Apply`.
    #[error("\"{key}\" stands twice in one Apply")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Another part of the request is out of bounds.
    #[error("{field}: {rule}")]
    BadField {
        /// Which.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A page token that this very query did not get.
    #[error(
        "the page token does not belong to this query; ask again without it, \
         or leave the other fields as they were"
    )]
    BadPageToken,
    /// A condition did not hold. Nothing was written.
    #[error("\"{key}\" has revision {current}, not the one expected; read again, decide again")]
    RevisionMismatch {
        /// The key.
        key: String,
        /// What it has now; 0: absent.
        current: Revision,
    },
    /// The writer's queue is full.
    #[error("the storage writer's queue is full; try again")]
    QueueFull,
    /// No room on the disk, or a quota of the file system.
    #[error("the disk is full; reads and deletes go on")]
    DiskLow {
        /// The engine's words.
        source: EngineError,
    },
    /// It would have gone beyond a quota.
    #[error("namespace \"{namespace}\" is full: {over}; deletes go on")]
    OverQuota {
        /// Which namespace.
        namespace: String,
        /// Which bound.
        over: OverQuota,
    },
    /// A watch cannot go on, or not from there.
    #[error("changes after this place are not all kept any more; read again and watch anew")]
    Compacted,
    /// The engine cannot do this.
    #[error("the {adapter} adapter of the storage cannot do this")]
    Unsupported {
        /// The engine.
        adapter: &'static str,
    },
    /// Something that belongs into a backup cannot be in it.
    #[error("{why}")]
    Unfit {
        /// What, and what to do.
        why: String,
    },
    /// A long reading was ended, to keep the engine's log bounded.
    #[error(
        "ended early: while it ran, the write-ahead log grew by {limit_bytes} bytes; try again when \
         less is written"
    )]
    LogTooLong {
        /// How much it may grow.
        limit_bytes: u64,
    },
    /// There is such a file already.
    #[error("{path} is there already; nothing was written")]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// A copy is no good; it was removed.
    #[error("the copy did not pass its check and was removed: {finding}")]
    BadCopy {
        /// What was found.
        finding: String,
    },
    /// Damaged data. Nothing was changed.
    #[error(
        "the database is damaged; nothing was changed. `core-server verify` says what is wrong, \
         `core-server restore BACKUP` puts a backup in its place"
    )]
    Corrupt {
        /// The engine's words.
        source: EngineError,
    },
    /// The engine failed.
    #[error("the storage engine failed")]
    Failed {
        /// Whether the write may have happened.
        outcome: Outcome,
        /// The engine's words.
        source: EngineError,
    },
    /// Time ran out.
    #[error("storage did not answer in time")]
    Deadline {
        /// Whether the write may have happened.
        outcome: Outcome,
    },
    /// The store is closing or closed.
    #[error("storage is closing")]
    ShuttingDown,
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadNamespace { .. }
            | Self::BadKey { .. }
            | Self::NotJson { .. }
            | Self::TooLarge { .. }
            | Self::DuplicateKey { .. }
            | Self::BadField { .. }
            | Self::BadPageToken => ErrorKind::InvalidArgument,
            Self::RevisionMismatch { .. } => ErrorKind::Aborted,
            Self::QueueFull | Self::DiskLow { .. } | Self::OverQuota { .. } => {
                ErrorKind::ResourceExhausted
            }
            Self::Compacted => ErrorKind::OutOfRange,
            Self::Unsupported { .. } | Self::Unfit { .. } => ErrorKind::FailedPrecondition,
            Self::FileExists { .. } => ErrorKind::AlreadyExists,
            Self::Corrupt { .. } | Self::BadCopy { .. } => ErrorKind::DataLoss,
            Self::Failed { .. } | Self::ShuttingDown | Self::LogTooLong { .. } => {
                ErrorKind::Unavailable
            }
            Self::Deadline { .. } => ErrorKind::DeadlineExceeded,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::BadNamespace { .. } => Reason::BadNamespace,
            Self::BadKey { .. } => Reason::BadKey,
            Self::NotJson { .. } => Reason::NotJson,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::DuplicateKey { .. } => Reason::DuplicateKey,
            Self::BadField { .. } => Reason::BadField,
            Self::BadPageToken => Reason::BadPageToken,
            Self::RevisionMismatch { .. } => Reason::RevisionMismatch,
            Self::QueueFull => Reason::QueueFull,
            Self::DiskLow { .. } => Reason::DiskLow,
            Self::OverQuota { over, .. } => match over {
                OverQuota::Keys { .. }
                | OverQuota::OwnerKeys { .. }
                | OverQuota::Namespaces { .. } => Reason::QuotaKeys,
                OverQuota::Bytes { .. }
                | OverQuota::OwnerBytes { .. }
                | OverQuota::StoreBytes { .. } => Reason::QuotaBytes,
            },
            Self::Compacted => Reason::Compacted,
            Self::Unsupported { .. } | Self::Unfit { .. } => Reason::Unsupported,
            Self::LogTooLong { .. } => Reason::LogTooLong,
            Self::FileExists { .. } => Reason::FileExists,
            Self::Corrupt { .. } | Self::BadCopy { .. } => Reason::Corrupt,
            Self::Failed { .. } => Reason::StorageFailed,
            Self::Deadline { .. } => Reason::Deadline,
            Self::ShuttingDown => Reason::ShuttingDown,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::BadNamespace { namespace, .. } => vec![("namespace", namespace.clone())],
            Self::BadKey { key, .. } | Self::DuplicateKey { key } => vec![("key", key.clone())],
            Self::NotJson { key, source } => vec![
                ("key", key.clone()),
                ("line", source.line.to_string()),
                ("column", source.column.to_string()),
            ],
            Self::TooLarge {
                field,
                size_bytes,
                limit_bytes,
                ..
            } => vec![
                ("field", (*field).to_owned()),
                ("limit_bytes", limit_bytes.to_string()),
                ("size_bytes", size_bytes.to_string()),
            ],
            Self::BadField { field, .. } => vec![("field", (*field).to_owned())],
            Self::RevisionMismatch { key, current } => vec![
                ("key", key.clone()),
                ("current_revision", current.to_string()),
            ],
            Self::OverQuota { namespace, over } => {
                let (scope, limit) = match over {
                    OverQuota::Keys { limit } | OverQuota::Bytes { limit } => ("namespace", limit),
                    OverQuota::OwnerKeys { limit, .. } | OverQuota::OwnerBytes { limit, .. } => {
                        ("owner", limit)
                    }
                    OverQuota::Namespaces { limit, .. } => ("namespaces", limit),
                    OverQuota::StoreBytes { limit } => ("store", limit),
                };
                vec![
                    ("namespace", namespace.clone()),
                    ("scope", scope.to_owned()),
                    ("limit", limit.to_string()),
                ]
            }
            _ => Vec::new(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull => Some(Duration::from_millis(50)),
            Self::Failed { .. } | Self::ShuttingDown => Some(Duration::from_secs(1)),
            Self::LogTooLong { .. } => Some(Duration::from_secs(60)),
            Self::DiskLow { .. } => Some(Duration::from_secs(10)),
            _ => None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Failed { outcome, .. } | Self::Deadline { outcome } => *outcome,
            _ => Outcome::NotApplied,
        }
    }
}

/// What went wrong inside an adapter, as far as the caller can tell the cases apart.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// No room.
    #[error("no room")]
    DiskFull(#[source] EngineError),
    /// Damaged data.
    #[error("damaged data")]
    Corrupt(#[source] EngineError),
    /// A read took longer than it may.
    #[error("a read took too long")]
    OutOfTime,
    /// The adapter was closed.
    #[error("the adapter is closed")]
    Closed,
    /// Anything else.
    #[error("the engine failed")]
    Failed(#[source] EngineError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded => Self::DiskFull(Arc::new(error)),
            _ => Self::Failed(Arc::new(error)),
        }
    }
}

impl Fault {
    /// The error that callers get who are told of it.
    #[must_use]
    pub fn into_error(self, outcome: Outcome) -> Error {
        match self {
            Self::DiskFull(source) if outcome == Outcome::NotApplied => Error::DiskLow { source },
            Self::Corrupt(source) if outcome == Outcome::NotApplied => Error::Corrupt { source },
            Self::DiskFull(source) | Self::Corrupt(source) | Self::Failed(source) => {
                Error::Failed { outcome, source }
            }
            Self::OutOfTime => Error::Deadline { outcome },
            Self::Closed => Error::ShuttingDown,
        }
    }
}

/// Why the store cannot be opened, for the operator. In each case the file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of bounds.
    #[error("storage.{setting}: {rule}")]
    BadConfig {
        /// Which.
        setting: &'static str,
        /// The rule that it breaks.
        rule: String,
    },
    /// Another core has it open.
    #[error(
        "{path} is in use by another core{holder}; stop that one, or give this one another \
         database (RUNTIME_DB_PATH)"
    )]
    InUse {
        /// The database.
        path: PathBuf,
        /// ` (process N)`, where known.
        holder: String,
    },
    /// The file has a second name, a hard link.
    #[error(
        "{path} has {names} names (hard links): a core that opens it under another one would not see this \
         one's lock, and both would damage it. Remove the others (`find DIRECTORY -samefile {path}` \
         names them), or copy the file while no core runs"
    )]
    SecondName {
        /// The database.
        path: PathBuf,
        /// How many it has.
        names: u64,
    },
    /// Another process, no core, holds SQLite's lock.
    #[error("{path} is locked by another process; close what has it open and start again")]
    Locked {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
    /// A newer core wrote it.
    #[error(
        "{path} has schema {found}, this core knows {known}: a newer core wrote it. Run that one, \
         or go back to a copy made before: {backup}"
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
        /// The safety copy that fits, or that there is none.
        backup: String,
    },
    /// A database of some other program.
    #[error("{path} is a database, but not one of a core (application id {found:#x})")]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it says of itself.
        found: i64,
    },
    /// A restore was interrupted.
    #[error(
        "a restore of {path} was interrupted: run `core-server restore BACKUP` again; or, to go on with \
         {path} as it is, put a {path}-wal that lies beside it as {path}.replaced-<time>-wal back in its \
         place, and remove {left}"
    )]
    RestoreUnfinished {
        /// The database.
        path: PathBuf,
        /// What the restore left.
        left: PathBuf,
    },
    /// The file is missing, its log is not.
    #[error(
        "{path} is missing but its write-ahead log {path}-wal is not: to go on would lose what is \
         in it. Put the database back beside it, or move the log away to begin empty"
    )]
    LogWithoutDatabase {
        /// The missing file.
        path: PathBuf,
    },
    /// Damaged.
    #[error(
        "{path} is damaged; nothing was changed. `core-server verify {path}` says what is wrong; \
         `core-server restore BACKUP` puts a backup in its place and keeps what it replaces"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What was found.
        source: EngineError,
    },
    /// No room for the safety copy before a migration.
    #[error(
        "no room for the copy of {path} that is made before its schema changes: it needs \
         {needed_bytes} bytes, {free_bytes} are free"
    )]
    NoRoomForCopy {
        /// The database.
        path: PathBuf,
        /// Size of the copy.
        needed_bytes: u64,
        /// What the file system has.
        free_bytes: u64,
    },
    /// The bundled SQLite is too old to be trusted with a write-ahead log.
    #[error("SQLite {found} is too old: at least 3.51.3 is needed")]
    OldSqlite {
        /// The version linked.
        found: String,
    },
    /// SQLite did not take a setting that durability rests on.
    #[error("SQLite keeps {setting} at \"{found}\" for {path}, not \"{wanted}\"")]
    SettingRefused {
        /// The database.
        path: PathBuf,
        /// Which pragma.
        setting: &'static str,
        /// What was asked for.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// The operating system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// SQLite said no.
    #[error("cannot {action} {path}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its words.
        source: rusqlite::Error,
    },
    /// An adapter could not say where it stands.
    #[error("the storage engine failed at once")]
    Adapter(#[source] Fault),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_have_happened_is_unknown() {
        let engine: EngineError = Arc::new(io::Error::other("disk on fire"));
        let unknown = Fault::DiskFull(Arc::clone(&engine)).into_error(Outcome::Unknown);
        assert_eq!(unknown.reason(), Reason::StorageFailed);
        assert_eq!(unknown.kind(), ErrorKind::Unavailable);
        assert_eq!(unknown.outcome(), Outcome::Unknown);
        let known = Fault::DiskFull(engine).into_error(Outcome::NotApplied);
        assert_eq!(known.reason(), Reason::DiskLow);
        assert_eq!(known.outcome(), Outcome::NotApplied);
        assert_eq!(
            crate::error::chain(&known),
            "the disk is full; reads and deletes go on: disk on fire"
        );
    }

    #[test]
    fn a_mismatch_says_which_key_and_what_it_has() {
        let error = Error::RevisionMismatch {
            key: "a".to_owned(),
            current: Revision(7),
        };
        assert_eq!(
            error.metadata(),
            [
                ("key", "a".to_owned()),
                ("current_revision", "7".to_owned())
            ]
        );
    }
}
