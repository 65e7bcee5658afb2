//! The sweeps: of one run, of everything at the core's end, of what another core left. They block and
//! run on the clerk's thread.

#![expect(
    clippy::disallowed_types,
    reason = "tokio's clock may be a paused one; a sweep is over when its time is"
)]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::belonging::{Household, Leader, Process, is_survivor};
use super::proc_fs::{self, Seen};
use super::run_state::{Past, RunState};
use super::{Inner, SWEEP_BUDGET};

/// Time between two looks at what was killed.
const ROUND: Duration = Duration::from_millis(10);

/// Rounds in a row that find nobody to kill and yet traces of somebody, before they are taken for
/// somebody else's. A round takes a few milliseconds.
const RESTLESS_ROUNDS: u32 = 40;

/// Looks at the newest processes in a round that found traces of somebody. Each takes some 0.1 ms.
const PROBES: u32 = 100;

/// Time that a fork takes, amply.
const FORK: Duration = Duration::from_millis(2);
/// Looks at a core that forks all the time.
const LOOKS: u32 = 100;

/// How a sweep went.
#[derive(Debug, Default, PartialEq, Eq)]
struct Swept {
    killed: BTreeSet<u32>,
    left: Vec<u32>,
}

/// One round of a sweep.
#[derive(Debug, Default)]
struct Found {
    /// To be killed, or killed already.
    doomed: Vec<Seen>,
    /// Somebody came and went meanwhile, too fast to be judged.
    traces: bool,
}

/// Kills whom `find` names, again and again, until it names nobody or the budget is spent.
fn sweep(budget: Duration, mut find: impl FnMut() -> Found) -> Swept {
    let mut swept = Swept::default();
    let rounds = budget.as_millis() / ROUND.as_millis();
    let mut restless = 0;
    let until = Instant::now() + budget;
    for _ in 0..=rounds {
        let found = find();
        swept.left = found.doomed.iter().map(|seen| seen.pid).collect();
        if found.doomed.is_empty() {
            restless += 1;
            if !found.traces || restless >= RESTLESS_ROUNDS {
                break;
            }
            // At once: whoever runs away by forking is caught between two forks, or not at all.
            continue;
        }
        found.doomed.iter().for_each(proc_fs::kill);
        swept.killed.extend(&swept.left);
        restless = 0;
        // With many processes a round takes far longer than its share.
        if Instant::now() >= until {
            break;
        }
        std::thread::sleep(ROUND);
    }
    swept
}

impl Inner {
    /// Ends what a run left outside its group.
    pub(super) fn sweep_run(&self, run: &Leader) {
        let mut known = BTreeSet::new();
        let swept = sweep(SWEEP_BUDGET, || {
            self.round(run.started, Some(run), &mut known, |household, process| {
                household.is_left_by(run, process)
            })
        });
        let plugin = &run.plugin;
        if !swept.left.is_empty() {
            tracing::warn!(%plugin, pids = ?swept.left, "processes of an ended run cannot be ended");
        } else if !swept.killed.is_empty() {
            tracing::info!(%plugin, pids = ?swept.killed, "what was left of a run was ended");
        }
    }

    /// Ends what any plugin left.
    pub(super) fn sweep_everything(&self, budget: Duration) -> Vec<u32> {
        let mut known = BTreeSet::new();
        let swept = sweep(budget, || {
            self.round(self.core.started, None, &mut known, |household, process| {
                household.is_left_by_anybody(process)
            })
        });
        if !swept.left.is_empty() {
            tracing::warn!(pids = ?swept.left, "processes of plugins cannot be ended");
        }
        swept.left
    }

    /// One round: kills whoever a rule dooms by its own marks, one by one as they are found, then names
    /// all whom it dooms. Nobody is older than `since`. `known`: who had already ended before.
    fn round(
        &self,
        since: u64,
        ended: Option<&Leader>,
        known: &mut BTreeSet<(u32, u64)>,
        is_doomed: impl Fn(&Household<'_>, &Process) -> bool,
    ) -> Found {
        let mut found = self.chase(since, known, &is_doomed);
        found.doomed.extend(self.doomed(ended, is_doomed));
        found
    }

    /// A process that forks, leaves its session and exits, again and again, is gone before a list of all
    /// processes is judged. So each is looked at, judged and killed in one go, the newest first. Whether
    /// it was adopted does not count here, for the lists that tell this take too long.
    fn chase(
        &self,
        since: u64,
        known: &mut BTreeSet<(u32, u64)>,
        is_doomed: impl Fn(&Household<'_>, &Process) -> bool,
    ) -> Found {
        // Before the look: a child that is forked after this is of no run that is over.
        let own = self.own.lock().pids.clone();
        let household = Household {
            core: self.core.pid,
            own: &own,
            adopts: false,
            strangers: &self.strangers,
            cookie: &self.setup.cookie,
            live: &[],
        };
        let mut found = Found::default();
        let mut judge = |pid: u32, found: &mut Found| {
            let Some(seen) = proc_fs::look(pid) else {
                found.traces = true;
                return;
            };
            if seen.started < since {
                return;
            }
            if seen.ended {
                let left_to_us = seen.parent == self.core.pid && !own.contains(&pid);
                found.traces |= left_to_us && known.insert((pid, seen.started));
                return;
            }
            let mark = proc_fs::mark(pid);
            found.traces |= mark.is_none() && proc_fs::look(pid).is_none_or(|now| now.ended);
            let process = Process {
                mark,
                streams: Vec::new(),
                seen,
            };
            if is_doomed(&household, &process) {
                proc_fs::kill(&process.seen);
                found.doomed.push(process.seen);
            }
        };
        for pid in proc_fs::newest_first() {
            judge(pid, &mut found);
        }
        // Whoever left traces is faster than a list of all. Its successor has one of the newest ids.
        for _ in 0..PROBES {
            if !found.traces || !found.doomed.is_empty() {
                break;
            }
            proc_fs::just_given().for_each(|pid| judge(pid, &mut found));
        }
        found
    }

    /// Whom a rule dooms now. `ended`: a run that is over, though it still stands in the book.
    fn doomed(
        &self,
        ended: Option<&Leader>,
        is_doomed: impl Fn(&Household<'_>, &Process) -> bool,
    ) -> Vec<Seen> {
        let (everybody, own, lists_are_complete) = self.processes_and_own();
        let live: Vec<_> = {
            let book = self.book.lock();
            let leaders = book.runs.values().map(|entry| &entry.leader);
            leaders
                .filter(|leader| Some(*leader) != ended)
                .cloned()
                .collect()
        };
        let processes = everybody.into_iter().map(|seen| self.look_closer(seen));
        let household = Household {
            core: self.core.pid,
            own: &own,
            adopts: self.setup.adopts_orphans && lists_are_complete,
            strangers: &self.strangers,
            cookie: &self.setup.cookie,
            live: &live,
        };
        let doomed = processes.filter(|process| is_doomed(&household, process));
        doomed.map(|process| process.seen).collect()
    }

    /// All processes, and which are the core's own children among them. `false`: one that is just
    /// being forked may be missing among its own.
    fn processes_and_own(&self) -> (Vec<Seen>, BTreeSet<u32>, bool) {
        let mut looks = 0;
        loop {
            looks += 1;
            let everybody = proc_fs::everybody();
            let own = self.own.lock();
            if own.is_complete() || looks >= LOOKS {
                return (everybody, own.pids.clone(), own.is_complete());
            }
            drop(own);
            std::thread::sleep(FORK);
        }
    }

    fn look_closer(&self, seen: Seen) -> Process {
        let mark = (!seen.ended).then(|| proc_fs::mark(seen.pid)).flatten();
        let orphan = seen.parent == self.core.pid && !seen.ended;
        Process {
            streams: if orphan {
                proc_fs::standard_streams(seen.pid)
            } else {
                Vec::new()
            },
            mark,
            seen,
        }
    }

    /// Ends what another core of this boot left, as the run-state file tells.
    pub(super) fn sweep_survivors(&self) {
        let Some(file) = &self.run_state else { return };
        let Past::Left(state) = file.read(&self.boot_id) else {
            return;
        };
        let core = proc_fs::look(state.core.pid);
        let lives = core.is_some_and(|seen| !seen.ended && seen.started == state.core.started);
        if lives && state.core != self.core {
            tracing::warn!(
                pid = state.core.pid,
                "the core that wrote the run-state file still runs; its children are left alone"
            );
            return;
        }
        let swept = sweep(SWEEP_BUDGET, || Found {
            doomed: survivors(&state),
            traces: false,
        });
        if !swept.left.is_empty() {
            tracing::warn!(pids = ?swept.left, "processes of an earlier core cannot be ended");
        } else if !swept.killed.is_empty() {
            tracing::warn!(pids = ?swept.killed, "processes that survived an earlier core were ended");
        }
    }
}

fn survivors(state: &RunState) -> Vec<Seen> {
    let everybody = proc_fs::everybody().into_iter().map(|seen| Process {
        mark: proc_fs::mark(seen.pid),
        streams: Vec::new(),
        seen,
    });
    let everybody: Vec<_> = everybody.collect();
    let children: Vec<_> = state
        .children
        .iter()
        .map(|child| (child.process.pid, child.process.started))
        .collect();
    everybody
        .iter()
        .filter(|process| is_survivor(process, &state.cookie, &children, &everybody))
        .map(|process| process.seen.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody: no number is that high, so that nobody is killed.
    fn nobody() -> Seen {
        Seen {
            pid: u32::MAX,
            parent: 0,
            group: 0,
            session: 0,
            started: 0,
            ended: false,
        }
    }

    #[test]
    fn a_sweep_of_slow_rounds_ends_with_its_budget() {
        let budget = 10 * ROUND;
        let mut rounds = 0;
        let swept = sweep(budget, || {
            rounds += 1;
            std::thread::sleep(budget / 2);
            Found {
                doomed: vec![nobody()],
                traces: false,
            }
        });
        assert!((1..=2).contains(&rounds), "{rounds}");
        assert_eq!(swept.left, [u32::MAX], "named, and not waited for");
    }
}
