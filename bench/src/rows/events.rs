//! Events: deliveries beside nats, one publisher and so many subscribers, each on a connection of its own.
//!
//! A round is a few bursts. Each burst is published as fast as it goes and ends when the last subscriber
//! has handled its last event; no event may be lost on either side.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use core_proto::v1;
use plugin_sdk::client::Connection;
use tokio_stream::StreamExt as _;
use tonic::Streaming;

use super::{Found, How, Side, compare, sample};
use crate::measure::{self, Sample};
use crate::process::Role;
use crate::roles::{Operation, Order, RoleName, Span};
use crate::servers::{Core, CoreSetup, Peer, Via, free_port};

/// Events of one burst: fewer than either side holds for a subscriber that lags.
const BURST: u64 = 48_000;

/// Who publishes and who is delivered to.
#[derive(Clone, Copy)]
struct Shape {
    subscribers: usize,
    /// Each subscriber has a topic of its own, and the events go to these topics in turn.
    narrow: bool,
}

impl Shape {
    const fn wide(subscribers: usize) -> Self {
        Self {
            subscribers,
            narrow: false,
        }
    }

    fn topics(self) -> usize {
        if self.narrow { self.subscribers } else { 1 }
    }

    /// Events of one burst that each subscriber gets.
    fn each(self) -> u64 {
        BURST / self.topics() as u64
    }

    fn deliveries(self) -> u64 {
        self.each() * self.subscribers as u64
    }
}

/// A publisher, subscribers, and the server between them.
struct Fan {
    server: u32,
    shape: Shape,
    publisher: Role,
    subscribers: Role,
    bursts: u64,
}

impl Fan {
    async fn burst(&mut self) -> Result<Sample> {
        self.bursts += 1;
        let count = self.shape.each() * self.bursts;
        self.subscribers.order(&Order::Expect { count }).await?;
        let publish = Order::Publish {
            count: self.shape.each() * self.shape.topics() as u64,
            topics: self.shape.topics(),
        };
        let published: Span = self.publisher.ask(&publish).await?;
        let delivered: Span = self.subscribers.answer().await?;
        let ended_ns = delivered.ended_ns.max(published.ended_ns);
        Ok(Sample {
            count: self.shape.deliveries(),
            seconds: (ended_ns - published.began_ns) as f64 / 1e9,
            ..Sample::default()
        })
    }

    /// Bursts for so long.
    async fn sample(&mut self, seconds: f64) -> Result<Sample> {
        let cpu = measure::cpu_seconds(self.server)?;
        measure::reset_peak(self.server)?;
        let mut sum = Sample::default();
        while sum.seconds < seconds {
            let burst = self.burst().await?;
            sum.count += burst.count;
            sum.seconds += burst.seconds;
        }
        sum.server_cpu = measure::cpu_seconds(self.server)? - cpu;
        (_, sum.server_peak) = measure::resident(self.server)?;
        Ok(sum)
    }

    async fn stop(self) -> Result<()> {
        self.publisher.stop().await?;
        self.subscribers.stop().await
    }
}

fn shaped(mut environment: HashMap<String, String>, shape: Shape) -> HashMap<String, String> {
    environment.insert("SUBSCRIBERS".to_owned(), shape.subscribers.to_string());
    environment.insert("NARROW".to_owned(), u8::from(shape.narrow).to_string());
    environment
}

async fn over_core(how: &How, shape: Shape) -> Result<(Core, Fan)> {
    let granted = "permissions.subscribe = [\"client.>\"]\n";
    let mut setup = CoreSetup::default().remote("client", "");
    for index in 0..shape.subscribers {
        setup = setup.remote(&format!("sub{index}"), granted);
    }
    let core = Core::start(&how.core, &setup).await?;
    let environment = shaped(core.environment("client", Via::Tcp), shape);
    let subscribers = Role::start(RoleName::CoreSubscribers, &environment).await?;
    let publisher = Role::start(RoleName::CoreClient, &environment).await?;
    let fan = Fan {
        server: core.pid(),
        shape,
        publisher,
        subscribers,
        bursts: 0,
    };
    Ok((core, fan))
}

async fn over_nats(nats: &Peer, shape: Shape) -> Result<Fan> {
    let environment = shaped(nats.environment(), shape);
    Ok(Fan {
        server: nats.pid(),
        shape,
        subscribers: Role::start(RoleName::NatsSubscribers, &environment).await?,
        publisher: Role::start(RoleName::NatsClient, &environment).await?,
        bursts: 0,
    })
}

async fn beside_nats(
    how: &How,
    shape: Shape,
    figure: impl Fn(&Sample) -> f64 + Copy,
) -> Result<Found> {
    let Some(nats) = Peer::nats().await? else {
        return Ok(Found::missing("nats-server"));
    };
    let mut peer = over_nats(&nats, shape).await?;
    let (core, mut ours) = over_core(how, shape).await?;
    let (mut our_samples, mut peer_samples) = (Vec::new(), Vec::new());
    ours.burst().await?;
    peer.burst().await?;
    for _ in 0..how.rounds {
        our_samples.push(ours.sample(how.seconds).await?);
        peer_samples.push(peer.sample(how.seconds).await?);
    }
    ours.stop().await?;
    peer.stop().await?;
    core.stop().await?;
    nats.stop().await?;
    Ok(compare(&(our_samples, peer_samples), figure))
}

pub(crate) async fn one_to_one(how: &How) -> Result<Found> {
    beside_nats(how, Shape::wide(1), Sample::rate).await
}

pub(crate) async fn one_to_8(how: &How) -> Result<Found> {
    beside_nats(how, Shape::wide(8), Sample::rate).await
}

pub(crate) async fn one_to_64(how: &How) -> Result<Found> {
    beside_nats(how, Shape::wide(64), Sample::rate).await
}

pub(crate) async fn cpu_64(how: &How) -> Result<Found> {
    beside_nats(how, Shape::wide(64), Sample::cpu_us).await
}

pub(crate) async fn filtered_64(how: &How) -> Result<Found> {
    let shape = Shape {
        subscribers: 64,
        narrow: true,
    };
    beside_nats(how, shape, Sample::rate).await
}

pub(crate) async fn memory_loaded(how: &How) -> Result<Found> {
    let mib = |sample: &Sample| sample.server_peak as f64 / f64::from(1 << 20);
    beside_nats(how, Shape::wide(8), mib).await
}

/// From publishing to the handler of the same plugin, nothing else going on.
pub(crate) async fn latency(how: &How) -> Result<Found> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let environment = HashMap::from([("PEER_ADDR".to_owned(), address)]);
    let server = Role::start(RoleName::EchoServer, &environment).await?;
    let mut caller = Role::start(RoleName::EchoClient, &environment).await?;
    let core = Core::start(&how.core, &CoreSetup::default().remote("client", "")).await?;
    let environment = core.environment("client", Via::Tcp);
    let mut client = Role::start(RoleName::CoreClient, &environment).await?;
    let mut samples = (Vec::new(), Vec::new());
    for _ in 0..=how.rounds {
        let order = Order::Latency {
            seconds: how.seconds,
        };
        samples.0.push(client.ask::<Sample>(&order).await?);
        let mut echo = Side {
            role: &mut caller,
            server: server.pid(),
            kind: Operation::UnaryCall,
        };
        samples.1.push(sample(&mut echo, 1, how.seconds).await?);
    }
    client.stop().await?;
    caller.stop().await?;
    server.stop().await?;
    core.stop().await?;
    Ok(compare(&samples, |sample| sample.p50_us))
}

/// Subscriptions of an operator to topics that nobody publishes on.
async fn subscribe_elsewhere(
    core: &Core,
    count: usize,
) -> Result<Vec<Streaming<v1::EventBusSubscribeResponse>>> {
    /// Streams of one connection: below the core's limit of 1,024.
    const PER_CONNECTION: usize = 1_000;
    let mut streams = Vec::with_capacity(count);
    let mut connection = core.operator().await?;
    for index in 0..count {
        if index % PER_CONNECTION == 0 {
            connection = core.operator().await?;
        }
        streams.push(subscribe(&connection, &format!("elsewhere.t{index}")).await?);
    }
    Ok(streams)
}

async fn subscribe(
    connection: &Connection,
    pattern: &str,
) -> Result<Streaming<v1::EventBusSubscribeResponse>> {
    let request = v1::EventBusSubscribeRequest {
        patterns: vec![pattern.to_owned()],
        ..Default::default()
    };
    let mut stream = connection
        .event_bus()
        .subscribe(request)
        .await?
        .into_inner();
    let first = stream.next().await.context("it begins")??;
    ensure!(
        first.control.is_some(),
        "a subscription begins with `subscribed`"
    );
    Ok(stream)
}

pub(crate) async fn subs_10k(how: &How) -> Result<Found> {
    let (bare_core, mut bare) = over_core(how, Shape::wide(1)).await?;
    let (crowded_core, mut crowded) = over_core(how, Shape::wide(1)).await?;
    let others = subscribe_elsewhere(&crowded_core, 10_000).await?;
    let samples = turns(how, &mut crowded, &mut bare).await?;
    drop(others);
    for (core, fan) in [(bare_core, bare), (crowded_core, crowded)] {
        fan.stop().await?;
        core.stop().await?;
    }
    let cost = |sample: &Sample| 1e6 / sample.rate();
    Ok(compare(&samples, cost))
}

pub(crate) async fn stalled(how: &How) -> Result<Found> {
    let (free_core, mut free) = over_core(how, Shape::wide(8)).await?;
    let (core, mut held) = over_core(how, Shape::wide(8)).await?;
    // Never read: its flow control window fills, and it stays behind for ever.
    let connection = core.operator().await?;
    let stalled = subscribe(&connection, "client.>").await?;
    let samples = turns(how, &mut held, &mut free).await?;
    drop(stalled);
    for (core, fan) in [(free_core, free), (core, held)] {
        fan.stop().await?;
        core.stop().await?;
    }
    Ok(compare(&samples, Sample::rate))
}

async fn turns(how: &How, ours: &mut Fan, itself: &mut Fan) -> Result<(Vec<Sample>, Vec<Sample>)> {
    let mut samples = (Vec::new(), Vec::new());
    ours.burst().await?;
    itself.burst().await?;
    for _ in 0..how.rounds {
        samples.0.push(ours.sample(how.seconds).await?);
        samples.1.push(itself.sample(how.seconds).await?);
    }
    Ok(samples)
}
