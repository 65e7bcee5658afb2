//! The adapter over SQLite: one file, a write-ahead log beside it, a lock file that keeps a second
//! core out.
//!
//! - One connection writes, and only it checkpoints: automatic checkpoints would fall into the middle
//!   of somebody's commit. As many read-only connections as there are concurrent reads.
//! - A batch is one transaction. No SAVEPOINT is needed inside it: an item's checks all come before
//!   its first write, and after them only the engine can fail, which ends the whole transaction.
//! - Disk full, or a quota of the file system: the transaction is rolled back and its deletes are tried one
//!   by one, with the room of a reserve; what sets anything is refused until there is room again (`room.rs`).
//!   It is known that nothing of it is on disk: the mark that makes a transaction valid is part of its last
//!   frame, and the write of some frame failed.
//! - Any other failure of COMMIT is "unknown": the frames may have reached the disk. The connection is
//!   given up without a checkpoint, so that the next one finds the log as it is and decides.
//! - Damage is reported. The file is never repaired, recreated or removed.

mod backup;
mod connection;
mod hard_delay;
pub(super) mod lock;
pub mod offline;
mod read;
mod room;
mod schema;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::time::Instant;

use super::adapter::{
    AdapterInfo, Applied, Commit, CommitFault, CopyFault, Due, Entry, Found, Moment, Op, Rejection,
    Snapshot, StorageAdapter, Stretch, Terms, Upkeep, Weight,
};
use super::config::Durability;
use super::error::{EngineError, Fault, OpenError};
use super::names::{Key, Namespace};
use super::quota::Usage;
use crate::error::{Outcome, chain};
use crate::types::Revision;
use backup::LongReader;
use hard_delay::HardDelay;
use lock::LockFile;
use read::Readers;
use room::Room;
use write::{Failure, Standing};

/// When idle, so many frames of the log that are not in the database yet are moved there.
const PASSIVE_FRAMES: i64 = 1_000;
/// A longer log is emptied also when busy: 64 MiB of pages of 4 KiB.
const TRUNCATE_FRAMES: i64 = 16_384;
/// After an attempt to empty the log that readers prevented, so much growth before the next one.
const TRUNCATE_AGAIN_FRAMES: i64 = 1_024;
/// A log of so many frames is emptied at the cost of waiting for every read to end: 128 MiB.
const HARD_FRAMES: i64 = 32_768;
/// Longer than any read may take.
const HARD_PATIENCE: Duration = Duration::from_secs(6);
/// Of the database.
const PAGE_BYTES: u64 = 4_096;
/// Emptying the log waits so long for readers; every write waits with it.
const TRUNCATE_PATIENCE: Duration = Duration::from_millis(100);
/// The last emptying waits so long for readers: a stop has not much time, and the next start can read the
/// log too.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Keeps entries in a SQLite database.
pub struct SqliteAdapter {
    path: PathBuf,
    durability: Durability,
    readers: Readers,
    /// Guards the writing connection. Only the writer's thread takes it while the store is open, so
    /// it is never waited for.
    writer: Mutex<Writer>,
    /// The backup or check that runs.
    long_reader: LongReader,
}

struct Writer {
    /// None: closed, or given up until it is reopened.
    connection: Option<Connection>,
    standing: Standing,
    /// No attempt to empty the log below so many frames.
    truncate_from: i64,
    /// From so many frames on, reads have to wait until the log is empty.
    hard_from: i64,
    hard_delay: HardDelay,
    room: Room,
    /// Held until the store is closed.
    lock: Option<LockFile>,
}

impl SqliteAdapter {
    /// Opens the database, which is made with its directory if it is missing (readable by its
    /// owner only), and brings its schema up to date.
    ///
    /// # Errors
    /// [`OpenError`]; the database is then as it was.
    pub fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        connection::check_version()?;
        lock::create_directory(path)?;
        let path = &lock::resolve(path)?;
        let lock = LockFile::take(path)?;
        offline::check_no_restore(path)?;
        offline::check_one_name(path)?;
        lock::create_database(path)?;
        let mut room = Room::new(path);
        room.make_way();
        let connection = connection::for_writing(path)?;
        schema::bring_up_to_date(&connection, path, schema::MIGRATIONS)?;
        connection::make_durable(&connection, path, durability)?;
        let standing = write::standing(&connection)
            .map_err(|source| connection::open_error("read", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            durability,
            readers: Readers::new(path.to_owned()),
            writer: Mutex::new(Writer {
                connection: Some(connection),
                standing,
                truncate_from: TRUNCATE_FRAMES,
                hard_from: HARD_FRAMES,
                hard_delay: HardDelay::default(),
                room,
                lock: Some(lock),
            }),
            long_reader: LongReader::default(),
        })
    }

    fn connect_again(&self) -> Result<(Connection, Standing), OpenError> {
        let path = &self.path;
        let failed = |source| connection::open_error("check", path, source);
        let connection = connection::for_writing(path)?;
        schema::check_up_to_date(&connection, path)?;
        connection::make_durable(&connection, path, self.durability)?;
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(failed)?;
        if verdict != "ok" {
            return Err(OpenError::Corrupt {
                path: path.clone(),
                source: Arc::new(FailedCheck(verdict)),
            });
        }
        // A log whose sync failed once may be whole in memory and torn on disk, and a later sync does
        // not say so. So it must not be continued: what it holds goes into the database, synced
        // there, and the log begins anew.
        let log = write::checkpoint(&connection, "TRUNCATE").map_err(failed)?;
        if log.busy {
            let busy = read::failure(ffi::SQLITE_BUSY, "readers keep the write-ahead log in use");
            return Err(failed(busy));
        }
        let standing = write::standing(&connection).map_err(failed)?;
        Ok((connection, standing))
    }

    #[cfg(test)]
    pub(in crate::storage) fn with_writer<T>(&self, ask: impl FnOnce(&Connection) -> T) -> T {
        ask(self.writer.lock().connection.as_ref().expect("open"))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("quick_check says: {0}")]
struct FailedCheck(String);

impl StorageAdapter for SqliteAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: "sqlite",
            location: self.path.display().to_string(),
        }
    }

    fn revision(&self) -> Result<Revision, Fault> {
        self.readers.read(read::revision)
    }

    fn get(&self, namespace: &Namespace, key: &Key) -> Result<Option<Entry>, Fault> {
        self.readers
            .read(|connection| read::get(connection, namespace, key))
    }

    fn get_many(
        &self,
        namespace: &Namespace,
        keys: &[Key],
        weight: Weight,
        deadline: Instant,
    ) -> Result<Snapshot, Fault> {
        self.readers
            .read(|connection| read::get_many(connection, namespace, keys, weight, deadline))
    }

    fn list_keys(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Key>, Fault> {
        self.readers
            .read(|connection| read::list_keys(connection, stretch, deadline))
    }

    fn scan(&self, stretch: &Stretch, deadline: Instant) -> Result<Found<Entry>, Fault> {
        self.readers
            .read(|connection| read::scan(connection, stretch, deadline))
    }

    fn commit(
        &self,
        batch: &[Commit],
        terms: &Terms<'_>,
    ) -> Result<Vec<Result<Applied, Rejection>>, CommitFault> {
        let mut writer = self.writer.lock();
        let Writer {
            connection: Some(connection),
            standing,
            room,
            ..
        } = &mut *writer
        else {
            return Err(CommitFault {
                fault: Fault::Closed,
                outcome: Outcome::NotApplied,
            });
        };
        let mut scarce: Option<EngineError> = None;
        if let Some(why) = room.is_low(|| reusable_bytes(connection)) {
            scarce = Some(Arc::new(why));
        } else {
            match transaction(connection, standing, batch, terms, room) {
                Ok(results) => return Ok(results),
                Err(Failure::Full(_)) => {}
                Err(failure) => return Err(failure.into()),
            }
            if let Some(why) = room.was_full() {
                scarce = Some(Arc::new(why));
            }
        }
        // If all of the log can be moved into the database, the next write begins it anew and needs
        // no room for it. That this fails too on a full disk changes nothing.
        drop(write::checkpoint(connection, "PASSIVE"));
        // The deletes as one transaction, as long as all of them find room: one sync, and less log. They
        // do not get in each other's way, nor in that of what is refused.
        let deletes: Vec<Commit> = batch
            .iter()
            .filter(|commit| !sets(commit))
            .cloned()
            .collect();
        if let Some(why) = &scarce
            && deletes.len() > 1
        {
            match transaction(connection, standing, &deletes, terms, room) {
                Ok(done) => {
                    let mut done = done.into_iter();
                    let refused = || Some(Err(Rejection::DiskFull(Arc::clone(why))));
                    let results = batch
                        .iter()
                        .map_while(|commit| if sets(commit) { refused() } else { done.next() });
                    return Ok(results.collect());
                }
                Err(Failure::Full(_)) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
        // One by one, so that what finds room is not refused with what does not.
        let mut results = Vec::with_capacity(batch.len());
        for commit in batch {
            if let Some(why) = scarce.as_ref().filter(|_| sets(commit)) {
                results.push(Err(Rejection::DiskFull(Arc::clone(why))));
                continue;
            }
            let alone = std::slice::from_ref(commit);
            match transaction(connection, standing, alone, terms, room) {
                Ok(result) => results.extend(result),
                Err(Failure::Full(source)) => {
                    results.push(Err(Rejection::DiskFull(Arc::new(source))));
                }
                Err(failure) => {
                    // Those before it are on disk, but the batch has one answer.
                    let outcome = Outcome::Unknown;
                    let fault = CommitFault::from(failure).fault;
                    return Err(CommitFault { fault, outcome });
                }
            }
        }
        Ok(results)
    }

    fn namespaces(&self) -> Result<Vec<(Namespace, Usage)>, Fault> {
        let tallies = self.readers.read(read::tallies)?;
        let named = tallies.into_iter();
        // The row of the store has no name.
        let named = named.filter_map(|(name, usage)| Some((Namespace::parse(&name).ok()?, usage)));
        Ok(named.collect())
    }

    fn due(&self, now: SystemTime, limit: usize) -> Result<Due, Fault> {
        self.readers
            .read(|connection| read::due(connection, now, limit))
    }

    fn rebase(&self, before: SystemTime, now: SystemTime) -> Result<u64, CommitFault> {
        let writer = self.writer.lock();
        let Some(connection) = &writer.connection else {
            return Ok(0);
        };
        write::rebase(connection, before, now).map_err(CommitFault::from)
    }

    fn backup(&self, to: &Path) -> Result<Revision, CopyFault> {
        self.long_reader.backup(&self.path, to)
    }

    fn check(&self) -> Result<Vec<String>, CopyFault> {
        self.long_reader.check(&self.path)
    }

    fn interrupt(&self) {
        self.long_reader.interrupt();
    }

    fn maintain(&self, moment: Moment) -> Result<Upkeep, Fault> {
        let mut writer = self.writer.lock();
        let Writer {
            connection: Some(connection),
            truncate_from,
            hard_from,
            hard_delay,
            room,
            ..
        } = &mut *writer
        else {
            return Ok(Upkeep::Done);
        };
        let gives_room = || {
            let log = std::fs::metadata(lock::beside(&self.path, "-wal"));
            let log_bytes = log.map_or(0, |found| found.len());
            room.wants_log_bytes(log_bytes, || reusable_bytes(connection))
        };
        let tight = |log: &write::Log| {
            let bytes = log.frames.unsigned_abs().saturating_mul(PAGE_BYTES);
            room.is_tight(bytes)
        };
        let done = write::checkpoint(connection, "NOOP").and_then(|log| {
            // A long reader keeps the log from being emptied: waiting for it would be in vain.
            let reading = self.long_reader.look(log.frames);
            if log.frames > *hard_from && !reading && hard_delay.is_over(Instant::now()) {
                // Reads that overlap without end have kept it from being emptied until now. Once there
                // are none, only another process can be in the way, which may be for hours.
                let quiet = self.readers.quiet(HARD_PATIENCE);
                let log = truncate(connection, TRUNCATE_PATIENCE);
                drop(quiet);
                let in_vain = !log.as_ref().is_ok_and(|log| !log.busy);
                if in_vain {
                    tracing::warn!("another process reads the database: its log cannot be emptied");
                }
                hard_delay.note(in_vain, Instant::now());
                log
            } else if !reading && (log.frames > *truncate_from || gives_room()) {
                truncate(connection, TRUNCATE_PATIENCE)
            } else if log.outstanding() > PASSIVE_FRAMES && moment == Moment::Idle
                || log.outstanding() > 0 && tight(&log)
            {
                write::checkpoint(connection, "PASSIVE")
            } else {
                Ok(log)
            }
        });
        match done {
            Ok(log) => {
                *truncate_from = if log.frames > TRUNCATE_FRAMES {
                    log.frames + TRUNCATE_AGAIN_FRAMES
                } else {
                    TRUNCATE_FRAMES
                };
                Ok(if log.outstanding() > PASSIVE_FRAMES {
                    Upkeep::WantsIdle
                } else {
                    Upkeep::Done
                })
            }
            // A failed sync is told once only: the same checkpoint tried again would be taken for good.
            Err(error) if is_serious(&error) && !is_of_a_quota(&error, room) => Err(fault(error)),
            Err(error) => {
                // Nothing is lost: the log keeps what could not be moved. The next commit tries again.
                tracing::warn!(error = %chain(&error), "the write-ahead log was not checkpointed");
                Ok(Upkeep::Done)
            }
        }
    }

    fn reopen(&self) -> Result<Revision, Fault> {
        let mut writer = self.writer.lock();
        if writer.lock.is_none() {
            return Err(Fault::Closed);
        }
        // Dropped without a checkpoint: the log stays as the failure left it.
        writer.connection = None;
        self.long_reader.interrupt();
        self.readers.renew();
        let (connection, standing) = self.connect_again().map_err(|error| match error {
            OpenError::Corrupt { source, .. } => Fault::Corrupt(source),
            other => Fault::Failed(Arc::new(other)),
        })?;
        let revision = standing.revision;
        writer.connection = Some(connection);
        writer.standing = standing;
        writer.truncate_from = TRUNCATE_FRAMES;
        Ok(revision)
    }

    fn close(&self) {
        let mut writer = self.writer.lock();
        self.readers.close();
        if let Some(connection) = writer.connection.take() {
            let closed =
                truncate(&connection, CLOSE_PATIENCE).and_then(|_| connection::close(connection));
            if let Err(error) = closed {
                tracing::warn!(
                    error = %chain(&error),
                    "the write-ahead log stays beside the database; the next start reads it"
                );
            }
        }
        writer.lock = None;
    }
}

/// As [`write::transaction`]; and knows a quota from other refused writes.
fn transaction(
    connection: &Connection,
    standing: &mut Standing,
    batch: &[Commit],
    terms: &Terms<'_>,
    room: &Room,
) -> Result<write::Done, Failure> {
    write::transaction(connection, standing, batch, terms).map_err(|failure| match failure {
        Failure::Unwritten { error, .. } if room.is_over_quota(room::AMPLE_BYTES) => {
            Failure::Full(error)
        }
        other => other,
    })
}

fn sets(commit: &Commit) -> bool {
    commit.ops.iter().any(|op| matches!(op, Op::Set { .. }))
}

/// Of the database, in pages that are empty. Where it does not say: none.
fn reusable_bytes(connection: &Connection) -> u64 {
    let pages = connection.pragma_query_value(None, "freelist_count", |row| row.get::<_, i64>(0));
    pages.map_or(0, |pages| pages.unsigned_abs().saturating_mul(PAGE_BYTES))
}

/// Empties the log, if readers are out of its way in time.
fn truncate(connection: &Connection, patience: Duration) -> rusqlite::Result<write::Log> {
    connection.busy_timeout(patience)?;
    let log = write::checkpoint(connection, "TRUNCATE");
    connection.busy_timeout(connection::PATIENCE)?;
    log
}

/// Whether it is a quota that refused a write.
fn is_of_a_quota(error: &rusqlite::Error, room: &Room) -> bool {
    write::is_refused_write(error) && room.is_over_quota(room::AMPLE_BYTES)
}

/// Whether a checkpoint failed in a way that leaves open what is on disk.
fn is_serious(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(
        code,
        Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn fault(error: rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Fault::DiskFull(Arc::new(error)),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            Fault::Corrupt(Arc::new(error))
        }
        _ => Fault::Failed(Arc::new(error)),
    }
}

#[cfg(test)]
mod copy_tests;
#[cfg(test)]
mod name_tests;
#[cfg(test)]
mod tests;
