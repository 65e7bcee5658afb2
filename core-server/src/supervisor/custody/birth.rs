//! What the layers need of a child between `fork` and `exec`. Unsafe code, kept alone; the sandbox's
//! is in `isolation/hook.rs`, which also keeps the core's descriptors from plugins.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;

use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::protocol::write_decimal;

/// First descriptor that is not standard input, output or error.
const FIRST_OTHER: libc::c_uint = 3;
/// Descriptors looked at where the kernel has no `close_range`.
const LOOKED_AT: libc::c_int = 1024;

/// What a child does last before it becomes the plugin.
#[derive(Debug)]
pub(super) struct Birth {
    /// Asks the kernel to kill it when the core is gone.
    pub(super) parent_death_signal: bool,
    /// The core.
    pub(super) core: u32,
    /// Tells the guardian of its group: the socket, and the line but for its own number.
    pub(super) guardian: Option<(Arc<OwnedFd>, Vec<u8>)>,
}

/// Arms a child. Called after everything else that happens before `exec`: a change of user clears the
/// death signal, and a group has its final number only after `setsid`.
///
/// The child tells the guardian itself. What is in the socket reaches the guardian even when the core
/// dies at this moment, and the socket does not end before the child has become the plugin, for the
/// child holds it until then: a guardian that sees the end knows all children, and all run with
/// their mark in their environment.
#[expect(unsafe_code, reason = "code between fork and exec")]
pub(super) fn arm(command: &mut Command, birth: Birth) {
    let core = Pid::from_raw(birth.core.cast_signed());
    let last_step = move || {
        if birth.parent_death_signal {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The core may have died before that was set.
            if getppid() != core {
                return Err(rustix::io::Errno::SRCH.into());
            }
        }
        if let Some((socket, prefix)) = &birth.guardian {
            let mut line = [0; 64];
            let mut digits = [0; 10];
            let own = getpid().as_raw_nonzero().get().unsigned_abs();
            let length = write_decimal(own, &mut digits);
            let end = prefix.len() + length;
            if let Some(place) = line.get_mut(..end) {
                place[..prefix.len()].copy_from_slice(prefix);
                place[prefix.len()..].copy_from_slice(&digits[..length]);
                // Without a signal and without waiting: a guardian that is gone or stuck is
                // replaced, and the core tells the next one.
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                let _told = rustix::net::send(socket.as_fd(), place, flags);
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls, and copies bytes within memory that was there before the
    // fork: no allocation, no lock, nothing that is not async-signal-safe.
    unsafe {
        command.pre_exec(last_step);
    }
}

/// Makes a child the guardian: a session of its own, deaf to what the terminal sends to the core's
/// group and to whoever ends all programs kindly.
#[expect(unsafe_code, reason = "code between fork and exec")]
pub(super) fn set_apart(command: &mut Command) {
    let step = || {
        rustix::process::setsid()?;
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: signal(2) with SIG_IGN, which lasts over exec, is async-signal-safe.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        keep_descriptors_private();
        Ok(())
    };
    // SAFETY: only system calls that are async-signal-safe.
    unsafe {
        command.pre_exec(step);
    }
}

/// Nothing but the three standard streams goes on to the program: the core's own descriptors are
/// closed on `exec` anyway, what it inherited itself may not be. They are marked, not closed: the
/// standard library still needs one of them to tell why `exec` failed.
#[expect(unsafe_code, reason = "rustix has no close_range")]
fn keep_descriptors_private() {
    // SAFETY: only marks descriptors; async-signal-safe.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            FIRST_OTHER,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked == 0 {
        return;
    }
    // Before Linux 5.11.
    for descriptor in FIRST_OTHER.cast_signed()..LOOKED_AT {
        // SAFETY: fails for numbers that are no descriptor; async-signal-safe.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
