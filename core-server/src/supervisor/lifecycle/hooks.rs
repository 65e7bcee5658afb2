//! Hooks: sent, answered, extended.

use std::time::Duration;

use tokio::time::Instant;

use super::runs::Grace;
use super::{Action, End, Life, LinkState, Note, Stage, State};
use crate::channel::Hook;

/// One extension of a hook's time, at most.
const EXTENSION_STEP: Duration = Duration::from_secs(30);

impl State {
    pub(super) fn hook_done(
        &mut self,
        hook_id: u64,
        result: Result<(), String>,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let Life::Running(run) = &mut self.life else {
            return;
        };
        let Some((hook, id)) = run.hook else {
            return;
        };
        if id != hook_id {
            return;
        }
        run.hook = None;
        if let Some(deadline) = run.deadline.take()
            && matches!(hook, Hook::Load | Hook::Start)
        {
            run.start_left = deadline.saturating_duration_since(now);
        }
        if let (Err(text), false) = (&result, hook == Hook::Unload) {
            let note = Note::new("hook_failed", format!("{} failed: {text}", hook.as_str()));
            if hook != Hook::Stop {
                return self.end_run(End::Failed(note), Grace::None, now, out);
            }
            // It goes on with `on_unload`, and ends for this reason then.
            let end = self.reason_of(End::Failed(note));
            if let Life::Running(run) = &mut self.life {
                run.leaving = Some(end);
            }
        }
        self.passed(hook, now, out);
    }

    /// A hook is over, or is taken as over.
    pub(super) fn passed(&mut self, hook: Hook, now: Instant, out: &mut Vec<Action>) {
        match hook {
            Hook::Load => self.enter(Stage::Loaded, now, out),
            Hook::Start => self.enter(Stage::Started, now, out),
            Hook::Stop => self.enter(Stage::Stopped, now, out),
            Hook::Unload => self.unloaded(now, out),
        }
    }

    pub(super) fn extend(&mut self, hook_id: u64, by: Duration, now: Instant) {
        let Life::Running(run) = &mut self.life else {
            return;
        };
        let extensible = matches!(run.stage, Stage::Loading | Stage::Starting(_));
        if !extensible || run.hook.is_none_or(|(_, id)| id != hook_id) {
            return;
        }
        let Some(deadline) = run.deadline else {
            return;
        };
        let wanted = (now + by.min(EXTENSION_STEP)).saturating_duration_since(deadline);
        let timeouts = &self.settings.timeouts;
        let left = (timeouts.longest_start() - timeouts.start).saturating_sub(run.extended);
        let granted = wanted.min(left);
        run.extended += granted;
        run.deadline = Some(deadline + granted);
    }

    /// Sends a hook, or takes it as done for a plugin that needs none.
    pub(super) fn run_hook(
        &mut self,
        hook: Hook,
        stage: Stage,
        timeout: Duration,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let hook_id = self.next_hook_id;
        let Life::Running(run) = &mut self.life else {
            return;
        };
        if run.ready && hook != Hook::Unload {
            return self.passed(hook, now, out);
        }
        self.next_hook_id += 1;
        run.hook = Some((hook, hook_id));
        self.enter(stage, now, out);
        if let Life::Running(run) = &mut self.life {
            run.deadline = Some(now + timeout);
        }
        out.push(Action::RunHook {
            hook,
            hook_id,
            timeout,
        });
    }

    pub(super) fn stop_hook(&mut self, now: Instant, out: &mut Vec<Action>) {
        let hooks = self.budget().hooks;
        let Life::Running(run) = &mut self.life else {
            return;
        };
        let from = run.stage.state();
        run.stop_by = Some(now + hooks);
        run.deadline = None;
        self.run_hook(Hook::Stop, Stage::StopHook(from), hooks, now, out);
    }

    pub(super) fn unload_hook(&mut self, now: Instant, out: &mut Vec<Action>) {
        let hooks = self.budget().hooks;
        let end = self.asked_end();
        let Life::Running(run) = &mut self.life else {
            return;
        };
        run.leaving.get_or_insert(end);
        let until = run.stop_by.map_or(now + hooks, |by| by.min(now + hooks));
        let timeout = until.saturating_duration_since(now);
        let stage = Stage::UnloadHook(run.stage.state());
        if timeout.is_zero() || run.link != LinkState::Live {
            return self.unloaded_late(now, out);
        }
        self.run_hook(Hook::Unload, stage, timeout, now, out);
    }

    pub(super) fn unloaded(&mut self, now: Instant, out: &mut Vec<Action>) {
        let end = self.asked_end();
        self.end_run(end, Grace::Some, now, out);
    }

    pub(super) fn unloaded_late(&mut self, now: Instant, out: &mut Vec<Action>) {
        let end = self.asked_end();
        self.end_run(end, Grace::None, now, out);
    }
}
