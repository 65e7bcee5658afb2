//! Closing files to a child, by Landlock. The ruleset is made here, in the core; the child only puts
//! it on.
//!
//! What stays open to every child: what a program needs to run, see [`READABLE`] and [`DEVICES`], its
//! own program and its data directory. A place that may be written is not one to run programs from.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::plan::{Enforced, Files};

/// Programs, libraries and what they look up. `/proc` and `/sys` too: what they tell of processes
/// outside the sandbox beyond names and numbers, Landlock keeps back itself.
const READABLE: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/nix/store",
    "/proc",
    "/sys",
    // Where resolvers keep what /etc/resolv.conf points to.
    "/run/systemd/resolve",
];

/// Devices without a memory.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// What makes a sandbox a full one: all rights over files that Linux 6.2 can withhold. Later kernels
/// add refinements, which are taken where they are.
const FULL: ABI = ABI::V3;

fn handled() -> Result<Ruleset, landlock::RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(FULL))
}

/// What of Landlock this kernel enforces. Asked once, on a thread that ends: a thread can only ever
/// be restricted further.
pub(super) fn enforced() -> Enforced {
    static ANSWER: OnceLock<Enforced> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let ask = || -> Result<Enforced, landlock::RulesetError> {
            let status = handled()?.create()?.restrict_self()?;
            Ok(match status.ruleset {
                RulesetStatus::FullyEnforced => Enforced::Full,
                RulesetStatus::PartiallyEnforced => Enforced::Partial,
                RulesetStatus::NotEnforced => Enforced::None,
            })
        };
        let thread = std::thread::Builder::new().name("landlock-probe".to_owned());
        let answer = thread.spawn(ask).map(std::thread::JoinHandle::join);
        match answer {
            Ok(Ok(Ok(enforced))) => enforced,
            _ => Enforced::None,
        }
    })
}

/// The ruleset of a run, and which of the plugin's own paths do not exist.
///
/// # Errors
/// The kernel does not take it.
pub(super) fn ruleset(
    files: &Files,
    program: &Path,
    data: &Path,
) -> io::Result<(RulesetCreated, Vec<String>)> {
    let build = || -> Result<_, landlock::RulesetError> {
        let read = AccessFs::from_read(FULL);
        let write = AccessFs::from_all(FULL) & !AccessFs::Execute;
        let mut ruleset = handled()?
            // Its processes may not send signals to others of the same user, the core among them.
            .scope(Scope::Signal)?
            .create()?;
        let (mut missing, mut open) = (Vec::new(), Vec::new());
        open.extend(READABLE.iter().map(|path| (Path::new(path), read, false)));
        let device = AccessFs::ReadFile | AccessFs::WriteFile;
        open.extend(DEVICES.iter().map(|path| (Path::new(path), device, false)));
        open.push((program, read, false));
        open.push((data, write, false));
        open.extend(files.read.iter().map(|path| (path.as_path(), read, true)));
        open.extend(files.write.iter().map(|path| (path.as_path(), write, true)));
        for (path, rights, own) in open {
            match PathFd::new(path) {
                Ok(place) => {
                    // Of a file, the rights over directories are left out.
                    let rights: BitFlags<AccessFs> = if path.is_dir() {
                        rights
                    } else {
                        rights & AccessFs::from_file(FULL)
                    };
                    ruleset = ruleset.add_rule(PathBeneath::new(place, rights))?;
                }
                Err(_) if own => missing.push(path.display().to_string()),
                Err(_) => {}
            }
        }
        Ok((ruleset, missing))
    };
    build().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a thread of its own, since a restriction can never be taken off.
    fn restricted<T: Send + 'static>(
        files: Files,
        data: &Path,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (ruleset, missing) = ruleset(&files, Path::new("/bin/sh"), data).expect("a ruleset");
        assert_eq!(missing, Vec::<String>::new());
        let thread = std::thread::spawn(move || {
            ruleset.restrict_self().expect("it is put on");
            act()
        });
        thread.join().expect("it ends")
    }

    #[test]
    fn only_what_is_named_and_the_data_directory_stays_open() {
        if enforced() != Enforced::Full {
            eprintln!("SKIPPED: this kernel enforces Landlock {:?}", enforced());
            return;
        }
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        for name in ["data", "shown", "given", "hidden"] {
            std::fs::create_dir(path(name)).expect("made");
            std::fs::write(path(name).join("file"), "text").expect("written");
        }
        let files = Files {
            read: vec![path("shown")],
            write: vec![path("given")],
        };
        let root = home.path().to_owned();
        let done = restricted(files, &path("data"), move || {
            let read = |name: &str| std::fs::read(root.join(name).join("file")).is_ok();
            let write = |name: &str| std::fs::write(root.join(name).join("new"), "text").is_ok();
            ["data", "shown", "given", "hidden"].map(|name| (read(name), write(name)))
        });
        assert_eq!(
            done,
            [(true, true), (true, false), (true, true), (false, false)]
        );
    }

    #[test]
    fn a_path_that_does_not_exist_is_told() {
        let files = Files {
            read: vec!["/nowhere/at/all".into()],
            write: Vec::new(),
        };
        let home = tempfile::tempdir().expect("a directory");
        if enforced() == Enforced::None {
            eprintln!("SKIPPED: this kernel has no Landlock");
            return;
        }
        let (_, missing) = ruleset(&files, Path::new("/bin/sh"), home.path()).expect("a ruleset");
        assert_eq!(missing, ["/nowhere/at/all"]);
    }
}
