//! What happens in a child between `fork` and `exec`. The only unsafe code of the core, kept alone.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::Mode;

/// Gives the child a session and so a process group of its own, and the umask 077. The standard
/// library offers a group (`process_group`) but neither session nor umask.
#[expect(
    unsafe_code,
    reason = "code between fork and exec; both calls are plain system calls without allocation or \
              locks, and so async-signal-safe"
)]
pub(super) fn isolate(command: &mut Command) {
    // SAFETY: the closure only makes system calls that are async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::umask(Mode::RWXG | Mode::RWXO);
            Ok(())
        });
    }
}
