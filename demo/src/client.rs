//! What the demo asks of the core, over the operator socket: a plain client of the contract.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use core_proto::v1;
use core_proto::v1::event_bus_client::EventBusClient;
use core_proto::v1::introspection_client::IntrospectionClient;
use core_proto::v1::plugin_manager_client::PluginManagerClient;
use core_proto::v1::service_registry_client::ServiceRegistryClient;
use core_proto::v1::state_engine_client::StateEngineClient;
use core_proto::v1::storage_client::StorageClient;
use serde_json::Value;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::PATIENCE;

/// A connection to the core as operator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))?;
        let channel = endpoint.timeout(PATIENCE).connect().await?;
        Ok(Self { channel })
    }

    pub(crate) async fn info(&self) -> Result<v1::IntrospectionGetInfoResponse> {
        let mut introspection = IntrospectionClient::new(self.channel.clone());
        let answer = introspection
            .get_info(v1::IntrospectionGetInfoRequest {})
            .await;
        Ok(answer.map_err(said)?.into_inner())
    }

    pub(crate) async fn plugin(&self, name: &str) -> Result<v1::PluginInfo> {
        let name = name.to_owned();
        let answer = PluginManagerClient::new(self.channel.clone())
            .get(v1::PluginManagerGetRequest { name })
            .await;
        answer
            .map_err(said)?
            .into_inner()
            .plugin
            .context("an answer without a plugin")
    }

    /// Waits until the plugins, by name, are as `wanted`; the error tells how they are instead.
    pub(crate) async fn plugins_become(
        &self,
        wanted: impl Fn(&BTreeMap<String, v1::PluginInfo>) -> bool,
    ) -> Result<BTreeMap<String, v1::PluginInfo>> {
        let mut manager = PluginManagerClient::new(self.channel.clone());
        let request = v1::PluginManagerWatchRequest::default();
        let mut changes = manager.watch(request).await.map_err(said)?.into_inner();
        let mut plugins = BTreeMap::new();
        let watched = timeout(PATIENCE, async {
            use v1::plugin_manager_watch_response::Item;
            let mut complete = false;
            while let Some(change) = changes.message().await.map_err(said)? {
                match change.item {
                    Some(Item::Plugin(plugin)) => drop(plugins.insert(plugin.name.clone(), plugin)),
                    Some(Item::Removed(name)) => drop(plugins.remove(&name)),
                    Some(Item::SnapshotEnd(_)) => complete = true,
                    None => {}
                }
                if complete && wanted(&plugins) {
                    return Ok(());
                }
            }
            bail!("the core ended the watch")
        });
        match watched.await {
            Ok(result) => result.map(|()| plugins),
            Err(_elapsed) => {
                let lines: Vec<_> = plugins.values().map(describe).collect();
                bail!("waited in vain; now: {}", lines.join(", "))
            }
        }
    }

    /// Calls a service; waits for its provider if it is not there at the moment.
    pub(crate) async fn call(&self, service: &str, arguments: &Value) -> Result<Value> {
        let mut registry = ServiceRegistryClient::new(self.channel.clone());
        let mut request = Request::new(v1::ServiceRegistryCallRequest {
            service: service.to_owned(),
            arguments: arguments.to_string().into_bytes().into(),
            wait_for_ready: true,
            ..Default::default()
        });
        request.set_timeout(PATIENCE);
        let answer = registry.call(request).await;
        let result = answer
            .map_err(said)
            .with_context(|| service.to_owned())?
            .into_inner()
            .result;
        if result.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&result)
            .with_context(|| format!("{service}: a result that is not JSON"))
    }

    /// Waits until the state at `key` is as `wanted`; the error tells how it is instead.
    pub(crate) async fn state_becomes(
        &self,
        key: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let request = v1::StateEngineWatchRequest {
            patterns: vec![key.to_owned()],
            include_initial: true,
            ..Default::default()
        };
        let mut engine = StateEngineClient::new(self.channel.clone());
        let mut changes = engine.watch(request).await.map_err(said)?.into_inner();
        let mut now = Value::Null;
        let watched = timeout(PATIENCE, async {
            while let Some(message) = changes.message().await.map_err(said)? {
                for entry in message
                    .changes
                    .iter()
                    .filter_map(|change| change.entry.as_ref())
                {
                    // A deleted entry has no value.
                    now = serde_json::from_slice(&entry.value).unwrap_or_default();
                    if wanted(&now) {
                        return Ok(());
                    }
                }
            }
            bail!("the core ended the watch")
        });
        match watched.await {
            Ok(result) => result.map(|()| now),
            Err(_elapsed) => bail!("waited in vain; the state of {key} is {now}"),
        }
    }

    pub(crate) async fn stored(&self, namespace: &str, key: &str) -> Result<Option<Value>> {
        let request = v1::StorageGetRequest {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
        };
        let answer = StorageClient::new(self.channel.clone()).get(request).await;
        let entry = answer.map_err(said)?.into_inner().entry;
        Ok(entry
            .map(|entry| serde_json::from_slice(&entry.value))
            .transpose()?)
    }

    /// All events, from the oldest that there is.
    pub(crate) async fn events(&self) -> Result<Events> {
        let oldest = v1::event_bus_subscribe_request::Start::Oldest(v1::Oldest {});
        let request = v1::EventBusSubscribeRequest {
            patterns: vec![">".to_owned()],
            start: Some(oldest),
            ..Default::default()
        };
        let mut bus = EventBusClient::new(self.channel.clone());
        let mut stream = bus.subscribe(request).await.map_err(said)?.into_inner();
        // The first message says that the subscription is live.
        let first = timeout(PATIENCE, stream.message()).await;
        first
            .context("the subscription does not begin")?
            .map_err(said)?;
        Ok(Events {
            stream,
            seen: Vec::new(),
        })
    }
}

/// A subscription, and all that it brought.
#[derive(Debug)]
pub(crate) struct Events {
    stream: Streaming<v1::EventBusSubscribeResponse>,
    /// A scene lasts a minute or two at a few events a second.
    seen: Vec<v1::Event>,
}

impl Events {
    /// A place in the stream: what was seen so far is before it.
    pub(crate) fn mark(&self) -> usize {
        self.seen.len()
    }

    /// The first event after `mark` that is `wanted`, seen already or still to come.
    pub(crate) async fn after(
        &mut self,
        mark: usize,
        wanted: impl Fn(&v1::Event) -> bool,
    ) -> Result<v1::Event> {
        let mut next = mark;
        let search = timeout(PATIENCE, async {
            loop {
                if let Some(event) = self.seen[next..].iter().find(|event| wanted(event)) {
                    return Ok(event.clone());
                }
                next = self.seen.len();
                let message = self.stream.message().await.map_err(said)?;
                let message = message.context("the core ended the subscription")?;
                self.seen.extend(message.events);
            }
        });
        match search.await {
            Ok(event) => event,
            Err(_elapsed) => {
                let topics: Vec<_> = self.seen[mark..]
                    .iter()
                    .map(|event| event.topic.as_str())
                    .collect();
                bail!("no such event came, only these: {}", topics.join(", "))
            }
        }
    }
}

/// One line about a plugin.
pub(crate) fn describe(plugin: &v1::PluginInfo) -> String {
    let state = plugin
        .state()
        .as_str_name()
        .trim_start_matches("PLUGIN_STATE_");
    format!(
        "{} {state} {} {}",
        plugin.name, plugin.phase, plugin.message
    )
    .trim_end()
    .to_owned()
}

/// An error with the status's own words.
fn said(status: Status) -> anyhow::Error {
    anyhow!("{:?}: {}", status.code(), status.message())
}
