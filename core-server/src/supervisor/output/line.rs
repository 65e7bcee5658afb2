//! Bytes to lines to records: pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::{Level, LogRecord, LogStream};
use crate::types::Generation;

/// Longest line; longer ones are split, and the pieces marked.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Ends a piece whose line goes on.
const CUT: &str = " [line goes on]";
/// Keys of structured lines that hold the text.
const MESSAGE_KEYS: [&str; 3] = ["msg", "message", "@message"];
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
            match bytes[..reach].iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&bytes[..end]);
                    emit(&self.partial, false);
                    self.partial.clear();
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(&bytes[..reach]);
                    bytes = &bytes[reach..];
                    if self.partial.len() == MAX_LINE_BYTES {
                        // A newline right behind ends the line; it was not cut then.
                        let cut = bytes.first() != Some(&b'\n');
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

/// A line as a record; `None` for an empty one.
pub(super) fn record(
    line: &[u8],
    cut: bool,
    stream: LogStream,
    generation: Generation,
) -> Option<LogRecord> {
    let default = match stream {
        LogStream::Stderr => Level::Warn,
        LogStream::Stdout | LogStream::Core => Level::Info,
    };
    let (level, mut message, fields) = structured(line, default).unwrap_or_else(|| {
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

fn structured(line: &[u8], default: Level) -> Option<(Level, String, BTreeMap<String, String>)> {
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
    let fields = object
        .into_iter()
        .map(|(name, value)| (clean(&name), value.to_string()));
    Some((level.unwrap_or(default), message, fields.collect()))
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
fn clean(text: &str) -> String {
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
            let record = record(line, false, LogStream::Stdout, Generation(1)).expect("a record");
            assert_eq!(
                (record.message.as_str(), record.level),
                (expected, Level::Info)
            );
        }
        assert_eq!(record(b"\r", false, LogStream::Stdout, Generation(1)), None);
    }

    #[test]
    fn structured_lines_keep_their_level_and_fields() {
        for (line, message, level) in [
            (r#"{"level":"WARN","msg":"a"}"#, "a", Level::Warn),
            (r#"{"level":50,"message":"b"}"#, "b", Level::Error),
            (r#"{"@level":"debug","@message":"c"}"#, "c", Level::Debug),
            (r#"{"level":"odd","msg":"d"}"#, "d", Level::Info),
        ] {
            let record = record(line.as_bytes(), false, LogStream::Stdout, Generation(1));
            let record = record.expect("a record");
            assert_eq!(
                (record.message.as_str(), record.level),
                (message, level),
                "{line}"
            );
        }
    }

    proptest! {
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
