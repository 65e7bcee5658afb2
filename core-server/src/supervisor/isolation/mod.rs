//! What a child process is kept to: resources, user, files.
//!
//! Owns: what a manifest may ask for ([`ResourceLimits`], [`Sandbox`]), what becomes of it on this
//! machine ([`plan`](plan()), pure), and doing so between `fork` and `exec`. Does not own: starting
//! and ending processes (`process`), nor counting what they use (`usage`).
//!
//! For every child, whatever its manifest says: a session and a group of its own, the umask 077, no
//! core dumps, no descriptor but the three standard ones, and no way to gain rights by running a
//! program (`no_new_privs`).
//!
//! Invariants
//! - What is shown is what is in force: [`Isolation`] comes from the very plan that is carried out,
//!   and a step that fails ends the start.
//! - The child enters its cgroup before it runs any code of the plugin's.
//! - Between `fork` and `exec` there are only system calls; everything else was done before.
//!
//! Limits: names of users come from `/etc/passwd` alone. Off Linux there is no cgroup, no Landlock, no
//! other user and no counting; what is asked for is then `missing`.

mod cgroup;
#[cfg(target_os = "linux")]
mod files;
mod hook;
mod plan;
mod reach;
mod users;
mod wanted;

use std::io;
use std::path::{Path, PathBuf};
use std::process;

pub use cgroup::RunGroup;
pub use plan::{
    Bounds, CgroupLimits, Controllers, Enforced, Files, Isolation, Mode, Offers, Plan, Refusal,
    plan,
};
pub use users::Account;
pub use wanted::{Resource, ResourceLimits, Sandbox};

/// Directories in each other that are given to a plugin's user; each needs two descriptors.
const MOST_DEPTH: usize = 64;

/// What the isolation of children needs to know of this core.
#[derive(Debug)]
pub struct Machine {
    /// Directories and the socket that a child of another user must reach.
    places: Places,
    /// Begins the names of its cgroups.
    prefix: String,
    /// Asked for when the first plugin needs one.
    cgroup: Option<Result<cgroup::Home, String>>,
}

/// Where a child's things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The core's data.
    pub data_dir: PathBuf,
    /// The socket for plugins; absent: it is none of the file system.
    pub socket: Option<PathBuf>,
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not get where it must.
    #[error("sandbox.user: the plugin would not work")]
    Reach(#[from] reach::Error),
    /// Its directory stays the core's.
    #[error("sandbox.user: {} cannot be given to it", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No cgroup.
    #[error("its cgroup cannot be made")]
    Cgroup(#[source] io::Error),
    /// No ruleset.
    #[error("sandbox.landlock: the kernel does not take the rules")]
    Files(#[source] io::Error),
}

/// A plan for one run, with where it is to be carried out.
#[derive(Clone, Debug)]
pub struct Confinement {
    plan: Plan,
    places: Places,
    cgroup: Option<cgroup::Home>,
    /// Of the cgroup.
    name: String,
}

impl Machine {
    /// `cookie` is this core's.
    #[must_use]
    pub fn new(places: Places, cookie: &str) -> Self {
        let short: String = cookie.chars().take(8).collect();
        Self {
            places,
            prefix: format!("plugin-{short}"),
            cgroup: None,
        }
    }

    /// What is done for a run, or why it must not be. `run` names it, for people.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn confine(
        &mut self,
        limits: &ResourceLimits,
        sandbox: &Sandbox,
        run: &str,
    ) -> Result<Confinement, Refusal> {
        let account = users::look_up(sandbox)?;
        let needs_cgroup =
            limits.memory.is_some() || limits.pids.is_some() || limits.cpu_weight.is_some();
        let offers = self.offers(needs_cgroup, sandbox.landlock);
        let plan = plan(limits, sandbox, account, &offers)?;
        let cgroup = match &self.cgroup {
            Some(Ok(home)) if plan.cgroup.is_some() => Some(home.clone()),
            _ => None,
        };
        Ok(Confinement {
            plan,
            places: self.places.clone(),
            cgroup,
            name: run.to_owned(),
        })
    }

    #[cfg(target_os = "linux")]
    fn offers(&mut self, needs_cgroup: bool, needs_landlock: bool) -> Offers {
        if needs_cgroup && self.cgroup.is_none() {
            let home = cgroup::Home::prepare(&self.prefix);
            match &home {
                Ok(_) => tracing::info!("limits of plugins are kept by cgroups"),
                Err(why) => {
                    tracing::info!(why, "no cgroups; limits of plugins are kept by other means");
                }
            }
            self.cgroup = Some(home);
        }
        let own_user = rustix::process::geteuid().as_raw();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Offers {
            other_users: own_user == 0,
            own_user,
            controllers: match &self.cgroup {
                Some(Ok(home)) => home.controllers(),
                _ => Controllers::default(),
            },
            sampling: true,
            open_files: files.maximum.unwrap_or(u64::MAX),
            landlock: if needs_landlock {
                files::enforced()
            } else {
                Enforced::None
            },
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn offers(&mut self, _needs_cgroup: bool, _needs_landlock: bool) -> Offers {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Offers {
            own_user: rustix::process::geteuid().as_raw(),
            open_files: files.maximum.unwrap_or(u64::MAX),
            ..Offers::default()
        }
    }
}

impl Confinement {
    /// The user that the child's connections have.
    #[must_use]
    pub fn user(&self) -> u32 {
        self.plan.account.as_ref().map_or_else(
            || rustix::process::geteuid().as_raw(),
            |account| account.uid,
        )
    }

    /// Whether this is not the core's own: then the core's home is not its home.
    #[must_use]
    pub fn has_own_user(&self) -> bool {
        self.plan.account.is_some()
    }

    /// What the core itself must look after.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.plan.sampled
    }

    /// What is in force, for operators.
    #[must_use]
    pub fn shown(&self) -> &Isolation {
        &self.plan.shown
    }

    /// Has `command` carry the plan out, and does beforehand what the child cannot do itself.
    /// `directory` is its data directory, which exists. The cgroup must be held as long as the run.
    ///
    /// # Errors
    /// [`Error`]: nothing is left behind.
    pub fn apply(
        &self,
        command: &mut process::Command,
        directory: &Path,
    ) -> Result<Option<RunGroup>, Error> {
        let mut steps = hook::Steps {
            open_files: self.plan.open_files,
            processes: self.plan.processes,
            ..hook::Steps::default()
        };
        if let Some(account) = &self.plan.account {
            self.hand_over(account, directory)?;
            steps.account = Some((account.uid, account.gid));
        } else if self.plan.landlock.is_some() && self.user() == 0 {
            // It had another user before; without capabilities root owns only what is root's.
            let root = Account {
                uid: 0,
                gid: rustix::process::getegid().as_raw(),
                label: "root".to_owned(),
            };
            Self::hand_directory(&root, directory)?;
        }
        #[cfg(target_os = "linux")]
        if let Some(wanted) = &self.plan.landlock {
            let program = find_program(command);
            let (ruleset, missing) =
                files::ruleset(wanted, &program, directory).map_err(Error::Files)?;
            for path in missing {
                tracing::warn!(
                    run = self.name,
                    path,
                    "a path of the sandbox does not exist"
                );
            }
            steps.landlock = Some(ruleset);
        }
        let group = match (&self.cgroup, &self.plan.cgroup) {
            (Some(home), Some(limits)) => {
                Some(home.begin(&self.name, limits).map_err(Error::Cgroup)?)
            }
            _ => None,
        };
        if let Some(group) = &group {
            steps.cgroup = Some(group.entrance().map_err(Error::Cgroup)?);
        }
        hook::add(command, steps);
        Ok(group)
    }

    fn hand_directory(account: &Account, directory: &Path) -> Result<(), Error> {
        give(directory, account).map_err(|source| Error::Owner {
            path: directory.to_owned(),
            source,
        })
    }

    /// Gives the child's user its directory, and ways to it and to the socket.
    fn hand_over(&self, account: &Account, directory: &Path) -> Result<(), Error> {
        let data = std::path::absolute(&self.places.data_dir)
            .unwrap_or_else(|_| self.places.data_dir.clone());
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        reach::open_way(account, &directory, &data, "data_dir")?;
        Self::hand_directory(account, &directory)?;
        let Some(socket) = &self.places.socket else {
            return Ok(());
        };
        let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.clone());
        // The default is below the data directory; elsewhere only its own directory is the core's.
        let own = if socket.starts_with(&data) {
            data.as_path()
        } else {
            socket.parent().unwrap_or(&socket)
        };
        reach::open_way(account, &socket, own, "listen.runtime_dir")?;
        reach::open_socket(account, &socket)?;
        Ok(())
    }
}

/// Gives a plugin's data directory with everything in it to its user, once: when the directory itself
/// is the user's already, so is the rest, or the plugin wants it so.
///
/// Whoever had it before may still be at work in it. So no link is followed, on no step of the way; and
/// a file with several names, of which one may be elsewhere, stays whose it is.
fn give(directory: &Path, account: &Account) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown};
    use rustix::fs::{fstat, openat, statat};
    let (user, group) = (
        Some(Uid::from_raw(account.uid)),
        Some(Gid::from_raw(account.gid)),
    );
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let top = openat(CWD, directory, flags, Mode::empty())?;
    let found = fstat(&top)?;
    if (found.st_uid, found.st_gid) == (account.uid, account.gid) {
        return Ok(());
    }
    // Depth first, so that few descriptors are open at once, and each directory after what is in it:
    // a tree that was given in part is given again.
    let mut open = vec![(Dir::read_from(&top)?, top)];
    loop {
        let depth = open.len();
        let Some((entries, directory)) = open.last_mut() else {
            return Ok(());
        };
        let Some(entry) = entries.next() else {
            fchown(&*directory, user, group)?;
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let found = statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            if depth >= MOST_DEPTH {
                return Err(io::Error::other("it is nested too deeply"));
            }
            let below = openat(&*directory, name, flags, Mode::empty())?;
            open.push((Dir::read_from(&below)?, below));
        } else if found.st_nlink == 1 {
            chownat(&*directory, name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
}

/// The program as `exec` will find it.
#[cfg(target_os = "linux")]
fn find_program(command: &process::Command) -> PathBuf {
    let program = Path::new(command.get_program());
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = command
        .get_envs()
        .find(|(name, _)| *name == "PATH")
        .and_then(|(_, value)| value)
        .unwrap_or_default();
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| program.to_owned())
}
