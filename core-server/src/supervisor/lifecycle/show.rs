//! What is seen of the machine: state, phase and reasons, derived; what follows from their change
//! (gate, route, announcements); and the questions that its driver asks.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Action, End, ExitReport, Life, LinkState, Note, Origin, Phase, PluginState, Progress, Request,
    Rest, Route, Shown, Stage, State, Topic,
};
use crate::channel::Gate;
use crate::types::Generation;

/// How long a start slot is held at most: slots spread the load of beginnings, and a hook that takes
/// minutes is mostly waiting.
const SLOT_AT_MOST: Duration = Duration::from_secs(10);

impl State {
    /// Bars the plugin: it cannot run as it is configured.
    #[must_use]
    pub fn barred(mut self, reason: &'static str, message: String, now: Instant) -> Self {
        let note = Note::new(reason, message);
        self.bar = Some(note.clone());
        self.life = Life::Resting(Rest::ConfigError, note);
        self.show(now, &mut Vec::new());
        self
    }

    /// Of a plugin that does not run: not because nobody asked for it, but because somebody asked for it to
    /// be unloaded, before this core began.
    #[must_use]
    pub fn unloaded_by_request(mut self) -> Self {
        if let Life::Resting(Rest::Idle, note) = &mut self.life {
            *note = Note::new("operator", "it was unloaded by request");
        }
        self
    }

    /// The public state.
    #[must_use]
    pub fn state(&self) -> PluginState {
        match &self.life {
            Life::Running(run) => run.stage.state(),
            Life::Resting(..) | Life::Ending(_) => PluginState::Unloaded,
        }
    }

    /// What is going on.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let run = match &self.life {
            Life::Ending(_) => return Phase::Unloading,
            Life::Resting(rest, _) => {
                return match rest {
                    Rest::Idle => Phase::Idle,
                    Rest::WaitingDependency => Phase::WaitingDependency,
                    Rest::WaitingGrant => Phase::WaitingGrant,
                    Rest::Queued => Phase::Spawning,
                    Rest::Awaited => Phase::Connecting,
                    Rest::Backoff(_) => Phase::Backoff,
                    Rest::CrashLoop(_) => Phase::CrashLoop,
                    Rest::GivenUp => Phase::GivenUp,
                    Rest::ConfigError => Phase::ConfigError,
                    Rest::Incompatible => Phase::Incompatible,
                    Rest::Completed => Phase::Completed,
                };
            }
            Life::Running(run) => run,
        };
        if let LinkState::Suspended(_) = run.link {
            return Phase::Suspended;
        }
        match run.stage {
            Stage::Spawning => Phase::Spawning,
            Stage::Connecting => Phase::Connecting,
            Stage::Connected if self.ungranted.is_some() => Phase::WaitingGrant,
            Stage::Connected => Phase::WaitingDependency,
            Stage::Loading => Phase::Loading,
            Stage::Loaded | Stage::Stopped if self.target() == PluginState::Started => {
                Phase::WaitingDependency
            }
            Stage::Stopped if self.held_by_loss => Phase::WaitingDependency,
            Stage::Loaded | Stage::Stopped => Phase::Idle,
            Stage::Starting(_) => Phase::Starting,
            Stage::Started if run.missed || run.health.is_some() => Phase::Degraded,
            Stage::Started => Phase::Ready,
            Stage::Draining | Stage::StopHook(_) => Phase::Stopping,
            Stage::UnloadHook(_) => Phase::Unloading,
        }
    }

    /// Why: a stable word (may be empty) and a sentence.
    #[must_use]
    pub fn explain(&self) -> (&'static str, String) {
        let dependency = || ("dependency", self.missing.clone().unwrap_or_default());
        let grant = || ("not_granted", self.ungranted.clone().unwrap_or_default());
        let note = |note: &Note| (note.reason, note.message.clone());
        let end = |end: &End| match end {
            End::Asked(said)
            | End::CredentialOver(said)
            | End::Failed(said)
            | End::Unstartable(said)
            | End::Incompatible(said) => note(said),
            End::Bye(reason) => ("bye", format!("it left: {reason}")),
            End::Exited => ("exited", String::new()),
        };
        let run = match &self.life {
            Life::Resting(Rest::WaitingDependency, _) => return dependency(),
            Life::Resting(Rest::WaitingGrant, _) => return grant(),
            Life::Resting(Rest::Queued, _) => {
                return ("start_slot", "it waits for its turn to start".to_owned());
            }
            Life::Resting(Rest::Awaited, said) if said.message.is_empty() => {
                return ("remote", "it has not connected yet".to_owned());
            }
            Life::Resting(_, said) => return note(said),
            Life::Ending(ending) if ending.hung => {
                return (
                    "hung",
                    "it was told to end and has not ended yet".to_owned(),
                );
            }
            Life::Ending(ending) => return end(&ending.end),
            Life::Running(run) => run,
        };
        match self.phase() {
            Phase::WaitingDependency => dependency(),
            Phase::WaitingGrant => grant(),
            Phase::Suspended => ("channel_lost", "its channel may still come back".to_owned()),
            Phase::Degraded if run.missed => {
                ("heartbeat", "it does not answer heartbeats".to_owned())
            }
            Phase::Degraded => ("health", run.health.clone().unwrap_or_default()),
            Phase::Stopping | Phase::Unloading => match &run.leaving {
                Some(leaving) => end(leaving),
                None if self.shutdown.is_some() => ("shutdown", "the core is stopping".to_owned()),
                None if self.held_by_loss => dependency(),
                None => ("operator", "by request".to_owned()),
            },
            _ => ("", String::new()),
        }
    }

    /// When the present phase began.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.shown.since
    }

    /// When the core tries again, while it waits to.
    #[must_use]
    pub fn next_attempt_at(&self) -> Option<Instant> {
        match &self.life {
            Life::Resting(Rest::Backoff(at) | Rest::CrashLoop(at), _) => Some(*at),
            _ => None,
        }
    }

    /// What is wanted of it.
    #[must_use]
    pub fn desired(&self) -> PluginState {
        self.desired
    }

    /// Number of the current or last run.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Runs begun without anyone's request.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Failures that count at present.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.history.failures
    }

    /// How the last run ended.
    #[must_use]
    pub fn last_exit(&self) -> Option<&ExitReport> {
        self.last_exit.as_ref()
    }

    /// Who starts it.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.settings.origin
    }

    /// Whether others may rely on it: STARTED, and meant to stay so. (A lost channel that may come back,
    /// and a degradation, do not change that.)
    #[must_use]
    pub fn is_available(&self) -> bool {
        matches!(&self.life, Life::Running(run) if run.stage == Stage::Started)
            && self.target() == PluginState::Started
    }

    /// Whether there is a run.
    #[must_use]
    pub fn has_run(&self) -> bool {
        matches!(self.life, Life::Running(_))
    }

    /// Whether there is neither a run nor a process.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        matches!(self.life, Life::Resting(..))
    }

    /// Whether it was told to end by all means and has not.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        matches!(&self.life, Life::Ending(ending) if ending.hung)
    }

    /// Whether a first channel may be opened now.
    #[must_use]
    pub fn awaits_channel(&self) -> bool {
        match &self.life {
            Life::Resting(Rest::Awaited | Rest::Incompatible, _) => {
                self.settings.origin == Origin::Remote
            }
            Life::Running(run) => matches!(run.stage, Stage::Spawning | Stage::Connecting),
            _ => false,
        }
    }

    /// Until when a lost channel may come back.
    #[must_use]
    pub fn suspended_until(&self) -> Option<Instant> {
        match &self.life {
            Life::Running(run) => match run.link {
                LinkState::Suspended(until) => Some(until),
                _ => None,
            },
            _ => None,
        }
    }

    /// The id of the hook whose end is awaited.
    #[must_use]
    pub fn awaited_hook(&self) -> Option<u64> {
        match &self.life {
            Life::Running(run) => run.hook.map(|(_, id)| id),
            _ => None,
        }
    }

    /// Whether it waits for a start slot.
    #[must_use]
    pub fn wants_slot(&self) -> bool {
        matches!(self.life, Life::Resting(Rest::Queued, _))
    }

    /// Until when it holds a start slot, if it is not ready before: `Some` on its way from spawn to ready.
    /// (One that was STOPPED starts without a process of its own to start, and one that waits for a
    /// dependency holds nobody up.)
    #[must_use]
    pub fn slot_until(&self) -> Option<Instant> {
        let Life::Running(run) = &self.life else {
            return None;
        };
        let on_its_way = matches!(
            run.stage,
            Stage::Spawning
                | Stage::Connecting
                | Stage::Loading
                | Stage::Starting(PluginState::Loaded)
        );
        let hosted = self.settings.origin == Origin::Hosted;
        (hosted && on_its_way).then(|| run.began + SLOT_AT_MOST)
    }

    /// When `Event::Tick` is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.life {
            Life::Resting(..) => self.next_attempt_at(),
            Life::Running(run) => {
                let suspended = match run.link {
                    LinkState::Suspended(until) => Some(until),
                    _ => None,
                };
                [run.deadline, suspended, run.stable_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Life::Ending(ending) => [ending.terminate_at, ending.kill_at, ending.gone_by]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Whether a request fits the state.
    ///
    /// # Errors
    /// The requests that would.
    pub fn permits(&self, request: Request) -> Result<(), &'static [&'static str]> {
        let state = self.state();
        let same = self.desired == request.wants();
        match request {
            Request::Start | Request::Unload | Request::Restart => Ok(()),
            Request::Load if same => Ok(()),
            Request::Load => match state {
                PluginState::Unloaded | PluginState::Loaded => Ok(()),
                PluginState::Started => Err(&["start", "stop", "unload", "restart"]),
                PluginState::Stopped => Err(&["start", "stop", "unload", "restart"]),
            },
            // Where nobody wants it to work there is nothing to stop.
            Request::Stop => match (state, self.desired) {
                (PluginState::Unloaded, PluginState::Unloaded)
                | (PluginState::Loaded, PluginState::Loaded | PluginState::Unloaded) => {
                    Err(&["load", "start", "unload", "restart"])
                }
                _ => Ok(()),
            },
        }
    }

    /// Whether a wanted state was reached since it was asked for.
    #[must_use]
    pub fn progress(&self, wanted: PluginState) -> Progress {
        if self.phase() == Phase::WaitingGrant
            && matches!(wanted, PluginState::Loaded | PluginState::Started)
        {
            // Nothing that the core or the plugin does could change that.
            let cause = self.ungranted.clone().unwrap_or_default();
            return Progress::Failed { cause };
        }
        if let Life::Resting(rest, note) = &self.life {
            let cause = || note.message.clone();
            let at_rest = self.halted || self.settings.origin == Origin::Remote;
            match rest {
                Rest::Idle if wanted == PluginState::Unloaded => return Progress::Reached,
                // There is nothing to be stopped, and nothing begins.
                _ if wanted == PluginState::Stopped && at_rest => return Progress::Reached,
                Rest::Backoff(_)
                | Rest::CrashLoop(_)
                | Rest::GivenUp
                | Rest::ConfigError
                | Rest::Incompatible
                | Rest::Completed => return Progress::Failed { cause: cause() },
                _ => return Progress::Pending,
            }
        }
        if self.is_hung() {
            let cause = "its last run was told to end and has not ended".to_owned();
            return Progress::Failed { cause };
        }
        let settled = matches!(
            self.phase(),
            Phase::Idle | Phase::Ready | Phase::Degraded | Phase::Suspended
        );
        let there = match wanted {
            PluginState::Unloaded => false,
            // A run under STOPPED is brought to LOADED, which counts as reached; the way back from
            // STARTED to LOADED does not exist, so STOPPED counts for LOADED.
            PluginState::Loaded | PluginState::Stopped => {
                matches!(self.state(), PluginState::Loaded | PluginState::Stopped)
            }
            PluginState::Started => self.state() == PluginState::Started,
        };
        let leaving = self.target() == PluginState::Unloaded;
        if settled && there && !leaving {
            Progress::Reached
        } else {
            Progress::Pending
        }
    }

    fn route(&self) -> Route {
        match &self.life {
            Life::Running(run) if run.stage == Stage::Started => match run.link {
                LinkState::Suspended(_) => Route::Suspended,
                _ if run.missed => Route::Degraded,
                _ => Route::Open,
            },
            _ => Route::Closed,
        }
    }

    fn gate(&self) -> Gate {
        match &self.life {
            Life::Running(run) => match run.stage {
                Stage::Started | Stage::Draining => Gate::Open,
                _ if run.was_started => Gate::Closed,
                _ => Gate::Waiting,
            },
            _ => self.shown.gate,
        }
    }

    /// Brings what others see in line with what is.
    pub(super) fn show(&mut self, now: Instant, out: &mut Vec<Action>) {
        let shown = Shown {
            state: self.state(),
            phase: self.phase(),
            since: now,
            route: self.route(),
            gate: self.gate(),
        };
        let before = std::mem::replace(&mut self.shown, shown.clone());
        // What closes comes before what follows from it; what opens comes after what allows it.
        // Nothing is ever half open: the gate of events and the route of calls move together.
        if shown.gate != before.gate {
            out.push(Action::Gate(shown.gate));
        }
        if shown.route != before.route {
            out.push(Action::Route(shown.route));
        }
        if shown.state != before.state {
            out.push(Action::Announce(match shown.state {
                PluginState::Unloaded => Topic::Unloaded,
                PluginState::Loaded => Topic::Loaded,
                PluginState::Started => Topic::Started,
                PluginState::Stopped => Topic::Stopped,
            }));
        }
        if (shown.state, shown.phase) == (before.state, before.phase) {
            self.shown.since = before.since;
        } else if shown.phase == Phase::Degraded {
            self.troubled = true;
            out.push(Action::Announce(Topic::Degraded));
        } else if shown.phase == Phase::Ready && std::mem::take(&mut self.troubled) {
            out.push(Action::Announce(Topic::Recovered));
        }
        self.watch_stability(now);
    }

    /// A plugin is stable once it has been well, and where it should be, for long enough.
    fn watch_stability(&mut self, now: Instant) {
        let well = matches!(self.shown.phase, Phase::Ready | Phase::Idle);
        let after = self.settings.restart.stable_after;
        if let Life::Running(run) = &mut self.life {
            run.stable_at = match run.stable_at {
                _ if !well => None,
                None if self.history != super::History::default() => Some(now + after),
                kept => kept,
            };
        }
    }
}
