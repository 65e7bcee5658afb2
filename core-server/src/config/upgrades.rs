//! Programs that operators put in the place of configured ones while the core ran, kept in a small file
//! in the data directory so that they hold over its restarts and reloads.
//!
//! An upgrade stands beside what it replaced: the program and the version that the configuration named
//! then. Once the configuration names others, somebody has installed something newer there, and the
//! upgrade is over.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::PluginName;

use super::error::{Origin, Problems, SourceFile};

/// Name of the file in the data directory.
const FILE_NAME: &str = "upgrades.json";

/// What takes the place of the configured one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradeSource {
    /// A program instead of `run.command`.
    Program(PathBuf),
    /// A directory with another `plugin.toml` instead of the installed one.
    Directory(PathBuf),
}

/// A plugin's configured program and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// `run.command`.
    pub command: String,
    /// `version`.
    pub version: String,
}

/// An upgrade in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// What runs now.
    pub source: UpgradeSource,
    /// What the configuration named then.
    pub replaces: Replaced,
}

/// An upgrade that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Of which plugin.
    pub plugin: PluginName,
    /// To what.
    pub source: UpgradeSource,
}

/// The file and what stands in it.
#[derive(Clone, Debug)]
pub struct Upgrades {
    path: PathBuf,
    by_plugin: BTreeMap<PluginName, Upgrade>,
}

impl Upgrades {
    /// Reads the file.
    ///
    /// # Errors
    /// It is there and cannot be read, or is not what the core wrote.
    pub fn read(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE_NAME);
        let by_plugin = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, by_plugin })
    }

    /// As [`Self::read`]; a file that cannot be read is reported, and is as good as none.
    pub(super) fn read_or_report(data_dir: &Path, cwd: &Path, problems: &mut Problems) -> Self {
        Self::read(data_dir).unwrap_or_else(|error| {
            let path = data_dir.join(FILE_NAME);
            let origin = Origin::WholeFile(SourceFile::new(&path, cwd, 0));
            let message = format!(
                "it cannot be read: {error}; remove it to go back to the configured programs"
            );
            problems.add(&origin, message);
            Self::none(data_dir)
        })
    }

    /// No upgrades; they would be kept here.
    #[must_use]
    pub fn none(data_dir: &Path) -> Self {
        Self {
            path: data_dir.join(FILE_NAME),
            by_plugin: BTreeMap::new(),
        }
    }

    /// That of a plugin.
    #[must_use]
    pub fn get(&self, plugin: &PluginName) -> Option<&Upgrade> {
        self.by_plugin.get(plugin)
    }

    /// Where values of upgrades come from, for people.
    pub(super) fn origin(&self, cwd: &Path) -> Origin {
        Origin::WholeFile(SourceFile::new(&self.path, cwd, 0))
    }

    /// Where they are kept.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps an upgrade, or forgets it. Answers what the file has to say then, for whoever writes it;
    /// `None`: nothing else than before.
    pub fn set(&mut self, plugin: &PluginName, upgrade: Option<Upgrade>) -> Option<Vec<u8>> {
        if self.by_plugin.get(plugin) == upgrade.as_ref() {
            return None;
        }
        match upgrade {
            Some(upgrade) => self.by_plugin.insert(plugin.clone(), upgrade),
            None => self.by_plugin.remove(plugin),
        };
        serde_json::to_vec_pretty(&self.by_plugin).ok()
    }
}

/// What is to run instead of what the configuration of a plugin says, and why something else is not.
pub(super) struct Choice<'a> {
    pub(super) source: Option<&'a UpgradeSource>,
    /// An upgrade that is over.
    pub(super) over: bool,
}

/// Decides: a candidate counts, then an upgrade whose configuration has not changed.
pub(super) fn choose<'a>(
    plugin: &PluginName,
    configured: &Replaced,
    candidate: Option<&'a Candidate>,
    upgrades: &'a Upgrades,
) -> Choice<'a> {
    let candidate = candidate.filter(|candidate| candidate.plugin == *plugin);
    if let Some(candidate) = candidate {
        return Choice {
            source: Some(&candidate.source),
            over: false,
        };
    }
    let upgrade = upgrades.get(plugin);
    let over = upgrade.is_some_and(|upgrade| upgrade.replaces != *configured);
    Choice {
        source: upgrade.filter(|_| !over).map(|upgrade| &upgrade.source),
        over,
    }
}

/// The manifest in a directory.
pub(super) fn manifest_file(directory: &Path, cwd: &Path) -> (PathBuf, Arc<SourceFile>) {
    let path = directory.join(super::plugins::MANIFEST_FILE);
    let file = SourceFile::new(&path, cwd, 0);
    (path, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_so_already_needs_no_writing() {
        let home = tempfile::tempdir().expect("a directory");
        let lamp = PluginName::parse("lamp").expect("good");
        let upgrade = Upgrade {
            source: UpgradeSource::Program("/new".into()),
            replaces: Replaced::default(),
        };
        let mut upgrades = Upgrades::read(home.path()).expect("none");
        let content = upgrades.set(&lamp, Some(upgrade.clone()));
        std::fs::write(upgrades.path(), content.expect("new")).expect("written");
        assert_eq!(upgrades.set(&lamp, Some(upgrade.clone())), None);
        let again = Upgrades::read(home.path()).expect("readable");
        assert_eq!(again.get(&lamp), Some(&upgrade));
        let content = upgrades.set(&lamp, None).expect("new");
        std::fs::write(upgrades.path(), content).expect("written");
        let again = Upgrades::read(home.path()).expect("readable");
        assert_eq!(again.get(&lamp), None);
    }
}
