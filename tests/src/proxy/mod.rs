//! A bad network between a plugin and its core: a TCP proxy whose faults are set while it runs.
//!
//! Each direction is a [`Way`] with faults of its own; they apply to connections that are open and to
//! those to come. A way that is *held* (a black hole, a clog) passes nothing, neither bytes nor the end of
//! a connection, and what was held passes when it is released, as TCP sends again what was lost. What a
//! connection can hold is bounded: beyond [`QUEUE`] chunks the sender is no longer read, as a full pipe
//! does to it.
//!
//! Delays are drawn from the seed, one stream of numbers for each way of each connection.
//!
//! What it cannot do: lose the packets that open a connection. While a way is held a connection to the
//! proxy is accepted all the same, by the system.

mod pump;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use self::pump::{Broken, Link, Pump};

/// Chunks that one way of one connection holds.
const QUEUE: usize = 16;
/// Longest chunk.
const CHUNK_BYTES: usize = 4_096;
/// The system's buffers for reading, small, so that a sender soon feels a link that passes nothing.
const SYSTEM_BUFFER_BYTES: u32 = 32 << 10;

/// What is wrong with one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Nothing passes.
    pub held: bool,
    /// Each chunk is late by so much.
    pub latency: Duration,
    /// And by up to so much more or less.
    pub jitter: Duration,
    /// So many bytes are written at once, at most.
    pub slice_bytes: Option<usize>,
    /// So many bytes pass in a second, of all connections together.
    pub bytes_per_second: Option<u32>,
    /// The end of a connection is late by so much.
    pub close_delay: Duration,
}

/// Both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// From who connects, a plugin, to the core.
    pub up: Way,
    /// From the core.
    pub down: Way,
    /// New connections are closed at once.
    pub refuses: bool,
}

impl Faults {
    /// Both ways alike.
    #[must_use]
    pub fn both(way: Way) -> Self {
        Self {
            up: way,
            down: way,
            refuses: false,
        }
    }

    /// Nothing passes either way.
    #[must_use]
    pub fn held() -> Self {
        Self::both(Way::held())
    }
}

impl Way {
    /// Nothing passes.
    #[must_use]
    pub fn held() -> Self {
        Self {
            held: true,
            ..Self::default()
        }
    }
}

/// One of the directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the core.
    Up,
    /// From the core.
    Down,
}

/// What connections are told to do, each counted up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Orders {
    resets: u64,
    closes: u64,
    half_closes_up: u64,
    half_closes_down: u64,
}

/// A running proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    orders: watch::Sender<Orders>,
    counted: Arc<Counted>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Counted {
    accepted: AtomicU64,
    open: AtomicUsize,
    writes: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    /// A proxy on a free port of the loopback, without faults, before `target`.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn before(target: SocketAddr, seed: u64) -> Self {
        Self::between(IpAddr::V4(Ipv4Addr::LOCALHOST), target, seed).await
    }

    /// As [`Self::before`], on a free port of another of this machine's IPv4 addresses.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn between(here: IpAddr, target: SocketAddr, seed: u64) -> Self {
        let listener = listen(here).expect("a port");
        let address = listener.local_addr().expect("bound");
        let (faults, orders) = (watch::Sender::default(), watch::Sender::default());
        let counted = Arc::<Counted>::default();
        let acceptor = Acceptor {
            target,
            seed,
            faults: faults.subscribe(),
            orders: orders.subscribe(),
            up: Arc::default(),
            down: Arc::default(),
            counted: Arc::clone(&counted),
        };
        Self {
            address,
            faults,
            orders,
            counted,
            accepting: tokio::spawn(acceptor.run(listener)),
        }
    }

    /// Where to connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on these faults and no others.
    pub fn set(&self, faults: Faults) {
        self.faults.send_replace(faults);
    }

    /// No faults any more.
    pub fn mend(&self) {
        self.set(Faults::default());
    }

    /// Ends all connections, and those that come, until [`Self::mend`].
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.refuses = true);
        self.orders.send_modify(|orders| orders.closes += 1);
    }

    /// Ends all connections with a reset to both sides.
    pub fn reset(&self) {
        self.orders.send_modify(|orders| orders.resets += 1);
    }

    /// Ends one direction of all connections: the receiver reads the end, the other way goes on. What is
    /// still sent there is lost.
    pub fn half_close(&self, direction: Direction) {
        self.orders.send_modify(|orders| match direction {
            Direction::Up => orders.half_closes_up += 1,
            Direction::Down => orders.half_closes_down += 1,
        });
    }

    /// Connections so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counted.accepted.load(Ordering::Relaxed)
    }

    /// Connections now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counted.open.load(Ordering::Relaxed)
    }

    /// Bytes that passed, both ways.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counted.bytes.load(Ordering::Relaxed)
    }

    /// Writes that they took.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.counted.writes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        // Connections outlive the acceptor: they see the orders' end.
    }
}

fn listen(here: IpAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // Before it listens: connections inherit it.
    socket.set_recv_buffer_size(SYSTEM_BUFFER_BYTES)?;
    socket.bind(SocketAddr::new(here, 0))?;
    socket.listen(1_024)
}

async fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_recv_buffer_size(SYSTEM_BUFFER_BYTES)?;
    socket.connect(target).await
}

struct Acceptor {
    target: SocketAddr,
    seed: u64,
    faults: watch::Receiver<Faults>,
    orders: watch::Receiver<Orders>,
    up: Arc<Link>,
    down: Arc<Link>,
    counted: Arc<Counted>,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        while let Ok((near, _)) = listener.accept().await {
            let index = self.counted.accepted.fetch_add(1, Ordering::Relaxed);
            if self.faults.borrow().refuses {
                continue;
            }
            let pump = |direction, link: &Arc<Link>| {
                let way = index * 2 + u64::from(direction == Direction::Down);
                Pump {
                    direction,
                    faults: self.faults.clone(),
                    orders: self.orders.clone(),
                    link: Arc::clone(link),
                    random: StdRng::seed_from_u64(self.seed ^ way.wrapping_mul(0x9e37_79b9)),
                    counted: Arc::clone(&self.counted),
                }
            };
            let pumps = (
                pump(Direction::Up, &self.up),
                pump(Direction::Down, &self.down),
            );
            let (orders, counted) = (self.orders.clone(), Arc::clone(&self.counted));
            let target = self.target;
            tokio::spawn(async move {
                counted.open.fetch_add(1, Ordering::Relaxed);
                carry(near, target, pumps, orders).await;
                counted.open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// One connection, to its end.
async fn carry(
    mut near: TcpStream,
    target: SocketAddr,
    (up, down): (Pump, Pump),
    mut orders: watch::Receiver<Orders>,
) {
    let Ok(mut far) = connect(target).await else {
        return;
    };
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let before = *orders.borrow_and_update();
    let reset = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let pumping = async {
            tokio::try_join!(up.run(near_read, far_write), down.run(far_read, near_write))
        };
        let ordered = async {
            let is_over = |now: &Orders| now.resets > before.resets || now.closes > before.closes;
            // An error: the proxy is gone, and its connections with it.
            orders.wait_for(is_over).await.map(|now| *now).ok()
        };
        tokio::select! {
            biased;
            ordered = ordered => ordered.is_some_and(|now| now.resets > before.resets),
            pumped = pumping => matches!(pumped, Err(Broken)),
        }
    };
    if reset {
        near.set_zero_linger().ok();
        far.set_zero_linger().ok();
    }
}
