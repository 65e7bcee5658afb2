//! `corectl plugins logs`.

use std::collections::BTreeMap;

use core_proto::v1::{LogRecord, PluginManagerLogsRequest};
use serde::Serialize;

use crate::cli::{Level, LogsArgs};
use crate::connect::Core;
use crate::failure::Failure;
use crate::json::Payload;
use crate::output::{Cell, Form, Output, Tone, end_with_reader, now};
use crate::time;

use super::explained;

/// The JSON shape of a log line.
#[derive(Debug, Serialize)]
struct LogView {
    time: Option<String>,
    level: String,
    message: String,
    fields: BTreeMap<String, Payload>,
    stream: String,
    generation: u64,
}

/// Prints what is kept and, with `--follow`, what comes.
pub(super) async fn run(
    core: &Core,
    arguments: &LogsArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let name = &arguments.name;
    let question = PluginManagerLogsRequest {
        name: name.clone(),
        follow: arguments.follow,
        since: arguments
            .since
            .and_then(|since| since.resolve(now()))
            .map(time::to_wire),
        level: arguments.level.map(level_word).unwrap_or("").to_owned(),
        tail: arguments.tail.unwrap_or(0),
    };
    let mut client = core.plugins();
    let mut stream = match core.open(name, client.logs(question)).await {
        Ok(stream) => stream,
        Err(failure) => return Err(explained(core, name, failure).await),
    };
    if arguments.follow {
        end_with_reader();
    }
    loop {
        let response = match core.next(name, &mut stream).await {
            Ok(Some(response)) => response,
            Ok(None) if arguments.follow => return Err(core.stream_ended()),
            Ok(None) => return Ok(()),
            Err(failure) => return Err(explained(core, name, failure).await),
        };
        for record in response.records {
            show(record, output)?;
        }
        output.flush()?;
    }
}

fn show(record: LogRecord, output: &mut Output) -> Result<(), Failure> {
    match output.form() {
        Form::Json => output.json(&LogView {
            time: time::rfc3339(record.time.as_ref()),
            level: record.level,
            message: record.message,
            fields: record
                .fields
                .iter()
                .map(|(name, json)| (name.clone(), Payload::json(json.as_bytes())))
                .collect(),
            stream: record.stream,
            generation: record.generation,
        }),
        Form::Quiet => output.line(&record.message),
        Form::Table => {
            let mut fields: Vec<_> = record.fields.iter().collect();
            fields.sort_unstable();
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, json)| format!("{name}={}", bare(json)))
                .collect();
            let tone = match record.level.as_str() {
                "error" => Tone::Bad,
                "warn" => Tone::Waiting,
                "debug" | "trace" => Tone::Faint,
                _ => Tone::Plain,
            };
            output.cells(&[
                Cell::new(&time::local(record.time.as_ref()), Tone::Faint),
                Cell::new(&format!("{:<5}", record.level.to_uppercase()), tone),
                Cell::new(&record.message, Tone::Plain),
                Cell::new(&fields.join(" "), Tone::Faint),
            ])
        }
    }
}

/// A JSON text as people read it: a string of simple characters without its quotes.
fn bare(json: &str) -> &str {
    let inner = json
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let simple = |text: &&str| !text.is_empty() && !text.contains([' ', '"', '\\', '=']);
    inner.filter(simple).unwrap_or(json)
}

/// A level as the contract writes it.
fn level_word(level: Level) -> &'static str {
    match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    }
}
