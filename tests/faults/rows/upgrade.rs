//! 51: a plugin is upgraded while it is called.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{Client, patience};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::home::{Home, plugin};
use crate::measure::ms;
use crate::report::Row;
use crate::{CORE, ECHO, MISBEHAVING};

/// Calls per second.
const RATE: u32 = 200;
/// Stands in the environment of the new version.
const MARK: &str = "FAULTS_VERSION=new";
/// How long an upgrade is on probation, and a little more.
const PROBATION: Duration = Duration::from_secs(34);

pub(crate) async fn under_load(row: Row) -> Result<()> {
    row.note("timeouts.start shortened to 3 s (30 s)");
    let corectl = beside_the_core("corectl");
    if !corectl.is_file() {
        row.skip("corectl is not built; `cargo xtask faults` builds it");
        return Ok(());
    }
    // Side by side: each waits out a probation.
    let cases = [
        (
            "never ready",
            format!("exec {MISBEHAVING} never-ends load"),
            Expected::Old,
        ),
        (
            "crashes at 10 s",
            format!("(sleep 10; kill -9 $$) >/dev/null 2>&1 & exec {ECHO}"),
            Expected::OldAfterNew,
        ),
        ("fine", format!("exec {ECHO}"), Expected::New),
    ];
    let mut playing = Vec::new();
    for (name, script, expected) in cases {
        let (row, corectl) = (row.clone(), corectl.clone());
        playing.push(tokio::spawn(async move {
            upgrade(&row, &corectl, name, &script, expected)
                .await
                .with_context(|| name.to_owned())
        }));
    }
    for case in playing {
        case.await.context("a case")??;
    }
    Ok(())
}

/// Which version is there in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    New,
    Old,
    OldAfterNew,
}

async fn upgrade(
    row: &Row,
    corectl: &Path,
    name: &str,
    script: &str,
    expected: Expected,
) -> Result<()> {
    let timeouts = "[timeouts]\nstart = \"3s\"\n";
    let home = Home::start(&[plugin("lamp", ECHO, &[]).sections(timeouts)]).await;
    let old = home.operator.until_phase("lamp", "ready").await;
    let new = home.directory().join("lamp-new");
    std::fs::write(&new, format!("#!/bin/sh\nexport {MARK}\n{script}\n"))
        .context("the new program")?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o755)).context("its mode")?;

    let load = Load::begin(&home.operator);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begin = Instant::now();
    let socket = home.directory().join("data/run/operator.sock");
    let upgrade = tokio::process::Command::new(corectl)
        .args(["plugins", "upgrade", "lamp"])
        .arg(&new)
        .args(["--timeout", "60s", "--addr"])
        .arg(format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .output()
        .await
        .context("corectl")?;
    let said = String::from_utf8_lossy(&[upgrade.stdout, upgrade.stderr].concat()).into_owned();
    let becomes_ready = expected != Expected::Old;
    row.require(
        upgrade.status.success() == becomes_ready,
        format!("{name}: corectl says {} {}", upgrade.status, said.trim()),
    );
    if becomes_ready {
        row.require(
            is_new(&home, "lamp").await,
            format!("{name}: the new version runs first"),
        );
    }
    // A rollback, if there is one, comes within the probation.
    let deadline = begin + PROBATION;
    let rolled_back = |reason: &str| reason == "upgrade_rolled_back";
    let mut reason = String::new();
    while Instant::now() < deadline {
        let lamp = home.operator.plugin("lamp").await;
        reason = lamp.reason;
        if expected != Expected::New && rolled_back(&reason) && lamp.phase == "ready" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let in_the_end = home.operator.until_phase("lamp", "ready").await;
    let (failed, gap, mixed) = load.end().await;
    row.tell(&format!("{name}: failed calls"), number(failed), "");
    row.tell(
        &format!("{name}: longest time without an answer"),
        gap,
        "ms",
    );
    row.exactly(
        &format!("{name}: answers that are another call's"),
        mixed,
        "",
        0,
    );
    row.require(
        rolled_back(&reason) == (expected != Expected::New),
        format!("{name}: reason {reason:?}"),
    );
    row.require(
        is_new(&home, "lamp").await == (expected == Expected::New),
        format!("{name}: the right version runs in the end"),
    );
    let runs = in_the_end.generation - old.generation;
    let most = if expected == Expected::New { 1 } else { 2 };
    row.require(
        runs == most,
        format!("{name}: {most} runs more (rolled back once), not {runs}"),
    );
    home.stop(row).await;
    Ok(())
}

/// Whether a plugin's process is of the new version.
async fn is_new(home: &Home, name: &str) -> bool {
    let pid = home.operator.plugin(name).await.pid;
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&environment)
        .split('\0')
        .any(|variable| variable == MARK)
}

/// A steady stream of calls.
struct Load {
    stop: CancellationToken,
    calls: TaskTracker,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    failed: usize,
    mixed: usize,
    answered: Vec<Instant>,
}

impl Load {
    fn begin(operator: &Client) -> Self {
        let load = Self {
            stop: CancellationToken::new(),
            calls: TaskTracker::new(),
            seen: Arc::default(),
        };
        let (stop, calls, seen) = (
            load.stop.clone(),
            load.calls.clone(),
            Arc::clone(&load.seen),
        );
        let caller = operator.another_connection();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for id in 0_u64.. {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stop.cancelled() => break,
                }
                let (caller, seen) = (caller.clone(), Arc::clone(&seen));
                calls.spawn(async move {
                    let id = id.to_string();
                    let answer = caller.call("lamp.say", json!({ "text": id })).await;
                    let mut seen = seen.lock().expect("no panic inside");
                    match answer {
                        Ok(answer) => {
                            seen.answered.push(Instant::now());
                            seen.mixed += usize::from(answer["text"] != json!(id));
                        }
                        Err(_) => seen.failed += 1,
                    }
                });
            }
        });
        load
    }

    /// Failed calls, the longest time without an answer in milliseconds, and answers that belong to another call.
    async fn end(self) -> (usize, f64, usize) {
        self.stop.cancel();
        self.calls.close();
        tokio::time::timeout(patience(), self.calls.wait())
            .await
            .ok();
        let mut seen = self.seen.lock().expect("no panic inside");
        seen.answered.sort();
        let gaps = seen.answered.windows(2).map(|pair| pair[1] - pair[0]);
        let gap = gaps.max().map_or(f64::INFINITY, ms);
        (seen.failed, gap, seen.mixed)
    }
}

/// A program of this workspace: they are all built into one directory.
fn beside_the_core(program: &str) -> PathBuf {
    Path::new(CORE).with_file_name(program)
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
