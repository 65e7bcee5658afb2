//! A core in memory, for the tests of a plugin.
//!
//! [`TestRuntime`] plays the core over an in-memory connection with the real protocol: the plugin under
//! test says `Hello`, is loaded and started, and is called as in production. The test plays everybody
//! else: it calls, emits events, stubs the services of other plugins, looks at what was published and
//! stored, and makes things fail. Several may run side by side in one test.
//!
//! ```
//! use plugin_sdk::prelude::*;
//! use plugin_sdk::testing::TestRuntime;
//!
//! struct Greeter;
//!
//! #[plugin(name = "greeter")]
//! impl Greeter {
//!     #[service]
//!     async fn hello(&self, ctx: &Ctx, name: String) -> Result<String> {
//!         ctx.publish("greeter.greeted", &name).await?;
//!         Ok(format!("Hello, {name}!"))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result {
//! let core = TestRuntime::start(Greeter).await?;
//! let answer: String = core.call("greeter.hello", &json!({ "name": "Ann" })).await?;
//! assert_eq!(answer, "Hello, Ann!");
//! assert_eq!(core.published("greeter.>").len(), 1);
//! core.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Nothing but memory and tokio's clock is used, so that a test with
//! `#[tokio::test(start_paused = true)]` has virtual time: an hour of [`Ctx::every`] passes at once.
//!
//! What differs from a real core: permissions are not checked (a real one denies what the manifest does
//! not ask for), quotas are not enforced, the log of events never overflows by itself, and services are
//! not listed or watched. Waits of a test are bounded at 30 s.
//!
//! [`Ctx::every`]: crate::Ctx::every

mod bus;
mod core;
mod description;
mod server;
mod store;
mod tables;
mod wire;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use core_proto::v1;
use core_proto::v1::run_hook::Hook;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::bus::matches;
use self::core::{Core, TESTER, bounded};
use self::wire::Severable;
use crate::arguments;
use crate::client::{Dialer, Token};
use crate::error::{Error, Result};
use crate::events::Event;
use crate::host::{self, Ending, Settings};
use crate::plugin::IntoPlugin;

pub use description::ServiceDescription;

pub use self::core::Stage;

/// The fake's only credential.
const TOKEN: &str = "test-token";
/// Bytes that an in-memory connection holds in each direction.
const PIPE_BYTES: usize = 256 << 10;
/// How soon a plugin that is not wanted asks again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A fake core with one plugin under test. See the [module](self).
#[derive(Debug)]
pub struct TestRuntime {
    core: Handle,
    stop: CancellationToken,
    plugin: Option<JoinHandle<Ending>>,
    server: JoinHandle<()>,
}

/// Only to keep `Debug` short.
struct Handle(Arc<Core>);

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Core")
            .field(&self.0.plugin())
            .finish()
    }
}

impl std::ops::Deref for Handle {
    type Target = Arc<Core>;

    fn deref(&self) -> &Arc<Core> {
        &self.0
    }
}

impl TestRuntime {
    /// Starts a plugin and waits until it is STARTED.
    ///
    /// # Errors
    /// That of `on_load` or `on_start`.
    pub async fn start(plugin: impl IntoPlugin) -> Result<Self> {
        Self::start_with_config(plugin, &Value::Object(serde_json::Map::new())).await
    }

    /// As [`Self::start`], with a configuration.
    ///
    /// # Errors
    /// That of `on_load` or `on_start`.
    pub async fn start_with_config(
        plugin: impl IntoPlugin,
        config: &impl Serialize,
    ) -> Result<Self> {
        let runtime = Self::connect(plugin, config)?;
        runtime.started().await?;
        Ok(runtime)
    }

    /// Begins to start a plugin, and waits for nothing.
    ///
    /// # Errors
    /// A configuration that cannot be written as JSON.
    pub fn connect(plugin: impl IntoPlugin, config: &impl Serialize) -> Result<Self> {
        let plugin = plugin.into_plugin();
        let name = plugin.name().to_owned();
        Self::connect_as(&name, plugin, config)
    }

    /// As [`Self::connect`], with a core that knows the plugin by this name.
    ///
    /// # Errors
    /// A configuration that cannot be written as JSON.
    pub fn connect_as(
        name: &str,
        plugin: impl IntoPlugin,
        config: &impl Serialize,
    ) -> Result<Self> {
        let plugin = plugin.into_plugin();
        let config = arguments::encode_json(config)?;
        let core = Core::new(name, config);
        let (connect, connections) = mpsc::channel(16);
        let server = tokio::spawn(server::serve(Arc::clone(&core), TOKEN, connections));
        let dialled = Arc::clone(&core);
        let dialer = Dialer::memory(move || {
            if dialled.desk.lock().offline {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = tokio::io::duplex(PIPE_BYTES);
            let cut = dialled.wire.lock().clone();
            match connect.try_send(Severable::new(far, cut)) {
                Ok(()) => Ok(near),
                Err(_) => Err(std::io::ErrorKind::ConnectionRefused.into()),
            }
        });
        let stop = CancellationToken::new();
        let settings = Settings::over(dialer, Token::new(TOKEN));
        let running = host::run(plugin, settings, stop.clone());
        Ok(Self {
            core: Handle(core),
            stop,
            plugin: Some(tokio::spawn(running)),
            server,
        })
    }

    /// Asks the plugin to end, as SIGTERM does, and waits for that.
    ///
    /// # Errors
    /// Why it did not end cleanly.
    pub async fn shutdown(mut self) -> Result<()> {
        self.stop.cancel();
        let Some(plugin) = self.plugin.take() else {
            return Ok(());
        };
        match bounded("the plugin's end", plugin).await? {
            Ok(Ending::Clean) => Ok(()),
            Ok(Ending::NoChannel(error) | Ending::Refused(error) | Ending::BadConfig(error)) => {
                Err(error)
            }
            Err(error) => Err(Error::internal(format!(
                "the plugin's task failed: {error}"
            ))),
        }
    }

    // ---- lifecycle

    /// The plugin's state, as the core sees it.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.core.stage()
    }

    /// Waits until the plugin is STARTED.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` after 30 s.
    pub async fn started(&self) -> Result<()> {
        self.reached(Stage::Started).await
    }

    /// Waits until the plugin is in this state.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` after 30 s; what a hook failed with.
    pub async fn reached(&self, stage: Stage) -> Result<()> {
        let mut stages = self.core.stage.subscribe();
        let mut failures = self.core.failure.subscribe();
        let wait = async {
            tokio::select! {
                biased;
                reached = stages.wait_for(|now| *now == stage) => match reached {
                    Ok(_) => Ok(()),
                    Err(_) => Err(Error::run_ended()),
                },
                failed = failures.wait_for(Option::is_some) => match failed.as_deref() {
                    Ok(Some(error)) => Err(error.clone()),
                    _ => Err(Error::run_ended()),
                },
            }
        };
        bounded("the lifecycle", wait).await?
    }

    /// Runs START, from LOADED or STOPPED.
    ///
    /// # Errors
    /// That of `on_start`.
    pub async fn start_again(&self) -> Result<()> {
        self.core.desk.lock().refusal = None;
        if self.core.stage() == Stage::Unloaded {
            return self.started().await;
        }
        self.core.hook(Hook::Start).await?;
        self.core.stage.send_replace(Stage::Started);
        Ok(())
    }

    /// Runs STOP: the plugin's calls are refused, its events pass by.
    ///
    /// # Errors
    /// That of `on_stop`.
    pub async fn stop(&self) -> Result<()> {
        // Events end with the state, calls before the hook; the fake does both at once.
        self.core.stage.send_replace(Stage::Stopped);
        self.core.hook(Hook::Stop).await
    }

    /// Runs UNLOAD. The plugin is then refused until [`Self::start_again`].
    ///
    /// # Errors
    /// That of `on_stop` or `on_unload`.
    pub async fn unload(&self) -> Result<()> {
        let refusal = Error::unavailable("the plugin is not wanted")
            .with_reason("NOT_WANTED")
            .with_retry_after(ASK_AGAIN);
        self.core.desk.lock().refusal = Some(refusal);
        let done = self.core.hook(Hook::Unload).await;
        self.core.end_run();
        done
    }

    /// Sends the same hook again, as a core does after a channel was lost.
    ///
    /// # Errors
    /// That of the hook.
    pub async fn repeat_load(&self) -> Result<()> {
        self.core.hook(Hook::Load).await
    }

    /// Changes the plugin's configuration while it runs, as a core does after a reload. `Ok`: the plugin
    /// took it.
    ///
    /// # Errors
    /// `CONFIG_REJECTED` with the plugin's text; `RESTART_NEEDED` when it asked for a restart, has no
    /// `on_config`, or did not answer within 5 s. A core would restart it then; this one does not.
    pub async fn change_config(&self, config: &impl Serialize) -> Result<()> {
        let config = arguments::encode_json(config)?;
        self.core.change_config(config).await
    }

    // ---- calls and events

    /// Calls a service of the plugin (or a stub) as the operator.
    ///
    /// # Errors
    /// The plugin's own error, or why it could not be called.
    pub async fn call<T: DeserializeOwned>(
        &self,
        service: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        self.call_as(TESTER, service, arguments, None).await
    }

    /// Calls as this plugin, with this deadline.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_as<T: DeserializeOwned>(
        &self,
        caller: &str,
        service: &str,
        arguments: &(impl Serialize + ?Sized),
        time: Option<Duration>,
    ) -> Result<T> {
        let arguments = arguments::encode(arguments)?;
        let result = self.call_raw(caller, service, arguments, time).await?;
        arguments::decode_result(&result)
    }

    /// Calls with the bytes that travel.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_raw(
        &self,
        caller: &str,
        service: &str,
        arguments: impl Into<Bytes>,
        time: Option<Duration>,
    ) -> Result<Bytes> {
        let request = v1::ServiceRegistryCallRequest {
            service: service.to_owned(),
            arguments: arguments.into(),
            ..Default::default()
        };
        self.core.call(caller, "", request, time).await
    }

    /// Publishes an event as somebody else; the plugin gets it if it has subscribed.
    ///
    /// # Errors
    /// `BAD_TOPIC`.
    pub fn emit(&self, topic: &str, data: impl Serialize) -> Result<()> {
        self.emit_as(TESTER, topic, "", data)
    }

    /// Publishes an event as this plugin, about this subject.
    ///
    /// # Errors
    /// `BAD_TOPIC`.
    pub fn emit_as(
        &self,
        source: &str,
        topic: &str,
        subject: &str,
        data: impl Serialize,
    ) -> Result<()> {
        let event = v1::NewEvent {
            topic: topic.to_owned(),
            subject: subject.to_owned(),
            data: arguments::encode_json(&data)?,
            ..Default::default()
        };
        self.core.bus.publish(source, "", event).map(drop)
    }

    /// What the plugin has published so far under a pattern, in order.
    #[must_use]
    pub fn published(&self, pattern: &str) -> Vec<Event> {
        let plugin = self.core.plugin();
        let events = self.core.bus.events().into_iter();
        events
            .filter(|event| event.source == plugin && matches(pattern, &event.topic))
            .map(Event::from)
            .collect()
    }

    /// Waits until the plugin has published so many events under a pattern; returns them all.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` after 30 s.
    pub async fn wait_published(&self, pattern: &str, count: usize) -> Result<Vec<Event>> {
        let mut head = self.core.bus.head.subscribe();
        let wait = async {
            loop {
                head.mark_unchanged();
                let events = self.published(pattern);
                if events.len() >= count || head.changed().await.is_err() {
                    break events;
                }
            }
        };
        bounded("events of the plugin", wait).await
    }

    /// Answers calls to another plugin's service.
    pub fn stub<F, Fut, T>(&self, service: &str, answer: F)
    where
        F: Fn(Value) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        T: Serialize + 'static,
    {
        let answer = Arc::new(answer);
        let stub: core::Stub = Arc::new(move |bytes: Bytes| {
            let answer = Arc::clone(&answer);
            Box::pin(async move {
                let arguments = match bytes.is_empty() {
                    true => Value::Null,
                    false => arguments::json(&bytes)?,
                };
                let as_provider = |error: Error| error.into_provider();
                let result = answer(arguments).await.map_err(as_provider)?;
                arguments::encode_result(&result)
            })
        });
        self.core.desk.lock().stubs.insert(service.to_owned(), stub);
    }

    /// The plugin's services, as it described them: name, summary, schemas as JSON.
    #[must_use]
    pub fn services(&self) -> Vec<ServiceDescription> {
        let desk = self.core.desk.lock();
        let mut services: Vec<_> = desk
            .services
            .values()
            .map(ServiceDescription::new)
            .collect();
        services.sort_by(|left, right| left.name.cmp(&right.name));
        services
    }

    /// Sends the plugin a frame of a kind that it does not know.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` if there is no channel for 30 s.
    pub async fn send_unknown_frame(&self) -> Result<()> {
        let link = bounded("a channel", self.core.live_link()).await??;
        link.send_unknown().await;
        Ok(())
    }

    /// Pings the plugin over its channel and waits for the pong.
    ///
    /// # Errors
    /// `CHANNEL_LOST`.
    pub async fn ping(&self) -> Result<()> {
        bounded("a pong", self.core.ping()).await?
    }

    // ---- data

    /// A value that was stored.
    #[must_use]
    pub fn stored(&self, namespace: &str, key: &str) -> Option<Value> {
        let (namespace, key) = (namespace.to_owned(), key.to_owned());
        let found = self
            .core
            .store
            .get(v1::StorageGetRequest { namespace, key });
        found
            .ok()?
            .entry
            .and_then(|entry| serde_json::from_slice(&entry.value).ok())
    }

    /// Stores a value, before or while the plugin runs.
    ///
    /// # Errors
    /// `BAD_KEY`, `TOO_LARGE`.
    pub fn store(&self, namespace: &str, key: &str, value: impl Serialize) -> Result<()> {
        let request = v1::StorageSetRequest {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            value: arguments::encode_json(&value)?,
            ..Default::default()
        };
        self.core.store.set(request).map(drop)
    }

    /// A value of the shared state.
    #[must_use]
    pub fn state(&self, key: &str) -> Option<Value> {
        let key = key.to_owned();
        let found = self.core.table.get(&v1::StateEngineGetRequest { key });
        found
            .ok()?
            .entry
            .and_then(|entry| serde_json::from_slice(&entry.value).ok())
    }

    /// Whether a key of the shared state belongs to a run that has ended, and was not written since.
    #[must_use]
    pub fn is_stale(&self, key: &str) -> bool {
        let key = key.to_owned();
        let found = self.core.table.get(&v1::StateEngineGetRequest { key });
        found.is_ok_and(|found| found.entry.is_some_and(|entry| entry.stale))
    }

    /// Sets a value of the shared state as somebody else.
    ///
    /// # Errors
    /// `BAD_STATE_KEY`, `TOO_LARGE`.
    pub fn set_state(&self, key: &str, value: impl Serialize) -> Result<()> {
        let request = v1::StateEngineSetRequest {
            key: key.to_owned(),
            value: arguments::encode_json(&value)?,
            ..Default::default()
        };
        self.core.table.set(TESTER, "", request).map(drop)
    }

    // ---- faults

    /// Cuts all connections. The core keeps the run; the plugin comes back and resumes it.
    pub fn disconnect(&self) {
        std::mem::take(&mut *self.core.wire.lock()).cancel();
        if let Some(link) = &*self.core.link.borrow() {
            link.close();
        }
    }

    /// Cuts all connections and answers no new ones until [`Self::go_online`].
    pub fn go_offline(&self) {
        self.core.desk.lock().offline = true;
        self.disconnect();
    }

    /// Ends [`Self::go_offline`].
    pub fn go_online(&self) {
        self.core.desk.lock().offline = false;
    }

    /// The core dies and comes back: the run is over, events and state streams too, the log of events
    /// is another. Storage stays.
    pub fn restart_core(&self) {
        self.disconnect();
        self.core.end_run();
        self.core.bus.restart();
    }

    /// Ends the run, as a core does that has waited 10 s for a lost channel.
    pub fn end_run(&self) {
        self.disconnect();
        self.core.end_run();
    }

    /// Refuses the next channels with this error; `None` ends that.
    pub fn refuse(&self, error: Option<Error>) {
        self.core.desk.lock().refusal = error;
    }

    /// Delays every answer to the plugin by this.
    pub fn slow(&self, delay: Duration) {
        self.core.desk.lock().slow = delay;
    }

    /// Fails every storage request with this error; `None` ends that.
    pub fn fail_storage(&self, error: Option<Error>) {
        self.core.desk.lock().storage_failure = error;
    }

    /// Drops all events from the log: who has not got them, meets a gap.
    pub fn forget_events(&self) {
        self.core.bus.forget();
    }
}

impl Drop for TestRuntime {
    fn drop(&mut self) {
        // A test that fails leaves nothing running.
        self.stop.cancel();
        self.server.abort();
        if let Some(plugin) = &self.plugin {
            plugin.abort();
        }
    }
}

#[cfg(test)]
mod tests;
