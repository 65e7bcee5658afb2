//! JSON without loss: payloads are embedded as they were written, only without the white space
//! between their tokens (a payload on a line of a stream must not break the line). Nothing passes
//! through floating point numbers.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::text::printable;

/// Bytes as they stand in output: JSON embedded, anything else as base64. The field beside it in the
/// documented shapes, `…_encoding`, says which.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// No bytes at all.
    Empty,
    /// One JSON text.
    Json(Box<RawValue>),
    /// Something else.
    Binary(Vec<u8>),
}

impl Payload {
    /// Bytes of a content type; an empty one means JSON.
    pub(crate) fn new(content_type: &str, bytes: &[u8]) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        let json = is_json(content_type)
            .then(|| std::str::from_utf8(bytes).ok())
            .flatten()
            .and_then(compact);
        json.map_or_else(|| Self::Binary(bytes.to_vec()), Self::Json)
    }

    /// Bytes that the contract says are JSON.
    pub(crate) fn json(bytes: &[u8]) -> Self {
        Self::new("", bytes)
    }

    /// `json`, `base64` or `empty`.
    pub(crate) fn encoding(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Json(_) => "json",
            Self::Binary(_) => "base64",
        }
    }

    /// One line for a person.
    pub(crate) fn line(&self, content_type: &str) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Json(json) => printable(json.get()).into_owned(),
            Self::Binary(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if content_type.starts_with("text/") => printable(text).into_owned(),
                _ => {
                    let kind = if content_type.is_empty() {
                        "no JSON"
                    } else {
                        content_type
                    };
                    format!("<{} bytes, {}>", bytes.len(), printable(kind))
                }
            },
        }
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Empty => serializer.serialize_none(),
            Self::Json(json) => json.serialize(serializer),
            Self::Binary(bytes) => serializer.serialize_str(&base64(bytes)),
        }
    }
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split(';').next().unwrap_or("").trim();
    media_type.is_empty()
        || media_type.eq_ignore_ascii_case("application/json")
        || media_type.to_ascii_lowercase().ends_with("+json")
}

/// The same JSON text without white space between tokens; nothing if it is not one JSON text.
pub(crate) fn compact(text: &str) -> Option<Box<RawValue>> {
    check(text).ok()?;
    let mut compact = String::with_capacity(text.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in text.chars() {
        if !in_string && matches!(character, ' ' | '\n' | '\r' | '\t') {
            continue;
        }
        compact.push(character);
        match character {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
    }
    RawValue::from_string(compact).ok()
}

/// Is this one JSON text? The error says where it is not.
pub(crate) fn check(text: &str) -> Result<(), serde_json::Error> {
    serde_json::from_str::<&RawValue>(text).map(|_json| ())
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            if position > chunk.len() {
                encoded.push('=');
            } else {
                let index = group >> (18 - 6 * position) & 63;
                encoded.push(char::from(ALPHABET[index as usize]));
            }
        }
    }
    encoded
}

/// A JSON object from names and JSON texts, in the order given.
pub(crate) fn object<'a>(members: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut object = String::from("{");
    for (name, json) in members {
        let separator = if object.len() > 1 { "," } else { "" };
        write!(object, "{separator}{}:{json}", string(name)).expect("a String takes everything");
    }
    object.push('}');
    object
}

/// A text as a JSON string.
pub(crate) fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a str is always a JSON string")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_embedded_without_loss_and_without_line_breaks() {
        let text =
            "{ \"big\": 12345678901234567890123,\n\t\"tiny\": 1.0e-400, \"s\": \"a \\\" b\\\\\" }";
        let compact = compact(text).expect("JSON");
        assert_eq!(
            compact.get(),
            "{\"big\":12345678901234567890123,\"tiny\":1.0e-400,\"s\":\"a \\\" b\\\\\"}"
        );
        for text in ["", "{", "1 2", "nil", "'a'"] {
            assert!(super::compact(text).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_marked_as_base64() {
        let table: [(&str, &[u8], &str, &str); 6] = [
            ("", b"", "empty", "null"),
            ("", b"null", "json", "null"),
            ("application/json; charset=utf-8", b" [1] ", "json", "[1]"),
            ("application/ld+json", b"1", "json", "1"),
            ("text/plain", b"1", "base64", "\"MQ==\""),
            ("", b"\xff", "base64", "\"/w==\""),
        ];
        for (content_type, bytes, encoding, json) in table {
            let payload = Payload::new(content_type, bytes);
            assert_eq!(payload.encoding(), encoding, "{content_type} {bytes:?}");
            assert_eq!(serde_json::to_string(&payload).expect("serialises"), json);
        }
    }

    #[test]
    fn base64_agrees_with_the_vectors_of_rfc_4648() {
        let table = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in table {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_person_sees_one_harmless_line() {
        assert_eq!(Payload::json(b"{\n\"a\": 1}").line(""), "{\"a\":1}");
        assert_eq!(
            Payload::new("text/plain", b"hi\x1b[2J\n").line("text/plain"),
            "hi\\u{1b}[2J\\n"
        );
        assert_eq!(
            Payload::new("image/png", b"\x89PNG").line("image/png"),
            "<4 bytes, image/png>"
        );
    }
}
