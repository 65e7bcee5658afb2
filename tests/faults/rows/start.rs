//! 06, 08, 09: plugins that do not come to be ready.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::PluginInfo;

use crate::MISBEHAVING;
use crate::home::{Home, Timeline, plugin};
use crate::measure::ms;
use crate::processes;
use crate::report::Row;

/// How long a plugin that must not be started again is watched.
const WATCHED: Duration = Duration::from_secs(8);
/// How long a changed file may go unnoticed.
const NOTICED: Duration = Duration::from_secs(10);

pub(crate) async fn final_failures(row: Row) -> Result<()> {
    let mut home = Home::start(&[
        plugin("settings", MISBEHAVING, &["exit-at-start", "78"]),
        plugin("future", MISBEHAVING, &["speaks", "900"]),
        plugin("ghost", "./ghost", &["serves"]),
    ])
    .await;
    let mut spawns = 0;
    for (name, phase, reason, pid_seen) in [
        ("settings", "config_error", "exited", true),
        ("future", "incompatible", "wire_version", true),
        ("ghost", "config_error", "spawn_failed", false),
    ] {
        let ended = home.operator.until_phase(name, phase).await;
        row.require(
            ended.reason == reason && ended.next_attempt_at.is_none() && !ended.message.is_empty(),
            format!("{name}: reason {reason}, no next attempt, a sentence; it shows {ended:?}"),
        );
        spawns += u64::from(pid_seen);
    }
    tokio::time::sleep(WATCHED).await;
    let mut tried = 0;
    for name in ["settings", "future", "ghost"] {
        let generation = home.operator.plugin(name).await.generation;
        row.require(
            generation == 1,
            format!("{name}: one try, not {generation}"),
        );
        tried += if name == "ghost" { 0 } else { generation };
    }
    row.exactly(
        "spawns",
        usize::try_from(tried)?,
        "",
        usize::try_from(spawns)?,
    );

    // The missing program appears.
    let directory = home.directory().to_owned();
    let program = directory.join("plugins/ghost/ghost");
    std::fs::copy(MISBEHAVING, &program).context("a program")?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).context("its mode")?;
    let began = tokio::time::Instant::now();
    let timeline = home.timeline().await;
    let ready = timeline
        .first("ghost", NOTICED, |plugin| plugin.phase == "ready")
        .await;
    row.at_most(
        "a program that appears is tried after",
        ready.map_or(f64::INFINITY, |(at, _)| ms(at - began)),
        "ms",
        ms(NOTICED),
    );

    // The manifest is corrected and read again.
    let settings = plugin("settings", MISBEHAVING, &["serves"]).text();
    std::fs::write(directory.join("plugins/settings/plugin.toml"), settings)
        .context("a manifest")?;
    home.core().signal(rustix::process::Signal::HUP);
    let ready = timeline
        .first("settings", NOTICED, |plugin| plugin.phase == "ready")
        .await;
    row.require(
        ready.is_some(),
        "a corrected plugin.toml is tried after SIGHUP",
    );
    if ready.is_some() {
        home.stop(&row).await;
    }
    Ok(())
}

pub(crate) async fn never_connects(row: Row) -> Result<()> {
    let home = Home::start(&[plugin("lost", MISBEHAVING, &["never-connects"])]).await;
    let timeline = home.timeline().await;
    let (spawned, first) = timeline
        .first("lost", core_tests::patience(), |plugin| plugin.pid != 0)
        .await
        .context("its process was told")?;
    let (ended, after) = timeline
        .first("lost", core_tests::patience(), |plugin| {
            plugin.generation == first.generation && plugin.last_exit.is_some()
        })
        .await
        .context("its end was told")?;
    // It ends at SIGTERM, at once.
    row.between(
        "spawn to its end",
        ms(ended - spawned),
        "ms",
        9_900.0,
        10_500.0,
    );
    let exit = after.last_exit.clone().context("an exit")?;
    row.require(
        exit.forced && after.reason == "connect_timeout" && after.phase == "backoff",
        format!("forced, counted, with its reason; it shows {after:?}"),
    );
    let zombies = processes::zombies_of(home.pid());
    row.exactly("zombies", zombies.len(), "", 0);
    row.require(!core_tests::is_alive(first.pid), "its process is gone");
    home.stop(&row).await;
    Ok(())
}

pub(crate) async fn never_finishes(row: Row) -> Result<()> {
    row.note("extensions: timeouts.start 1 s (30 s) and start_max 4 s (5 min); default numbers on a simulated clock");
    let home = Home::start(&[
        plugin("load", MISBEHAVING, &["never-ends", "load"]),
        plugin("start", MISBEHAVING, &["never-ends", "start"]),
        plugin("extends", MISBEHAVING, &["extends", "load"])
            .sections("[timeouts]\nstart = \"1s\"\nstart_max = \"4s\"\n"),
    ])
    .await;
    let timeline = home.timeline().await;
    let extended = hook_time(&timeline, "extends", "loading").await?;
    let on_load = hook_time(&timeline, "load", "loading").await?;
    // Both hooks share the time: LOAD was answered at once here.
    let on_start = hook_time(&timeline, "start", "starting").await?;
    row.between("on_load ended after", on_load, "ms", 29_800.0, 30_600.0);
    row.between("on_start ended after", on_start, "ms", 29_700.0, 30_600.0);
    // The first second included.
    row.between(
        "extended hook ended after",
        extended,
        "ms",
        3_800.0,
        4_600.0,
    );
    let simulated = super::policy::extended_hook_lives();
    row.between(
        "extended hook, default numbers (simulated)",
        simulated.as_secs_f64(),
        "s",
        300.0,
        300.0,
    );
    for name in ["load", "start", "extends"] {
        let plugin = home.operator.plugin(name).await;
        row.require(
            plugin.last_exit.is_some_and(|exit| exit.forced),
            format!("{name} was ended by the core"),
        );
    }
    row.exactly("zombies", processes::zombies_of(home.pid()).len(), "", 0);
    home.stop(&row).await;
    Ok(())
}

/// Milliseconds from the begin of a hook's phase to the end of the run that it was in.
async fn hook_time(timeline: &Timeline, name: &str, phase: &str) -> Result<f64> {
    const PATIENCE: Duration = Duration::from_secs(45);
    let (began, first) = timeline
        .first(name, PATIENCE, |plugin| plugin.phase == phase)
        .await
        .with_context(|| format!("{name} in phase {phase}"))?;
    let is_over = |plugin: &PluginInfo| {
        plugin.generation == first.generation && plugin.phase == "backoff"
            || plugin.generation > first.generation
    };
    let (ended, over) = timeline
        .first(name, PATIENCE, is_over)
        .await
        .with_context(|| format!("{name} was ended"))?;
    anyhow::ensure!(
        over.generation > first.generation || over.reason == "hook_timeout",
        "{name}: reason hook_timeout, not {over:?}"
    );
    Ok(ms(ended - began))
}
