//! Processes that a plugin leaves behind.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

/// A lingering process ends by itself after this, whatever a failing test forgot.
const LIFE: Duration = Duration::from_secs(180);
/// How often a parent looks for its child's number.
const LOOK: Duration = Duration::from_millis(5);

/// Starts a process that lingers and waits until it does; its number stands in this file.
///
/// It holds this process's standard output, ignores SIGTERM and does not look at its standard input.
#[expect(
    clippy::zombie_processes,
    reason = "it is to outlive this process: that is the fault"
)]
pub(crate) async fn leave(file: &str, session: &str) {
    // One of an earlier run.
    std::fs::remove_file(file).ok();
    let child = Command::new(std::env::current_exe().expect("its own program"))
        .args(["lingers", session, file])
        .stdin(Stdio::null())
        .spawn();
    child.expect("a child");
    while !std::fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n')) {
        tokio::time::sleep(LOOK).await;
    }
}

/// The lingering process itself.
pub(crate) async fn linger(session: &str, file: &str) -> i32 {
    let _caught = signal(SignalKind::terminate()).expect("a handler");
    if session == "new-session" {
        rustix::process::setsid().expect("no leader of a group yet");
    }
    std::fs::write(file, format!("{}\n", std::process::id())).expect("the plugin's directory");
    tokio::time::sleep(LIFE).await;
    0
}

/// Orphans: so many processes whose parent ends before them. Returns when all have been started.
pub(crate) fn orphans(count: u64) {
    for _ in 0..count {
        // The inner shell outlives the outer one, which nobody else would reap but this process.
        let outer = Command::new("sh")
            .args(["-c", "(sleep 0.2; exit 3) & exit 0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        outer.expect("a shell");
    }
}

/// A bounded fork bomb: each process starts another two, to so many levels; all of them linger. Returns
/// how many of the first level could be started.
pub(crate) fn bomb(levels: u32) -> usize {
    if levels == 0 {
        return 0;
    }
    let started = (0..2).filter(|_| {
        let child = Command::new(std::env::current_exe().expect("its own program"))
            .args(["bomb", &(levels - 1).to_string()])
            .stdin(Stdio::null())
            .spawn();
        child.is_ok()
    });
    started.count()
}
