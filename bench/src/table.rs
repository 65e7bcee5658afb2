//! The table of targets: what is measured, against whom, and what was promised.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;

use crate::report::Target::{self, AtLeast, AtMost};
use crate::rows::{Found, How, calls, events, home, scale, storage};

type Measuring<'a> = Pin<Box<dyn Future<Output = Result<Found>> + 'a>>;

/// One row.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What is measured.
    pub(crate) what: &'static str,
    /// Against whom; "" where the figure stands alone.
    pub(crate) peer: &'static str,
    pub(crate) unit: &'static str,
    /// Of the ratio; of the figure where it stands alone.
    pub(crate) target: Target,
    pub(crate) measure: for<'a> fn(&'a How) -> Measuring<'a>,
}

macro_rules! rows {
    ($($name:literal, $what:literal, $peer:literal, $unit:literal, $target:expr, $measure:path;)*) => {
        &[$(Row {
            name: $name,
            what: $what,
            peer: $peer,
            unit: $unit,
            target: $target,
            measure: |how| Box::pin($measure(how)),
        }),*]
    };
}

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = rows! {
    "call_channel_c1", "routed call over channels, p50, TCP loopback", "nats", "us",
        AtMost(750), calls::channel_c1;
    "call_channel_c1_uds", "the same over a unix socket", "nats", "us",
        AtMost(600), calls::channel_c1_uds;
    "call_channel_c64", "routed calls over channels, 64 at a time", "nats", "1/s",
        AtLeast(1_600), calls::channel_c64;
    "call_channel_c256", "routed calls over channels, 256 at a time", "nats", "1/s",
        AtLeast(2_000), calls::channel_c256;
    "call_channel_cpu", "the core's CPU for a routed call, 64 at a time", "nats", "us CPU",
        AtMost(600), calls::channel_cpu;
    "call_unary_c1", "routed unary call, p50", "direct echo", "us",
        AtMost(1_600), calls::unary_c1;
    "call_unary_c256", "routed unary calls, 256 at a time", "direct echo", "1/s",
        AtLeast(700), calls::unary_c256;
    "event_1_1", "deliveries, one subscriber", "nats", "1/s",
        AtLeast(1_200), events::one_to_one;
    "event_1_8", "deliveries, 8 subscribers of the same pattern", "nats", "1/s",
        AtLeast(4_000), events::one_to_8;
    "event_1_64", "deliveries, 64 subscribers of the same pattern", "nats", "1/s",
        AtLeast(4_000), events::one_to_64;
    "event_cpu_64", "the core's CPU for a delivery to 64", "nats", "us CPU",
        AtMost(350), events::cpu_64;
    "event_filtered_64", "deliveries to 64 subscribers, each with its own topic of 64", "nats", "1/s",
        AtLeast(1_200), events::filtered_64;
    "event_latency", "publish to handler, p50, idle system", "direct echo", "us",
        AtMost(900), events::latency;
    "event_subs_10k", "cost of an event with 10,000 other subscriptions", "itself", "us",
        AtMost(1_100), events::subs_10k;
    "event_stalled", "deliveries to 8 with one more that never reads", "itself", "1/s",
        AtLeast(950), events::stalled;
    "storage_set_c1", "durable sets over the channel, one at a time", "redis", "1/s",
        AtLeast(750), storage::set_c1;
    "storage_set_c64", "durable sets over the channel, 64 at a time", "redis", "1/s",
        AtLeast(1_000), storage::set_c64;
    "storage_set_c256", "durable sets over the channel, 256 at a time", "redis", "1/s",
        AtLeast(800), storage::set_c256;
    "storage_set_unary_c64", "durable sets as unary RPCs, 64 at a time", "direct echo", "1/s",
        AtLeast(700), storage::set_unary_c64;
    "storage_get_c64", "gets over the channel, 64 at a time", "redis", "1/s",
        AtLeast(500), storage::get_c64;
    "state_set_get_c64", "state operations over the channel, 64 at a time", "redis", "1/s",
        AtLeast(500), storage::state_c64;
    "start_empty", "process start to SERVING, no plugin", "", "ms",
        AtMost(50_000), home::start_empty;
    "start_50", "process start to 50 child plugins STARTED", "", "s",
        AtMost(3_000), home::start_50;
    "restart_notice", "kill -9 of a plugin to its callers answered", "", "ms",
        AtMost(20_000), home::restart_notice;
    "idle", "CPU of the core with 10 idle plugins", "", "% CPU",
        AtMost(200), home::idle;
    "memory_idle", "resident, no plugin", "nats", "MiB",
        AtMost(1_000), home::memory_idle;
    "memory_loaded", "peak resident during event_1_8", "nats", "MiB",
        AtMost(250), events::memory_loaded;
    "memory_plugin", "resident, a minimal Rust plugin", "", "MiB",
        AtMost(6_000), home::memory_plugin;
    "scale", "cost at 100 and 1,000 plugins as a multiple of that at 10", "", "x",
        AtMost(1_200), scale::scale;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }
}
