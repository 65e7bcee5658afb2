//! Roles: this program in the part of one client, of the core or of a peer. What a role does for the core
//! it does for the peer in the same shape: the same concurrency, payload and number of processes.

mod core;
mod echo;
mod nats;
mod redis;

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::measure::{Sample, now_ns};

/// Payload of every operation, unless its row says otherwise.
pub(crate) const PAYLOAD_BYTES: usize = 100;

/// A JSON array of one string: valid as data of an event, as arguments of a call, as a stored value.
pub(crate) fn payload() -> Bytes {
    static PAYLOAD: LazyLock<Bytes> = LazyLock::new(|| {
        let text = "x".repeat(PAYLOAD_BYTES - 4);
        Bytes::from(format!("[\"{text}\"]"))
    });
    PAYLOAD.clone()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// A plugin that answers calls.
    CoreProvider,
    /// A plugin that calls, stores, keeps state, publishes.
    CoreClient,
    /// Plugins that subscribe.
    CoreSubscribers,
    /// Answers requests over nats.
    NatsResponder,
    /// Asks and publishes over nats.
    NatsClient,
    /// Subscribes over nats.
    NatsSubscribers,
    /// Reads and writes redis.
    RedisClient,
    /// A tonic server that echoes, without a core: the yardstick for gRPC itself.
    EchoServer,
    /// Its client.
    EchoClient,
    /// So many plugins that do nothing but be there.
    CoreCrowd,
}

impl RoleName {
    /// A part of ours, the yardstick of gRPC included.
    fn is_ours(self) -> bool {
        match self {
            Self::CoreProvider
            | Self::CoreClient
            | Self::CoreSubscribers
            | Self::CoreCrowd
            | Self::EchoServer
            | Self::EchoClient => true,
            Self::NatsResponder | Self::NatsClient | Self::NatsSubscribers | Self::RedisClient => {
                false
            }
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::CoreProvider => "core-provider",
            Self::CoreClient => "core-client",
            Self::CoreSubscribers => "core-subscribers",
            Self::NatsResponder => "nats-responder",
            Self::NatsClient => "nats-client",
            Self::NatsSubscribers => "nats-subscribers",
            Self::RedisClient => "redis-client",
            Self::EchoServer => "echo-server",
            Self::EchoClient => "echo-client",
            Self::CoreCrowd => "core-crowd",
        }
    }
}

/// What a role is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Operations of a kind, so many at a time, for so long.
    Operate {
        kind: Operation,
        concurrency: usize,
        seconds: f64,
    },
    /// Publish so many events, as fast as it goes, on so many topics in turn.
    Publish { count: u64, topics: usize },
    /// Expect so many events on each subscription; answers when all have come.
    Expect { count: u64 },
    /// Publish one event at a time to oneself, for so long.
    Latency { seconds: f64 },
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Operation {
    /// A call over the channel; a request of a peer.
    Call,
    /// A call as a unary RPC.
    UnaryCall,
    /// A durable write.
    Set,
    /// The same as a unary RPC.
    UnarySet,
    /// A read of it.
    Get,
    /// A write of state and a read of it, in turn.
    State,
    /// An event that its publisher subscribes to itself.
    Event,
}

/// When a role began and ended, by the clock of the machine.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) began_ns: u64,
    pub(crate) ended_ns: u64,
}

/// How many plugins a role stands for that work at the same time, up to the number of processors: each
/// would be a process of its own, with a worker thread.
fn plugins(name: RoleName) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match name {
        RoleName::CoreSubscribers => number("SUBSCRIBERS").map_or(1, |count| count.min(processors)),
        _ => 1,
    }
}

/// Runs a role until its input ends.
pub(crate) fn run(name: RoleName) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if name.is_ours() {
        // As `plugin_sdk::main!` has it: one for each plugin. The peers' clients have what
        // `#[tokio::main]` gives, which is one for each processor.
        builder.worker_threads(plugins(name));
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{}: no runtime: {error}", name.as_str());
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        match name {
            RoleName::CoreProvider => core::provider().await,
            RoleName::CoreClient => core::client().await,
            RoleName::CoreSubscribers => core::subscribers().await,
            RoleName::NatsResponder => nats::responder().await,
            RoleName::NatsClient => nats::client().await,
            RoleName::NatsSubscribers => nats::subscribers().await,
            RoleName::RedisClient => redis::client().await,
            RoleName::EchoServer => echo::server().await,
            RoleName::EchoClient => echo::client().await,
            RoleName::CoreCrowd => core::crowd().await,
        }
    });
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", name.as_str());
            ExitCode::FAILURE
        }
    }
}

/// Says that it is connected, then obeys orders until there are no more.
async fn obey<F, Fut>(obey: F) -> Result<()>
where
    F: Fn(Order) -> Fut,
    Fut: Future<Output = Result<serde_json::Value>>,
{
    say(&serde_json::json!("ready"))?;
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = orders.next_line().await? {
        let order = serde_json::from_str(&line).with_context(|| line.clone())?;
        say(&obey(order).await?)?;
    }
    Ok(())
}

fn say(value: &serde_json::Value) -> Result<()> {
    let mut line = value.to_string();
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes())?;
    Ok(())
}

/// Does an operation again and again, `concurrency` at a time, for so long.
async fn operate<F, Fut>(concurrency: usize, seconds: f64, operation: F) -> Result<Sample>
where
    F: Fn(usize) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + Send,
{
    let operation = Arc::new(operation);
    let length = Duration::from_secs_f64(seconds);
    let began = Instant::now();
    let workers: Vec<_> = (0..concurrency)
        .map(|worker| {
            let operation = Arc::clone(&operation);
            tokio::spawn(async move {
                let mut latencies: Vec<u32> = Vec::with_capacity(1 << 16);
                while began.elapsed() < length {
                    let asked = Instant::now();
                    operation(worker).await?;
                    let took = asked.elapsed().as_nanos();
                    latencies.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.context("a worker")??);
    }
    Ok(Sample::of(all, began.elapsed()))
}

/// Measures a stretch of work.
async fn timed(work: impl Future<Output = Result<()>>) -> Result<serde_json::Value> {
    let began_ns = now_ns();
    work.await?;
    Ok(serde_json::to_value(Span {
        began_ns,
        ended_ns: now_ns(),
    })?)
}

fn peer_address() -> Result<String> {
    std::env::var("PEER_ADDR").context("PEER_ADDR")
}

/// A number in the environment of a role.
fn number(name: &str) -> Result<usize> {
    let text = std::env::var(name).with_context(|| name.to_owned())?;
    text.parse().with_context(|| format!("{name}={text}"))
}
