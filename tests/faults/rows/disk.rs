//! 44, 45: the disk is full; the disk fails to sync.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::{Client, CoreProcess, Told, patience};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tonic::Code;

use crate::ECHO;
use crate::home::{Home, plugin};
use crate::measure::{count, ms};
use crate::report::Row;

/// Size of the file system that is filled.
const DISK: &str = "64m";
/// A value that needs room.
const LARGE_BYTES: usize = 100_000;
/// Writes that are tried on the full disk.
const TRIES: usize = 20;

pub(crate) async fn full(row: Row) -> Result<()> {
    let place = tempfile::tempdir().context("a directory")?;
    let Some(disk) = Disk::mount(place.path()).await else {
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
    drop(disk);
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
    async fn mount(path: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={DISK},mode=700"))
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
    if Command::new("strace").arg("-V").output().await.is_err() {
        row.skip("strace is not installed");
        return Ok(());
    }
    let mut core = Home::prepare("", &[]);
    let mut operator = core.start().await;
    let (mut injected, mut unknown, mut false_acks, mut later) = (0, 0, 0, 0);
    for nth in NTH {
        let mut watch = Watch::begin(&operator).await?;
        let Some(tracer) = Tracer::attach(&core, nth).await? else {
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
        let (all, of_log) = tracer.end().await?;
        injected += all;
        unknown += failed;
        false_acks += of_log.saturating_sub(failed);
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

/// strace on a running core, failing one sync of its database or log.
struct Tracer {
    child: Child,
    lines: tokio::task::JoinHandle<Vec<String>>,
}

impl Tracer {
    /// None: it may not be traced.
    async fn attach(core: &CoreProcess, nth: u32) -> Result<Option<Self>> {
        let database = core.directory().join("data/runtime.db");
        let log = core.directory().join("data/runtime.db-wal");
        let mut child = Command::new("strace")
            .args(["-f", "-y", "-P"])
            .arg(&database)
            .arg("-P")
            .arg(&log)
            .args(["-e", "trace=fsync,fdatasync", "-e"])
            .arg(format!("inject=fsync,fdatasync:error=EIO:when={nth}"))
            .args(["-p", &core.pid().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("strace")?;
        let stderr = child.stderr.take().context("its output")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut attached = false;
        let begin = async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("attached") {
                    attached = true;
                    return;
                }
            }
        };
        let began = tokio::time::timeout(patience(), begin).await;
        if began.is_err() || !attached {
            return Ok(None);
        }
        let lines = tokio::spawn(async move {
            let mut injected = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains("(INJECTED)") {
                    injected.push(line);
                }
            }
            injected
        });
        Ok(Some(Self { child, lines }))
    }

    /// How many syncs it let fail, and how many of these were of the log.
    async fn end(mut self) -> Result<(usize, usize)> {
        let pid = self.child.id().context("it runs")?;
        core_tests::signal(pid, rustix::process::Signal::INT);
        let ended = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        ended.context("strace ends")?.context("its own child")?;
        let lines = self.lines.await.context("its output")?;
        let of_log = lines.iter().filter(|line| line.contains("-wal"));
        Ok((lines.len(), of_log.count()))
    }
}
