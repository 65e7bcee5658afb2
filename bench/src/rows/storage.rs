//! Storage and state beside redis that syncs each write, over one multiplexed connection.

use std::collections::HashMap;

use anyhow::Result;

use super::{Found, How, Side, alternate, compare};
use crate::measure::Sample;
use crate::process::Role;
use crate::roles::{Operation, RoleName};
use crate::servers::{Core, CoreSetup, Peer, Via, free_port};

struct Stored {
    core: Core,
    client: Role,
}

impl Stored {
    async fn start(how: &How) -> Result<Self> {
        let core = Core::start(&how.core, &CoreSetup::default().remote("client", "")).await?;
        let environment = core.environment("client", Via::Tcp);
        let client = Role::start(RoleName::CoreClient, &environment).await?;
        Ok(Self { core, client })
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
        self.core.stop().await
    }
}

async fn beside_redis(
    how: &How,
    ours: Operation,
    peers: Operation,
    concurrency: usize,
) -> Result<Found> {
    let Some(redis) = Peer::redis().await? else {
        return Ok(Found::missing("redis-server"));
    };
    let mut client = Role::start(RoleName::RedisClient, &redis.environment()).await?;
    let mut stored = Stored::start(how).await?;
    let mut peer = Side {
        role: &mut client,
        server: redis.pid(),
        kind: Operation::Set,
    };
    // What is read later is written first.
    super::sample(&mut stored.side(Operation::Set), concurrency, 0.2).await?;
    super::sample(&mut peer, concurrency, 0.2).await?;
    peer.kind = peers;
    let samples = alternate(how, concurrency, stored.side(ours), peer).await?;
    stored.stop().await?;
    client.stop().await?;
    redis.stop().await?;
    Ok(compare(&samples, Sample::rate))
}

pub(crate) async fn set_c1(how: &How) -> Result<Found> {
    beside_redis(how, Operation::Set, Operation::Set, 1).await
}

pub(crate) async fn set_c64(how: &How) -> Result<Found> {
    beside_redis(how, Operation::Set, Operation::Set, 64).await
}

pub(crate) async fn set_c256(how: &How) -> Result<Found> {
    beside_redis(how, Operation::Set, Operation::Set, 256).await
}

pub(crate) async fn get_c64(how: &How) -> Result<Found> {
    beside_redis(how, Operation::Get, Operation::Get, 64).await
}

pub(crate) async fn state_c64(how: &How) -> Result<Found> {
    beside_redis(how, Operation::State, Operation::Get, 64).await
}

pub(crate) async fn set_unary_c64(how: &How) -> Result<Found> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let environment = HashMap::from([("PEER_ADDR".to_owned(), address)]);
    let server = Role::start(RoleName::EchoServer, &environment).await?;
    let mut client = Role::start(RoleName::EchoClient, &environment).await?;
    let mut stored = Stored::start(how).await?;
    let peer = Side {
        role: &mut client,
        server: server.pid(),
        kind: Operation::UnaryCall,
    };
    let samples = alternate(how, 64, stored.side(Operation::UnarySet), peer).await?;
    stored.stop().await?;
    client.stop().await?;
    server.stop().await?;
    Ok(compare(&samples, Sample::rate))
}
