//! Small files that the core keeps beside its database.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// What a file must outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlives {
    /// The core: nobody waits for the disk.
    Core,
    /// The machine's power too: on the disk before the call returns.
    Power,
}

/// Replaces a file as a whole: whoever reads it finds the old content or the new one. It is written
/// beside its place first, so an error leaves the old content. Only the core's user may read it.
///
/// # Errors
/// It was not replaced; or, once it was, its directory could not be synced.
pub(crate) fn write_atomically(path: &Path, content: &[u8], outlives: Outlives) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    // Whatever stands there, a pipe or a link, is neither waited for nor followed.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    if outlives == Outlives::Power {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    if outlives == Outlives::Power {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Makes a directory and those above it that are missing, for their owner only.
///
/// # Errors
/// One of them cannot be made.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Sends root away from a directory of somebody else, or one that is still to be made there: its owner may put
/// links in the way that root would follow, and could not read what root leaves behind.
///
/// # Errors
/// It is somebody else's (`PermissionDenied`, saying whose and what to do), or cannot be looked at.
pub(crate) fn refuse_root(directory: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let directory = std::path::absolute(directory)?;
    for path in directory.ancestors() {
        let owner = match fs::metadata(path) {
            Ok(found) => found.uid(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if owner == 0 {
            break;
        }
        let path = path.display();
        let why =
            format!("{path} belongs to uid {owner}; run this as that user: sudo -u '#{owner}' …");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Keeps other cores away from a directory for as long as it lives, and no longer than the process: the
/// operating system lets go of it whatever ends that. The file itself stays; to remove it would let two
/// processes lock two files of one name.
#[derive(Debug)]
#[must_use]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Makes the directory, for its owner only, if it is missing, and takes it.
    ///
    /// # Errors
    /// It cannot be made or locked, or (`ResourceBusy`, naming the process) is another's.
    pub(crate) fn take(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        refuse_others(directory)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join("core.lock"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // For people only.
                let _unknown = file.take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                let who = match holder {
                    "" => "another core uses it".to_owned(),
                    pid => format!("another core (process {pid}) uses it"),
                };
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, who));
            }
            Err(error) => return Err(error.into()),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// Whoever can write a directory can put another file in the place of each, however they are protected.
fn refuse_others(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    let mode = metadata.permissions().mode() & 0o7777;
    let why = if owner != own && own != 0 {
        format!("it belongs to uid {owner}, not to this user")
    } else if mode & 0o022 != 0 {
        let path = directory.display();
        format!("other users can write it (mode {mode:03o}); run: chmod 700 {path}")
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_can_write_is_not_taken() {
        let home = tempfile::tempdir().expect("a directory");
        for mode in [0o777, 0o1777, 0o770] {
            fs::set_permissions(home.path(), fs::Permissions::from_mode(mode)).expect("ours");
            let error = DirectoryLock::take(home.path()).expect_err("open to others");
            assert!(error.to_string().contains("chmod 700"), "{error}");
        }
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        drop(DirectoryLock::take(home.path()).expect("only read by others"));
    }

    #[test]
    fn the_old_content_stands_until_the_new_one_is_whole() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("deeper").join("wishes.json");
        for (content, outlives) in [("one", Outlives::Power), ("two", Outlives::Core)] {
            write_atomically(&path, content.as_bytes(), outlives).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("readable"), content);
            assert_eq!(
                fs::read_dir(home.path().join("deeper"))
                    .expect("there")
                    .count(),
                1
            );
        }
        // Its place beside is taken.
        fs::create_dir(home.path().join("deeper").join("wishes.json.new")).expect("made");
        write_atomically(&path, b"three", Outlives::Power).expect_err("not written");
        assert_eq!(fs::read_to_string(&path).expect("readable"), "two");
    }

    #[test]
    fn a_directory_is_one_cores_and_free_again_when_that_has_ended() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("data");
        let lock = DirectoryLock::take(&path).expect("free");
        let refused = DirectoryLock::take(&path).expect_err("taken");
        assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
        let named = format!("(process {})", std::process::id());
        assert!(refused.to_string().contains(&named), "{refused}");
        drop(lock);
        let _again = DirectoryLock::take(&path).expect("free again");
    }
}
