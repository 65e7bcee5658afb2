//! Between the contract's messages and the domain's types. Total: an unknown enum value or a missing
//! field is an error that names the field.

pub(super) mod access;
pub(super) mod channel;
pub(super) mod events;
pub(super) mod plugins;
pub(super) mod registry;
pub(super) mod state;
pub(super) mod storage;

use std::time::{Duration, SystemTime};

use crate::error::{Classify, ErrorKind, Reason};
use crate::types::{BadCause, BadName};

/// A field is missing, malformed or too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadField {
    /// It must be there.
    #[error("`{field}` is missing")]
    Missing { field: &'static str },
    /// It cannot be understood.
    #[error("`{field}` is not valid: {why}")]
    Malformed { field: &'static str, why: String },
    /// It is over its limit.
    #[error("`{field}` has {size_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        field: &'static str,
        size_bytes: usize,
        limit_bytes: usize,
    },
    /// A dotted name breaks the grammar.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A parent cannot be read.
    #[error(transparent)]
    Cause(#[from] BadCause),
    /// A page token is not one of the core's.
    #[error("the page token is not one that this request got from the core")]
    PageToken,
}

impl Classify for BadField {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Missing { .. } | Self::Malformed { .. } | Self::Cause(_) => Reason::BadField,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Name(error) => match error.kind {
                "topic" => Reason::BadTopic,
                "pattern" => Reason::BadPattern,
                "service" => Reason::BadServiceName,
                _ => Reason::BadStateKey,
            },
            Self::PageToken => Reason::BadPageToken,
        }
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Missing { field } | Self::Malformed { field, .. } => {
                vec![("field", (*field).to_owned())]
            }
            Self::TooLarge {
                field,
                size_bytes,
                limit_bytes,
            } => vec![
                ("field", (*field).to_owned()),
                ("size_bytes", size_bytes.to_string()),
                ("limit_bytes", limit_bytes.to_string()),
            ],
            Self::Name(error) => {
                let name = match error.kind {
                    "topic" => "topic",
                    "pattern" => "pattern",
                    "service" => "service",
                    _ => "key",
                };
                vec![(name, error.name.clone()), ("rule", error.rule.to_owned())]
            }
            Self::Cause(_) => vec![("field", "parent".to_owned())],
            Self::PageToken => vec![("field", "page_token".to_owned())],
        }
    }
}

/// Refuses what is over its limit.
pub(super) fn check_size(
    field: &'static str,
    size_bytes: usize,
    limit_bytes: usize,
) -> Result<(), BadField> {
    if size_bytes > limit_bytes {
        return Err(BadField::TooLarge {
            field,
            size_bytes,
            limit_bytes,
        });
    }
    Ok(())
}

/// A duration; negative ones are malformed.
pub(super) fn duration(
    field: &'static str,
    duration: Option<prost_types::Duration>,
) -> Result<Option<Duration>, BadField> {
    duration
        .map(|duration| {
            Duration::try_from(duration).map_err(|error| BadField::Malformed {
                field,
                why: error.to_string(),
            })
        })
        .transpose()
}

/// A duration for the wire; one that is too long for it (10,000 years) is left out.
pub(super) fn duration_to_proto(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// A point in time for the wire.
pub(super) fn time_to_proto(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// A point in time from the wire.
pub(super) fn time(
    field: &'static str,
    time: prost_types::Timestamp,
) -> Result<SystemTime, BadField> {
    SystemTime::try_from(time).map_err(|error| BadField::Malformed {
        field,
        why: error.to_string(),
    })
}

/// The size of a page: 0 takes the default; above the maximum is an error.
pub(super) fn page_size(size: u32, default: usize) -> Result<usize, BadField> {
    match size {
        0 => Ok(default),
        1..=1_000 => Ok(size as usize),
        _ => Err(BadField::Malformed {
            field: "page_size",
            why: format!("{size} is above 1000"),
        }),
    }
}

/// A page ends before it passes this, so that it fits a message; one entry always does.
const PAGE_BYTES: usize = 1 << 20;

/// The first entries, as many as fit a page.
pub(super) fn up_to_page_bytes<T: prost::Message>(entries: impl Iterator<Item = T>) -> Vec<T> {
    let mut page = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        bytes += entry.encoded_len();
        if bytes > PAGE_BYTES && !page.is_empty() {
            break;
        }
        page.push(entry);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_before_it_is_too_large_for_a_message() {
        let entries = |bytes: usize| std::iter::repeat_n("x".repeat(bytes), 5);
        assert_eq!(up_to_page_bytes(entries(10)).len(), 5);
        assert_eq!(up_to_page_bytes(entries(400 << 10)).len(), 2);
        assert_eq!(up_to_page_bytes(entries(2 << 20)).len(), 1);
        assert_eq!(up_to_page_bytes(entries(10).take(0)).len(), 0);
    }
}
