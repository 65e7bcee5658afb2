//! The core's own numbers, as `Introspection.GetStats` tells them, and what the system says of its process.

use core_proto::v1::metric::Value;
use core_proto::v1::{IntrospectionGetStatsRequest, Metric};
use core_tests::{Client, within};

/// All metrics of one moment.
#[derive(Debug)]
pub(crate) struct Stats(Vec<Metric>);

impl Stats {
    pub(crate) async fn of(operator: &Client) -> Self {
        let mut introspection = operator.introspection();
        let asked = introspection.get_stats(IntrospectionGetStatsRequest {});
        let answer = within("the core tells its numbers", asked).await;
        Self(answer.expect("an operator may").into_inner().metrics)
    }

    /// One without labels.
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.find(name, "")
    }

    /// One of a plugin.
    pub(crate) fn get_of(&self, name: &str, plugin: &str) -> i64 {
        self.find(name, plugin)
    }

    fn find(&self, name: &str, plugin: &str) -> i64 {
        let is_it = |metric: &&Metric| {
            let of = metric.labels.get("plugin").map_or("", String::as_str);
            metric.name == name && of == plugin
        };
        match self.0.iter().find(is_it).and_then(|metric| metric.value) {
            Some(Value::Counter(value)) => i64::try_from(value).expect("a count of our days"),
            Some(Value::Gauge(value)) => value,
            None => panic!("no metric {name} of {plugin:?}"),
        }
    }

    /// Calls that a plugin has or that wait for it.
    pub(crate) fn pending_at(&self, plugin: &str) -> i64 {
        self.get_of("plugin_calls_in_flight", plugin) + self.get_of("plugin_calls_waiting", plugin)
    }
}

/// Descriptors that a process has open.
pub(crate) fn descriptors_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
