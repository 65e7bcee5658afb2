//! Files around the database: its directory, its lock, itself when it is new.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::storage::error::OpenError;

/// `<path><suffix>`: the neighbours of a database keep its whole name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The directory of a database; that of a bare name is the working directory.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where a database really lies, whether it is there or not: the lock, the log and whatever else lies beside it
/// go by that name, so that one database has one lock. SQLite goes by it too.
pub(super) fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    match std::fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        resolved => return resolved.map_err(io_error("find", path)),
    }
    // A link to where nothing is yet.
    if let Ok(target) = std::fs::read_link(path) {
        return resolve(&directory(path).join(target));
    }
    let place = directory(path);
    let name = path.file_name().unwrap_or_default();
    let place = std::fs::canonicalize(place).map_err(io_error("find", place))?;
    Ok(place.join(name))
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        action,
        path,
        source,
    }
}

/// Makes the directory, for its owner only, if it is missing.
pub(super) fn create_directory(path: &Path) -> Result<(), OpenError> {
    let directory = directory(path);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(io_error("create the directory", directory))
}

/// Makes names in the database's directory as durable as the files.
pub(super) fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let directory = directory(path);
    File::open(directory)
        .and_then(|handle| handle.sync_all())
        .map_err(io_error("sync the directory", directory))
}

/// Gives a file another name in its directory, if nothing has that name yet: `AlreadyExists`.
pub(in crate::storage) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => rename_reserved(from, to),
        result => result.map_err(io::Error::from),
    }
}

/// The same for file systems that cannot do it in one step, such as network ones: the name is taken first.
fn rename_reserved(from: &Path, to: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(to)?;
    let renamed = std::fs::rename(from, to);
    if renamed.is_err() {
        // What was put there a moment ago; the failure is told.
        drop(std::fs::remove_file(to));
    }
    renamed
}

/// Makes an empty database, for its owner only, if there is none. SQLite gives the log the same
/// mode.
pub(super) fn create_database(path: &Path) -> Result<(), OpenError> {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
    // SQLite removes a log that it finds beside an empty database.
    if length(path) == 0 && length(&beside(path, "-wal")) > 0 {
        return Err(OpenError::LogWithoutDatabase {
            path: path.to_owned(),
        });
    }
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match created {
        Ok(_) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create", path)(error)),
    }
}

/// Keeps other cores away from a database for as long as it lives, and no longer than the process:
/// the operating system lets go of the lock whatever ends it. The file itself stays; to remove it
/// would let two processes lock two files of one name.
pub(super) struct LockFile {
    _file: File,
}

impl LockFile {
    pub(super) fn take(database: &Path) -> Result<Self, OpenError> {
        let path = beside(database, ".lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse {
                    path: database.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(error) => return Err(io_error("lock", &path)(error.into())),
        }
        // For people only; the lock is what counts.
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io_error("write", &path))?;
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!(" (process {})", text.trim()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_name_is_given_but_never_taken() {
        type Rename = fn(&Path, &Path) -> io::Result<()>;
        for rename in [rename_new as Rename, rename_reserved] {
            let directory = tempfile::tempdir().expect("temporary directory");
            let [from, to, taken] = ["from", "to", "taken"].map(|name| directory.path().join(name));
            std::fs::write(&from, "mine").expect("writes");
            std::fs::write(&taken, "yours").expect("writes");
            let refused = rename(&from, &taken).expect_err("taken");
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&taken).expect("there"), b"yours");
            rename(&from, &to).expect("free");
            assert_eq!(std::fs::read(&to).expect("there"), b"mine");
            rename(&from, &directory.path().join("other")).expect_err("gone");
            assert!(!directory.path().join("other").exists());
        }
    }
}
