//! Which files belong to a home, and what they are called in an archive.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::Places;

/// What the archive says of itself.
pub(super) const ABOUT: &str = "home.json";
/// The sums, last.
pub(super) const SUMS: &str = "SHA256SUMS";
/// The database.
pub(super) const DATABASE: &str = "database/runtime.db";
/// `core.toml`.
pub(super) const CONFIGURATION: &str = "configuration/core.toml";
/// What is in the data directory has its path there after this.
const DATA: &str = "data/";

/// Largest part but the database.
pub const PART_BYTES: u64 = 16 << 20;
/// Most of them.
pub(super) const MAX_PARTS: usize = 4_096;
/// Directories in each other, under `security`.
const MAX_DEPTH: usize = 4;

/// The core's own files in the data directory that belong to this boot or this machine and to no home.
const PASSING: &[&str] = &["run-state.json"];

/// One file that belongs to a home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name in an archive.
    pub(super) name: String,
    /// Where it is.
    pub(super) path: PathBuf,
}

/// All that are there, but for the database: the configuration; each `*.json` that the core keeps in its data
/// directory; everything in `security`, but for locks, audit logs and what is being written.
pub(super) fn belonging(places: &Places) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    if let Some(path) = places.configuration.as_ref().filter(|path| path.exists()) {
        parts.push(Part {
            name: CONFIGURATION.to_owned(),
            path: path.clone(),
        });
    }
    let is_own = |name: &str| name.ends_with(".json") && !PASSING.contains(&name);
    collect(&places.data_dir, DATA, 0, &is_own, &mut parts)?;
    let security = places.data_dir.join("security");
    let name = format!("{DATA}security/");
    collect(&security, &name, MAX_DEPTH, &is_kept, &mut parts)?;
    if parts.len() > MAX_PARTS {
        let why = format!("{} files are too many for a backup", parts.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(parts)
}

fn is_kept(name: &str) -> bool {
    let is_audit = name.starts_with("audit") && name.ends_with(".jsonl");
    !(is_audit || name.ends_with(".lock") || name.ends_with(".new"))
}

/// The regular files of a directory, and of those in it. One that is missing is empty.
fn collect(
    directory: &Path,
    prefix: &str,
    depth: usize,
    belongs: &dyn Fn(&str) -> bool,
    parts: &mut Vec<Part>,
) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (kind, path) = (entry.file_type()?, entry.path());
        if kind.is_file() && belongs(&name) {
            let name = format!("{prefix}{name}");
            parts.push(Part { name, path });
        } else if kind.is_dir() && depth > 0 {
            let prefix = format!("{prefix}{name}/");
            collect(&path, &prefix, depth - 1, belongs, parts)?;
        }
    }
    Ok(())
}

/// Where a part of an archive belongs, if it is one of those that there are: nothing else may be written.
/// The configuration has a place only where one is given. The database is put in place otherwise.
pub(super) fn place(places: &Places, name: &str) -> Option<PathBuf> {
    if name == CONFIGURATION {
        return places.configuration.clone();
    }
    let within = Path::new(name.strip_prefix(DATA)?);
    Some(places.data_dir.join(within))
}

/// Whether a name may stand in an archive: a plain relative path of the kinds above.
pub(super) fn is_known(name: &str) -> bool {
    let is_plain = |path: &str| {
        let mut components = Path::new(path).components();
        components.all(|component| matches!(component, Component::Normal(_)))
            && !path.contains("//")
            && !path.ends_with('/')
    };
    match name.strip_prefix(DATA) {
        Some(within) => {
            let file = within.rsplit('/').next().unwrap_or_default();
            let kept = match within.strip_prefix("security/") {
                Some(_) => is_kept(file),
                None => !within.contains('/') && within.ends_with(".json"),
            };
            kept && is_plain(within) && !PASSING.contains(&within)
        }
        None => name == DATABASE || name == CONFIGURATION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_of_known_kinds_may_be_written() {
        let good = [
            "database/runtime.db",
            "configuration/core.toml",
            "data/desired.json",
            "data/security/ca.key",
            "data/security/grants/lamp.json",
        ];
        let bad = [
            "",
            "home.json",
            "data/",
            "data/runtime.db",
            "data/core.lock",
            "data/run-state.json",
            "data/plugins/lamp.json",
            "data/../core.json",
            "data//etc/passwd.json",
            "data/security/../../x.json",
            "data/security//etc/x",
            "data/security/x/",
            "data/security/audit.jsonl",
            "data/security/audit.1.jsonl",
            "data/security/x.lock",
            "/etc/passwd",
            "../core.toml",
            "configuration/other.toml",
        ];
        assert!(good.iter().all(|name| is_known(name)));
        for name in bad {
            assert!(!is_known(name), "{name:?}");
        }
    }
}
