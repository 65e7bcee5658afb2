//! Keeps a plugin connected: opens channels, decides what follows when one ends, and ends the process
//! in good order.
//!
//! | what happened | child | remote | embedded |
//! |---|---|---|---|
//! | channel lost, core absent | try again with full jitter up to 5 s; after 10 s exit 75, unless the process that started it still lives | up to 30 s, for ever | up to 5 s; after 10 s an error |
//! | not wanted, back-off, another copy is connected | wait as long as the core says | the same | the same |
//! | credential, version or `Hello` refused | exit 77 or 76 | log it, try every 30 s | an error |
//! | configuration does not fit | exit 78 | log it, go on | the same |
//! | unloaded by the core | exit 0 | wait to be wanted again | done |
//! | SIGTERM, SIGINT; child: end of stdin | `on_stop`, `on_unload`, exit 0 | the same | – |
//!
//! A channel that is opened again with the same `instance` usually resumes its run: nothing is declared
//! again. If the core answers with a new run, the old one is ended first (`on_stop`, `on_unload`, as far
//! as they are due) and the core runs the hooks of the new one.

mod enrollment;
mod process;
mod settings;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::settings::Kind;
use crate::backoff::{self, Backoff};
use crate::channel::{self, Channel, End};
use crate::client::Connection;
use crate::context::{Permissions, Scope};
use crate::error::{Code, Error, Result};
use crate::lifecycle;
use crate::logging;
use crate::plugin::{IntoPlugin, Plugin};
use crate::run::{Beginning, Position, Run};

pub use process::main;
pub use settings::{Settings, SettingsError};

/// A child without a channel for so long is an orphan and ends itself, unless the core that started it
/// is still there: one that is stopped or overloaded must not lose its children.
const ORPHANED: Duration = Duration::from_secs(10);
/// Longest wait between tries next to the core, and from far away.
const LONGEST_WAIT_NEAR: Duration = Duration::from_secs(5);
const LONGEST_WAIT_FAR: Duration = Duration::from_secs(30);
/// Wait of a remote plugin after a refusal that only people can cure.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Wait before a remote plugin that was unloaded asks again; the core then says for how long.
const UNLOADED_WAIT: Duration = Duration::from_secs(1);
/// Wait when the core asks for patience and names no time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for the hooks of a run that the core has given up.
const OWN_END: Duration = Duration::from_secs(5);

/// How a plugin's life in this process ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ending {
    /// In good order: it was told to end, or unloaded.
    Clean,
    /// No channel for 10 s: the core is gone.
    NoChannel(Error),
    /// The core will not have this plugin: credential, version, `Hello`.
    Refused(Error),
    /// The configuration does not fit.
    BadConfig(Error),
}

/// Runs a plugin until it ends: because `stop` is cancelled, or as the table of this module says.
/// Installs no logging and listens to no signals; [`main`] does.
pub async fn run(plugin: impl IntoPlugin, settings: Settings, stop: CancellationToken) -> Ending {
    Host::new(plugin.into_plugin(), settings).run(&stop).await
}

struct Host {
    plugin: Plugin,
    settings: Settings,
    /// Made once: tells a reconnect of this process from a second copy.
    instance: [u8; 16],
    /// As far as is known before `Welcome`.
    name: String,
    /// Where each declared subscription has come to, over all runs.
    positions: Vec<Position>,
    publish_failures: Arc<AtomicU64>,
    /// Who started this process.
    parent: u32,
    run: Option<Arc<Run>>,
}

/// A task that is ended when this is dropped.
struct EndsWithIt(tokio::task::AbortHandle);

impl Drop for EndsWithIt {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What to do after a channel ended or was not opened.
enum Next {
    /// Try again after this.
    Wait(Duration),
    End(Ending),
}

impl Host {
    fn new(plugin: Plugin, settings: Settings) -> Self {
        let name = settings.name.clone();
        let subscriptions = plugin.definition.subscriptions.len();
        Self {
            name: name.unwrap_or_else(|| plugin.name().to_owned()),
            positions: (0..subscriptions).map(|_| Position::default()).collect(),
            plugin,
            settings,
            instance: rand::random(),
            publish_failures: Arc::default(),
            parent: std::os::unix::process::parent_id(),
            run: None,
        }
    }

    async fn run(mut self, stop: &CancellationToken) -> Ending {
        let longest = match self.settings.kind {
            Kind::Remote => LONGEST_WAIT_FAR,
            Kind::Child | Kind::Embedded => LONGEST_WAIT_NEAR,
        };
        let mut backoff = Backoff::new(longest);
        let mut alone_since = Instant::now();
        let renewing = self.settings.enrollment.clone().map(|enrollment| {
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.run_until_cancelled_owned(enrollment.keep_renewed())
                    .await
            })
        });
        let _renewing = renewing.map(|task| EndsWithIt(task.abort_handle()));
        loop {
            let opened = stop
                .run_until_cancelled(self.open_in_time(alone_since))
                .await;
            let next = match opened {
                None => {
                    self.end_run().await;
                    return Ending::Clean;
                }
                Some(Ok(channel)) => {
                    backoff.reset();
                    let end = self.serve(channel, stop).await;
                    alone_since = Instant::now();
                    self.after(end, &mut backoff)
                }
                Some(Err(error)) => {
                    self.end_stale_run(&error).await;
                    self.after_refusal(error, &mut backoff, alone_since)
                }
            };
            let wait = match next {
                Next::End(ending) => {
                    self.end_run().await;
                    return ending;
                }
                Next::Wait(wait) => wait,
            };
            // A child's last try comes when its time is over, not a whole wait later.
            let wait = match self.settings.kind {
                Kind::Remote => wait,
                Kind::Child | Kind::Embedded => wait.min(
                    self.last_try(alone_since)
                        .saturating_duration_since(Instant::now()),
                ),
            };
            if stop
                .run_until_cancelled(self.settings.wait(wait))
                .await
                .is_none()
            {
                self.end_run().await;
                return Ending::Clean;
            }
        }
    }

    /// When a child or embedded plugin tries for the last time, as far as can be said now.
    fn last_try(&self, alone_since: Instant) -> Instant {
        let last = alone_since + ORPHANED;
        if self.may_end(Duration::MAX) {
            return last;
        }
        last.max(Instant::now() + LONGEST_WAIT_NEAR)
    }

    /// Whether so long without a channel is the end.
    fn may_end(&self, alone_for: Duration) -> bool {
        let parent_lives = std::os::unix::process::parent_id() == self.parent;
        is_orphan(self.settings.kind, alone_for, parent_lives)
    }

    /// A child's or embedded plugin's try ends with its time.
    async fn open_in_time(&self, alone_since: Instant) -> Result<Channel> {
        if self.settings.kind == Kind::Remote {
            return self.open().await;
        }
        let opened = tokio::time::timeout_at(self.last_try(alone_since), self.open()).await;
        opened.unwrap_or_else(|_| Err(Error::channel_lost(crate::Outcome::NotApplied)))
    }

    async fn open(&self) -> Result<Channel> {
        if let Some(enrollment) = &self.settings.enrollment {
            // Large, and for once in the life of a plugin.
            Box::pin(enrollment.join_once()).await?;
        }
        let token = self.settings.token().await.map_err(Error::from)?;
        let connection = Connection::dial(&self.settings.dialer, token.as_ref())
            .await
            .map_err(|error| {
                let error = Error::from(error);
                Error::unavailable(error.message()).with_reason("CHANNEL_LOST")
            })?;
        let hello = channel::hello(&self.name, &self.instance, &self.plugin);
        channel::open(connection, hello).await
    }

    async fn serve(&mut self, channel: Channel, stop: &CancellationToken) -> End {
        let welcome = &channel.welcome;
        let resumed = self
            .run
            .take_if(|run| !(welcome.resumed && run.id == welcome.run));
        // What is left in `self.run` goes on; what was taken is over.
        if let Some(old) = resumed {
            tracing::info!(run = %old.id, "the run was over; a new one begins");
            end(&old).await;
        }
        let run = match &self.run {
            Some(run) => {
                tracing::info!(run = %run.id, "the channel is back");
                // What was changed meanwhile was not told.
                let (granted, denied) = (welcome.granted.clone(), welcome.denied.clone());
                run.set_permissions(Permissions::new(granted, denied));
                Arc::clone(run)
            }
            None => match self.begin_run(&channel).await {
                Ok(run) => run,
                Err(error) => return End::Lost(error),
            },
        };
        let rename = (self.name != run.name).then(|| run.name.clone());
        let renamed = async {
            if rename.is_some()
                && let Err(error) = lifecycle::register_declared(&run, &Scope::none()).await
            {
                tracing::error!(%error, "a service was not registered");
            }
            std::future::pending::<()>().await;
        };
        let end = tokio::select! {
            end = channel.serve(&run, stop) => end,
            () = renamed => unreachable!("it never completes"),
        };
        if let Some(name) = rename {
            self.name = name;
        }
        if !matches!(end, End::Lost(_) | End::BadConfig(_)) {
            self.run = None;
        }
        end
    }

    async fn begin_run(&mut self, channel: &Channel) -> Result<Arc<Run>> {
        let welcome = channel.welcome.clone();
        tracing::info!(
            plugin = %welcome.plugin,
            run = %welcome.run,
            generation = welcome.generation,
            core = %welcome.core_version,
            "connected"
        );
        for refused in &welcome.refused {
            let why = refused.error.as_ref().map(|error| error.message.as_str());
            let service = &refused.name;
            if welcome.plugin == self.name {
                tracing::error!(service, why, "the core refused a service");
            }
        }
        let token = self.settings.token().await.map_err(Error::from)?;
        let streams =
            Connection::dial_lazily(&self.settings.dialer, token.as_ref()).map_err(Error::from)?;
        let run = Run::new(Beginning {
            plugin: self.plugin.clone(),
            welcome,
            streams,
            positions: self.positions.clone(),
            publish_failures: Arc::clone(&self.publish_failures),
            is_child: self.settings.kind == Kind::Child,
        });
        if self.settings.kind == Kind::Remote
            && let Some(backlog) = logging::backlog()
        {
            let send = backlog.send(run.streams.clone().with_run(&run.id));
            let ended = run.ended.clone();
            tokio::spawn(async move { ended.run_until_cancelled_owned(send).await });
        }
        self.run = Some(Arc::clone(&run));
        Ok(run)
    }

    fn after(&self, end: End, backoff: &mut Backoff) -> Next {
        match (end, self.settings.kind) {
            (End::Stopped, _) => Next::End(Ending::Clean),
            (End::Unloaded, Kind::Child | Kind::Embedded) => Next::End(Ending::Clean),
            (End::Unloaded, Kind::Remote) => {
                // What passes while nobody wants the plugin is not its business: a new life
                // begins with the next event.
                for position in &self.positions {
                    *position.lock() = None;
                }
                tracing::info!("unloaded; waiting to be wanted again");
                Next::Wait(backoff::at_least(UNLOADED_WAIT))
            }
            (End::BadConfig(error), Kind::Child) => Next::End(Ending::BadConfig(error)),
            (End::BadConfig(error) | End::Lost(error), _) => {
                let wait = error
                    .retry_after()
                    .map_or_else(|| backoff.next(), backoff::at_least);
                tracing::warn!(%error, ?wait, "the channel is lost");
                Next::Wait(wait)
            }
        }
    }

    fn after_refusal(&self, error: Error, backoff: &mut Backoff, alone_since: Instant) -> Next {
        if let Some(enrollment) = &self.settings.enrollment
            && error.is("BAD_CREDENTIAL")
        {
            enrollment.was_refused();
        }
        let mends_itself = !is_permanent(&error);
        let alone = self.settings.kind != Kind::Remote;
        if alone && !mends_itself {
            return Next::End(Ending::Refused(error));
        }
        if self.may_end(alone_since.elapsed()) {
            return Next::End(Ending::NoChannel(error));
        }
        let asks_for_patience = ["NOT_WANTED", "BACKOFF", "ALREADY_CONNECTED"]
            .iter()
            .any(|reason| error.is(reason));
        let wait = match error.retry_after() {
            Some(asked) => backoff::at_least(asked),
            None if !mends_itself => backoff::at_least(REFUSED_WAIT),
            None if asks_for_patience => backoff::at_least(PATIENCE),
            None => backoff.next(),
        };
        match mends_itself {
            true => tracing::info!(%error, ?wait, "no channel to the core"),
            false => tracing::error!(%error, ?wait, "the core refuses this plugin"),
        }
        Next::Wait(wait)
    }

    /// The core answered and does not know our run any more: its end is certain.
    async fn end_stale_run(&mut self, error: &Error) {
        let over = ["NOT_WANTED", "BACKOFF"]
            .iter()
            .any(|reason| error.is(reason));
        if (over || is_permanent(error))
            && let Some(run) = self.run.take()
        {
            end(&run).await;
        }
    }

    async fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            end(&run).await;
        }
    }
}

/// Takes a run down by ourselves, as far as it is up.
async fn end(run: &Arc<Run>) {
    // First: what its hooks ask of the core would only wait for a channel that never comes.
    run.ended.cancel();
    let unload = lifecycle::unload(run, Scope::none());
    match timeout(OWN_END, unload).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the run did not end cleanly"),
        Err(_) => tracing::warn!("the hooks did not end within {OWN_END:?}"),
    }
    run.end();
}

fn is_orphan(kind: Kind, alone_for: Duration, parent_lives: bool) -> bool {
    alone_for >= ORPHANED
        && match kind {
            Kind::Child => !parent_lives,
            Kind::Embedded => true,
            Kind::Remote => false,
        }
}

/// Trying again will not help until somebody changes something.
fn is_permanent(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented
    ) || ["WIRE_VERSION", "BAD_HELLO"]
        .iter()
        .any(|reason| error.is(reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_an_orphan_once_its_parent_is_gone_for_good() {
        let long = ORPHANED;
        let short = ORPHANED - Duration::from_millis(1);
        for (kind, alone_for, parent_lives, orphan) in [
            (Kind::Child, long, false, true),
            (Kind::Child, long, true, false),
            (Kind::Child, short, false, false),
            (Kind::Child, Duration::from_secs(3_600), true, false),
            (Kind::Embedded, long, true, true),
            (Kind::Embedded, short, true, false),
            (Kind::Remote, Duration::MAX, false, false),
        ] {
            let said = is_orphan(kind, alone_for, parent_lives);
            assert_eq!(said, orphan, "{kind:?} {alone_for:?} {parent_lives}");
        }
    }

    #[test]
    fn only_people_can_cure_a_wrong_credential_or_version() {
        let permanent = |error: Error| is_permanent(&error);
        assert!(permanent(
            Error::new(Code::Unauthenticated, "").with_reason("BAD_CREDENTIAL")
        ));
        assert!(permanent(
            Error::failed_precondition("").with_reason("WIRE_VERSION")
        ));
        assert!(permanent(
            Error::invalid_argument("").with_reason("BAD_HELLO")
        ));
        assert!(!permanent(Error::unavailable("").with_reason("NOT_WANTED")));
        assert!(!permanent(
            Error::already_exists("").with_reason("ALREADY_CONNECTED")
        ));
        assert!(!permanent(Error::channel_lost(crate::Outcome::Unknown)));
    }
}
