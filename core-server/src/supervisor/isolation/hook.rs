//! What happens in a child between `fork` and `exec`. The only unsafe code of the core, kept alone.
//!
//! Everything that needs memory, names or locks was done before, in the core: descriptors are open,
//! the ruleset is made, users are numbers. Here are system calls only.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit};

/// What a child does to itself before it becomes the plugin's program.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Its cgroup's `cgroup.procs`.
    pub(super) cgroup: Option<File>,
    /// User and group.
    pub(super) account: Option<(u32, u32)>,
    /// `RLIMIT_NOFILE`.
    pub(super) open_files: Option<u64>,
    /// `RLIMIT_NPROC`.
    pub(super) processes: Option<u64>,
    /// Files.
    #[cfg(target_os = "linux")]
    pub(super) landlock: Option<landlock::RulesetCreated>,
}

/// Has a child take the steps, in this order: its cgroup, so that everything after counts there; a
/// session and so a process group of its own, and the umask 077; its limits; its user; no way to gain
/// rights by running a program; files, and with them the capabilities of root; no descriptor but the three standard ones.
///
/// A change of the user clears the signal of a parent's death: who asks for that must do it in a hook
/// that is added after this one.
#[expect(
    unsafe_code,
    reason = "code between fork and exec; plain system calls without allocation or locks, and so \
              async-signal-safe"
)]
pub(super) fn add(command: &mut Command, mut steps: Steps) {
    // SAFETY: the closure only makes system calls that are async-signal-safe. It frees nothing: what
    // it owns is plain descriptors.
    unsafe {
        command.pre_exec(move || {
            if let Some(cgroup) = &steps.cgroup {
                // "0" is whoever writes.
                rustix::io::write(cgroup, b"0")?;
            }
            rustix::process::setsid()?;
            rustix::process::umask(Mode::RWXG | Mode::RWXO);
            limit(Resource::Core, 0)?;
            if let Some(files) = steps.open_files {
                limit(Resource::Nofile, files)?;
            }
            if let Some(processes) = steps.processes {
                limit(Resource::Nproc, processes)?;
            }
            #[cfg(target_os = "linux")]
            {
                if let Some((user, group)) = steps.account {
                    become_user(user, group)?;
                }
                rustix::thread::set_no_new_privs(true)?;
                if let Some(ruleset) = steps.landlock.take() {
                    if ruleset.restrict_self().is_err() {
                        return Err(std::io::Error::last_os_error());
                    }
                    // Of a core that is root: what no rule about files withholds. With the bit above,
                    // no program that it runs gives them back.
                    rustix::thread::set_capabilities(None, NO_CAPABILITIES)?;
                }
                // Whatever a library of the core's program opened without care. Marked, not closed:
                // the standard library still needs its own to report a failing `exec`. Kernels before
                // Linux 5.11 do not know the call; the core's own descriptors are all marked anyway.
                libc::syscall(
                    libc::SYS_close_range,
                    3_u32,
                    u32::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
            }
            Ok(())
        });
    }
}

#[cfg(target_os = "linux")]
const NO_CAPABILITIES: rustix::thread::CapabilitySets = rustix::thread::CapabilitySets {
    effective: rustix::thread::CapabilitySet::empty(),
    permitted: rustix::thread::CapabilitySet::empty(),
    inheritable: rustix::thread::CapabilitySet::empty(),
};

fn limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    rustix::process::setrlimit(resource, limit)
}

/// The thread is the whole process here: `fork` copies no other.
#[cfg(target_os = "linux")]
fn become_user(user: u32, group: u32) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[group])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)
}
