//! The connection to the core: dialling, the credential, deadlines, and turning a status into a
//! [`Failure`] that names the address.
//!
//! One connection per command. It is dialled at once, so that a wrong address is told before
//! anything else; HTTP/2 keepalive notices a peer that is gone while a stream is silent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use core_proto::contract::{MAX_MESSAGE_BYTES, env, http2, metadata};
use core_proto::v1;
use core_tls::ClientTls;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::address::{self, Address, Environment, Located, Source};
use crate::cli::Global;
use crate::exit::Origin;
use crate::failure::{Failure, Refusal, is_timeout};

/// Dialling takes at most this long, whatever `--timeout` allows.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the peer is asked whether it lives, and how long it may take to say so.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Time for one answer when `--timeout` is not given.
pub(crate) const UNARY_TIMEOUT: Duration = Duration::from_secs(10);
/// No call lasts longer than 5 min in the core; after this the core itself is at fault.
const LONGEST_CALL: Duration = Duration::from_secs(5 * 60 + 10);
/// A token file longer than this holds something else.
const MAX_TOKEN_BYTES: u64 = 4 << 10;

/// Adds the credential, if there is one, to each request.
#[derive(Clone, Debug)]
pub(crate) struct Credential(Option<MetadataValue<Ascii>>);

impl Interceptor for Credential {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert(metadata::AUTHORIZATION, token.clone());
        }
        Ok(request)
    }
}

type Link = InterceptedService<Channel, Credential>;

/// A live connection to a core.
#[derive(Debug)]
pub(crate) struct Core {
    link: Link,
    located: Located,
    /// `--timeout`
    timeout: Option<Duration>,
}

/// Generates the accessors of the clients, which differ in nothing but their names.
macro_rules! clients {
    ($($name:ident: $module:ident :: $client:ident),* $(,)?) => {$(
        pub(crate) fn $name(&self) -> v1::$module::$client<Link> {
            v1::$module::$client::new(self.link.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
        }
    )*};
}

impl Core {
    clients! {
        plugins: plugin_manager_client::PluginManagerClient,
        services: service_registry_client::ServiceRegistryClient,
        events: event_bus_client::EventBusClient,
        state: state_engine_client::StateEngineClient,
        storage: storage_client::StorageClient,
        storage_admin: storage_admin_client::StorageAdminClient,
        access: access_client::AccessClient,
        introspection: introspection_client::IntrospectionClient,
    }

    /// Finds the core and connects to it.
    ///
    /// # Errors
    /// [`Failure::NoCore`], [`Failure::Unreachable`], [`Failure::Usage`] for a bad address or token.
    pub(crate) async fn connect(global: &Global) -> Result<Self, Failure> {
        let located = address::locate(global.addr.as_deref(), &environment(), Path::exists)?;
        let credential = credential(global, &located)?;
        let tls = tls(global, &located)?;
        let channel = dial(&located, tls, global.timeout).await?;
        Ok(Self {
            link: InterceptedService::new(channel, credential),
            located,
            timeout: global.timeout,
        })
    }

    /// The address in use.
    pub(crate) fn address(&self) -> &Address {
        &self.located.address
    }

    /// The address in use, and who named it.
    pub(crate) fn located(&self) -> &Located {
        &self.located
    }

    /// The time that a request gets: `--timeout`, else what is usual for it.
    pub(crate) fn time_for(&self, usual: Duration) -> Duration {
        self.timeout.unwrap_or(usual)
    }

    /// Asks once and waits for the answer. `subject` is whom it is about, for messages; it may be
    /// empty.
    ///
    /// # Errors
    /// What the core or the plugin answered, [`Failure::Unreachable`], or [`Failure::TimedOut`].
    pub(crate) async fn ask<Q, A, F>(
        &self,
        subject: &str,
        usual: Duration,
        question: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let time = self.time_for(usual);
        let mut request = Request::new(question);
        request.set_timeout(time);
        let asked = Instant::now();
        // The transport ends the request at its deadline; this is for one that does not.
        match tokio::time::timeout(time + Duration::from_secs(1), send(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if is_timeout(&status, asked.elapsed(), time) => {
                Err(timed_out(subject, time))
            }
            Ok(Err(status)) => Err(self.failure(subject, &status)),
            Err(_elapsed) => Err(timed_out(subject, time)),
        }
    }

    /// All of a list that comes in pages. `page` asks for the one with this token, and says what is in it
    /// and the next one's.
    ///
    /// # Errors
    /// Those of `page`.
    pub(crate) async fn all_pages<T>(
        mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Failure>,
    ) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let (items, next) = page(token).await?;
            all.extend(items);
            if next.is_empty() {
                return Ok(all);
            }
            token = next;
        }
    }

    /// Calls a service. Without `--timeout` no deadline is sent: the service's own counts.
    ///
    /// # Errors
    /// As [`Core::ask`].
    pub(crate) async fn call<Q, A, F>(
        &self,
        service: &str,
        question: Q,
        send: impl FnOnce(Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        if self.timeout.is_some() {
            return self.ask(service, LONGEST_CALL, question, send).await;
        }
        match tokio::time::timeout(LONGEST_CALL, send(Request::new(question))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(service, &status)),
            Err(_elapsed) => Err(timed_out(service, LONGEST_CALL)),
        }
    }

    /// Opens a stream. Only the opening has a deadline.
    ///
    /// # Errors
    /// As [`Core::ask`].
    pub(crate) async fn open<A>(
        &self,
        subject: &str,
        opening: impl Future<Output = Result<Response<Streaming<A>>, Status>>,
    ) -> Result<Streaming<A>, Failure> {
        let time = self.time_for(UNARY_TIMEOUT);
        match tokio::time::timeout(time, opening).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(subject, &status)),
            Err(_elapsed) => Err(timed_out(subject, time)),
        }
    }

    /// The next message of a stream; nothing at its regular end.
    ///
    /// # Errors
    /// How the stream broke or was ended by the core.
    pub(crate) async fn next<A>(
        &self,
        subject: &str,
        stream: &mut Streaming<A>,
    ) -> Result<Option<A>, Failure> {
        let message = stream.message().await;
        message.map_err(|status| self.failure(subject, &status))
    }

    /// A core that ended a stream which it should not end.
    pub(crate) fn stream_ended(&self) -> Failure {
        unreachable(&self.located, "the stream ended".to_owned())
    }

    fn failure(&self, subject: &str, status: &Status) -> Failure {
        let refusal = Refusal::new(subject, status);
        if refusal.origin == Origin::Transport {
            let cause = chain(status);
            return unreachable(&self.located, format!("the connection was lost: {cause}"));
        }
        Failure::Refused(Box::new(refusal))
    }
}

fn timed_out(subject: &str, after: Duration) -> Failure {
    Failure::TimedOut {
        what: if subject.is_empty() {
            "the core is silent".to_owned()
        } else {
            subject.to_owned()
        },
        after,
        hint: "--timeout allows more time; what was asked for may still happen".to_owned(),
    }
}

fn unreachable(located: &Located, cause: String) -> Failure {
    Failure::Unreachable {
        address: located.address.to_string(),
        origin: located.source.to_string(),
        cause,
    }
}

/// The deepest source says best what happened ("No such file or directory").
fn chain(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn environment() -> Environment {
    Environment {
        core_addr: std::env::var(env::ADDR).ok(),
        runtime_directory: std::env::var_os("RUNTIME_DIRECTORY"),
        xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
    }
}

/// The credential: `--token-file`, else `CORE_TOKEN`, else `CORE_TOKEN_FILE`. An operator socket that
/// was found by search knows its callers by uid: a token that happens to be in the environment stays
/// there.
fn credential(global: &Global, located: &Located) -> Result<Credential, Failure> {
    let from_environment = located.source != Source::Search;
    let variable = |name| std::env::var(name).ok().filter(|_| from_environment);
    let token = if let Some(path) = &global.token_file {
        Some(read_token(path)?)
    } else if let Some(token) = variable(env::TOKEN) {
        Some(token)
    } else if let Some(path) = variable(env::TOKEN_FILE) {
        Some(read_token(Path::new(&path))?)
    } else {
        None
    };
    let Some(token) = token.map(|token| token.trim().to_owned()) else {
        return Ok(Credential(None));
    };
    let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
    let mut value = value.map_err(|_invalid| {
        Failure::usage(
            "the token has characters that no token has",
            "look at the token file or CORE_TOKEN",
        )
    })?;
    value.set_sensitive(true);
    if !located.address.is_local() && !speaks_tls(global, located) {
        crate::output::note(&format!(
            "warning: the token travels unencrypted to {}",
            located.address
        ));
    }
    Ok(Credential(Some(value)))
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > MAX_TOKEN_BYTES {
            return Err(io::Error::other(format!(
                "{length} bytes are too many for a token"
            )));
        }
        std::fs::read_to_string(path)
    };
    read().map_err(|cause| {
        Failure::usage(
            format!("cannot read the token file {}: {cause}", path.display()),
            "",
        )
    })
}

/// The CA's certificate: `--ca-file`, else `CORE_CA_FILE` for an address that was named.
pub(crate) fn ca_file(global: &Global, located: &Located) -> Option<PathBuf> {
    if matches!(located.address, Address::Unix(_)) {
        return None;
    }
    let variable = std::env::var_os(env::CA_FILE).filter(|path| !path.is_empty());
    global.ca_file.clone().or(variable.map(PathBuf::from))
}

fn speaks_tls(global: &Global, located: &Located) -> bool {
    ca_file(global, located).is_some()
}

fn tls(global: &Global, located: &Located) -> Result<Option<ClientTls>, Failure> {
    let Some(path) = ca_file(global, located) else {
        return Ok(None);
    };
    let tls = ClientTls::from_files(&path, None);
    let tls = tls.map_err(|error| {
        Failure::usage(
            format!("TLS cannot be spoken: {}", chain(&error)),
            "--ca-file names the core's data/security/ca.pem, or a copy of it",
        )
    });
    tls.map(Some)
}

async fn dial(
    located: &Located,
    tls: Option<ClientTls>,
    timeout: Option<Duration>,
) -> Result<Channel, Failure> {
    let time = timeout.map_or(CONNECT_TIMEOUT, |timeout| timeout.min(CONNECT_TIMEOUT));
    // The URI is only the request's `:authority`; the connector below knows where to go.
    let authority = match &located.address {
        Address::Unix(_) => "localhost".to_owned(),
        Address::Tcp { host, port } => format!("{host}:{port}"),
    };
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| unreachable(located, chain(&error)))?
        .connect_timeout(time)
        .initial_stream_window_size(http2::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(http2::CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let address = located.address.clone();
    let connecting = async {
        match address {
            Address::Unix(path) => {
                let connector = tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
            Address::Tcp { host, port } if tls.is_some() => {
                let connector = tower::service_fn(move |_: Uri| {
                    let host = host.trim_matches(['[', ']']).to_owned();
                    let tls = tls.clone();
                    async move {
                        let stream = TcpStream::connect((host.as_str(), port)).await?;
                        stream.set_nodelay(true)?;
                        let tls = tls.ok_or(io::ErrorKind::InvalidInput)?;
                        let stream = tls.connect(stream, &host).await?;
                        io::Result::Ok(TokioIo::new(stream))
                    }
                });
                endpoint.connect_with_connector(connector).await
            }
            Address::Tcp { host, port } => {
                let connector = tower::service_fn(move |_: Uri| {
                    let host = host.trim_matches(['[', ']']).to_owned();
                    async move {
                        let stream = TcpStream::connect((host, port)).await?;
                        stream.set_nodelay(true)?;
                        io::Result::Ok(TokioIo::new(stream))
                    }
                });
                endpoint.connect_with_connector(connector).await
            }
        }
    };
    match tokio::time::timeout(time, connecting).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(unreachable(located, chain(&error))),
        Err(_elapsed) => Err(unreachable(
            located,
            format!("no connection within {}", humantime::format_duration(time)),
        )),
    }
}
