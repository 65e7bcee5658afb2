//! The core's log, on standard error: text on a terminal, JSON lines elsewhere. Standard output is
//! left to the answers of commands.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Log, LogFormat, check_log_filter};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("the log filter is not valid: {0}")]
    Filter(String),
    /// The log whose filter was to be changed is gone.
    #[error("the log is closed")]
    Gone(#[source] reload::Error),
    /// This process has a log already.
    #[error("logging is set up already")]
    Twice(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// How a line looks, once nothing is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Text with colours.
    Coloured,
    /// Text.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Changes what the core's log tells, while it runs. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    apply: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    /// The configured filter.
    default: Arc<str>,
    /// In force. Short lock: never held while the filter is changed.
    now: Arc<Mutex<Arc<str>>>,
}

impl fmt::Debug for Control {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Control")
            .field("filter", &self.filter())
            .finish_non_exhaustive()
    }
}

impl Control {
    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> String {
        self.now.lock().to_string()
    }

    /// Puts another filter in force: a level, or levels by target. Empty: the configured one.
    ///
    /// # Errors
    /// [`Error::Filter`]; [`Error::Gone`].
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        let filter: Arc<str> = match filter {
            "" => Arc::clone(&self.default),
            filter => filter.into(),
        };
        (self.apply)(parse(&filter)?).map_err(Error::Gone)?;
        *self.now.lock() = filter;
        Ok(())
    }
}

/// Sets up the log of this process.
///
/// # Errors
/// [`Error::Filter`]; [`Error::Twice`].
pub fn init(log: &Log) -> Result<Control, Error> {
    let terminal = std::io::stderr().is_terminal();
    // A variable of a standard that programs share (no-color.org), not one of ours.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = style(log.format, terminal, no_colour);
    let (subscriber, control) = subscriber(&log.filter, style, || Lossy(std::io::stderr()))?;
    tracing::subscriber::set_global_default(subscriber).map_err(Error::Twice)?;
    Ok(control)
}

/// Standard error while it can be written: a closed terminal, a reader that left or a full disk costs
/// lines, never the core. (`tracing` reports a failed write with `eprintln!`, which panics when
/// standard error is what failed.)
struct Lossy(std::io::Stderr);

impl std::io::Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(self.0.write(bytes).unwrap_or(bytes.len()))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush().ok();
        Ok(())
    }
}

/// h2 warns of what peers do wrong, some of it once for each frame: a stranger could fill the disk. A
/// filter that names h2 is obeyed.
const QUIETED: &str = "h2=error";

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    check_log_filter(filter).map_err(Error::Filter)?;
    EnvFilter::builder()
        .parse(format!("{QUIETED},{filter}"))
        .map_err(|error| Error::Filter(error.to_string()))
}

/// The style of a format, given what is at the other end.
#[must_use]
pub fn style(format: LogFormat, terminal: bool, no_colour: bool) -> Style {
    match format {
        LogFormat::Json => Style::Json,
        LogFormat::Auto if !terminal => Style::Json,
        LogFormat::Auto | LogFormat::Text if terminal && !no_colour => Style::Coloured,
        LogFormat::Auto | LogFormat::Text => Style::Plain,
    }
}

/// A log that goes anywhere, and its control.
///
/// # Errors
/// [`Error::Filter`].
pub fn subscriber<W>(
    filter: &str,
    style: Style,
    writer: W,
) -> Result<(Box<dyn Subscriber + Send + Sync>, Control), Error>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .with_writer(writer);
    /// The styles differ in types only.
    macro_rules! finish {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let apply: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync> =
                Arc::new(move |filter| handle.reload(filter));
            let subscriber: Box<dyn Subscriber + Send + Sync> = Box::new(builder.finish());
            (subscriber, apply)
        }};
    }
    let (subscriber, apply) = match style {
        Style::Json => finish!(builder.json().flatten_event(true)),
        Style::Coloured => finish!(builder.with_ansi(true)),
        Style::Plain => finish!(builder.with_ansi(false)),
    };
    let default: Arc<str> = filter.into();
    let control = Control {
        apply,
        now: Arc::new(Mutex::new(Arc::clone(&default))),
        default,
    };
    Ok((subscriber, control))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, style: Style) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(filter, style, move || writer.clone());
        let (subscriber, _) = subscriber.expect("a good filter");
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "core_server::supervisor", plugin = "lamp", "it crashed");
            tracing::info!(target: "core_server::event_bus", "hello");
        });
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn json_lines_are_one_object_each() {
        let text = logged("info", Style::Json);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["message"], "it crashed");
        assert_eq!(lines[0]["plugin"], "lamp");
        assert_eq!(lines[0]["level"], "WARN");
        assert!(lines[0]["timestamp"].is_string());
    }

    #[test]
    fn the_filter_chooses_by_target() {
        let text = logged("warn,core_server::event_bus=info", Style::Plain);
        assert!(
            text.contains("it crashed") && text.contains("hello"),
            "{text}"
        );
        let text = logged("off,core_server::event_bus=info", Style::Plain);
        assert!(
            !text.contains("it crashed") && text.contains("hello"),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn what_peers_do_wrong_is_told_only_to_whoever_asks_for_it() {
        let told = |filter: &str| {
            let sink = Sink::default();
            let writer = sink.clone();
            let subscriber = subscriber(filter, Style::Plain, move || writer.clone());
            let (subscriber, _) = subscriber.expect("a good filter");
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "h2::proto::ping_pong", "a ping that was never sent");
            });
            !sink.0.lock().is_empty()
        };
        assert!(!told("info") && !told("trace"));
        assert!(told("info,h2=warn"));
    }

    #[test]
    fn the_style_follows_the_terminal_unless_it_is_chosen() {
        for (format, terminal, no_colour, expected) in [
            (LogFormat::Auto, true, false, Style::Coloured),
            (LogFormat::Auto, true, true, Style::Plain),
            (LogFormat::Auto, false, false, Style::Json),
            (LogFormat::Text, true, false, Style::Coloured),
            (LogFormat::Text, false, false, Style::Plain),
            (LogFormat::Json, true, false, Style::Json),
        ] {
            assert_eq!(style(format, terminal, no_colour), expected, "{format:?}");
        }
    }

    #[test]
    fn the_filter_changes_while_the_log_is_open() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber("warn", Style::Plain, move || writer.clone());
        let (subscriber, control) = subscriber.expect("a good filter");
        tracing::subscriber::with_default(subscriber, || {
            let tell = |text: &str| tracing::info!(target: "core_server::routing", "{text}");
            tell("one");
            control.set("warn,core_server::routing=info").expect("good");
            tell("two");
            // A bare word is a target to the library, and would silence everything else.
            for bad in ["loud=loud", "debgu", "x="] {
                let error = control.set(bad).expect_err("bad");
                assert!(matches!(error, Error::Filter(_)), "{error}");
            }
            assert_eq!(control.filter(), "warn,core_server::routing=info");
            tell("three");
            control.set("").expect("the configured one");
            tell("four");
            assert_eq!(control.filter(), "warn");
        });
        let text = String::from_utf8(sink.0.lock().clone()).expect("text");
        assert!(text.contains("two") && text.contains("three"), "{text}");
        assert!(!text.contains("one") && !text.contains("four"), "{text}");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = subscriber("info,x=loud", Style::Plain, io::stderr)
            .err()
            .expect("bad");
        assert_eq!(
            error.to_string(),
            "the log filter is not valid: \"x=loud\" is neither a level (off, error, warn, info, debug, trace) nor \
             target=level"
        );
    }
}
