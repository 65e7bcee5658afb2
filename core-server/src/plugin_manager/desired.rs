//! What is wanted of each plugin, kept over restarts of the core in one small file beside the
//! database. Not in Storage: the plugin manager must work when Storage does not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::supervisor::lifecycle::PluginState;
use crate::types::PluginName;

/// Name of the file in the data directory.
const FILE_NAME: &str = "desired.json";

/// The file and what stands in it.
#[derive(Debug)]
pub(super) struct DesiredFile {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    wanted: BTreeMap<PluginName, PluginState>,
}

impl DesiredFile {
    /// Reads the file. One that cannot be read is as good as none: plugins then start as their
    /// manifests say.
    pub(super) fn open(data_dir: &Path, keep: bool) -> Self {
        if !keep {
            return Self {
                path: None,
                wanted: BTreeMap::new(),
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
            wanted,
        }
    }

    pub(super) fn get(&self, plugin: &PluginName) -> Option<PluginState> {
        self.wanted.get(plugin).copied()
    }

    /// Writes what has changed. Plugins that are not known now keep their entry.
    ///
    /// This waits for the disk, inside the worker and before the request is answered: requests are
    /// rare, the file is tiny, and what was acknowledged must stand after a power cut.
    pub(super) fn set(&mut self, changes: impl IntoIterator<Item = (PluginName, PluginState)>) {
        let mut changed = false;
        for (plugin, state) in changes {
            changed |= self.wanted.insert(plugin, state) != Some(state);
        }
        if changed
            && let Some(path) = &self.path
            && let Err(error) = self.write(path)
        {
            tracing::error!(
                path = %path.display(), %error,
                "what is wanted of the plugins was not kept; it holds until the core ends"
            );
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let temporary = path.with_extension("json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&self.wanted)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
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
}
