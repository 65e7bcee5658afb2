//! The run-state file: which children a core had, for the next core, should this one not end in order.
//! Written anew at each spawn and end, without waiting for the disk: it is needed only while the
//! machine stays up. Whatever else stands in its place, a link, a pipe, a device, is neither followed
//! nor waited for.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::files::{Outlives, write_atomically};

/// Its name in the data directory, or in the runtime directory where nothing is kept.
pub const FILE_NAME: &str = "run-state.json";

/// More cannot be a core's own: 1,000 plugins take about 100 KiB.
const LARGEST_FILE_BYTES: u64 = 1 << 20;

/// One process of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Its id.
    pub(super) pid: u32,
    /// When it started, in clock ticks since the boot.
    pub(super) started: u64,
}

/// What stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunState {
    /// The boot of the machine that all of it is about.
    pub(super) boot_id: String,
    /// The core.
    pub(super) core: Identity,
    /// What its children carry in their environment.
    pub(super) cookie: String,
    /// Leaders of runs.
    pub(super) children: Vec<Child>,
}

/// A leader of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Child {
    /// The plugin, for people.
    pub(super) plugin: String,
    /// The process.
    #[serde(flatten)]
    pub(super) process: Identity,
}

/// What a file tells of the past.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// Nothing: there is no file, or it is of another boot.
    Nothing,
    /// A core of this boot had these.
    Left(RunState),
}

/// What to make of the file's content. Pure.
pub(super) fn interpret(content: &[u8], boot_id: &str) -> Result<Past, serde_json::Error> {
    let state: RunState = serde_json::from_slice(content)?;
    // An empty cookie would fit every process that has the variable and nothing in it.
    let usable = state.boot_id == boot_id && !state.cookie.is_empty();
    Ok(if usable {
        Past::Left(state)
    } else {
        Past::Nothing
    })
}

/// The file.
#[derive(Debug)]
pub(super) struct RunStateFile {
    path: PathBuf,
}

impl RunStateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads what another core left. A file that is broken is as good as none.
    pub(super) fn read(&self, boot_id: &str) -> Past {
        let path = self.path.display();
        let content = match read_bounded(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Past::Nothing,
            Err(error) => {
                tracing::warn!(%path, %error, "cannot be read; survivors of another core are not looked for");
                return Past::Nothing;
            }
        };
        interpret(&content, boot_id).unwrap_or_else(|error| {
            tracing::warn!(%path, %error, "ignored: not what the core wrote");
            Past::Nothing
        })
    }

    /// Replaces the file as a whole.
    pub(super) fn write(&self, state: &RunState) {
        if let Err(error) = self.try_write(state) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "cannot be written; the next core cannot find what this one leaves");
        }
    }

    fn try_write(&self, state: &RunState) -> io::Result<()> {
        write_atomically(&self.path, &serde_json::to_vec(state)?, Outlives::Core)
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(unfollowed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut content = Vec::new();
    file.take(LARGEST_FILE_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

/// No link is followed and no other end of a pipe is waited for.
fn unfollowed() -> i32 {
    // These bits are the system's, which are signed there.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn state() -> RunState {
        RunState {
            boot_id: "boot".to_owned(),
            core: Identity {
                pid: 10,
                started: 1,
            },
            cookie: "c".to_owned(),
            children: vec![Child {
                plugin: "lamp".to_owned(),
                process: Identity {
                    pid: 11,
                    started: 2,
                },
            }],
        }
    }

    #[test]
    fn only_a_whole_file_of_this_boot_tells_anything() {
        let whole = serde_json::to_vec(&state()).expect("JSON");
        assert_eq!(
            interpret(&whole, "boot").expect("whole"),
            Past::Left(state())
        );
        assert_eq!(interpret(&whole, "next").expect("whole"), Past::Nothing);
        for cut in 0..whole.len() {
            interpret(&whole[..cut], "boot").expect_err("cut off");
        }
        let bare = RunState {
            cookie: String::new(),
            ..state()
        };
        let bare = serde_json::to_vec(&bare).expect("JSON");
        assert_eq!(interpret(&bare, "boot").expect("whole"), Past::Nothing);
    }

    proptest::proptest! {
        #[test]
        fn no_content_makes_it_panic(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            drop(interpret(&content, "boot"));
        }
    }

    #[test]
    fn it_is_there_again_and_a_broken_one_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deeper").join(FILE_NAME);
        let file = RunStateFile::new(path.clone());
        assert_eq!(file.read("boot"), Past::Nothing);
        file.write(&state());
        assert_eq!(file.read("boot"), Past::Left(state()));
        fs::write(&path, b"{").expect("written");
        assert_eq!(file.read("boot"), Past::Nothing);
    }

    #[test]
    fn what_stands_in_its_place_is_neither_waited_for_nor_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(FILE_NAME);
        let temporary = path.with_extension("json.new");
        let file = RunStateFile::new(path.clone());
        let make_pipe = |path: &Path| {
            let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("a pipe");
        };
        make_pipe(&path);
        make_pipe(&temporary);
        assert_eq!(file.read("boot"), Past::Nothing);
        file.write(&state());
        assert_eq!(file.read("boot"), Past::Left(state()));

        let stranger = directory.path().join("stranger");
        fs::write(&stranger, serde_json::to_vec(&state()).expect("JSON")).expect("written");
        fs::remove_file(&path).expect("ours");
        for link in [&path, &temporary] {
            std::os::unix::fs::symlink(&stranger, link).expect("a link");
        }
        assert_eq!(file.read("boot"), Past::Nothing);
        let later = RunState {
            cookie: "later".to_owned(),
            ..state()
        };
        file.write(&later);
        assert_eq!(file.read("boot"), Past::Left(later));
        let untouched = fs::read(&stranger).expect("there");
        assert_eq!(untouched, serde_json::to_vec(&state()).expect("JSON"));
    }
}
