//! Calls: over the channel beside nats' request and reply, as unary RPCs beside a direct echo.

use std::collections::HashMap;

use anyhow::Result;

use super::{Found, How, Side, alternate, compare};
use crate::measure::Sample;
use crate::process::Role;
use crate::roles::{Operation, RoleName};
use crate::servers::{Core, CoreSetup, Peer, Via, free_port};

/// A core with a provider and a client, each a process of its own.
struct Routed {
    core: Core,
    provider: Role,
    client: Role,
}

impl Routed {
    async fn start(how: &How, via: Via) -> Result<Self> {
        let setup = CoreSetup::default()
            .remote("provider", "")
            .remote("client", "permissions.call = [\"provider.>\"]\n");
        let core = Core::start(&how.core, &setup).await?;
        let provider =
            Role::start(RoleName::CoreProvider, &core.environment("provider", via)).await?;
        let client = Role::start(RoleName::CoreClient, &core.environment("client", via)).await?;
        Ok(Self {
            core,
            provider,
            client,
        })
    }

    fn side(&mut self, kind: Operation) -> Side<'_> {
        Side {
            role: &mut self.client,
            server: self.core.pid(),
            kind,
        }
    }

    async fn stop(self) -> Result<()> {
        self.client.stop().await?;
        self.provider.stop().await?;
        self.core.stop().await
    }
}

async fn beside_nats(
    how: &How,
    via: Via,
    concurrency: usize,
    figure: impl Fn(&Sample) -> f64 + Copy,
) -> Result<Found> {
    let Some(nats) = Peer::nats().await? else {
        return Ok(Found::missing("nats-server"));
    };
    let responder = Role::start(RoleName::NatsResponder, &nats.environment()).await?;
    let mut asker = Role::start(RoleName::NatsClient, &nats.environment()).await?;
    let mut routed = Routed::start(how, via).await?;
    let peer = Side {
        role: &mut asker,
        server: nats.pid(),
        kind: Operation::Call,
    };
    let samples = alternate(how, concurrency, routed.side(Operation::Call), peer).await?;
    routed.stop().await?;
    asker.stop().await?;
    responder.stop().await?;
    nats.stop().await?;
    Ok(compare(&samples, figure))
}

async fn beside_echo(
    how: &How,
    concurrency: usize,
    figure: impl Fn(&Sample) -> f64 + Copy,
) -> Result<Found> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let environment = HashMap::from([("PEER_ADDR".to_owned(), address)]);
    let server = Role::start(RoleName::EchoServer, &environment).await?;
    let mut client = Role::start(RoleName::EchoClient, &environment).await?;
    let mut routed = Routed::start(how, Via::Tcp).await?;
    let peer = Side {
        role: &mut client,
        server: server.pid(),
        kind: Operation::UnaryCall,
    };
    let samples = alternate(how, concurrency, routed.side(Operation::UnaryCall), peer).await?;
    routed.stop().await?;
    client.stop().await?;
    server.stop().await?;
    Ok(compare(&samples, figure))
}

pub(crate) async fn channel_c1(how: &How) -> Result<Found> {
    beside_nats(how, Via::Tcp, 1, |sample| sample.p50_us).await
}

pub(crate) async fn channel_c1_uds(how: &How) -> Result<Found> {
    beside_nats(how, Via::Unix, 1, |sample| sample.p50_us).await
}

pub(crate) async fn channel_c64(how: &How) -> Result<Found> {
    beside_nats(how, Via::Tcp, 64, Sample::rate).await
}

pub(crate) async fn channel_c256(how: &How) -> Result<Found> {
    beside_nats(how, Via::Tcp, 256, Sample::rate).await
}

pub(crate) async fn channel_cpu(how: &How) -> Result<Found> {
    beside_nats(how, Via::Tcp, 64, Sample::cpu_us).await
}

pub(crate) async fn unary_c1(how: &How) -> Result<Found> {
    beside_echo(how, 1, |sample| sample.p50_us).await
}

pub(crate) async fn unary_c256(how: &How) -> Result<Found> {
    beside_echo(how, 256, Sample::rate).await
}
