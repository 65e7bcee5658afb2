//! Plugins.

use core_proto::v1;

use super::{duration_to_proto, time_to_proto};
use crate::plugin_manager::{
    ChangeKind, CrashReport, LastExit, PluginInfo, PluginKind, Reloaded, RestartMode, RestartPolicy,
};
use crate::supervisor::isolation::Isolation;
use crate::supervisor::lifecycle::PluginState;
use crate::supervisor::output::{LogRecord, Pushed};

fn state(state: PluginState) -> i32 {
    match state {
        PluginState::Unloaded => v1::PluginState::Unloaded,
        PluginState::Loaded => v1::PluginState::Loaded,
        PluginState::Started => v1::PluginState::Started,
        PluginState::Stopped => v1::PluginState::Stopped,
    }
    .into()
}

fn last_exit(exit: LastExit) -> v1::LastExit {
    v1::LastExit {
        code: exit.code,
        signal: exit.signal,
        message: exit.message,
        at: Some(time_to_proto(exit.at)),
        ran_for: duration_to_proto(exit.ran_for),
        forced: exit.forced,
        last_lines: exit.last_lines,
    }
}

fn isolation(isolation: Isolation) -> v1::Isolation {
    let limits = isolation.limits.into_iter();
    v1::Isolation {
        limits: limits
            .map(|(resource, value, mode)| v1::ResourceLimit {
                name: resource.as_str().to_owned(),
                value,
                mode: mode.as_str().to_owned(),
            })
            .collect(),
        landlock: isolation.landlock.as_str().to_owned(),
        user: isolation.user,
        notes: isolation.notes,
    }
}

pub(in crate::grpc) fn info(info: PluginInfo) -> v1::PluginInfo {
    v1::PluginInfo {
        name: info.name.to_string(),
        kind: match info.kind {
            PluginKind::Process => v1::PluginKind::Process,
            PluginKind::Remote => v1::PluginKind::Remote,
            PluginKind::Embedded => v1::PluginKind::Embedded,
        }
        .into(),
        version: info.version,
        description: info.description,
        state: state(info.state),
        desired: state(info.desired),
        phase: info.phase.as_str().to_owned(),
        reason: info.reason.to_owned(),
        message: info.message,
        since: Some(time_to_proto(info.since)),
        next_attempt_at: info.next_attempt_at.map(time_to_proto),
        generation: info.generation.0,
        restarts: info.restarts,
        last_exit: info.last_exit.map(last_exit),
        pid: info.pid,
        requires: info.requires.iter().map(ToString::to_string).collect(),
        wants: info.wants.iter().map(ToString::to_string).collect(),
        services: info.services,
        subscriptions: info.subscriptions,
        sdk: info.sdk,
        isolation: info.isolation.map(isolation),
        config_revision: info.config_revision,
        config_rejected: info.config_rejected,
        crash_reports: Vec::new(),
        log_level: info.log_level.as_str().to_owned(),
        failures: info.failures,
        suppressed_lines: info.suppressed_lines,
        restart: Some(restart(info.restart)),
    }
}

fn restart(policy: RestartPolicy) -> v1::RestartPolicy {
    v1::RestartPolicy {
        mode: match policy.mode {
            RestartMode::Always => "always",
            RestartMode::OnFailure => "on_failure",
            RestartMode::Never => "never",
        }
        .to_owned(),
        min_uptime: duration_to_proto(policy.min_uptime),
        backoff_base: duration_to_proto(policy.backoff_base),
        backoff_max: duration_to_proto(policy.backoff_max),
        stable_after: duration_to_proto(policy.stable_after),
        max_failures: policy.max_failures,
        crash_loop_every: duration_to_proto(policy.crash_loop_every),
        give_up: policy.give_up,
    }
}

pub(in crate::grpc) fn crash_report(report: &CrashReport) -> v1::CrashReport {
    v1::CrashReport {
        generation: report.generation.0,
        plugin_version: report.plugin_version.clone(),
        config_revision: report.config_revision,
        reason: report.reason.to_owned(),
        exit: Some(last_exit(report.exit.clone())),
        rss_bytes: report.rss_bytes,
    }
}

/// A record that a plugin sent. A time that no clock shows is no time.
pub(in crate::grpc) fn pushed(record: v1::LogRecord) -> Pushed {
    Pushed {
        time: record.time.and_then(|time| super::time("time", time).ok()),
        level: record.level,
        message: record.message,
        fields: record.fields.into_iter().collect(),
        stream: record.stream,
    }
}

pub(in crate::grpc) fn reloaded(reloaded: Reloaded) -> v1::PluginManagerReloadResponse {
    use v1::plugin_change::Kind;
    let changes = reloaded.changes.into_iter().map(|change| v1::PluginChange {
        name: change.name.to_string(),
        kind: match change.kind {
            ChangeKind::Added => Kind::Added,
            ChangeKind::Removed => Kind::Removed,
            ChangeKind::Reconfigured => Kind::Reconfigured,
            ChangeKind::Restarted => Kind::Restarted,
            ChangeKind::Updated => Kind::Updated,
            ChangeKind::Retried => Kind::Retried,
            ChangeKind::Rejected => Kind::Rejected,
        }
        .into(),
        message: change.message,
    });
    v1::PluginManagerReloadResponse {
        changes: changes.collect(),
        unchanged: u32::try_from(reloaded.unchanged).unwrap_or(u32::MAX),
        needs_restart: reloaded.needs_restart,
        warnings: reloaded.warnings,
    }
}

pub(in crate::grpc) fn log_record(record: LogRecord) -> v1::LogRecord {
    v1::LogRecord {
        time: Some(time_to_proto(record.time)),
        level: record.level.as_str().to_owned(),
        message: record.message,
        fields: record.fields.into_iter().collect(),
        stream: record.stream.as_str().to_owned(),
        generation: record.generation.0,
    }
}
