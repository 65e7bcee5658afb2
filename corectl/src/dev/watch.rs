//! Which files are watched, and when they have changed. Looked at twice a second: that works on every file
//! system, and an editor's or a compiler's many small steps are one change.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};

use crate::failure::Failure;
use crate::output::note;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most files; the rest is not watched, which is told.
const MAX_FILES: usize = 20_000;
/// Directories that hold what is made from the sources.
const MADE: [&str; 3] = ["target", "node_modules", "__pycache__"];
/// A directory that holds this is a core's data directory.
const CORE_LOCK: &str = "core.lock";

/// What was seen of each file: when it was written, and its size.
type Seen = BTreeMap<PathBuf, (SystemTime, u64)>;

/// What is watched.
#[derive(Debug)]
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    rule: Settling,
    ticks: tokio::time::Interval,
}

impl Watch {
    /// Begins to watch these paths, without any the working directory; and the program.
    ///
    /// # Errors
    /// [`Failure::Usage`]: a path that was named is not there.
    pub(super) fn begin(named: &[PathBuf], program: Option<&OsString>) -> Result<Self, Failure> {
        let mut paths = named.to_vec();
        if let Some(missing) = paths.iter().find(|path| !path.exists()) {
            return Err(Failure::usage(
                format!("--watch {}: there is no such file", missing.display()),
                "",
            ));
        }
        if paths.is_empty() {
            paths.push(PathBuf::from("."));
        }
        paths.extend(program.and_then(|program| find(Path::new(program))));
        let (seen, all) = look(&paths);
        if !all {
            note(&format!(
                "dev: more than {MAX_FILES} files here, the rest is not watched; --watch names others"
            ));
        }
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            paths,
            rule: Settling::new(seen),
            ticks,
        })
    }

    /// What has changed until now does not count.
    pub(super) async fn begin_anew(&mut self) {
        let paths = self.paths.clone();
        if let Ok((seen, _)) = tokio::task::spawn_blocking(move || look(&paths)).await {
            self.rule = Settling::new(seen);
        }
    }

    /// Waits until something has changed and rests again; which file it was.
    ///
    /// # Cancel safety
    /// A change is not lost.
    pub(super) async fn changed(&mut self) -> PathBuf {
        loop {
            self.ticks.tick().await;
            let paths = self.paths.clone();
            let looked = tokio::task::spawn_blocking(move || look(&paths)).await;
            let Ok((seen, _)) = looked else { continue };
            if let Some(path) = self.rule.step(seen) {
                return path;
            }
        }
    }
}

/// When a change counts: once nothing more has changed between two looks. Pure.
#[derive(Debug)]
struct Settling {
    last: Seen,
    /// The first file that changed and was not told yet.
    changed: Option<PathBuf>,
}

impl Settling {
    fn new(seen: Seen) -> Self {
        Self {
            last: seen,
            changed: None,
        }
    }

    fn step(&mut self, seen: Seen) -> Option<PathBuf> {
        let difference = first_difference(&self.last, &seen);
        self.last = seen;
        if let Some(path) = difference {
            self.changed.get_or_insert(path);
            return None;
        }
        self.changed.take()
    }
}

fn first_difference(before: &Seen, now: &Seen) -> Option<PathBuf> {
    let changed = now
        .iter()
        .find(|(path, facts)| before.get(*path) != Some(facts));
    let gone = || before.keys().find(|path| !now.contains_key(*path));
    changed.map(|(path, _)| path).or_else(gone).cloned()
}

/// All files below the paths, and whether that is all of them. What cannot be read is not there.
fn look(paths: &[PathBuf]) -> (Seen, bool) {
    let mut seen = Seen::new();
    let mut left: Vec<PathBuf> = paths.to_vec();
    while let Some(path) = left.pop() {
        let Ok(facts) = std::fs::metadata(&path) else {
            continue;
        };
        if facts.is_file() {
            if seen.len() >= MAX_FILES {
                return (seen, false);
            }
            let written = facts.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            seen.insert(path, (written, facts.len()));
            continue;
        }
        if path.join(CORE_LOCK).exists() {
            continue;
        }
        let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            // Links may lead around in circles.
            let plain = entry.file_type().is_ok_and(|kind| !kind.is_symlink());
            if plain && is_source(&name.to_string_lossy()) {
                left.push(entry.path());
            }
        }
    }
    (seen, true)
}

/// Hidden files are editors' and version control's, and so are backups that end with a tilde.
fn is_source(name: &str) -> bool {
    !(name.starts_with('.') || name.ends_with('~') || MADE.contains(&name))
}

/// The file of a program, as the system will find it.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    candidates.find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(files: &[(&str, u64)]) -> Seen {
        let facts =
            |(path, size): &(&str, u64)| (PathBuf::from(path), (SystemTime::UNIX_EPOCH, *size));
        files.iter().map(facts).collect()
    }

    #[test]
    fn a_change_counts_once_and_only_when_it_is_over() {
        let mut rule = Settling::new(seen(&[("a", 1), ("b", 1)]));
        assert_eq!(rule.step(seen(&[("a", 1), ("b", 1)])), None);
        assert_eq!(rule.step(seen(&[("a", 1), ("b", 2)])), None, "it goes on");
        assert_eq!(rule.step(seen(&[("a", 1), ("b", 3)])), None, "it goes on");
        let told = rule.step(seen(&[("a", 1), ("b", 3)]));
        assert_eq!(told, Some(PathBuf::from("b")));
        assert_eq!(rule.step(seen(&[("a", 1), ("b", 3)])), None, "once");
        assert_eq!(rule.step(seen(&[("a", 1)])), None);
        assert_eq!(
            rule.step(seen(&[("a", 1)])),
            Some(PathBuf::from("b")),
            "gone"
        );
        assert_eq!(rule.step(seen(&[("a", 1), ("c", 1)])), None);
        let told = rule.step(seen(&[("a", 1), ("c", 1)]));
        assert_eq!(told, Some(PathBuf::from("c")), "new");
    }

    #[test]
    fn sources_are_watched_and_what_is_made_of_them_is_not() {
        let home = tempfile::tempdir().expect("a directory");
        let watched = ["plugin.toml", "src/deep/er.rs", "src/main.rs"];
        let passed_by = [
            "target/debug/lamp",
            ".git/index",
            "src/.main.rs.swp",
            "src/main.rs~",
            "__pycache__/lamp.pyc",
            "data/core.lock",
            "data/runtime.db",
        ];
        for name in watched.iter().chain(&passed_by) {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a file")).expect("made");
            std::fs::write(path, name).expect("written");
        }
        std::os::unix::fs::symlink(home.path(), home.path().join("around")).expect("linked");
        let (seen, all) = look(&[home.path().to_owned()]);
        let expected: Vec<_> = watched.iter().map(|name| home.path().join(name)).collect();
        assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), expected);
        assert!(all);
        // What is named is watched wherever it is.
        let program = home.path().join("target/debug/lamp");
        let (seen, _) = look(std::slice::from_ref(&program));
        assert!(seen.contains_key(&program));
    }
}
