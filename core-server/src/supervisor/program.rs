//! What a plugin's program is on disk: to notice that somebody has mended it.
//!
//! The identity of a file is its time of change, size and inode: a copy over it and a rename into its
//! place both show. Contents are not read. A file that is not there is an identity too. Arguments that
//! are absolute paths count as well: of `python3 /opt/lamp/main.py` the second is what gets mended.
//!
//! A look at a file system that does not answer has no end, and nothing can end it. So each look has a
//! thread of its own, which is left behind when it takes too long, and a plugin whose last look has not
//! returned is not looked at again as long as its program and arguments are the same: there is one such
//! thread per plugin at most, and one more each time that somebody moves it to another disk that is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::plugin_manager::Command;
use crate::types::PluginName;

/// Most arguments that are looked at.
const MAX_ARGUMENTS: usize = 16;
/// How long a look may take, in steps: a core that was stopped itself meanwhile has lost one of them,
/// not all. Shorter than a child's time to connect.
const STEP: Duration = Duration::from_millis(100);
const STEPS: u32 = 40;

/// Looks at programs. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Looker {
    /// Whose look has not returned. Short lock.
    under_way: Arc<Mutex<BTreeSet<Look>>>,
}

/// What is looked at, and for whom. One that was moved elsewhere is looked at there.
type Look = (PluginName, PathBuf, Vec<String>);

struct UnderWay(Looker, Look);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.lock().remove(&self.1);
    }
}

impl Looker {
    /// Looks at a plugin's program as it would be started. `search` is the PATH for programs without a
    /// slash. `None`: the file system does not answer.
    ///
    /// # Cancel safety
    /// It only reads.
    pub async fn look(
        &self,
        plugin: &PluginName,
        command: &Command,
        search: Option<OsString>,
    ) -> Option<Identity> {
        let look = look_of(plugin, command);
        if !self.under_way.lock().insert(look.clone()) {
            return None;
        }
        let under_way = UnderWay(self.clone(), look);
        let (reply, mut seen) = oneshot::channel();
        let command = Command {
            // They may be many, and are not looked at.
            env: BTreeMap::new(),
            ..command.clone()
        };
        let thread = std::thread::Builder::new().name("look".to_owned());
        let spawned = thread.spawn(move || {
            let identity = identify(&command, search.as_deref());
            drop(under_way);
            // Whoever asked may have gone.
            drop(reply.send(identity));
        });
        if let Err(error) = spawned {
            tracing::warn!(%plugin, %error, "no thread to look at its program with");
            return None;
        }
        for _ in 0..STEPS {
            if let Ok(seen) = tokio::time::timeout(STEP, &mut seen).await {
                return seen.ok();
            }
        }
        None
    }
}

fn look_of(plugin: &PluginName, command: &Command) -> Look {
    let (program, arguments) = (command.program.clone(), command.args.clone());
    (plugin.clone(), program, arguments)
}

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

/// Looks at a program's files, and waits for them.
fn identify(command: &Command, search: Option<&OsStr>) -> Identity {
    let mut files = Vec::new();
    let candidates = candidates(&command.program, search);
    let mut program = None;
    for candidate in candidates {
        program = identify_file(&candidate);
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
        files.push(identify_file(argument));
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

fn identify_file(path: &Path) -> Option<FileIdentity> {
    let data = std::fs::metadata(path).ok()?;
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

    #[test]
    fn writing_renaming_appearing_and_a_changed_script_show_and_nothing_else_does() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let (program, script) = (path("lamp"), path("lamp.py"));
        std::fs::write(&script, "1").expect("written");
        let command = command(&program, &script);
        let look = || identify(&command, None);
        let absent = look();
        assert_eq!(absent, look());
        std::fs::write(&program, "one").expect("written");
        let first = look();
        assert_ne!(first, absent, "it appeared");
        std::fs::write(path("other"), "two").expect("written");
        std::fs::rename(path("other"), &program).expect("renamed");
        let second = look();
        assert_ne!(second, first, "it was replaced");
        std::fs::write(&script, "22").expect("written");
        let third = look();
        assert_ne!(third, second, "its script was changed");
        assert_eq!(third, look());
    }

    #[test]
    fn a_bare_name_is_looked_for_on_the_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let bare = command(Path::new("lamp"), Path::new("x"));
        let search = std::env::join_paths([Path::new("/nowhere"), directory.path()]);
        let search = search.expect("a path");
        let absent = identify(&bare, Some(&search));
        std::fs::write(directory.path().join("lamp"), "one").expect("written");
        assert_ne!(identify(&bare, Some(&search)), absent);
    }

    #[tokio::test]
    async fn a_plugin_whose_look_hangs_is_not_looked_at_again_and_others_are() {
        let looker = Looker::default();
        let name = |name: &str| PluginName::parse(name).expect("good");
        let (lamp, heater) = (name("lamp"), name("heater"));
        let command = command(Path::new("/bin/sh"), Path::new("x"));
        let look = look_of(&lamp, &command);
        looker.under_way.lock().insert(look.clone());
        let hangs = UnderWay(looker.clone(), look);
        assert_eq!(looker.look(&lamp, &command, None).await, None);
        let expected = Some(identify(&command, None));
        assert_eq!(looker.look(&heater, &command, None).await, expected);
        // Somebody has moved it off the dead disk.
        for moved in [
            Command {
                program: "/bin/cat".into(),
                ..command.clone()
            },
            Command {
                args: Vec::new(),
                ..command.clone()
            },
        ] {
            let expected = Some(identify(&moved, None));
            assert_eq!(looker.look(&lamp, &moved, None).await, expected);
        }
        drop(hangs);
        assert_eq!(looker.look(&lamp, &command, None).await, expected);
        assert!(looker.under_way.lock().is_empty());
    }
}
