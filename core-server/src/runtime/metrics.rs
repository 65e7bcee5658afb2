//! Every number that the core keeps, read when it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::event_bus::EventBus;
use crate::grpc::{ChannelStats, Metric, ReadMetrics, Routes, Value};
use crate::plugin_manager::PluginManager;
use crate::routing::Router;
use crate::security::Gatekeeper;
use crate::state_engine::StateEngine;
use crate::storage::Storage;
use crate::transport::Server;

use super::Connector;

/// Where the numbers are.
pub(super) struct Sources {
    pub(super) bus: EventBus,
    pub(super) router: Router,
    pub(super) state: StateEngine,
    pub(super) storage: Storage,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) manager: PluginManager,
    pub(super) channels: Arc<ChannelStats>,
    pub(super) connector: Connector,
}

fn counter(name: &'static str, value: u64) -> Metric {
    Metric {
        name,
        labels: Vec::new(),
        value: Value::Counter(value),
    }
}

fn gauge(name: &'static str, value: usize) -> Metric {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Metric {
        name,
        labels: Vec::new(),
        value: Value::Gauge(value),
    }
}

fn read(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

/// Tasks of this process's runtime that have not ended: those of the core, one for each connection and
/// each stream of it, and of the program that embeds it, if there is one.
fn tasks() -> usize {
    let runtime = tokio::runtime::Handle::try_current();
    runtime.map_or(0, |runtime| runtime.metrics().num_alive_tasks())
}

impl Sources {
    /// A reader of all of them.
    pub(super) fn reader(self) -> ReadMetrics {
        Arc::new(move || self.read())
    }

    fn read(&self) -> Vec<Metric> {
        let bus = self.bus.stats();
        let state = self.state.stats();
        let storage = self.storage.stats();
        let (routing, gate) = (self.router.stats(), self.gatekeeper.stats());
        let mut metrics = vec![
            counter("event_bus_published_total", bus.published),
            counter("event_bus_delivered_total", bus.delivered),
            counter("event_bus_became_slow_total", bus.became_slow),
            counter("event_bus_gaps_total", bus.gaps),
            gauge("event_bus_subscriptions", bus.subscriptions),
            gauge("event_bus_slow_subscriptions", bus.slow),
            gauge("event_bus_log_events", bus.log_events),
            gauge("event_bus_log_bytes", bus.log_bytes),
            gauge("event_bus_lane_bytes", bus.lane_bytes),
            counter("calls_dispatched_total", read(&routing.dispatched)),
            counter("calls_refused_busy_total", read(&routing.refused_busy)),
            counter("calls_expired_total", read(&routing.expired)),
            counter("calls_cancelled_total", read(&routing.cancelled)),
            counter("calls_lost_total", read(&routing.lost)),
            counter("calls_repeated_total", read(&routing.repeated)),
            counter(
                "calls_answers_dropped_total",
                read(&routing.answers_dropped),
            ),
            gauge("calls_timers", self.router.timers()),
            gauge("runtime_tasks", tasks()),
            gauge("state_keys", state.keys),
            gauge("state_bytes", state.bytes),
            gauge("state_watches", state.watches),
            counter("state_conflated_total", state.conflated),
            counter("storage_batches_total", storage.batches),
            counter("storage_commits_total", storage.commits),
            counter("storage_ops_total", storage.ops),
            counter("storage_queue_full_total", storage.queue_full),
            counter("storage_failed_commits_total", storage.failed_commits),
            counter("storage_reopened_total", storage.reopened),
            counter("storage_disk_low_total", storage.disk_low),
            counter("storage_over_quota_total", storage.over_quota),
            counter("storage_expirations_total", storage.expirations),
            gauge("storage_watches", self.storage.watches()),
            counter("storage_cache_hits_total", storage.cache_hits),
            counter("storage_cache_misses_total", storage.cache_misses),
            counter(
                "security_unauthenticated_total",
                read(&gate.unauthenticated),
            ),
            counter("security_denied_total", read(&gate.denied)),
            counter(
                "security_would_be_denied_total",
                read(&gate.would_be_denied),
            ),
            counter("channel_requests_total", read(&self.channels.requests)),
            counter("channel_put_off_total", read(&self.channels.put_off)),
            counter(
                "channel_unknown_frames_total",
                read(&self.channels.unknown_frames),
            ),
        ];
        if let Some(server) = self.connector.server() {
            metrics.extend(connections(&server));
        }
        for plugin in self.manager.list() {
            let label = || vec![("plugin", plugin.name.to_string())];
            metrics.push(Metric {
                name: "plugin_restarts_total",
                labels: label(),
                value: Value::Counter(plugin.restarts),
            });
            metrics.push(Metric {
                name: "plugin_suppressed_lines_total",
                labels: label(),
                value: Value::Counter(plugin.suppressed_lines),
            });
            let (in_flight, waiting) = self.router.load(&plugin.name);
            for (name, count) in [
                ("plugin_calls_in_flight", in_flight),
                ("plugin_calls_waiting", waiting),
            ] {
                metrics.push(Metric {
                    labels: label(),
                    ..gauge(name, count)
                });
            }
        }
        for (plugin, readings) in self.gatekeeper.metering().read(None) {
            for reading in readings {
                metrics.push(Metric {
                    name: "plugin_quota_refused_total",
                    labels: vec![
                        ("plugin", plugin.to_string()),
                        ("quota", reading.quota.key().to_owned()),
                    ],
                    value: Value::Counter(reading.refused),
                });
            }
        }
        metrics
    }
}

fn connections(server: &Server<Routes>) -> Vec<Metric> {
    let stats = server.stats();
    let (connections, unidentified) = server.connections();
    vec![
        counter("connections_accepted_total", read(&stats.accepted)),
        counter("connections_refused_total", read(&stats.refused)),
        counter("connections_bad_preface_total", read(&stats.bad_preface)),
        counter(
            "connections_accept_errors_total",
            read(&stats.accept_errors),
        ),
        counter("connections_gave_way_total", read(&stats.gave_way)),
        counter("connections_flooding_total", read(&stats.flooding)),
        gauge("connections", connections),
        gauge("connections_unidentified", unidentified),
    ]
}
