//! `Open`s of another instance than the one that holds a run: they wait, two seconds or so, for whether that
//! one lives. The rule is [`contest`]'s; here it is asked, and what follows is done.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::TAKEN_RETRY;
use super::plugin::Plugin;
use super::worker::Worker;
use super::{Error, Kind, Opening};
use crate::supervisor::contest::{self, Holder, Verdict};
use crate::supervisor::lifecycle::{Event, RunEvent};
use crate::supervisor::liveness::Liveness;
use crate::types::{Generation, PluginName};

/// How often it is looked for a sign of life: nobody tells the worker of one.
const LOOK: Duration = Duration::from_millis(50);

/// An `Open` that waits for whether the holder of the run lives. One per plugin at most.
#[derive(Debug)]
pub(super) struct Knock {
    opening: Opening,
    /// The run that it is about.
    run: Generation,
    since: Instant,
    /// See [`Holder::Asked`].
    told: Option<Instant>,
    next_look: Instant,
}

impl Knock {
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    /// The core itself was late: the holder is given its time anew.
    pub(super) fn re_arm(&mut self, now: Instant) {
        self.since = now;
        self.told = None;
    }
}

impl Worker {
    /// Asks the holder of a run for a sign of life, since another instance wants its place. Of those that
    /// the core runs itself nobody can take it: their credentials are their runs'.
    pub(super) fn knock(&mut self, opening: Opening) {
        let name = opening.credential.plugin.clone();
        let now = Instant::now();
        // What it has answered until now is known first: what is under way then was not.
        self.beat(&name, true, now);
        let plugin = self.plugins.get_mut(&name);
        let Some(plugin) = plugin.filter(|plugin| {
            let waits = |knock: &Knock| !knock.opening.reply.is_closed();
            matches!(plugin.manifest.kind, Kind::Remote { .. })
                && !plugin.knock.as_ref().is_some_and(waits)
        }) else {
            return refuse(opening);
        };
        if let Some(liveness) = &mut plugin.liveness {
            liveness.ask(now);
        }
        plugin.knock = Some(Knock {
            opening,
            run: plugin.state.generation(),
            since: now,
            told: None,
            next_look: now,
        });
        // The ping leaves now; nobody who can answer is far from doing so.
        self.beat(&name, true, now);
        self.judge_knock(&name, now);
    }

    /// Whoever waits at the door of a plugin learns what became of the holder, as soon as that is known.
    pub(super) fn judge_knock(&mut self, name: &PluginName, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let Some(mut knock) = plugin.knock.take() else {
            return;
        };
        if knock.opening.reply.is_closed() {
            // It has gone: no run ends for it.
            return;
        }
        let goes_on = plugin.run.is_some() && plugin.state.generation() == knock.run;
        if !goes_on || self.shutdown.is_some() {
            return self.opening(knock.opening);
        }
        match plugin.verdict(&mut knock, now) {
            Verdict::Stays => refuse(knock.opening),
            Verdict::Wait(until) => {
                knock.next_look = until.min(now + LOOK);
                plugin.knock = Some(knock);
            }
            Verdict::GivesWay => {
                let silent = RunEvent::GaveWay(contest::ANSWER_WITHIN);
                self.feed(name, Event::Run(knock.run, silent));
                // The rules of a lost run hold: it is told when it may come.
                self.opening(knock.opening);
            }
        }
    }
}

impl Plugin {
    fn verdict(&self, knock: &mut Knock, now: Instant) -> Verdict {
        let Some(run) = &self.run else {
            return Verdict::Stays;
        };
        let holder = match (self.state.suspended_until(), &self.liveness) {
            (Some(until), _) => Holder::Away {
                since: until
                    .checked_sub(self.manifest.timeouts.suspend)
                    .unwrap_or(knock.since),
            },
            (None, Some(liveness)) => {
                let told = || waits_since(liveness, run.link()?.outbox.handed_ping());
                let told = knock.told.or_else(told);
                knock.told = told.map(|told| told.max(knock.since));
                Holder::Asked {
                    since: knock.since,
                    told: knock.told,
                }
            }
            (None, None) => Holder::Mute,
        };
        let ponged = run.last_pong().map(|(_, at)| at);
        contest::judge(holder, run.last_read().max(ponged), now)
    }
}

/// Since when a ping waits for its answer outside the core.
fn waits_since(liveness: &Liveness, handed: Option<(u64, Instant)>) -> Option<Instant> {
    let (nonce, at) = handed?;
    liveness.is_unanswered(nonce).then_some(at)
}

fn refuse(opening: Opening) {
    let refusal = Error::AlreadyConnected {
        plugin: opening.credential.plugin.clone(),
        retry_after: TAKEN_RETRY,
    };
    // Whoever knocked may have gone.
    drop(opening.reply.send(Err(refusal)));
}
