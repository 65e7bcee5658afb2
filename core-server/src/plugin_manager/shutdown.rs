//! The end of all plugins: level by level, dependents first, each level with its share of the time
//! that is left, and whatever does not end in its share is killed.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Error;
use super::order::{self, Reactions};
use super::worker::{Worker, sent};
use crate::channel::Outbound;
use crate::supervisor::lifecycle::{Budget, Event};
use crate::types::PluginName;

/// Part of a level's share that is kept for noticing that what was killed is gone.
const RESERVE_PERCENT: u32 = 10;

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Ended by force: they did not heed hooks or were late.
    pub forced: Vec<PluginName>,
    /// Still there at the end. Processes among them were sent SIGKILL; plugins inside the core's own
    /// process cannot be ended from outside.
    pub survivors: Vec<PluginName>,
    /// How long it took.
    pub took: Duration,
}

pub(super) struct Shutdown {
    began: Instant,
    deadline: Instant,
    /// Levels that have not had their turn, the next one first.
    waiting: VecDeque<BTreeSet<PluginName>>,
    current: BTreeSet<PluginName>,
    /// End of the current level's share.
    level_ends: Instant,
    /// The current level was killed.
    killed: bool,
    replies: Vec<oneshot::Sender<Report>>,
    report: Option<Report>,
}

impl Shutdown {
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.report.is_none().then_some(self.level_ends)
    }
}

impl Worker {
    pub(super) fn begin_shutdown(&mut self, deadline: Instant, reply: oneshot::Sender<Report>) {
        let now = Instant::now();
        if let Some(shutdown) = &mut self.shutdown {
            if let Some(report) = &shutdown.report {
                drop(reply.send(report.clone()));
                return;
            }
            shutdown.replies.push(reply);
            if deadline < shutdown.deadline {
                // A second request in more of a hurry: no grace for anybody.
                shutdown.deadline = deadline;
                shutdown.level_ends = shutdown.level_ends.min(deadline);
                self.kill_all();
            }
            return;
        }
        let waiting: VecDeque<_> = order::levels_of_the_end(&self.graph).into();
        self.shutdown = Some(Shutdown {
            began: now,
            deadline,
            waiting,
            current: BTreeSet::new(),
            level_ends: now,
            killed: false,
            replies: vec![reply],
            report: None,
        });
        self.batches.clear();
        self.reactions = Reactions::default();
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            if let Some(plugin) = self.plugins.get_mut(&name) {
                for waiter in plugin.waiters.drain(..) {
                    drop(waiter.reply.send(Err(Error::ShuttingDown)));
                }
            }
            self.feed(&name, Event::Freeze);
        }
    }

    /// Goes on with the end; `true`: a plugin was told something.
    pub(super) fn advance_shutdown(&mut self) -> bool {
        let now = Instant::now();
        let Some(shutdown) = &mut self.shutdown else {
            return false;
        };
        if shutdown.report.is_some() {
            return false;
        }
        let rests = |name: &PluginName| {
            self.plugins.get(name).is_none_or(|plugin| {
                plugin.state.is_resting() || (plugin.state.is_hung() && plugin.pid == 0)
            })
        };
        let expired = shutdown.level_ends <= now;
        let over = shutdown.current.iter().all(&rests) || (expired && shutdown.killed);
        if !over {
            if !expired {
                return false;
            }
            shutdown.killed = true;
            // The rest of the share: time to notice the ends.
            let share = share(shutdown.deadline, shutdown.waiting.len() + 1, now);
            shutdown.level_ends = now + share * RESERVE_PERCENT / 100;
            let current = shutdown.current.clone();
            current
                .iter()
                .for_each(|name| self.feed(name, Event::KillNow));
            return true;
        }
        // Levels in which nothing runs take no time from the others.
        shutdown.waiting.retain(|level| !level.iter().all(&rests));
        let Some(level) = shutdown.waiting.pop_front() else {
            self.finish_shutdown(now);
            return false;
        };
        let share = share(shutdown.deadline, shutdown.waiting.len() + 1, now);
        let usable = share * (100 - RESERVE_PERCENT) / 100;
        shutdown.level_ends = now + usable;
        shutdown.killed = false;
        shutdown.current.clone_from(&level);
        let budget = Budget {
            drain: usable * 2 / 9,
            hooks: usable * 5 / 9,
            term: usable * 2 / 9,
        };
        for name in level {
            let run = self
                .plugins
                .get(&name)
                .and_then(|plugin| plugin.run.clone());
            if let Some(link) = run.and_then(|run| run.link()) {
                let reason = "the core is stopping".to_owned();
                sent(link.outbox.push(Outbound::GoingAway { reason }));
            }
            self.feed(&name, Event::Shutdown(budget));
        }
        true
    }

    fn kill_all(&mut self) {
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        names
            .iter()
            .for_each(|name| self.feed(name, Event::KillNow));
    }

    fn finish_shutdown(&mut self, now: Instant) {
        let Some(shutdown) = &mut self.shutdown else {
            return;
        };
        let plugins = self.plugins.values();
        let survivors = plugins.clone().filter(|plugin| !plugin.state.is_resting());
        let forced = plugins.filter(|plugin| {
            let exit = plugin.state.last_exit();
            exit.is_some_and(|exit| exit.forced && exit.at >= shutdown.began)
        });
        let report = Report {
            forced: forced.map(|plugin| plugin.name().clone()).collect(),
            survivors: survivors.map(|plugin| plugin.name().clone()).collect(),
            took: now - shutdown.began,
        };
        for reply in shutdown.replies.drain(..) {
            drop(reply.send(report.clone()));
        }
        shutdown.report = Some(report);
    }
}

fn share(deadline: Instant, levels: usize, now: Instant) -> Duration {
    let levels = u32::try_from(levels.max(1)).unwrap_or(u32::MAX);
    deadline.saturating_duration_since(now) / levels
}
