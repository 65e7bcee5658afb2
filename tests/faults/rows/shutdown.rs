//! 19, 20: the core is told to end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{Client, is_alive, patience};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::home::{Home, left_below, plugin};
use crate::measure::ms;
use crate::report::Row;
use crate::{ECHO, MISBEHAVING};

/// The default of `shutdown_timeout`.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn levels(row: Row) -> Result<()> {
    let mut home = Home::start(&[
        plugin("base", ECHO, &[]),
        plugin("middle", ECHO, &[]).top("requires = [\"base\"]"),
        plugin(
            "hung",
            MISBEHAVING,
            &["--deaf", "--ignores-term", "never-ends", "stop"],
        )
        .top("requires = [\"base\"]"),
        plugin("top", ECHO, &[]).top("requires = [\"middle\"]"),
    ])
    .await;
    let names = ["base", "middle", "hung", "top"];
    let infos = home.all_ready(&names).await;
    let pids: BTreeMap<&str, u32> = names
        .iter()
        .zip(&infos)
        .map(|(name, info)| (*name, info.pid))
        .collect();
    home.operator
        .store("notes", "k", "1")
        .await
        .context("written")?;
    let directory = home.directory().to_owned();
    let watching = tokio::spawn(deaths(pids.values().copied().collect()));
    let begin = Instant::now();
    home.core().signal(Signal::TERM);
    let status = home.core().wait(patience()).await;
    let took = begin.elapsed();
    let deaths = watching.await.context("the watcher")?;
    row.at_most("total", ms(took), "ms", ms(SHUTDOWN_TIMEOUT));
    let of = |name: &str| deaths.get(&pids[name]);
    let mut errors = 0;
    for (first, then) in [
        ("top", "middle"),
        ("middle", "base"),
        ("hung", "base"),
        ("top", "base"),
    ] {
        let in_order = matches!((of(first), of(then)), (Some(first), Some(then)) if first <= then);
        if !in_order {
            errors += 1;
            row.broken(format!("{first} ends before {then}"));
        }
    }
    row.exactly("order errors", errors, "", 0);
    row.require(status.code() == Some(0), format!("exit 0, not {status}"));
    let survivors = left_below(&directory).await;
    row.exactly("survivors", survivors.len(), "", 0);
    check_database(&row, &directory.join("data/runtime.db"), &["1"])
}

/// When each of these died.
async fn deaths(mut pids: Vec<u32>) -> BTreeMap<u32, Instant> {
    let deadline = Instant::now() + patience();
    let mut deaths = BTreeMap::new();
    while !pids.is_empty() && Instant::now() < deadline {
        // One look for all: who is found dead in the same look died in no known order.
        let now = Instant::now();
        pids.retain(|pid| {
            let alive = is_alive(*pid);
            if !alive {
                deaths.insert(*pid, now);
            }
            alive
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    deaths
}

pub(crate) async fn hurried(row: Row) -> Result<()> {
    let mut home = Home::start(&[
        plugin(
            "hung",
            MISBEHAVING,
            &["--deaf", "--ignores-term", "never-ends", "stop"],
        ),
        plugin("good", ECHO, &[]),
    ])
    .await;
    home.all_ready(&["hung", "good"]).await;
    let directory = home.directory().to_owned();
    let writing = tokio::spawn(write_without_end(home.operator.another_connection()));
    // Some writes, then the signal in the middle of others.
    tokio::time::sleep(Duration::from_millis(300)).await;
    home.core().signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(500)).await;
    row.require(
        is_alive(home.pid()),
        "the first SIGTERM leaves it its grace",
    );
    let begin = Instant::now();
    home.core().signal(Signal::TERM);
    home.core().wait(patience()).await;
    row.at_most("out after", ms(begin.elapsed()), "ms", 1_500.0);
    let acknowledged = tokio::time::timeout(patience(), writing).await;
    let acknowledged = acknowledged
        .context("the writer ends")?
        .context("its task")?;
    row.require(!acknowledged.is_empty(), "something was written");
    row.tell(
        "writes acknowledged",
        f64::from(u32::try_from(acknowledged.len())?),
        "",
    );
    let survivors = left_below(&directory).await;
    row.exactly("survivors", survivors.len(), "", 0);
    let acknowledged: Vec<&str> = acknowledged.iter().map(String::as_str).collect();
    check_database(&row, &directory.join("data/runtime.db"), &acknowledged)
}

/// Writes until it is refused; the values of what was acknowledged.
async fn write_without_end(client: Client) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let value = format!("{number}");
        let written = client
            .store("notes", &format!("k{number:08}"), &value)
            .await;
        if written.is_err() {
            break;
        }
        acknowledged.push(value);
    }
    acknowledged
}

/// The database is whole and holds these values.
fn check_database(row: &Row, path: &Path, values: &[&str]) -> Result<()> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    let database = database.with_context(|| path.display().to_string())?;
    let check: String = database.query_row("PRAGMA integrity_check", [], |found| found.get(0))?;
    row.require(check == "ok", format!("integrity_check: {check}"));
    let mut statement = database.prepare("SELECT value FROM entry")?;
    let stored = statement.query_map([], |found| found.get::<_, String>(0))?;
    let stored: BTreeSet<String> = stored.collect::<Result<_, _>>()?;
    let missing = values.iter().filter(|value| !stored.contains(**value));
    let missing = missing.count();
    row.exactly("acknowledged writes lost", missing, "", 0);
    Ok(())
}
