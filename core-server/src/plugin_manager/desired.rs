//! What is wanted of each plugin, kept over restarts of the core in one small file beside the
//! database. Not in Storage: the plugin manager must work when Storage does not.
//!
//! What is wanted is in force at once; [`DesiredFile::standing`] says whether it is on the disk too, where
//! the keeper writes it. Nobody is told that a request is done before it is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::keeper::{Keeper, Standing, Version};
use crate::supervisor::lifecycle::PluginState;
use crate::types::PluginName;

/// Name of the file in the data directory.
const FILE_NAME: &str = "desired.json";

/// The file and what stands in it.
#[derive(Debug)]
pub(super) struct DesiredFile {
    /// `None`: nothing is kept.
    path: Option<PathBuf>,
    /// In force, and the content of the file that was the first to say so.
    wanted: BTreeMap<PluginName, (PluginState, Version)>,
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
        let wanted: BTreeMap<PluginName, PluginState> = match std::fs::read(&path) {
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
        let written = |(plugin, state)| (plugin, (state, Version::default()));
        Self {
            path: Some(path),
            wanted: wanted.into_iter().map(written).collect(),
        }
    }

    pub(super) fn get(&self, plugin: &PluginName) -> Option<PluginState> {
        self.wanted.get(plugin).map(|(state, _)| *state)
    }

    /// Whether what is wanted of a plugin is on the disk.
    pub(super) fn standing(&self, plugin: &PluginName, keeper: &Keeper) -> Standing {
        match (&self.path, self.wanted.get(plugin)) {
            (Some(path), Some((_, version))) => keeper.standing(path, *version),
            _ => Standing::Kept,
        }
    }

    /// From now on this is wanted. Plugins that are not known now keep their entry.
    pub(super) fn set(
        &mut self,
        changes: impl IntoIterator<Item = (PluginName, PluginState)>,
        keeper: &Keeper,
    ) {
        let changes = changes.into_iter();
        let changes: Vec<_> = changes
            .filter(|(plugin, state)| self.get(plugin) != Some(*state))
            .collect();
        if changes.is_empty() {
            return;
        }
        let mut content: BTreeMap<&PluginName, PluginState> = self
            .wanted
            .iter()
            .map(|(plugin, (state, _))| (plugin, *state))
            .collect();
        content.extend(changes.iter().map(|(plugin, state)| (plugin, *state)));
        let content = serde_json::to_vec_pretty(&content).unwrap_or_default();
        let version = match &self.path {
            Some(path) => keeper.keep(path, content),
            None => Version::default(),
        };
        let changes = changes.into_iter();
        self.wanted
            .extend(changes.map(|(plugin, state)| (plugin, (state, version))));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_was_wanted_is_there_again_and_a_broken_file_is_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let (lamp, keeper) = (PluginName::parse("lamp").expect("good"), Keeper::default());
        let mut file = DesiredFile::open(directory.path(), true);
        assert_eq!(file.get(&lamp), None);
        file.set([(lamp.clone(), PluginState::Stopped)], &keeper);
        assert_eq!(file.get(&lamp), Some(PluginState::Stopped));
        keeper.flush(Duration::from_secs(10)).await;
        assert_eq!(file.standing(&lamp, &keeper), Standing::Kept);
        let again = DesiredFile::open(directory.path(), true);
        assert_eq!(again.get(&lamp), Some(PluginState::Stopped));
        std::fs::write(directory.path().join(FILE_NAME), b"{").expect("written");
        assert_eq!(DesiredFile::open(directory.path(), true).get(&lamp), None);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_in_force_and_said_of_whom_it_concerns() {
        let home = tempfile::tempdir().expect("a directory");
        let (data, keeper) = (home.path().join("data"), Keeper::default());
        let name = |name| PluginName::parse(name).expect("good");
        let (lamp, heater) = (name("lamp"), name("heater"));
        let mut file = DesiredFile::open(&data, true);
        file.set([(heater.clone(), PluginState::Stopped)], &keeper);
        keeper.flush(Duration::from_secs(10)).await;
        std::fs::remove_dir_all(&data).expect("removed");
        std::fs::write(&data, "in the way").expect("written");
        file.set([(lamp.clone(), PluginState::Stopped)], &keeper);
        assert_eq!(file.get(&lamp), Some(PluginState::Stopped));
        keeper.flush(Duration::from_secs(10)).await;
        let standing = file.standing(&lamp, &keeper);
        assert!(matches!(standing, Standing::Failed(_)), "{standing:?}");
        assert_eq!(file.standing(&heater, &keeper), Standing::Kept);
        std::fs::remove_file(&data).expect("removed");
        file.set([(lamp.clone(), PluginState::Started)], &keeper);
        keeper.flush(Duration::from_secs(10)).await;
        assert_eq!(file.standing(&lamp, &keeper), Standing::Kept);
    }
}
