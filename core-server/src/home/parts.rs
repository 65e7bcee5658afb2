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
///
/// What belongs and cannot be a part (a link, a pipe, a name that is no text, a directory too deep in others) is
/// an error that says what to do: a backup that leaves something out is noticed when it is too late.
pub(super) fn belonging(places: &Places) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    if let Some(path) = places.configuration.as_ref().filter(|path| path.exists()) {
        parts.push(Part {
            name: CONFIGURATION.to_owned(),
            path: path.clone(),
        });
    }
    let is_own = |name: &str| name.ends_with(".json") && !PASSING.contains(&name);
    collect(&places.data_dir, DATA, Below::IsOthers, &is_own, &mut parts)?;
    let security = places.data_dir.join("security");
    let (name, below) = (format!("{DATA}security/"), Below::Levels(MAX_DEPTH));
    collect(&security, &name, below, &is_kept, &mut parts)?;
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

/// What is in the directories of a directory.
#[derive(Clone, Copy)]
enum Below {
    /// Nothing of a home.
    IsOthers,
    /// As this directory, so many of them in each other.
    Levels(usize),
}

/// The regular files of a directory, and of those in it. One that is missing is empty.
fn collect(
    directory: &Path,
    prefix: &str,
    below: Below,
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
        let (kind, path) = (entry.file_type()?, entry.path());
        let below = match below {
            Below::IsOthers if kind.is_dir() => continue,
            below => below,
        };
        let name = match entry.file_name().into_string() {
            Ok(name) => name,
            Err(name) if kind.is_dir() || belongs(&name.to_string_lossy()) => {
                return Err(refused(&path, "has a name that is not UTF-8", "rename it"));
            }
            Err(_) => continue,
        };
        match below {
            Below::Levels(0) if kind.is_dir() => {
                let why = "lies too deep in other directories";
                return Err(refused(&path, why, "move it out of the data directory"));
            }
            Below::Levels(left) if kind.is_dir() => {
                let (prefix, below) = (format!("{prefix}{name}/"), Below::Levels(left - 1));
                collect(&path, &prefix, below, belongs, parts)?;
            }
            _ if !belongs(&name) => {}
            _ if kind.is_file() => {
                let name = format!("{prefix}{name}");
                parts.push(Part { name, path });
            }
            _ if kind.is_symlink() => {
                let what = "put the file itself in its place, or move the link out of the data \
                            directory and name the file by its path in core.toml";
                return Err(refused(&path, "is a symbolic link", what));
            }
            _ => {
                let why = "is neither a file nor a directory";
                return Err(refused(&path, why, "move it out of the data directory"));
            }
        }
    }
    Ok(())
}

fn refused(path: &Path, why: &str, what: &str) -> io::Error {
    let why = format!(
        "{} {why}, and a backup holds files only: nothing of a home is left out in silence; {what}",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, why)
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
                Some(within) => is_kept(file) && within.matches('/').count() <= MAX_DEPTH,
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
            "data/security/1/2/3/4/deepest",
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
            "data/security/1/2/3/4/5/too-deep",
            "/etc/passwd",
            "../core.toml",
            "configuration/other.toml",
        ];
        assert!(good.iter().all(|name| is_known(name)));
        for name in bad {
            assert!(!is_known(name), "{name:?}");
        }
    }
    fn data(home: &Path) -> Places {
        Places {
            data_dir: home.to_owned(),
            database: home.join("runtime.db"),
            configuration: None,
        }
    }

    #[test]
    fn what_cannot_be_a_part_is_refused_by_name_and_with_what_to_do() {
        use std::os::unix::ffi::OsStringExt as _;
        use std::os::unix::fs::symlink;
        type Make = fn(&Path) -> PathBuf;
        let link: Make = |home| {
            let path = home.join("security/server.key");
            symlink("/elsewhere/server.key", &path).expect("linked");
            path
        };
        let link_beside: Make = |home| {
            let path = home.join("desired.json");
            symlink("/elsewhere/desired.json", &path).expect("linked");
            path
        };
        let pipe: Make = |home| {
            let path = home.join("security/pipe");
            let mode = rustix::fs::Mode::RUSR;
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).expect("made");
            path
        };
        let deep: Make = |home| {
            let path = home.join("security/1/2/3/4/5");
            fs::create_dir_all(&path).expect("made");
            fs::write(path.join("key"), "deep").expect("written");
            path
        };
        let no_text: Make = |home| {
            let name = std::ffi::OsString::from_vec(b"caf\xe9.pem".to_vec());
            let path = home.join("security").join(name);
            fs::write(&path, "kept").expect("written");
            path
        };
        for (make, why) in [
            (link, "symbolic link"),
            (link_beside, "symbolic link"),
            (pipe, "neither a file"),
            (deep, "too deep"),
            (no_text, "UTF-8"),
        ] {
            let home = tempfile::tempdir().expect("a directory");
            fs::create_dir(home.path().join("security")).expect("made");
            let path = make(home.path());
            let error = belonging(&data(home.path())).expect_err(why).to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_does_not_belong_may_be_anything() {
        use std::os::unix::fs::symlink;
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        fs::create_dir_all(path("plugins/1/2/3/4/5/6")).expect("made");
        fs::create_dir_all(path("security/1/2/3/4")).expect("made");
        fs::write(path("security/1/2/3/4/deepest"), "kept").expect("written");
        symlink("/elsewhere", path("backups")).expect("linked");
        symlink("/elsewhere/audit.jsonl", path("security/audit.jsonl")).expect("linked");
        let found = belonging(&data(home.path())).expect("as it should be");
        let names: Vec<_> = found.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["data/security/1/2/3/4/deepest"]);
        assert!(is_known(names[0]), "what is packed can be put in place");
    }
}
