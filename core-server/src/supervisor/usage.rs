//! How much memory and how many processes the plugins use: counted every two seconds, shown, and held
//! against the bounds that nothing else keeps.
//!
//! One look at `/proc` serves all plugins. A process counts for a plugin when it descends from the
//! plugin's own, or shares its group or session; also when it left all three, as long as it has the run's
//! token in its environment, which no other plugin knows, or writes to the run's output ([`Owner`]).
//! Memory is what is resident; pages that processes share are counted in each. While no plugin has a bound, only their own processes are looked at, and
//! those that they start are not counted. It is a look now and then, no wall: what a plugin takes between two
//! looks it has.
//!
//! Rules, pure: [`add_up`] and [`Streak::judge`]. A run over its bound in two looks in a row is to
//! end, or at once when it is at twice the bound.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::isolation::Bounds;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Looks in a row over a bound that are too many.
const PATIENCE: u32 = 2;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// Its threads.
    pub threads: u64,
    /// When it started, in clock ticks since the boot.
    pub started: u64,
    /// Its resident memory.
    pub bytes: u64,
}

/// Tells of a process that left its plugin's group and session whose it is: the id of a run's own process.
pub type Owner = Box<dyn Fn(u32) -> Option<u32> + Send>;

/// What a plugin's processes use together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory.
    pub bytes: u64,
    /// Threads of all processes, as cgroups count them.
    pub pids: u64,
}

/// A bound that was exceeded for too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// A stable word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Adds up what belongs to each leader. A process of two leaders, one started by the other, counts for
/// the nearer one. `owner` is asked of those that nothing else ties to one.
#[must_use]
pub fn add_up(
    seen: &[Seen],
    leaders: &[u32],
    owner: impl Fn(&Seen) -> Option<u32>,
) -> HashMap<u32, Usage> {
    let parents: HashMap<_, _> = seen.iter().map(|seen| (seen.pid, seen.parent)).collect();
    let is_leader = |pid: &u32| leaders.contains(pid);
    let mut usage: HashMap<_, _> = leaders
        .iter()
        .map(|leader| (*leader, Usage::default()))
        .collect();
    for process in seen {
        let mut ancestors = std::iter::successors(Some(process.pid), |pid| {
            parents.get(pid).copied().filter(|parent| *parent > 0)
        })
        // Bounded, should the table hold a circle: it was read while it changed.
        .take(64);
        let leader = ancestors
            .find(is_leader)
            .or_else(|| Some(process.group).filter(is_leader))
            .or_else(|| Some(process.session).filter(is_leader))
            .or_else(|| owner(process));
        if let Some(usage) = leader.and_then(|leader| usage.get_mut(&leader)) {
            usage.bytes += process.bytes;
            usage.pids += process.threads;
        }
    }
    usage
}

/// How often in a row a run was over a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    over: u32,
}

impl Streak {
    /// Judges one look; `Some`: it is enough.
    pub fn judge(&mut self, usage: Usage, bounds: &Bounds) -> Option<Excess> {
        let over = |used: u64, bound: Option<u64>, times: u64| {
            bound.is_some_and(|bound| used > bound.saturating_mul(times))
        };
        let any =
            |times| over(usage.bytes, bounds.memory, times) || over(usage.pids, bounds.pids, times);
        self.over = if any(1) { self.over + 1 } else { 0 };
        if self.over < PATIENCE && !any(2) {
            return None;
        }
        if let Some(bound) = bounds.memory.filter(|bound| usage.bytes > *bound) {
            let message = format!("it used {} of {} of memory", mib(usage.bytes), mib(bound));
            return Some(Excess {
                reason: "memory_limit",
                message,
            });
        }
        let bound = bounds.pids.unwrap_or_default();
        let message = format!("it had {} of {bound} processes and threads", usage.pids);
        Some(Excess {
            reason: "pids_limit",
            message,
        })
    }
}

/// For people, rounded up: what is over a bound is never shown as the bound.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Who counts. Cheap to clone; [`UsageMeter::run`] does it.
#[derive(Clone, Debug, Default)]
pub struct UsageMeter {
    /// By the order in which they came: the id of a process may be another run's by the time that the
    /// first one's is struck off. Short lock.
    watched: Arc<Mutex<BTreeMap<u64, Watched>>>,
}

#[derive(Debug)]
struct Watched {
    leader: u32,
    bounds: Bounds,
    streak: Streak,
    excess: watch::Sender<Option<Excess>>,
    gauge: Gauge,
}

/// What a run used when it was last looked at. Cheap to clone, read by whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    bytes: Arc<AtomicU64>,
}

impl Gauge {
    /// Resident memory in bytes; `None`: not looked at yet.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        Some(self.bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

/// Being counted, until it is dropped.
#[derive(Debug)]
pub struct Metered {
    key: u64,
    meter: UsageMeter,
    excess: watch::Receiver<Option<Excess>>,
}

impl Metered {
    /// Waits until a bound was exceeded for too long. Once. Cancel safe.
    pub async fn exceeded(&mut self) -> Excess {
        loop {
            if let Some(excess) = self.excess.borrow_and_update().clone() {
                return excess;
            }
            if self.excess.changed().await.is_err() {
                // Nobody counts any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        self.meter.watched.lock().remove(&self.key);
    }
}

impl UsageMeter {
    /// Counts a run from now on: the process `leader` and what belongs to it.
    #[must_use]
    pub fn watch(&self, leader: u32, bounds: Bounds, gauge: Gauge) -> Metered {
        let (sender, excess) = watch::channel(None);
        let watched = Watched {
            leader,
            bounds,
            streak: Streak::default(),
            excess: sender,
            gauge,
        };
        let mut all = self.watched.lock();
        let key = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(key, watched);
        drop(all);
        Metered {
            key,
            meter: self.clone(),
            excess,
        }
    }

    /// Counts until `stop`. A look costs some 30 µs for each process of the machine (103 of them on
    /// two busy cores, unoptimised, 2026-11), and one for each plugin while none has a bound.
    pub async fn run(self, owner: Owner, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (leaders, bounded) = self.leaders();
            let seen = if bounded {
                processes()
            } else {
                leaders.iter().copied().filter_map(process).collect()
            };
            // Whoever is older than all of them is nobody's.
            let is_leader = |seen: &&Seen| leaders.contains(&seen.pid);
            let first = seen.iter().filter(is_leader).map(|seen| seen.started).min();
            let owner = |process: &Seen| {
                let young = bounded && first.is_some_and(|first| process.started >= first);
                young.then(|| owner(process.pid)).flatten()
            };
            self.take(&add_up(&seen, &leaders, owner));
        }
    }

    /// Whom to look at, and whether any of them has a bound.
    fn leaders(&self) -> (Vec<u32>, bool) {
        let watched = self.watched.lock();
        let has_bound = |watched: &Watched| watched.bounds != Bounds::default();
        let bounded = watched.values().any(has_bound);
        let leaders = watched.values().map(|watched| watched.leader);
        (leaders.collect(), bounded)
    }

    fn take(&self, usage: &HashMap<u32, Usage>) {
        let mut watched = self.watched.lock();
        for watched in watched.values_mut() {
            // Nothing was seen of it: it has just ended.
            let Some(usage) = usage.get(&watched.leader).filter(|usage| usage.pids > 0) else {
                continue;
            };
            watched.gauge.bytes.store(usage.bytes, Ordering::Relaxed);
            if let Some(excess) = watched.streak.judge(*usage, &watched.bounds) {
                watched.excess.send_if_modified(|known| {
                    let first = known.is_none();
                    known.get_or_insert(excess);
                    first
                });
            }
        }
    }
}

/// All processes that can be seen. Off Linux none.
fn processes() -> Vec<Seen> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

fn process(pid: u32) -> Option<Seen> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let read = |path: &Path| {
        let stat = fs::read(path.join("stat")).ok()?;
        parse(&String::from_utf8_lossy(&stat), page)
    };
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let seen = read(&directory)?;
    if seen.bytes > 0 || seen.threads < 2 {
        return Some(seen);
    }
    // A process whose first thread has ended: its memory is told of the others.
    let threads = fs::read_dir(directory.join("task")).into_iter().flatten();
    let of_threads = threads.filter_map(|thread| Some(read(&thread.ok()?.path())?.bytes));
    Some(Seen {
        bytes: of_threads.max().unwrap_or_default(),
        ..seen
    })
}

/// `/proc/PID/stat`, proc(5): fields 1, 4, 5, 6, 20, 22 and 24; the name in between may hold anything.
/// `None`: it has ended with all its threads.
fn parse(stat: &str, page: u64) -> Option<Seen> {
    let (pid, _) = stat.split_once(' ')?;
    let (_, rest) = stat.rsplit_once(')')?;
    // The first of these is field 3.
    let fields: Vec<_> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let threads = field(20)?.parse().ok()?;
    // A process whose first thread has ended shows as a zombie while others go on.
    if matches!(field(3)?, "Z" | "X") && threads < 2 {
        return None;
    }
    Some(Seen {
        pid: pid.parse().ok()?,
        parent: field(4)?.parse().ok()?,
        group: field(5)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        threads,
        started: field(22)?.parse().ok()?,
        bytes: field(24)?.parse::<u64>().ok()?.saturating_mul(page),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(pid: u32, parent: u32, group: u32, session: u32) -> Seen {
        Seen {
            pid,
            parent,
            group,
            session,
            threads: 1,
            started: 5,
            bytes: 10,
        }
    }

    #[test]
    fn what_descends_or_shares_group_or_session_counts() {
        let processes = [
            seen(1, 0, 1, 1),
            seen(10, 1, 10, 10),
            // A child in a group of its own, and its child.
            seen(11, 10, 11, 10),
            seen(12, 11, 12, 12),
            // Its parent has ended.
            seen(13, 1, 10, 10),
            seen(14, 1, 14, 10),
            // A stranger.
            seen(15, 1, 15, 15),
            // A plugin that a plugin started as such.
            seen(20, 10, 20, 20),
            seen(21, 20, 20, 20),
            // Left group and session, and its parent has ended.
            seen(30, 1, 30, 30),
        ];
        let by_mark = |seen: &Seen| {
            assert!(![11, 14, 21].contains(&seen.pid), "known without a look");
            (seen.pid == 30).then_some(10)
        };
        let usage = add_up(&processes, &[10, 20, 99], by_mark);
        assert_eq!(usage[&10], Usage { bytes: 60, pids: 6 });
        assert_eq!(usage[&20], Usage { bytes: 20, pids: 2 });
        assert_eq!(usage[&99], Usage::default());
    }

    #[test]
    fn a_run_over_its_bound_twice_or_twice_over_its_bound_is_to_end() {
        let bounds = Bounds {
            memory: Some(100 << 20),
            pids: Some(10),
        };
        // Memory in MiB and processes of each look, and the reason after the last one.
        type Look = (u64, u64);
        let table: [(&[Look], Option<&str>); 8] = [
            (&[(100, 10), (100, 10), (100, 10)], None),
            (&[(101, 1)], None),
            (&[(101, 1), (101, 1)], Some("memory_limit")),
            (&[(101, 1), (99, 1), (101, 1)], None),
            (&[(101, 1), (1, 11)], Some("pids_limit")),
            (&[(201, 1)], Some("memory_limit")),
            (&[(1, 21)], Some("pids_limit")),
            (&[(1, 20)], None),
        ];
        for (looks, expected) in table {
            let mut streak = Streak::default();
            let mut last = None;
            for (mib, pids) in looks {
                let usage = Usage {
                    bytes: mib << 20,
                    pids: *pids,
                };
                last = streak.judge(usage, &bounds);
            }
            assert_eq!(last.map(|excess| excess.reason), expected, "{looks:?}");
        }
    }

    #[test]
    fn a_sentence_says_how_much_of_what() {
        let bounds = Bounds {
            memory: Some(64 << 20),
            pids: None,
        };
        let usage = Usage {
            bytes: (64 << 20) * 3,
            pids: 500,
        };
        let excess = Streak::default().judge(usage, &bounds).expect("far over");
        assert_eq!(excess.message, "it used 192 MiB of 64 MiB of memory");
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_name() {
        let line = "4242 (a) b (c) S 1 4240 4239 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 7 0 99 1000000 \
                    25 18446744073709551615 1 1 0\n";
        let expected = Seen {
            pid: 4242,
            parent: 1,
            group: 4240,
            session: 4239,
            threads: 7,
            started: 99,
            bytes: 25 * 4096,
        };
        assert_eq!(parse(line, 4096), Some(expected));
        let zombie = line.replace(") S ", ") Z ");
        assert_eq!(parse(&zombie, 4096), Some(expected), "other threads go on");
        let zombie = zombie.replace(" 7 0 99 ", " 1 0 99 ");
        assert_eq!(parse(&zombie, 4096), None, "zombies use nothing");
        assert_eq!(parse("", 4096), None);
    }

    #[test]
    fn this_very_process_is_seen_and_uses_memory() {
        let own = std::process::id();
        let usage = add_up(&processes(), &[own], |_| None);
        assert!(usage[&own].bytes > 1 << 20, "{usage:?}");
    }

    #[tokio::test]
    async fn whoever_is_over_its_bound_hears_of_it_once() {
        let meter = UsageMeter::default();
        let (gauge, bounds) = (
            Gauge::default(),
            Bounds {
                memory: Some(100),
                pids: None,
            },
        );
        let mut metered = meter.watch(10, bounds, gauge.clone());
        assert_eq!(gauge.bytes(), None);
        let usage = Usage {
            bytes: 150,
            pids: 1,
        };
        meter.take(&HashMap::from([(10, usage), (11, usage)]));
        assert_eq!(gauge.bytes(), Some(150));
        meter.take(&HashMap::from([(10, usage)]));
        let excess = metered.exceeded().await;
        assert_eq!(excess.reason, "memory_limit");
        // Its id is another's before the first one is struck off.
        let second = meter.watch(10, bounds, Gauge::default());
        drop(metered);
        assert_eq!(meter.watched.lock().len(), 1);
        drop(second);
        assert!(meter.watched.lock().is_empty());
    }

    proptest! {
        #[test]
        fn everything_counts_at_most_once(
            table in proptest::collection::vec((1_u32..20, 0_u32..20, 1_u32..20, 1_u32..20), 0..40),
            leaders in proptest::collection::btree_set(1_u32..20, 0..5),
        ) {
            let processes: Vec<_> = table
                .iter()
                .map(|(pid, parent, group, session)| seen(*pid, *parent, *group, *session))
                .collect();
            let leaders: Vec<_> = leaders.into_iter().collect();
            let usage = add_up(&processes, &leaders, |_| None);
            prop_assert_eq!(usage.len(), leaders.len());
            let counted: u64 = usage.values().map(|usage| usage.pids).sum();
            prop_assert!(counted <= processes.len() as u64);
        }

        #[test]
        fn within_its_bounds_a_run_is_never_ended(looks in proptest::collection::vec((0_u64..=100, 0_u64..=10), 0..50)) {
            let bounds = Bounds { memory: Some(100), pids: Some(10) };
            let mut streak = Streak::default();
            for (bytes, pids) in looks {
                prop_assert_eq!(streak.judge(Usage { bytes, pids }, &bounds), None);
            }
        }
    }
}
