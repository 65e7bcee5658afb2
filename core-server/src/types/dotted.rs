//! Dotted names: topics, service names and state keys share one grammar.
//!
//! `token *( "." token )`, a token is `[A-Za-z0-9_-]{1,64}`, at most 16 tokens and 255 bytes.

use std::fmt;
use std::sync::Arc;

/// Longest dotted name, in bytes.
pub const MAX_BYTES: usize = 255;
/// Most tokens of a dotted name.
pub const MAX_TOKENS: usize = 16;
/// Longest token, in bytes.
const MAX_TOKEN_BYTES: usize = 64;

/// Why a text is not the name it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} \"{name}\" is not valid: {rule}")]
pub struct BadName {
    /// What it should have been: "topic", "service", "state key", "pattern".
    pub kind: &'static str,
    /// The text, cut to 80 characters.
    pub name: String,
    /// The rule that it breaks, for people.
    pub rule: &'static str,
}

impl BadName {
    pub(super) fn new(kind: &'static str, name: &str, rule: &'static str) -> Self {
        Self {
            kind,
            name: name.chars().take(80).collect(),
            rule,
        }
    }
}

/// Checks the grammar; `extra` accepts tokens that the plain grammar does not (wildcards).
pub(super) fn check(
    text: &str,
    extra: impl Fn(&str, bool) -> Option<Result<(), &'static str>>,
) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > MAX_BYTES {
        return Err("it is longer than 255 bytes");
    }
    let count = text.split('.').count();
    if count > MAX_TOKENS {
        return Err("it has more than 16 tokens");
    }
    for (index, token) in text.split('.').enumerate() {
        if let Some(answer) = extra(token, index + 1 == count) {
            answer?;
            continue;
        }
        // `$` begins the core's own advisories; who may use them is a matter of permissions.
        let bare = if index == 0 {
            token.strip_prefix('$').unwrap_or(token)
        } else {
            token
        };
        if bare.is_empty() {
            return Err("it has an empty token: dots separate tokens of at least one character");
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err("a token is longer than 64 bytes");
        }
        if !bare
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        {
            return Err("only letters, digits, \"_\" and \"-\" may stand between dots");
        }
    }
    Ok(())
}

macro_rules! dotted_name {
    ($(#[$doc:meta])* $vis:vis $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $vis struct $name(Arc<str>);

        impl $name {
            /// Parses the name.
            ///
            /// # Errors
            /// [`BadName`], naming the rule that is broken.
            $vis fn parse(text: &str) -> Result<Self, BadName> {
                check(text, |_, _| None).map_err(|rule| BadName::new($kind, text, rule))?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            $vis fn as_str(&self) -> &str {
                &self.0
            }

            /// The name, shared.
            #[must_use]
            $vis fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }

            /// The part before the first dot.
            #[must_use]
            $vis fn first_token(&self) -> &str {
                self.0.split('.').next().unwrap_or_default()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

dotted_name!(
    /// Name of a kind of event: `lamp.changed`.
    pub Topic,
    "topic"
);
dotted_name!(
    /// Name of a service: `devices.turn_on`. At least two tokens.
    ServiceNameText,
    "service"
);
dotted_name!(
    /// Key of the StateEngine: `lamp.kitchen`.
    pub StateKey,
    "state key"
);

/// Name of a service: its provider's name, a dot, one or more tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(ServiceNameText);

impl ServiceName {
    /// Parses the name.
    ///
    /// # Errors
    /// [`BadName`], naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let name = ServiceNameText::parse(text)?;
        if !text.contains('.') {
            let rule = "a service is named after its plugin: \"plugin.verb\"";
            return Err(BadName::new("service", text, rule));
        }
        Ok(Self(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The part before the first dot: by default the provider's name.
    #[must_use]
    pub fn first_token(&self) -> &str {
        self.0.first_token()
    }

    /// The name, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        self.0.shared()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_names_the_broken_rule() {
        let long_token = "a".repeat(65);
        let long_name = [
            "a".repeat(60),
            "b".repeat(60),
            "c".repeat(60),
            "d".repeat(60),
            "e".repeat(60),
        ]
        .join(".");
        let many = ["a"; 17].join(".");
        for (text, rule) in [
            ("", "empty"),
            ("a..b", "empty token"),
            (".a", "empty token"),
            ("a.", "empty token"),
            ("a b", "letters"),
            ("a.*", "letters"),
            ("a.>", "letters"),
            ("a.$b", "letters"),
            ("ä", "letters"),
            (long_token.as_str(), "64 bytes"),
            (long_name.as_str(), "255 bytes"),
            (many.as_str(), "16 tokens"),
        ] {
            let error = Topic::parse(text).expect_err(text);
            assert!(error.rule.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn good_names_are_kept_as_they_are() {
        for text in [
            "a",
            "lamp.changed",
            "A-b_9.x",
            "$core.slow_subscriber",
            &"a".repeat(64),
        ] {
            assert_eq!(Topic::parse(text).expect(text).as_str(), text);
        }
        assert_eq!(
            ServiceName::parse("devices.turn_on")
                .expect("good")
                .first_token(),
            "devices"
        );
    }

    #[test]
    fn a_service_needs_its_plugins_name() {
        assert!(
            ServiceName::parse("turn_on")
                .expect_err("one token")
                .rule
                .contains("plugin.verb")
        );
    }
}
