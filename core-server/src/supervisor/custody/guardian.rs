//! The core's side of the guardian: starts it, tells it, starts another when it dies.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use tokio::process::Child;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::protocol::{Notice, READY};
use super::{Custody, birth};
use crate::supervisor::process::watch;

/// The hidden subcommand of a program that can be the guardian.
pub const SUBCOMMAND: &str = "guardian";

/// How long a guardian may take to say that it watches.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// Wait before another is started when one did not live long; doubles.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// One that lived for so long was no failure.
const LIVED: Duration = Duration::from_secs(10);
/// How long it may take to end when it is told to.
const END_WITHIN: Duration = Duration::from_millis(500);

/// The core's end of the socket.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) socket: Arc<OwnedFd>,
}

impl Link {
    /// Tells it; never waits. A guardian that does not read is as good as dead: `Err`.
    pub(super) fn tell(&self, notice: &Notice) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        send(&self.socket, &notice.encode(), flags)?;
        Ok(())
    }
}

/// A guardian that does not watch yet. It knows no cookie, so that it kills nobody, whatever becomes of it
/// and of the core. Dropped, as when its start was given up long before it returned, it is killed.
#[derive(Debug)]
pub(super) struct Started {
    child: Option<Child>,
    pub(super) link: Link,
    custody: Custody,
}

impl Started {
    pub(super) fn id(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// It watches.
    pub(super) fn into_child(mut self) -> Option<Child> {
        self.child.take()
    }

    /// Kills it and reaps it.
    pub(super) async fn end(mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let pid = child.id();
        drop(child.kill().await);
        self.custody.strike_off(pid);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // Nobody waits for it: whoever comes first reaps it.
        let (pid, _gone) = (child.id(), child.start_kill());
        self.custody.strike_off(pid);
    }
}

/// Starts a guardian. On the thread that forks.
pub(super) fn start(program: &Path, custody: &Custody) -> io::Result<Started> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut command = std::process::Command::new(program);
    command
        .arg0("core-guardian")
        .arg(SUBCOMMAND)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        // Where the core logs: it says what it ended.
        .stderr(Stdio::inherit());
    birth::set_apart(&mut command);
    // Its end is inside `command`: dropped, so that the guardian's death is seen as the socket's end.
    // It is not killed when it is dropped: should the core go to pieces, it has something to do.
    let child = tokio::process::Command::from(command).spawn()?;
    Ok(Started {
        child: Some(child),
        link: Link {
            socket: Arc::new(ours),
        },
        custody: custody.clone(),
    })
}

/// Tells a guardian the cookie and waits until it watches. No sooner: one that reads it and then the end of
/// the socket kills whoever has it.
pub(super) async fn wait_until_ready(link: &Link, cookie: &str) -> io::Result<()> {
    // A program that ends at once is reported by what it does not answer.
    let _unheard = link.tell(&Notice::Cookie(cookie.to_owned()));
    let socket = watch(link.socket.try_clone()?)?;
    let readable = tokio::time::timeout(READY_WITHIN, socket.readable()).await;
    let _ready = readable.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let mut answer = [0; 16];
    let (length, _) = recv(link.socket.as_fd(), &mut answer, RecvFlags::DONTWAIT)?;
    if answer.get(..length) == Some(READY) {
        return Ok(());
    }
    Err(io::Error::other("the program is no guardian"))
}

impl Custody {
    /// Keeps a guardian alive until `stop`, then ends it.
    pub(super) async fn keep_guardian(self, first: Option<Child>, stop: CancellationToken) {
        let mut wait = FIRST_WAIT;
        let mut current = first;
        loop {
            let began = Instant::now();
            if let Some(mut child) = current.take() {
                tokio::select! {
                    () = stop.cancelled() => return self.end_guardian(child).await,
                    status = child.wait() => {
                        self.guardian_lost();
                        let status = status.map_or_else(|error| error.to_string(), |s| s.to_string());
                        tracing::warn!(status, "the guardian has ended; another is started");
                    }
                }
                if began.elapsed() >= LIVED {
                    wait = FIRST_WAIT;
                }
            }
            if began.elapsed() < LIVED {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
                }
            }
            current = self.start_guardian().await;
        }
    }

    async fn end_guardian(&self, mut child: Child) {
        self.tell(&Notice::End);
        if tokio::time::timeout(END_WITHIN, child.wait())
            .await
            .is_err()
        {
            tracing::warn!("the guardian did not end; it is killed");
            if let Err(error) = child.kill().await {
                tracing::warn!(%error, "the guardian could not be killed");
            }
        }
        self.guardian_lost();
    }
}
