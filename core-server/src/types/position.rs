//! Positions, revisions, causes and payloads.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// One incarnation of the event log or of the store's list of changes. Random, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// A new epoch.
    #[must_use]
    pub fn random() -> Self {
        // Below 2^53, so that a client that reads numbers as doubles keeps it exact.
        Self((rand::random::<u64>() >> 11).max(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A position in the event log. The first event has `seq` 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The log's incarnation.
    pub epoch: Epoch,
    /// The event's number in it.
    pub seq: u64,
}

/// A position in the store or the state; of an entry the write that made it. 0 means absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

impl Revision {
    /// "There is no such entry."
    pub const ABSENT: Self = Self(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What somebody was handling when it asked for something: `call/<call_id>` or
/// `event/<epoch>/<seq>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A call, by its id.
    Call(u64),
    /// An event, by its position.
    Event(Position),
}

/// A text that is no [`Cause`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a parent: expected \"call/<call_id>\" or \"event/<epoch>/<seq>\"")]
pub struct BadCause(pub String);

impl FromStr for Cause {
    type Err = BadCause;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadCause(text.chars().take(80).collect());
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let mut parts = text.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("call"), Some(id), None, None) => Ok(Self::Call(number(id)?)),
            (Some("event"), Some(epoch), Some(seq), None) => Ok(Self::Event(Position {
                epoch: Epoch(number(epoch)?),
                seq: number(seq)?,
            })),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(id) => write!(formatter, "call/{id}"),
            Self::Event(position) => write!(formatter, "event/{}/{}", position.epoch, position.seq),
        }
    }
}

/// Bytes with their content type. The core never looks inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// Empty means "application/json".
    pub content_type: Arc<str>,
    /// The bytes; empty means none.
    pub data: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_travel_as_text_and_come_back() {
        for text in ["call/7", "event/12/34"] {
            assert_eq!(text.parse::<Cause>().expect(text).to_string(), text);
        }
        for bad in [
            "",
            "call",
            "call/x",
            "call/1/2",
            "event/1",
            "event/1/2/3",
            "task/1",
            "call/-1",
        ] {
            assert!(bad.parse::<Cause>().is_err(), "{bad}");
        }
    }
}
