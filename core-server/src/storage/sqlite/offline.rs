//! What is done with a database that no core has open: `core-server verify` and `restore`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::Connection;

use super::backup::findings;
use super::connection::{self, open_error};
use super::lock::{LockFile, beside, directory, io_error, rename_new, resolve, sync_directory};
use super::{read, schema, write};
use crate::files::{make_directories, refuse_root};
use crate::storage::admin::{digest, digest_path};
use crate::storage::clock::trusted_from;
use crate::storage::error::OpenError;
use crate::types::Revision;

/// How far a restored store's revision lies above every revision that is known, where the time does not say
/// more: more than a core commits in thirty years at a thousand a second.
const REVISION_GAP: u64 = 1 << 40;
/// A clock that shows more microseconds since 1970 than this (the year 2112) is not set.
const LAST_MICROS: u64 = 1 << 52;

/// Suffix of the name under which the new database is made.
const RESTORING: &str = ".restoring";
/// Begins the suffix of the name under which what was replaced is kept.
const REPLACED: &str = ".replaced-";
/// Suffixes of what belongs to a database.
const LOGS: [&str; 2] = ["-wal", "-shm"];

/// What a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its schema.
    pub schema: i64,
    /// The store's revision.
    pub revision: Revision,
    /// Keys, expired ones included.
    pub keys: u64,
    /// Bytes, as quotas count them.
    pub bytes: u64,
    /// What is wrong; none, and nothing in `miscounted`: it is whole.
    pub findings: Vec<String>,
    /// What is wrong with the counts that are kept of keys and bytes. A restore makes them anew.
    pub miscounted: Option<String>,
    /// Whether a digest lies beside it. If one does and it is another, that is a finding.
    pub has_digest: bool,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The store's revision now.
    pub revision: Revision,
    /// Where what was replaced lies. None: there was nothing.
    pub replaced: Option<PathBuf>,
}

/// Reads all of a database and says what is wrong. Changes nothing, and makes nothing beside it unless a log is
/// there; a core may have it open meanwhile.
///
/// # Errors
/// [`OpenError`]: it cannot be read at all.
pub fn verify(path: &Path) -> Result<Report, OpenError> {
    connection::check_version()?;
    if !path.exists() {
        let missing = std::io::Error::from(ErrorKind::NotFound);
        return Err(io_error("read", path)(missing));
    }
    let digest_path = digest_path(path);
    let wanted = match std::fs::read_to_string(&digest_path) {
        Ok(text) => text.split_whitespace().next().map(str::to_owned),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(io_error("read", &digest_path)(error)),
    };
    let mut report = look_into(&resolve(path)?)?;
    if let Some(wanted) = &wanted {
        let (_, found) = digest(path).map_err(io_error("read", path))?;
        if found != *wanted {
            let wrong = format!("its SHA-256 is {found}, not {wanted} as when it was made");
            report.findings.insert(0, wrong);
        }
    }
    report.has_digest = wanted.is_some();
    Ok(report)
}

fn look_into(path: &Path) -> Result<Report, OpenError> {
    let failed = |source| open_error("read", path, source);
    let had_log = connection::has_log(path);
    let judged = connection::for_looking(path)
        .map_err(failed)
        .and_then(|database| judge(&database, path));
    let is_good = |report: &Report| report.findings.is_empty() && report.miscounted.is_none();
    if had_log || !connection::has_log(path) || judged.as_ref().is_ok_and(is_good) {
        return judged;
    }
    // A core has begun to write meanwhile, which was not reckoned with.
    judge(&connection::for_reading(path).map_err(failed)?, path)
}

fn judge(database: &Connection, path: &Path) -> Result<Report, OpenError> {
    let failed = |source| open_error("read", path, source);
    let known = schema::newest(schema::MIGRATIONS);
    let schema = schema::identify(database, path, known)?;
    if schema == 0 {
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
            found: 0,
        });
    }
    let mut report = Report {
        schema,
        revision: any_revision(database).map_err(failed)?,
        keys: 0,
        bytes: 0,
        findings: Vec::new(),
        miscounted: None,
        has_digest: false,
    };
    if schema != known {
        // Its tables are others: SQLite's own check is all that can be said.
        let verdict: String = database
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(failed)?;
        report
            .findings
            .extend(Some(verdict).filter(|verdict| verdict != "ok"));
        return Ok(report);
    }
    let found = findings(database).map_err(failed)?;
    let total = read::tally(database, "").map_err(failed)?;
    (report.findings, report.miscounted) = (found.damage, found.miscounted);
    (report.keys, report.bytes) = (total.keys, total.bytes);
    Ok(report)
}

/// The store's revision, of whatever schema.
fn any_revision(database: &Connection) -> rusqlite::Result<Revision> {
    read::revision(database).or_else(|_| {
        // Of schema 1.
        let sql = "SELECT revision FROM store WHERE id = 1";
        let number: i64 = database.query_row(sql, [], |row| row.get(0))?;
        Ok(Revision(number.unsigned_abs()))
    })
}

/// Puts a copy of a backup in the place of a database. What was there is kept beside it, under a name
/// with `now` in it. No core may have it open.
///
/// The steps are in an order in which a crash leaves the old database or the new one, never none, and
/// never the new one with the old one's log. The old one's log is emptied into it first; if that one is
/// too damaged for it, a crash may leave it without its log, which lies beside the copy that is kept.
/// As long as it is not known to be through, `<database>.restoring` lies there, and no core starts.
///
/// Done by root, the database belongs to whom its directory belongs to.
///
/// # Errors
/// [`OpenError`]: the backup is no good, a core has the database open, no room; the database is then
/// as it was.
pub fn restore(backup: &Path, path: &Path, now: SystemTime) -> Result<Restored, OpenError> {
    let report = verify(backup)?;
    if let Some(finding) = report.findings.first() {
        return Err(OpenError::Corrupt {
            path: backup.to_owned(),
            source: Arc::new(super::FailedCheck(finding.clone())),
        });
    }
    refuse_root(directory(path)).map_err(io_error("restore", path))?;
    let made = make_directories(directory(path));
    made.map_err(io_error("create the directory of", path))?;
    let path = &resolve(path)?;
    let _lock = LockFile::take(path)?;
    check_one_name(path)?;
    let new = beside(path, RESTORING);
    remove_database(&new)?;
    let revision = next_revision(last_known(path).max(report.revision), now);
    let made = prepare(backup, &new, revision);
    if let Err(error) = made {
        remove_database(&new)?;
        return Err(error);
    }
    empty_log(path);
    let kept = free_name(path, now);
    let replaced = match set_aside(path, &kept) {
        Ok(aside) => match std::fs::rename(&new, path) {
            Ok(()) => aside.is_something(),
            Err(error) => {
                // Only when the old one has its log again may a core start with it.
                aside.undo()?;
                remove_database(&new)?;
                return Err(io_error("put in place", path)(error));
            }
        },
        Err(error) => {
            remove_database(&new)?;
            return Err(error);
        }
    };
    sync_directory(path)?;
    Ok(Restored {
        revision,
        replaced: replaced.then_some(kept),
    })
}

/// Whether the database has no second name, under which another core would not see the lock. Those do not
/// count that an interrupted restore gave it: they lie beside it.
///
/// # Errors
/// [`OpenError::SecondName`].
pub(super) fn check_one_name(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::MetadataExt as _;
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found.map_err(io_error("look at", path))?,
    };
    if found.nlink() < 2 {
        return Ok(());
    }
    let place = directory(path);
    let ours = beside(path, REPLACED);
    let ours = ours.file_name().unwrap_or_default().as_encoded_bytes();
    let mut names = 1;
    for file in std::fs::read_dir(place).map_err(io_error("look into", place))? {
        let file = file.map_err(io_error("look into", place))?;
        let is_ours = file.file_name().as_encoded_bytes().starts_with(ours);
        let is_it =
            |there: std::fs::Metadata| (there.dev(), there.ino()) == (found.dev(), found.ino());
        names += u64::from(is_ours && file.metadata().is_ok_and(is_it));
    }
    if found.nlink() > names {
        return Err(OpenError::SecondName {
            path: path.to_owned(),
            names: found.nlink(),
        });
    }
    Ok(())
}

/// Under which name what is replaced can be kept: one that an interrupted restore did not take a moment ago.
fn free_name(path: &Path, now: SystemTime) -> PathBuf {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let stamp = since.unwrap_or_default().as_secs();
    let first = beside(path, &format!("{REPLACED}{stamp}"));
    let others = (2..).map(|number| beside(&first, &format!(".{number}")));
    let taken = |kept: &Path| {
        let names = LOGS.into_iter().chain([""]);
        names
            .map(|suffix| beside(kept, suffix))
            .any(|name| name.symlink_metadata().is_ok())
    };
    let mut names = std::iter::once(first.clone()).chain(others);
    names.find(|kept| !taken(kept)).unwrap_or(first)
}

/// Whether a restore began here that is not known to be through.
///
/// # Errors
/// [`OpenError::RestoreUnfinished`].
pub(super) fn check_no_restore(path: &Path) -> Result<(), OpenError> {
    let left = beside(path, RESTORING);
    if left.symlink_metadata().is_ok() {
        let path = path.to_owned();
        return Err(OpenError::RestoreUnfinished { path, left });
    }
    Ok(())
}

/// Moves what is in the log of the old database into it, so that it is whole without. What is too damaged
/// for that is kept as it is.
pub(super) fn empty_log(path: &Path) {
    if !beside(path, "-wal").exists() {
        return;
    }
    let emptied = connection::for_writing(path).and_then(|old| {
        let failed = |source| open_error("empty the log of", path, source);
        write::checkpoint(&old, "TRUNCATE").map_err(failed)?;
        connection::close(old).map_err(failed)
    });
    if let Err(error) = emptied {
        tracing::warn!(
            error = %crate::error::chain(&error),
            "the database that is replaced is kept with its log"
        );
    }
}

/// The revision of what is to be replaced, as far as it can be read.
fn last_known(path: &Path) -> Revision {
    let read = || any_revision(&connection::for_reading(path)?);
    read().unwrap_or_default()
}

/// The revision that a restored store begins with. Answers that a lost database gave after the backup had
/// revisions that nobody knows any more, and none of those may ever mean something else.
///
/// It is the time, in microseconds since 1970. A store counts from 0 or from such a revision, and no core
/// commits a million writes a second; so, as long as clocks are right, all revisions that were ever
/// answered, by whatever store that came of whatever backup, lie below the microsecond in which they
/// were, and thus below this one.
///
/// Where the clock is not set, or behind a revision that is known, there is nothing to go by: then it is
/// [`REVISION_GAP`] above what is known and by chance up to as much again, so that two restores of one backup
/// do not meet.
///
/// Revisions are 64-bit integers here, on the wire and in the database. As a number in JSON, whose readers may
/// take only 53 bits, they stay exact: the time until the year 2255, however many restores there are; of those
/// that go by chance, each of which takes at most 2^41, two thousand beside [`LAST_MICROS`].
fn next_revision(known: Revision, now: SystemTime) -> Revision {
    let micros = now.duration_since(SystemTime::UNIX_EPOCH);
    let micros = u64::try_from(micros.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
    let is_set = now >= trusted_from() && micros <= LAST_MICROS;
    if is_set && micros > known.0 {
        return Revision(micros);
    }
    Revision(known.0 + REVISION_GAP + rand::random_range(0..REVISION_GAP))
}

/// A copy that is up to date, with a revision that nobody has seen, synced.
fn prepare(backup: &Path, new: &Path, revision: Revision) -> Result<(), OpenError> {
    let failed = |source| open_error("restore", new, source);
    let source = resolve(backup)?;
    let source = connection::for_looking(&source).map_err(failed)?;
    let name = new.to_string_lossy();
    // Takes what is in its log along, if it has one.
    source
        .pragma_update(None, "query_only", false)
        .and_then(|()| source.execute("VACUUM INTO ?1", [name.as_ref()]))
        .map_err(failed)?;
    drop(source);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(new, mode).map_err(io_error("restore", new))?;
    let database = connection::for_writing(new)?;
    schema::migrate_only(&database, new)?;
    write::count_anew(&database).map_err(failed)?;
    write::raise_revision(&database, revision).map_err(failed)?;
    connection::close(database).map_err(failed)?;
    std::fs::File::open(new)
        .and_then(|file| file.sync_all())
        .map_err(io_error("sync", new))
}

/// What was there, under another name.
pub(super) struct Aside<'a> {
    path: &'a Path,
    kept: &'a Path,
    /// The database has its second name.
    linked: bool,
    /// It has no other any more: the file system has no hard links.
    renamed: bool,
    /// Of the logs that were moved.
    moved: Vec<&'static str>,
}

impl Aside<'_> {
    fn is_something(&self) -> bool {
        self.linked || !self.moved.is_empty()
    }

    /// What was there is there again, as it was.
    pub(super) fn undo(self) -> Result<(), OpenError> {
        let back = |suffix: &str| {
            let from = beside(self.kept, suffix);
            std::fs::rename(&from, beside(self.path, suffix)).map_err(io_error("put back", &from))
        };
        for suffix in &self.moved {
            back(suffix)?;
        }
        if self.renamed {
            back("")?;
        } else if self.linked {
            remove(self.kept)?;
        }
        sync_directory(self.path)
    }
}

/// Gives what is there a second name and takes its log out of the way.
pub(super) fn set_aside<'a>(path: &'a Path, kept: &'a Path) -> Result<Aside<'a>, OpenError> {
    let mut aside = Aside {
        path,
        kept,
        linked: false,
        renamed: false,
        moved: Vec::new(),
    };
    match keep(&mut aside).and_then(|()| sync_directory(path)) {
        Ok(()) => Ok(aside),
        Err(error) => {
            aside.undo()?;
            Err(error)
        }
    }
}

fn keep(aside: &mut Aside<'_>) -> Result<(), OpenError> {
    let (path, kept) = (aside.path, aside.kept);
    match std::fs::hard_link(path, kept) {
        Ok(()) => aside.linked = true,
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(io_error("keep", path)(error));
        }
        // Until the new one is in place there is none, which is told to a core that starts.
        Err(_) => {
            rename_new(path, kept).map_err(io_error("keep", path))?;
            (aside.linked, aside.renamed) = (true, true);
        }
    }
    for suffix in LOGS {
        let log = beside(path, suffix);
        match std::fs::rename(&log, beside(kept, suffix)) {
            Ok(()) => aside.moved.push(suffix),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("keep", &log)(error)),
        }
    }
    Ok(())
}

/// With its log.
fn remove_database(path: &Path) -> Result<(), OpenError> {
    for suffix in LOGS {
        remove(&beside(path, suffix))?;
    }
    remove(path)
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}
