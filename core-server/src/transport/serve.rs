//! Accept loops, and one connection from its first byte to its last.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::gathered::Gathered;
use super::heard::Heard;
use super::metered::Metered;
use super::places::Bounds;
use super::standing::{House, Place};
use super::timer::PatientTimer;
use super::tls::{self, Tls};
use super::{MEMORY_BUFFER_BYTES, Peer, Role, Supervised, preface};
use crate::channel::LastRead;
use crate::config::http2 as fixed;
use crate::stall;
use crate::task::TaskScope;

/// Limits of every connection.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// Connections at once, over all listeners.
    pub max_connections: usize,
    /// Of those, the ones whose peer is not known yet: the oldest gives way to a new one.
    pub max_unidentified: usize,
    /// Streams at once on one connection; the client's HTTP/2 stack queues beyond it.
    pub max_concurrent_streams: u32,
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
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
            max_unidentified: 64,
            max_concurrent_streams: 1_024,
            handshake_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

/// Connections beyond the limit that operators and plugins of this process have to themselves:
/// whoever fills all others must not keep away those who could end it.
const RESERVED_CONNECTIONS: usize = 32;

/// How long accepting rests after it has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the transport counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused at the limit.
    pub refused: AtomicU64,
    /// Connections ended for newer ones, before their peer was known.
    pub gave_way: AtomicU64,
    /// Connections ended for a flood of frames that carry nothing.
    pub flooding: AtomicU64,
    /// Connections that did not begin with a good TLS handshake in time, where TLS is spoken.
    pub bad_handshake: AtomicU64,
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
    house: House,
    stats: Arc<Stats>,
    scope: TaskScope,
    supervised: Supervised,
    /// Users who may act as operators.
    operators: Arc<HashSet<u32>>,
}

impl<S> Server<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    /// A server whose connections live in `scope`. `operators` are the users who may use the operator
    /// socket.
    #[must_use]
    pub fn new(
        service: S,
        http2: Http2,
        scope: TaskScope,
        supervised: Supervised,
        operators: impl IntoIterator<Item = u32>,
    ) -> Self {
        let house = House::new(Bounds {
            connections: http2.max_connections,
            unidentified: http2.max_unidentified,
            reserved: RESERVED_CONNECTIONS,
        });
        Self {
            service,
            http2,
            house,
            stats: Arc::default(),
            scope,
            supervised,
            operators: Arc::new(operators.into_iter().collect()),
        }
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Connections open now, and those of them whose peer is not known.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        self.house.count()
    }

    /// Accepts on a unix socket until the scope ends.
    pub fn serve_unix(&self, listener: UnixListener, role: Role) {
        let server = self.clone();
        self.scope.spawn("accept-unix", move |stop| async move {
            let mut crowd = Crowd::default();
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted
                    .and_then(|(stream, _)| Ok((server.unix_peer(&stream, role)?, stream)))
                {
                    Ok((peer, stream)) => crowd.rest_after(server.admit(stream, peer)).await,
                    Err(error) => server.pause(&error).await,
                }
            }
        });
    }

    /// Accepts on a TCP socket until the scope ends.
    pub fn serve_tcp(&self, listener: TcpListener) {
        self.accept_tcp(listener, None);
    }

    /// Accepts on a TCP socket where TLS is spoken, until the scope ends.
    pub fn serve_tls(&self, listener: TcpListener, tls: Tls) {
        self.accept_tcp(listener, Some(tls));
    }

    fn accept_tcp(&self, listener: TcpListener, tls: Option<Tls>) {
        let server = self.clone();
        self.scope.spawn("accept-tcp", move |stop| async move {
            let mut crowd = Crowd::default();
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted.and_then(|(stream, address)| Ok((without_delay(stream)?, address))) {
                    Ok((stream, address)) => {
                        let admitted = match &tls {
                            None => server.admit(stream, Peer::Tcp(address)),
                            Some(tls) => {
                                let speaks = Speaks::Tls(tls.clone(), address);
                                server.begin(stream, speaks, false)
                            }
                        };
                        crowd.rest_after(admitted).await;
                    }
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
        // Whoever is in this process connects as often as it was written to.
        let (Admitted::InPeace | Admitted::InACrowd) = self.admit(server, Peer::Memory);
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
    /// first case would spin; that somebody unknown gives way lets others in while it lasts.
    async fn pause(&self, error: &io::Error) {
        self.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%error, "accepting a connection failed; pausing");
        if is_out_of_descriptors(error) && self.house.oldest_gives_way() {
            self.stats.gave_way.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }

    fn admit<T>(&self, io: T, peer: Peer) -> Admitted
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let known_by_socket = match &peer {
            Peer::OperatorSocket { uid, supervised } => !supervised && self.operators.contains(uid),
            Peer::Memory => true,
            Peer::PluginSocket { .. } | Peer::Tcp(_) | Peer::Tls { .. } => false,
        };
        self.begin(io, Speaks::Plainly(peer), known_by_socket)
    }

    /// Gives a connection its place, if there is one, and serves it.
    fn begin<T>(&self, io: T, speaks: Speaks, known_by_socket: bool) -> Admitted
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Some(admission) = self.house.admit(known_by_socket) else {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            return Admitted::InACrowd;
        };
        let admitted = if admission.somebody_gave_way {
            self.stats.gave_way.fetch_add(1, Ordering::Relaxed);
            Admitted::InACrowd
        } else {
            Admitted::InPeace
        };
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        let server = self.clone();
        self.scope.spawn("connection", move |stop| {
            server.connection(io, speaks, admission.place, stop)
        });
        admitted
    }

    async fn connection<T>(self, io: T, speaks: Speaks, place: Place, stop: CancellationToken)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let served = async {
            match speaks {
                Speaks::Plainly(peer) => self.serve(io, peer, &place, stop).await,
                Speaks::Tls(tls, address) => {
                    let handshake = self.handshake(io, &tls, address);
                    let safe = tokio::select! {
                        () = stop.cancelled() => return,
                        safe = handshake => safe,
                    };
                    if let Some((io, peer)) = safe {
                        self.serve(io, peer, &place, stop).await;
                    }
                }
            }
        };
        tokio::select! {
            // Cut: whoever is unknown is owed no goodbye.
            () = place.gives_way().cancelled() => tracing::debug!("connection gave way to a newer one"),
            () = served => {}
        }
    }

    /// Whoever it is, it is not known by the handshake alone: the gate judges the certificate.
    async fn handshake<T>(
        &self,
        io: T,
        tls: &Tls,
        address: SocketAddr,
    ) -> Option<(tls::TlsStream<T>, Peer)>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        match stall::timeout(self.http2.handshake_timeout, tls.accept(io)).await {
            Ok(Ok(stream)) => {
                let certificate = tls::peer_certificate(&stream);
                let peer = Peer::Tls {
                    address,
                    since: SystemTime::now(),
                    certificate,
                };
                Some((stream, peer))
            }
            failed => {
                self.stats.bad_handshake.fetch_add(1, Ordering::Relaxed);
                if let Ok(Err(error)) = failed {
                    tracing::debug!(%address, %error, "TLS handshake failed");
                }
                None
            }
        }
    }

    async fn serve<T>(&self, io: T, peer: Peer, place: &Place, stop: CancellationToken)
    where
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
        let (service, standing) = (self.service.clone(), place.standing().clone());
        let stats = Arc::clone(&self.stats);
        let io = Metered::new(io, preface::BYTES, standing.clone(), stats);
        let io = Gathered::new(io);
        let attach_peer = hyper::service::service_fn(move |mut request: Request| {
            let extensions = request.extensions_mut();
            extensions.insert(peer.clone());
            extensions.insert(last_read.clone());
            extensions.insert(standing.clone());
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
            .max_header_list_size(fixed::HEADER_LIST_BYTES)
            .max_pending_accept_reset_streams(fixed::PENDING_RESETS)
            .max_local_error_reset_streams(fixed::LOCAL_RESETS)
            .max_send_buf_size(fixed::SEND_BUFFER_BYTES)
            .keep_alive_interval(self.http2.keepalive_interval)
            .keep_alive_timeout(self.http2.keepalive_timeout);
        builder
    }
}

/// How a connection begins.
enum Speaks {
    /// With HTTP/2.
    Plainly(Peer),
    /// With a TLS handshake.
    Tls(Tls, SocketAddr),
}

/// Whether a connection was let in or refused at the cost of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    InPeace,
    InACrowd,
}

/// Slows accepting down while connections push each other out: whoever comes has at least 8 ms to say who
/// it is before 64 others have come, and 500 that come at once keep the next one waiting for less than a
/// tenth of a second.
#[derive(Debug, Default)]
struct Crowd {
    since_rest: u32,
}

impl Crowd {
    /// Connections between two rests.
    const AT_ONCE: u32 = 8;
    /// The shortest time that timers know.
    const REST: Duration = Duration::from_millis(1);

    async fn rest_after(&mut self, admitted: Admitted) {
        if admitted == Admitted::InPeace {
            self.since_rest = 0;
            return;
        }
        self.since_rest += 1;
        if self.since_rest >= Self::AT_ONCE {
            self.since_rest = 0;
            tokio::time::sleep(Self::REST).await;
        }
    }
}

/// Of the process or of the system.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error();
    [Errno::MFILE, Errno::NFILE]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&number)
}

fn without_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}
