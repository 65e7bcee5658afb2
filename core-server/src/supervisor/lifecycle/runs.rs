//! Runs: how they begin and end, and what follows.

use std::time::Duration;

use tokio::time::Instant;

use super::super::restart::{self, Ended, History, Next};
use super::{
    Action, End, Ending, Exit, ExitReport, Farewell, Life, LinkState, Note, Origin, PluginState,
    Rest, Retry, Running, Stage, State, Topic,
};

/// What was killed is gone after this, or it hangs: a process in the kernel, or a thread.
const GONE_WITHIN: Duration = Duration::from_secs(1);

impl State {
    pub(super) fn begin(&mut self, now: Instant, stage: Stage, out: &mut Vec<Action>) {
        self.generation = self.generation.next();
        self.restarts += u64::from(std::mem::take(&mut self.unasked));
        self.shown.gate = crate::channel::Gate::Waiting;
        let hosted = self.settings.origin == Origin::Hosted;
        self.life = Life::Running(Box::new(Running {
            began: now,
            stage,
            link: LinkState::Absent,
            has_process: hosted,
            ready: false,
            resumable: false,
            hook: None,
            deadline: hosted.then(|| now + self.settings.timeouts.connect),
            start_left: self.settings.timeouts.start,
            extended: Duration::ZERO,
            stop_by: None,
            leaving: None,
            was_started: false,
            missed: false,
            health: None,
            stable_at: None,
        }));
        if hosted {
            out.push(Action::Spawn);
        }
    }

    pub(super) fn end_run(&mut self, end: End, grace: Grace, now: Instant, out: &mut Vec<Action>) {
        let term = self.budget().term;
        let has_process = matches!(&self.life, Life::Running(run) if run.has_process);
        self.leave(end, now, out);
        if !has_process {
            return self.settle(None, now, out);
        }
        let Life::Ending(ending) = &mut self.life else {
            return;
        };
        ending.kill_at = Some(now + term);
        match grace {
            // It has been told to go or said that it goes: it may exit by itself first.
            Grace::Some => ending.terminate_at = Some(now + term / 4),
            Grace::None => {
                ending.forced = true;
                out.push(Action::Terminate);
            }
        }
    }

    /// Ends the run; what is left of its process comes next. Here alone it is decided whether that is a
    /// failure or what was asked for.
    pub(super) fn leave(&mut self, end: End, now: Instant, out: &mut Vec<Action>) {
        // Or its channel has been told already.
        let said_bye = matches!(end, End::Bye(_) | End::CredentialOver(_));
        let end = self.reason_of(end);
        let Life::Running(run) = &self.life else {
            return;
        };
        let (began, had_channel) = (run.began, run.link != LinkState::Absent);
        let farewell = match &end {
            _ if said_bye => Farewell::Clean,
            End::Asked(_) if self.shutdown.is_some() => Farewell::ShuttingDown,
            End::Asked(_) if matches!(run.stage, Stage::UnloadHook(_)) => Farewell::Clean,
            End::Asked(note)
            | End::CredentialOver(note)
            | End::Failed(note)
            | End::Unstartable(note)
            | End::Incompatible(note) => Farewell::RunEnded(note.message.clone()),
            End::Bye(_) => Farewell::Clean,
            End::Exited => Farewell::RunEnded("its process has ended".to_owned()),
        };
        self.life = Life::Ending(Ending {
            began,
            end,
            terminate_at: None,
            kill_at: None,
            gone_by: None,
            hung: false,
            forced: false,
            again: None,
        });
        self.show(now, out);
        if had_channel {
            out.push(Action::CloseChannel(farewell));
        }
        out.push(Action::EndRun);
    }

    /// Nothing is left of the run: what follows?
    pub(super) fn settle(&mut self, exit: Option<Exit>, now: Instant, out: &mut Vec<Action>) {
        let Life::Ending(ending) = &self.life else {
            return;
        };
        let (end, ran_for, forced) = (ending.end.clone(), now - ending.began, ending.forced);
        let again = ending.again;
        let exit = exit.unwrap_or_default();
        // A process that was ended for a reason did not choose its code.
        let by_code = |exit: &Exit| match exit.code {
            Some(code) if exit.reason.is_none() => Ended::Code(code),
            _ => Ended::Crash,
        };
        let (ended, note) = match end {
            End::Asked(note) | End::CredentialOver(note) => (None, note),
            End::Incompatible(note) => {
                self.halted |= self.desired == PluginState::Stopped;
                self.report(exit, note.message.clone(), ran_for, forced, now);
                self.crashed(out);
                self.rest_after(Rest::Incompatible, note, again);
                return;
            }
            End::Bye(reason) => {
                let left = !forced && exit.code.is_some();
                let ended = if left { by_code(&exit) } else { Ended::Code(0) };
                (Some(ended), Note::new("bye", format!("it left: {reason}")))
            }
            End::Exited => {
                let reason = exit.reason.unwrap_or("exited");
                (Some(by_code(&exit)), Note::new(reason, describe(&exit)))
            }
            End::Failed(note) => (Some(Ended::Crash), note),
            End::Unstartable(note) => (Some(Ended::Unstartable), note),
        };
        let message = if note.message.is_empty() {
            describe(&exit)
        } else {
            note.message.clone()
        };
        self.report(exit, message, ran_for, forced, now);
        let Some(ended) = ended else {
            // A stop may have come while it was ending for something else.
            let note = if self.halted {
                Note::new("operator", "it was stopped by request")
            } else {
                note
            };
            self.life = Life::Resting(Rest::Idle, note);
            return;
        };
        self.unasked = true;
        // Nobody waits for it.
        self.halted |= self.desired == PluginState::Stopped;
        let random = self.random();
        let policy = &self.settings.restart;
        let crash = restart::is_crash(ended, ran_for, policy);
        let (history, next) = restart::decide(self.history, policy, ended, ran_for, now, random);
        let trips = history.failures == policy.max_failures && crash;
        self.history = history;
        if crash {
            self.crashed(out);
        }
        let rest = match next {
            Next::Backoff(at) => Rest::Backoff(at),
            Next::CrashLoop(at) => Rest::CrashLoop(at),
            Next::GivenUp => Rest::GivenUp,
            Next::ConfigError => Rest::ConfigError,
            Next::Completed => Rest::Completed,
        };
        let skipped = self.rest_after(rest, note, again);
        // One alert, not one per try.
        if trips && !skipped && !self.halted && matches!(next, Next::CrashLoop(_) | Next::GivenUp) {
            out.push(Action::Announce(Topic::CrashLoop));
        }
    }

    pub(super) fn crashed(&mut self, out: &mut Vec<Action>) {
        self.troubled = true;
        out.push(Action::Announce(Topic::Crashed));
    }

    /// Rests so, unless what came up during the end says that it is tried again at once.
    fn rest_after(&mut self, rest: Rest, note: Note, again: Option<Retry>) -> bool {
        let skipped = again.is_some_and(|retry| retry.skips(rest));
        if skipped {
            self.history = History::default();
        }
        let rest = if skipped { Rest::Idle } else { rest };
        self.life = Life::Resting(rest, note);
        skipped
    }

    pub(super) fn report(
        &mut self,
        exit: Exit,
        message: String,
        ran_for: Duration,
        forced: bool,
        at: Instant,
    ) {
        self.last_exit = Some(ExitReport {
            exit,
            message,
            ran_for,
            forced,
            at,
        });
    }

    /// The next number of a splitmix64 sequence, in `0.0..1.0`.
    pub(super) fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Whether a process may leave by itself before it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grace {
    Some,
    None,
}

impl Ending {
    pub(super) fn kill(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.terminate_at = None;
        self.kill_at = None;
        self.gone_by = Some(now + GONE_WITHIN);
        self.forced = true;
        out.push(Action::Kill);
    }
}

/// A process's end as a sentence.
fn describe(exit: &Exit) -> String {
    match (&exit.message, exit.code, exit.signal) {
        (Some(message), _, _) => message.clone(),
        (None, Some(code), _) => format!("exit code {code}"),
        (None, None, Some(signal)) => format!("killed by {}", signal_name(signal)),
        (None, None, None) => "it ended".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
