//! 46: power is lost. What the core wrote and synced is recorded with strace; of it the disks are made that
//! a loss of power could leave: what was synced, and of the rest anything, whole, torn or not at all.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use core_server::storage::{self, Namespace, Query, Storage};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::home::Home;
use crate::measure::count;
use crate::report::Row;
use crate::tracer::Tracer;

/// Writes whose recording is played.
const WRITES: usize = 60;
/// Moments at which the power is lost, for each setting.
const LOSSES: usize = 150;
/// What a disk writes at once.
const SECTOR: usize = 512;

pub(crate) async fn lost(row: Row) -> Result<()> {
    if !Tracer::is_installed().await {
        row.skip("strace is not installed");
        return Ok(());
    }
    let mut random = StdRng::seed_from_u64(row.seed());
    for durability in ["full", "normal"] {
        let Some(recording) = Recording::make(durability).await? else {
            row.skip("processes cannot be traced here");
            return Ok(());
        };
        row.require(
            recording.acknowledged.len() == WRITES,
            format!("{durability}: all writes are acknowledged"),
        );
        let (mut lost, mut broken, mut without_loss) = (0, 0, 0);
        for _ in 0..LOSSES {
            let at = random.random_range(0..=recording.calls.len());
            let moment = recording.calls.get(at).map_or(f64::MAX, |call| call.time);
            let acknowledged = recording.acknowledged.iter();
            let acknowledged = acknowledged.filter(|time| **time < moment).count();
            let place = tempfile::tempdir().context("a directory")?;
            recording.play(at, place.path(), &mut random)?;
            match opens(&place.path().join("runtime.db")).await {
                Ok(present) => {
                    lost += acknowledged.saturating_sub(present);
                    without_loss += usize::from(present >= acknowledged);
                }
                Err(error) => {
                    broken += 1;
                    row.note(format!("{durability}: power lost at call {at}: {error:#}"));
                }
            }
        }
        row.exactly(
            &format!("{durability}: not a prefix, or not opened"),
            broken,
            "",
            0,
        );
        if durability == "full" {
            row.exactly("full: acknowledged writes lost", lost, "", 0);
        } else {
            row.tell("normal: acknowledged writes lost", count(lost), "");
            row.require(lost > 0, "normal: the recording can show a loss at all");
        }
        row.tell(&format!("{durability}: losses of power"), count(LOSSES), "");
        row.tell(
            &format!("{durability}: without loss"),
            count(without_loss),
            "",
        );
    }
    Ok(())
}

/// Opens it; the entries must be the first so many. Returns how many.
async fn opens(path: &Path) -> Result<usize> {
    let config = storage::Config::sqlite(path);
    let storage = Storage::open(config.open_adapter()?, &config)?;
    let query = Query {
        page_size: 1_000,
        ..Query::all(Namespace::parse("n")?)
    };
    let page = storage.list_keys(query).await?;
    let found: Vec<_> = page.items.iter().map(ToString::to_string).collect();
    let prefix: Vec<_> = (0..found.len())
        .map(|number| format!("k{number:03}"))
        .collect();
    storage.close().await;
    anyhow::ensure!(found == prefix, "not a prefix: {found:?}");
    Ok(found.len())
}

/// What the core did to its files, and when its writes were acknowledged.
struct Recording {
    before: BTreeMap<String, Vec<u8>>,
    calls: Vec<Call>,
    /// Seconds since 1970.
    acknowledged: Vec<f64>,
}

struct Call {
    time: f64,
    /// `runtime.db` or `runtime.db-wal`.
    file: String,
    what: What,
}

enum What {
    Write { at: usize, bytes: Vec<u8> },
    Truncate { length: usize },
    Sync,
}

impl Recording {
    async fn make(durability: &str) -> Result<Option<Self>> {
        let core_toml = format!("[storage]\ndurability = {durability:?}\n");
        let mut core = Home::prepare(&core_toml, &[]);
        let operator = core.start().await;
        let data = core.directory().join("data");
        let before = ["runtime.db", "runtime.db-wal"].map(|name| {
            (
                name.to_owned(),
                std::fs::read(data.join(name)).unwrap_or_default(),
            )
        });
        let log = core.directory().join("strace.log");
        let (database, log_file) = (data.join("runtime.db"), data.join("runtime.db-wal"));
        let arguments: [&OsStr; 13] = [
            "-ttt".as_ref(),
            "-y".as_ref(),
            "-xx".as_ref(),
            "-s".as_ref(),
            "200000".as_ref(),
            "-P".as_ref(),
            database.as_ref(),
            "-P".as_ref(),
            log_file.as_ref(),
            "-e".as_ref(),
            "trace=pwrite64,write,ftruncate,fsync,fdatasync".as_ref(),
            "-o".as_ref(),
            log.as_ref(),
        ];
        let Some(tracer) = Tracer::attach(&core, &arguments).await? else {
            core.kill().await;
            return Ok(None);
        };
        let mut acknowledged = Vec::new();
        for number in 0..WRITES {
            let value = format!("\"{}\"", "x".repeat(number * 97));
            let stored = operator.store("n", &format!("k{number:03}"), &value).await;
            stored.context("written")?;
            acknowledged.push(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
        }
        tracer.end().await?;
        core.kill().await;
        let text = std::fs::read_to_string(&log).context("its log")?;
        Ok(Some(Self {
            before: before.into(),
            calls: calls(&text)?,
            acknowledged,
        }))
    }

    /// Makes the files that are left when the power is lost before this call.
    fn play(&self, at: usize, place: &Path, random: &mut StdRng) -> Result<()> {
        let mut synced = self.before.clone();
        let mut pending: BTreeMap<&str, Vec<&What>> = BTreeMap::new();
        for call in &self.calls[..at] {
            let waiting = pending.entry(&call.file).or_default();
            match &call.what {
                What::Sync => {
                    let content = synced.entry(call.file.clone()).or_default();
                    waiting.drain(..).for_each(|what| what.apply(content, None));
                }
                change => waiting.push(change),
            }
        }
        for (file, waiting) in pending {
            let content = synced.entry(file.to_owned()).or_default();
            for what in waiting {
                // Each by itself, in any order as far as that matters: kept, torn at a sector, dropped.
                match random.random_range(0..3) {
                    0 => what.apply(content, None),
                    1 => what.apply(content, Some(random)),
                    _ => {}
                }
            }
        }
        for (file, content) in synced {
            std::fs::write(place.join(file), content)?;
        }
        Ok(())
    }
}

impl What {
    fn apply(&self, content: &mut Vec<u8>, tear: Option<&mut StdRng>) {
        match self {
            Self::Write { at, bytes } => {
                let sectors = bytes.len() / SECTOR;
                let kept = match tear {
                    Some(random) if sectors > 0 => random.random_range(0..=sectors) * SECTOR,
                    _ => bytes.len(),
                };
                if content.len() < at + kept {
                    content.resize(at + kept, 0);
                }
                content[*at..at + kept].copy_from_slice(&bytes[..kept]);
            }
            Self::Truncate { length } => content.resize(*length, 0),
            Self::Sync => {}
        }
    }
}

/// Reads strace's log: `PID TIME CALL(FD<PATH>, …) = RESULT`. Calls in two halves are put together where
/// they end.
fn calls(text: &str) -> Result<Vec<Call>> {
    let mut begun: BTreeMap<&str, String> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        let whole = if let Some(first) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(pid, first.to_owned());
            continue;
        } else if rest.starts_with("<... ") {
            let first = begun.remove(pid).unwrap_or_default();
            let last = rest.split_once("resumed>").map_or("", |(_, last)| last);
            format!("{first}{last}")
        } else {
            rest.to_owned()
        };
        // What failed did nothing; exits and signals are no calls.
        let failed = whole.contains("= -1");
        let Some((name, arguments)) = whole.split_once('(').filter(|_| !failed) else {
            continue;
        };
        let Some(file) = arguments.split(['<', '>']).nth(1).map(unescape) else {
            continue;
        };
        let file = PathBuf::from(String::from_utf8_lossy(&file).into_owned());
        let file = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let number = |text: Option<&str>| -> Result<usize> {
            let text = text.context("an argument")?;
            let digits: String = text
                .trim()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            digits
                .parse()
                .with_context(|| format!("a number in {text:?}"))
        };
        let what = match name {
            "fsync" | "fdatasync" => What::Sync,
            "ftruncate" => What::Truncate {
                length: number(arguments.split(", ").nth(1))?,
            },
            "pwrite64" => {
                let (_, rest) = arguments.split_once('"').context("what is written")?;
                let (bytes, rest) = rest.split_once('"').context("its end")?;
                if rest.starts_with("...") {
                    bail!("strace cut a write short");
                }
                What::Write {
                    at: number(rest.split(", ").nth(2))?,
                    bytes: unescape(bytes),
                }
            }
            _ => continue,
        };
        let time = time.parse().context("a time")?;
        calls.push(Call { time, file, what });
    }
    Ok(calls)
}

/// `\x41\x42`, as `-xx` writes everything; what is not so stands for itself.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4);
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        let hex = others.strip_prefix(b"x").and_then(|hex| hex.get(..2));
        let byte = hex.and_then(|hex| std::str::from_utf8(hex).ok());
        match byte.map(|hex| u8::from_str_radix(hex, 16)) {
            Some(Ok(byte)) if *first == b'\\' => {
                bytes.push(byte);
                rest = &others[3..];
            }
            _ => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
}
