//! What a plugin asks for beyond its own area: `[permissions]` of its manifest, parsed. Deciding and
//! enforcing are `security/`'s, but of `env`, which acts when a child is spawned.

use crate::types::Pattern;

use super::settings::{CALL_PATTERNS, NAMESPACES, READ_PATTERNS, VARIABLES, WRITE_PATTERNS, none};
use super::shape::{Field, Repeats, Shape};
use super::tree::View;

/// The words of `manage`.
pub(super) const MANAGE: &[&str] = &[
    "plugins.view",
    "plugins.manage",
    "logs.read",
    "storage.backup",
];

pub(super) const FIELDS: &[Field] = &[
    Field::new("publish", WRITE_PATTERNS, "Topics it may publish.").preset(none),
    Field::new("subscribe", READ_PATTERNS, "Topics it may subscribe to.").preset(none),
    Field::new(
        "provide",
        WRITE_PATTERNS,
        "Services under a foreign prefix that it may offer.",
    )
    .preset(none),
    Field::new(
        "call",
        CALL_PATTERNS,
        "Services it may call; \"?\" at the end: it copes without.",
    )
    .preset(none),
    Field::new(
        "storage",
        Shape::Section(&[&[
            Field::new("read", NAMESPACES, "Namespaces it may read.").preset(none),
            Field::new("write", NAMESPACES, "Namespaces it may write.").preset(none),
        ]]),
        "Namespaces beyond its own.",
    ),
    Field::new(
        "state",
        Shape::Section(&[&[
            Field::new("read", READ_PATTERNS, "State keys it may read.").preset(none),
            Field::new("write", WRITE_PATTERNS, "State keys it may write.").preset(none),
        ]]),
        "State keys beyond its own.",
    ),
    Field::new(
        "manage",
        Shape::List(&Shape::Choice(MANAGE), Repeats::Refused),
        "Parts of the core's management that it may use.",
    )
    .preset(none),
    Field::new(
        "env",
        VARIABLES,
        "Environment variables passed on from the core's own environment.",
    )
    .preset(none),
];

/// Permissions that a manifest asks for. The own area needs no entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Topics to publish.
    pub publish: Vec<Pattern>,
    /// Topics to subscribe to.
    pub subscribe: Vec<Pattern>,
    /// Services to offer under a foreign prefix.
    pub provide: Vec<Pattern>,
    /// Services to call.
    pub call: Vec<CallPermission>,
    /// Namespaces of the storage.
    pub storage: ReadWrite,
    /// Keys of the state.
    pub state: ReadWrite,
    /// Parts of the core's management.
    pub manage: Vec<Manage>,
    /// Environment variables passed on from the core's own environment.
    pub env: Vec<String>,
}

/// Reading and writing apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadWrite {
    /// What may be read.
    pub read: Vec<Pattern>,
    /// What may be written.
    pub write: Vec<Pattern>,
}

/// A service, or several, to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPermission {
    /// Which.
    pub services: Pattern,
    /// Written with "?" at the end: the plugin copes without.
    pub need: Need,
}

/// Whether a plugin can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It cannot.
    Required,
    /// It can.
    Optional,
}

/// A part of the core's management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manage {
    /// `plugins.view`: list, get, watch.
    ViewPlugins,
    /// `plugins.manage`: load, start, stop, unload, restart.
    ManagePlugins,
    /// `logs.read`.
    ReadLogs,
    /// `storage.backup`.
    BackUpStorage,
}

impl Permissions {
    /// From a checked `[permissions]`.
    pub(super) fn read(section: View<'_>) -> Self {
        let call = |(text, _)| {
            let (services, need) = without_mark(text);
            let services = Pattern::parse(services).ok()?;
            Some(CallPermission { services, need })
        };
        Self {
            publish: patterns(section, "publish"),
            subscribe: patterns(section, "subscribe"),
            provide: patterns(section, "provide"),
            call: section.texts("call").filter_map(call).collect(),
            storage: ReadWrite::read(section.section("storage")),
            state: ReadWrite::read(section.section("state")),
            manage: section
                .texts("manage")
                .filter_map(|(text, _)| Manage::parse(text))
                .collect(),
            env: section
                .texts("env")
                .map(|(text, _)| text.to_owned())
                .collect(),
        }
    }
}

impl ReadWrite {
    fn read(section: View<'_>) -> Self {
        Self {
            read: patterns(section, "read"),
            write: patterns(section, "write"),
        }
    }
}

impl Manage {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ViewPlugins => "plugins.view",
            Self::ManagePlugins => "plugins.manage",
            Self::ReadLogs => "logs.read",
            Self::BackUpStorage => "storage.backup",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "plugins.view" => Some(Self::ViewPlugins),
            "plugins.manage" => Some(Self::ManagePlugins),
            "logs.read" => Some(Self::ReadLogs),
            "storage.backup" => Some(Self::BackUpStorage),
            _ => None,
        }
    }
}

/// The pattern of a `call` entry, and whether a "?" stood after it.
pub(super) fn without_mark(text: &str) -> (&str, Need) {
    match text.strip_suffix('?') {
        Some(text) => (text, Need::Optional),
        None => (text, Need::Required),
    }
}

/// What was refused has been reported, and the whole configuration with it.
fn patterns(section: View<'_>, key: &str) -> Vec<Pattern> {
    section
        .texts(key)
        .filter_map(|(text, _)| Pattern::parse(text).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_manage_is_known() {
        for word in MANAGE {
            let part = Manage::parse(word).expect(word);
            assert_eq!(part.as_str(), *word);
        }
    }
}
