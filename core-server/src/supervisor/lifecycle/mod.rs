//! The life of one plugin as a pure state machine: [`step`] decides, the driver
//! (`plugin_manager/worker`) performs the [`Action`]s in order and feeds back what happened.
//!
//! Two things are shown of a plugin: one of the four public states of the contract, and a phase that
//! says what is going on. Both are *derived* from what the machine knows, so that they cannot
//! disagree; [`LEGAL`] lists the pairs that exist, and `docs/reference/lifecycle.md` is checked
//! against it.
//!
//! Invariants
//! - A run is ended exactly once (`Action::EndRun`), and nothing is asked of it afterwards. What is
//!   left of its process is then ended on its own account: (UNLOADED, unloading).
//! - `desired` is what was last asked for; failures never change it.
//! - Under STOPPED a run that ends by itself is followed by none: a plugin that fails when it is stopped,
//!   or later, is not tried again. (A run that is on its way is brought to LOADED.)
//! - Every wait has a deadline but these: for a dependency, for a grant, for a remote plugin to connect,
//!   for an operator.
//! - A grant is waited for before anything is loaded, and at no other time: one that is taken back ends no
//!   run.
//! - Words of a run that is not the current one are ignored, whatever they say.

mod hooks;
mod life;
mod machine;
mod runs;
mod show;
#[cfg(test)]
mod tests;
mod time;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::liveness::Lifeless;
use super::restart::History;
use crate::channel::{Gate, Hook};
use crate::plugin_manager::{RestartPolicy, Timeouts};
use crate::types::Generation;

pub use machine::step;

use life::{End, Ending, Life, LinkState, Note, Rest, Retry, Running, Shown, Stage};

/// The four states of the contract; also what is desired.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum PluginState {
    /// No run that has loaded.
    Unloaded,
    /// A run whose `on_load` is done.
    Loaded,
    /// Its services answer, its events flow.
    Started,
    /// `on_stop` is done; process and channel stay.
    Stopped,
}

impl PluginState {
    /// As it is written: "STARTED".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unloaded => "UNLOADED",
            Self::Loaded => "LOADED",
            Self::Started => "STARTED",
            Self::Stopped => "STOPPED",
        }
    }
}

macro_rules! phases {
    ($($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        /// What is going on with a plugin.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Phase { $($(#[$doc])* $variant),+ }

        impl Phase {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

phases! {
    /// Nothing is under way and nothing is to be done.
    Idle = "idle",
    /// A plugin that it requires is not STARTED.
    WaitingDependency = "waiting_dependency",
    /// Something that it asks for, and cannot do without, is not granted.
    WaitingGrant = "waiting_grant",
    /// Its process is being started, or waits for its turn.
    Spawning = "spawning",
    /// Its process runs, or somebody else's is awaited; there is no channel yet.
    Connecting = "connecting",
    /// `on_load` runs.
    Loading = "loading",
    /// `on_start` runs.
    Starting = "starting",
    /// STARTED and well.
    Ready = "ready",
    /// STARTED, but it misses heartbeats or says itself that it is unwell.
    Degraded = "degraded",
    /// Its channel is lost and may come back.
    Suspended = "suspended",
    /// Calls in flight finish, then `on_stop` runs.
    Stopping = "stopping",
    /// `on_unload` runs, or what is left of its process is being ended.
    Unloading = "unloading",
    /// A failure; it is tried again at `next_attempt_at`.
    Backoff = "backoff",
    /// Too many failures; tried again rarely, for ever.
    CrashLoop = "crash_loop",
    /// Failed, and its policy says not to try again.
    GivenUp = "given_up",
    /// It cannot run until its configuration or its program changes.
    ConfigError = "config_error",
    /// Its handshake is refused: it speaks another wire version, or is not who it should be.
    Incompatible = "incompatible",
    /// It ended well, and its policy says that this was all.
    Completed = "completed",
}

/// The pairs of state and phase that exist. No other is ever shown.
pub const LEGAL: &[(PluginState, &[Phase])] = &[
    (
        PluginState::Unloaded,
        &[
            Phase::Idle,
            Phase::WaitingDependency,
            Phase::WaitingGrant,
            Phase::Spawning,
            Phase::Connecting,
            Phase::Loading,
            Phase::Suspended,
            Phase::Unloading,
            Phase::Backoff,
            Phase::CrashLoop,
            Phase::GivenUp,
            Phase::ConfigError,
            Phase::Incompatible,
            Phase::Completed,
        ],
    ),
    (
        PluginState::Loaded,
        &[
            Phase::Idle,
            Phase::WaitingDependency,
            Phase::Starting,
            Phase::Suspended,
            Phase::Stopping,
            Phase::Unloading,
        ],
    ),
    (
        PluginState::Started,
        &[
            Phase::Ready,
            Phase::Degraded,
            Phase::Suspended,
            Phase::Stopping,
        ],
    ),
    (
        PluginState::Stopped,
        &[
            Phase::Idle,
            Phase::WaitingDependency,
            Phase::Starting,
            Phase::Suspended,
            Phase::Stopping,
            Phase::Unloading,
        ],
    ),
];

/// Whether a pair stands in [`LEGAL`].
#[must_use]
pub fn is_legal(state: PluginState, phase: Phase) -> bool {
    LEGAL
        .iter()
        .any(|(legal, phases)| *legal == state && phases.contains(&phase))
}

/// Who starts the plugin's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The core: a child process or a thread of its own.
    Hosted,
    /// Somebody else; it connects.
    Remote,
}

/// What does not change during a plugin's life.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who starts it.
    pub origin: Origin,
    /// When it runs again.
    pub restart: RestartPolicy,
    /// How long each step may take.
    pub timeouts: Timeouts,
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Wants it LOADED.
    Load,
    /// Wants it STARTED.
    Start,
    /// Wants it STOPPED.
    Stop,
    /// Wants it UNLOADED.
    Unload,
    /// Wants another run, STARTED.
    Restart,
}

impl Request {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Load,
        Self::Start,
        Self::Stop,
        Self::Unload,
        Self::Restart,
    ];

    /// The verb.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Unload => "unload",
            Self::Restart => "restart",
        }
    }

    /// The state that it wants.
    #[must_use]
    pub fn wants(self) -> PluginState {
        match self {
            Self::Load => PluginState::Loaded,
            Self::Start | Self::Restart => PluginState::Started,
            Self::Stop => PluginState::Stopped,
            Self::Unload => PluginState::Unloaded,
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, if it exited by itself.
    pub code: Option<i32>,
    /// Signal number, if one ended it.
    pub signal: Option<i32>,
    /// A sentence, where the two do not say it: a panic's text.
    pub message: Option<String>,
    /// A stable word, where it was ended by somebody else than the core, and who or what is known.
    pub reason: Option<&'static str>,
}

/// Time for the steps of an end while the core stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Calls in flight may finish.
    pub drain: Duration,
    /// `on_stop` and `on_unload` together.
    pub hooks: Duration,
    /// SIGTERM to SIGKILL.
    pub term: Duration,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed; see [`State::next_deadline`].
    Tick,
    /// An operator's request that [`State::permits`].
    Request(Request),
    /// All stop: wanted STOPPED if it was wanted STARTED, whatever the state.
    StopAll,
    /// What it waits for, for people; `None`: all it requires is STARTED.
    Dependencies(Option<String>),
    /// What it asks for, cannot do without and is not granted, for people; `None`: nothing.
    Grants(Option<String>),
    /// The core itself was late by so much: no deadline comes nearer by that, and nobody is ended for
    /// it. (Tries are made when they are due: that harms nobody.)
    Late(Duration),
    /// A plugin that it requires was lost, and its policy is to begin anew.
    RestartForDependency,
    /// A plugin that it requires was lost, and its policy is to stop.
    StopForDependency,
    /// Its program or its configuration changed: what made it fail may be gone.
    Changed,
    /// A plugin that it looks at became ready: what made it fail may have been its absence.
    DependencyReady,
    /// Its turn to be spawned has come.
    Slot,
    /// A channel was opened: for a remote plugin the begin of a run.
    Opened {
        /// It needs no hooks but UNLOAD.
        ready: bool,
        /// Its process can be recognised when it opens another channel.
        resumable: bool,
    },
    /// The core is about to stop: nothing begins any more.
    Freeze,
    /// The core stops, and this plugin's turn has come.
    Shutdown(Budget),
    /// No grace is left.
    KillNow,
    /// The handshake was refused: no wire version in common. Of a remote plugin there is no run.
    Incompatible(String),
    /// Other settings from now on. With a reason (a stable word and a sentence) a run that there is
    /// ends, and another begins, as if an operator had asked.
    Renewed(Settings, Option<(&'static str, String)>),
    /// The configuration wants another state of it.
    Wanted(PluginState),
    /// It cannot run as it is configured, and why; `None`: it can again.
    Barred(Option<(&'static str, String)>),
    /// Something about the run of this number.
    Run(Generation, RunEvent),
}

/// What happened to a run.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// The process runs.
    Spawned,
    /// It could not be started.
    SpawnFailed {
        /// Trying again would fail again.
        lasting: bool,
        /// Why.
        message: String,
    },
    /// The same process opened another channel.
    Resumed,
    /// A hook ended.
    HookDone {
        /// Which.
        hook_id: u64,
        /// How.
        result: Result<(), String>,
    },
    /// More time is asked for.
    Extend {
        /// For which hook.
        hook_id: u64,
        /// From now.
        by: Duration,
    },
    /// No call is in flight any more.
    Drained,
    /// The channel is gone.
    ChannelLost,
    /// It ends by its own will.
    Bye(String),
    /// What its channel was opened with is worth nothing any more, and why.
    CredentialOver(String),
    /// Its process is gone, and its group with it.
    Exited(Exit),
    /// It misses heartbeats, or no longer.
    Heartbeat {
        /// Two or more are missing.
        missed: bool,
    },
    /// Its credential is in the hands of a process that it was not made for: it will be refused again.
    IdentityRefused(String),
    /// It does not live, though its process may.
    Lifeless(Lifeless),
    /// Another instance wants its place, and it gave no sign of life for so long.
    GaveWay(Duration),
    /// It uses more than it may, and lives.
    OverLimit {
        /// A stable word.
        reason: &'static str,
        /// Of what, and how much.
        message: String,
    },
    /// Its own report: `Some` text when degraded.
    Health(Option<String>),
}

/// Whether calls are dispatched to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// No.
    Closed,
    /// Callers wait a little.
    Suspended,
    /// No, and callers are told why.
    Degraded,
    /// Yes.
    Open,
}

/// What a plugin's channel is told at the end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Nothing: what is queued is sent, then the stream ends.
    Clean,
    /// Its run has ended, and why.
    RunEnded(String),
    /// The core is stopping.
    ShuttingDown,
}

/// A transition that others hear of: the last token of `core.plugin.*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// LOADED.
    Loaded,
    /// STARTED.
    Started,
    /// STOPPED.
    Stopped,
    /// UNLOADED.
    Unloaded,
    /// A run ended that nobody ended on purpose.
    Crashed,
    /// Too many failures.
    CrashLoop,
    /// Ready again after a crash or a degradation.
    Recovered,
    /// It misses heartbeats or reports itself unwell.
    Degraded,
}

impl Topic {
    /// The last token of the topic.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loaded => "loaded",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Unloaded => "unloaded",
            Self::Crashed => "crashed",
            Self::CrashLoop => "crash_loop",
            Self::Recovered => "recovered",
            Self::Degraded => "degraded",
        }
    }
}

/// What is to be done. Of the current run, unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Begin a run and start its process.
    Spawn,
    /// Send a hook.
    RunHook {
        /// Which.
        hook: Hook,
        /// Its id.
        hook_id: u64,
        /// Time allowed.
        timeout: Duration,
    },
    /// Let events flow or not.
    Gate(Gate),
    /// Dispatch calls or not.
    Route(Route),
    /// Report when no call is in flight.
    Drain,
    /// End the channel.
    CloseChannel(Farewell),
    /// End the run: its credential, registrations and streams.
    EndRun,
    /// SIGTERM and SIGCONT to the process group. Also after `EndRun`.
    Terminate,
    /// SIGKILL to the process group. Also after `EndRun`.
    Kill,
    /// Tell others.
    Announce(Topic),
}

/// How the last run ended, or why none came of a remote plugin's handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// Exit code and signal.
    pub exit: Exit,
    /// A sentence.
    pub message: String,
    /// From its begin to its end.
    pub ran_for: Duration,
    /// The core ended it.
    pub forced: bool,
    /// When.
    pub at: Instant,
}

/// Whether a wanted state was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not yet.
    Pending,
    /// Yes.
    Reached,
    /// The try failed.
    Failed {
        /// Why, for people.
        cause: String,
    },
}

/// One plugin.
#[derive(Clone, Debug)]
pub struct State {
    settings: Arc<Settings>,
    desired: PluginState,
    life: Life,
    history: History,
    /// What it waits for; `None`: nothing.
    missing: Option<String>,
    /// What it is not granted; `None`: nothing that it cannot do without.
    ungranted: Option<String>,
    /// Stopped until what it lost comes back.
    held_by_loss: bool,
    /// Wanted STOPPED, and without a run that could be: none begins until something else is wanted.
    halted: bool,
    /// Why it cannot run as it is configured.
    bar: Option<Note>,
    /// Nothing begins any more.
    frozen: bool,
    shutdown: Option<Budget>,
    generation: Generation,
    restarts: u64,
    /// Nobody asked for the run that comes next.
    unasked: bool,
    next_hook_id: u64,
    /// It crashed or was degraded and has not been ready since.
    troubled: bool,
    last_exit: Option<ExitReport>,
    /// Source of jitter, so that a step stays a function of its arguments.
    seed: u64,
    shown: Shown,
}

impl State {
    /// A plugin that has never run.
    #[must_use]
    pub fn new(settings: Settings, desired: PluginState, seed: u64, now: Instant) -> Self {
        let note = match desired {
            PluginState::Unloaded => Note::new("not_wanted", "nobody asked for it"),
            _ => Note::default(),
        };
        Self {
            settings: Arc::new(settings),
            desired,
            life: Life::Resting(Rest::Idle, note),
            history: History::default(),
            missing: None,
            ungranted: None,
            held_by_loss: false,
            halted: false,
            bar: None,
            frozen: false,
            shutdown: None,
            generation: Generation::default(),
            restarts: 0,
            unasked: false,
            next_hook_id: 1,
            troubled: false,
            last_exit: None,
            seed,
            shown: Shown {
                state: PluginState::Unloaded,
                phase: Phase::Idle,
                since: now,
                route: Route::Closed,
                gate: Gate::Waiting,
            },
        }
    }
}
