//! What a plugin's program is on disk: to notice that somebody has mended it.
//!
//! The identity of a file is its time of change, size and inode: a copy over it and a rename into its
//! place both show. Contents are not read. A file that is not there is an identity too. Arguments that
//! are absolute paths count as well: of `python3 /opt/lamp/main.py` the second is what gets mended.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::plugin_manager::Command;

/// Most arguments that are looked at.
const MAX_ARGUMENTS: usize = 16;

/// The files of a program, as they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity(Vec<Option<FileIdentity>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileIdentity {
    changed: (i64, i64),
    size: u64,
    inode: u64,
    device: u64,
}

/// Looks at a program's files. `search` is the PATH for programs without a slash.
///
/// # Cancel safety
/// It only reads.
pub async fn identify(command: &Command, search: Option<&OsStr>) -> Identity {
    let mut files = Vec::new();
    let candidates = candidates(&command.program, search);
    let mut program = None;
    for candidate in candidates {
        program = identify_file(&candidate).await;
        if program.is_some() {
            break;
        }
    }
    files.push(program);
    let arguments = command.args.iter().map(Path::new);
    for argument in arguments
        .filter(|path| path.is_absolute())
        .take(MAX_ARGUMENTS)
    {
        files.push(identify_file(argument).await);
    }
    Identity(files)
}

/// Where a program may be.
fn candidates(program: &Path, search: Option<&OsStr>) -> Vec<PathBuf> {
    if program.components().count() > 1 || program.is_absolute() {
        return vec![program.to_owned()];
    }
    let directories = search.map(std::env::split_paths);
    let directories = directories.into_iter().flatten();
    directories
        .map(|directory| directory.join(program))
        .collect()
}

async fn identify_file(path: &Path) -> Option<FileIdentity> {
    let data = tokio::fs::metadata(path).await.ok()?;
    data.is_file().then(|| FileIdentity {
        // Also a change of its mode counts: it may be executable now.
        changed: (data.ctime(), data.ctime_nsec()),
        size: data.size(),
        inode: data.ino(),
        device: data.dev(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(program: &Path, argument: &Path) -> Command {
        Command {
            program: program.to_owned(),
            args: vec!["-v".to_owned(), argument.display().to_string()],
            env: std::collections::BTreeMap::new(),
            pass_env: Vec::new(),
            working_dir: PathBuf::new(),
        }
    }

    #[tokio::test]
    async fn writing_renaming_appearing_and_a_changed_script_show_and_nothing_else_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (program, script) = (path("lamp"), path("lamp.py"));
        std::fs::write(&script, "1").expect("written");
        let command = command(&program, &script);
        let look = || identify(&command, None);
        let absent = look().await;
        assert_eq!(absent, look().await);
        std::fs::write(&program, "one").expect("written");
        let first = look().await;
        assert_ne!(first, absent, "it appeared");
        std::fs::write(path("other"), "two").expect("written");
        std::fs::rename(path("other"), &program).expect("renamed");
        let second = look().await;
        assert_ne!(second, first, "it was replaced");
        std::fs::write(&script, "22").expect("written");
        let third = look().await;
        assert_ne!(third, second, "its script was changed");
        assert_eq!(third, look().await);
    }

    #[tokio::test]
    async fn a_bare_name_is_looked_for_on_the_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let bare = command(Path::new("lamp"), Path::new("x"));
        let search = std::env::join_paths([Path::new("/nowhere"), directory.path()]);
        let search = search.expect("a path");
        let absent = identify(&bare, Some(&search)).await;
        std::fs::write(directory.path().join("lamp"), "one").expect("written");
        assert_ne!(identify(&bare, Some(&search)).await, absent);
    }
}
