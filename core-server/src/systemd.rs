//! What systemd is told of a unit with `Type=notify`: datagrams to the socket that `NOTIFY_SOCKET` names,
//! as sd_notify(3) has them. Without that variable nobody is told anything.
//!
//! The watchdog is fed only while the core answers: its threads run, and the task that owns the plugins
//! takes its turn. A slow disk, a plugin that hangs and a full table of descriptors are no reason to kill
//! the core; each of them has its own answer.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, if there is one.
#[derive(Debug)]
pub(crate) struct Systemd {
    socket: Option<UnixDatagram>,
    /// After so long without a sign of life it kills the core.
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Finds it by the variables that it sets.
    pub(crate) fn from_environment(variables: &[(String, String)]) -> Self {
        let get = |wanted: &str| {
            let found = variables.iter().find(|(name, _)| name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        let socket = get("NOTIFY_SOCKET").and_then(|path| match connect(path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(path, %error, "systemd cannot be told how the core is");
                None
            }
        });
        let own = std::process::id();
        Self {
            socket,
            watchdog: watchdog(get("WATCHDOG_USEC"), get("WATCHDOG_PID"), own),
        }
    }

    /// The core serves, or serves again.
    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=");
    }

    /// The core serves on as it did: what it read anew was refused. `systemctl status` shows why.
    pub(crate) fn refused(&self, why: &str) {
        let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
        self.tell(&format!(
            "READY=1\nSTATUS=The last reload was refused: {line}"
        ));
    }

    /// The configuration is read again; [`Self::ready`] or [`Self::refused`] ends it.
    pub(crate) fn reloading(&self) {
        self.tell("RELOADING=1");
    }

    /// The core ends.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Feeds the watchdog for ever, each time only once `answers` has.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn feed_watchdog(&self, mut answers: impl AsyncFnMut()) -> Infallible {
        let Some(watchdog) = self.watchdog else {
            return std::future::pending().await;
        };
        // Twice within its time, as sd_watchdog_enabled(3) recommends.
        let mut turns = tokio::time::interval(watchdog / 2);
        loop {
            turns.tick().await;
            answers().await;
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, what: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(what.as_bytes()) {
            tracing::warn!(what, %error, "systemd was not told");
        }
    }
}

fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address(path)?)?;
    // A manager that does not read must not hold up the core.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A path, or with an `@` before it a name in the abstract namespace.
fn address(path: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt as _;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(path)
}

/// The watchdog's time; `pid`: for which process it is meant, if it says so.
fn watchdog(microseconds: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let microseconds = microseconds?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_on_when_it_has_a_time_and_is_meant_for_this_process() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (time, pid, found) in [
            (None, None, None),
            (Some("30000000"), None, seconds(30)),
            (Some("30000000"), Some("7"), seconds(30)),
            (Some("30000000"), Some("8"), None),
            (Some("30000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("-1"), None, None),
        ] {
            assert_eq!(watchdog(time, pid, 7), found, "{time:?} {pid:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_core_that_does_not_answer_feeds_no_watchdog() {
        let (ours, manager) = UnixDatagram::pair().expect("a pair");
        manager.set_nonblocking(true).expect("set");
        let systemd = Systemd {
            socket: Some(ours),
            watchdog: Some(Duration::from_secs(30)),
        };
        let told = || {
            let mut fed = 0;
            let mut buffer = [0; 64];
            while let Ok(length) = manager.recv(&mut buffer) {
                assert_eq!(&buffer[..length], b"WATCHDOG=1");
                fed += 1;
            }
            fed
        };
        let patience = Duration::from_secs(100);
        let alive = systemd.feed_watchdog(async || ());
        drop(tokio::time::timeout(patience, alive).await);
        assert_eq!(told(), 7, "at once and each 15 s");
        let hung = systemd.feed_watchdog(async || std::future::pending().await);
        drop(tokio::time::timeout(patience, hung).await);
        assert_eq!(told(), 0);
    }

    #[test]
    fn without_a_manager_nobody_is_told() {
        let systemd = Systemd::from_environment(&[]);
        assert!(systemd.socket.is_none() && systemd.watchdog.is_none());
        systemd.ready();
        let nowhere = ("NOTIFY_SOCKET".to_owned(), "/nowhere/at/all".to_owned());
        assert!(Systemd::from_environment(&[nowhere]).socket.is_none());
    }
}
