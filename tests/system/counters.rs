//! Reading the core's counters.

use core_proto::v1::{self, IntrospectionGetStatsRequest};
use core_tests::Client;

/// A number of the core, by its name; of several with labels their sum.
pub(crate) async fn counter(operator: &Client, name: &str) -> u64 {
    let request = IntrospectionGetStatsRequest {};
    let stats = operator.introspection().get_stats(request).await;
    let metrics = stats.expect("stats").into_inner().metrics;
    let values = metrics
        .into_iter()
        .filter(|metric| metric.name == name)
        .map(|metric| match metric.value {
            Some(v1::metric::Value::Counter(value)) => value,
            Some(v1::metric::Value::Gauge(value)) => u64::try_from(value).expect("not negative"),
            None => panic!("{name} has no value"),
        });
    let values: Vec<_> = values.collect();
    assert!(!values.is_empty(), "there is no number {name}");
    values.into_iter().sum()
}
