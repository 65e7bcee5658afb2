//! The one long reader: a backup, or a check of everything.
//!
//! While it reads, the log can be moved into the database but not begun anew, so it grows with what is
//! written. The writer looks at that after each batch and ends the reader when the log has grown by
//! [`MAX_LOG_GROWTH_FRAMES`] since it began.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags};

use super::lock::{beside, directory, rename_new, sync_directory};
use super::{PAGE_BYTES, connection, fault, read, room, write};
use crate::storage::adapter::CopyFault;
use crate::storage::admin::digest_path;
use crate::storage::error::Fault;
use crate::storage::quota::ENTRY_BYTES;
use crate::types::Revision;

/// Of pages of 4 KiB: 256 MiB.
const MAX_LOG_GROWTH_FRAMES: i64 = 65_536;
/// Most findings of a check.
const MAX_FINDINGS: usize = 100;

/// At most one at a time, which the store sees to.
pub(super) struct LongReader {
    /// Frames by which the log may grow meanwhile.
    pub(super) max_growth: i64,
    /// Guards what the writer needs to know of it; held for a look.
    now: Mutex<Option<Reading>>,
}

struct Reading {
    handle: InterruptHandle,
    /// Frames of the log when the writer first looked.
    began_at: Option<i64>,
    too_long: bool,
}

impl Default for LongReader {
    fn default() -> Self {
        Self {
            max_growth: MAX_LOG_GROWTH_FRAMES,
            now: Mutex::new(None),
        }
    }
}

/// Takes the reading away at its end, however it ends.
struct End<'a>(&'a LongReader);

impl Drop for End<'_> {
    fn drop(&mut self) {
        *self.0.now.lock() = None;
    }
}

impl LongReader {
    /// The writer's look: whether there is a long reading. Ends it when the log grew too much.
    pub(super) fn look(&self, frames: i64) -> bool {
        let mut now = self.now.lock();
        let Some(reading) = &mut *now else {
            return false;
        };
        let began_at = *reading.began_at.get_or_insert(frames);
        // A log that began anew meanwhile is short, and not held by this reading yet.
        if frames < began_at {
            reading.began_at = Some(frames);
        }
        if frames - began_at > self.max_growth {
            if !reading.too_long {
                tracing::warn!(
                    grown_bytes = self.max_growth.unsigned_abs() * PAGE_BYTES,
                    "a backup or check is ended: the write-ahead log grew too much meanwhile"
                );
            }
            reading.too_long = true;
            // Each time: it does nothing to a reading that is between two statements.
            reading.handle.interrupt();
        }
        true
    }

    pub(super) fn interrupt(&self) {
        if let Some(reading) = &*self.now.lock() {
            reading.handle.interrupt();
        }
    }

    pub(super) fn read<T>(
        &self,
        connection: &Connection,
        job: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CopyFault> {
        *self.now.lock() = Some(Reading {
            handle: connection.get_interrupt_handle(),
            began_at: None,
            too_long: false,
        });
        let end = End(self);
        let result = job(connection);
        let too_long = self
            .now
            .lock()
            .as_ref()
            .is_some_and(|reading| reading.too_long);
        drop(end);
        result.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::OperationInterrupted) if too_long => CopyFault::LogTooLong {
                limit_bytes: self.max_growth.unsigned_abs() * PAGE_BYTES,
            },
            Some(ErrorCode::OperationInterrupted) => CopyFault::Failed(Fault::Closed),
            _ => CopyFault::Failed(fault(error)),
        })
    }

    pub(super) fn backup(&self, from: &Path, to: &Path) -> Result<Revision, CopyFault> {
        for path in [to.to_owned(), digest_path(to)] {
            if path.symlink_metadata().is_ok() {
                return Err(CopyFault::Exists { path });
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let source = Connection::open_with_flags(from, flags)
            .and_then(|source| {
                source.busy_timeout(connection::PATIENCE)?;
                source.pragma_update(None, "mmap_size", 0)?;
                Ok(source)
            })
            .map_err(|error| CopyFault::Failed(fault(error)))?;
        let half_done = HalfDone::begin(to)?;
        check_room(&source, from, &half_done.path)?;
        let name = half_done.path.to_string_lossy();
        let copied = self.read(&source, |source| {
            source
                .execute("VACUUM INTO ?1", [name.as_ref()])
                .map(|_| ())
        });
        copied.map_err(|fault| match fault {
            CopyFault::Failed(Fault::Failed(error))
                if room::is_over_quota(directory(to), room::AMPLE_BYTES) =>
            {
                CopyFault::Failed(Fault::DiskFull(error))
            }
            other => other,
        })?;
        drop(source);
        let revision = judge(&half_done.path)?;
        half_done.finish(to)?;
        Ok(revision)
    }

    pub(super) fn check(&self, path: &Path) -> Result<Vec<String>, CopyFault> {
        let connection =
            connection::for_reading(path).map_err(|error| CopyFault::Failed(fault(error)))?;
        self.read(&connection, findings).map(Findings::into_all)
    }
}

/// A copy that is not finished. Dropping it removes it.
struct HalfDone {
    path: PathBuf,
    finished: bool,
}

impl HalfDone {
    fn begin(to: &Path) -> Result<Self, CopyFault> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        let path = beside(to, ".tmp");
        let begin = || {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(super::lock::directory(to))?;
            // For its owner only from the first byte on; SQLite fills an empty file. One that is there
            // may be anybody's.
            File::options()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
        };
        begin().map_err(|error| not_new(&path, error))?;
        Ok(Self {
            path,
            finished: false,
        })
    }

    fn finish(mut self, to: &Path) -> Result<(), CopyFault> {
        let finish = || {
            File::open(&self.path)?.sync_all()?;
            rename_new(&self.path, to)
        };
        finish().map_err(|error| not_new(to, error))?;
        self.finished = true;
        sync_directory(to).map_err(|error| CopyFault::Failed(Fault::Failed(Arc::new(error))))
    }
}

impl Drop for HalfDone {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "half a copy is left");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A copy in the database's own file system must leave it the room that it needs itself.
fn check_room(source: &Connection, database: &Path, copy: &Path) -> Result<(), CopyFault> {
    let read = |pragma: &str| source.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let pages = read("page_count").map_err(|error| CopyFault::Failed(fault(error)))?;
    let needed_bytes = pages.unsigned_abs() * PAGE_BYTES + room::AMPLE_BYTES;
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
    if device(database).map_err(failed)? != device(copy).map_err(failed)? {
        return Ok(());
    }
    let found = rustix::fs::statvfs(directory(copy)).map_err(|error| failed(error.into()))?;
    match judge_room(needed_bytes, found.f_bavail.saturating_mul(found.f_frsize)) {
        Some(error) => Err(failed(error)),
        None => Ok(()),
    }
}

fn judge_room(needed_bytes: u64, free_bytes: u64) -> Option<io::Error> {
    (free_bytes < needed_bytes).then(|| {
        let why = format!("a copy needs {needed_bytes} bytes here, {free_bytes} are free");
        io::Error::new(io::ErrorKind::StorageFull, why)
    })
}

fn not_new(path: &Path, error: io::Error) -> CopyFault {
    match error.kind() {
        io::ErrorKind::AlreadyExists => CopyFault::Exists {
            path: path.to_owned(),
        },
        _ => failed(error),
    }
}

fn failed(error: io::Error) -> CopyFault {
    CopyFault::Failed(error.into())
}

/// Opens a copy as a restore would, judges it as that does, and says its revision. Counts that do not agree with
/// what is there are made anew: the copy is good although the original was not.
fn judge(path: &Path) -> Result<Revision, CopyFault> {
    let judge = || -> rusqlite::Result<_> {
        let copy = connection::for_looking(path)?;
        Ok((findings(&copy)?, read::revision(&copy)?))
    };
    let bad = |error: rusqlite::Error| CopyFault::BadCopy(error.to_string());
    let (found, revision) = judge().map_err(bad)?;
    if let Some(damage) = found.damage.into_iter().next() {
        return Err(CopyFault::BadCopy(damage));
    }
    if let Some(finding) = found.miscounted {
        tracing::warn!(finding, "a backup has them counted anew");
        let count = |copy: Connection| {
            write::count_anew(&copy)?;
            copy.close().map_err(|(_, error)| error)
        };
        let copy = connection::for_writing(path)
            .map_err(|error| CopyFault::BadCopy(crate::error::chain(&error)))?;
        count(copy).map_err(bad)?;
    }
    Ok(revision)
}

/// What is wrong with a database.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// SQLite's own findings, and revisions that cannot be.
    pub(super) damage: Vec<String>,
    /// The kept counts do not agree with what is there. They can be made anew.
    pub(super) miscounted: Option<String>,
}

impl Findings {
    pub(super) fn into_all(self) -> Vec<String> {
        self.damage.into_iter().chain(self.miscounted).collect()
    }
}

/// Reads all of a database and says what is wrong with it.
pub(super) fn findings(connection: &Connection) -> rusqlite::Result<Findings> {
    let mut found = Findings::default();
    let _snapshot = connection.unchecked_transaction()?;
    let mut statement = connection.prepare(&format!("PRAGMA integrity_check({MAX_FINDINGS})"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    found.damage = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    found.damage.retain(|finding| finding != "ok");
    if !found.damage.is_empty() {
        return Ok(found);
    }
    let mut statement = connection.prepare(&format!(
        "SELECT namespace, count(*), max(revision), \
         sum(octet_length(namespace) + octet_length(key) + octet_length(value) + {ENTRY_BYTES}) \
         FROM entry GROUP BY namespace ORDER BY namespace"
    ))?;
    let mut rows = statement.query([])?;
    let (mut keys, mut bytes, mut newest) = (0, 0, 0);
    let mut counted = Vec::new();
    while let Some(row) = rows.next()? {
        let (count, sum): (i64, i64) = (row.get(1)?, row.get(3)?);
        keys += count;
        bytes += sum;
        newest = newest.max(row.get::<_, i64>(2)?);
        counted.push((row.get::<_, String>(0)?, count, sum));
    }
    counted.insert(0, (String::new(), keys, bytes));
    let kept = read::tallies(connection)?;
    let kept = kept.into_iter().map(|(name, usage)| {
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        (name, signed(usage.keys), signed(usage.bytes))
    });
    if !kept.eq(counted.iter().cloned()) {
        let finding = "the kept counts of keys and bytes are not those of the entries";
        found.miscounted = Some(finding.to_owned());
    }
    let revision = read::revision(connection)?;
    if Revision(newest.unsigned_abs()) > revision {
        found.damage.push(format!(
            "an entry has revision {newest}, the store only {revision}"
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_needs_room_and_says_how_much() {
        assert!(judge_room(10, 10).is_none());
        let error = judge_room(11, 10).expect("too little");
        let words = error.to_string();
        assert!(
            words.contains("11 bytes") && words.contains("10 are"),
            "{words}"
        );
        let CopyFault::Failed(Fault::DiskFull(_)) = failed(error) else {
            panic!("the disk is full");
        };
    }
}
