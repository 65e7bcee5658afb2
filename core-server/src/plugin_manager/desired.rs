//! What is wanted of each plugin, kept over restarts of the core in one small file beside the
//! database. Not in Storage: the plugin manager must work when Storage does not.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::files::{Outlives, write_atomically};
use crate::supervisor::lifecycle::PluginState;
use crate::types::PluginName;

/// Name of the file in the data directory.
const FILE_NAME: &str = "desired.json";

/// The file and what stands in it.
#[derive(Debug)]
pub(super) struct DesiredFile {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    /// In force.
    wanted: BTreeMap<PluginName, PluginState>,
    /// What stands in the file.
    written: BTreeMap<PluginName, PluginState>,
}

impl DesiredFile {
    /// Reads the file. One that cannot be read is as good as none: plugins then start as their
    /// manifests say.
    pub(super) fn open(data_dir: &Path, keep: bool) -> Self {
        if !keep {
            return Self {
                path: None,
                wanted: BTreeMap::new(),
                written: BTreeMap::new(),
            };
        }
        let path = data_dir.join(FILE_NAME);
        let wanted = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "ignored: not what the core wrote");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "cannot be read");
                }
                BTreeMap::new()
            }
        };
        Self {
            path: Some(path),
            written: wanted.clone(),
            wanted,
        }
    }

    pub(super) fn get(&self, plugin: &PluginName) -> Option<PluginState> {
        self.wanted.get(plugin).copied()
    }

    /// Whether this is in force and, where anything is kept, written.
    pub(super) fn keeps(&self, plugin: &PluginName, state: PluginState) -> bool {
        let kept = self.path.is_none() || self.written.get(plugin) == Some(&state);
        kept && self.get(plugin) == Some(state)
    }

    /// Writes what has changed, and what could not be written before. Plugins that are not known now keep
    /// their entry.
    ///
    /// This waits for the disk, inside the worker and before the request is answered: requests are
    /// rare, the file is tiny, and what was acknowledged must stand after a power cut.
    pub(super) fn set(&mut self, changes: impl IntoIterator<Item = (PluginName, PluginState)>) {
        let mut asked = false;
        for (plugin, state) in changes {
            asked = true;
            self.wanted.insert(plugin, state);
        }
        let Some(path) = self.path.as_ref().filter(|_| asked) else {
            return;
        };
        if self.wanted == self.written {
            return;
        }
        match self.write(path) {
            Ok(()) => self.written.clone_from(&self.wanted),
            Err(error) => tracing::error!(
                path = %path.display(), %error,
                "what is wanted of the plugins was not kept; it holds until the core ends, and is written \
                 when one of them is next asked for something"
            ),
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(&self.wanted)?;
        write_atomically(path, &content, Outlives::Power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wanted_is_there_again_and_a_broken_file_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let lamp = PluginName::parse("lamp").expect("good");
        let mut file = DesiredFile::open(directory.path(), true);
        assert_eq!(file.get(&lamp), None);
        file.set([(lamp.clone(), PluginState::Stopped)]);
        let again = DesiredFile::open(directory.path(), true);
        assert_eq!(again.get(&lamp), Some(PluginState::Stopped));
        std::fs::write(directory.path().join(FILE_NAME), b"{").expect("written");
        assert_eq!(DesiredFile::open(directory.path(), true).get(&lamp), None);
    }

    #[test]
    fn what_was_not_written_is_in_force_and_is_written_when_it_is_set_again() {
        let home = tempfile::tempdir().expect("a directory");
        let data = home.path().join("data");
        let lamp = PluginName::parse("lamp").expect("good");
        let mut file = DesiredFile::open(&data, true);
        std::fs::write(&data, "in the way").expect("written");
        file.set([(lamp.clone(), PluginState::Stopped)]);
        assert_eq!(file.get(&lamp), Some(PluginState::Stopped));
        assert!(!file.keeps(&lamp, PluginState::Stopped));
        std::fs::remove_file(&data).expect("removed");
        file.set([(lamp.clone(), PluginState::Stopped)]);
        assert!(file.keeps(&lamp, PluginState::Stopped));
        let again = DesiredFile::open(&data, true);
        assert_eq!(again.get(&lamp), Some(PluginState::Stopped));
    }
}
