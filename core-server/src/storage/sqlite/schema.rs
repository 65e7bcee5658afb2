//! The tables, and how a database comes to have them.
//!
//! `user_version` is the number of the schema, `application_id` tells a core's database from others.
//! A migration is one transaction, after a safety copy `<database>.<old schema>.bak`. A core refuses
//! a schema newer than its own.

use std::fs::File;
use std::path::Path;

use rusqlite::Connection;

use super::connection::open_error;
use super::lock::{beside, directory, io_error, sync_directory};
use crate::storage::error::OpenError;

/// "CoRt".
const APPLICATION_ID: i64 = 0x436F_5274;

/// One step from the schema before to this one.
pub(super) struct Migration {
    pub(super) to: i64,
    pub(super) sql: &'static str,
}

/// All steps, in order, from an empty database.
///
/// `entry` has no rowid: a row lies in the tree of its key, so a write touches one tree and not two.
/// TEXT compares by bytes (BINARY) and shows the values to a person with a `sqlite3` shell.
///
/// `tally` has one row for each namespace that holds anything, and one with an empty name for the store:
/// its revision, and what all namespaces hold. Each write changes it; the rows of a house's namespaces lie
/// on one page, so counting costs no further page in the log.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration {
        to: 1,
        sql: "
        CREATE TABLE entry (
            namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            revision INTEGER NOT NULL,
            -- Microseconds since 1970, UTC.
            updated_at INTEGER NOT NULL,
            PRIMARY KEY (namespace, key)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE store (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            revision INTEGER NOT NULL
        ) STRICT;
        INSERT INTO store (id, revision) VALUES (1, 0);
    ",
    },
    Migration {
        to: 2,
        sql: "
        -- Microseconds since 1970, by the store's clock. NULL: for ever.
        ALTER TABLE entry ADD COLUMN expires_at INTEGER;
        CREATE INDEX entry_expiry ON entry (expires_at) WHERE expires_at IS NOT NULL;
        CREATE TABLE tally (
            namespace TEXT PRIMARY KEY,
            keys INTEGER NOT NULL,
            -- Of keys and values; see the next schema.
            bytes INTEGER NOT NULL,
            -- Of the store; 0 in the rows of namespaces.
            revision INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
        INSERT INTO tally (namespace, keys, bytes, revision)
            SELECT namespace, count(*), sum(octet_length(key) + octet_length(value)), 0
            FROM entry GROUP BY namespace;
        INSERT INTO tally (namespace, keys, bytes, revision)
            SELECT '', coalesce(sum(keys), 0), coalesce(sum(bytes), 0),
                (SELECT revision FROM store WHERE id = 1)
            FROM tally;
        DROP TABLE store;
    ",
    },
    Migration {
        to: 3,
        sql: "
        -- An entry counts its namespace and 64 bytes beside its key and value.
        UPDATE tally SET bytes = bytes + keys * (64 + octet_length(namespace)) WHERE namespace <> '';
        UPDATE tally SET bytes = (SELECT coalesce(sum(bytes), 0) FROM tally WHERE namespace <> '')
            WHERE namespace = '';
    ",
    },
];

pub(super) fn newest(migrations: &[Migration]) -> i64 {
    migrations.last().map_or(0, |last| last.to)
}

/// Applies the migrations that the database lacks.
pub(super) fn bring_up_to_date(
    connection: &Connection,
    path: &Path,
    migrations: &[Migration],
) -> Result<(), OpenError> {
    let found = identify(connection, path, newest(migrations))?;
    if found == newest(migrations) {
        return Ok(());
    }
    if found > 0 {
        copy(connection, path, found)?;
        tracing::warn!(
            database = %path.display(),
            from = found,
            to = newest(migrations),
            copy = %copy_path(path, found).display(),
            "the database's schema is brought up to date; a copy was made before"
        );
    }
    migrate(connection, migrations, found)
        .map_err(|source| open_error("change the schema of", path, source))
}

/// Applies the migrations to a copy, of which no copy is needed.
pub(super) fn migrate_only(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let found = identify(connection, path, newest(MIGRATIONS))?;
    migrate(connection, MIGRATIONS, found)
        .map_err(|source| open_error("change the schema of", path, source))
}

/// All of it in one transaction.
fn migrate(connection: &Connection, migrations: &[Migration], found: i64) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for migration in migrations.iter().filter(|step| step.to > found) {
        transaction.execute_batch(migration.sql)?;
    }
    transaction.pragma_update(None, "user_version", newest(migrations))?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()
}

/// For a database that was up to date a moment ago.
pub(super) fn check_up_to_date(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let newest = newest(MIGRATIONS);
    if identify(connection, path, newest)? == newest {
        return Ok(());
    }
    Err(OpenError::NotOurs {
        path: path.to_owned(),
        found: 0,
    })
}

/// The schema of a core's database; 0: an empty file. Changes nothing.
pub(super) fn identify(connection: &Connection, path: &Path, known: i64) -> Result<i64, OpenError> {
    let failed = |source| open_error("read", path, source);
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let schema: i64 = number("user_version").map_err(failed)?;
    let application: i64 = number("application_id").map_err(failed)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(failed)?;
    if application != APPLICATION_ID {
        if (application, schema, tables) == (0, 0, 0) {
            return Ok(0);
        }
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
            found: application,
        });
    }
    if schema > known {
        return Err(OpenError::NewerSchema {
            path: path.to_owned(),
            found: schema,
            known,
            backup: backup(path, known),
        });
    }
    // The table is there and can be read.
    connection
        .query_row(
            "SELECT count(*) FROM (SELECT 1 FROM entry LIMIT 1)",
            [],
            |_| Ok(()),
        )
        .map_err(failed)?;
    Ok(schema)
}

fn backup(path: &Path, known: i64) -> String {
    (1..=known)
        .rev()
        .map(|schema| copy_path(path, schema))
        .find(|copy| copy.exists())
        .map_or_else(
            || "there is none beside it".to_owned(),
            |copy| copy.display().to_string(),
        )
}

fn copy_path(path: &Path, schema: i64) -> std::path::PathBuf {
    beside(path, &format!(".{schema}.bak"))
}

/// Writes the safety copy: whole and synced under its name, or not at all.
fn copy(connection: &Connection, path: &Path, schema: i64) -> Result<(), OpenError> {
    let failed = |source| open_error("copy", path, source);
    let pages: i64 = connection
        .pragma_query_value(None, "page_count", |row| row.get(0))
        .map_err(failed)?;
    let page_size: i64 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .map_err(failed)?;
    let needed_bytes = u64::try_from(pages * page_size).unwrap_or(u64::MAX);
    let place = directory(path);
    let free = rustix::fs::statvfs(place)
        .map_err(|error| io_error("measure the room in", place)(error.into()))?;
    let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
    // The migration itself may write as much again to the log.
    if free_bytes < needed_bytes.saturating_mul(2) {
        return Err(OpenError::NoRoomForCopy {
            path: path.to_owned(),
            needed_bytes,
            free_bytes,
        });
    }
    let copy = copy_path(path, schema);
    let half_done = beside(&copy, ".tmp");
    match std::fs::remove_file(&half_done) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", &half_done)(error)),
    }
    let name = half_done.to_string_lossy();
    connection
        .execute("VACUUM INTO ?1", [name.as_ref()])
        .map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    File::open(&half_done)
        .and_then(|file| {
            file.set_permissions(mode)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&half_done, &copy))
        .map_err(io_error("finish", &copy))?;
    sync_directory(path)
}
