//! The steps. An event changes what is known ([`State::apply`]); then [`State::pursue`] does whatever
//! brings the plugin nearer to what is wanted, until nothing more can be done now. Hooks and the
//! beginnings and ends of runs have files of their own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::restart::History;
use super::runs::Grace;
use super::{
    Action, Budget, End, Event, Exit, Life, LinkState, Note, Origin, PluginState, Request, Rest,
    Retry, Route, RunEvent, Settings, Stage, State,
};
use crate::channel::Hook;

/// Why a run ended whose credential is over.
const CREDENTIAL: &str = "credential";

/// Decides; never acts. The driver performs the actions in order and feeds back what happened.
#[must_use]
pub fn step(state: &State, event: Event, now: Instant) -> (State, Vec<Action>) {
    let mut next = state.clone();
    let mut out = Vec::new();
    next.apply(event, now, &mut out);
    next.pursue(now, &mut out);
    next.show(now, &mut out);
    (next, out)
}

impl State {
    fn apply(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        match event {
            Event::Tick => self.tick(now, out),
            Event::Request(request) => self.request(request),
            Event::StopAll => {
                if self.desired == PluginState::Started {
                    self.desired = PluginState::Stopped;
                }
                self.halt_at_rest();
            }
            Event::Dependencies(missing) => self.dependencies(missing),
            Event::Grants(ungranted) => self.ungranted = ungranted,
            Event::Late(by) => self.postpone(by),
            Event::RestartForDependency => {
                if let Life::Running(run) = &mut self.life {
                    let note = Note::new("dependency", "a plugin that it requires was lost");
                    run.leaving.get_or_insert(End::Asked(note));
                    self.unasked = true;
                }
            }
            Event::StopForDependency => self.held_by_loss = self.missing.is_some(),
            Event::Changed => self.try_again(Retry::Changed),
            Event::DependencyReady => self.try_again(Retry::DependencyReady),
            Event::Slot => {
                if matches!(self.life, Life::Resting(Rest::Queued, _)) {
                    self.begin(now, Stage::Spawning, out);
                }
            }
            Event::Opened { ready, resumable } => self.opened(ready, resumable, now, out),
            Event::Freeze => self.frozen = true,
            Event::Shutdown(budget) => self.shut_down(budget, now),
            Event::KillNow => self.kill_now(now, out),
            Event::Incompatible(message) => self.incompatible(message, now, out),
            Event::Renewed(settings, restart) => self.renew(settings, restart),
            Event::Wanted(state) => {
                self.desired = state;
                self.halted &= state == PluginState::Stopped;
            }
            Event::Barred(bar) => self.set_bar(bar),
            Event::Run(generation, event) => {
                if generation == self.generation {
                    self.run_event(event, now, out);
                }
            }
        }
    }

    fn request(&mut self, request: Request) {
        self.desired = request.wants();
        self.unasked = false;
        self.halted = false;
        self.halt_at_rest();
        if request == Request::Restart
            && let Life::Running(run) = &mut self.life
        {
            let note = Note::new("operator", "a restart was asked for");
            run.leaving.get_or_insert(End::Asked(note));
        }
        if matches!(request, Request::Load | Request::Start | Request::Restart) {
            self.try_again(Retry::Asked);
        }
    }

    /// Where it is wanted STOPPED and has no run, none begins.
    fn halt_at_rest(&mut self) {
        let has_run = matches!(self.life, Life::Running(_));
        self.halted |= self.desired == PluginState::Stopped && !has_run;
    }

    /// Skips a wait and forgets what counted against the plugin. Where a run is just being ended,
    /// what would follow from its end is skipped in advance.
    fn try_again(&mut self, retry: Retry) {
        match &mut self.life {
            Life::Resting(rest, _) => {
                let rest = *rest;
                if retry.skips(rest) {
                    self.history = History::default();
                    self.life = Life::Resting(Rest::Idle, Note::default());
                } else if retry != Retry::DependencyReady || rest == Rest::WaitingDependency {
                    self.history = History::default();
                }
            }
            Life::Ending(ending) => ending.again = ending.again.max(Some(retry)),
            // A run that goes on proves by itself that it is well.
            Life::Running(_) if retry == Retry::DependencyReady => {}
            Life::Running(_) => self.history = History::default(),
        }
    }

    fn renew(&mut self, settings: Settings, restart: Option<(&'static str, String)>) {
        let moved = settings.origin != self.settings.origin;
        self.settings = Arc::new(settings);
        match &mut self.life {
            // Who is waited for has changed.
            Life::Resting(..) if moved => {
                self.life = Life::Resting(Rest::Idle, Note::default());
            }
            Life::Running(run) => {
                if let Some((reason, message)) = restart {
                    run.leaving
                        .get_or_insert(End::Asked(Note::new(reason, message)));
                    self.unasked = false;
                    self.history = History::default();
                }
            }
            Life::Resting(..) | Life::Ending(_) => {}
        }
    }

    fn set_bar(&mut self, bar: Option<(&'static str, String)>) {
        let lifted = self.bar.is_some() && bar.is_none();
        self.bar = bar.map(|(reason, message)| Note::new(reason, message));
        if lifted {
            self.try_again(Retry::Changed);
        }
    }

    fn dependencies(&mut self, missing: Option<String>) {
        let recovered = self.missing.is_some() && missing.is_none();
        self.missing = missing;
        if !recovered {
            return;
        }
        self.held_by_loss = false;
        // What made it fail was perhaps the absence of what has just come back.
        self.try_again(Retry::DependencyReady);
    }

    fn opened(&mut self, ready: bool, resumable: bool, now: Instant, out: &mut Vec<Action>) {
        match &self.life {
            Life::Resting(Rest::Awaited | Rest::Incompatible, _)
                if self.settings.origin == Origin::Remote =>
            {
                self.begin(now, Stage::Connected, out);
            }
            Life::Running(run) if matches!(run.stage, Stage::Spawning | Stage::Connecting) => {}
            _ => return,
        }
        if let Life::Running(run) = &mut self.life {
            run.link = LinkState::Live;
            run.ready = ready;
            run.resumable = resumable;
            run.deadline = None;
            run.stage = Stage::Connected;
        }
    }

    fn shut_down(&mut self, budget: Budget, now: Instant) {
        self.frozen = true;
        self.shutdown = Some(budget);
        match &mut self.life {
            Life::Resting(..) => {}
            Life::Running(run) => {
                let limit = match run.stage {
                    Stage::Draining => budget.drain,
                    Stage::StopHook(_) | Stage::UnloadHook(_) => budget.hooks,
                    _ => return,
                };
                run.deadline = Some(clamp(run.deadline, now + limit));
                run.stop_by = run
                    .stop_by
                    .map(|by| by.min(now + budget.drain + budget.hooks));
            }
            Life::Ending(ending) => {
                ending.terminate_at = ending.terminate_at.map(|at| at.min(now));
                ending.kill_at = ending.kill_at.map(|at| at.min(now + budget.term));
            }
        }
    }

    fn kill_now(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.frozen = true;
        if matches!(self.life, Life::Running(_)) {
            let note = Note::new("shutdown", "the core stops without grace");
            self.end_run(End::Asked(note), Grace::None, now, out);
        }
        if let Life::Ending(ending) = &mut self.life {
            ending.kill(now, out);
        }
    }

    fn incompatible(&mut self, message: String, now: Instant, out: &mut Vec<Action>) {
        match &self.life {
            Life::Resting(rest, _) if self.settings.origin == Origin::Remote => {
                if self.frozen || self.desired == PluginState::Unloaded {
                    return;
                }
                // It may knock for ever; people hear of it once.
                if *rest != Rest::Incompatible {
                    self.report(Exit::default(), message.clone(), Duration::ZERO, false, now);
                    self.crashed(out);
                }
                self.life = Life::Resting(Rest::Incompatible, Note::new("wire_version", message));
            }
            // Only before its first channel: a run that goes on has already agreed on a version.
            Life::Running(run) if run.link == LinkState::Absent => {
                let note = Note::new("wire_version", message);
                self.end_run(End::Incompatible(note), Grace::Some, now, out);
            }
            _ => {}
        }
    }

    fn run_event(&mut self, event: RunEvent, now: Instant, out: &mut Vec<Action>) {
        if let RunEvent::Exited(exit) = event {
            return self.exited(exit, now, out);
        }
        let Life::Running(run) = &mut self.life else {
            if let RunEvent::SpawnFailed { .. } = event {
                // Ended before it began: there is no process to wait for.
                self.settle(None, now, out);
            }
            return;
        };
        match event {
            RunEvent::Spawned => {
                if run.stage == Stage::Spawning {
                    run.stage = Stage::Connecting;
                }
            }
            RunEvent::SpawnFailed { lasting, message } => {
                run.has_process = false;
                let note = Note::new("spawn_failed", message);
                let end = if lasting {
                    End::Unstartable(note)
                } else {
                    End::Failed(note)
                };
                self.end_run(end, Grace::None, now, out);
            }
            RunEvent::Resumed => self.resumed(now, out),
            RunEvent::HookDone { hook_id, result } => self.hook_done(hook_id, result, now, out),
            RunEvent::Extend { hook_id, by } => self.extend(hook_id, by, now),
            RunEvent::Drained => {
                if run.stage == Stage::Draining {
                    self.stop_hook(now, out);
                }
            }
            RunEvent::ChannelLost => self.channel_lost(now, out),
            RunEvent::Bye(reason) => self.end_run(End::Bye(reason), Grace::Some, now, out),
            RunEvent::CredentialOver(why) => {
                let end = End::CredentialOver(Note::new(CREDENTIAL, why));
                self.end_run(end, Grace::Some, now, out);
            }
            RunEvent::OverLimit { reason, message } => {
                let end = End::Failed(Note::new(reason, message));
                self.end_run(end, Grace::None, now, out);
            }
            RunEvent::Heartbeat { missed } => run.missed = missed,
            RunEvent::IdentityRefused(message) => {
                // Only before its first channel, by which a run has proved who it is.
                if run.link == LinkState::Absent {
                    let end = End::Incompatible(Note::new("identity", message));
                    self.end_run(end, Grace::Some, now, out);
                }
            }
            RunEvent::Lifeless(how) => self.lifeless(how, now, out),
            RunEvent::GaveWay(after) => self.gave_way(after, now, out),
            RunEvent::Health(health) => run.health = health,
            RunEvent::Exited(_) => {}
        }
    }

    fn resumed(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Life::Running(run) = &mut self.life else {
            return;
        };
        if run.link == LinkState::Absent {
            return;
        }
        run.link = LinkState::Live;
        run.missed = false;
        // Calls must go to the new channel even where the old one was never missed.
        if self.shown.route != Route::Closed {
            self.shown.route = Route::Suspended;
        }
        // A hook that was under way may have been lost with the channel, or its answer was: it is
        // sent again under the same id, so that a plugin can tell the repetition.
        if let (Some((hook, hook_id)), Some(deadline)) = (run.hook, run.deadline) {
            let timeout = deadline.saturating_duration_since(now);
            out.push(Action::RunHook {
                hook,
                hook_id,
                timeout,
            });
        }
    }

    fn channel_lost(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Life::Running(run) = &mut self.life else {
            return;
        };
        if run.link != LinkState::Live {
            return;
        }
        if matches!(run.stage, Stage::UnloadHook(_)) {
            // Closing the stream is answer enough.
            return self.unloaded(now, out);
        }
        if !run.has_process && !run.resumable {
            // Nobody could ever come back to this run. (Of a child the exit status is awaited.)
            let note = Note::new("channel_lost", "its channel was lost");
            return self.end_run(End::Failed(note), Grace::None, now, out);
        }
        run.link = LinkState::Suspended(now + self.settings.timeouts.suspend);
        run.missed = false;
    }

    fn exited(&mut self, exit: Exit, now: Instant, out: &mut Vec<Action>) {
        if let Life::Running(run) = &mut self.life {
            run.has_process = false;
            self.leave(End::Exited, now, out);
        }
        self.settle(Some(exit), now, out);
    }

    // ---- what is wanted

    /// What is wanted of the present run.
    pub(super) fn target(&self) -> PluginState {
        let leaving = matches!(&self.life, Life::Running(run) if run.leaving.is_some());
        if self.shutdown.is_some() || leaving {
            PluginState::Unloaded
        } else if self.held_by_loss && self.desired == PluginState::Started {
            PluginState::Stopped
        } else {
            self.desired
        }
    }

    pub(super) fn wants_end(&self) -> bool {
        self.target() == PluginState::Unloaded
    }

    /// Why a run really ends that ends like this: what was asked for is no failure, whatever brings it
    /// about.
    pub(super) fn reason_of(&self, end: End) -> End {
        if !matches!(end, End::Asked(_)) && self.wants_end() {
            self.asked_end()
        } else {
            end
        }
    }

    /// The end that was asked for: its reason.
    pub(super) fn asked_end(&self) -> End {
        if let Life::Running(run) = &self.life
            && let Some(end) = &run.leaving
        {
            return end.clone();
        }
        End::Asked(if self.shutdown.is_some() {
            Note::new("shutdown", "the core is stopping")
        } else {
            Note::new("operator", "it was unloaded by request")
        })
    }

    pub(super) fn budget(&self) -> Budget {
        let timeouts = &self.settings.timeouts;
        let own = Budget {
            drain: timeouts.drain,
            hooks: timeouts.stop,
            term: timeouts.term,
        };
        self.shutdown.map_or(own, |budget| Budget {
            drain: budget.drain.min(own.drain),
            hooks: budget.hooks.min(own.hooks),
            term: budget.term.min(own.term),
        })
    }

    /// Does what can be done now, until nothing more can.
    fn pursue(&mut self, now: Instant, out: &mut Vec<Action>) {
        // Each round goes one stage on; a life has fewer stages than this, so the bound only guards
        // against a mistake in the rules.
        for _ in 0..16 {
            if !self.pursue_once(now, out) {
                return;
            }
        }
        debug_assert!(false, "the rules of the lifecycle turn in a circle");
    }

    fn pursue_once(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        use PluginState::{Loaded, Started, Stopped, Unloaded};
        let target = self.target();
        let waits = self.missing.is_some();
        let ungranted = self.ungranted.is_some();
        let run = match &mut self.life {
            Life::Resting(rest, _) => {
                let rest = *rest;
                return self.pursue_rest(rest);
            }
            Life::Ending(_) => return false,
            Life::Running(run) => run,
        };
        if let LinkState::Suspended(_) = run.link {
            if target == Unloaded {
                self.unloaded_late(now, out);
                return true;
            }
            return false;
        }
        match (run.stage, target) {
            (Stage::Spawning | Stage::Connecting, Unloaded) => self.unloaded_late(now, out),
            (Stage::Connected | Stage::Loading, Unloaded) => self.unload_hook(now, out),
            (Stage::Connected, _) if !waits && !ungranted => {
                let timeout = run.start_left;
                self.run_hook(Hook::Load, Stage::Loading, timeout, now, out);
            }
            (Stage::Loaded, Started) if !waits => {
                let timeout = run.start_left;
                self.run_hook(Hook::Start, Stage::Starting(Loaded), timeout, now, out);
            }
            (Stage::Loaded | Stage::Stopped, Unloaded) => self.unload_hook(now, out),
            (Stage::Starting(_), Unloaded | Loaded | Stopped) => self.stop_hook(now, out),
            (Stage::Started, Unloaded | Loaded | Stopped) => self.drain(now, out),
            // The request came back in time: nothing was ended yet.
            (Stage::Draining, Started) => self.enter(Stage::Started, now, out),
            (Stage::Stopped, Started) if !waits => {
                let timeout = self.settings.timeouts.start;
                run.stop_by = None;
                run.extended = Duration::ZERO;
                self.run_hook(Hook::Start, Stage::Starting(Stopped), timeout, now, out);
            }
            _ => return false,
        }
        true
    }

    fn pursue_rest(&mut self, rest: Rest) -> bool {
        let halted = self.halted && self.settings.origin == Origin::Hosted;
        let wanted = !self.frozen && !halted && self.desired != PluginState::Unloaded;
        if !wanted {
            if rest == Rest::Idle {
                return false;
            }
            let note = if self.frozen {
                Note::new("shutdown", "the core is stopping")
            } else if halted {
                let said = "it was stopped by request";
                match &self.life {
                    Life::Resting(_, failed) if !failed.message.is_empty() => {
                        let message = format!("{said}, and is not tried again: {}", failed.message);
                        Note::new(failed.reason, message)
                    }
                    _ => Note::new("operator", said),
                }
            } else {
                Note::new("operator", "it was unloaded by request")
            };
            self.life = Life::Resting(Rest::Idle, note);
            return true;
        }
        let begins = matches!(
            rest,
            Rest::Idle
                | Rest::WaitingDependency
                | Rest::WaitingGrant
                | Rest::Queued
                | Rest::Awaited
        );
        if let Some(bar) = self.bar.clone().filter(|_| begins) {
            self.life = Life::Resting(Rest::ConfigError, bar);
            return true;
        }
        let next = match (rest, self.settings.origin) {
            (Rest::Idle, Origin::Remote) => Rest::Awaited,
            (Rest::Idle | Rest::Queued | Rest::WaitingDependency, Origin::Hosted)
                if self.ungranted.is_some() =>
            {
                Rest::WaitingGrant
            }
            (Rest::WaitingGrant, _) if self.ungranted.is_none() => Rest::Idle,
            (Rest::Idle | Rest::Queued, Origin::Hosted) if self.missing.is_some() => {
                Rest::WaitingDependency
            }
            (Rest::Idle, Origin::Hosted) => Rest::Queued,
            (Rest::WaitingDependency, _) if self.missing.is_none() => Rest::Queued,
            _ => return false,
        };
        // Why nobody is there is worth knowing until somebody comes.
        let note = match &mut self.life {
            Life::Resting(Rest::Idle, note)
                if next == Rest::Awaited && note.reason == CREDENTIAL =>
            {
                std::mem::take(note)
            }
            _ => Note::default(),
        };
        self.life = Life::Resting(next, note);
        true
    }

    fn drain(&mut self, now: Instant, out: &mut Vec<Action>) {
        let drain = self.budget().drain;
        self.enter(Stage::Draining, now, out);
        if let Life::Running(run) = &mut self.life {
            run.deadline = Some(now + drain);
        }
        out.push(Action::Drain);
    }

    pub(super) fn enter(&mut self, stage: Stage, now: Instant, out: &mut Vec<Action>) {
        if let Life::Running(run) = &mut self.life {
            run.stage = stage;
            run.deadline = None;
            if stage == Stage::Started {
                run.was_started = true;
            }
            if !stage.has_hook() {
                run.hook = None;
            }
        }
        self.show(now, out);
    }
}

impl Stage {
    pub(super) fn state(self) -> PluginState {
        match self {
            Self::Spawning | Self::Connecting | Self::Connected | Self::Loading => {
                PluginState::Unloaded
            }
            Self::Loaded => PluginState::Loaded,
            Self::Started | Self::Draining => PluginState::Started,
            Self::Stopped => PluginState::Stopped,
            Self::Starting(from) | Self::StopHook(from) | Self::UnloadHook(from) => from,
        }
    }

    pub(super) fn has_hook(self) -> bool {
        matches!(
            self,
            Self::Loading | Self::Starting(_) | Self::StopHook(_) | Self::UnloadHook(_)
        )
    }
}

fn clamp(deadline: Option<Instant>, limit: Instant) -> Instant {
    deadline.map_or(limit, |deadline| deadline.min(limit))
}
