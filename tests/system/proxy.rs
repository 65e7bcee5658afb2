//! The harness's bad network does what it says, before anything is concluded from it.

use std::io;
use std::time::Duration;

use core_tests::{Direction, Faults, Proxy, Way, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// A way that shows nothing for so long passes nothing.
const SILENCE: Duration = Duration::from_millis(200);
/// More than a connection's buffers hold, the system's on both sides included.
const FAR_TOO_MUCH: usize = 64 << 20;

/// Two peers with a proxy between.
struct Peers {
    proxy: Proxy,
    near: TcpStream,
    far: TcpStream,
    listener: TcpListener,
}

impl Peers {
    async fn connect() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let target = listener.local_addr().expect("bound");
        let proxy = Proxy::before(target, 7).await;
        let near = TcpStream::connect(proxy.address())
            .await
            .expect("connected");
        let (far, _) = within("the proxy connects", listener.accept())
            .await
            .expect("accepted");
        Self {
            proxy,
            near,
            far,
            listener,
        }
    }
}

async fn sent(peer: &mut TcpStream, bytes: &[u8]) {
    peer.write_all(bytes).await.expect("written");
}

async fn arrives(peer: &mut TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    let read = within("bytes arrive", peer.read_exact(&mut bytes)).await;
    read.expect("read");
    assert_eq!(bytes, expected);
}

async fn is_silent(peer: &mut TcpStream) {
    let read = tokio::time::timeout(SILENCE, peer.read_u8()).await;
    assert!(read.is_err(), "{read:?}");
}

async fn ends(peer: &mut TcpStream) -> io::Result<usize> {
    within("the connection ends", peer.read(&mut [0; 16])).await
}

/// Bytes without a pattern that a lost or repeated piece would keep.
fn unlike(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index * index / 251) as u8)
        .collect()
}

#[tokio::test]
async fn without_faults_bytes_pass_both_ways_and_the_ends_too() {
    let mut peers = Peers::connect().await;
    let bytes = unlike(1 << 20);
    let (near, far) = (&mut peers.near, &mut peers.far);
    tokio::join!(sent(near, &bytes), arrives(far, &bytes));
    tokio::join!(sent(far, &bytes), arrives(near, &bytes));
    near.shutdown().await.expect("shut");
    assert_eq!(ends(far).await.expect("no reset"), 0);
    sent(far, b"still").await;
    arrives(near, b"still").await;
    far.shutdown().await.expect("shut");
    assert_eq!(ends(near).await.expect("no reset"), 0);
    eventually!(peers.proxy.open() == 0);
    assert_eq!(peers.proxy.accepted(), 1);
    assert_eq!(peers.proxy.bytes(), 2 * (1 << 20) + 5);
}

#[tokio::test]
async fn latency_delays_and_keeps_the_order() {
    let mut peers = Peers::connect().await;
    let [latency, jitter] = [200, 150].map(Duration::from_millis);
    peers.proxy.set(Faults {
        up: Way {
            latency,
            jitter,
            ..Way::default()
        },
        ..Faults::default()
    });
    let begin = Instant::now();
    for number in 0..20_u8 {
        sent(&mut peers.near, &[number]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    arrives(&mut peers.far, &[0]).await;
    let first = begin.elapsed();
    assert!(first >= latency - jitter, "{first:?}");
    arrives(&mut peers.far, &(1..20).collect::<Vec<u8>>()).await;
    // Of twenty draws one is above the mean.
    assert!(begin.elapsed() > latency, "{:?}", begin.elapsed());
    let begin = Instant::now();
    sent(&mut peers.far, b"x").await;
    arrives(&mut peers.near, b"x").await;
    assert!(
        begin.elapsed() < latency - jitter,
        "the other way is as it was"
    );
}

#[tokio::test]
async fn a_slicer_writes_byte_by_byte() {
    let mut peers = Peers::connect().await;
    peers.proxy.set(Faults::both(Way {
        slice_bytes: Some(1),
        ..Way::default()
    }));
    let bytes = unlike(3_000);
    tokio::join!(
        sent(&mut peers.near, &bytes),
        arrives(&mut peers.far, &bytes)
    );
    assert_eq!((peers.proxy.writes(), peers.proxy.bytes()), (3_000, 3_000));
}

#[tokio::test]
async fn a_slow_way_is_slow_for_all_its_connections_together() {
    let mut peers = Peers::connect().await;
    let mut second = TcpStream::connect(peers.proxy.address())
        .await
        .expect("connected");
    let (mut far, _) = peers.listener.accept().await.expect("accepted");
    peers.proxy.set(Faults::both(Way {
        bytes_per_second: Some(40_000),
        ..Way::default()
    }));
    let bytes = unlike(10_000);
    let begin = Instant::now();
    tokio::join!(
        sent(&mut peers.near, &bytes),
        sent(&mut second, &bytes),
        arrives(&mut peers.far, &bytes),
        arrives(&mut far, &bytes),
    );
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(499), "{took:?}");
}

#[tokio::test]
async fn what_a_held_way_holds_is_bounded_and_passes_later() {
    let mut peers = Peers::connect().await;
    peers.proxy.set(Faults {
        down: Way::held(),
        ..Faults::default()
    });
    sent(&mut peers.near, b"up").await;
    arrives(&mut peers.far, b"up").await;
    let bytes = unlike(FAR_TOO_MUCH);
    let (near, far) = (&mut peers.near, &mut peers.far);
    // As much as fits: then the sender waits.
    let mut taken = 0;
    while let Ok(written) = tokio::time::timeout(SILENCE, far.write(&bytes[taken..])).await {
        taken += written.expect("written");
    }
    assert!(taken < FAR_TOO_MUCH, "{taken}");
    is_silent(near).await;
    peers.proxy.mend();
    arrives(near, &bytes[..taken]).await;
}

#[tokio::test]
async fn a_held_way_hides_the_end_of_a_connection() {
    let Peers {
        proxy,
        near,
        mut far,
        ..
    } = Peers::connect().await;
    proxy.set(Faults::held());
    drop(near);
    is_silent(&mut far).await;
    proxy.mend();
    assert_eq!(ends(&mut far).await.expect("an end"), 0);
}

#[tokio::test]
async fn a_reset_reaches_both_sides() {
    let mut peers = Peers::connect().await;
    sent(&mut peers.near, b"x").await;
    arrives(&mut peers.far, b"x").await;
    peers.proxy.reset();
    for peer in [&mut peers.near, &mut peers.far] {
        let error = ends(peer).await.expect_err("a reset");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    eventually!(peers.proxy.open() == 0);
}

#[tokio::test]
async fn a_half_close_ends_one_direction_only() {
    let mut peers = Peers::connect().await;
    sent(&mut peers.near, b"x").await;
    arrives(&mut peers.far, b"x").await;
    peers.proxy.half_close(Direction::Up);
    assert_eq!(ends(&mut peers.far).await.expect("an end"), 0);
    sent(&mut peers.near, b"into the void").await;
    sent(&mut peers.far, b"down").await;
    arrives(&mut peers.near, b"down").await;
}

#[tokio::test]
async fn a_slow_close_comes_late() {
    let mut peers = Peers::connect().await;
    let close_delay = Duration::from_millis(400);
    peers.proxy.set(Faults::both(Way {
        close_delay,
        ..Way::default()
    }));
    let begin = Instant::now();
    sent(&mut peers.near, b"last").await;
    drop(peers.near);
    arrives(&mut peers.far, b"last").await;
    assert!(begin.elapsed() < close_delay);
    assert_eq!(ends(&mut peers.far).await.expect("an end"), 0);
    assert!(begin.elapsed() >= close_delay);
}

#[tokio::test]
async fn a_cut_ends_connections_and_refuses_new_ones_until_it_is_mended() {
    let mut peers = Peers::connect().await;
    sent(&mut peers.near, b"x").await;
    arrives(&mut peers.far, b"x").await;
    peers.proxy.cut();
    assert_eq!(ends(&mut peers.near).await.expect("an end"), 0);
    assert_eq!(ends(&mut peers.far).await.expect("an end"), 0);
    let address = peers.proxy.address();
    let mut refused = TcpStream::connect(address).await.expect("connected");
    assert_eq!(ends(&mut refused).await.expect("an end"), 0);
    peers.proxy.mend();
    let mut again = TcpStream::connect(address).await.expect("connected");
    let (mut far, _) = peers.listener.accept().await.expect("accepted");
    sent(&mut again, b"again").await;
    arrives(&mut far, b"again").await;
}
