//! Logging that the core understands.
//!
//! [`install`] sets up `tracing` for the whole process. A child of a core writes one JSON object per line
//! to stderr, which the core turns into structured records: `timestamp` (RFC 3339), `level`, `message`,
//! `target`, and beside them, flat, the fields of the event and of the spans around it: `plugin`,
//! `call_id`, `service`, `topic`, … Any other process writes for people. `RUST_LOG` sets what is
//! written; the default is `info`. A panic is logged as an error with its place and stack.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::panic;

use core_proto::contract::env;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, span};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// Installs logging and the hook for panics. Does nothing where a subscriber is installed already.
pub fn install() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let is_child = std::env::var_os(env::COOKIE).is_some();
    let installed = if is_child {
        let json = JsonLines { write: to_stderr };
        tracing_subscriber::registry()
            .with(filter)
            .with(json)
            .try_init()
    } else {
        let human = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        tracing_subscriber::registry()
            .with(filter)
            .with(human)
            .try_init()
    };
    if installed.is_ok() {
        panic::set_hook(Box::new(log_panic));
    }
}

fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let message = panic
        .payload()
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = panic.location().map(ToString::to_string);
    let stack = std::backtrace::Backtrace::force_capture();
    tracing::error!(place, %stack, "panic: {message}");
}

fn to_stderr(line: &str) {
    // Nothing can be done about a closed stderr; the plugin goes on.
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}

/// Writes each event as one line of JSON.
struct JsonLines<W> {
    write: W,
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: Fn(&str) + 'static,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut line = Map::new();
        let mut timestamp = String::new();
        if SystemTime
            .format_time(&mut Writer::new(&mut timestamp))
            .is_ok()
        {
            line.insert("timestamp".to_owned(), timestamp.into());
        }
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        line.insert("level".to_owned(), level.into());
        let message = own.0.remove("message").unwrap_or_default();
        line.insert("message".to_owned(), message);
        line.insert("target".to_owned(), metadata.target().into());
        // From the outermost span inwards, the event last: the nearest wins.
        for span in context
            .event_scope(event)
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            if let Some(Fields(fields)) = span.extensions().get() {
                fields
                    .iter()
                    .for_each(|(name, value)| put(&mut line, name, value));
            }
        }
        own.0
            .iter()
            .for_each(|(name, value)| put(&mut line, name, value));
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        (self.write)(&text);
    }
}

/// Adds a field; one that is empty says nothing, and the line's own keys are not overwritten.
fn put(line: &mut Map<String, Value>, name: &str, value: &Value) {
    const OWN: [&str; 4] = ["timestamp", "level", "message", "target"];
    if value == "" || value.is_null() {
        return;
    }
    let name = match OWN.contains(&name) {
        true => format!("field_{name}"),
        false => name.to_owned(),
    };
    line.insert(name, value.clone());
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn insert(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_line_is_one_flat_object() {
        let lines = Arc::new(Mutex::new(Vec::<String>::new()));
        let sink = Arc::clone(&lines);
        let write = move |line: &str| sink.lock().expect("free").push(line.to_owned());
        let subscriber = tracing_subscriber::registry().with(JsonLines { write });
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", plugin = "lamp", call_id = 7, traceparent = "");
            let _entered = span.enter();
            tracing::warn!(level = 3, device = %"k", "switched\n\"it\"");
        });
        let lines = lines.lock().expect("free");
        let line = lines.first().expect("one line");
        assert_eq!(line.matches('\n').count(), 1);
        let mut line: Map<String, Value> = serde_json::from_str(line).expect("JSON");
        let timestamp = line.remove("timestamp").expect("present");
        assert!(timestamp.as_str().expect("text").ends_with('Z'));
        line.remove("target");
        let expected = serde_json::json!({
            "level": "warn", "message": "switched\n\"it\"", "plugin": "lamp", "call_id": 7,
            "field_level": 3, "device": "k",
        });
        assert_eq!(Value::Object(line), expected);
    }
}
