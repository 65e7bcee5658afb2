//! The configuration in the words of each component.

use std::path::Path;

use super::builder::WholeProcess;
use crate::config::{Adapter, Config, Durability, Limits};
use crate::plugin_manager;
use crate::supervisor::custody;
use crate::supervisor::liveness::Times;
use crate::transport::Http2;
use crate::{event_bus, routing, state_engine, storage};

pub(super) fn event_bus(limits: &Limits) -> event_bus::Config {
    event_bus::Config {
        log_events: limits.event_log_events,
        log_bytes: limits.event_log_bytes,
        slow_events: limits.slow_subscriber_events,
        slow_bytes: limits.slow_subscriber_bytes,
        max_data_bytes: limits.payload_bytes,
        max_batch_events: limits.publish_batch_events,
        max_batch_bytes: limits.publish_batch_bytes,
        ..event_bus::Config::default()
    }
}

pub(super) fn routing(limits: &Limits) -> routing::Config {
    routing::Config {
        default_timeout: limits.call_timeout,
        max_timeout: limits.call_timeout_max,
        max_depth: u32::try_from(limits.call_depth).unwrap_or(u32::MAX),
        max_waiting: limits.calls_waiting,
        suspended_wait: limits.suspended_wait,
        abandoned_place: limits.cancelled_call_hold,
    }
}

pub(super) fn state_engine(limits: &Limits) -> state_engine::Config {
    state_engine::Config {
        max_keys: limits.state_keys,
        max_value_bytes: limits.state_value_bytes,
        max_bytes: limits.state_bytes,
        max_owner_keys: limits.state_owner_keys,
        max_owner_bytes: limits.state_owner_bytes,
        stale_ttl: limits.state_stale_ttl,
        ..state_engine::Config::default()
    }
}

pub(super) fn http2(limits: &Limits) -> Http2 {
    Http2 {
        max_connections: limits.connections,
        max_unidentified: limits.connections_unidentified,
        max_concurrent_streams: u32::try_from(limits.streams_per_connection).unwrap_or(u32::MAX),
        handshake_timeout: limits.handshake_timeout,
        preface_timeout: limits.preface_timeout,
        ..Http2::default()
    }
}

pub(super) fn storage(config: &Config) -> storage::Config {
    let limits = &config.limits;
    storage::Config {
        adapter: match config.storage.adapter {
            Adapter::Sqlite => storage::AdapterKind::Sqlite,
            Adapter::Memory => storage::AdapterKind::Memory,
        },
        path: config.storage.path.clone(),
        durability: match config.storage.durability {
            Durability::Full => storage::Durability::Full,
            Durability::Normal => storage::Durability::Normal,
        },
        max_value_bytes: limits.storage_value_bytes,
        queue_commands: limits.storage_queue_writes,
        queue_bytes: limits.storage_queue_bytes,
        readers: limits.storage_readers,
        cache_bytes: limits.storage_cache_bytes,
        namespace_keys: limits.storage_namespace_keys as u64,
        namespace_bytes: limits.storage_namespace_bytes as u64,
        store_bytes: limits.storage_bytes as u64,
    }
}

pub(super) fn custody(config: &Config, whole: &WholeProcess, cookie: &str) -> custody::Setup {
    let layers = &config.supervision;
    // Where nothing is kept in the data directory, beside the sockets.
    let directory = match config.storage.adapter {
        Adapter::Sqlite => &config.data_dir,
        Adapter::Memory => &config.listen.runtime_dir,
    };
    let run_state = directory.join(custody::RUN_STATE_FILE_NAME);
    custody::Setup {
        cookie: cookie.to_owned(),
        parent_death_signal: layers.parent_death_signal,
        guardian: whole.guardian.clone().filter(|_| layers.guardian),
        adopts_orphans: whole.adopts_orphans && layers.subreaper,
        run_state: layers.boot_sweep.then_some(run_state),
    }
}

pub(super) fn plugin_manager(
    config: &Config,
    socket: &Path,
    cookie: &str,
) -> plugin_manager::Config {
    let limits = &config.limits;
    plugin_manager::Config {
        data_dir: config.data_dir.clone(),
        // What is forgotten at the end is forgotten as a whole.
        keep_desired: config.storage.adapter != Adapter::Memory,
        core_address: format!("unix:{}", socket.display()),
        cookie: cookie.to_owned(),
        liveness: Times {
            interval: limits.heartbeat_interval,
            silent_after: limits.silent_after,
            unresponsive_after: limits.unresponsive_after,
        },
        stalled_after: limits.channel_stall,
        max_starting: limits.plugins_starting,
        start_burst: u32::try_from(limits.start_burst).unwrap_or(u32::MAX),
        starts_per_second: u32::try_from(limits.starts_per_second).unwrap_or(u32::MAX),
        max_calls_in_flight: limits.calls_per_provider,
        max_message_bytes: limits.message_bytes,
        max_payload_bytes: limits.payload_bytes,
    }
}
