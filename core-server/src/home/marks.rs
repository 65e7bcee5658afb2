//! What a restore leaves for others to find.
//!
//! - The *mark*, `<core.toml>.restore`, beside the configuration that is to be replaced: where the home goes.
//!   That may be another data directory than the one in force, where nobody would look after a loss of power.
//!   It is there from before the first change until after the last one.
//! - The *note*, `<data_dir>/restored.note`: which home was put in place, for the audit log of the next core.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::files::{Outlives, make_directories, write_atomically};
use crate::security::audit;

/// Suffix of the mark.
const MARK: &str = ".restore";
/// Name of the note. No `*.json`: it is no part of a home.
const NOTE: &str = "restored.note";

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    data_dir: PathBuf,
}

/// Where the mark of this configuration is.
pub(super) fn mark_path(configuration: &Path) -> PathBuf {
    let mut name = configuration.as_os_str().to_owned();
    name.push(MARK);
    name.into()
}

/// Marks that a home goes to this data directory.
pub(super) fn mark(configuration: &Path, data_dir: &Path) -> Result<(), Error> {
    let path = mark_path(configuration);
    let data_dir = std::path::absolute(data_dir).map_err(Error::file("find", data_dir))?;
    write(&path, &Mark { data_dir })
}

/// The data directory that the mark of this configuration names.
pub(super) fn marked(configuration: &Path) -> Result<Option<PathBuf>, Error> {
    let mark: Option<Mark> = read(&mark_path(configuration))?;
    Ok(mark.map(|mark| mark.data_dir))
}

/// Takes the mark away. Where that is not allowed it stays: it names a restore that is through.
pub(super) fn unmark(configuration: &Path) -> Result<(), Error> {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    let path = mark_path(configuration);
    match fs::remove_file(&path) {
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
            tracing::warn!(path = %path.display(), %error, "a mark of a restore that is through is left");
            Ok(())
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", &path)(error))
        }
        Err(_) => Ok(()),
        // Before what it names is forgotten.
        Ok(()) => {
            let directory = path.parent().filter(|path| !path.as_os_str().is_empty());
            super::restore::sync(directory.unwrap_or(Path::new(".")))
        }
    }
}

/// Which home was put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// The archive.
    pub(super) backup: PathBuf,
    /// When that was made, in RFC 3339.
    pub(super) made_at: String,
    /// By which core.
    pub(super) core: String,
    /// When it was restored, in RFC 3339.
    pub(super) restored_at: String,
    /// By whom: "uid 1000".
    pub(super) by: String,
}

/// Leaves the note.
pub(super) fn leave(data_dir: &Path, note: &Note) -> Result<(), Error> {
    write(&data_dir.join(NOTE), note)
}

/// Has the audit log tell of a home that was put in place since a core ran here; waits for the disk. Once.
///
/// # Errors
/// It could not be told, and will be again: [`Error::File`].
pub fn tell_restored(data_dir: &Path) -> Result<(), Error> {
    let path = data_dir.join(NOTE);
    let Some(note) = read::<Note>(&path)? else {
        return Ok(());
    };
    let record = audit::Record {
        action: "restored".to_owned(),
        decision: audit::decision::ALLOWED,
        operator: format!("restore by {}", note.by),
        resource: format!(
            "{}, made at {} by core {}, restored at {}",
            note.backup.display(),
            note.made_at,
            note.core,
            note.restored_at
        ),
        rule: "operator".to_owned(),
        ..audit::Record::default()
    };
    let security = data_dir.join("security");
    // A home without TLS brings none.
    make_directories(&security).map_err(Error::file("make", &security))?;
    audit::note_offline(&security, &record).map_err(Error::file("write into", &security))?;
    fs::remove_file(&path).map_err(Error::file("remove", &path))
}

fn write(path: &Path, what: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(what).map_err(io::Error::from);
    text.and_then(|text| write_atomically(path, &text, Outlives::Power))
        .map_err(Error::file("write", path))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let read = match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) => return Err(Error::file("read", path)(error)),
    };
    read.map_err(|error| Error::file("read", path)(error.into()))
}
