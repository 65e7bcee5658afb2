//! Whether bytes are one JSON text. Pure.
//!
//! A value is checked once, when it comes in, and kept byte for byte: no tree is built, so no number
//! loses digits, no order of members changes and no doubled member vanishes.

use bytes::Bytes;
use serde::de::IgnoredAny;

/// One JSON text in UTF-8, byte for byte as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Bytes);

/// Why bytes are no JSON text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at line {line}, column {column}")]
pub struct NotJson {
    /// Where, counted from 1.
    pub line: usize,
    /// Where in the line, in bytes, counted from 1; 0 stands before the first byte.
    pub column: usize,
    /// What is wrong, for people.
    pub problem: String,
}

impl Json {
    /// Checks the bytes and keeps them.
    ///
    /// # Errors
    /// [`NotJson`], with the place; also for no bytes at all and for anything after the text.
    pub fn parse(bytes: Bytes) -> Result<Self, NotJson> {
        check(&bytes)?;
        Ok(Self(bytes))
    }

    /// Trusts that the bytes were checked before, for example read from the store.
    pub(crate) fn trusted(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The text's bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it came in")
    }

    /// The text's bytes, taken out.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl std::fmt::Debug for Json {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// Checks that `bytes` are one JSON text.
///
/// # Errors
/// [`NotJson`], with the place.
pub fn check(bytes: &[u8]) -> Result<(), NotJson> {
    // Before the grammar: what skips over a string does not look at its encoding.
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (line, column) = place(&bytes[..error.valid_up_to()]);
        NotJson {
            line,
            column,
            problem: "bytes that are not UTF-8".to_owned(),
        }
    })?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        let text = error.to_string();
        let problem = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(problem, _)| problem);
        NotJson {
            line: error.line(),
            column: error.column(),
            problem: problem.to_owned(),
        }
    })?;
    Ok(())
}

/// Line and column of the byte after `before`.
fn place(before: &[u8]) -> (usize, usize) {
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let in_line = before
        .iter()
        .rev()
        .take_while(|byte| **byte != b'\n')
        .count();
    (line, in_line + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_text_of_any_kind_is_accepted_as_it_stands() {
        for good in [
            "null",
            " true ",
            "-1.50e+300000",
            "123456789012345678901234567890",
            "\"\\ud800 lone\"",
            "[1,\n2]",
            "{\"a\":1,\"a\":2}",
        ] {
            let json = Json::parse(Bytes::from_static(good.as_bytes())).expect(good);
            assert_eq!(json.as_str(), good);
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_place() {
        for (bad, line, column) in [
            ("", 1, 0),
            ("  ", 1, 2),
            ("{\"a\":1} x", 1, 9),
            ("1 2", 1, 3),
            ("[1,\n2,\n oops]", 3, 2),
            ("{a:1}", 1, 2),
            ("'a'", 1, 1),
            ("NaN", 1, 1),
            ("01", 1, 2),
            ("\u{feff}1", 1, 1),
        ] {
            let error = check(bad.as_bytes()).expect_err(bad);
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{bad:?}: {error}"
            );
        }
        assert!(check(b"\"\x01\"").is_err(), "a raw control character");
        let error = check(b"[\"a\",\n\"\xff\"]").expect_err("no UTF-8");
        assert_eq!((error.line, error.column), (2, 2), "{error}");
    }

    #[test]
    fn deep_nesting_needs_no_stack() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(check(deep.as_bytes()), Ok(()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let accepted = check(&bytes).is_ok();
            // Whatever is accepted is at least UTF-8 and not empty.
            prop_assert!(!accepted || (std::str::from_utf8(&bytes).is_ok() && !bytes.is_empty()));
        }
    }
}
