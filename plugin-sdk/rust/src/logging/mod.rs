//! Logging that the core understands.
//!
//! [`install`] sets up `tracing` for the whole process. A child of a core writes one JSON object per line
//! to stderr, which the core turns into structured records: `timestamp` (RFC 3339), `level`, `message`,
//! `target`, and beside them, flat, the fields of the event and of the spans around it: `plugin`,
//! `call_id`, `service`, `topic`, … Any other process writes for people, and a plugin that the core did
//! not start also sends its lines to the core while it is connected (a bounded backlog; see `push`). A
//! panic is logged as an error with its place and stack.
//!
//! `RUST_LOG` sets what is written; the default is `info`. The operator may set another level while the
//! plugin runs (`corectl plugins log-level`); it counts for all of the plugin's own lines, while the
//! transport's (h2, hyper, tonic, tower) stay at `info` at most. The feature flags `release_max_level_…`
//! of `tracing` put a limit to that which cannot be lifted while it runs.

mod push;

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::panic;
use std::sync::{Arc, OnceLock};

use core_proto::contract::env;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, span};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

pub(crate) use push::Backlog;

/// What is written unless `RUST_LOG` or the operator says otherwise.
const DEFAULT_FILTER: &str = "info";

/// The process's log, once [`install`] has set it up.
struct Installed {
    filter: reload::Handle<EnvFilter, Registry>,
    /// Where lines wait for the core; not of a child, whose stderr the core reads.
    backlog: Option<Arc<Backlog>>,
    /// The operator's wish that is in force; empty: none.
    level: Mutex<String>,
}

/// Of the process, like `tracing`'s subscriber, which it belongs to.
static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Installs logging and the hook for panics. Does nothing where a subscriber is installed already.
pub fn install() {
    let (filter, handle) = reload::Layer::new(own_filter());
    let is_child = std::env::var_os(env::COOKIE).is_some();
    let (installed, backlog) = if is_child {
        let json = JsonLines { write: to_stderr };
        let layers = tracing_subscriber::registry().with(filter).with(json);
        (layers.try_init(), None)
    } else {
        let backlog = Arc::<Backlog>::default();
        let sink = Arc::clone(&backlog);
        let push = JsonLines {
            write: move |line: Map<String, Value>| {
                let target = line.get("target").and_then(Value::as_str);
                if !target.is_some_and(push::is_transport) {
                    sink.take(line);
                }
            },
        };
        let human = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        let layers = tracing_subscriber::registry()
            .with(filter)
            .with(human)
            .with(push);
        (layers.try_init(), Some(backlog))
    };
    if installed.is_ok() {
        panic::set_hook(Box::new(log_panic));
        let filter = handle;
        // The subscriber could be set, so nobody was here before.
        let level = Mutex::default();
        let _first = INSTALLED.set(Installed {
            filter,
            backlog,
            level,
        });
    }
}

/// What `RUST_LOG` says, else the default.
fn own_filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER))
}

/// Lines that wait for the core, if this process's are to be sent.
pub(crate) fn backlog() -> Option<Arc<Backlog>> {
    INSTALLED.get().and_then(|log| log.backlog.clone())
}

/// Follows the operator's wish; empty: back to what `RUST_LOG` says. Where the author has set up a log
/// of their own, that log's level is theirs.
pub(crate) fn set_level(level: &str) {
    let Some(log) = INSTALLED.get() else {
        if !level.is_empty() {
            tracing::info!(
                level,
                "the log level is set by this program, not by the SDK"
            );
        }
        return;
    };
    let mut wished = log.level.lock();
    if *wished == level {
        return;
    }
    let Some(filter) = filter(level) else {
        tracing::warn!(level, "the core asks for a log level that is not known");
        return;
    };
    match log.filter.reload(filter) {
        Ok(()) => level.clone_into(&mut wished),
        Err(error) => tracing::warn!(%error, "the log level cannot be set"),
    }
}

/// The filter of a word of the contract.
fn filter(level: &str) -> Option<EnvFilter> {
    match level {
        "" => Some(own_filter()),
        "off" | "error" | "warn" | "info" => Some(EnvFilter::new(level)),
        "debug" | "trace" => {
            let transport = "h2=info,hyper=info,hyper_util=info,tonic=info,tower=info";
            Some(EnvFilter::new(format!("{level},{transport}")))
        }
        _ => None,
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

fn to_stderr(line: Map<String, Value>) {
    let mut line = Value::Object(line).to_string();
    line.push('\n');
    // Nothing can be done about a closed stderr; the plugin goes on.
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}

/// Writes each event as one flat object.
struct JsonLines<W> {
    write: W,
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    W: Fn(Map<String, Value>) + 'static,
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
        line.insert("message".to_owned(), short(message));
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
        (self.write)(line);
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
    line.insert(name, short(value.clone()));
}

/// A line above 8 KiB would be split by the core, and its pieces are no JSON any more: stacks and the
/// like are cut well before.
fn short(mut value: Value) -> Value {
    const LONGEST: usize = 4 << 10;
    if let Value::String(text) = &mut value
        && text.len() > LONGEST
    {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    value
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
    use super::*;

    #[test]
    fn a_line_is_one_flat_object() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&lines);
        let write = move |line| sink.lock().push(line);
        let subscriber = tracing_subscriber::registry().with(JsonLines { write });
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("call", plugin = "lamp", call_id = 7, traceparent = "");
            let _entered = span.enter();
            tracing::warn!(level = 3, device = %"k", "switched\n\"it\"");
            tracing::warn!(stack = "é".repeat(5_000), "panic");
        });
        let panic = Value::Object(lines.lock().pop().expect("a second line"));
        assert!(panic.to_string().len() < 5_000 && panic["stack"].as_str().is_some());
        let mut line = lines.lock().pop().expect("one line");
        let timestamp = line.remove("timestamp").expect("present");
        assert!(timestamp.as_str().expect("text").ends_with('Z'));
        line.remove("target");
        let expected = serde_json::json!({
            "level": "warn", "message": "switched\n\"it\"", "plugin": "lamp", "call_id": 7,
            "field_level": 3, "device": "k",
        });
        assert_eq!(Value::Object(line), expected);
    }

    #[test]
    fn every_word_of_the_contract_is_a_filter() {
        for level in ["", "off", "error", "warn", "info", "debug", "trace"] {
            assert!(filter(level).is_some(), "{level}");
        }
        for level in ["loud", "DEBUG", "lamp=debug"] {
            assert!(filter(level).is_none(), "{level}");
        }
        let debug = filter("debug").expect("good").to_string();
        assert!(debug.contains("h2=info"), "{debug}");
    }
}
