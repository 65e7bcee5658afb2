//! What a row looks at while it attacks: another client's calls, the core's memory and CPU.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use core_tests::Client;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::home::Home;
use crate::measure::{median, percentile, worst};
use crate::processes;
use crate::report::Row;

/// A client of good will that calls a plugin again and again on one connection.
pub(crate) struct Bystander {
    heard: Arc<Mutex<Heard>>,
    calling: JoinHandle<()>,
}

#[derive(Default)]
struct Heard {
    took: Vec<Duration>,
    failed: Vec<String>,
}

impl Heard {
    fn note(&mut self, answer: Result<Value, Status>, begin: Instant) {
        match answer {
            Ok(_) => self.took.push(begin.elapsed()),
            Err(status) => self.failed.push(status.to_string()),
        }
    }
}

impl Bystander {
    /// Calls `service` every `pause`, on a connection of its own.
    pub(crate) fn begin(operator: &Client, service: &str, pause: Duration) -> Self {
        let heard = Arc::<Mutex<Heard>>::default();
        let (client, service) = (operator.another_connection(), service.to_owned());
        let told = Arc::clone(&heard);
        let calling = tokio::spawn(async move {
            loop {
                let begin = Instant::now();
                let answer = client
                    .call(&service, json!({ "text": "still there?" }))
                    .await;
                told.lock().expect("no panic inside").note(answer, begin);
                tokio::time::sleep(pause).await;
            }
        });
        Self { heard, calling }
    }

    /// How long calls took since this was asked last. Failures are told as broken.
    pub(crate) fn took(&self, row: &Row) -> Vec<Duration> {
        let mut heard = self.heard.lock().expect("no panic inside");
        if let Some(first) = heard.failed.first() {
            row.broken(format!("another client's call failed: {first}"));
        }
        std::mem::take(&mut heard.took)
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.calling.abort();
    }
}

/// Rounds of quiet and of attack by turns, so that whatever else the machine does meets both.
const ROUNDS: usize = 6;
/// Length of each.
const ROUND: Duration = Duration::from_millis(400);

/// Another client's p99, in peace and under attack: the median of the rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    quiet_ms: f64,
    attacked_ms: f64,
    slowest_ms: f64,
}

impl Compared {
    /// The slowest call under attack.
    pub(crate) fn slowest_ms(self) -> f64 {
        self.slowest_ms
    }

    pub(crate) fn tell(self, row: &Row) {
        let times = self.attacked_ms / self.quiet_ms;
        row.at_most(
            "another client's p99, of that in peace",
            times,
            "times",
            2.0,
        );
        row.tell("that is", self.attacked_ms, "ms");
    }
}

/// Rounds of peace and of attack by turns.
pub(crate) struct Comparison<'a> {
    row: &'a Row,
    bystander: &'a Bystander,
    /// Of attack that are over.
    rounds: usize,
    attack_ends: Option<Instant>,
    /// The p99 of each quiet round.
    quiet: Vec<f64>,
    /// And of each round of attack.
    attacked: Vec<f64>,
    slowest_ms: f64,
}

impl<'a> Comparison<'a> {
    pub(crate) fn begin(row: &'a Row, bystander: &'a Bystander) -> Self {
        Self {
            row,
            bystander,
            rounds: 0,
            attack_ends: None,
            quiet: Vec::new(),
            attacked: Vec::new(),
            slowest_ms: 0.0,
        }
    }

    /// Whether another attack is to be made now; lets quiet rounds pass meanwhile.
    pub(crate) async fn goes_on(&mut self) -> bool {
        if self.attack_ends.is_some_and(|ends| Instant::now() < ends) {
            return true;
        }
        let took = self.bystander.took(self.row);
        if self.attack_ends.is_some() {
            self.attacked.push(percentile(&took, 99));
            self.slowest_ms = self.slowest_ms.max(worst(&took));
            self.rounds += 1;
        }
        if self.rounds == ROUNDS {
            return false;
        }
        tokio::time::sleep(ROUND).await;
        let took = self.bystander.took(self.row);
        self.quiet.push(percentile(&took, 99));
        self.attack_ends = Some(Instant::now() + ROUND);
        true
    }

    pub(crate) fn end(self) -> Compared {
        Compared {
            quiet_ms: median(self.quiet),
            attacked_ms: median(self.attacked),
            slowest_ms: self.slowest_ms,
        }
    }
}

/// The core's memory and CPU from now on.
pub(crate) struct Watched {
    pid: u32,
    resident_before: u64,
    cpu_before: f64,
    began: Instant,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watched {
    /// Looks at the core's memory every 5 ms.
    pub(crate) fn begin(home: &Home) -> Result<Self> {
        let pid = home.pid();
        let resident_before = processes::resident_bytes(pid).context("the core's memory")?;
        let peak = Arc::new(AtomicU64::new(resident_before));
        let stop = Arc::<AtomicBool>::default();
        let (highest, ended) = (Arc::clone(&peak), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let resident = processes::resident_bytes(pid).unwrap_or_default();
                highest.fetch_max(resident, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Ok(Self {
            pid,
            resident_before,
            cpu_before: processes::cpu_seconds(pid).context("the core's CPU time")?,
            began: Instant::now(),
            peak,
            stop,
        })
    }

    /// By how much memory grew at most, in MiB.
    pub(crate) fn growth_mib(&self) -> f64 {
        let now = processes::resident_bytes(self.pid).unwrap_or_default();
        let peak = self.peak.load(Ordering::Relaxed).max(now);
        let grown = peak.saturating_sub(self.resident_before);
        grown as f64 / f64::from(1_u32 << 20)
    }

    /// CPU time since then, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let now = processes::cpu_seconds(self.pid).unwrap_or(f64::NAN);
        now - self.cpu_before
    }

    /// CPU time as a share of the time since then, in per cent.
    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu_seconds() / self.began.elapsed().as_secs_f64()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
