//! Patterns over dotted names: `*` is exactly one token, `>` one or more and last only. Names that
//! begin with `$` are not matched by a leading wildcard, so that a monitor of everything does not
//! feed on the advisories about its own slowness.

use std::fmt;
use std::sync::Arc;

use super::dotted::{BadName, check};

/// A pattern over topics, service names or state keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`BadName`], naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        check(text, |token, last| match token {
            "*" => Some(Ok(())),
            ">" if last => Some(Ok(())),
            ">" => Some(Err("\">\" may stand only as the last token")),
            _ => None,
        })
        .map_err(|rule| BadName::new("pattern", text, rule))?;
        Ok(Self(text.into()))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its tokens, in order.
    pub fn tokens(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }

    /// Whether it has no wildcard, and so matches one name only.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        !self.tokens().any(|token| matches!(token, "*" | ">"))
    }

    /// Whether `name` (a valid dotted name) matches.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut pattern = self.tokens();
        let mut tokens = name.split('.');
        let mut first = true;
        loop {
            match (pattern.next(), tokens.next()) {
                (None, None) => return true,
                (Some(">"), Some(token)) => return !(first && token.starts_with('$')),
                (Some("*"), Some(token)) if first && token.starts_with('$') => return false,
                (Some("*"), Some(_)) => {}
                (Some(expected), Some(token)) if expected == token => {}
                _ => return false,
            }
            first = false;
        }
    }

    /// Whether every name that `other` matches is matched by `self` too.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let mut mine = self.tokens();
        let mut theirs = other.tokens();
        let mut first = true;
        loop {
            match (mine.next(), theirs.next()) {
                (None, None) => return true,
                (Some(">"), Some(token)) => return !(first && token.starts_with('$')),
                (Some("*"), Some(token)) if first && token.starts_with('$') => return false,
                (Some("*"), Some(token)) if token != ">" => {}
                (Some(expected), Some(token)) if expected == token && expected != "*" => {}
                _ => return false,
            }
            first = false;
        }
    }
}

impl Pattern {
    /// Whether some name is matched by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut mine, mut theirs) = (self.tokens(), other.tokens());
        let is_wild = |token: &str| matches!(token, "*" | ">");
        let mut first = true;
        loop {
            let (one, two) = match (mine.next(), theirs.next()) {
                (None, None) => return true,
                (Some(one), Some(two)) => (one, two),
                _ => return false,
            };
            // A leading wildcard matches nothing that begins with "$".
            let literal = if is_wild(one) { two } else { one };
            if first && literal.starts_with('$') && (is_wild(one) || is_wild(two)) {
                return false;
            }
            if one == ">" || two == ">" {
                return true;
            }
            if one != two && one != "*" && two != "*" {
                return false;
            }
            first = false;
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect(text)
    }

    #[test]
    fn overlapping_follows_the_table() {
        for (one, two, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.*", "*.b", true),
            ("a.*", "a.>", true),
            ("a.>", "a", false),
            ("a.>", "*.b.c", true),
            ("a.b", "a.b.c", false),
            (">", "a.b", true),
            (">", "$core.slow", false),
            ("*.slow", "$core.slow", false),
            ("$core.>", "$core.slow", true),
        ] {
            assert_eq!(
                pattern(one).overlaps(&pattern(two)),
                expected,
                "{one} {two}"
            );
            assert_eq!(
                pattern(two).overlaps(&pattern(one)),
                expected,
                "{two} {one}"
            );
        }
    }

    #[test]
    fn matching_follows_the_table() {
        for (text, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a.b.c", false),
            ("a.b.c", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            (">", "a.b", true),
            ("*.*.>", "a.b.c.d", true),
            (">", "$core.slow", false),
            ("*.slow", "$core.slow", false),
            ("$core.>", "$core.slow", true),
            ("$core.*", "$core.slow", true),
        ] {
            assert_eq!(pattern(text).matches(name), expected, "{text} ~ {name}");
        }
    }

    #[test]
    fn containment_follows_the_table() {
        for (outer, inner, expected) in [
            (">", "a.b", true),
            (">", "a.>", true),
            (">", ">", true),
            (">", "*", true),
            (">", "$core.>", false),
            ("a.>", "a.*", true),
            ("a.>", "a.>", true),
            ("a.>", "a", false),
            ("a.>", ">", false),
            ("a.*", "a.b", true),
            ("a.*", "a.*", true),
            ("a.*", "a.>", false),
            ("a.b", "a.*", false),
            ("*.b", "a.b", true),
            ("*.*", "*.>", false),
        ] {
            assert_eq!(
                pattern(outer).contains(&pattern(inner)),
                expected,
                "{outer} > {inner}"
            );
        }
    }

    #[test]
    fn wildcards_have_their_places() {
        for text in ["a.>.b", "a*", "a.**", ">.>", ">a", ""] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    fn names() -> impl Strategy<Value = String> {
        prop::collection::vec("[$]?[ab]", 1..4).prop_map(|tokens| {
            let tail: Vec<_> = tokens[1..]
                .iter()
                .map(|token| token.trim_start_matches('$'))
                .collect();
            [&[tokens[0].as_str()], tail.as_slice()].concat().join(".")
        })
    }

    fn patterns() -> impl Strategy<Value = String> {
        (prop::collection::vec("[ab*]", 1..4), prop::bool::ANY).prop_map(|(mut tokens, open)| {
            if open {
                tokens.push(">".to_owned());
            }
            tokens.join(".")
        })
    }

    proptest! {
        #[test]
        fn what_is_contained_is_matched(outer in patterns(), inner in patterns(), name in names()) {
            let (outer, inner) = (pattern(&outer), pattern(&inner));
            if outer.contains(&inner) && inner.matches(&name) {
                prop_assert!(outer.matches(&name));
            }
        }
    }
}
