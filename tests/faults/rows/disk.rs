//! 44, 45: the disk is full; the disk fails to sync.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use core_tests::{Client, CoreProcess, Told, patience};
use rusqlite::Connection;
use tokio::process::Command;
use tokio::time::Instant;
use tonic::Code;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::{count, ms};
use crate::report::Row;
use crate::tracer::Tracer;

/// Size of the file system that is filled.
const DISK: &str = "64m";
/// Size of one that the database fills by itself.
const SMALL_DISK: &str = "28m";
/// A value that needs room.
const LARGE_BYTES: usize = 100_000;
/// Writes that are tried on the full disk.
const TRIES: usize = 20;

pub(crate) async fn full(row: Row) -> Result<()> {
    let place = tempfile::tempdir().context("a directory")?;
    let Some(disk) = Disk::mount(place.path(), DISK).await else {
        row.skip("no file system can be mounted here");
        return Ok(());
    };
    let database = disk.path.join("runtime.db");
    let core_toml = format!("[storage]\npath = {:?}\n", database.display().to_string());
    let mut home = Home::start_with(&core_toml, &[plugin("lamp", ECHO, &[])]).await;
    let before = home.all_ready(&["lamp"]).await[0].clone();
    let (mut refused, mut recoveries) = (0, Vec::new());
    let large = format!("\"{}\"", "x".repeat(LARGE_BYTES));
    // Full while the log is long, and while the log is empty: the next start begins with none.
    for (what, written) in [("a long log", 30), ("an empty log", 0), ("a short log", 1)] {
        for number in 0..40 {
            let small = home
                .operator
                .store("n", &format!("small.{number}"), "1")
                .await;
            small.context("there is room")?;
        }
        for number in 0..written {
            let stored = home
                .operator
                .store("n", &format!("l{number}"), &large)
                .await;
            stored.context("there is room")?;
        }
        disk.fill()?;
        for number in 0..TRIES {
            let stored = home
                .operator
                .store("n", &format!("more.{number}"), &large)
                .await;
            if let Err(status) = stored {
                let told = Told::by(&status);
                row.require(
                    told.reason == "DISK_LOW" && told.outcome == "not_applied",
                    format!("{what}: a write without room is refused as such: {told:?}"),
                );
                refused += 1;
            }
        }
        let read = home.operator.stored("n", "small.1").await;
        row.require(read.is_ok(), format!("{what}: reads go on: {read:?}"));
        let mut kept = 0;
        for number in 0..40 {
            let deleted = delete(&home.operator, &format!("small.{number}")).await;
            if let Err(status) = deleted {
                kept += 1;
                row.broken(format!("{what}: a delete: {}", status.message()));
            }
        }
        row.exactly(&format!("{what}: deletes refused"), kept, "", 0);
        let freed = Instant::now();
        disk.free()?;
        let deadline = freed + patience();
        while let Err(status) = home.operator.store("n", "again", &large).await {
            row.require(
                Instant::now() < deadline,
                format!("{what}: it recovers by itself: {status}"),
            );
            if Instant::now() > deadline {
                break;
            }
        }
        recoveries.push(ms(freed.elapsed()));
    }
    row.at_least("writes refused", count(refused), "", 3.0);
    let worst = recoveries.iter().copied().fold(0.0, f64::max);
    row.at_most("recovery, worst", worst, "ms", 1_000.0);
    let after = home.operator.plugin("lamp").await;
    row.require(
        (after.pid, after.generation) == (before.pid, before.generation),
        "the plugin stays up",
    );

    // A core that has to start on a full disk.
    disk.fill()?;
    home.core().kill().await;
    let operator = home.core().start().await;
    let read = operator.stored("n", "again").await;
    row.require(
        matches!(read, Ok(Some(_))),
        "started on a full disk: it reads",
    );
    let refused = operator.store("n", "more", &large).await;
    let refused = refused.map_err(|status| Told::by(&status).reason);
    row.require(
        refused.as_ref().is_err_and(|reason| reason == "DISK_LOW"),
        format!("started on a full disk: it refuses what needs room: {refused:?}"),
    );
    let deleted = delete(&operator, "again").await;
    row.require(
        matches!(deleted, Ok(true)),
        format!("started on a full disk: it deletes: {deleted:?}"),
    );
    disk.free()?;
    let again = operator.store("n", "again", &large).await;
    row.require(
        again.is_ok(),
        format!("and works again when freed: {again:?}"),
    );
    home.stop(&row).await;
    no_room_to_migrate(&row, &disk, &database).await?;
    drop(disk);
    all_deleted(&row).await?;
    over_quota(&row).await
}

/// The database itself fills the disk. Then deletes are all that can make room, and they must do: with a
/// reserve, and where somebody removed it and took its place.
async fn all_deleted(row: &Row) -> Result<()> {
    let place = tempfile::tempdir().context("a directory")?;
    let Some(disk) = Disk::mount(place.path(), SMALL_DISK).await else {
        row.skip_part("no second file system can be mounted here");
        return Ok(());
    };
    let database = disk.path.join("runtime.db");
    let core_toml = format!("[storage]\npath = {:?}\n", database.display().to_string());
    let mut core = Home::prepare(&core_toml, &[]);
    let operator = core.start().await;
    let large = format!("\"{}\"", "x".repeat(LARGE_BYTES));
    for what in ["with a reserve", "without a reserve"] {
        if what == "without a reserve" {
            // A database that has grown over all of the disk leaves no room for one.
            match std::fs::remove_file(beside(&database, ".reserve")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            disk.fill_but(1 << 20)?;
        }
        let mut written = 0;
        let refused = loop {
            match operator.store("n", &format!("l{written}"), &large).await {
                Ok(_) => written += 1,
                Err(status) => break Told::by(&status),
            }
        };
        row.require(
            refused.reason == "DISK_LOW" && written > 20,
            format!("{what}: the disk is full after {written} writes: {refused:?}"),
        );
        let drop = core_proto::v1::StorageAdminDropNamespaceRequest {
            namespace: "n".to_owned(),
        };
        let dropped = operator.storage_admin().drop_namespace(drop).await;
        let dropped = dropped.map(|answer| answer.into_inner().removed);
        row.require(
            matches!(dropped, Ok(removed) if removed == written),
            format!("{what}: all is deleted: {dropped:?}, of {written}"),
        );
        let again = operator.store("m", "again", "1").await;
        row.require(
            again.is_ok(),
            format!("{what}: it works again when all is deleted: {again:?}"),
        );
    }
    core.kill().await;
    Ok(())
}

/// An older core's database, on a disk without room for the copy that is made before it is changed.
async fn no_room_to_migrate(row: &Row, disk: &Disk, database: &Path) -> Result<()> {
    let older = Connection::open(database).context("the database")?;
    // As far as it matters here: what a core sees first.
    older.pragma_update(None, "user_version", 2)?;
    drop(older);
    let before = std::fs::read(database).context("read")?;
    // The reserve is no room: it is given up for the log.
    disk.fill()?;
    let core_toml = format!("[storage]\npath = {:?}\n", database.display().to_string());
    let mut core = Home::prepare(&core_toml, &[]);
    core.spawn();
    let status = core.wait(patience()).await;
    row.require(
        status.code() == Some(70) && core.log().contains("no room for the copy"),
        format!("no room to migrate: it says so and ends: {status}"),
    );
    row.require(
        std::fs::read(database).context("read")? == before,
        "no room to migrate: the database is as it was",
    );
    row.require(
        !beside(database, ".2.bak").exists() && !beside(database, ".2.bak.tmp").exists(),
        "no room to migrate: no half copy",
    );
    disk.free()?;
    core.start().await;
    row.require(
        beside(database, ".2.bak").exists(),
        "with room it migrates, after a copy",
    );
    core.kill().await;
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// A quota of the file system, as SQLite sees it: an I/O error like any other. Nobody has a quota here, so
/// strace plays one.
async fn over_quota(row: &Row) -> Result<()> {
    if !Tracer::is_installed().await {
        row.skip_part("quota: strace is not installed");
        return Ok(());
    }
    let mut core = Home::prepare("", &[]);
    let operator = core.start().await;
    let stored = operator.store("n", "before", "1").await;
    stored.context("there is room")?;
    let mut watch = Watch::begin(&operator).await?;
    let arguments: [&OsStr; 4] = [
        "-e".as_ref(),
        "trace=pwrite64,fallocate".as_ref(),
        "-e".as_ref(),
        "inject=pwrite64,fallocate:error=EDQUOT".as_ref(),
    ];
    let Some(tracer) = Tracer::attach(&core, &arguments).await? else {
        row.skip_part("quota: processes cannot be traced here");
        core.kill().await;
        return Ok(());
    };
    for number in 0..3 {
        let refused = operator.store("n", &format!("k{number}"), "1").await;
        let told = refused.map_err(|status| Told::by(&status));
        row.require(
            told.as_ref().is_err_and(|told| {
                (told.reason.as_str(), told.outcome.as_str()) == ("DISK_LOW", "not_applied")
            }),
            format!("quota: a write without room is refused as such: {told:?}"),
        );
    }
    let read = operator.stored("n", "k0").await;
    row.require(
        matches!(read, Ok(None)),
        format!("quota: reads go on: {read:?}"),
    );
    tracer.end().await?;
    let again = operator.store("n", "after", "1").await;
    row.require(again.is_ok(), format!("quota: it recovers: {again:?}"));
    row.require(
        watch.hears("after").await,
        "quota: nothing was opened anew, watches go on",
    );
    core.kill().await;
    Ok(())
}

async fn delete(operator: &Client, key: &str) -> Result<bool, tonic::Status> {
    let request = core_proto::v1::StorageDeleteRequest {
        namespace: "n".to_owned(),
        key: key.to_owned(),
        ..Default::default()
    };
    let answer = operator.storage().delete(request).await?;
    Ok(answer.into_inner().existed)
}

/// A small file system of its own. Dropping it takes it away.
struct Disk {
    path: PathBuf,
}

impl Disk {
    async fn mount(path: &Path, size: &str) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={size},mode=700"))
            .arg("core-faults")
            .arg(path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        let mounted = mounted.is_ok_and(|status| status.success());
        let path = path.to_owned();
        mounted.then_some(Self { path })
    }

    /// Leaves no room at all.
    fn fill(&self) -> Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.path.join("filler")).context("a file")?;
        for piece in [&[1; 1 << 16][..], &[1; 512]] {
            while file.write_all(piece).is_ok() {}
        }
        Ok(())
    }

    /// Leaves so much room.
    fn fill_but(&self, bytes: u64) -> Result<()> {
        self.fill()?;
        let filler = std::fs::File::options()
            .write(true)
            .open(self.path.join("filler"))
            .context("a file")?;
        let length = filler.metadata().context("its length")?.len();
        filler
            .set_len(length.saturating_sub(bytes))
            .context("some room")
    }

    fn free(&self) -> Result<()> {
        std::fs::remove_file(self.path.join("filler")).context("room again")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmount = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .status();
        if !unmount.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path.display());
        }
    }
}

/// The failing calls of row 45, counted from the moment at which it begins.
const NTH: [u32; 6] = [1, 2, 3, 5, 8, 13];
/// Writes of each round.
const WRITES: u64 = 20;

pub(crate) async fn unsynced(row: Row) -> Result<()> {
    if !Tracer::is_installed().await {
        row.skip("strace is not installed");
        return Ok(());
    }
    let mut core = Home::prepare("", &[]);
    let mut operator = core.start().await;
    let (mut injected, mut unknown, mut false_acks, mut later) = (0, 0, 0, 0);
    for nth in NTH {
        let mut watch = Watch::begin(&operator).await?;
        let Some(tracer) = fail_sync(&core, nth).await? else {
            row.skip("processes cannot be traced here");
            core.kill().await;
            return Ok(());
        };
        let (mut failed, mut acknowledged) = (0, 0);
        for number in 0..WRITES {
            match operator.store("n", "k", &format!("{nth}{number:03}")).await {
                Ok(_) => acknowledged = number,
                Err(status) => {
                    let told = Told::by(&status);
                    row.require(
                        told.code == Code::Unavailable
                            && (told.reason.as_str(), told.outcome.as_str())
                                == ("STORAGE_FAILED", "unknown"),
                        format!("the outcome is said to be unknown: {told:?}"),
                    );
                    row.require(
                        told.message.contains("I/O error") || told.message.contains("os error 5"),
                        format!("with its cause: {}", told.message),
                    );
                    failed += 1;
                }
            }
        }
        let lines = tracer.end().await?;
        let failures = lines.iter().filter(|line| line.contains("(INJECTED)"));
        let of_log = failures.clone().filter(|line| line.contains("-wal"));
        injected += failures.count();
        unknown += failed;
        false_acks += of_log.count().saturating_sub(failed);
        if failed > 0 {
            let end = watch.end().await;
            row.require(
                end.as_ref().is_some_and(|told| told.reason == "COMPACTED"),
                format!("watches end COMPACTED: {end:?}"),
            );
        }
        // Whatever became of the failed one, the later ones stand: in the files, not in the cache.
        core.kill().await;
        operator = core.start().await;
        let stored = operator.stored("n", "k").await.context("read")?;
        let newest = format!("{nth}{acknowledged:03}");
        later += usize::from(stored.as_deref() < Some(newest.as_str()));
    }
    row.exactly("false acknowledgements", false_acks, "", 0);
    row.exactly("later acknowledgements lost", later, "", 0);
    row.tell("failed syncs", count(injected), "");
    row.tell("writes whose outcome was unknown", count(unknown), "");
    row.require(unknown > 0, "a sync of the log failed at least once");
    core.kill().await;
    Ok(())
}

/// Lets the Nth sync of the database or its log fail.
async fn fail_sync(core: &CoreProcess, nth: u32) -> Result<Option<Tracer>> {
    let database = core.directory().join("data/runtime.db");
    let log = core.directory().join("data/runtime.db-wal");
    let inject = format!("inject=fsync,fdatasync:error=EIO:when={nth}");
    let arguments: [&OsStr; 9] = [
        "-y".as_ref(),
        "-P".as_ref(),
        database.as_ref(),
        "-P".as_ref(),
        log.as_ref(),
        "-e".as_ref(),
        "trace=fsync,fdatasync".as_ref(),
        "-e".as_ref(),
        inject.as_ref(),
    ];
    Tracer::attach(core, &arguments).await
}

/// A watch of the namespace.
struct Watch {
    stream: tonic::Streaming<core_proto::v1::StorageWatchResponse>,
}

impl Watch {
    async fn begin(operator: &Client) -> Result<Self> {
        let request = core_proto::v1::StorageWatchRequest {
            namespace: "n".to_owned(),
            ..Default::default()
        };
        let mut client = operator.another_connection().storage();
        let mut stream = client.watch(request).await.context("a watch")?.into_inner();
        stream.message().await.context("it begins")?;
        Ok(Self { stream })
    }

    /// Reads on until a key is told.
    async fn hears(&mut self, key: &str) -> bool {
        let reading = async {
            while let Ok(Some(message)) = self.stream.message().await {
                let entries = message.changes.iter().flat_map(|change| &change.entry);
                if entries.into_iter().any(|entry| entry.key == key) {
                    return true;
                }
            }
            false
        };
        tokio::time::timeout(patience(), reading)
            .await
            .unwrap_or(false)
    }

    /// Why it ended.
    async fn end(&mut self) -> Option<Told> {
        let reading = async {
            loop {
                match self.stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(Told::by(&status)),
                }
            }
        };
        tokio::time::timeout(patience(), reading).await.ok()?
    }
}
