//! What departs from the rules, and why.

use std::collections::BTreeSet;

use crate::Finding;

/// The full name of an element, or `*` and how it ends; and the reason.
pub(super) type Exception = (&'static str, &'static str);

/// Words whose one meaning the service's comment, the type's comment or the glossary gives; a comment
/// on each field would only repeat the name.
pub(super) const LIST: &[Exception] = &[
    (
        "coreruntime.v1.PluginChannel.Open",
        "both directions carry many kinds of messages, named by who sends them",
    ),
    // Names of things.
    ("*.key", "grammar: the comment of the service"),
    ("*.namespace", "grammar: the comment of Storage"),
    ("*.topic", "grammar: the comment of EventBus"),
    ("*Request.name", "the plugin that the RPC is about"),
    ("coreruntime.v1.PluginInfo.name", "the plugin's name"),
    // Fields that are their type.
    ("*Response.plugin", "the plugin as it is after the request"),
    ("*Response.plugins", "PluginInfo says it"),
    ("*Result.plugin", "PluginInfo says it"),
    ("*Response.service", "ServiceInfo says it"),
    ("*Response.services", "ServiceInfo says it"),
    ("*Response.entries", "the comment of the entry's type"),
    ("*Response.records", "LogRecord says it"),
    ("*Response.results", "PluginResult says it"),
    ("*Response.keys", "the keys that were asked for"),
    ("*Info.description", "ServiceDescription says it"),
    ("*Info.kind", "PluginKind says it"),
    ("*.policy", "its enum says it"),
    (
        "coreruntime.v1.Gap.Reason",
        "named by the message that holds it",
    ),
    ("coreruntime.v1.Gap.reason", "its enum says it"),
    (
        "coreruntime.v1.StateChange.Kind",
        "named by the message that holds it",
    ),
    ("coreruntime.v1.StateChange.kind", "its enum says it"),
    ("coreruntime.v1.StorageOpSet", "one kind of StorageOp"),
    ("coreruntime.v1.StorageOpDelete", "one kind of StorageOp"),
    ("coreruntime.v1.StorageOp.set", "its type says it"),
    ("coreruntime.v1.StorageOp.delete", "its type says it"),
    (
        "coreruntime.v1.StorageOpSet.value",
        "as in StorageSetRequest",
    ),
    // Positions and pages, the same everywhere.
    ("*.epoch", "the log's incarnation: Event"),
    ("*.seq", "the position in the log: Event"),
    ("*.existed", "it was there before the request"),
    ("*Response.next_page_token", "empty: this was the last page"),
    (
        "coreruntime.v1.StorageScanResponse.revision",
        "as in StorageListKeysResponse",
    ),
];

/// The list, and which of it was needed.
pub(super) struct Exceptions {
    list: &'static [Exception],
    used: BTreeSet<&'static str>,
}

impl Exceptions {
    pub(super) fn new(list: &'static [Exception]) -> Self {
        Self {
            list,
            used: BTreeSet::new(),
        }
    }

    /// Whether the list holds the element.
    pub(super) fn excuse(&mut self, place: &str) -> bool {
        let matches = |pattern: &str| match pattern.strip_prefix('*') {
            Some(end) => place.ends_with(end),
            None => place == pattern,
        };
        let found = self.list.iter().find(|(pattern, _)| matches(pattern));
        self.used.extend(found.map(|(pattern, _)| *pattern));
        found.is_some()
    }

    /// Exceptions that excuse nothing any more.
    pub(super) fn unused(&self) -> Vec<Finding> {
        let unused = self
            .list
            .iter()
            .filter(|(pattern, _)| !self.used.contains(pattern));
        let finding = |(pattern, _): &Exception| {
            Finding::new(
                *pattern,
                0,
                "needs no exception in tests/lint/exceptions.rs any more",
            )
        };
        unused.map(finding).collect()
    }
}
