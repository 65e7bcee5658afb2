//! What time does to a life: deadlines that pass, deadlines that are moved, and a plugin that does not
//! live any more.

use std::time::Duration;

use tokio::time::Instant;

use super::super::liveness::Lifeless;
use super::super::restart::History;
use super::runs::Grace;
use super::{Action, End, Life, LinkState, Note, Rest, Stage, State};

impl State {
    pub(super) fn lifeless(&mut self, how: Lifeless, now: Instant, out: &mut Vec<Action>) {
        let note = match how {
            Lifeless::Silent(after) => Note::new(
                "silent",
                format!("nothing was heard of it for {}", seconds(after)),
            ),
            Lifeless::Unresponsive(after) => Note::new(
                "unresponsive",
                format!("it answered no ping for {}", seconds(after)),
            ),
        };
        self.end_run(End::Failed(note), Grace::None, now, out);
    }

    pub(super) fn gave_way(&mut self, after: Duration, now: Instant, out: &mut Vec<Action>) {
        let silent = seconds(after);
        let text = format!("another instance came, and it gave no sign of life for {silent}");
        let end = End::Failed(Note::new("gave_way", text));
        self.end_run(end, Grace::None, now, out);
    }

    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Action>) {
        let timeouts = &self.settings.timeouts;
        match &mut self.life {
            Life::Resting(Rest::Backoff(at) | Rest::CrashLoop(at), _) if *at <= now => {
                self.life = Life::Resting(Rest::Idle, Note::default());
            }
            Life::Resting(..) => {}
            Life::Running(run) => {
                if run.stable_at.is_some_and(|at| at <= now) {
                    run.stable_at = None;
                    self.history = History::default();
                }
                if let LinkState::Suspended(until) = run.link
                    && until <= now
                {
                    let text = format!("channel lost for {}", seconds(timeouts.suspend));
                    let note = Note::new("channel_lost", text);
                    return self.end_run(End::Failed(note), Grace::None, now, out);
                }
                if run.deadline.is_some_and(|at| at <= now) {
                    self.late(now, out);
                }
            }
            Life::Ending(ending) => {
                if ending.terminate_at.is_some_and(|at| at <= now) {
                    ending.terminate_at = None;
                    ending.forced = true;
                    out.push(Action::Terminate);
                }
                if ending.kill_at.is_some_and(|at| at <= now) {
                    ending.kill(now, out);
                }
                if ending.gone_by.is_some_and(|at| at <= now) {
                    ending.gone_by = None;
                    ending.hung = true;
                }
            }
        }
    }

    /// Moves everything that could end or degrade the plugin. The end of the whole core is bounded by
    /// the clock alone, so nothing moves then.
    pub(super) fn postpone(&mut self, by: Duration) {
        if self.shutdown.is_some() {
            return;
        }
        match &mut self.life {
            Life::Resting(..) => {}
            Life::Running(run) => {
                if let LinkState::Suspended(until) = &mut run.link {
                    *until += by;
                }
                for deadline in [&mut run.deadline, &mut run.stop_by, &mut run.stable_at] {
                    *deadline = deadline.map(|at| at + by);
                }
            }
            Life::Ending(ending) => {
                for deadline in [
                    &mut ending.terminate_at,
                    &mut ending.kill_at,
                    &mut ending.gone_by,
                ] {
                    *deadline = deadline.map(|at| at + by);
                }
            }
        }
    }

    /// The present stage took too long.
    fn late(&mut self, now: Instant, out: &mut Vec<Action>) {
        let Life::Running(run) = &mut self.life else {
            return;
        };
        run.deadline = None;
        let (reason, text) = match run.stage {
            Stage::Spawning | Stage::Connecting => {
                let connect = seconds(self.settings.timeouts.connect);
                (
                    "connect_timeout",
                    format!("it did not open its channel within {connect}"),
                )
            }
            Stage::Loading => ("hook_timeout", "on_load did not end in time".to_owned()),
            Stage::Starting(_) => ("hook_timeout", "on_start did not end in time".to_owned()),
            Stage::StopHook(_) => ("hook_timeout", "on_stop did not end in time".to_owned()),
            Stage::Draining => return self.stop_hook(now, out),
            Stage::UnloadHook(_) => return self.unloaded_late(now, out),
            Stage::Connected | Stage::Loaded | Stage::Started | Stage::Stopped => return,
        };
        self.end_run(End::Failed(Note::new(reason, text)), Grace::None, now, out);
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
