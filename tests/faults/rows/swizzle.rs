//! 41: the connections of five plugins are clogged one after another and released in another order, at
//! random. Here with real processes over proxies; `simulation.rs` plays it with simulated ones.

use std::time::Duration;

use anyhow::Result;
use core_tests::Faults;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::home::Home;
use crate::remote::{self, Declared, Remote};
use crate::report::Row;
use crate::simulation;

const NAMES: [&str; 5] = ["one", "two", "three", "four", "five"];
/// Each hears and calls the next.
const PACE: Duration = Duration::from_millis(20);
/// How long clogs go on; with `--long` ten minutes.
const SHORT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);
/// The liveness bound.
const RECOVERY: Duration = Duration::from_secs(30);
/// After everything is ready, peers work undisturbed for so long.
const QUIET: Duration = Duration::from_secs(3);

/// One step of a swizzle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Since the step before.
    pub(crate) after: Duration,
    pub(crate) plugin: usize,
    pub(crate) up: bool,
    pub(crate) down: bool,
}

/// A swizzle of so many plugins: some are clogged one by one, everything waits, and they are released
/// one by one in another order. Now and then only one way is clogged.
pub(crate) fn swizzle(plugins: usize, random: &mut StdRng) -> Vec<Step> {
    let mut order: Vec<usize> = (0..plugins).collect();
    order.shuffle(random);
    order.truncate(random.random_range(1..=plugins));
    let mut steps: Vec<Step> = order
        .iter()
        .map(|plugin| {
            let ways = random.random_range(0..4);
            Step {
                after: Duration::from_millis(random.random_range(0..2_000)),
                plugin: *plugin,
                up: ways != 1,
                down: ways != 2,
            }
        })
        .collect();
    order.shuffle(random);
    let waits = Duration::from_millis(random.random_range(0..20_000));
    steps.extend(order.iter().enumerate().map(|(index, plugin)| {
        let between = Duration::from_millis(random.random_range(0..2_000));
        Step {
            after: if index == 0 { waits } else { between },
            plugin: *plugin,
            up: false,
            down: false,
        }
    }));
    steps
}

pub(crate) async fn five_plugins(row: Row) -> Result<()> {
    over_proxies(&row).await?;
    simulation::many_seeds(&row).await
}

async fn over_proxies(row: &Row) -> Result<()> {
    let mut declared = Vec::new();
    for (name, other) in NAMES.iter().zip(NAMES.iter().cycle().skip(1)) {
        declared.push(Declared {
            name,
            other,
            pace: PACE,
        });
    }
    let (home, mut remotes) = remote::home(row, &[], &declared).await?;
    remotes.iter_mut().for_each(Remote::start);
    let before = home.all_ready(&NAMES).await;

    let mut random = StdRng::seed_from_u64(row.seed());
    let time = if row.is_long() { LONG } else { SHORT };
    let end = Instant::now() + time;
    let (mut swizzles, mut clogs) = (0_u32, 0_u32);
    while Instant::now() < end {
        swizzles += 1;
        for step in swizzle(NAMES.len(), &mut random) {
            tokio::time::sleep(step.after).await;
            let mut faults = Faults::default();
            (faults.up.held, faults.down.held) = (step.up, step.down);
            clogs += u32::from(step.up || step.down);
            remotes[step.plugin].proxy.set(faults);
        }
    }
    let released = Instant::now();
    row.tell("swizzles", f64::from(swizzles), "");
    row.tell("clogs", f64::from(clogs), "");
    until_ready(row, &home, released).await;
    tokio::time::sleep(QUIET).await;
    check(row, &home, &before).await?;
    home.stop(row).await;
    Ok(())
}

async fn until_ready(row: &Row, home: &Home, released: Instant) {
    for name in NAMES {
        let left = RECOVERY.saturating_sub(released.elapsed());
        let ready = tokio::time::timeout(left, home.operator.until_phase(name, "ready")).await;
        row.require(
            ready.is_ok(),
            format!("{name} is ready within 30 s of the last release"),
        );
    }
    row.at_most(
        "all ready after the last release",
        released.elapsed().as_secs_f64(),
        "s",
        RECOVERY.as_secs_f64(),
    );
}

async fn check(row: &Row, home: &Home, before: &[core_proto::v1::PluginInfo]) -> Result<()> {
    let after = home.all_ready(&NAMES).await;
    let mut accounts = Vec::new();
    for (before, after) in before.iter().zip(&after) {
        let name = after.name.as_str();
        row.require(
            remote::registered(before) == remote::registered(after),
            format!("it has registered what it had: {}", remote::brief(after)),
        );
        let state = home.operator.state(&format!("core.plugin.{name}")).await?;
        let shown = state.map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        row.require(
            shown
                .as_ref()
                .is_some_and(|shown| shown.contains("\"ready\"")),
            format!("the state says the same of {name}: {shown:?}"),
        );
        let account = remote::account(&home.operator, name).await?;
        remote::check_account(row, name, &account);
        accounts.push(account);
    }
    let runs: u64 = after.iter().map(|plugin| plugin.generation).sum();
    row.tell("runs", runs as f64, "");
    let sum = |of: fn(&core_tests::peer::Account) -> u64| accounts.iter().map(of).sum::<u64>();
    row.tell(
        "events heard",
        sum(|account| account.heard.events) as f64,
        "",
    );
    row.tell("calls", sum(|account| account.asked) as f64, "");
    row.tell(
        "calls that failed",
        sum(|account| account.failed) as f64,
        "",
    );
    row.exactly("duplicates", remote::duplicates(&accounts), "", 0);
    remote::nothing_pending(row, &home.operator, &NAMES).await;
    Ok(())
}
