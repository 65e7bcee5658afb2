//! Generated clients over unix sockets and TCP, as any gRPC program would use them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use core_proto::contract::metadata;
use core_proto::v1::access_client::AccessClient;
use core_proto::v1::enrollment_client::EnrollmentClient;
use core_proto::v1::event_bus_client::EventBusClient;
use core_proto::v1::introspection_client::IntrospectionClient;
use core_proto::v1::plugin_channel_client::PluginChannelClient;
use core_proto::v1::plugin_manager_client::PluginManagerClient;
use core_proto::v1::service_registry_client::ServiceRegistryClient;
use core_proto::v1::state_engine_client::StateEngineClient;
use core_proto::v1::storage_admin_client::StorageAdminClient;
use core_proto::v1::storage_client::StorageClient;
use core_proto::v1::{self, PluginInfo};
use core_tls::ClientTls;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::streams::{PluginWatch, Subscription};
use crate::wait::within;

/// Where a core listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
    /// A TCP address where TLS is spoken.
    Tls(SocketAddr, ClientTls),
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Address {
    /// As `CORE_ADDR` has it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Self::Tcp(address) | Self::Tls(address, _) => write!(formatter, "{address}"),
        }
    }
}

/// What a client sends with each request.
#[derive(Clone, Debug, Default)]
pub struct Presents {
    metadata: Vec<(&'static str, MetadataValue<Ascii>)>,
}

impl Interceptor for Presents {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        for (name, value) in &self.metadata {
            request.metadata_mut().insert(*name, value.clone());
        }
        Ok(request)
    }
}

type Link = InterceptedService<Channel, Presents>;

/// A connection with what its owner presents. Cheap to clone; a clone shares the connection.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    channel: Channel,
    presents: Presents,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $client:ident;)+) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> $client<Link> {
            $client::with_interceptor(self.channel.clone(), self.presents.clone())
        })+
    };
}

impl Client {
    /// A client without a credential: an operator's on the operator socket, anonymous elsewhere. It
    /// connects when it is first used, and again when it has to.
    ///
    /// # Panics
    /// When the address is none.
    #[must_use]
    pub fn new(address: impl Into<Address>) -> Self {
        let address = address.into();
        let uri = match &address {
            Address::Unix(path) => format!("unix://{}", path.display()),
            Address::Tcp(address) | Address::Tls(address, _) => format!("http://{address}"),
        };
        let endpoint = Endpoint::from_shared(uri).expect("an address");
        let channel = match &address {
            Address::Unix(_) | Address::Tcp(_) => endpoint.connect_lazy(),
            Address::Tls(address, tls) => {
                let (address, tls) = (*address, tls.clone());
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                    let tls = tls.clone();
                    async move {
                        let stream = tokio::net::TcpStream::connect(address).await?;
                        stream.set_nodelay(true)?;
                        let host = address.ip().to_string();
                        io::Result::Ok(TokioIo::new(tls.connect(stream, &host).await?))
                    }
                }))
            }
        };
        Self {
            address,
            channel,
            presents: Presents::default(),
        }
    }

    /// A client over TLS, without a token; with a certificate if `tls` shows one.
    #[must_use]
    pub fn over_tls(address: SocketAddr, tls: ClientTls) -> Self {
        Self::new(Address::Tls(address, tls))
    }

    /// The same connection, with a token.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        self.presenting(metadata::AUTHORIZATION, &format!("Bearer {token}"))
    }

    /// The same connection, speaking for one run.
    #[must_use]
    pub fn with_run(self, run: &str) -> Self {
        self.presenting(metadata::RUN, run)
    }

    /// The same connection, with another metadata.
    ///
    /// # Panics
    /// When the value is none.
    #[must_use]
    pub fn presenting(mut self, name: &'static str, value: &str) -> Self {
        let value = value.parse().expect("ASCII");
        self.presents.metadata.retain(|(known, _)| *known != name);
        self.presents.metadata.push((name, value));
        self
    }

    /// A new connection of the same address and credentials.
    #[must_use]
    pub fn another_connection(&self) -> Self {
        Self {
            presents: self.presents.clone(),
            ..Self::new(self.address.clone())
        }
    }

    /// Where it connects to.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// For services that the contract does not generate.
    #[must_use]
    pub fn link(&self) -> Link {
        InterceptedService::new(self.channel.clone(), self.presents.clone())
    }

    clients! {
        /// `Access`.
        access: AccessClient;
        /// `Enrollment`.
        enrollment: EnrollmentClient;
        /// `EventBus`.
        event_bus: EventBusClient;
        /// `ServiceRegistry`.
        service_registry: ServiceRegistryClient;
        /// `StateEngine`.
        state_engine: StateEngineClient;
        /// `Storage`.
        storage: StorageClient;
        /// `StorageAdmin`.
        storage_admin: StorageAdminClient;
        /// `PluginManager`.
        plugin_manager: PluginManagerClient;
        /// `PluginChannel`.
        plugin_channel: PluginChannelClient;
        /// `Introspection`.
        introspection: IntrospectionClient;
        /// The standard health service.
        health: HealthClient;
        /// The standard reflection service.
        reflection: ServerReflectionClient;
    }

    /// Calls a service with JSON arguments and reads its JSON result.
    ///
    /// # Errors
    /// As the core answers.
    ///
    /// # Panics
    /// When the result is no JSON, or nothing is answered at all.
    pub async fn call(&self, service: &str, arguments: Value) -> Result<Value, Status> {
        let request = v1::ServiceRegistryCallRequest {
            service: service.to_owned(),
            arguments: arguments.to_string().into(),
            ..Default::default()
        };
        self.call_as(request).await
    }

    /// As [`Self::call`], with all the options.
    ///
    /// # Errors
    /// As the core answers.
    ///
    /// # Panics
    /// When the result is no JSON, or nothing is answered at all.
    pub async fn call_as(
        &self,
        request: impl tonic::IntoRequest<v1::ServiceRegistryCallRequest>,
    ) -> Result<Value, Status> {
        let mut client = self.service_registry();
        let answer = within("a call is answered", client.call(request)).await?;
        let result = answer.into_inner().result;
        if result.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&result).expect("a JSON result"))
    }

    /// Publishes one event and returns its seq.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn publish(&self, topic: &str, data: Value) -> Result<u64, Status> {
        let event = v1::NewEvent {
            topic: topic.to_owned(),
            data: data.to_string().into(),
            ..Default::default()
        };
        let request = v1::EventBusPublishRequest { event: Some(event) };
        let mut client = self.event_bus();
        let answer = within("a publish is answered", client.publish(request)).await?;
        Ok(answer.into_inner().seq)
    }

    /// Subscribes from now on.
    ///
    /// # Panics
    /// When the core refuses.
    pub async fn subscribe(&self, patterns: &[&str]) -> Subscription {
        let request = v1::EventBusSubscribeRequest {
            patterns: patterns.iter().map(|&pattern| pattern.to_owned()).collect(),
            ..Default::default()
        };
        self.subscribe_as(request).await.expect("subscribed")
    }

    /// Subscribes with all the options.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn subscribe_as(
        &self,
        request: v1::EventBusSubscribeRequest,
    ) -> Result<Subscription, Status> {
        let mut client = self.event_bus();
        let stream = within("a subscription is answered", client.subscribe(request)).await?;
        Subscription::begin(stream.into_inner()).await
    }

    /// One plugin.
    ///
    /// # Panics
    /// When the core does not know it.
    pub async fn plugin(&self, name: &str) -> PluginInfo {
        let request = v1::PluginManagerGetRequest {
            name: name.to_owned(),
        };
        let mut client = self.plugin_manager();
        let answer = within("a plugin is described", client.get(request)).await;
        let answer = answer.expect("a known plugin").into_inner();
        answer.plugin.expect("a plugin")
    }

    /// Watches all plugins.
    ///
    /// # Panics
    /// When the core refuses.
    pub async fn watch_plugins(&self) -> PluginWatch {
        let request = v1::PluginManagerWatchRequest::default();
        let mut client = self.plugin_manager();
        let stream = within("a watch is answered", client.watch(request)).await;
        PluginWatch::new(stream.expect("a watch").into_inner())
    }

    /// Waits until a plugin shows this phase.
    ///
    /// # Panics
    /// When it does not in time; the message says what it shows instead.
    pub async fn until_phase(&self, name: &str, phase: &str) -> PluginInfo {
        let what = format!("phase {phase}");
        self.until(name, &what, |plugin| plugin.phase == phase)
            .await
    }

    /// Waits until something holds of a plugin.
    ///
    /// # Panics
    /// When it does not in time; the message says what it shows instead.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&PluginInfo) -> bool,
    ) -> PluginInfo {
        let mut watch = self.watch_plugins().await;
        watch.until(name, what, holds).await
    }

    /// Starts a plugin and waits until it is started.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn start(&self, name: &str) -> Result<PluginInfo, Status> {
        let request = v1::PluginManagerStartRequest {
            name: name.to_owned(),
        };
        let mut client = self.plugin_manager();
        let answer = within("a start is answered", client.start(request)).await?;
        Ok(answer.into_inner().plugin.expect("a plugin"))
    }

    /// Stops a plugin.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn stop(&self, name: &str) -> Result<PluginInfo, Status> {
        let request = v1::PluginManagerStopRequest {
            name: name.to_owned(),
        };
        let mut client = self.plugin_manager();
        let answer = within("a stop is answered", client.stop(request)).await?;
        Ok(answer.into_inner().plugin.expect("a plugin"))
    }

    /// Loads a plugin.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn load(&self, name: &str) -> Result<PluginInfo, Status> {
        let request = v1::PluginManagerLoadRequest {
            name: name.to_owned(),
        };
        let mut client = self.plugin_manager();
        let answer = within("a load is answered", client.load(request)).await?;
        Ok(answer.into_inner().plugin.expect("a plugin"))
    }

    /// Unloads a plugin.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn unload(&self, name: &str) -> Result<PluginInfo, Status> {
        let request = v1::PluginManagerUnloadRequest {
            name: name.to_owned(),
        };
        let mut client = self.plugin_manager();
        let answer = within("an unload is answered", client.unload(request)).await?;
        Ok(answer.into_inner().plugin.expect("a plugin"))
    }

    /// Writes one key of the storage and returns its revision.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn store(&self, namespace: &str, key: &str, value: &str) -> Result<u64, Status> {
        let request = v1::StorageSetRequest {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let mut client = self.storage();
        let answer = within("a write is answered", client.set(request)).await?;
        Ok(answer.into_inner().revision)
    }

    /// Reads one key of the storage.
    ///
    /// # Errors
    /// As the core answers.
    ///
    /// # Panics
    /// When the value is not UTF-8.
    pub async fn stored(&self, namespace: &str, key: &str) -> Result<Option<String>, Status> {
        let request = v1::StorageGetRequest {
            namespace: namespace.to_owned(),
            key: key.to_owned(),
        };
        let mut client = self.storage();
        let answer = within("a read is answered", client.get(request)).await?;
        let text = |entry: v1::StorageEntry| {
            String::from_utf8(entry.value.to_vec()).expect("JSON is UTF-8")
        };
        Ok(answer.into_inner().entry.map(text))
    }

    /// Writes one key of the state.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn set_state(
        &self,
        key: &str,
        value: &str,
    ) -> Result<v1::StateEngineSetResponse, Status> {
        let request = v1::StateEngineSetRequest {
            key: key.to_owned(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        let mut client = self.state_engine();
        let answer = within("a write is answered", client.set(request)).await?;
        Ok(answer.into_inner())
    }

    /// Reads one key of the state.
    ///
    /// # Errors
    /// As the core answers.
    pub async fn state(&self, key: &str) -> Result<Option<v1::StateEntry>, Status> {
        let request = v1::StateEngineGetRequest {
            key: key.to_owned(),
        };
        let mut client = self.state_engine();
        let answer = within("a read is answered", client.get(request)).await?;
        Ok(answer.into_inner().entry)
    }
}
