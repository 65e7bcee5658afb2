//! The plugin channel: one stream to the core from `Hello` to its end.
//!
//! [`open`] connects, says `Hello` and waits for `Welcome`; [`Channel::serve`] then reads frames and
//! hands them over: calls and hooks to tasks of their own, answers to whoever waits for them. The
//! reader never waits for a handler, a lock held over I/O, or a full queue; a `Ping` is answered right
//! in it, ahead of queued frames, so that a pong proves that dispatch is alive. Frames of unknown kinds
//! are ignored. One hook runs at a time; a newer one takes its place.
//!
//! When the channel breaks, its calls are dropped and its requests fail (`CHANNEL_LOST`); the run, its
//! tasks and its subscriptions go on, for the core keeps a run for 10 s. What follows is decided in
//! `host`.

mod calls;
pub(crate) mod outbox;
pub(crate) mod requests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use core_proto::contract;
use core_proto::v1::core_message::Message as FromCore;
use core_proto::v1::plugin_message::Message as ToCore;
use core_proto::v1::run_hook::Hook;
use core_proto::v1::{self, CoreMessage, Hello, HookDone, Pong};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use self::calls::Calls;
use self::outbox::Outbox;
use self::requests::Requests;
use crate::client::Connection;
use crate::context::{Permissions, Scope};
use crate::error::{Error, RESTART_NEEDED, Result};
use crate::lifecycle;
use crate::logging;
use crate::run::{Run, Session};

/// The core answers `Hello` at once; a silent one is given up after this.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the hooks of a plugin that ends by itself, when the core sets none.
const OWN_END: Duration = Duration::from_secs(5);
/// Calls under way get this long when the plugin ends by itself.
const DRAIN: Duration = Duration::from_secs(2);
/// After our side of the stream is closed the core closes its own; this is how long we wait for it,
/// so that the last frames leave.
const FLUSH: Duration = Duration::from_secs(1);

/// After so many frames in hand, what was made of them leaves before the next: calls must not bunch up and
/// travel in one herd, with only one process at work at a time.
const FRAMES_IN_A_ROW: u32 = 32;

/// An open channel, greeted and not yet served.
pub(crate) struct Channel {
    pub(crate) welcome: v1::Welcome,
    inbound: Streaming<CoreMessage>,
    outbox: Arc<Outbox>,
    connection: Connection,
}

/// Why a served channel ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It broke, or the core closed it.
    Lost(Error),
    /// The core unloaded the plugin.
    Unloaded,
    /// LOAD failed because of the configuration.
    BadConfig(Error),
    /// We were asked to end, and have.
    Stopped,
}

/// Opens a channel and greets.
///
/// # Errors
/// Those of `PluginChannel.Open`; `CHANNEL_LOST` if the connection breaks.
pub(crate) async fn open(connection: Connection, hello: Hello) -> Result<Channel> {
    let outbox = Outbox::new();
    outbox.push_now(ToCore::Hello(hello));
    let opening = async {
        let mut client = connection.plugin_channel();
        let response = client.open(outbox.frames()).await;
        let mut inbound = response
            .map_err(|status| Error::from_grpc(&status))?
            .into_inner();
        loop {
            match next(&mut inbound).await?.message {
                Some(FromCore::Welcome(welcome)) => break Ok((inbound, welcome)),
                // A frame of an unknown kind, or one that overtook: ignored (law 2).
                _ => continue,
            }
        }
    };
    let greeted: Result<_> = timeout(WELCOME_TIMEOUT, opening).await.unwrap_or_else(|_| {
        Err(Error::deadline_exceeded(format!(
            "the core did not answer Hello within {WELCOME_TIMEOUT:?}"
        )))
    });
    let (inbound, welcome) = greeted?;
    Ok(Channel {
        welcome,
        inbound,
        outbox,
        connection,
    })
}

/// What the plugin says of itself.
pub(crate) fn hello(run_name: &str, instance: &[u8; 16], plugin: &crate::Plugin) -> Hello {
    let definition = &plugin.definition;
    let services = &definition.services;
    let live = !definition.hooks.on_config.is_empty();
    let features = std::iter::once(contract::FEATURE_HEARTBEAT)
        .chain(live.then_some(contract::FEATURE_LIVE_CONFIG));
    Hello {
        wire_version_min: contract::WIRE_VERSION_MIN,
        wire_version_max: contract::WIRE_VERSION_MAX,
        instance: instance.to_vec().into(),
        plugin_version: definition.version.clone(),
        description: definition.description.clone(),
        sdk_name: "plugin-sdk-rust".to_owned(),
        sdk_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: features.map(str::to_owned).collect(),
        ready: false,
        services: services
            .iter()
            .map(|service| service.describe(run_name))
            .collect(),
        max_calls_in_flight: definition.max_calls_in_flight,
        requires: definition.requires.clone(),
        permissions: definition
            .permissions
            .iter()
            .map(|text| permission(text))
            .collect(),
    }
}

/// "publish=home.>", or with "?" at the end. The core judges the parts.
fn permission(text: &str) -> v1::Permission {
    let (text, optional) = match text.strip_suffix('?') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (action, resource) = text.split_once('=').unwrap_or((text, ""));
    v1::Permission {
        action: action.to_owned(),
        resource: resource.to_owned(),
        optional,
    }
}

async fn next(inbound: &mut Streaming<CoreMessage>) -> Result<CoreMessage> {
    match inbound.message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Error::unavailable("the core closed the channel")),
        Err(status) => Err(Error::from_grpc(&status)),
    }
}

/// Which step of the lifecycle is being taken, and for whom.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The core asked.
    Asked { hook: Hook, hook_id: u64 },
    /// The plugin ends by itself: everything down, in order.
    OwnEnd,
}

/// A step in progress. Dropping it cancels it.
type Working = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl Channel {
    /// Serves a run until the channel ends. `stop` asks the plugin to end by itself.
    pub(crate) async fn serve(self, run: &Arc<Run>, stop: &CancellationToken) -> End {
        let session = Arc::new(Session {
            outbox: Arc::clone(&self.outbox),
            requests: Requests::new(Arc::clone(&run.publish_failures)),
            unary: self.connection,
        });
        // The operator's wish, if one stands, is the next frame.
        logging::set_level("");
        run.attach(Arc::clone(&session));
        let end = Dispatch {
            calls: Calls::new(Arc::clone(run), Arc::clone(&self.outbox)),
            run: Arc::clone(run),
            session: Arc::clone(&session),
            step: None,
            config: ConfigChange::None,
        }
        .run(self.inbound, stop)
        .await;
        run.detach(&session);
        end
    }
}

struct Dispatch {
    run: Arc<Run>,
    session: Arc<Session>,
    calls: Calls,
    step: Option<(Step, Working)>,
    config: ConfigChange,
}

/// A changed configuration on its way to the plugin. A newer one takes its place.
enum ConfigChange {
    None,
    /// A hook is running: it comes after it, so that nothing is changed under `on_load`.
    Waiting(v1::ConfigChanged),
    /// Its revision, and the plugin's work with it.
    Working(u64, Working),
}

impl Dispatch {
    async fn run(mut self, mut inbound: Streaming<CoreMessage>, stop: &CancellationToken) -> End {
        let mut stopping = false;
        let mut in_a_row = 0;
        let end = loop {
            tokio::select! {
                message = next(&mut inbound) => match message {
                    Ok(message) => {
                        self.take(message);
                        in_a_row += 1;
                        if in_a_row == FRAMES_IN_A_ROW {
                            in_a_row = 0;
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(error) => return End::Lost(error),
                },
                (step, result) = finished(&mut self.step) => {
                    self.step = None;
                    if let Some(end) = self.conclude(step, result) {
                        break end;
                    }
                    if let ConfigChange::Waiting(change) = &mut self.config {
                        let change = std::mem::take(change);
                        self.reconfigure(change);
                    }
                }
                (revision, result) = reconfigured(&mut self.config) => {
                    self.config = ConfigChange::None;
                    self.tell_config(revision, result);
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.begin(Step::OwnEnd, OWN_END);
                }
            }
        };
        self.session.outbox.close();
        let rest = async { while next(&mut inbound).await.is_ok() {} };
        if timeout(FLUSH, rest).await.is_err() {
            tracing::debug!("the core did not close its side of the channel");
        }
        end
    }

    fn take(&mut self, message: CoreMessage) {
        match message.message {
            Some(FromCore::Ping(ping)) => {
                let pong = Pong { nonce: ping.nonce };
                self.session.outbox.push_urgent(ToCore::Pong(pong));
            }
            Some(FromCore::CallRequest(request)) => self.calls.begin(request),
            Some(FromCore::CallCancel(cancel)) => self.calls.cancel(cancel.call_id),
            Some(FromCore::Response(response)) => self.session.requests.answer(response),
            Some(FromCore::RunHook(request)) => self.take_hook(&request),
            Some(FromCore::GoingAway(notice)) => {
                tracing::info!(reason = %notice.reason, "the core is going away");
                self.run.going_away.send_replace(Some(notice.reason));
            }
            Some(FromCore::DependencyChanged(change)) => {
                let available = change.available;
                // After a resumed channel the core says it all again.
                self.run.dependencies.send_if_modified(|known| {
                    if known.get(&change.name) == Some(&available) {
                        return false;
                    }
                    tracing::info!(dependency = %change.name, available, "a dependency changed");
                    known.insert(change.name, available);
                    true
                });
            }
            Some(FromCore::ConfigChanged(change)) => self.reconfigure(change),
            Some(FromCore::PermissionsChanged(change)) => {
                let permissions = Permissions::new(change.granted, change.denied);
                self.run.set_permissions(permissions);
            }
            Some(FromCore::LogLevel(wish)) => logging::set_level(&wish.level),
            // A second Welcome means nothing; a kind that is unknown is ignored (law 2).
            Some(FromCore::Welcome(_)) | None => {}
        }
    }

    fn take_hook(&mut self, request: &v1::RunHook) {
        if matches!(self.step, Some((Step::OwnEnd, _))) {
            // The plugin is on its way out already; the core sees `Bye` and the end of the stream.
            return;
        }
        let time = request
            .timeout
            .and_then(|time| Duration::try_from(time).ok())
            .unwrap_or(OWN_END);
        let hook = request.hook();
        let hook_id = request.hook_id;
        self.begin(Step::Asked { hook, hook_id }, time);
    }

    fn reconfigure(&mut self, change: v1::ConfigChanged) {
        if self.step.is_some() {
            self.config = ConfigChange::Waiting(change);
            return;
        }
        let run = Arc::clone(&self.run);
        let work = in_task(async move { lifecycle::reconfigure(&run, change.config).await });
        self.config = ConfigChange::Working(change.revision, work);
    }

    /// Tells the core what became of a changed configuration.
    fn tell_config(&self, revision: u64, result: Result<()>) {
        use v1::config_result::Outcome;
        let (outcome, text) = match &result {
            Ok(()) => (Outcome::Applied, String::new()),
            Err(error) if error.is(RESTART_NEEDED) => {
                (Outcome::RestartNeeded, error.message().to_owned())
            }
            Err(error) => (Outcome::Rejected, error.message().to_owned()),
        };
        match &result {
            Ok(()) => tracing::info!(revision, "the configuration changed"),
            Err(error) => tracing::warn!(revision, %error, "a changed configuration was not taken"),
        }
        let told = v1::ConfigResult {
            revision,
            outcome: outcome.into(),
            text,
        };
        self.session.outbox.push_now(ToCore::ConfigResult(told));
    }

    /// Takes a step; one that is under way is dropped.
    fn begin(&mut self, step: Step, time: Duration) {
        let run = Arc::clone(&self.run);
        let scope = match step {
            Step::Asked { hook_id, .. } => Scope::hook(hook_id, time),
            Step::OwnEnd => Scope::none(),
        };
        let drained = self.calls.drained();
        let work = in_task(async move {
            match step {
                Step::Asked { hook, .. } => match hook {
                    Hook::Load => lifecycle::load(&run, scope).await,
                    Hook::Start => lifecycle::start(&run, scope).await,
                    Hook::Stop => lifecycle::stop(&run, scope).await,
                    Hook::Unload => lifecycle::unload(&run, scope).await,
                    Hook::Unspecified => Err(Error::unimplemented("an unknown hook")),
                },
                Step::OwnEnd => {
                    let end = async {
                        drop(timeout(DRAIN, drained).await);
                        lifecycle::unload(&run, scope).await
                    };
                    let late = |_| Err(Error::deadline_exceeded("the hooks did not end in time"));
                    timeout(DRAIN + time, end).await.unwrap_or_else(late)
                }
            }
        });
        self.step = Some((step, work));
    }

    /// Tells the core how a step ended; some ends are the end of the channel too.
    fn conclude(&mut self, step: Step, result: Result<()>) -> Option<End> {
        let outbox = &self.session.outbox;
        let (hook, hook_id) = match step {
            Step::Asked { hook, hook_id } => (hook, hook_id),
            Step::OwnEnd => {
                self.run.end();
                let reason = "the plugin ends".to_owned();
                outbox.push_now(ToCore::Bye(v1::Bye { reason }));
                return Some(End::Stopped);
            }
        };
        let error = result.as_ref().err();
        if let Some(error) = error {
            tracing::error!(hook = hook.as_str_name(), %error, "a hook failed");
        }
        if error.is_some_and(|error| error.reason() == "BAD_CONFIG") && self.run.is_child {
            // Said by the exit code: the core then waits for another configuration instead of trying
            // again.
            return result.err().map(End::BadConfig);
        }
        let error = error.map(|error| error.to_status(&self.run.name));
        outbox.push_now(ToCore::HookDone(HookDone { hook_id, error }));
        match (hook, result) {
            (Hook::Start, Ok(())) => {
                lifecycle::begin(&self.run);
                None
            }
            (Hook::Unload, _) => {
                self.run.end();
                Some(End::Unloaded)
            }
            (_, Err(error)) if error.reason() == "BAD_CONFIG" => Some(End::BadConfig(error)),
            _ => None,
        }
    }
}

/// In a task of its own: an author's hook that blocks must not hold up the reader. Dropping it aborts it.
fn in_task(work: impl Future<Output = Result<()>> + Send + 'static) -> Working {
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(work));
    Box::pin(async move {
        let joined = task.await;
        joined.unwrap_or_else(|_| Err(Error::internal("the hook's task failed")))
    })
}

async fn reconfigured(change: &mut ConfigChange) -> (u64, Result<()>) {
    match change {
        ConfigChange::Working(revision, working) => (*revision, working.await),
        ConfigChange::None | ConfigChange::Waiting(_) => std::future::pending().await,
    }
}

async fn finished(step: &mut Option<(Step, Working)>) -> (Step, Result<()>) {
    match step {
        Some((step, working)) => (*step, working.await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_asks_for_is_in_its_hello() {
        let plugin = crate::Plugin::builder("lamp")
            .permissions(["publish=home.>", "call=notify.send?"])
            .permissions(["nonsense"])
            .build();
        let hello = hello("lamp", &[0; 16], &plugin);
        let asked = hello.permissions.iter();
        let asked: Vec<_> = asked
            .map(|one| (one.action.as_str(), one.resource.as_str(), one.optional))
            .collect();
        let expected = [
            ("publish", "home.>", false),
            ("call", "notify.send", true),
            // The core says what is wrong with it.
            ("nonsense", "", false),
        ];
        assert_eq!(asked, expected);
    }
}
