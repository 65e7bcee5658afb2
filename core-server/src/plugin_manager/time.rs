//! Time in the worker: when it must look again, what it judges then, and that the core's own lateness is
//! held against nobody.

use std::time::Duration;

use tokio::time::Instant;

use super::knocks::Knock;
use super::operations::Unkept;
use super::upgrade::Upgrading;
use super::worker::{Worker, sent};
use crate::channel::{Closed, Outbound};
use crate::stall::StallGuard;
use crate::supervisor::lifecycle::{Event, RunEvent};
use crate::supervisor::liveness::Seen;
use crate::types::PluginName;

/// How often channels are looked at for being stuck or gone.
const LINK_CHECK: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn next_deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let plugins = self.plugins.values().flat_map(|plugin| {
            let beat = plugin
                .liveness
                .as_ref()
                .and_then(|liveness| liveness.next_deadline());
            let waiters = plugin.waiters.iter().map(|waiter| waiter.deadline).min();
            let offer = plugin.offer.as_ref().map(|offer| offer.deadline);
            let upgrade = plugin.upgrade.as_ref().and_then(Upgrading::next_deadline);
            let knock = plugin.knock.as_ref().map(Knock::next_look);
            let life = plugin.state.next_deadline();
            [life, beat, knock, waiters, offer, upgrade]
                .into_iter()
                .flatten()
        });
        let linked = self.plugins.values().any(|plugin| plugin.run.is_some());
        // Whoever waits for a slot is given it when another one leaves it, or has held it for too long;
        // and the bucket needs time.
        let waits = self
            .plugins
            .values()
            .any(|plugin| plugin.state.wants_slot());
        let now = Instant::now();
        let starts = match self.free_slots(now) {
            _ if !waits => None,
            0 => self.slots_held(now).min(),
            _ => Some(self.start_bucket.next_at()),
        };
        let guarded = self.has_lives().then(|| self.stall_guard.next_look());
        plugins
            .chain(self.batches.iter().map(|batch| batch.deadline))
            .chain(
                self.shutdown
                    .as_ref()
                    .and_then(|shutdown| shutdown.next_deadline()),
            )
            .chain(self.keeper.again_at())
            .chain(self.unkept.iter().map(Unkept::deadline))
            .chain(self.grants.next_deadline())
            .chain(self.next_reports)
            .chain(linked.then_some(self.next_link_check))
            .chain(self.next_look_at_programs())
            .chain(guarded)
            .chain(starts)
            .fold(far, Instant::min)
    }

    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        let check_links = self.next_link_check <= now;
        if check_links {
            self.next_link_check = now + LINK_CHECK;
        }
        self.expire_offers(now);
        self.keeper.try_again(now);
        self.look_at_programs(now);
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            let plugin = &self.plugins[&name];
            if plugin.state.next_deadline().is_some_and(|at| at <= now) {
                self.feed(&name, Event::Tick);
            }
            let knocks = self.plugins.get(&name);
            let knocks = knocks.is_some_and(|plugin| plugin.knock.is_some());
            self.beat(&name, check_links || knocks, now);
            if knocks {
                self.judge_knock(&name, now);
            }
            if check_links {
                self.notice_refusal(&name);
                self.check_link(&name, now);
            }
        }
    }

    /// Whether there is a run or what is left of one: something with deadlines to judge.
    fn has_lives(&self) -> bool {
        self.plugins
            .values()
            .any(|plugin| !plugin.state.is_resting())
    }

    /// Moves all deadlines if the core itself was late: its machine slept, its process was stopped, or
    /// the box is overloaded.
    pub(super) fn forgive_own_lateness(&mut self) {
        let now = Instant::now();
        if !self.has_lives() {
            // Nobody looked, and nothing was there to judge.
            self.stall_guard = StallGuard::new(now);
            return;
        }
        let Some(by) = self.stall_guard.look(now) else {
            return;
        };
        self.stalled_until = now;
        tracing::warn!(
            late_ms = by.as_millis(),
            "the core was late; all deadlines are moved, nobody is blamed for it"
        );
        let names: Vec<_> = self.plugins.keys().cloned().collect();
        for name in names {
            if let Some(plugin) = self.plugins.get_mut(&name) {
                if let Some(liveness) = &mut plugin.liveness {
                    liveness.re_arm(now);
                }
                if let Some(knock) = &mut plugin.knock {
                    knock.re_arm(now);
                }
                if let Some(offer) = &mut plugin.offer {
                    offer.deadline += by;
                }
                if let Some(upgrade) = &mut plugin.upgrade {
                    upgrade.late(by);
                }
            }
            self.feed(&name, Event::Late(by));
        }
    }

    pub(super) fn beat(&mut self, name: &PluginName, look: bool, now: Instant) {
        let Some(plugin) = self.plugins.get_mut(name) else {
            return;
        };
        let (Some(liveness), Some(run)) = (&mut plugin.liveness, &plugin.run) else {
            return;
        };
        if !look && liveness.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        let link = run.link();
        let seen = Seen {
            handed: link.as_ref().and_then(|link| link.outbox.handed_ping()),
            pong: run.last_pong(),
            heard: run.last_read(),
        };
        let beat = liveness.look(&seen, now);
        if let (Some(nonce), Some(link)) = (beat.ping, link) {
            sent(link.outbox.push(Outbound::Ping { nonce }));
        }
        let generation = run.generation();
        if let Some(missed) = beat.degraded {
            self.feed(name, Event::Run(generation, RunEvent::Heartbeat { missed }));
        }
        if let Some(how) = beat.lifeless {
            self.feed(name, Event::Run(generation, RunEvent::Lifeless(how)));
        }
    }

    /// Ends a channel that is not read, and notices one whose loss nobody reported.
    fn check_link(&mut self, name: &PluginName, now: Instant) {
        let Some(run) = self.plugins.get(name).and_then(|plugin| plugin.run.clone()) else {
            return;
        };
        let Some(link) = run.link() else {
            return;
        };
        let stuck = link.outbox.stuck_since();
        let stuck = stuck.map(|since| now.duration_since(since.max(self.stalled_until)));
        if stuck.is_some_and(|stuck| stuck >= self.config.stalled_after) {
            let queued_bytes = link.outbox.queued_bytes();
            tracing::warn!(plugin = %name, queued_bytes, "its channel is not read; it is closed");
            link.outbox.abort(Closed::Stalled { queued_bytes });
        }
        if link.outbox.is_closed() {
            self.channel_lost(&run, link.channel);
        }
    }
}
