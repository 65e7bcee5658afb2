//! What a small box feels: how soon everything runs, how little it costs when nothing happens.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use core_proto::v1::{self, plugin_manager_watch_response::Item};
use plugin_sdk::client::Connection;
use tokio_stream::StreamExt as _;

use super::{Found, How};
use crate::measure::{self, median, now_ns};
use crate::servers::{Core, CoreSetup, Peer};

/// Longest wait until all plugins are ready.
const START: Duration = Duration::from_secs(60);

/// A core with so many smallest plugins as its children.
fn with_children(count: usize) -> Result<CoreSetup> {
    let program = std::env::current_exe().context("this program")?;
    let program = program.with_file_name("minimal-plugin");
    ensure!(
        program.is_file(),
        "{} is built with this program",
        program.display()
    );
    let children = (0..count).map(|index| {
        let name = format!("minimal{index}");
        let manifest = format!("name = \"{name}\"\n[run]\ncommand = {program:?}\n");
        (name, manifest)
    });
    Ok(CoreSetup {
        children: children.collect(),
        ..CoreSetup::default()
    })
}

/// Follows plugins until as many are STARTED, other processes than `gone`; gives back when, and their
/// process ids.
async fn until_started(
    operator: &Connection,
    count: usize,
    gone: Option<u32>,
) -> Result<(u64, Vec<u32>)> {
    let request = v1::PluginManagerWatchRequest::default();
    let mut watch = operator.plugin_manager().watch(request).await?.into_inner();
    let mut started = std::collections::HashMap::new();
    let follow = async {
        while let Some(message) = watch.next().await {
            if let Some(Item::Plugin(plugin)) = message?.item
                && plugin.state() == v1::PluginState::Started
                && Some(plugin.pid) != gone
            {
                started.insert(plugin.name.clone(), plugin.pid);
                if started.len() == count {
                    return Ok((now_ns(), started.values().copied().collect()));
                }
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(START, follow)
        .await
        .with_context(|| format!("not all started within {START:?}"))?
}

pub(crate) async fn start_empty(how: &How) -> Result<Found> {
    let mut times = Vec::new();
    for _ in 0..=how.rounds * 2 {
        let began = now_ns();
        let core = Core::begin(&how.core, &CoreSetup::default())?;
        let serving = core.until_serving().await?;
        times.push((serving - began) as f64 / 1e6);
        core.stop().await?;
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    Ok(Found::alone(median(times)).note(format!("worst {worst:.0} ms; looked at every 2 ms")))
}

pub(crate) async fn start_50(how: &How) -> Result<Found> {
    let setup = with_children(50)?;
    let mut times = Vec::new();
    for _ in 0..how.rounds.min(3) {
        let began = now_ns();
        let core = Core::begin(&how.core, &setup)?;
        core.until_serving().await?;
        let (started, _) = until_started(&core.operator().await?, 50, None).await?;
        times.push((started - began) as f64 / 1e9);
        core.stop().await?;
    }
    Ok(Found::alone(median(times)))
}

/// From `kill -9` of a plugin to the answer of the call that it was working on, and to the refusal of
/// the next one: the later of both.
pub(crate) async fn restart_notice(how: &How) -> Result<Found> {
    let core = Core::start(&how.core, &with_children(1)?).await?;
    let operator = core.operator().await?;
    let mut times = Vec::new();
    let mut gone = None;
    for _ in 0..how.rounds * 4 {
        let (_, pids) = until_started(&operator, 1, gone).await?;
        let pid = *pids.first().context("one plugin")?;
        gone = Some(pid);
        let mut registry = operator.service_registry();
        let request = || v1::ServiceRegistryCallRequest {
            service: "minimal0.echo".to_owned(),
            ..Default::default()
        };
        registry
            .call(request())
            .await
            .context("it answers while it lives")?;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("a pid")?;
        let killed = now_ns();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        // Calls one after the other: each is answered, by the plugin or by the news of its end.
        let refused = loop {
            if let Err(status) = registry.call(request()).await {
                ensure!(
                    status.code() == tonic::Code::Unavailable,
                    "a call to a killed plugin ends UNAVAILABLE, not {status}"
                );
                break now_ns();
            }
        };
        times.push((refused - killed) as f64 / 1e6);
        let again = v1::PluginManagerStartRequest {
            name: "minimal0".to_owned(),
        };
        operator.plugin_manager().start(again).await?;
    }
    core.stop().await?;
    let worst = times.iter().copied().fold(0.0, f64::max);
    Ok(Found::alone(median(times)).note(format!("worst {worst:.1} ms")))
}

/// CPU and disk writes of a core with ten plugins that do nothing.
pub(crate) async fn idle(how: &How) -> Result<Found> {
    let core = Core::start(&how.core, &with_children(10)?).await?;
    until_started(&core.operator().await?, 10, None).await?;
    let settle = Duration::from_secs_f64(how.seconds);
    tokio::time::sleep(settle).await;
    let watched = settle * 6;
    let (cpu, written) = (
        measure::cpu_seconds(core.pid())?,
        measure::bytes_written(core.pid())?,
    );
    tokio::time::sleep(watched).await;
    let cpu = measure::cpu_seconds(core.pid())? - cpu;
    let written = measure::bytes_written(core.pid())? - written;
    core.stop().await?;
    let per_minute = written as f64 * 60.0 / watched.as_secs_f64();
    let found = Found::alone(cpu * 100.0 / watched.as_secs_f64());
    let found = found.note(format!(
        "over {:.0} s; written to disk: {per_minute:.0} bytes a minute (promised 0)",
        watched.as_secs_f64()
    ));
    ensure!(
        written == 0,
        "an idle core wrote {written} bytes: {:?}",
        found.notes
    );
    Ok(found)
}

pub(crate) async fn memory_idle(how: &How) -> Result<Found> {
    let Some(nats) = Peer::nats().await? else {
        return Ok(Found::missing("nats-server"));
    };
    let core = Core::start(&how.core, &CoreSetup::default()).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (ours, _) = measure::resident(core.pid())?;
    let (peer, _) = measure::resident(nats.pid())?;
    core.stop().await?;
    nats.stop().await?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Found::both(mib(ours), mib(peer)))
}

pub(crate) async fn memory_plugin(how: &How) -> Result<Found> {
    let core = Core::start(&how.core, &with_children(1)?).await?;
    let (_, pids) = until_started(&core.operator().await?, 1, None).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (bytes, _) = measure::resident(*pids.first().context("one plugin")?)?;
    core.stop().await?;
    Ok(Found::alone(bytes as f64 / f64::from(1 << 20)))
}
