//! What the machine knows of a life. Private to it: others see what [`State`](super::State) shows.

use std::time::Duration;

use tokio::time::Instant;

use super::{Phase, PluginState, Route};
use crate::channel::{Gate, Hook};

/// What is shown, kept to see changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) state: PluginState,
    pub(super) phase: Phase,
    pub(super) since: Instant,
    pub(super) route: Route,
    pub(super) gate: Gate,
}

/// Why something is so: a stable word and a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Note {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Life {
    /// Neither run nor process.
    Resting(Rest, Note),
    /// A run.
    Running(Box<Running>),
    /// The run is over; what is left of its process is being ended.
    Ending(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rest {
    Idle,
    WaitingDependency,
    WaitingGrant,
    /// Waits for a start slot.
    Queued,
    /// A remote plugin is awaited.
    Awaited,
    Backoff(Instant),
    CrashLoop(Instant),
    GivenUp,
    ConfigError,
    Incompatible,
    Completed,
}

/// Why it is tried again earlier than its history says. A later one skips more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Retry {
    DependencyReady,
    Changed,
    /// By an operator.
    Asked,
}

impl Retry {
    pub(super) fn skips(self, rest: Rest) -> bool {
        match rest {
            Rest::Backoff(_) | Rest::CrashLoop(_) => true,
            Rest::GivenUp | Rest::ConfigError | Rest::Incompatible => self >= Self::Changed,
            Rest::Completed => self >= Self::Asked,
            Rest::Idle
            | Rest::WaitingDependency
            | Rest::WaitingGrant
            | Rest::Queued
            | Rest::Awaited => false,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) began: Instant,
    pub(super) stage: Stage,
    pub(super) link: LinkState,
    /// A process or thread may live.
    pub(super) has_process: bool,
    pub(super) ready: bool,
    pub(super) resumable: bool,
    pub(super) hook: Option<(Hook, u64)>,
    /// End of the present stage.
    pub(super) deadline: Option<Instant>,
    /// Time left for `on_load` and `on_start` together.
    pub(super) start_left: Duration,
    /// Added to it so far; never beyond `Timeouts::longest_start`.
    pub(super) extended: Duration,
    /// End of `on_stop` and `on_unload` together.
    pub(super) stop_by: Option<Instant>,
    /// It will end, and why.
    pub(super) leaving: Option<End>,
    pub(super) was_started: bool,
    pub(super) missed: bool,
    pub(super) health: Option<String>,
    pub(super) stable_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Spawning,
    Connecting,
    /// A channel, and nothing done yet.
    Connected,
    Loading,
    Loaded,
    /// From LOADED or STOPPED.
    Starting(PluginState),
    Started,
    Draining,
    /// `on_stop`; the state in which it began.
    StopHook(PluginState),
    Stopped,
    /// `on_unload`; the state in which it began.
    UnloadHook(PluginState),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    Absent,
    Live,
    Suspended(Instant),
}

/// Why a run ends.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum End {
    /// An operator, a dependency, the core's own end: no failure.
    Asked(Note),
    /// What its channel was opened with is worth nothing any more: nothing that went wrong in it.
    CredentialOver(Note),
    /// By its own word.
    Bye(String),
    /// Its process left.
    Exited,
    /// Something went wrong.
    Failed(Note),
    /// It can never start as it is.
    Unstartable(Note),
    /// Its handshake is refused, and will be again: no wire version in common, or not who it should be.
    Incompatible(Note),
}

#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) began: Instant,
    pub(super) end: End,
    pub(super) terminate_at: Option<Instant>,
    pub(super) kill_at: Option<Instant>,
    /// Killed; if it is still there by then, it hangs.
    pub(super) gone_by: Option<Instant>,
    pub(super) hung: bool,
    pub(super) forced: bool,
    /// What would follow from the end is perhaps skipped: the next run begins at once.
    pub(super) again: Option<Retry>,
}
