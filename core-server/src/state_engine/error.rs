//! What can go wrong with a read, a write or a watch.

use crate::error::{Classify, ErrorKind, Reason};
use crate::types::json::NotJson;
use crate::types::{BadName, Revision, StateKey};

/// Errors of the StateEngine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a key.
    #[error(transparent)]
    BadStateKey(BadName),
    /// Not a pattern.
    #[error(transparent)]
    BadPattern(BadName),
    /// A field is malformed.
    #[error("field {field} is not valid: {rule}")]
    BadField {
        /// Which.
        field: &'static str,
        /// The rule that it breaks, for people.
        rule: String,
    },
    /// The value is not one JSON text.
    #[error("the value of \"{key}\" is not one JSON text")]
    NotJson {
        /// Of which key.
        key: StateKey,
        /// Where.
        #[source]
        source: NotJson,
    },
    /// The value is larger than allowed.
    #[error("the value of \"{key}\" has {size_bytes} bytes; at most {limit_bytes} are allowed")]
    TooLarge {
        /// Of which key.
        key: StateKey,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// There is no room.
    #[error("no room for \"{key}\": the state holds at most {limit} {unit}; delete keys")]
    Full {
        /// For which key.
        key: StateKey,
        /// Of what there is too much: "keys" or "bytes of values".
        unit: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The area of one first name has its share.
    #[error(
        "no room for \"{key}\": the keys of one name may be at most {limit} {unit}; delete some of \
         \"{}\"", key.first_token()
    )]
    OwnerFull {
        /// For which key.
        key: StateKey,
        /// Of what there is too much: "keys" or "bytes of values".
        unit: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A watch was read too slowly.
    #[error(
        "the watch was too slow, and what is held for one watcher is bounded; watch anew, \
         beginning with what is there"
    )]
    Compacted,
    /// A compare-and-set lost.
    #[error(
        "\"{key}\" is at revision {current}, not {expected} (0 is absent); read it again and decide \
         again"
    )]
    RevisionMismatch {
        /// Of which key.
        key: StateKey,
        /// What the writer expected.
        expected: Revision,
        /// What is.
        current: Revision,
    },
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadStateKey(_)
            | Self::BadPattern(_)
            | Self::BadField { .. }
            | Self::NotJson { .. }
            | Self::TooLarge { .. } => ErrorKind::InvalidArgument,
            Self::Full { .. } | Self::OwnerFull { .. } => ErrorKind::ResourceExhausted,
            Self::Compacted => ErrorKind::OutOfRange,
            Self::RevisionMismatch { .. } => ErrorKind::Aborted,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::BadStateKey(_) => Reason::BadStateKey,
            Self::BadPattern(_) => Reason::BadPattern,
            Self::BadField { .. } => Reason::BadField,
            Self::NotJson { .. } => Reason::NotJson,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Full { .. } | Self::OwnerFull { .. } => Reason::StateFull,
            Self::Compacted => Reason::Compacted,
            Self::RevisionMismatch { .. } => Reason::RevisionMismatch,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::BadStateKey(bad) => {
                vec![("key", bad.name.clone()), ("rule", bad.rule.to_owned())]
            }
            Self::BadPattern(bad) => {
                vec![("pattern", bad.name.clone()), ("rule", bad.rule.to_owned())]
            }
            Self::BadField { field, .. } => vec![("field", (*field).to_owned())],
            Self::NotJson { key, source } => vec![
                ("key", key.to_string()),
                ("line", source.line.to_string()),
                ("column", source.column.to_string()),
            ],
            Self::TooLarge {
                size_bytes,
                limit_bytes,
                ..
            } => vec![
                ("field", "value".to_owned()),
                ("limit_bytes", limit_bytes.to_string()),
                ("size_bytes", size_bytes.to_string()),
            ],
            Self::Full { key, limit, .. } | Self::OwnerFull { key, limit, .. } => {
                vec![("key", key.to_string()), ("limit", limit.to_string())]
            }
            Self::Compacted => Vec::new(),
            Self::RevisionMismatch { key, current, .. } => vec![
                ("key", key.to_string()),
                ("current_revision", current.to_string()),
            ],
        }
    }
}
