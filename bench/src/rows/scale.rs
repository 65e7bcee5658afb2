//! Whether a call or an event costs more where there are more plugins.

use std::time::Duration;

use anyhow::Result;

use super::{Found, How, Side, middle, sample};
use crate::measure::{self, Sample};
use crate::process::Role;
use crate::roles::{Operation, RoleName};
use crate::servers::{Core, CoreSetup, Via};

/// A core with so many plugins that do nothing, beside those that are measured.
struct Crowded {
    core: Core,
    crowd: Role,
    provider: Role,
    client: Role,
    /// CPU seconds of the core per second while nobody asks anything.
    idle: f64,
}

async fn idle(core: u32, how: &How) -> Result<f64> {
    let seconds = how.seconds * 2.0;
    let before = measure::cpu_seconds(core)?;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok((measure::cpu_seconds(core)? - before) / seconds)
}

impl Crowded {
    async fn start(how: &How, count: usize) -> Result<Self> {
        let mut setup = CoreSetup {
            // Two connections for each: its channel, and its subscription's.
            tables: "[limits]\nconnections = 4096\n".to_owned(),
            ..CoreSetup::default()
        }
        .remote("provider", "")
        .remote("client", "permissions.call = [\"provider.>\"]\n");
        for index in 0..count {
            setup = setup.remote(&format!("crowd{index}"), "");
        }
        let core = Core::start(&how.core, &setup).await?;
        let mut environment = core.environment("client", Via::Unix);
        environment.insert("CROWD".to_owned(), count.to_string());
        let crowd = Role::start(RoleName::CoreCrowd, &environment).await?;
        let environment = core.environment("provider", Via::Tcp);
        let provider = Role::start(RoleName::CoreProvider, &environment).await?;
        let environment = core.environment("client", Via::Tcp);
        let client = Role::start(RoleName::CoreClient, &environment).await?;
        let idle = idle(core.pid(), how).await?;
        Ok(Self {
            core,
            crowd,
            provider,
            client,
            idle,
        })
    }

    /// CPU time of the core for one call, or for one event that its own publisher handles; that for the
    /// plugins' heartbeats is not the call's.
    async fn cost(&mut self, kind: Operation, how: &How) -> Result<Sample> {
        let mut side = Side {
            role: &mut self.client,
            server: self.core.pid(),
            kind,
        };
        let mut sample = sample(&mut side, 64, how.seconds / 2.0).await?;
        sample.server_cpu -= self.idle * sample.seconds;
        Ok(sample)
    }

    async fn stop(self) -> Result<()> {
        self.client.stop().await?;
        self.provider.stop().await?;
        self.crowd.stop().await?;
        self.core.stop().await
    }
}

/// The worse of calls and events, at 100 and at 1,000 plugins, as a multiple of the cost at 10.
pub(crate) async fn scale(how: &How) -> Result<Found> {
    let mut homes = Vec::new();
    for count in [10, 100, 1_000] {
        homes.push((count, Crowded::start(how, count).await?));
    }
    let mut worst: f64 = 0.0;
    let mut found = Found::default();
    for (what, kind) in [("call", Operation::Call), ("event", Operation::Event)] {
        let mut samples = vec![Vec::new(); homes.len()];
        for round in 0..=how.rounds {
            for (index, (_, home)) in homes.iter_mut().enumerate() {
                let sample = home.cost(kind, how).await?;
                if round > 0 {
                    samples[index].push(sample);
                }
            }
        }
        let costs: Vec<f64> = samples
            .iter()
            .map(|each| middle(each, Sample::cpu_us))
            .collect();
        for (index, cost) in costs.iter().enumerate() {
            worst = worst.max(cost / costs[0]);
            found = found.note(format!(
                "{what} at {} plugins: {cost:.2} us of the core's CPU, {}/s",
                homes[index].0,
                crate::report::short(middle(&samples[index], Sample::rate)),
            ));
        }
    }
    for (count, home) in homes {
        let percent = home.idle * 100.0;
        found = found.note(format!(
            "{count} idle plugins: {percent:.2} % of a processor, not counted above"
        ));
        home.stop().await?;
    }
    found.ours = Some(worst);
    Ok(found.note("limits.connections raised to 4096"))
}
