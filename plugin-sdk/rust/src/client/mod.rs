//! The raw client: a connection to a core with its credential, and the generated clients over it.
//!
//! Plugins do not need this module; tools and tests that speak the contract directly do. It owns how
//! a connection is made (unix socket, TCP, memory; HTTP/2 windows, keepalive, limits) and the metadata
//! that every request carries. It knows nothing of channels, runs or handlers.
//!
//! A [`Connection`] is one HTTP/2 connection and cheap to clone. A broken one is re-established by the
//! next request; requests that were under way fail with `UNAVAILABLE`.

mod address;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use core_proto::contract::{self, http2, metadata};
use core_proto::{received, v1};
use core_tls::ClientTls;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};

pub use address::{Address, BadAddress, Token};

/// Keepalive of idle connections over a network: a ping after this much silence, [`KEEPALIVE_TIMEOUT`]
/// for its answer: the same times as the core's own keepalive.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A name that does not resolve or a host that does not answer fails after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token cannot stand in a header.
    #[error("the token contains characters that no token has")]
    BadToken,
    /// The file with the token cannot be read.
    #[error("cannot read the token from {path}")]
    TokenFile {
        /// The file, from `CORE_TOKEN_FILE`.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Certificates or keys cannot be used.
    #[error("TLS cannot be spoken")]
    Tls(#[from] core_tls::Error),
    /// Nobody answers there.
    #[error("cannot connect to the core at {address}")]
    Connect {
        /// Where.
        address: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Anything a connection can run over.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How to reach the core: can be used any number of times.
#[derive(Clone)]
pub struct Dialer {
    dial: Arc<dyn Fn() -> Dialing + Send + Sync>,
    shown: Arc<str>,
    /// The peer can vanish without a word, as networks make it: keepalive is asked for. On one machine the
    /// kernel tells the end of a peer, and one that is only silent, stopped or asleep with everything else,
    /// is still the right one: a new connection would reach nobody else and lose what is under way.
    far: bool,
}

impl Dialer {
    /// Dials an address.
    #[must_use]
    pub fn new(address: Address) -> Self {
        let shown = address.to_string().into();
        let far = matches!(address, Address::Tcp { .. });
        let dial = move || -> Dialing {
            let address = address.clone();
            Box::pin(async move {
                match address {
                    Address::Unix(path) => {
                        let stream = tokio::net::UnixStream::connect(path).await?;
                        Ok(Box::new(stream) as Box<dyn Io>)
                    }
                    Address::Tcp { host, port } => {
                        let stream = tokio::net::TcpStream::connect((host.as_str(), port)).await?;
                        stream.set_nodelay(true)?;
                        Ok(Box::new(stream) as Box<dyn Io>)
                    }
                }
            })
        };
        Self {
            dial: Arc::new(dial),
            shown,
            far,
        }
    }

    /// Dials addresses (`host:port`) one after the other until one answers, with TLS. `targets` is asked
    /// for each connection, so that a renewed certificate is taken up. `shown` names it in messages.
    #[must_use]
    pub fn secure(
        shown: &str,
        targets: impl Fn() -> io::Result<(ClientTls, Vec<Address>)> + Send + Sync + 'static,
    ) -> Self {
        Self::through(shown, move || {
            let targets = targets();
            async move {
                let (tls, addresses) = targets?;
                let mut failed = io::Error::new(io::ErrorKind::NotFound, "there is no address");
                for address in &addresses {
                    match dial_safely(address, &tls).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        })
    }

    /// Dials through a function that makes in-memory pipes, as embedded plugins and tests do.
    #[must_use]
    pub fn memory(
        connect: impl Fn() -> io::Result<tokio::io::DuplexStream> + Send + Sync + 'static,
    ) -> Self {
        let pipes = Self::through("memory", move || std::future::ready(connect()));
        Self {
            far: false,
            ..pipes
        }
    }

    /// Dials through a function of the program's own: a tunnel, a simulated network. `shown` names it in
    /// messages.
    #[must_use]
    pub fn through<F, T>(shown: &str, connect: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let dial = move || -> Dialing {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Io>) })
        };
        Self {
            dial: Arc::new(dial),
            shown: shown.into(),
            far: true,
        }
    }
}

async fn dial_safely(
    address: &Address,
    tls: &ClientTls,
) -> io::Result<core_tls::TlsStream<tokio::net::TcpStream>> {
    let Address::Tcp { host, port } = address else {
        let text = "TLS is for TCP; on a unix socket the core knows its peer";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    };
    let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
    stream.set_nodelay(true)?;
    tls.connect(stream, host).await
}

/// A dialer as tonic's transport uses it.
struct Connector(Dialer);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let dialing = (self.0.dial)();
        Box::pin(async move { dialing.await.map(TokioIo::new) })
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Dialer").field(&self.shown).finish()
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.shown)
    }
}

/// Adds credential, run and parent to every request.
#[derive(Clone, Default)]
pub struct Authorization {
    bearer: Option<MetadataValue<Ascii>>,
    run: Option<MetadataValue<Ascii>>,
    parent: Option<MetadataValue<Ascii>>,
}

impl fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The credential is a secret.
        formatter
            .debug_struct("Authorization")
            .field("run", &self.run)
            .field("parent", &self.parent)
            .finish_non_exhaustive()
    }
}

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let headers = request.metadata_mut();
        for (name, value) in [
            (metadata::AUTHORIZATION, &self.bearer),
            (metadata::RUN, &self.run),
            (metadata::PARENT, &self.parent),
        ] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

/// A generated client's transport: the connection with its credential.
pub type Authorized = InterceptedService<Channel, Authorization>;

/// One HTTP/2 connection to a core, with a credential.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    authorization: Authorization,
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident => $module:ident :: $client:ident;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $name(&self) -> v1::$module::$client<Authorized> {
            v1::$module::$client::with_interceptor(self.channel.clone(), self.authorization.clone())
                .max_decoding_message_size(contract::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(contract::MAX_MESSAGE_BYTES)
        })*
    };
}

impl Connection {
    /// Connects to an address; without a token only what anonymous callers may use works.
    ///
    /// # Errors
    /// [`Error::BadToken`], [`Error::Connect`].
    pub async fn connect(address: Address, token: Option<Token>) -> Result<Self, Error> {
        Self::dial(&Dialer::new(address), token.as_ref()).await
    }

    /// Connects through a dialer.
    ///
    /// # Errors
    /// [`Error::BadToken`], [`Error::Connect`].
    pub async fn dial(dialer: &Dialer, token: Option<&Token>) -> Result<Self, Error> {
        let authorization = authorization(token)?;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Connect {
            address: dialer.to_string(),
            source,
        };
        let endpoint = endpoint(dialer);
        let connecting = endpoint.connect_with_connector(Connector(dialer.clone()));
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| failed("no answer".into()))?
            .map_err(|error| failed(error.into()))?;
        Ok(Self {
            channel,
            authorization,
        })
    }

    /// Makes a connection that is established by its first request.
    ///
    /// # Errors
    /// [`Error::BadToken`].
    pub fn dial_lazily(dialer: &Dialer, token: Option<&Token>) -> Result<Self, Error> {
        Ok(Self {
            channel: endpoint(dialer).connect_with_connector_lazy(Connector(dialer.clone())),
            authorization: authorization(token)?,
        })
    }

    /// The same connection, speaking for this run.
    #[must_use]
    pub fn with_run(mut self, run: &str) -> Self {
        self.authorization.run = MetadataValue::try_from(run).ok();
        self
    }

    /// The same connection, naming what its requests were caused by: `call/<id>`.
    #[must_use]
    pub fn with_parent(mut self, parent: &str) -> Self {
        self.authorization.parent = MetadataValue::try_from(parent).ok();
        self
    }

    /// The transport itself, for clients of other packages (health, reflection).
    #[must_use]
    pub fn authorized(&self) -> Authorized {
        InterceptedService::new(self.channel.clone(), self.authorization.clone())
    }

    /// Subscribes, leaving events encoded until they are looked at.
    ///
    /// # Errors
    /// Those of the RPC.
    pub(crate) async fn subscribe(
        &self,
        request: v1::EventBusSubscribeRequest,
    ) -> Result<Streaming<received::SubscribeResponse>, Status> {
        let mut grpc = tonic::client::Grpc::new(self.authorized())
            .max_decoding_message_size(contract::MAX_MESSAGE_BYTES);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/coreruntime.v1.EventBus/Subscribe");
        let codec = tonic_prost::ProstCodec::<v1::EventBusSubscribeRequest, _>::default();
        let response = grpc
            .server_streaming(Request::new(request), path, codec)
            .await?;
        Ok(response.into_inner())
    }

    clients! {
        /// The plugin channel.
        plugin_channel => plugin_channel_client::PluginChannelClient;
        /// Publish and subscribe.
        event_bus => event_bus_client::EventBusClient;
        /// Services.
        service_registry => service_registry_client::ServiceRegistryClient;
        /// Shared state.
        state_engine => state_engine_client::StateEngineClient;
        /// Durable data.
        storage => storage_client::StorageClient;
        /// Lifecycle.
        plugin_manager => plugin_manager_client::PluginManagerClient;
        /// Tokens, invitations, certificates.
        access => access_client::AccessClient;
        /// What the core is.
        introspection => introspection_client::IntrospectionClient;
    }
}

fn authorization(token: Option<&Token>) -> Result<Authorization, Error> {
    let bearer = match token {
        None => None,
        Some(token) => {
            let text = format!("Bearer {}", token.reveal());
            let mut value = MetadataValue::try_from(text).map_err(|_| Error::BadToken)?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(Authorization {
        bearer,
        ..Authorization::default()
    })
}

fn endpoint(dialer: &Dialer) -> Endpoint {
    // The authority is never resolved: every connection goes through a `Dialer`.
    let endpoint = Endpoint::from_static("http://core.local")
        .initial_stream_window_size(http2::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(http2::CONNECTION_WINDOW_BYTES)
        .max_frame_size(http2::MAX_FRAME_BYTES)
        .http2_adaptive_window(false);
    if !dialer.far {
        return endpoint;
    }
    endpoint
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}
