//! Plugins.

use core_proto::v1;

use super::{duration_to_proto, time_to_proto};
use crate::plugin_manager::{LastExit, PluginInfo, PluginKind};
use crate::supervisor::lifecycle::PluginState;
use crate::supervisor::output::LogRecord;

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
