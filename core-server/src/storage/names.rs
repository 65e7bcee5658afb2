//! Namespaces, keys and stretches of keys. Pure.

use std::fmt;
use std::sync::Arc;

use super::error::Error;

/// A partition of the store: `[a-z0-9][a-z0-9._-]{0,63}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

/// The name of an entry in its namespace: 1 to 512 bytes of UTF-8 without control characters.
/// Ordered by its bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Namespace {
    /// Longest namespace, in bytes.
    pub const MAX_BYTES: usize = 64;

    /// Parses a namespace.
    ///
    /// # Errors
    /// [`Error::BadNamespace`], naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |rule| Error::BadNamespace {
            namespace: shorten(text),
            rule,
        };
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(bad("it must have 1 to 64 characters"));
        }
        let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !text.bytes().next().is_some_and(lower) {
            return Err(bad("it must begin with a lower-case letter or a digit"));
        }
        if !text
            .bytes()
            .all(|byte| lower(byte) || matches!(byte, b'.' | b'_' | b'-'))
        {
            return Err(bad(
                "only lower-case letters, digits, \".\", \"_\" and \"-\" are allowed",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The namespace as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Key {
    /// Longest key, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Parses a key.
    ///
    /// # Errors
    /// [`Error::BadKey`], naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(bad_key(text, "it is empty"));
        }
        check_key_part(text)?;
        Ok(Self(text.into()))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The rules of a key but for its being empty: also those of a prefix and of `start_after`.
pub(super) fn check_key_part(text: &str) -> Result<(), Error> {
    if text.len() > Key::MAX_BYTES {
        return Err(bad_key(text, "it is longer than 512 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(bad_key(text, "control characters are not allowed"));
    }
    Ok(())
}

fn bad_key(text: &str, rule: &'static str) -> Error {
    Error::BadKey {
        key: shorten(text),
        rule,
    }
}

/// What an error shows of a text that may be long and full of control characters.
fn shorten(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|letter| {
            if letter.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                letter
            }
        })
        .collect()
}

macro_rules! shown_as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, formatter)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

shown_as_text!(Namespace);
shown_as_text!(Key);

/// A half-open stretch of keys in byte order: `from` inclusive, `to` exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The least text that is inside.
    pub from: String,
    /// The least text that is past the end. None: there is no end.
    pub to: Option<String>,
}

impl KeyRange {
    /// The keys that begin with `prefix` and come after `start_after` in the direction of reading.
    #[must_use]
    pub fn new(prefix: &str, start_after: Option<&str>, direction: Direction) -> Self {
        let mut range = Self {
            from: prefix.to_owned(),
            to: end_of_prefix(prefix),
        };
        match (direction, start_after) {
            (_, None) => {}
            (Direction::Ascending, Some(after)) => {
                // No text lies between a text and itself followed by a zero byte.
                let next = format!("{after}\0");
                range.from = range.from.max(next);
            }
            (Direction::Descending, Some(before)) => {
                let nearer = range.to.as_deref().is_none_or(|to| before < to);
                if nearer {
                    range.to = Some(before.to_owned());
                }
            }
        }
        range
    }

    /// Whether nothing can be inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to.as_ref().is_some_and(|to| *to <= self.from)
    }
}

/// In which order keys are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// From the least key.
    #[default]
    Ascending,
    /// From the greatest key.
    Descending,
}

/// The least text that is greater than every text that begins with `prefix`; None: there is none.
///
/// UTF-8 keeps the order of code points in its bytes, so the last character is raised by one. To
/// raise the last byte would be simpler, but the result need not be UTF-8, which SQLite's TEXT is.
fn end_of_prefix(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        let next = match last {
            // The surrogates, which no text contains, lie between these two.
            '\u{D7FF}' => Some('\u{E000}'),
            _ => char::from_u32(u32::from(last) + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return Some(end);
        }
        // The greatest character there is: the end is that of what stands before it.
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn namespaces_follow_the_grammar() {
        let longest = "a".repeat(64);
        for good in [
            "a",
            "0",
            "lamp",
            "lamp.history",
            "a_b-c.9",
            longest.as_str(),
        ] {
            assert_eq!(Namespace::parse(good).expect(good).as_str(), good);
        }
        let too_long = "a".repeat(65);
        for bad in [
            "", "A", ".a", "_a", "-a", "a b", "a/b", "ä", "a\0", &too_long,
        ] {
            let error = Namespace::parse(bad).expect_err(bad);
            assert!(matches!(error, Error::BadNamespace { .. }), "{error}");
        }
    }

    #[test]
    fn keys_are_any_text_without_control_characters() {
        let longest = "ä".repeat(256);
        for good in ["a", " ", "Küche/Lampe 1", "\u{10FFFF}", longest.as_str()] {
            assert_eq!(Key::parse(good).expect(good).as_str(), good);
        }
        let too_long = "a".repeat(513);
        for bad in ["", "a\n", "\0", "\u{7f}", "\u{85}", &too_long] {
            let error = Key::parse(bad).expect_err(bad);
            assert!(matches!(error, Error::BadKey { .. }), "{error}");
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_character_begins() {
        for (prefix, end) in [
            ("a", Some("b")),
            ("a\u{7f}", Some("a\u{80}")),
            ("\u{7ff}", Some("\u{800}")),
            ("x\u{D7FF}", Some("x\u{E000}")),
            ("x\u{FFFF}", Some("x\u{10000}")),
            ("x\u{10FFFF}", Some("y")),
            ("\u{10FFFF}\u{10FFFF}", None),
            ("", None),
        ] {
            assert_eq!(end_of_prefix(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn a_range_holds_exactly_the_keys_asked_for(
            key in "[a-c\u{7f}\u{80}\u{7ff}\u{D7FF}\u{FFFF}\u{10FFFF}]{1,4}",
            prefix in "[a-c\u{7f}\u{80}\u{7ff}\u{D7FF}\u{FFFF}\u{10FFFF}]{0,2}",
            after in proptest::option::of("[a-c\u{7f}\u{80}\u{7ff}\u{D7FF}\u{10FFFF}]{1,4}"),
            descending: bool,
        ) {
            let direction = if descending { Direction::Descending } else { Direction::Ascending };
            let range = KeyRange::new(&prefix, after.as_deref(), direction);
            let inside = range.from <= key && range.to.as_ref().is_none_or(|to| key < *to);
            let wanted = key.starts_with(&prefix) && after.is_none_or(|after| match direction {
                Direction::Ascending => key > after,
                Direction::Descending => key < after,
            });
            prop_assert_eq!(inside, wanted);
            prop_assert!(!(inside && range.is_empty()));
        }
    }
}
