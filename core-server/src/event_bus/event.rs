//! Events: as published, as committed, and what of them the log looks at.

use std::sync::Arc;
use std::time::SystemTime;

use crate::types::{Cause, Epoch, Pattern, Payload, Position, Source, Topic};

use super::{Config, Error};

/// Longest `subject`, in bytes.
pub const MAX_SUBJECT_BYTES: usize = 255;
/// Longest `id`, in bytes.
pub const MAX_ID_BYTES: usize = 128;
/// Longest `content_type`, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 255;
/// Longest `traceparent`, in bytes. W3C's own has 55; later versions of it may be longer.
pub const MAX_TRACEPARENT_BYTES: usize = 128;

/// An event as its publisher gives it. Empty texts mean "none".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Kind of event.
    pub topic: Topic,
    /// What it is about.
    pub subject: Arc<str>,
    /// The data with its content type.
    pub payload: Payload,
    /// The publisher's own id.
    pub id: String,
    /// What the publisher was handling.
    pub cause: Option<Cause>,
    /// W3C trace context.
    pub traceparent: String,
}

impl NewEvent {
    /// An event with data and nothing else.
    #[must_use]
    pub fn new(topic: Topic, payload: Payload) -> Self {
        Self {
            topic,
            subject: Arc::default(),
            payload,
            id: String::new(),
            cause: None,
            traceparent: String::new(),
        }
    }

    /// Checks the limits. The grammar of the topic is its type's.
    pub(super) fn check(&self, config: &Config) -> Result<(), Error> {
        let size_bytes = self.payload.data.len();
        if size_bytes > config.max_data_bytes {
            return Err(Error::TooLarge {
                field: "data",
                size_bytes,
                limit_bytes: config.max_data_bytes,
            });
        }
        for (field, length, limit) in [
            ("subject", self.subject.len(), MAX_SUBJECT_BYTES),
            ("id", self.id.len(), MAX_ID_BYTES),
            (
                "content_type",
                self.payload.content_type.len(),
                MAX_CONTENT_TYPE_BYTES,
            ),
            ("traceparent", self.traceparent.len(), MAX_TRACEPARENT_BYTES),
        ] {
            if length > limit {
                return Err(Error::BadField {
                    field,
                    rule: format!("it has {length} bytes; at most {limit} are allowed"),
                });
            }
        }
        Ok(())
    }
}

/// An event as it is encoded: what was published, and what the core stamped.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// As published.
    pub new: &'a NewEvent,
    /// Who published.
    pub source: &'a Source,
    /// When.
    pub time: SystemTime,
    /// Where it stands in the log.
    pub position: Position,
}

/// Appends one wire entry of an event.
///
/// It runs before the event has its place: `position.seq` is a placeholder. The entry must end with
/// `position.seq` as eight little-endian bytes, which the bus replaces when it commits the event, so
/// that nothing is encoded under its lock. (`Event.seq` is a `fixed64` with the highest field number
/// for this.)
pub type Encode = fn(&Event<'_>, &mut Vec<u8>);

/// Events of one publisher, encoded but for their seqs.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) source: Source,
    /// Of all of them: they are committed together.
    pub(super) time: SystemTime,
    pub(super) events: Vec<Encoded>,
    /// Their entries, one behind the other; but for large ones.
    pub(super) entries: Vec<u8>,
}

/// Entries above this are kept and handed out as they are, each in memory of its own, so that they are
/// not copied under the bus's lock.
pub(super) const LARGE_ENTRY_BYTES: usize = 16 << 10;

/// What of an encoded event the log looks at. The last eight bytes of its entry stand for its seq.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) topic: Topic,
    pub(super) subject: Arc<str>,
    pub(super) entry: Placed,
}

/// Where an entry is.
#[derive(Debug)]
pub(super) enum Placed {
    /// Among the entries of its batch; here it ends.
    InBatch(usize),
    /// By itself.
    Large(Vec<u8>),
}

/// A batch's place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchReceipt {
    /// The log's incarnation.
    pub epoch: Epoch,
    /// Seq of the first event that was published, 0 if none was; the others follow without a hole.
    pub first_seq: u64,
    /// How many were published.
    pub count: usize,
    /// The others: their index in the batch, and why.
    pub rejected: Vec<(usize, Error)>,
}

/// What the bus itself looks at: everything that a subscription may select by.
#[derive(Debug)]
pub(super) struct Label {
    pub(super) topic: Topic,
    pub(super) source: Source,
    pub(super) subject: Arc<str>,
}

/// What a subscription selects. Subscriptions that select the same share a lane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Selection {
    /// Sorted, each once.
    patterns: Box<[Pattern]>,
    pub(super) source: Option<Source>,
    pub(super) subject: Option<Arc<str>>,
    /// Not this one's.
    except: Option<Source>,
}

impl Selection {
    pub(super) fn new(
        mut patterns: Vec<Pattern>,
        source: Option<Source>,
        subject: Option<Arc<str>>,
        except: Option<Source>,
    ) -> Self {
        patterns.sort_unstable();
        patterns.dedup();
        Self {
            patterns: patterns.into(),
            source,
            subject,
            except,
        }
    }

    pub(super) fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    pub(super) fn accepts(&self, label: &Label) -> bool {
        self.accepts_apart_from_topic(label)
            && self
                .patterns
                .iter()
                .any(|pattern| pattern.matches(label.topic.as_str()))
    }

    pub(super) fn accepts_apart_from_topic(&self, label: &Label) -> bool {
        let source = self.source.as_ref();
        let subject = self.subject.as_ref();
        source.is_none_or(|source| *source == label.source)
            && subject.is_none_or(|subject| *subject == label.subject)
            && self.except.as_ref() != Some(&label.source)
    }
}
