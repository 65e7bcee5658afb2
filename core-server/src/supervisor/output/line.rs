//! Bytes to lines to records: pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{Level, LogRecord, LogStream};
use crate::types::Generation;

/// Longest line; longer ones are split, and the pieces marked.
pub(super) const MAX_LINE_BYTES: usize = 8 << 10;
/// Ends a piece whose line goes on.
pub(super) const CUT: &str = " [line goes on]";
/// Keys of structured lines that hold the text.
const MESSAGE_KEYS: [&str; 3] = ["msg", "message", "@message"];
/// Keys of structured lines that hold a time. The core's own stands beside each record: they say
/// nothing new.
const TIME_KEYS: [&str; 4] = ["timestamp", "time", "ts", "@timestamp"];
/// Keys of structured lines that hold the level.
const LEVEL_KEYS: [&str; 3] = ["level", "@level", "severity"];

/// Cuts a stream of bytes into lines, holding at most one line.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes; `emit` gets each line, and whether it was cut.
    pub(super) fn push(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(&[u8], bool)) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let reach = bytes.len().min(room);
            match memchr::memchr(b'\n', &bytes[..reach]) {
                // The usual case: a whole line, which need not be copied.
                Some(end) if self.partial.is_empty() => {
                    emit(&bytes[..end], false);
                    bytes = &bytes[end + 1..];
                }
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    emit(&self.partial, false);
                    self.partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(&bytes[..reach]);
                    bytes = &bytes[reach..];
                    // A full piece is emitted when it is known whether its line goes on, so that the
                    // pieces do not depend on how the bytes arrive.
                    if self.partial.len() == MAX_LINE_BYTES
                        && let Some(next) = bytes.first()
                    {
                        let cut = *next != b'\n';
                        emit(&self.partial, cut);
                        self.partial.clear();
                        if !cut {
                            bytes = &bytes[1..];
                        }
                    }
                }
            }
        }
    }

    /// The end: what is left is a line too.
    pub(super) fn finish(self, emit: &mut impl FnMut(&[u8], bool)) {
        if !self.partial.is_empty() {
            emit(&self.partial, false);
        }
    }
}

/// Whether a line says nothing, and is neither kept nor counted.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_control)
}

/// A JSON text as people read it: a string of simple characters without its quotes.
pub(super) fn bare(json: &str) -> &str {
    let inner = json
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let simple = |text: &&str| {
        !text.is_empty()
            && !text.contains([' ', '"', '\\', '='])
            && !text.contains(char::is_control)
    };
    inner.filter(simple).unwrap_or(json)
}

/// A line as a record; `None` for one that is empty once it is cleaned. `plugin` wrote it.
pub(super) fn record(
    line: &[u8],
    cut: bool,
    stream: LogStream,
    generation: Generation,
    plugin: &str,
) -> Option<LogRecord> {
    let default = match stream {
        LogStream::Stderr => Level::Warn,
        LogStream::Stdout | LogStream::Core => Level::Info,
    };
    let (level, mut message, fields) = structured(line, default, plugin).unwrap_or_else(|| {
        (
            default,
            clean(&String::from_utf8_lossy(line)),
            BTreeMap::new(),
        )
    });
    if message.is_empty() && fields.is_empty() {
        return None;
    }
    if cut {
        message.push_str(CUT);
    }
    Some(LogRecord {
        time: SystemTime::now(),
        level,
        message,
        fields,
        stream,
        generation,
    })
}

fn structured(
    line: &[u8],
    default: Level,
    plugin: &str,
) -> Option<(Level, String, BTreeMap<String, String>)> {
    if line.first() != Some(&b'{') {
        return None;
    }
    let mut object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(line).ok()?;
    let key = MESSAGE_KEYS
        .into_iter()
        .find(|key| object.get(*key).is_some_and(|v| v.is_string()))?;
    let message = object
        .remove(key)
        .and_then(|value| value.as_str().map(clean))?;
    let level = LEVEL_KEYS.into_iter().find_map(|key| {
        let level = level(object.get(key)?)?;
        object.remove(key);
        Some(level)
    });
    let mut fields: BTreeMap<_, _> = object
        .into_iter()
        .map(|(name, value)| (clean(&name), value.to_string()))
        .collect();
    leave_out_the_obvious(&mut fields, plugin);
    Some((level.unwrap_or(default), message, fields))
}

/// Takes out what every record says anyway: when, and of which plugin.
pub(super) fn leave_out_the_obvious(fields: &mut BTreeMap<String, String>, plugin: &str) {
    for key in TIME_KEYS {
        fields.remove(key);
    }
    if fields
        .get("plugin")
        .is_some_and(|named| bare(named) == plugin)
    {
        fields.remove("plugin");
    }
}

fn level(value: &serde_json::Value) -> Option<Level> {
    if let Some(text) = value.as_str() {
        return Level::parse(text);
    }
    // Numbers as pino and bunyan write them.
    Some(match value.as_u64()? {
        0..=10 => Level::Trace,
        11..=20 => Level::Debug,
        21..=30 => Level::Info,
        31..=40 => Level::Warn,
        _ => Level::Error,
    })
}

/// Takes out control characters and the colour sequences of terminals.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' if characters.peek() == Some(&'[') => {
                characters.next();
                // Parameters, up to the letter that ends the sequence.
                while let Some(next) = characters.next_if(|next| !next.is_control()) {
                    if matches!(next, '@'..='~') {
                        break;
                    }
                }
            }
            '\t' => cleaned.push(' '),
            character if character.is_control() => {}
            character => cleaned.push(character),
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Vec::new();
        let mut emit = |line: &[u8], cut: bool| lines.push((line.to_vec(), cut));
        let mut splitter = LineSplitter::default();
        for piece in pieces {
            splitter.push(piece, &mut emit);
        }
        splitter.finish(&mut emit);
        lines
    }

    #[test]
    fn long_lines_are_split_and_marked() {
        let long = vec![b'x'; MAX_LINE_BYTES + 10];
        let lines = split(&[&long, b"\nshort\n"]);
        let shape: Vec<_> = lines.iter().map(|(line, cut)| (line.len(), *cut)).collect();
        assert_eq!(shape, [(MAX_LINE_BYTES, true), (10, false), (5, false)]);
        let exact = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(split(&[&[exact.as_slice(), b"\n"].concat()]).len(), 1);
    }

    #[test]
    fn text_loses_control_characters_and_colours_only() {
        for (line, expected) in [
            (b"plain".as_slice(), "plain"),
            (b"\x1b[1;31mred\x1b[0m\r", "red"),
            (b"a\tb\x00\x07c", "a bc"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            (b"{\"not\": \"a message\"}", "{\"not\": \"a message\"}"),
            (b"{broken", "{broken"),
        ] {
            let record = record(line, false, LogStream::Stdout, Generation(1), "lamp");
            let record = record.expect("a record");
            assert_eq!(
                (record.message.as_str(), record.level),
                (expected, Level::Info)
            );
        }
        assert_eq!(
            record(
                b"\x1b[0m\r",
                false,
                LogStream::Stdout,
                Generation(1),
                "lamp"
            ),
            None
        );
    }

    #[test]
    fn structured_lines_keep_their_level_and_fields() {
        for (line, message, level) in [
            (r#"{"level":"WARN","msg":"a"}"#, "a", Level::Warn),
            (r#"{"level":50,"message":"b"}"#, "b", Level::Error),
            (r#"{"@level":"debug","@message":"c"}"#, "c", Level::Debug),
            (r#"{"level":"odd","msg":"d"}"#, "d", Level::Info),
        ] {
            let record = record(
                line.as_bytes(),
                false,
                LogStream::Stdout,
                Generation(1),
                "lamp",
            );
            let record = record.expect("a record");
            assert_eq!(
                (record.message.as_str(), record.level),
                (message, level),
                "{line}"
            );
        }
    }

    #[test]
    fn what_every_record_says_anyway_is_left_out() {
        let line = br#"{"timestamp":"2026-01-31T12:00:00Z","ts":1,"time":2,"@timestamp":3,"plugin":"lamp",
            "level":"info","message":"switched","room":"living room","id":7,"target":"lamp::bulb"}"#;
        let told = |plugin: &str| {
            let record = record(line, false, LogStream::Stderr, Generation(1), plugin);
            record.expect("a record").text()
        };
        let text = "switched id=7 room=\"living room\" target=lamp::bulb";
        assert_eq!(told("lamp"), text);
        let foreign = "switched id=7 plugin=lamp room=\"living room\" target=lamp::bulb";
        assert_eq!(told("other"), foreign, "another's name says something");
    }

    #[test]
    fn simple_strings_are_shown_bare() {
        for (json, expected) in [
            ("\"a\"", "a"),
            ("\"a b\"", "\"a b\""),
            ("\"\"", "\"\""),
            ("\"a=b\"", "\"a=b\""),
            ("\"a\\n\"", "\"a\\n\""),
            ("7", "7"),
            ("[\"a\"]", "[\"a\"]"),
        ] {
            assert_eq!(bare(json), expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_of_long_lines_do_not_depend_on_how_the_bytes_arrive(
            lengths in prop::collection::vec(0..3 * MAX_LINE_BYTES, 1..5),
            size in 1..20_000_usize,
        ) {
            let mut bytes = Vec::new();
            for length in lengths {
                bytes.resize(bytes.len() + length, b'x');
                bytes.push(b'\n');
            }
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(split(&pieces), split(&[&bytes]));
        }

        #[test]
        fn nothing_is_lost_however_the_bytes_arrive(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            size in 1..40_usize,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            let joined: Vec<_> = split(&pieces).into_iter().map(|(line, _)| line).collect();
            let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(joined, expected);
        }
    }
}
