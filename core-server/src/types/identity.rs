//! Who is who: plugins, their runs, and the sources of messages.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A plugin's name: its identity, its namespace and its prefix. `[a-z][a-z0-9_-]{0,47}`, no dots;
/// `core` and `operator` are reserved.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PluginName(Arc<str>);

/// Why a text is no plugin's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{name}\" is not a plugin name: {rule}")]
pub struct BadPluginName {
    /// The text, cut to 80 characters.
    pub name: String,
    /// The rule that it breaks, for people.
    pub rule: &'static str,
}

impl PluginName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 48;

    /// Parses a name.
    ///
    /// # Errors
    /// [`BadPluginName`], naming the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, BadPluginName> {
        let bad = |rule| BadPluginName {
            name: text.chars().take(80).collect(),
            rule,
        };
        if text.is_empty() || text.len() > Self::MAX_BYTES {
            return Err(bad("it must have 1 to 48 characters"));
        }
        if !text.starts_with(|first: char| first.is_ascii_lowercase()) {
            return Err(bad("it must begin with a lower-case letter"));
        }
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
        };
        if !text.bytes().all(allowed) {
            return Err(bad(
                "only lower-case letters, digits, \"_\" and \"-\" are allowed",
            ));
        }
        if matches!(text, "core" | "operator") {
            return Err(bad("\"core\" and \"operator\" are reserved"));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a dotted name lies in this plugin's own area: `<name>.` and more.
    #[must_use]
    pub fn owns(&self, dotted: &str) -> bool {
        dotted
            .strip_prefix(self.as_str())
            .is_some_and(|rest| rest.starts_with('.'))
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for PluginName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

impl std::borrow::Borrow<str> for PluginName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PluginName {
    type Error = BadPluginName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<PluginName> for String {
    fn from(name: PluginName) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// Number of a plugin's run; rises by one with each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// One run of one plugin, unique for ever. Travels as `Welcome.run` and metadata `core-run`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId(Arc<str>);

impl RunId {
    /// A new id: 16 random bytes in hex.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()).into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Who publishes, calls or writes. Stamped by the core; never claimed in a message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A plugin.
    Plugin(PluginName),
    /// A person or tool with the operator's rights.
    Operator,
    /// The core itself.
    Core,
}

impl Source {
    /// As it travels: the plugin's name, "operator" or "core".
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Plugin(name) => name.as_str(),
            Self::Operator => "operator",
            Self::Core => "core",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_names_follow_the_grammar() {
        let longest = "a".repeat(48);
        for good in ["a", "host_sensors", "geo-2", longest.as_str()] {
            assert_eq!(PluginName::parse(good).expect(good).as_str(), good);
        }
        let too_long = "a".repeat(49);
        for bad in [
            "",
            "A",
            "1a",
            "a.b",
            "_a",
            "a b",
            "core",
            "operator",
            "ä",
            too_long.as_str(),
        ] {
            assert!(PluginName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plugin_owns_what_begins_with_its_name_and_a_dot() {
        let lamp = PluginName::parse("lamp").expect("good");
        assert!(lamp.owns("lamp.changed"));
        assert!(!lamp.owns("lamp"));
        assert!(!lamp.owns("lamps.changed"));
    }
}
