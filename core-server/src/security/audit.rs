//! The audit log: who was let in, who was not, who changed what others may do. `audit.jsonl`, one JSON
//! object a line: time, id, action, decision, and what is known of who, what and why. Never a value, never
//! a secret.
//!
//! A thread of its own writes: nobody who asks for something waits for the disk. When it is full (1,024
//! records wait) records are dropped and counted, and the next line says how many. Denials of one plugin
//! beyond 10 a second are counted and told in one line. At 8 MiB the file becomes `audit.1.jsonl`, and so
//! on up to 4.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::identity::Caller;
use crate::types::Source;

/// Records that wait for the disk.
const QUEUE: usize = 1_024;
/// A file of this size is put aside.
const FILE_BYTES: u64 = 8 << 20;
/// Longest resource, in characters.
const MAX_RESOURCE_CHARS: usize = 300;
/// Files that are kept beside the one in use.
const OLD_FILES: u32 = 4;
/// Denials of one caller in a second that are told one by one.
const DENIALS_A_SECOND: u32 = 10;
/// Callers whose denials are counted apart; those beyond are counted together.
const CALLERS: usize = 256;
const SECOND: Duration = Duration::from_secs(1);

/// What happened. Fields that are not known are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// What was asked for or done: "publish", "Access/CreateToken", "join".
    pub action: String,
    /// "allowed", "denied", "would_be_denied".
    pub decision: &'static str,
    /// The request that it belongs to; several records of one have the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// The operator that asked: "uid 1000", "token 5d41402a (laptop)".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    /// The plugin that asked; where an operator did, the one that it is about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub plugin: String,
    /// Its run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Where it came from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// Topic, service, key, namespace, credential's id, permission, file; where a plugin manages another, that.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// What decided: "not_granted", "deny", "reserved", a reason of error.proto; of what was allowed
    /// "operator" or "manage".
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// So many more of this caller's were not told one by one.
    #[serde(skip_serializing_if = "is_zero")]
    pub suppressed: u64,
}

impl Record {
    /// Of what a caller does with a plugin, or with something else. Without a decision.
    #[must_use]
    pub fn of(caller: &Caller, action: &str, plugin: &str, resource: &str) -> Self {
        let mut record = Self {
            action: action.to_owned(),
            request: caller.request.to_string(),
            operator: caller.operator.as_deref().unwrap_or_default().to_owned(),
            plugin: plugin.to_owned(),
            peer: caller
                .peer
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            resource: cut(resource),
            rule: "operator".to_owned(),
            ..Self::default()
        };
        if let Source::Plugin(own) = &caller.source {
            "manage".clone_into(&mut record.rule);
            let about = std::mem::replace(&mut record.plugin, own.to_string());
            if record.resource.is_empty() {
                record.resource = cut(&about);
            }
            record.generation = caller.run.as_ref().map(|run| run.generation().0);
        }
        record
    }
}

/// Whatever somebody sends, a line stays a line.
fn cut(text: &str) -> String {
    text.chars().take(MAX_RESOURCE_CHARS).collect()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What decided, in the three words that there are.
pub mod decision {
    /// It was done.
    pub const ALLOWED: &str = "allowed";
    /// It was refused.
    pub const DENIED: &str = "denied";
    /// It was done, and would be refused under `security.mode = "enforce"`.
    pub const WOULD_BE_DENIED: &str = "would_be_denied";
}

/// The audit log. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    queue: SyncSender<(SystemTime, u64, Record)>,
    next_id: AtomicU64,
    dropped: AtomicU64,
    /// Short lock: no await, no I/O inside.
    denials: Mutex<Denials>,
}

impl Audit {
    /// A log that keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// A log in this directory. The thread ends with the last handle, when everything is written.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(directory: &Path) -> io::Result<Self> {
        let (queue, records) = sync_channel(QUEUE);
        let mut file = Rotating::new(directory);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || write_all(&records, &mut file))?;
        let inner = Inner {
            queue,
            next_id: AtomicU64::new(1),
            dropped: AtomicU64::new(0),
            denials: Mutex::default(),
        };
        Ok(Self {
            inner: Some(Arc::new(inner)),
        })
    }

    /// Notes what a caller is about to do who may: an operator, or a plugin that manages. Before it is done,
    /// so that it is on record even if it ends the core. Never waits.
    pub fn note_allowed(&self, caller: &Caller, action: &str, plugin: &str, resource: &str) {
        self.note(Record {
            decision: decision::ALLOWED,
            ..Record::of(caller, action, plugin, resource)
        });
    }

    /// Notes what happened; never waits.
    pub fn note(&self, record: Record) {
        let Some(inner) = &self.inner else { return };
        let record = if record.decision == decision::ALLOWED {
            Some(record)
        } else {
            inner.denials.lock().judge(record, Instant::now())
        };
        let Some(mut record) = record else { return };
        record.suppressed += inner.dropped.swap(0, Ordering::Relaxed);
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let suppressed = record.suppressed;
        match inner.queue.try_send((SystemTime::now(), id, record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                inner.dropped.fetch_add(1 + suppressed, Ordering::Relaxed);
            }
        }
    }
}

/// Which denials are told: pure.
#[derive(Debug, Default)]
struct Denials {
    by_caller: HashMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    told: u32,
    untold: u64,
}

impl Denials {
    /// The record, if it is to be told; with those that were not since the last one.
    fn judge(&mut self, mut record: Record, now: Instant) -> Option<Record> {
        let caller = match record.plugin.as_str() {
            "" => &record.peer,
            plugin => plugin,
        };
        // A port is another one with each connection.
        let caller = caller
            .rsplit_once(':')
            .map_or(caller.as_ref(), |(host, _)| host);
        if self.by_caller.len() >= CALLERS && !self.by_caller.contains_key(caller) {
            self.forget_those_at_rest(now);
        }
        // Plugins are few and have a credential each: strangers do not hide them.
        let is_apart = !record.plugin.is_empty()
            || self.by_caller.len() < CALLERS
            || self.by_caller.contains_key(caller);
        let key = if is_apart { caller } else { "" };
        let window = self.by_caller.entry(key.to_owned()).or_insert(Window {
            since: now,
            told: 0,
            untold: 0,
        });
        if now.saturating_duration_since(window.since) >= SECOND {
            window.since = now;
            window.told = 0;
        }
        if window.told >= DENIALS_A_SECOND {
            window.untold += 1;
            return None;
        }
        window.told += 1;
        record.suppressed += std::mem::take(&mut window.untold);
        Some(record)
    }

    /// Who came once must not take the place of all who come later. What was not told of them is told
    /// with those that are counted together.
    fn forget_those_at_rest(&mut self, now: Instant) {
        let mut untold = 0;
        self.by_caller.retain(|_, window| {
            let rests = now.saturating_duration_since(window.since) >= SECOND;
            untold += if rests { window.untold } else { 0 };
            !rests
        });
        if untold > 0 {
            let together = self.by_caller.entry(String::new()).or_insert(Window {
                since: now,
                told: 0,
                untold: 0,
            });
            together.untold += untold;
        }
    }
}

/// Notes something that was done while no core ran, and waits for the disk. Only where a core has kept its
/// secrets before.
///
/// # Errors
/// It could not be written.
pub fn note_offline(directory: &Path, record: &Record) -> io::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let line = line(SystemTime::now(), 0, record)?;
    let mut log = Rotating::new(directory);
    log.write(&line)
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    id: u64,
    #[serde(flatten)]
    record: &'a Record,
}

fn line(time: SystemTime, id: u64, record: &Record) -> io::Result<Vec<u8>> {
    let time = jiff::Timestamp::try_from(time);
    let line = Line {
        time: time.map_or_else(|_| String::new(), |time| time.to_string()),
        id,
        record,
    };
    let mut line = serde_json::to_vec(&line)?;
    line.push(b'\n');
    Ok(line)
}

fn write_all(records: &Receiver<(SystemTime, u64, Record)>, file: &mut Rotating) {
    // Opened at once: where it cannot be, that is said when the core starts and not with the first
    // denial, and what the core holds does not grow with it.
    let mut failing = file.write(b"").is_err_and(|error| {
        tracing::error!(%error, "the audit log cannot be written");
        true
    });
    while let Ok((time, id, record)) = records.recv() {
        match line(time, id, &record).and_then(|line| file.write(&line)) {
            Ok(()) => failing = false,
            // Once, not for each line: the disk may be full for hours.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(%error, "the audit log cannot be written");
            }
            Err(_) => {}
        }
    }
}

/// A file that is put aside when it is large.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    open: Option<(File, u64)>,
}

impl Rotating {
    fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("audit.jsonl"),
            open: None,
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.try_write(line);
        if written.is_err() {
            // Opened anew for the next one.
            self.open = None;
        }
        written
    }

    fn try_write(&mut self, line: &[u8]) -> io::Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|(_, size)| *size >= FILE_BYTES)
        {
            self.open = None;
            self.put_aside()?;
        }
        let (file, size) = match &mut self.open {
            Some(open) => open,
            None => {
                if let Some(directory) = self.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let mut options = File::options();
                let file = options
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.path)?;
                let size = file.metadata()?.len();
                self.open.insert((file, size))
            }
        };
        file.write_all(line)?;
        *size += line.len() as u64;
        Ok(())
    }

    fn put_aside(&self) -> io::Result<()> {
        let old = |number: u32| self.path.with_file_name(format!("audit.{number}.jsonl"));
        for number in (1..OLD_FILES).rev() {
            match fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, old(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(plugin: &str) -> Record {
        Record {
            action: "publish".to_owned(),
            decision: decision::DENIED,
            plugin: plugin.to_owned(),
            ..Record::default()
        }
    }

    #[test]
    fn denials_beyond_ten_a_second_are_told_in_one_line() {
        let mut denials = Denials::default();
        let now = Instant::now();
        let told = (0..25)
            .filter_map(|_| denials.judge(denial("lamp"), now))
            .count();
        assert_eq!(told, 10);
        assert!(
            denials.judge(denial("door"), now).is_some(),
            "each for itself"
        );
        let later = denials.judge(denial("lamp"), now + SECOND).expect("told");
        assert_eq!(later.suppressed, 15);
    }

    #[test]
    fn those_who_come_from_everywhere_are_counted_together() {
        let mut denials = Denials::default();
        let now = Instant::now();
        let stranger = |number: u32| Record {
            peer: format!("tcp {}:1", std::net::Ipv4Addr::from(number)),
            ..denial("")
        };
        for number in 0..2_000 {
            let _told = denials.judge(stranger(number), now);
        }
        assert_eq!(denials.by_caller.len(), CALLERS + 1);
        assert!(denials.judge(denial("lamp"), now).is_some(), "not hidden");
        let later = now + SECOND;
        let next = denials.judge(stranger(9_000), later);
        assert!(next.is_some_and(|record| record.suppressed == 0));
        assert_eq!(denials.by_caller.len(), 2, "those at rest were forgotten");
        let together = denials.by_caller.get("").map(|window| window.untold);
        assert_eq!(
            together,
            Some(2_000 - CALLERS as u64 - 10),
            "and not what was untold"
        );
    }

    #[test]
    fn a_large_file_is_put_aside_and_four_are_kept() {
        let home = tempfile::tempdir().expect("a directory");
        let mut file = Rotating::new(&home.path().join("new"));
        let line = vec![b'x'; usize::try_from(FILE_BYTES).expect("small")];
        for _ in 0..8 {
            file.write(&line).expect("written");
        }
        let mut names: Vec<_> = fs::read_dir(home.path().join("new"))
            .expect("there")
            .map(|entry| {
                entry
                    .expect("there")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        names.sort();
        let expected = [
            "audit.1.jsonl",
            "audit.2.jsonl",
            "audit.3.jsonl",
            "audit.4.jsonl",
        ];
        assert_eq!(names, [&expected[..], &["audit.jsonl"]].concat());
    }

    #[test]
    fn what_is_noted_is_in_the_file_when_the_last_handle_is_gone() {
        let home = tempfile::tempdir().expect("a directory");
        let audit = Audit::start(home.path()).expect("a thread");
        audit.note(denial("lamp"));
        drop(audit);
        let path = home.path().join("audit.jsonl");
        let deadline = std::time::SystemTime::now() + Duration::from_secs(5);
        let text = loop {
            match fs::read_to_string(&path) {
                Ok(text) if text.ends_with('\n') => break text,
                _ if std::time::SystemTime::now() > deadline => panic!("nothing was written"),
                _ => std::thread::yield_now(),
            }
        };
        let line: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
        assert_eq!(line["plugin"], "lamp");
        assert_eq!(line["decision"], "denied");
        assert!(line["time"].is_string() && line.get("peer").is_none());
    }
}
