//! What can go wrong with a publish or a subscription.

use crate::error::{Classify, ErrorKind, Reason};
use crate::types::BadName;

/// Errors of the EventBus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not a topic.
    #[error(transparent)]
    BadTopic(BadName),
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
    /// A field is larger than allowed.
    #[error("field {field} has {size_bytes} bytes; at most {limit_bytes} are allowed")]
    TooLarge {
        /// Which.
        field: &'static str,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Too much in one batch.
    #[error(
        "a batch of {events} events with {bytes} bytes of data is too large: at most \
         {limit_events} events and {limit_bytes} bytes are allowed"
    )]
    BatchTooLarge {
        /// Its events.
        events: usize,
        /// The bytes of their data.
        bytes: usize,
        /// Most events.
        limit_events: usize,
        /// Most bytes.
        limit_bytes: usize,
    },
    /// Policy `Disconnect`: events were missed. The position to go on from is the oldest there is.
    #[error(
        "the subscription's place is no longer in the log: the oldest event there is {oldest_seq}; \
         subscribe again"
    )]
    FellBehind {
        /// First that may have been missed.
        from_seq: u64,
        /// Last that may have been missed; below `from_seq` if none of this incarnation was.
        to_seq: u64,
        /// Oldest in the log.
        oldest_seq: u64,
    },
}

impl Classify for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadTopic(_)
            | Self::BadPattern(_)
            | Self::BadField { .. }
            | Self::TooLarge { .. }
            | Self::BatchTooLarge { .. } => ErrorKind::InvalidArgument,
            Self::FellBehind { .. } => ErrorKind::OutOfRange,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::BadTopic(_) => Reason::BadTopic,
            Self::BadPattern(_) => Reason::BadPattern,
            Self::BadField { .. } => Reason::BadField,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::BatchTooLarge { .. } => Reason::BatchTooLarge,
            Self::FellBehind { .. } => Reason::FellBehind,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::BadTopic(bad) => {
                vec![("topic", bad.name.clone()), ("rule", bad.rule.to_owned())]
            }
            Self::BadPattern(bad) => {
                vec![("pattern", bad.name.clone()), ("rule", bad.rule.to_owned())]
            }
            Self::BadField { field, .. } => vec![("field", (*field).to_owned())],
            Self::TooLarge {
                field,
                size_bytes,
                limit_bytes,
            } => vec![
                ("field", (*field).to_owned()),
                ("limit_bytes", limit_bytes.to_string()),
                ("size_bytes", size_bytes.to_string()),
            ],
            Self::BatchTooLarge {
                limit_events,
                limit_bytes,
                ..
            } => vec![
                ("limit_events", limit_events.to_string()),
                ("limit_bytes", limit_bytes.to_string()),
            ],
            Self::FellBehind {
                from_seq,
                to_seq,
                oldest_seq,
            } => vec![
                ("from_seq", from_seq.to_string()),
                ("to_seq", to_seq.to_string()),
                ("oldest_seq", oldest_seq.to_string()),
            ],
        }
    }
}
