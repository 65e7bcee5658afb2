//! What a plugin is, before any core has seen it: its name, services, subscriptions, hooks and tasks.
//!
//! [`Plugin`] is the definition, made by [`PluginBuilder`] or by the `#[plugin]` attribute, which is
//! sugar over it. It is immutable and cheap to clone; one definition serves any number of runs.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;

use crate::arguments;
use crate::context::Ctx;
use crate::error::{Error, Result};
use crate::events::{Event, Subscribe, Subscription};
use crate::service::Service;

pub(crate) type Hook = Arc<dyn Fn(Ctx) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Gets a changed configuration as it came.
pub(crate) type ConfigHook =
    Arc<dyn Fn(Ctx, Bytes) -> BoxFuture<'static, Result<()>> + Send + Sync>;

type CheckConfig = fn(&[u8]) -> Result<()>;

/// A plugin's definition. See [`Plugin::builder`].
#[derive(Clone)]
pub struct Plugin {
    pub(crate) definition: Arc<Definition>,
}

pub(crate) struct Definition {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) requires: Vec<String>,
    /// As they were written.
    pub(crate) permissions: Vec<String>,
    pub(crate) max_calls_in_flight: u32,
    pub(crate) services: Vec<Service>,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) tasks: Vec<(String, Hook)>,
    pub(crate) hooks: Hooks,
    /// Checks the configuration before `on_load`.
    pub(crate) check_config: Option<CheckConfig>,
}

#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_load: Vec<Hook>,
    pub(crate) on_start: Vec<Hook>,
    pub(crate) on_stop: Vec<Hook>,
    pub(crate) on_unload: Vec<Hook>,
    /// Not empty: the feature `live_config` is announced.
    pub(crate) on_config: Vec<ConfigHook>,
}

impl Plugin {
    /// Begins a definition. The name is `[a-z][a-z0-9_-]{0,47}`; a core that knows the plugin by
    /// another name (two copies of one package) says so in `CORE_PLUGIN`.
    pub fn builder(name: impl Into<String>) -> PluginBuilder {
        PluginBuilder {
            definition: Definition {
                name: name.into(),
                version: String::new(),
                description: String::new(),
                requires: Vec::new(),
                permissions: Vec::new(),
                max_calls_in_flight: 0,
                services: Vec::new(),
                subscriptions: Vec::new(),
                tasks: Vec::new(),
                hooks: Hooks::default(),
                check_config: None,
            },
        }
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Plugin")
            .field("name", &self.definition.name)
            .field("services", &self.definition.services)
            .finish_non_exhaustive()
    }
}

/// Something that is a plugin: a [`Plugin`], or a type with the `#[plugin]` attribute.
pub trait IntoPlugin {
    /// Makes the definition.
    fn into_plugin(self) -> Plugin;
}

impl IntoPlugin for Plugin {
    fn into_plugin(self) -> Plugin {
        self
    }
}

impl IntoPlugin for PluginBuilder {
    fn into_plugin(self) -> Plugin {
        self.build()
    }
}

/// Collects a plugin's definition.
#[must_use]
pub struct PluginBuilder {
    definition: Definition,
}

macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])*
        pub fn $name<F, Fut>(mut self, hook: F) -> Self
        where
            F: Fn(Ctx) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Result<()>> + Send + 'static,
        {
            self.definition.hooks.$name.push(boxed(hook));
            self
        })*
    };
}

impl PluginBuilder {
    /// The plugin's own version, for people.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.definition.version = version.into();
        self
    }

    /// One line about the plugin, for people.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.definition.description = description.into();
        self
    }

    /// Plugins that must be STARTED before this one. A core that holds a manifest goes by that.
    pub fn requires<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.definition
            .requires
            .extend(names.into_iter().map(Into::into));
        self
    }

    /// What the plugin asks for beyond its own area: `"publish=home.>"`, `"call=notify.send?"` (it copes
    /// without). A core that holds a manifest goes by that; where it holds none, an operator grants it
    /// (`corectl plugins grant`), and until then the plugin waits, but for what it copes without. One that
    /// is no permission is refused by the core with `BAD_HELLO`, which says why.
    pub fn permissions<P: Into<String>>(
        mut self,
        permissions: impl IntoIterator<Item = P>,
    ) -> Self {
        self.definition
            .permissions
            .extend(permissions.into_iter().map(Into::into));
        self
    }

    /// How many calls the plugin works on at once; the core queues more. Otherwise the core's
    /// default, 256.
    pub fn max_calls_in_flight(mut self, calls: u32) -> Self {
        self.definition.max_calls_in_flight = calls;
        self
    }

    /// The type of the plugin's configuration. It is checked before `on_load`; a configuration that
    /// does not fit fails the hook with the path of the fault, and a child process exits with 78.
    pub fn config<C: DeserializeOwned>(mut self) -> Self {
        self.definition.check_config = Some(|text| read_config::<C>(text).map(drop));
        self
    }

    /// Offers a service.
    pub fn service(mut self, service: Service) -> Self {
        self.definition.services.push(service);
        self
    }

    /// Handles events whose topic matches the pattern. Events of one subscription are handled one
    /// after the other, in order; different subscriptions run concurrently.
    pub fn on<F, Fut>(self, pattern: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Ctx, Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.subscribe(Subscribe::to(pattern).handle(handler))
    }

    /// As [`Self::on`], with all the options of a subscription.
    pub fn subscribe(mut self, subscription: Subscription) -> Self {
        self.definition.subscriptions.push(subscription);
        self
    }

    /// Background work. It begins after `on_start` and is dropped before `on_stop`. One that returns
    /// is done until the next start; one that fails is logged and begun again after 1 s, 2 s … 60 s.
    pub fn task<F, Fut>(mut self, name: impl Into<String>, task: F) -> Self
    where
        F: Fn(Ctx) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.definition.tasks.push((name.into(), boxed(task)));
        self
    }

    hooks! {
        /// Runs when the plugin is loaded: read the configuration, open things, register services.
        on_load;
        /// Runs when the plugin is started, before its tasks.
        on_start;
        /// Runs when the plugin is stopped, after its tasks were dropped.
        on_stop;
        /// Runs at the end of a run: release everything.
        on_unload;
    }

    /// Takes a changed configuration while the plugin runs. Without such a hook the core restarts the
    /// plugin when its configuration changes.
    ///
    /// `Ok`: the plugin works with it, and [`Ctx::config`] gives it from now on. An error made by
    /// [`Error::restart_needed`]: the core restarts the plugin with it. Any other error, and a
    /// configuration that does not fit `C` or [`Self::config`]: it is rejected, and the old one stays in
    /// force. The core waits 5 s. Called only once `on_load` is done; before that the newest
    /// configuration is simply the one that `on_load` finds.
    pub fn on_config<C, F, Fut>(mut self, hook: F) -> Self
    where
        C: DeserializeOwned,
        F: Fn(Ctx, C) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        let hook = Arc::new(hook);
        self.definition
            .hooks
            .on_config
            .push(Arc::new(move |ctx, text: Bytes| {
                match read_config::<C>(&text) {
                    Ok(config) => Box::pin(hook(ctx, config)),
                    Err(error) => Box::pin(std::future::ready(Err(error))),
                }
            }));
        self
    }

    /// Ends the definition.
    #[must_use]
    pub fn build(self) -> Plugin {
        Plugin {
            definition: Arc::new(self.definition),
        }
    }
}

impl fmt::Debug for PluginBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PluginBuilder")
            .field("name", &self.definition.name)
            .finish_non_exhaustive()
    }
}

fn boxed<F, Fut>(hook: F) -> Hook
where
    F: Fn(Ctx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send + 'static,
{
    Arc::new(move |ctx| Box::pin(hook(ctx)))
}

/// Reads a configuration; the error names the path of the fault.
pub(crate) fn read_config<C: DeserializeOwned>(text: &[u8]) -> Result<C> {
    arguments::json(text).map_err(|error| {
        let field = error.metadata("field").unwrap_or(".").to_owned();
        Error::failed_precondition(format!("configuration: {}", error.message()))
            .with_reason("BAD_CONFIG")
            .with_metadata("field", field)
    })
}
