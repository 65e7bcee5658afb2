//! 48: plugins that write without end.

use std::time::Duration;

use anyhow::{Context as _, Result};
use core_proto::v1::{LogRecord, PluginManagerLogsRequest};
use core_tests::{Client, POLL, patience};
use serde_json::json;
use tokio::time::Instant;

use crate::MISBEHAVING;
use crate::home::{Home, plugin};
use crate::processes;
use crate::report::Row;

/// How long the flood of lines lasts; the other kinds write 50 MB.
const SECONDS: u32 = 5;
/// What the core may grow by for each flood.
const MOST_GROWTH_MIB: f64 = 2.0;
/// A write of 64 KiB takes no longer: the core is always ready to read.
const SLOWEST_WRITE_MS: f64 = 1_000.0;

pub(crate) async fn floods(row: Row) -> Result<()> {
    for kind in ["lines", "long-line", "no-newline", "binary"] {
        flood(&row, kind).await.with_context(|| kind.to_owned())?;
    }
    Ok(())
}

/// One core for each flood: what one leaves in the allocator would excuse the next.
async fn flood(row: &Row, kind: &str) -> Result<()> {
    let seconds = SECONDS.to_string();
    let writer =
        plugin("writer", MISBEHAVING, &["floods-for", kind, &seconds]).top("autostart = false");
    let home = Home::start(&[writer, plugin("bystander", MISBEHAVING, &["serves"])]).await;
    home.all_ready(&["bystander"]).await;
    let reading = tokio::spawn(read_logs(home.operator.another_connection()));
    let before = resident(&home)?;
    home.operator.start("writer").await.context("it starts")?;
    let begin = Instant::now();
    let mut peak = before;
    let report = loop {
        peak = peak.max(resident(&home)?);
        let report = home.operator.call("writer.report", json!({})).await;
        let report = report.context("it answers while it writes")?;
        if report["done"] == json!(true) {
            break report;
        }
        anyhow::ensure!(begin.elapsed() < patience(), "it goes on: {report}");
        tokio::time::sleep(POLL * 2).await;
    };
    let took = begin.elapsed();
    // What is said about the flood follows it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    peak = peak.max(resident(&home)?);
    let number = |what: &str| report[what].as_f64().unwrap_or(f64::NAN);
    let growth = peak - before;
    row.at_most(
        &format!("{kind}: core grows by"),
        growth,
        "MiB",
        MOST_GROWTH_MIB,
    );
    let slowest = number("slowest_write_ms");
    row.at_most(
        &format!("{kind}: slowest write"),
        slowest,
        "ms",
        SLOWEST_WRITE_MS,
    );
    let rate = number("bytes") / 1e6 / took.as_secs_f64();
    row.tell(&format!("{kind}: written"), rate, "MB/s");
    let writer = home.operator.plugin("writer").await;
    row.require(
        writer.generation == 1,
        format!("{kind}: it is not restarted"),
    );
    home.stop(row).await;
    let records = reading.await.context("the reader's task")?;
    let (kept, suppressed) = count(&records);
    row.tell(&format!("{kind}: records kept"), kept, "");
    if kind == "lines" {
        row.at_most(
            "lines: kept per second",
            kept / took.as_secs_f64(),
            "",
            200.0 + 1_000.0 / took.as_secs_f64() + 1.0,
        );
        let written = number("lines");
        // Far below 2^52.
        let counted = writer.suppressed_lines as f64;
        row.tell("lines: suppressed", counted, "");
        row.between(
            "lines: suppressed count is off by",
            written - kept - counted,
            "",
            0.0,
            0.0,
        );
        row.between(
            "lines: said to be suppressed, of those",
            suppressed / counted,
            "",
            1.0,
            1.0,
        );
    }
    Ok(())
}

/// In MiB.
fn resident(home: &Home) -> Result<f64> {
    let bytes = processes::resident_bytes(home.pid()).context("the core's memory")?;
    Ok(bytes as f64 / f64::from(1_u32 << 20))
}

/// All records of the writer, until the core ends.
async fn read_logs(operator: Client) -> Vec<LogRecord> {
    let request = PluginManagerLogsRequest {
        name: "writer".to_owned(),
        follow: true,
        ..Default::default()
    };
    let mut records = Vec::new();
    if let Ok(stream) = operator.plugin_manager().logs(request).await {
        let mut stream = stream.into_inner();
        while let Ok(Some(message)) = stream.message().await {
            records.extend(message.records);
        }
    }
    records
}

/// Lines that were kept, and lines that the core said it had suppressed.
fn count(records: &[LogRecord]) -> (f64, f64) {
    let (mut kept, mut suppressed) = (0.0, 0.0);
    for record in records {
        if record.stream != "core" {
            kept += 1.0;
        } else if record.message.contains("suppressed") {
            let number = record.message.split_whitespace().next();
            suppressed += number.and_then(|number| number.parse().ok()).unwrap_or(0.0);
        }
    }
    (kept, suppressed)
}
