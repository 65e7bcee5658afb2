//! Whether the machine itself stood still: what a row measured then says nothing of the core.
//!
//! Two witnesses: the time that the hypervisor took (`steal` in `/proc/stat`), and a thread that only
//! sleeps and looks how late it wakes. What the rows do to their processors makes neither of them speak:
//! a waking thread preempts busy ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the witness sleeps.
const NAP: Duration = Duration::from_millis(10);
/// It wakes so late only when nothing else runs either.
const STALL: Duration = Duration::from_millis(150);
/// Share of the processors' time that the hypervisor may take.
const STOLEN: f64 = 0.05;
/// Stalls remembered; older ones are forgotten.
const REMEMBERED: usize = 1_000;
/// Ticks per second in `/proc/stat`.
const USER_HZ: f64 = 100.0;

/// Watches from its making on.
pub(crate) struct Machine {
    stalls: Arc<Mutex<Vec<Stall>>>,
}

#[derive(Clone, Copy)]
struct Stall {
    ended: Instant,
    length: Duration,
}

/// A moment from which on stalls count.
#[derive(Clone, Copy)]
pub(crate) struct Since {
    at: Instant,
    stolen_ticks: Option<f64>,
}

impl Machine {
    pub(crate) fn watch() -> Self {
        let stalls = Arc::<Mutex<Vec<Stall>>>::default();
        let seen = Arc::downgrade(&stalls);
        std::thread::spawn(move || {
            while let Some(stalls) = seen.upgrade() {
                let begin = Instant::now();
                std::thread::sleep(NAP);
                let length = begin.elapsed().saturating_sub(NAP);
                if length >= STALL {
                    let mut stalls = stalls.lock().unwrap_or_else(PoisonError::into_inner);
                    if stalls.len() == REMEMBERED {
                        stalls.remove(0);
                    }
                    let ended = Instant::now();
                    stalls.push(Stall { ended, length });
                }
            }
        });
        Self { stalls }
    }

    pub(crate) fn now(&self) -> Since {
        Since {
            at: Instant::now(),
            stolen_ticks: stolen_ticks(),
        }
    }

    /// How it stood still since then, in words, if it did.
    pub(crate) fn stood_still(&self, since: Since) -> Option<String> {
        let stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = stalls
            .iter()
            .filter(|stall| stall.ended > since.at)
            .map(|stall| stall.length)
            .max();
        if let Some(longest) = longest {
            return Some(format!("nothing ran for {longest:?}"));
        }
        let stolen = (stolen_ticks()? - since.stolen_ticks?) / USER_HZ;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let share = stolen / since.at.elapsed().as_secs_f64() / processors as f64;
        (share > STOLEN).then(|| format!("the hypervisor took {stolen:.1} s"))
    }
}

fn stolen_ticks() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stolen_of(&stat)
}

/// proc(5): the first line is all processors; the eighth number is `steal`.
fn stolen_of(stat: &str) -> Option<f64> {
    stat.lines().next()?.split_whitespace().nth(8)?.parse().ok()
}
