//! Small files that the core keeps beside its database.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
