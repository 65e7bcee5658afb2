//! 42, 43: the core is killed while it writes; the log of its database is torn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::{self, storage_op::Op};
use core_server::storage::{self, Namespace, Query, Storage};
use core_tests::{Client, patience};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;

use crate::home::Home;
use crate::measure::{count, percentile};
use crate::report::Row;

/// How often the core is killed.
const KILLS: usize = 200;
/// Writers at once; several share one transaction.
const WRITERS: usize = 8;
/// The namespace of the ledger.
const LEDGER: &str = "ledger";

/// Of each writer the number of the last acknowledged write, and of the last one that was sent.
type Account = Arc<Mutex<BTreeMap<usize, (u64, u64)>>>;

pub(crate) async fn killed(row: Row) -> Result<()> {
    let mut random = StdRng::seed_from_u64(row.seed());
    let mut core = Home::prepare("", &[]);
    let database = core.directory().join("data/runtime.db");
    let account = Account::default();
    let mut reopenings = Vec::new();
    let (mut lost, mut halves, mut broken, mut acknowledged) = (0, 0, 0, 0);
    for _ in 0..KILLS {
        let began = Instant::now();
        let operator = core.start().await;
        reopenings.push(began.elapsed());
        let found = check(&operator, &account).await?;
        lost += found.lost;
        halves += found.halves;
        broken += usize::from(!is_whole(&database)?);
        let goal = acknowledged_by(&account) + random.random_range(5..60);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write(operator.clone(), writer, Arc::clone(&account))))
            .collect();
        let deadline = Instant::now() + patience();
        while acknowledged_by(&account) < goal && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(random.random_range(0..5_000))).await;
        core.kill().await;
        for writer in writers {
            let ended = tokio::time::timeout(patience(), writer).await;
            ended.context("a writer notices")?.context("its task")??;
        }
        acknowledged = acknowledged_by(&account);
    }
    let operator = core.start().await;
    let found = check(&operator, &account).await?;
    lost += found.lost;
    halves += found.halves;
    broken += usize::from(!is_whole(&database)?);
    row.exactly("acknowledged writes lost", lost, "", 0);
    row.exactly("half transactions", halves, "", 0);
    row.exactly("failed integrity checks", broken, "", 0);
    row.exactly("kills", reopenings.len(), "", KILLS);
    row.tell(
        "writes acknowledged",
        count(usize::try_from(acknowledged)?),
        "",
    );
    row.tell("start to serving p50", percentile(&reopenings, 50), "ms");
    row.tell("start to serving p99", percentile(&reopenings, 99), "ms");
    core.kill().await;
    Ok(())
}

fn acknowledged_by(account: &Account) -> u64 {
    let account = account.lock().expect("no panic inside");
    account.values().map(|(acknowledged, _)| acknowledged).sum()
}

/// Writes two halves of one number at a time until it is refused. What is sent and what is acknowledged
/// is noted before and after.
async fn write(operator: Client, writer: usize, account: Account) -> Result<()> {
    loop {
        let number = {
            let mut account = account.lock().expect("no panic inside");
            let (_, sent) = account.entry(writer).or_default();
            *sent += 1;
            *sent
        };
        let half = |name: &str| v1::StorageOp {
            op: Some(Op::Set(v1::StorageOpSet {
                key: format!("{writer}.{name}"),
                value: number.to_string().into(),
                ..Default::default()
            })),
        };
        let request = v1::StorageApplyRequest {
            namespace: LEDGER.to_owned(),
            ops: vec![half("one"), half("other")],
            ..Default::default()
        };
        if operator.storage().apply(request).await.is_err() {
            return Ok(());
        }
        let mut account = account.lock().expect("no panic inside");
        account.entry(writer).or_default().0 = number;
    }
}

struct Found {
    lost: usize,
    halves: usize,
}

/// What is there of each writer is what was acknowledged, or a later one that was sent.
async fn check(operator: &Client, account: &Account) -> Result<Found> {
    let mut found = Found { lost: 0, halves: 0 };
    let known = account.lock().expect("no panic inside").clone();
    for (writer, (acknowledged, sent)) in known {
        let mut values = Vec::new();
        for half in ["one", "other"] {
            let stored = operator.stored(LEDGER, &format!("{writer}.{half}")).await;
            let stored = stored.context("read")?;
            values.push(stored.map_or(Ok(0), |text| text.parse::<u64>())?);
        }
        found.halves += usize::from(values[0] != values[1]);
        found.lost += usize::from(!(acknowledged..=sent).contains(&values[0]));
        // What was unknown is decided now, and the next one is counted from there.
        let mut account = account.lock().expect("no panic inside");
        account.insert(writer, (values[0], values[0].max(sent)));
    }
    Ok(found)
}

/// As a person would look, while the core has it open.
fn is_whole(database: &Path) -> Result<bool> {
    let database = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |found| found.get(0))?;
    Ok(verdict == "ok")
}

/// Entries of row 43, each of a transaction of its own.
const ENTRIES: usize = 24;
/// Of a frame in the log: its header and a page.
const FRAME: usize = 24 + 4_096;
/// Of the log.
const LOG_HEADER: usize = 32;
/// Flipped bytes, each in a copy of its own.
const FLIPS: usize = 150;

pub(crate) async fn torn(row: Row) -> Result<()> {
    let mut random = StdRng::seed_from_u64(row.seed());
    let mut core = Home::prepare("", &[]);
    let operator = core.start().await;
    for number in 0..ENTRIES {
        let long = format!("\"{}\"", "x".repeat(number * 300));
        let stored = operator.store("n", &format!("k{number:02}"), &long).await;
        stored.context("written")?;
    }
    core.kill().await;
    let data = core.directory().join("data");
    let database = std::fs::read(data.join("runtime.db")).context("the database")?;
    let log = std::fs::read(data.join("runtime.db-wal")).context("its log")?;
    row.require(
        log.len() > LOG_HEADER + ENTRIES * FRAME,
        "all is in the log",
    );

    let mut torn = Vec::new();
    for start in (LOG_HEADER..=log.len()).step_by(FRAME) {
        for inside in [0, 1, 24, 25, 512, 2_000, FRAME - 1] {
            let cut = (start + inside).min(log.len());
            torn.push(log[..cut].to_vec());
            // What some file systems leave behind: the length without the bytes.
            let mut hollow = log[..cut].to_vec();
            hollow.resize(log.len(), 0);
            torn.push(hollow);
        }
    }
    torn.extend([0, 1, LOG_HEADER - 1].map(|cut| log[..cut].to_vec()));
    for _ in 0..FLIPS {
        let mut flipped = log.clone();
        let at = random.random_range(0..flipped.len());
        flipped[at] ^= 1 << random.random_range(0..8);
        torn.push(flipped);
    }
    let place = tempfile::tempdir().context("a directory")?;
    let mut revisions = Vec::new();
    for (index, log) in torn.iter().enumerate() {
        let path = place.path().join(format!("{index}/runtime.db"));
        lay(&path, &database, log)?;
        match opens(&path).await {
            Ok(revision) => revisions.push(revision),
            Err(error) => row.broken(format!("copy {index} of {}: {error:#}", torn.len())),
        }
        std::fs::remove_dir_all(path.parent().context("its own")?).context("removed")?;
    }
    row.exactly("opened to a prefix", revisions.len(), "", torn.len());
    row.tell("prefixes checked", count(torn.len()), "");
    let all = u64::try_from(ENTRIES)?;
    row.require(
        revisions.iter().max() == Some(&all) && revisions.iter().min() < Some(&3),
        "from almost nothing to all",
    );

    // The same with the core itself, and what its callers see.
    for _ in 0..6 {
        let log = &torn[random.random_range(0..torn.len())];
        lay(&data.join("runtime.db"), &database, log)?;
        let operator = core.start().await;
        let mut present = 0;
        for number in 0..ENTRIES {
            let stored = operator.stored("n", &format!("k{number:02}")).await;
            match stored {
                Ok(Some(_)) if present == number => present += 1,
                Ok(None) => {}
                other => row.broken(format!("k{number:02} after {present}: {other:?}")),
            }
        }
        let next = operator.store("n", "next", "1").await;
        row.require(next.is_ok(), format!("it goes on: {next:?}"));
        core.kill().await;
    }
    Ok(())
}

fn lay(path: &Path, database: &[u8], log: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a directory")?)?;
    std::fs::write(path, database)?;
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    std::fs::write(beside("-wal"), log)?;
    match std::fs::remove_file(beside("-shm")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Opens it, asks that the first so many entries are there and no others, and that it goes on. Returns
/// how many.
async fn opens(path: &Path) -> Result<u64> {
    let config = storage::Config::sqlite(path);
    let storage = Storage::open(config.open_adapter()?, &config)?;
    let namespace = Namespace::parse("n")?;
    let page = storage.list_keys(Query::all(namespace.clone())).await?;
    let found: Vec<_> = page.items.iter().map(ToString::to_string).collect();
    let prefix = (0..page.revision.0).map(|number| format!("k{number:02}"));
    let prefix: Vec<String> = prefix.collect();
    anyhow::ensure!(found == prefix, "revision {} with {found:?}", page.revision);
    let key = storage::Key::parse("next")?;
    let deadline = Instant::now() + patience();
    let written = storage
        .set(&namespace, key, "1".into(), None, deadline)
        .await?;
    anyhow::ensure!(
        written.revision.0 == page.revision.0 + 1,
        "a revision twice"
    );
    storage.close().await;
    Ok(page.revision.0)
}
