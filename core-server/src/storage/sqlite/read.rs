//! Reading: short transactions on read-only connections.
//!
//! Every query is a seek by key and steps from row to row, so looking at the clock between rows ends
//! a slow reading as soon as SQLite's own interrupt would.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, ToSql, ffi, params};
use tokio::time::Instant;

use super::{connection, fault};
use crate::storage::adapter::{Entry, Found, Gather, Snapshot, Stretch};
use crate::storage::error::Fault;
use crate::storage::names::{Direction, Key, Namespace};
use crate::types::Revision;
use crate::types::json::Json;

const GET: &str =
    "SELECT key, value, revision, updated_at FROM entry WHERE namespace = ?1 AND key = ?2";

/// Connections that wait for the next read. There are as many as there were reads at once, which
/// the store bounds.
pub(super) struct Readers {
    path: PathBuf,
    /// Guards the idle connections; held to take or to put back one.
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Connection>,
    /// Rises with each renewal: connections of an older one are not put back.
    generation: u64,
    closed: bool,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            pool: Mutex::new(Pool::default()),
        }
    }

    pub(super) fn read<T>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Fault> {
        let (idle, generation) = {
            let mut pool = self.pool.lock();
            if pool.closed {
                return Err(Fault::Closed);
            }
            (pool.idle.pop(), pool.generation)
        };
        let connection = match idle {
            Some(connection) => connection,
            None => connection::for_reading(&self.path).map_err(fault)?,
        };
        let result = job(&connection).map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) => Fault::OutOfTime,
            _ => fault(error),
        });
        // One that failed is closed: whatever is wrong with it goes with it.
        if result.is_ok() {
            let mut pool = self.pool.lock();
            if pool.generation == generation && !pool.closed {
                pool.idle.push(connection);
            }
        }
        result
    }

    /// From now on new connections only.
    pub(super) fn renew(&self) {
        let mut pool = self.pool.lock();
        pool.generation += 1;
        let old = std::mem::take(&mut pool.idle);
        drop(pool);
        drop(old);
    }

    pub(super) fn close(&self) {
        self.pool.lock().closed = true;
        self.renew();
    }
}

pub(super) fn revision(connection: &Connection) -> rusqlite::Result<Revision> {
    let mut statement = connection.prepare_cached("SELECT revision FROM store WHERE id = 1")?;
    statement.query_row([], |row| to_revision(row, 0))
}

pub(super) fn get(
    connection: &Connection,
    namespace: &Namespace,
    key: &Key,
) -> rusqlite::Result<Option<Entry>> {
    let mut statement = connection.prepare_cached(GET)?;
    statement
        .query_row(params![namespace.as_str(), key.as_str()], entry)
        .optional()
}

pub(super) fn get_many(
    connection: &Connection,
    namespace: &Namespace,
    keys: &[Key],
    deadline: Instant,
) -> rusqlite::Result<Snapshot> {
    // Ends when dropped: there is nothing to commit.
    let _snapshot = connection.unchecked_transaction()?;
    let revision = revision(connection)?;
    let mut entries = Vec::with_capacity(keys.len());
    for key in keys {
        in_time(deadline)?;
        entries.extend(get(connection, namespace, key)?);
    }
    Ok(Snapshot { entries, revision })
}

pub(super) fn list_keys(
    connection: &Connection,
    stretch: &Stretch,
    deadline: Instant,
) -> rusqlite::Result<Found<Key>> {
    let size = |row: &Row<'_>| Ok(text(row, 0)?.len());
    walk(connection, "key", stretch, deadline, size, key)
}

pub(super) fn scan(
    connection: &Connection,
    stretch: &Stretch,
    deadline: Instant,
) -> rusqlite::Result<Found<Entry>> {
    let columns = "key, value, revision, updated_at";
    let size = |row: &Row<'_>| Ok(text(row, 0)?.len() + text(row, 1)?.len());
    walk(connection, columns, stretch, deadline, size, entry)
}

fn walk<T>(
    connection: &Connection,
    columns: &str,
    stretch: &Stretch,
    deadline: Instant,
    size: impl Fn(&Row<'_>) -> rusqlite::Result<usize>,
    take: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Found<T>> {
    let mut gather = Gather::new(stretch);
    let _snapshot = connection.unchecked_transaction()?;
    let revision = revision(connection)?;
    if stretch.range.is_empty() {
        return Ok(gather.finish(revision));
    }
    let end = match stretch.range.to {
        Some(_) => "AND key < ?3",
        None => "",
    };
    let order = match stretch.direction {
        Direction::Ascending => "ASC",
        Direction::Descending => "DESC",
    };
    // No LIMIT: rows come one at a time, in the order of the tree, for as long as they are asked for.
    let sql = format!(
        "SELECT {columns} FROM entry WHERE namespace = ?1 AND key >= ?2 {end} ORDER BY key {order}"
    );
    let namespace = stretch.namespace.as_str();
    let mut bounds: Vec<&dyn ToSql> = vec![&namespace, &stretch.range.from];
    if let Some(to) = &stretch.range.to {
        bounds.push(to);
    }
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(bounds.as_slice())?;
    while let Some(row) = rows.next()? {
        in_time(deadline)?;
        if !gather.admits(size(row)?) {
            break;
        }
        gather.push(take(row)?);
    }
    Ok(gather.finish(revision))
}

fn in_time(deadline: Instant) -> rusqlite::Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    Err(failure(ffi::SQLITE_INTERRUPT, "the reading took too long"))
}

/// Columns key, value, revision, updated_at.
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let micros: i64 = row.get(3)?;
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    Ok(Entry {
        key: key(row)?,
        value: Json::trusted(Bytes::copy_from_slice(text(row, 1)?.as_bytes())),
        revision: to_revision(row, 2)?,
        updated_at: SystemTime::UNIX_EPOCH + since,
    })
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    Key::parse(text(row, 0)?)
        .map_err(|error| failure(ffi::SQLITE_CORRUPT, &format!("a stored key: {error}")))
}

fn text<'row>(row: &'row Row<'_>, column: usize) -> rusqlite::Result<&'row str> {
    row.get_ref(column)?
        .as_str()
        .map_err(|error| failure(ffi::SQLITE_CORRUPT, &format!("column {column}: {error}")))
}

fn to_revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    let number: i64 = row.get(column)?;
    u64::try_from(number)
        .map(Revision)
        .map_err(|_| failure(ffi::SQLITE_CORRUPT, "a revision below zero"))
}

/// What SQLite would say if it had found it itself.
pub(super) fn failure(code: std::ffi::c_int, text: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(text.to_owned()))
}
