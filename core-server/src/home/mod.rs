//! A whole home in one file: what a core needs to be the same core on another machine.
//!
//! Owns: which files belong to a home (`parts.rs`), the form of the file (`archive.rs`), putting one in place
//! (`restore.rs`), and what that leaves for others to find (`marks.rs`). Does not own: the copy of the database (`storage`) and how it is put in place
//! (`storage::offline`).
//!
//! The file is a tar archive, so that any tar reads it: `home.json` first, the parts, and last `SHA256SUMS`, in
//! the form that `sha256sum --check` reads, over all that stands before it. An archive that ends early has
//! none.
//!
//! Invariants
//! - It holds the authority's key: whatever is written is for its user only (0600, directories 0700). What is in
//!   a part is in no message.
//! - Nothing is replaced before the whole archive has been read and every sum was right.
//! - A restore that is interrupted has replaced nothing, or is finished by the next `core-server`, also where it
//!   goes to another data directory; what it replaced is kept. A program that embeds the core does not start on
//!   half a home.
//! - What is restored by root is for whom the data directory belongs to.
//!
//! Limits: small parts have at most 16 MiB and there are at most 4,096 of them; more is refused, when it is made
//! as when it is read.

mod archive;
mod marks;
mod parts;
mod restore;

use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::storage::OpenError;
use crate::types::Revision;

pub use archive::{About, is_home};
pub use marks::tell_restored;
pub use parts::PART_BYTES;
pub use restore::{Restored, finish, finish_marked, restore, unfinished};

/// Why a home is not packed, verified or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was made by a newer core.
    #[error("{} has form {found}, and this core knows {known}: use the core that made it, or a newer one", path.display())]
    Newer {
        /// The archive.
        path: PathBuf,
        /// Its form.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// It is torn, altered, or was never one.
    #[error("{} is damaged at {part}: {why}. Nothing was changed; take another backup", path.display())]
    Damaged {
        /// The archive.
        path: PathBuf,
        /// Which part.
        part: String,
        /// What is wrong with it.
        why: String,
    },
    /// A core runs on what is to be replaced.
    #[error("{} is in use: stop the core first", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Who.
        source: io::Error,
    },
    /// A restore was interrupted, and what it was about is not where it was.
    #[error(
        "a restore into {} was interrupted, and nothing of it is there: mount the disk that it is on, or give it up \
         with: rm {}",
        data_dir.display(), mark.display()
    )]
    Astray {
        /// What says so.
        mark: PathBuf,
        /// Where it goes.
        data_dir: PathBuf,
    },
    /// The database cannot be put in place.
    #[error("the database cannot be put in place")]
    Database(#[from] OpenError),
}

impl Error {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }
}

/// Where the parts of a home are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The core's own files.
    pub data_dir: PathBuf,
    /// The database.
    pub database: PathBuf,
    /// `core.toml`. `None`: there is none, or it is to be left alone.
    pub configuration: Option<PathBuf>,
}

impl Places {
    /// Those of a configuration.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            data_dir: config.data_dir.clone(),
            database: config.storage.path.clone(),
            configuration: config.file.clone(),
        }
    }

    /// Writes all that belongs to this home to a new file, `copy` being its database, and syncs it.
    ///
    /// # Errors
    /// What reading or writing gave. The file may be there, unfinished.
    pub fn pack(&self, copy: &Path, revision: Revision, to: &Path) -> io::Result<()> {
        archive::write(self, copy, revision, to)
    }
}

/// What an archive holds, every sum of it checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it says of itself.
    pub about: About,
    /// Names of its parts, and their sizes.
    pub parts: Vec<(String, u64)>,
    /// `core.toml`, if it holds one. Not for messages: it may hold secrets.
    pub configuration: Option<Vec<u8>>,
}

/// Reads all of an archive, and of its database; changes nothing. The database is unpacked for it in the
/// directory for temporary files.
///
/// # Errors
/// [`Error::File`], [`Error::Newer`], [`Error::Damaged`].
pub fn verify(path: &Path) -> Result<Report, Error> {
    let directory = restore::Unpacked::make(&std::env::temp_dir())?;
    let report = archive::read(path, |name| {
        (name == parts::DATABASE).then(|| directory.path().join("runtime.db"))
    })?;
    restore::check_database(path, &directory.path().join("runtime.db"))?;
    Ok(report)
}

/// As [`verify`], but the database is only summed, not looked into.
///
/// # Errors
/// Those of [`verify`].
pub fn inspect(path: &Path) -> Result<Report, Error> {
    archive::read(path, |_| None)
}

#[cfg(test)]
mod tests;
