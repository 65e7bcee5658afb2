//! What a handler gets.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Buf as _, Bytes};
use core_proto::v1;
use prost::Message as _;
use prost::encoding::{self, DecodeContext, WireType};
use prost_types::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::arguments;
use crate::error::{Error, Result};

/// An event as it was published, with what the core stamped on it.
///
/// Cheap to clone and to move: it is a slice of the message that brought it, and that message's memory
/// lives as long as the event does, usually 64 to 128 KiB for all events of a message together, or what
/// one large event needs. Who keeps an event for long, or the [`Ctx`](crate::Ctx) of its handler, should
/// copy out what matters.
#[derive(Clone)]
pub struct Event(Arc<Read>);

/// An encoded event, and what stands where in it.
struct Read {
    /// A `v1::Event`.
    encoded: Bytes,
    texts: [Place; TEXTS],
    data: Place,
    time: SystemTime,
    position: v1::Position,
}

/// Where in the encoded event a field stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    start: u32,
    end: u32,
}

impl Place {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

// Places of the texts in the array.
const TOPIC: usize = 0;
const SOURCE: usize = 1;
const SUBJECT: usize = 2;
const CONTENT_TYPE: usize = 3;
const ID: usize = 4;
const CAUSE: usize = 5;
const TRACEPARENT: usize = 6;
const TEXTS: usize = 7;

impl Event {
    /// Reads an event as it came from the core.
    ///
    /// # Errors
    /// `INTERNAL` if it is malformed, which a core's never is.
    pub(super) fn received(encoded: Bytes) -> Result<Self> {
        let malformed = |why: &dyn fmt::Display| {
            Error::internal(format!("an event of the core is malformed: {why}"))
        };
        let mut event = Read {
            encoded,
            texts: Default::default(),
            data: Place::default(),
            time: SystemTime::UNIX_EPOCH,
            position: v1::Position::default(),
        };
        event.read().map_err(|error| malformed(&error))?;
        for text in event.texts {
            std::str::from_utf8(&event.encoded[text.range()]).map_err(|error| malformed(&error))?;
        }
        Ok(Self(Arc::new(event)))
    }

    fn text(&self, which: usize) -> &str {
        let bytes = &self.0.encoded[self.0.texts[which].range()];
        std::str::from_utf8(bytes).expect("it was checked when it was received")
    }

    /// Dotted name.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.text(TOPIC)
    }

    /// Who published: a plugin's name, "operator" or "core". Can be trusted.
    #[must_use]
    pub fn source(&self) -> &str {
        self.text(SOURCE)
    }

    /// What the event is about; may be empty.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.text(SUBJECT)
    }

    /// Of the data; empty means JSON.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.text(CONTENT_TYPE)
    }

    /// The publisher's own id; may be empty.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text(ID)
    }

    /// What caused it: `call/<call_id>` or `event/<epoch>/<seq>`; may be empty.
    #[must_use]
    pub fn cause(&self) -> &str {
        self.text(CAUSE)
    }

    /// W3C trace context; may be empty.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        self.text(TRACEPARENT)
    }

    /// The data, as published.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.0.encoded[self.0.data.range()]
    }

    /// The data, sharing the event's memory.
    #[must_use]
    pub fn data_bytes(&self) -> Bytes {
        self.0.encoded.slice(self.0.data.range())
    }

    /// When the core committed it, by the core's clock.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        self.0.time
    }

    /// Incarnation of the core's log.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.position.epoch
    }

    /// Position in the log. Holes are normal.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.0.position.seq
    }

    pub(super) fn position(&self) -> v1::Position {
        self.0.position
    }

    /// The data as JSON.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it is not JSON.
    pub fn json(&self) -> Result<Value> {
        self.parse()
    }

    /// The data as a type of your own.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with the path at which it did not fit.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        arguments::json(if self.data().is_empty() {
            b"null"
        } else {
            self.data()
        })
    }
}

impl Read {
    /// Fills in what the encoded event says: as the generated code would, but without copies.
    fn read(&mut self) -> Result<(), prost::DecodeError> {
        let encoded = &*self.encoded;
        let mut rest = encoded;
        while !rest.is_empty() {
            let (tag, wire_type) = encoding::decode_key(&mut rest)?;
            let place = match tag {
                1 => &mut self.texts[TOPIC],
                2 => &mut self.texts[SOURCE],
                3 => &mut self.texts[SUBJECT],
                4 => &mut self.texts[CONTENT_TYPE],
                5 => &mut self.data,
                6 => &mut self.texts[ID],
                8 => &mut self.texts[CAUSE],
                9 => &mut self.texts[TRACEPARENT],
                7 => {
                    let time = &encoded[delimited(encoded, &mut rest, wire_type)?.range()];
                    self.time = SystemTime::try_from(Timestamp::decode(time)?)
                        .unwrap_or(SystemTime::UNIX_EPOCH);
                    continue;
                }
                14 | 15 => {
                    let number = match tag {
                        14 => &mut self.position.epoch,
                        _ => &mut self.position.seq,
                    };
                    encoding::fixed64::merge(
                        wire_type,
                        number,
                        &mut rest,
                        DecodeContext::default(),
                    )?;
                    continue;
                }
                _ => {
                    let context = DecodeContext::default();
                    encoding::skip_field(wire_type, tag, &mut rest, context)?;
                    continue;
                }
            };
            *place = delimited(encoded, &mut rest, wire_type)?;
        }
        Ok(())
    }
}

/// The place of a length-delimited field; `rest` goes on behind it.
fn delimited(
    encoded: &[u8],
    rest: &mut &[u8],
    wire_type: WireType,
) -> Result<Place, prost::DecodeError> {
    encoding::check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = encoding::decode_varint(rest)?;
    let start = encoded.len() - rest.len();
    let fits = |at: usize| u32::try_from(at).ok();
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= rest.len());
    let place = length.and_then(|length| {
        Some(Place {
            start: fits(start)?,
            end: fits(start + length)?,
        })
    });
    let Some(place) = place else {
        #[expect(deprecated, reason = "prost offers no other constructor")]
        return Err(prost::DecodeError::new(
            "a field is longer than its message",
        ));
    };
    rest.advance(place.range().len());
    Ok(place)
}

impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        Self::received(event.encode_to_vec().into()).expect("it is well-formed")
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        let texts = |event: &Self| (0..TEXTS).all(|which| event.text(which) == other.text(which));
        texts(self)
            && self.data() == other.data()
            && self.0.time == other.0.time
            && self.0.position == other.0.position
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Event")
            .field("topic", &self.topic())
            .field("source", &self.source())
            .field("subject", &self.subject())
            .field("content_type", &self.content_type())
            .field("data", &self.data_bytes())
            .field("id", &self.id())
            .field("time", &self.0.time)
            .field("cause", &self.cause())
            .field("traceparent", &self.traceparent())
            .field("epoch", &self.epoch())
            .field("seq", &self.seq())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> v1::Event {
        v1::Event {
            topic: "lamp.changed".to_owned(),
            source: "lamp".to_owned(),
            subject: "kitchen".to_owned(),
            content_type: "text/plain".to_owned(),
            data: Bytes::from_static(b"7"),
            id: "42".to_owned(),
            time: Some(Timestamp {
                seconds: 1,
                nanos: 2,
            }),
            cause: "call/3".to_owned(),
            traceparent: "00-1".to_owned(),
            epoch: 4,
            seq: 5,
        }
    }

    #[test]
    fn every_field_is_read_as_the_generated_code_reads_it() {
        let event = Event::from(full());
        assert_eq!(event.topic(), "lamp.changed");
        assert_eq!(event.source(), "lamp");
        assert_eq!(event.subject(), "kitchen");
        assert_eq!(event.content_type(), "text/plain");
        assert_eq!(event.data(), b"7");
        assert_eq!(event.data_bytes(), Bytes::from_static(b"7"));
        assert_eq!(event.id(), "42");
        assert_eq!(
            event.time(),
            SystemTime::UNIX_EPOCH + std::time::Duration::new(1, 2)
        );
        assert_eq!(event.cause(), "call/3");
        assert_eq!(event.traceparent(), "00-1");
        assert_eq!((event.epoch(), event.seq()), (4, 5));
        assert_eq!(event.parse::<u8>().expect("a number"), 7);
    }

    #[test]
    fn what_is_missing_is_empty() {
        let event = Event::received(Bytes::new()).expect("valid");
        assert_eq!((event.topic(), event.data()), ("", &b""[..]));
        assert_eq!(event.time(), SystemTime::UNIX_EPOCH);
        assert_eq!(event.json().expect("JSON"), Value::Null);
        assert_eq!(event, Event::from(v1::Event::default()));
        assert_ne!(event, Event::from(full()));
    }

    #[test]
    fn unknown_fields_are_passed_over_and_the_last_of_one_kind_counts() {
        let mut encoded = vec![];
        encoding::uint64::encode(77, &1, &mut encoded);
        encoding::string::encode(1, &"first".to_owned(), &mut encoded);
        encoded.extend(full().encode_to_vec());
        encoding::string::encode(78, &"later".to_owned(), &mut encoded);
        let event = Event::received(encoded.into()).expect("valid");
        assert_eq!(event, Event::from(full()));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        let text = |bytes: &[u8]| {
            let mut encoded = vec![];
            encoding::bytes::encode(1, &bytes.to_vec(), &mut encoded);
            encoded
        };
        let mut cut = full().encode_to_vec();
        cut.pop();
        for encoded in [text(&[0xff]), cut, vec![(1 << 3) | 2, 9], vec![1 << 3, 0]] {
            Event::received(encoded.into()).expect_err("malformed");
        }
    }
}
