//! 34: no descriptors are left.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{Client, patience};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::{count, ms, worst};
use crate::observe::{Bystander, Watched};
use crate::report::Row;

/// Descriptors that the core may have.
const DESCRIPTORS: u64 = 64;
/// Sockets that are opened to it.
const SOCKETS: usize = 200;
/// How long they are held: less than the time for a preface, so that nothing but the limit helps.
const HELD: Duration = Duration::from_secs(4);

pub(crate) async fn exhausted(row: Row) -> Result<()> {
    let home = Home::start(&[plugin("child", ECHO, &[])]).await;
    let generation = home.all_ready(&["child"]).await[0].generation;
    let bystander = Bystander::begin(&home.operator, "child.say", Duration::from_millis(20));
    // Once more before there are none left.
    home.operator.plugin("child").await;
    let socket = home.directory().join("data/run/core.sock");
    let operators = home.directory().join("data/run/operator.sock");
    let used = descriptors_of(home.pid());
    row.require(
        used < usize::try_from(DESCRIPTORS)?,
        format!("it lives on less than {DESCRIPTORS} descriptors, not {used}"),
    );
    let pid = i32::try_from(home.pid()).ok().and_then(Pid::from_raw);
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    prlimit(pid, Resource::Nofile, limit).context("the limit is set")?;
    let sockets = connect_all(&socket).await?;
    bystander.took(&row);
    let watched = Watched::begin(&home)?;
    let mut peak = 0;
    let until = Instant::now() + HELD;
    while Instant::now() < until {
        peak = peak.max(descriptors_of(home.pid()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    row.at_most(
        "core's CPU while there is none left",
        watched.cpu_percent(),
        "%",
        20.0,
    );
    // A busy machine slows a spin down too: so the failures are counted as well.
    let log = std::fs::read_to_string(home.directory().join("core.log")).unwrap_or_default();
    let failures = log.matches("accepting a connection failed").count();
    let pauses = HELD.as_secs_f64() / 0.1;
    row.between(
        "times that accepting failed",
        count(failures),
        "",
        1.0,
        1.5 * pauses,
    );
    // Near the limit: one or two come and go while they are counted.
    row.at_least(
        "descriptors in use",
        count(peak),
        "",
        DESCRIPTORS as f64 - 2.0,
    );
    row.tell(
        "calls to a plugin meanwhile: slowest",
        worst(&bystander.took(&row)),
        "ms",
    );
    drop(sockets);
    let released = Instant::now();
    served(&operators).await?;
    row.at_most(
        "a new client is served after the release within",
        ms(released.elapsed()),
        "ms",
        1_000.0,
    );
    let after = home.operator.plugin("child").await;
    row.require(
        after.phase == "ready" && after.generation == generation,
        format!(
            "the plugin lives on: {} in run {}",
            after.phase, after.generation
        ),
    );
    row.tell("descriptors before", count(used), "");
    drop(bystander);
    home.stop(&row).await;
    Ok(())
}

/// Until the core has no more room in its queue of newcomers, or all are there.
async fn connect_all(socket: &Path) -> Result<Vec<UnixStream>> {
    let mut sockets = Vec::new();
    for _ in 0..SOCKETS {
        let connecting = UnixStream::connect(socket);
        match tokio::time::timeout(Duration::from_millis(100), connecting).await {
            Ok(connected) => sockets.push(connected.context("connects")?),
            Err(_) => break,
        }
    }
    Ok(sockets)
}

/// Waits until somebody new is answered.
async fn served(socket: &Path) -> Result<()> {
    let deadline = Instant::now() + patience();
    loop {
        let request = tonic_health::pb::HealthCheckRequest::default();
        let mut client = Client::new(socket).health();
        let answer = tokio::time::timeout(patience(), client.check(request)).await;
        match answer.context("an answer")? {
            Ok(_) => return Ok(()),
            Err(status) => anyhow::ensure!(Instant::now() < deadline, "{status}"),
        }
        tokio::time::sleep(core_tests::POLL).await;
    }
}

fn descriptors_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
