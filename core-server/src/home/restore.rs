//! Putting a home in place, in steps of which each may be the last before the power goes.
//!
//! 1. The archive is unpacked to `<data_dir>/restoring.new` and checked; what is there is copied to
//!    `<data_dir>/replaced-<time>`. Nothing that is in force has changed.
//! 2. Where a configuration comes along, a mark beside it says where the home goes. `restoring.new` becomes
//!    `restoring`, synced: from here on the restore goes forward only.
//! 3. Each file is put in place, surplus ones are removed, the database is put in place by
//!    `storage::offline`, which keeps the one before beside it.
//! 4. `restoring` becomes `restoring.done`, the mark is taken away, `restoring.done` is removed. So while there
//!    is a mark there is one of the three in the directory that it names.
//!
//! Whoever finds `restoring` does step 3 from its beginning: each part of it may be done twice.
//!
//! Whatever root makes here is for whom the data directory belongs to: the service could not read it otherwise.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::parts::{self, CONFIGURATION, DATABASE, Part, belonging, place};
use super::{Error, Places, archive, marks};
use crate::files::{DirectoryLock, Outlives, make_directories, refuse_root, write_atomically};
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
    /// What the next core is to be told. Older cores did not tell.
    #[serde(default)]
    note: Option<marks::Note>,
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
    let ready = places.data_dir.join(READY);
    let begun = prepare(archive, places, &unpacked, now).and_then(|()| {
        if let Some(configuration) = &places.configuration {
            marks::mark(configuration, &places.data_dir)?;
        }
        fs::rename(&unpacked, ready).map_err(Error::file("begin with", &unpacked))
    });
    if let Err(error) = begun {
        if let Some(configuration) = &places.configuration {
            marks::unmark(configuration)?;
        }
        remove_tree(&unpacked)?;
        return Err(error);
    }
    sync(&places.data_dir)
}

/// Finishes a restore that was interrupted after it had begun. `None`: there is none.
///
/// # Errors
/// [`Error`]; it can be tried again.
pub fn finish(data_dir: &Path) -> Result<Option<Restored>, Error> {
    // Also what only is to be cleared away holds secrets.
    if !is_there(data_dir, &[READY, DONE])? {
        return Ok(None);
    }
    let _lock = take(data_dir)?;
    finish_locked(data_dir)
}

/// Finishes a restore that was to bring this configuration and was interrupted, wherever its home goes: that may
/// be another data directory than `in_force`, the one of the configuration as it is. With that directory. `None`:
/// there is none. What goes to the directory in force without a configuration [`finish`] finds.
///
/// # Errors
/// [`Error`]; it can be tried again. [`Error::Astray`]: the directory that it goes to is not there, or is not the
/// one that it was.
pub fn finish_marked(
    configuration: &Path,
    in_force: Option<&Path>,
) -> Result<Option<(PathBuf, Restored)>, Error> {
    let Some(data_dir) = marks::marked(configuration)? else {
        return Ok(None);
    };
    // Its disk may not be mounted.
    if !is_there(&data_dir, &[READY, DONE, UNPACKING])? {
        let in_force = in_force.map(std::path::absolute).and_then(Result::ok);
        if in_force.is_some_and(|in_force| in_force == data_dir) {
            // Through: only the mark could not be taken away.
            return marks::unmark(configuration).map(|()| None);
        }
        return Err(Error::Astray {
            mark: marks::mark_path(configuration),
            data_dir,
        });
    }
    let restored = finish(&data_dir)?;
    // If it was not about to be put in place yet, nothing has changed.
    marks::unmark(configuration)?;
    Ok(restored.map(|restored| (data_dir, restored)))
}

/// Whether a restore into one of these places, or by their configuration into others, has begun and is not
/// through: the data directory that it goes to.
///
/// # Errors
/// It cannot be seen.
pub fn unfinished(places: &Places) -> Result<Option<PathBuf>, Error> {
    if is_there(&places.data_dir, &[READY])? {
        return Ok(Some(places.data_dir.clone()));
    }
    let configuration = places.configuration.as_deref();
    let marked = configuration.map(marks::marked).transpose()?.flatten();
    let Some(data_dir) = marked else {
        return Ok(None);
    };
    let begun = is_there(&data_dir, &[READY])?;
    Ok(begun.then_some(data_dir))
}

/// Whether one of these is in a directory.
fn is_there(directory: &Path, names: &[&str]) -> Result<bool, Error> {
    for name in names {
        let path = directory.join(name);
        match path.symlink_metadata() {
            Ok(_) => return Ok(true),
            Err(error) if is_absence(&error) => {}
            Err(error) => return Err(Error::file("look at", &path)(error)),
        }
    }
    Ok(false)
}

/// A file in the place of the directory is told by whoever makes use of that.
fn is_absence(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

fn take(data_dir: &Path) -> Result<DirectoryLock, Error> {
    refuse_root(data_dir).map_err(Error::file("restore into", data_dir))?;
    make_directory(data_dir)?;
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
    let report = archive::read(archive, |name| {
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
        note: Some(marks::Note {
            backup: std::path::absolute(archive).unwrap_or_else(|_| archive.to_owned()),
            made_at: report.about.made_at,
            core: report.about.core,
            restored_at: jiff::Timestamp::try_from(now)
                .unwrap_or_default()
                .to_string(),
            by: format!("uid {}", rustix::process::geteuid().as_raw()),
        }),
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
    if let Some(note) = &plan.note {
        marks::leave(data_dir, note)?;
    }
    let done = data_dir.join(DONE);
    fs::rename(&ready, &done).map_err(Error::file("end", &ready))?;
    sync(data_dir)?;
    if let Some(configuration) = &places.configuration {
        marks::unmark(configuration)?;
    }
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
    make_directories(path).map_err(Error::file("make", path))
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

pub(super) fn sync(directory: &Path) -> Result<(), Error> {
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
