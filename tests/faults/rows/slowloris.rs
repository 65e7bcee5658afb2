//! 31: peers that take a connection and say nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::IntrospectionGetInfoRequest;
use core_tests::{Client, patience};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Code;

use super::http2::{credential, home};
use crate::home::Home;
use crate::measure::{count, ms, worst};
use crate::observe::Watched;
use crate::raw_http2::PREFACE;
use crate::report::Row;

/// Sockets at once.
const SOCKETS: usize = 500;
/// How long the attack goes on.
const ATTACK: Duration = Duration::from_secs(6);
/// Between the end of a socket and its next try. A thousand tries a second keep the 64 places taken.
const REST: Duration = Duration::from_millis(500);
/// Open beyond the 64: a good client or two, and those that have given way and are being closed.
const SLACK: f64 = 16.0;
/// Those who are below the cap, so that only time ends them.
const FEW: usize = 40;

pub(crate) async fn silent(row: Row) -> Result<()> {
    let (home, bystander, socket) = home().await?;
    let without_hello = tokio::spawn(open_without_hello(client(&home)));
    few(&row, &socket).await?;
    let watched = Watched::begin(&home)?;
    let sockets_before = sockets_of(home.pid());
    let attack = Attack::begin(&socket);
    let mut most = 0;
    let (mut connects, mut again) = (Vec::new(), 0);
    let until = Instant::now() + ATTACK;
    while Instant::now() < until {
        most = most.max(sockets_of(home.pid()).saturating_sub(sockets_before));
        let (took, times) = connect(&home).await.context("a good client")?;
        connects.push(took);
        again += times;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    row.at_most(
        "a good client connects and is answered within",
        worst(&connects),
        "ms",
        200.0,
    );
    row.tell("good clients", count(connects.len()), "");
    row.tell("that had to connect again", count(again), "times");
    row.at_most("open sockets of the attack", count(most), "", 64.0 + SLACK);
    row.at_least(
        "sockets of the attack, with those that came again",
        count(attack.opened()),
        "",
        count(2 * SOCKETS),
    );
    row.tell("core grows by", watched.growth_mib(), "MiB");
    row.tell("core's CPU meanwhile", watched.cpu_percent(), "%");
    drop(attack);
    let (code, after) = without_hello.await.context("the channel without Hello")??;
    row.require(
        code == Code::DeadlineExceeded,
        format!("no Hello: {code:?}"),
    );
    row.between(
        "a channel without Hello is ended after",
        after.as_secs_f64(),
        "s",
        9.9,
        10.6,
    );
    bystander.took(&row);
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// Somebody with a credential.
fn client(home: &Home) -> Client {
    let (_, value) = credential();
    let socket = home.directory().join("data/run/core.sock");
    Client::new(socket.as_path()).with_token(value.trim_start_matches("Bearer "))
}

/// A new connection and a first answer on it, as an SDK does it: it tries again. Returns how long it took
/// and how often it had to.
async fn connect(home: &Home) -> Result<(Duration, usize)> {
    let begin = Instant::now();
    for again in 0..100 {
        let mut client = client(home).introspection();
        let answer = client.get_info(IntrospectionGetInfoRequest::default());
        let answer = tokio::time::timeout(patience(), answer)
            .await
            .context("an answer")?;
        // Without a channel a plugin may ask for nothing: to be told so is an answer.
        let told = answer.err().map(|status| status.code());
        if told == Some(Code::FailedPrecondition) {
            return Ok((begin.elapsed(), again));
        }
    }
    anyhow::bail!("no answer in 100 connections")
}

/// How a channel ends on which nothing is said, and after what time.
async fn open_without_hello(client: Client) -> Result<(Code, Duration)> {
    let begin = Instant::now();
    let mut grpc = client.plugin_channel();
    let opened = grpc.open(tokio_stream::pending());
    let refused = tokio::time::timeout(patience(), opened)
        .await
        .context("an end")?;
    let code = refused.err().map_or(Code::Ok, |status| status.code());
    Ok((code, begin.elapsed()))
}

/// Below the cap: closed when the time for the preface is over, no sooner and no later.
async fn few(row: &Row, socket: &Path) -> Result<()> {
    let mut closed = JoinSet::new();
    for number in 0..FEW {
        let stream = UnixStream::connect(socket).await.context("connects")?;
        closed.spawn(until_closed(stream, talks(number)));
    }
    let took = closed.join_all().await;
    let first = took.iter().min().copied().unwrap_or_default();
    row.between("few: closed after", ms(first) / 1e3, "s", 4.9, 5.5);
    row.between(
        "few: the last of them after",
        worst(&took) / 1e3,
        "s",
        4.9,
        5.5,
    );
    Ok(())
}

/// Every other one sends a byte each second, the others nothing.
fn talks(number: usize) -> bool {
    number.is_multiple_of(2)
}

/// Holds a connection until the core closes it, and tells how long that was.
async fn until_closed(stream: UnixStream, talks: bool) -> Duration {
    let begin = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let mut preface = PREFACE.iter();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut byte = [0];
    loop {
        tokio::select! {
            // Anything that is read would be an answer to nothing.
            _ = reader.read(&mut byte) => return begin.elapsed(),
            _ = second.tick(), if talks => {
                let next = preface.next().copied().unwrap_or_default();
                writer.write_all(&[next]).await.ok();
            }
        }
    }
}

/// As many sockets as it can hold; each that is closed comes again at once.
struct Attack {
    _sockets: JoinSet<()>,
    opened: Arc<AtomicUsize>,
}

impl Attack {
    fn begin(socket: &Path) -> Self {
        let opened = Arc::<AtomicUsize>::default();
        let mut sockets = JoinSet::new();
        for number in 0..SOCKETS {
            let (socket, opened) = (PathBuf::from(socket), Arc::clone(&opened));
            sockets.spawn(async move {
                loop {
                    if let Ok(stream) = UnixStream::connect(&socket).await {
                        opened.fetch_add(1, Ordering::Relaxed);
                        until_closed(stream, talks(number)).await;
                    }
                    // One process is not all the world: it rests as its distance would make it. With
                    // less it is the good client beside it that waits, and not for the core.
                    tokio::time::sleep(REST).await;
                }
            });
        }
        Self {
            _sockets: sockets,
            opened,
        }
    }

    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }
}

/// Sockets that a process has open.
fn sockets_of(pid: u32) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}
