//! Putting a home in place, in steps of which each may be the last before the power goes.
//!
//! 1. The archive is unpacked to `<data_dir>/restoring.new` and checked; what is there is copied to
//!    `<data_dir>/replaced-<time>`. Nothing that is in force has changed.
//! 2. `restoring.new` becomes `restoring`, synced: from here on the restore goes forward only.
//! 3. Each file is put in place, surplus ones are removed, the database is put in place by
//!    `storage::offline`, which keeps the one before beside it.
//! 4. `restoring` is removed.
//!
//! Whoever finds `restoring` does step 3 from its beginning: each part of it may be done twice.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::parts::{self, CONFIGURATION, DATABASE, Part, belonging, place};
use super::{Error, Places, archive};
use crate::files::{DirectoryLock, Outlives, write_atomically};
use crate::storage::offline;
use crate::types::Revision;

/// What is being unpacked.
const UNPACKING: &str = "restoring.new";
/// What is to be put in place.
const READY: &str = "restoring";
/// What was put in place.
const DONE: &str = "restoring.done";
/// Where it goes, in `READY`.
const PLAN: &str = "plan.json";

/// Where everything goes: fixed when the restore is, whatever a configuration says later.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    database: PathBuf,
    configuration: Option<PathBuf>,
    replaced: Option<PathBuf>,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The store's revision now. `None`: the database was in place already, before it was interrupted.
    pub revision: Option<Revision>,
    /// Files that were put in place, the database not among them.
    pub files: usize,
    /// Where what they replaced lies.
    pub replaced: Option<PathBuf>,
    /// Where the database lies that was replaced.
    pub replaced_database: Option<PathBuf>,
}

/// Puts an archive in place. What was there is kept. No core may run on it.
///
/// # Errors
/// [`Error`]. As long as `<data_dir>/restoring` is not there nothing has changed; else [`finish`] goes on with it.
pub fn restore(archive: &Path, places: &Places, now: SystemTime) -> Result<Restored, Error> {
    let data_dir = &places.data_dir;
    let _lock = take(data_dir)?;
    // One that was interrupted is finished first: what it replaced must not be lost.
    finish_locked(data_dir)?;
    begin(archive, places, now)?;
    finish_locked(data_dir)?.ok_or_else(|| Error::File {
        doing: "go on with",
        path: data_dir.join(READY),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Steps 1 and 2. After an error nothing has changed.
pub(super) fn begin(archive: &Path, places: &Places, now: SystemTime) -> Result<(), Error> {
    let unpacked = places.data_dir.join(UNPACKING);
    remove_tree(&unpacked)?;
    if let Err(error) = prepare(archive, places, &unpacked, now) {
        remove_tree(&unpacked)?;
        return Err(error);
    }
    let ready = places.data_dir.join(READY);
    fs::rename(&unpacked, ready).map_err(Error::file("begin with", &unpacked))?;
    sync(&places.data_dir)
}

/// Finishes a restore that was interrupted after it had begun. `None`: there is none.
///
/// # Errors
/// [`Error`]; it can be tried again.
pub fn finish(data_dir: &Path) -> Result<Option<Restored>, Error> {
    // Also what only is to be cleared away holds secrets.
    if ![READY, DONE]
        .iter()
        .any(|name| data_dir.join(name).exists())
    {
        return Ok(None);
    }
    let _lock = take(data_dir)?;
    finish_locked(data_dir)
}

fn take(data_dir: &Path) -> Result<DirectoryLock, Error> {
    DirectoryLock::take(data_dir).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => Error::InUse {
            path: data_dir.to_owned(),
            source,
        },
        _ => Error::file("lock", data_dir)(source),
    })
}

/// Everything that can fail because of the archive happens here.
fn prepare(archive: &Path, places: &Places, unpacked: &Path, now: SystemTime) -> Result<(), Error> {
    make_directory(unpacked)?;
    archive::read(archive, |name| {
        parts::is_known(name).then(|| unpacked.join(name))
    })?;
    if places.configuration.is_none() {
        // It is to be left alone.
        remove_file(&unpacked.join(CONFIGURATION))?;
    }
    check_database(archive, &unpacked.join(DATABASE))?;
    let plan = Plan {
        database: places.database.clone(),
        configuration: places.configuration.clone(),
        replaced: set_aside(places, now)?,
    };
    let path = unpacked.join(PLAN);
    let text = serde_json::to_vec_pretty(&plan).map_err(io::Error::from);
    text.and_then(|text| write_atomically(&path, &text, Outlives::Power))
        .map_err(Error::file("write", &path))?;
    sync_tree(unpacked)
}

/// Whether the database of an archive is one, and whole.
pub(super) fn check_database(archive: &Path, database: &Path) -> Result<(), Error> {
    let damaged = |why: String| Error::Damaged {
        path: archive.to_owned(),
        part: DATABASE.to_owned(),
        why,
    };
    let report = offline::verify(database).map_err(|error| match error {
        error @ crate::storage::OpenError::NewerSchema { .. } => Error::Database(error),
        error => damaged(crate::error::chain(&error)),
    })?;
    match report.findings.first() {
        Some(finding) => Err(damaged(finding.clone())),
        None => Ok(()),
    }
}

/// Copies what is there. `None`: nothing is.
fn set_aside(places: &Places, now: SystemTime) -> Result<Option<PathBuf>, Error> {
    let there = belonging(places).map_err(Error::file("look into", &places.data_dir))?;
    if there.is_empty() {
        return Ok(None);
    }
    let stamp = now.duration_since(SystemTime::UNIX_EPOCH);
    let stamp = stamp.unwrap_or_default().as_secs();
    let kept = places.data_dir.join(format!("replaced-{stamp}"));
    // One that is there holds what an earlier restore replaced.
    let made = DirBuilder::new().mode(0o700).create(&kept);
    made.map_err(Error::file("make", &kept))?;
    for Part { name, path } in &there {
        let content = fs::read(path).map_err(Error::file("keep", path))?;
        let to = kept.join(name);
        write_atomically(&to, &content, Outlives::Power).map_err(Error::file("write", &to))?;
    }
    sync_tree(&kept)?;
    sync(&places.data_dir)?;
    Ok(Some(kept))
}

/// Step 3, as often as it takes.
fn finish_locked(data_dir: &Path) -> Result<Option<Restored>, Error> {
    remove_tree(&data_dir.join(DONE))?;
    let ready = data_dir.join(READY);
    if !ready.exists() {
        return Ok(None);
    }
    let path = ready.join(PLAN);
    let plan = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Plan>(&text)?));
    let plan = plan.map_err(Error::file("read", &path))?;
    let places = Places {
        data_dir: data_dir.to_owned(),
        database: plan.database,
        configuration: plan.configuration,
    };
    let from = Places {
        data_dir: ready.join("data"),
        database: ready.join(DATABASE),
        configuration: Some(ready.join(CONFIGURATION)),
    };
    let parts = belonging(&from).map_err(Error::file("look into", &ready))?;
    // The configuration last: before that the next core looks where the last one did.
    let mut files = 0;
    for Part { name, path } in parts.iter().rev() {
        let Some(to) = place(&places, name) else {
            continue;
        };
        let content = fs::read(path).map_err(Error::file("read", path))?;
        // Where it is in place already nothing is written: whoever goes on may not be allowed to.
        let is_there = name == CONFIGURATION && fs::read(&to).is_ok_and(|there| there == content);
        if !is_there {
            write_private(&to, &content)?;
        }
        files += 1;
    }
    for Part { name, path } in belonging(&places).map_err(Error::file("look into", data_dir))? {
        let is_surplus = name != CONFIGURATION && !parts.iter().any(|part| part.name == name);
        if is_surplus {
            remove_file(&path)?;
        }
    }
    let mut restored = Restored {
        revision: None,
        files,
        replaced: plan.replaced,
        replaced_database: None,
    };
    if from.database.exists() {
        let put = offline::restore(&from.database, &places.database, SystemTime::now())?;
        restored.revision = Some(put.revision);
        restored.replaced_database = put.replaced;
        remove_file(&from.database)?;
    }
    let done = data_dir.join(DONE);
    fs::rename(&ready, &done).map_err(Error::file("end", &ready))?;
    sync(data_dir)?;
    remove_tree(&done)?;
    Ok(Some(restored))
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    write_atomically(path, content, Outlives::Power).map_err(Error::file("write", path))
}

/// A directory for its user only that is removed in the end.
pub(super) struct Unpacked(PathBuf);

impl Unpacked {
    pub(super) fn make(within: &Path) -> Result<Self, Error> {
        let path = within.join(format!("core-verify-{:032x}", rand::random::<u128>()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::file("make", &path))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "an unpacked database is left");
        }
    }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::file("make", path))
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync(directory: &Path) -> Result<(), Error> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(Error::file("sync", directory))
}

/// A directory and those in it: their names are on the disk.
fn sync_tree(directory: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(directory).map_err(Error::file("sync", directory))?;
    for entry in entries {
        let entry = entry.map_err(Error::file("sync", directory))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_tree(&entry.path())?;
        }
    }
    sync(directory)
}
