//! Accept loops, and one connection from its first byte to its last.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::heard::Heard;
use super::timer::PatientTimer;
use super::{MEMORY_BUFFER_BYTES, Peer, Role, Supervised, preface};
use crate::channel::LastRead;
use crate::task::TaskScope;

/// Limits of every connection.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// Connections at once, over all listeners.
    pub max_connections: usize,
    /// Streams at once on one connection; the client's HTTP/2 stack queues beyond it.
    pub max_concurrent_streams: u32,
    /// Metadata of one request.
    pub max_header_list_bytes: u32,
    /// Time for the HTTP/2 preface.
    pub preface_timeout: Duration,
    /// Ping after so long a silence, while a request is open.
    pub keepalive_interval: Duration,
    /// And close after so long without an answer.
    pub keepalive_timeout: Duration,
}

impl Default for Http2 {
    fn default() -> Self {
        Self {
            max_connections: 1_024,
            max_concurrent_streams: 1_024,
            max_header_list_bytes: 16 << 10,
            preface_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Connections beyond the limit that operators and plugins of this process have to themselves:
/// whoever fills all others must not keep away those who could end it.
const RESERVED_CONNECTIONS: usize = 32;

/// What the transport counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused at the limit.
    pub refused: AtomicU64,
    /// Connections that did not begin with HTTP/2 in time.
    pub bad_preface: AtomicU64,
    /// Times that accepting failed.
    pub accept_errors: AtomicU64,
}

type Request = http::Request<Incoming>;
type Response = http::Response<tonic::body::Body>;

/// Serves connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server<S> {
    service: S,
    http2: Http2,
    places: Arc<Semaphore>,
    /// Taken only when `places` has none, and only by those whom others must not shut out.
    reserved: Arc<Semaphore>,
    stats: Arc<Stats>,
    scope: TaskScope,
    supervised: Supervised,
}

impl<S> Server<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// A server whose connections live in `scope`.
    #[must_use]
    pub fn new(service: S, http2: Http2, scope: TaskScope, supervised: Supervised) -> Self {
        let places = Arc::new(Semaphore::new(http2.max_connections));
        Self {
            service,
            http2,
            places,
            reserved: Arc::new(Semaphore::new(RESERVED_CONNECTIONS)),
            stats: Arc::default(),
            scope,
            supervised,
        }
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        let free = self.places.available_permits() + self.reserved.available_permits();
        self.http2.max_connections + RESERVED_CONNECTIONS - free
    }

    /// Accepts on a unix socket until the scope ends.
    pub fn serve_unix(&self, listener: UnixListener, role: Role) {
        let server = self.clone();
        self.scope.spawn("accept-unix", move |stop| async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted
                    .and_then(|(stream, _)| Ok((server.unix_peer(&stream, role)?, stream)))
                {
                    Ok((peer, stream)) => server.admit(stream, peer),
                    Err(error) => server.pause(&error).await,
                }
            }
        });
    }

    /// Accepts on a TCP socket until the scope ends.
    pub fn serve_tcp(&self, listener: TcpListener) {
        let server = self.clone();
        self.scope.spawn("accept-tcp", move |stop| async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted.and_then(|(stream, address)| Ok((without_delay(stream)?, address))) {
                    Ok((stream, address)) => server.admit(stream, Peer::Tcp(address)),
                    Err(error) => server.pause(&error).await,
                }
            }
        });
    }

    /// Opens an in-memory connection and returns the client's end.
    ///
    /// # Errors
    /// `ConnectionRefused` when the server has stopped.
    pub fn connect_in_memory(&self) -> io::Result<DuplexStream> {
        if self.scope.stop_token().is_cancelled() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (client, server) = tokio::io::duplex(MEMORY_BUFFER_BYTES);
        self.admit(server, Peer::Memory);
        Ok(client)
    }

    /// Serves a connection that was accepted elsewhere, as one of TCP from this address.
    pub fn serve_accepted<T>(&self, io: T, address: SocketAddr)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.admit(io, Peer::Tcp(address));
    }

    fn unix_peer(&self, stream: &UnixStream, role: Role) -> io::Result<Peer> {
        let credentials = stream.peer_cred()?;
        let uid = credentials.uid();
        Ok(match role {
            Role::Plugins => Peer::PluginSocket { uid },
            Role::Operators => {
                let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
                // A peer whose process cannot be told is not trusted as an operator.
                let supervised = pid.is_none_or(|pid| self.supervised.includes(pid));
                Peer::OperatorSocket { uid, supervised }
            }
        })
    }

    /// Accepting fails when descriptors run out, or when a peer left early. Without the pause the
    /// first case would spin.
    async fn pause(&self, error: &io::Error) {
        self.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "accepting a connection failed; pausing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    fn admit<T>(&self, io: T, peer: Peer)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let privileged = match peer {
            Peer::OperatorSocket { supervised, .. } => !supervised,
            Peer::Memory => true,
            Peer::PluginSocket { .. } | Peer::Tcp(_) => false,
        };
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = match place {
            Err(_) if privileged => Arc::clone(&self.reserved).try_acquire_owned(),
            place => place,
        };
        let Ok(place) = place else {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        let server = self.clone();
        self.scope.spawn("connection", move |stop| {
            server.connection(io, peer, place, stop)
        });
    }

    async fn connection<T>(
        self,
        io: T,
        peer: Peer,
        _place: OwnedSemaphorePermit,
        stop: CancellationToken,
    ) where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let last_read = LastRead::new(Instant::now());
        let io = Heard {
            io,
            last_read: last_read.clone(),
        };
        let prefaced = tokio::select! {
            () = stop.cancelled() => return,
            prefaced = preface::read(io, self.http2.preface_timeout) => prefaced,
        };
        let Ok(io) = prefaced else {
            self.stats.bad_preface.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let service = self.service.clone();
        let attach_peer = hyper::service::service_fn(move |mut request: Request| {
            let extensions = request.extensions_mut();
            extensions.insert(peer.clone());
            extensions.insert(last_read.clone());
            // The service is always ready: it is a router, its limits are HTTP/2's.
            service.clone().call(request)
        });
        let connection = self
            .builder()
            .serve_connection(TokioIo::new(io), attach_peer);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // A peer that goes away is daily life.
            tracing::debug!(error = crate::error::chain(&error), "connection ended");
        }
    }

    fn builder(&self) -> hyper::server::conn::http2::Builder<TokioExecutor> {
        use core_proto::contract::http2 as windows;
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(PatientTimer)
            .adaptive_window(false)
            .initial_stream_window_size(windows::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(windows::CONNECTION_WINDOW_BYTES)
            .max_frame_size(windows::MAX_FRAME_BYTES)
            .max_concurrent_streams(self.http2.max_concurrent_streams)
            .max_header_list_size(self.http2.max_header_list_bytes)
            .keep_alive_interval(self.http2.keepalive_interval)
            .keep_alive_timeout(self.http2.keepalive_timeout);
        builder
    }
}

fn without_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}
