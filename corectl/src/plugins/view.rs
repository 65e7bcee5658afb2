//! A plugin as it is shown: the JSON shape and the words for states.

use core_proto::v1::{
    CrashReport, Isolation, LastExit, PluginInfo, PluginKind, PluginState, RestartPolicy,
};
use serde::Serialize;

use crate::output::Tone;
use crate::time;

/// The JSON shape of a plugin.
#[derive(Debug, Serialize)]
pub(crate) struct PluginView {
    name: String,
    kind: &'static str,
    version: String,
    description: String,
    state: &'static str,
    desired: &'static str,
    phase: String,
    reason: String,
    message: String,
    since: Option<String>,
    next_attempt_at: Option<String>,
    generation: u64,
    restarts: u64,
    last_exit: Option<LastExitView>,
    pid: Option<u32>,
    requires: Vec<String>,
    wants: Vec<String>,
    services: Vec<String>,
    subscriptions: Vec<String>,
    sdk: String,
    log_level: String,
    failures: u32,
    suppressed_lines: u64,
    restart: Option<RestartView>,
    crash_reports: Vec<CrashReportView>,
    config_revision: u64,
    config_rejected: String,
    isolation: Option<IsolationView>,
}

#[derive(Debug, Serialize)]
struct IsolationView {
    user: String,
    landlock: String,
    limits: Vec<LimitView>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LimitView {
    name: String,
    value: u64,
    mode: String,
}

#[derive(Debug, Serialize)]
struct RestartView {
    mode: String,
    min_uptime_seconds: Option<f64>,
    backoff_base_seconds: Option<f64>,
    backoff_max_seconds: Option<f64>,
    stable_after_seconds: Option<f64>,
    max_failures: u32,
    crash_loop_every_seconds: Option<f64>,
    give_up: bool,
}

#[derive(Debug, Serialize)]
struct CrashReportView {
    generation: u64,
    plugin_version: String,
    config_revision: u64,
    reason: String,
    exit: Option<LastExitView>,
    rss_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LastExitView {
    code: Option<i32>,
    signal: Option<i32>,
    message: String,
    at: Option<String>,
    ran_for_seconds: Option<f64>,
    forced: bool,
    last_lines: Vec<String>,
}

impl From<PluginInfo> for PluginView {
    fn from(info: PluginInfo) -> Self {
        Self {
            kind: kind_word(info.kind()),
            state: state_word(info.state()),
            desired: state_word(info.desired()),
            since: time::rfc3339(info.since.as_ref()),
            next_attempt_at: time::rfc3339(info.next_attempt_at.as_ref()),
            last_exit: info.last_exit.map(LastExitView::from),
            pid: Some(info.pid).filter(|pid| *pid != 0),
            name: info.name,
            version: info.version,
            description: info.description,
            phase: info.phase,
            reason: info.reason,
            message: info.message,
            generation: info.generation,
            restarts: info.restarts,
            requires: info.requires,
            wants: info.wants,
            services: info.services,
            subscriptions: info.subscriptions,
            sdk: info.sdk,
            log_level: info.log_level,
            failures: info.failures,
            suppressed_lines: info.suppressed_lines,
            restart: info.restart.map(RestartView::from),
            crash_reports: info
                .crash_reports
                .into_iter()
                .map(CrashReportView::from)
                .collect(),
            config_revision: info.config_revision,
            config_rejected: info.config_rejected,
            isolation: info.isolation.map(IsolationView::from),
        }
    }
}

impl From<RestartPolicy> for RestartView {
    fn from(policy: RestartPolicy) -> Self {
        let seconds = |length: Option<prost_types::Duration>| length.as_ref().map(time::seconds);
        Self {
            mode: policy.mode,
            min_uptime_seconds: seconds(policy.min_uptime),
            backoff_base_seconds: seconds(policy.backoff_base),
            backoff_max_seconds: seconds(policy.backoff_max),
            stable_after_seconds: seconds(policy.stable_after),
            max_failures: policy.max_failures,
            crash_loop_every_seconds: seconds(policy.crash_loop_every),
            give_up: policy.give_up,
        }
    }
}

impl From<Isolation> for IsolationView {
    fn from(isolation: Isolation) -> Self {
        let limits = isolation.limits.into_iter().map(|limit| LimitView {
            name: limit.name,
            value: limit.value,
            mode: limit.mode,
        });
        Self {
            user: isolation.user,
            landlock: isolation.landlock,
            limits: limits.collect(),
            notes: isolation.notes,
        }
    }
}

impl From<CrashReport> for CrashReportView {
    fn from(report: CrashReport) -> Self {
        Self {
            generation: report.generation,
            plugin_version: report.plugin_version,
            config_revision: report.config_revision,
            reason: report.reason,
            exit: report.exit.map(LastExitView::from),
            rss_bytes: report.rss_bytes,
        }
    }
}

impl From<LastExit> for LastExitView {
    fn from(exit: LastExit) -> Self {
        Self {
            code: exit.code,
            signal: exit.signal,
            message: exit.message,
            at: time::rfc3339(exit.at.as_ref()),
            ran_for_seconds: exit.ran_for.as_ref().map(time::seconds),
            forced: exit.forced,
            last_lines: exit.last_lines,
        }
    }
}

/// A state as `corectl` writes it.
pub(crate) fn state_word(state: PluginState) -> &'static str {
    match state {
        PluginState::Unspecified => "unknown",
        PluginState::Unloaded => "unloaded",
        PluginState::Loaded => "loaded",
        PluginState::Started => "started",
        PluginState::Stopped => "stopped",
    }
}

/// A kind as `corectl` writes it.
pub(crate) fn kind_word(kind: PluginKind) -> &'static str {
    match kind {
        PluginKind::Unspecified => "unknown",
        PluginKind::Process => "process",
        PluginKind::Remote => "remote",
        PluginKind::Embedded => "embedded",
    }
}

/// How a plugin is doing, for colour and for the list of those that need attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// As wanted.
    Good,
    /// On its way, by itself and soon.
    Moving,
    /// Somebody should look.
    Attention,
}

/// Judges by state, desired and phase. A phase that this version does not know is judged by whether
/// the plugin is where it is wanted.
pub(crate) fn condition(info: &PluginInfo) -> Condition {
    let as_wanted = info.state() == info.desired() || info.desired() == PluginState::Unspecified;
    match info.phase.as_str() {
        "degraded" | "suspended" | "backoff" | "crash_loop" | "given_up" | "config_error"
        | "incompatible" | "waiting_dependency" | "waiting_grant" => Condition::Attention,
        "spawning" | "loading" | "starting" | "stopping" | "unloading" => Condition::Moving,
        // Stopped on request under `desired = stopped` may come back as LOADED after a restart of
        // the core, which counts as reached; `completed` ended as it was meant to.
        "completed" => Condition::Good,
        // So does one that was stopped while it had no run: it has none, and gets none.
        _ if info.desired() == PluginState::Stopped && info.state() != PluginState::Started => {
            Condition::Good
        }
        _ if as_wanted => Condition::Good,
        _ => Condition::Attention,
    }
}

/// The colour of a plugin's state.
pub(crate) fn tone(info: &PluginInfo) -> Tone {
    match condition(info) {
        Condition::Good if info.state() == PluginState::Started => Tone::Good,
        Condition::Good => Tone::Plain,
        Condition::Moving => Tone::Waiting,
        Condition::Attention => Tone::Bad,
    }
}

/// Why a plugin is in its phase, in one line: the sentence, else the stable word.
pub(crate) fn why(info: &PluginInfo) -> &str {
    if info.message.is_empty() {
        &info.reason
    } else {
        &info.message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_needs_attention_when_it_is_not_where_it_should_be() {
        use PluginState::{Loaded, Started, Stopped, Unloaded, Unspecified};
        let table = [
            (Started, Started, "ready", Condition::Good),
            (Started, Started, "degraded", Condition::Attention),
            (Started, Started, "suspended", Condition::Attention),
            (Unloaded, Started, "spawning", Condition::Moving),
            (Unloaded, Started, "connecting", Condition::Attention),
            (
                Unloaded,
                Started,
                "waiting_dependency",
                Condition::Attention,
            ),
            (Unloaded, Started, "waiting_grant", Condition::Attention),
            (Unloaded, Started, "crash_loop", Condition::Attention),
            (Unloaded, Started, "backoff", Condition::Attention),
            (Unloaded, Started, "idle", Condition::Attention),
            (Unloaded, Started, "completed", Condition::Good),
            (Unloaded, Unloaded, "idle", Condition::Good),
            (Loaded, Stopped, "idle", Condition::Good),
            (Unloaded, Stopped, "idle", Condition::Good),
            (Stopped, Stopped, "idle", Condition::Good),
            (Started, Stopped, "stopping", Condition::Moving),
            (Loaded, Started, "a_phase_of_tomorrow", Condition::Attention),
            (Started, Unspecified, "ready", Condition::Good),
        ];
        for (state, desired, phase, expected) in table {
            let info = PluginInfo {
                state: state.into(),
                desired: desired.into(),
                phase: phase.to_owned(),
                ..PluginInfo::default()
            };
            assert_eq!(condition(&info), expected, "{state:?} {desired:?} {phase}");
        }
    }
}
