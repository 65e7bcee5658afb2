//! How much of the core a plugin may use and uses, as `plugins describe` shows it.

use core_proto::v1::{IntrospectionGetQuotasRequest, PluginQuota};
use serde::Serialize;

use crate::connect::{Core, UNARY_TIMEOUT};
use crate::output::{Cell, Table, Tone};

/// The JSON shape of one.
#[derive(Debug, Serialize)]
pub(super) struct QuotaView {
    name: String,
    unit: String,
    /// Unlimited: null.
    limit: Option<u64>,
    used: u64,
    refused: u64,
}

impl From<PluginQuota> for QuotaView {
    fn from(quota: PluginQuota) -> Self {
        Self {
            name: quota.name,
            unit: quota.unit,
            limit: Some(quota.limit).filter(|limit| *limit != 0),
            used: quota.used,
            refused: quota.refused,
        }
    }
}

/// Those of one plugin. Without them less is shown, and nothing fails.
pub(super) async fn of(core: &Core, plugin: &str) -> Vec<PluginQuota> {
    let mut client = core.introspection();
    let question = IntrospectionGetQuotasRequest {
        plugin: plugin.to_owned(),
    };
    let answer = core.ask(plugin, UNARY_TIMEOUT, question, |request| {
        client.get_quotas(request)
    });
    answer.await.map(|answer| answer.quotas).unwrap_or_default()
}

/// Adds them to the facts of a plugin: those that have a limit, or once refused something.
pub(super) fn show(quotas: &[PluginQuota], table: &mut Table) {
    let shown = quotas
        .iter()
        .filter(|quota| quota.limit > 0 || quota.refused > 0);
    for (index, quota) in shown.enumerate() {
        let label = if index == 0 { "quotas" } else { " " };
        let limit = match quota.limit {
            0 => "any number".to_owned(),
            limit => limit.to_string(),
        };
        let mut text = format!("{} of {limit} {}", quota.used, quota.unit);
        let tone = if quota.refused > 0 {
            text.push_str(&format!(", {} refused ({})", quota.refused, quota.name));
            Tone::Bad
        } else {
            Tone::Plain
        };
        table.fact(label, Cell::new(&text, tone));
    }
}
