//! Reading: short transactions on read-only connections.
//!
//! A page is a seek by key and steps from row to row, and the clock is looked at between rows: a
//! reading ends at its deadline but for the step that it is in, which a slow disk can hold up.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, ToSql, ffi, params};
use tokio::time::Instant;

use super::{connection, fault};
use crate::storage::adapter::{Due, Entry, Found, Gather, Snapshot, Stretch, Weight};
use crate::storage::error::Fault;
use crate::storage::names::{Direction, Key, Namespace};
use crate::storage::quota::Usage;
use crate::types::Revision;
use crate::types::json::Json;

const GET: &str = "SELECT key, value, revision, updated_at, expires_at FROM entry \
                   WHERE namespace = ?1 AND key = ?2";

/// Connections that wait for the next read. There are as many as there were reads at once, which
/// the store bounds.
pub(super) struct Readers {
    path: PathBuf,
    /// Guards the idle connections; held to take or to put back one.
    pool: Mutex<Pool>,
    /// Shared by every read while it lasts; taken alone when the log must be emptied. Whoever waits for
    /// it alone keeps new reads waiting too, so that readings that follow each other without a gap
    /// cannot hold the log for ever.
    quiet: RwLock<()>,
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
            quiet: RwLock::new(()),
        }
    }

    pub(super) fn read<T>(
        &self,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Fault> {
        let _reading = self.quiet.read();
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

    /// Waits until nobody reads, and keeps new reads waiting until the guard is dropped. `None`: there
    /// are reads that take longer than this.
    pub(super) fn quiet(&self, patience: Duration) -> Option<RwLockWriteGuard<'_, ()>> {
        self.quiet.try_write_for(patience)
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
    let mut statement =
        connection.prepare_cached("SELECT revision FROM tally WHERE namespace = ''")?;
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
    mut weight: Weight,
    deadline: Instant,
) -> rusqlite::Result<Snapshot> {
    // Ends when dropped: there is nothing to commit.
    let _snapshot = connection.unchecked_transaction()?;
    let revision = revision(connection)?;
    let mut entries = Vec::with_capacity(keys.len());
    for key in keys {
        in_time(deadline)?;
        let Some(entry) = get(connection, namespace, key)? else {
            continue;
        };
        let is_too_much = weight.add(&entry);
        entries.push(entry);
        if is_too_much {
            break;
        }
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
    let columns = "key, value, revision, updated_at, expires_at";
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
        Some(_) => "AND key < ?4",
        None => "",
    };
    let order = match stretch.direction {
        Direction::Ascending => "ASC",
        Direction::Descending => "DESC",
    };
    // No LIMIT: rows come one at a time, in the order of the tree, for as long as they are asked for.
    let sql = format!(
        "SELECT {columns} FROM entry WHERE namespace = ?1 AND key >= ?2 {end} \
         AND (expires_at IS NULL OR expires_at > ?3) ORDER BY key {order}"
    );
    let namespace = stretch.namespace.as_str();
    let now = micros(stretch.now);
    let mut bounds: Vec<&dyn ToSql> = vec![&namespace, &stretch.range.from, &now];
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

/// Columns key, value, revision, updated_at, expires_at.
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: key(row)?,
        value: Json::trusted(Bytes::copy_from_slice(text(row, 1)?.as_bytes())),
        revision: to_revision(row, 2)?,
        updated_at: time(row.get(3)?),
        expires_at: row.get::<_, Option<i64>>(4)?.map(time),
    })
}

/// As times are kept.
pub(super) fn micros(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// What each namespace holds, and under the empty name the store.
pub(super) fn tallies(connection: &Connection) -> rusqlite::Result<Vec<(String, Usage)>> {
    let mut statement =
        connection.prepare_cached("SELECT namespace, keys, bytes FROM tally ORDER BY namespace")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, usage(row, 1)?)))?;
    rows.collect()
}

pub(super) fn tally(connection: &Connection, namespace: &str) -> rusqlite::Result<Usage> {
    let mut statement =
        connection.prepare_cached("SELECT keys, bytes FROM tally WHERE namespace = ?1")?;
    let found = statement.query_row([namespace], |row| usage(row, 0));
    Ok(found.optional()?.unwrap_or_default())
}

fn usage(row: &Row<'_>, first: usize) -> rusqlite::Result<Usage> {
    let number = |column| {
        let number: i64 = row.get(column)?;
        Ok::<_, rusqlite::Error>(u64::try_from(number).unwrap_or_default())
    };
    Ok(Usage {
        keys: number(first)?,
        bytes: number(first + 1)?,
    })
}

pub(super) fn due(connection: &Connection, now: SystemTime, limit: usize) -> rusqlite::Result<Due> {
    let mut statement = connection.prepare_cached(
        "SELECT namespace, key, expires_at FROM entry WHERE expires_at IS NOT NULL \
         ORDER BY expires_at",
    )?;
    let mut rows = statement.query([])?;
    let mut due = Due::default();
    while let Some(row) = rows.next()? {
        let at = time(row.get(2)?);
        if at > now || due.expired.len() >= limit {
            due.next = Some(at);
            break;
        }
        let namespace = Namespace::parse(text(row, 0)?);
        let namespace = namespace
            .map_err(|error| failure(ffi::SQLITE_CORRUPT, &format!("a stored name: {error}")))?;
        let key = Key::parse(text(row, 1)?)
            .map_err(|error| failure(ffi::SQLITE_CORRUPT, &format!("a stored key: {error}")))?;
        due.expired.push((namespace, key));
    }
    Ok(due)
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
