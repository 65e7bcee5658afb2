//! `Introspection`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use core_proto::contract;
use core_proto::servers::introspection_server;
use core_proto::v1;
use tonic::{Request, Response, Status};

use super::convert::time_to_proto;
use super::unary;
use crate::config::Limit;
use crate::security::Metering;
use crate::supervisor::custody::Custody;
use crate::types::{Epoch, Source};

/// What does not change while the core runs.
#[derive(Clone, Debug)]
pub(crate) struct Information {
    /// When it started.
    pub started_at: SystemTime,
    /// The event log's incarnation.
    pub epoch: Epoch,
    /// What it listens on.
    pub addresses: Vec<String>,
    /// Plaintext from other machines is accepted.
    pub insecure_plaintext: bool,
    /// Storage adapter in use, and where its data is.
    pub storage: (String, String),
    /// Bounds in force.
    pub limits: Vec<Limit>,
    /// Knows what keeps children from outliving the core.
    pub custody: Custody,
}

/// One number, when it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Metric {
    /// Its name: "event_bus_published_total".
    pub name: &'static str,
    /// Its labels, in order of name.
    pub labels: Vec<(&'static str, String)>,
    /// Its value.
    pub value: Value,
}

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// It only rises.
    Counter(u64),
    /// It rises and falls.
    Gauge(i64),
}

/// Reads all numbers of the core.
pub(crate) type ReadMetrics = Arc<dyn Fn() -> Vec<Metric> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Api {
    pub(super) information: Arc<Information>,
    pub(super) metering: Metering,
    pub(super) metrics: ReadMetrics,
}

#[tonic::async_trait]
impl introspection_server::Introspection for Api {
    async fn get_info(
        &self,
        request: Request<v1::IntrospectionGetInfoRequest>,
    ) -> Result<Response<v1::IntrospectionGetInfoResponse>, Status> {
        unary(request, async |caller, _| {
            let information = &*self.information;
            let for_operators = |text: &String| match caller.source {
                Source::Operator | Source::Core => text.clone(),
                Source::Plugin(_) => String::new(),
            };
            let addresses = information.addresses.iter().map(for_operators);
            Ok(v1::IntrospectionGetInfoResponse {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                wire_version_min: contract::WIRE_VERSION_MIN,
                wire_version_max: contract::WIRE_VERSION_MAX,
                features: vec![contract::FEATURE_HEARTBEAT.to_owned()],
                started_at: Some(time_to_proto(information.started_at)),
                epoch: information.epoch.0,
                addresses: addresses.filter(|address| !address.is_empty()).collect(),
                insecure_plaintext: information.insecure_plaintext,
                storage: information.storage.0.clone(),
                storage_path: for_operators(&information.storage.1),
                limits: information
                    .limits
                    .iter()
                    .map(|limit| v1::Limit {
                        name: limit.name.to_owned(),
                        value: limit.value,
                        unit: limit.unit.to_owned(),
                        at_limit: limit.at_limit.to_owned(),
                    })
                    .collect(),
                orphan_layers: information
                    .custody
                    .layers()
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
            })
        })
        .await
    }

    async fn get_quotas(
        &self,
        request: Request<v1::IntrospectionGetQuotasRequest>,
    ) -> Result<Response<v1::IntrospectionGetQuotasResponse>, Status> {
        unary(request, async |_, message| {
            let only = Some(message.plugin.as_str()).filter(|plugin| !plugin.is_empty());
            let readings = self.metering.read(only).into_iter();
            let quotas = readings.flat_map(|(plugin, readings)| {
                readings.map(|reading| v1::PluginQuota {
                    plugin: plugin.to_string(),
                    name: reading.quota.key().to_owned(),
                    unit: reading.quota.unit().to_owned(),
                    limit: reading.limit,
                    used: reading.used,
                    refused: reading.refused,
                })
            });
            Ok(v1::IntrospectionGetQuotasResponse {
                quotas: quotas.collect(),
            })
        })
        .await
    }

    async fn get_stats(
        &self,
        request: Request<v1::IntrospectionGetStatsRequest>,
    ) -> Result<Response<v1::IntrospectionGetStatsResponse>, Status> {
        unary(request, async |_, _| {
            let mut metrics = (self.metrics)();
            metrics.sort_by(|a, b| (a.name, &a.labels).cmp(&(b.name, &b.labels)));
            let metrics = metrics.into_iter().map(|metric| v1::Metric {
                name: metric.name.to_owned(),
                labels: metric
                    .labels
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect::<HashMap<_, _>>(),
                value: Some(match metric.value {
                    Value::Counter(value) => v1::metric::Value::Counter(value),
                    Value::Gauge(value) => v1::metric::Value::Gauge(value),
                }),
            });
            Ok(v1::IntrospectionGetStatsResponse {
                metrics: metrics.collect(),
            })
        })
        .await
    }
}
