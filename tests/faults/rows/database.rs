//! 47: a database that must not be touched.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{CoreProcess, patience};
use rusqlite::Connection;
use sha2::{Digest as _, Sha256};

use crate::home::Home;
use crate::measure::count;
use crate::report::Row;

/// What a core says that will not run for something inside it (sysexits.h: EX_SOFTWARE).
const INTERNAL: i32 = 70;

/// What is done to a database.
type Harm = fn(&Path) -> Result<()>;

pub(crate) async fn refused(row: Row) -> Result<()> {
    let mut checked = 0;
    let cases: [(&str, Harm, &[&str]); 6] = [
        (
            "its header is damaged",
            damage_header,
            &["is damaged", "core-server restore"],
        ),
        (
            "its schema is damaged",
            damage_schema,
            &["is damaged", "core-server restore"],
        ),
        (
            "it is text",
            |path| Ok(std::fs::write(path, "not a database\n".repeat(600))?),
            &["is damaged"],
        ),
        ("it is another program's", foreign, &["not one of a core"]),
        ("a newer core wrote it", newer, &["schema 99", "newer core"]),
        (
            "it vanished, its log did not",
            vanish,
            &["is missing", "write-ahead log"],
        ),
    ];
    for (what, harm, words) in cases {
        let mut core = seeded().await?;
        let database = core.directory().join("data/runtime.db");
        harm(&database)?;
        let before = files(&database)?;
        let said = refusal(&row, what, &mut core).await?;
        for word in words {
            row.require(
                said.contains(word),
                format!("{what}: it says {word:?}: {said}"),
            );
        }
        row.require(
            files(&database)? == before,
            format!("{what}: no file is changed"),
        );
        checked += 1;
    }

    // Locked by a program that is no core.
    let mut core = seeded().await?;
    let database = core.directory().join("data/runtime.db");
    // Before the lock: to read the file and close it would let go of this process's locks on it.
    let before = files(&database)?;
    let other = Connection::open(&database).context("another program")?;
    other.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")?;
    let said = refusal(&row, "locked", &mut core).await?;
    row.require(
        said.contains("locked by another process"),
        format!("locked: {said}"),
    );
    row.require(files(&database)? == before, "locked: no file is changed");
    drop(other);
    checked += 1;
    // And free again.
    core.start().await;
    core.kill().await;

    // By a second core.
    let mut first = seeded().await?;
    first.start().await;
    let database = first.directory().join("data/runtime.db");
    let text = format!("[storage]\npath = {:?}\n", database.display().to_string());
    let mut second = Home::prepare(&text, &[]);
    let said = refusal(&row, "a second core", &mut second).await?;
    row.require(
        said.contains("in use by another core")
            && said.contains(&format!("process {}", first.pid())),
        format!("a second core: {said}"),
    );
    let operator = first.operator();
    let stored = operator.store("n", "after", "1").await;
    row.require(stored.is_ok(), "the first goes on");
    first.kill().await;
    checked += 1;
    row.exactly("refused and left alone", checked, "", 8);
    row.tell("exit code", f64::from(INTERNAL), "");
    row.tell("cases", count(checked), "");
    Ok(())
}

/// A core that has run, with a database of several pages and no log.
async fn seeded() -> Result<CoreProcess> {
    let mut core = Home::prepare("", &[]);
    let operator = core.start().await;
    for number in 0..200 {
        let value = format!("\"{}\"", "x".repeat(200));
        let stored = operator.store("n", &format!("k{number}"), &value).await;
        stored.context("written")?;
    }
    core.signal(rustix::process::Signal::TERM);
    core.wait(patience()).await;
    Ok(core)
}

/// It must end by itself with its code; what it says.
async fn refusal(row: &Row, what: &str, core: &mut CoreProcess) -> Result<String> {
    let before = core.log().len();
    core.spawn();
    let status = core.wait(Duration::from_secs(20)).await;
    row.require(
        status.code() == Some(INTERNAL),
        format!("{what}: it ends with {INTERNAL}, not {status}"),
    );
    let log = core.log();
    Ok(log.get(before..).unwrap_or_default().to_owned())
}

/// Digests of the database and of its log. A log without content is none: SQLite makes an empty one
/// when it looks.
fn files(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut digests = Vec::new();
    for suffix in ["", "-wal"] {
        match std::fs::read(format!("{}{suffix}", path.display())) {
            Ok(content) if !content.is_empty() => digests.push(Sha256::digest(content).to_vec()),
            Ok(_) => digests.push(Vec::new()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => digests.push(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(digests)
}

fn overwrite(path: &Path, from: usize, bytes: usize) -> Result<()> {
    let mut content = std::fs::read(path)?;
    for byte in content.iter_mut().skip(from).take(bytes) {
        *byte = 0xAA;
    }
    Ok(std::fs::write(path, content)?)
}

fn damage_header(path: &Path) -> Result<()> {
    overwrite(path, 0, 16)
}

/// The first page's tree of tables.
fn damage_schema(path: &Path) -> Result<()> {
    overwrite(path, 100, 3_000)
}

fn foreign(path: &Path) -> Result<()> {
    std::fs::remove_file(path)?;
    let other = Connection::open(path)?;
    Ok(other.execute_batch("CREATE TABLE invoices (amount)")?)
}

fn newer(path: &Path) -> Result<()> {
    let database = Connection::open(path)?;
    database.pragma_update(None, "user_version", 99)?;
    Ok(())
}

fn vanish(path: &Path) -> Result<()> {
    std::fs::remove_file(path)?;
    Ok(std::fs::write(
        format!("{}-wal", path.display()),
        [7; 5_000],
    )?)
}
