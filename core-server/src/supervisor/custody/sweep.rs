//! The sweeps: of one run, of everything at the core's end, of what another core left. They block and
//! run on the clerk's thread.

use std::collections::BTreeSet;
use std::time::Duration;

use super::belonging::{Household, Leader, Process, is_survivor};
use super::proc_fs::{self, Seen};
use super::run_state::{Past, RunState};
use super::{Inner, SWEEP_BUDGET};

/// Time between two looks at what was killed.
const ROUND: Duration = Duration::from_millis(10);

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

/// Kills whom `doomed` names, again and again, until it names nobody.
fn sweep(budget: Duration, mut doomed: impl FnMut() -> Vec<Seen>) -> Swept {
    let mut swept = Swept::default();
    let rounds = budget.as_millis() / ROUND.as_millis();
    // Rounds are counted, not timed: the clock of this thread may be a paused one.
    for _ in 0..=rounds {
        let found = doomed();
        swept.left = found.iter().map(|seen| seen.pid).collect();
        if found.is_empty() {
            break;
        }
        found.iter().for_each(proc_fs::kill);
        swept.killed.extend(&swept.left);
        std::thread::sleep(ROUND);
    }
    swept
}

impl Inner {
    /// Ends what a run left outside its group.
    pub(super) fn sweep_run(&self, run: &Leader) {
        let swept = sweep(SWEEP_BUDGET, || {
            self.doomed(Some(run), |household, process| {
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
        let swept = sweep(budget, || {
            self.doomed(None, |household, process| {
                household.is_left_by_anybody(process)
            })
        });
        if !swept.left.is_empty() {
            tracing::warn!(pids = ?swept.left, "processes of plugins cannot be ended");
        }
        swept.left
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
            if own.forking == 0 || looks >= LOOKS {
                return (everybody, own.pids.clone(), own.forking == 0);
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
        let swept = sweep(SWEEP_BUDGET, || survivors(&state));
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
