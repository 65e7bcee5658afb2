//! Connections and their settings. What durability rests on is read back and checked.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::lock::beside;
use crate::storage::config::Durability;
use crate::storage::error::OpenError;

/// How long a connection waits for a lock that another process has, for example a `sqlite3` shell.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Before it, a checkpoint that meets a restart of the log could damage the database:
/// <https://sqlite.org/wal.html#walresetbug>.
const LEAST_SQLITE: i32 = 3_051_003;
/// What is left of the log's file after it was emptied by a restart.
const LOG_SIZE_LIMIT: i64 = 64 << 20;
/// More than there are different statements.
const STATEMENTS: usize = 32;

pub(super) fn check_version() -> Result<(), OpenError> {
    if rusqlite::version_number() < LEAST_SQLITE {
        return Err(OpenError::OldSqlite {
            found: rusqlite::version().to_owned(),
        });
    }
    Ok(())
}

pub(super) fn open_error(action: &'static str, path: &Path, error: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Corrupt {
            path,
            source: Arc::new(error),
        },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked {
            path,
            source: error,
        },
        _ => OpenError::Sqlite {
            action,
            path,
            source: error,
        },
    }
}

/// Opens the writing connection and changes nothing yet. The file must be there: a database that
/// vanished is not made anew.
pub(super) fn for_writing(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        // A connection that is given up must leave file and log as they are.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        settle(&connection)?;
        Ok(connection)
    };
    open().map_err(|source| open_error("open", path, source))
}

/// Opens a connection that cannot write.
pub(super) fn for_reading(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    settle(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Opens a file that nobody writes to, such as a backup, so that nothing is made beside it: SQLite would make
/// a log and an index of it for a database that was copied as it lay. One that has a log is in use, or has
/// content there: it is opened [for reading](for_reading).
pub(super) fn for_looking(path: &Path) -> rusqlite::Result<Connection> {
    if has_log(path) {
        return for_reading(path);
    }
    let mut name = b"file:".to_vec();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => name.push(*byte),
            other => name.extend(format!("%{other:02X}").bytes()),
        }
    }
    name.extend(b"?immutable=1");
    let name = String::from_utf8(name).expect("ASCII");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(name, flags)?;
    settle(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Whether a write-ahead log lies beside a database.
pub(super) fn has_log(path: &Path) -> bool {
    beside(path, "-wal").symlink_metadata().is_ok()
}

/// What all connections have in common.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // An I/O error on a mapped page is a signal that ends the process, not an error code.
    connection.pragma_update(None, "mmap_size", 0)?;
    // The schema of a file that others could have written is no place for functions to run.
    connection.pragma_update(None, "trusted_schema", false)
}

/// Sets what durability rests on, and checks that SQLite took it.
pub(super) fn make_durable(
    connection: &Connection,
    path: &Path,
    durability: Durability,
) -> Result<(), OpenError> {
    let (synchronous, number) = match durability {
        Durability::Full => ("FULL", "2"),
        Durability::Normal => ("NORMAL", "1"),
    };
    for (setting, value, wanted) in [
        // Refused by file systems without shared memory, such as some network ones.
        ("journal_mode", "WAL", "wal"),
        ("synchronous", synchronous, number),
        // Only the writer checkpoints, when nobody waits for it.
        ("wal_autocheckpoint", "0", "0"),
    ] {
        let failed = |source| open_error("set up", path, source);
        connection
            .pragma_update(None, setting, value)
            .map_err(failed)?;
        let found = connection
            .pragma_query_value(None, setting, |row| {
                Ok(match row.get_ref(0)? {
                    rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                    other => other.as_str().unwrap_or_default().to_owned(),
                })
            })
            .map_err(failed)?;
        if found != wanted {
            return Err(OpenError::SettingRefused {
                path: path.to_owned(),
                setting,
                wanted: wanted.to_owned(),
                found,
            });
        }
    }
    connection
        .pragma_update(None, "journal_size_limit", LOG_SIZE_LIMIT)
        .map_err(|source| open_error("set up", path, source))
}

/// Closes the writing connection for good, which removes the log if it is empty and nobody else has
/// the database open.
pub(super) fn close(connection: Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.close().map_err(|(_, error)| error)
}
