//! The core's log, on standard error: text on a terminal, JSON lines elsewhere. Standard output is
//! left to the answers of commands.

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("the log filter \"{filter}\" is not valid")]
    Filter {
        /// It.
        filter: String,
        /// What is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
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

/// Sets up the log of this process.
///
/// # Errors
/// [`Error::Filter`]; [`Error::Twice`].
pub fn init(log: &Log) -> Result<(), Error> {
    let terminal = std::io::stderr().is_terminal();
    // A variable of a standard that programs share (no-color.org), not one of ours.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = style(log.format, terminal, no_colour);
    let subscriber = subscriber(&log.filter, style, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(Error::Twice)
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

/// A log that goes anywhere.
///
/// # Errors
/// [`Error::Filter`].
pub fn subscriber<W>(
    filter: &str,
    style: Style,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, Error>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| Error::Filter {
            filter: filter.to_owned(),
            source,
        })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    Ok(match style {
        Style::Json => Box::new(builder.json().flatten_event(true).finish()),
        Style::Coloured => Box::new(builder.with_ansi(true).finish()),
        Style::Plain => Box::new(builder.with_ansi(false).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

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
        let subscriber = subscriber(filter, style, move || writer.clone()).expect("a good filter");
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
    fn a_bad_filter_is_named() {
        let error = subscriber("info,x=loud", Style::Plain, io::stderr)
            .err()
            .expect("bad");
        assert_eq!(
            error.to_string(),
            "the log filter \"info,x=loud\" is not valid"
        );
    }
}
