//! An event is encoded once, whoever receives it.
//!
//! The log keeps each event as one entry of the field `events` of `EventBusSubscribeResponse`: tag,
//! length, bytes. The concatenation of such entries is a valid message, so that sending a batch to a
//! subscriber is copying bytes.

use bytes::{BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, encode_varint, encoded_len_varint};
use prost::{DecodeError, Message as _};

use crate::v1;

/// Tag of `EventBusSubscribeResponse.events`: field 1, length-delimited.
const EVENTS_TAG: u8 = (1 << 3) | 2;

/// What the server sends for `EventBus.Subscribe`; on the wire an
/// [`v1::EventBusSubscribeResponse`].
#[derive(Clone, Debug, PartialEq)]
pub enum SubscribeResponse {
    /// Events, each piece one or several entries made by [`Event::append_entry`].
    Events(Vec<Bytes>),
    /// A control item.
    Control(v1::event_bus_subscribe_response::Control),
}

impl Default for SubscribeResponse {
    fn default() -> Self {
        Self::Events(Vec::new())
    }
}

/// A [`v1::Event`] in borrowed parts: encoding it copies each part once.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the field of `v1::Event` of that name")]
pub struct Event<'a> {
    pub topic: &'a str,
    pub source: &'a str,
    pub subject: &'a str,
    pub content_type: &'a str,
    pub data: &'a [u8],
    pub id: &'a str,
    pub time: prost_types::Timestamp,
    pub cause: &'a str,
    pub traceparent: &'a str,
    pub epoch: u64,
    pub seq: u64,
}

impl Event<'_> {
    /// Appends it as one entry of `events`. Its last eight bytes are `seq`, if that is not 0.
    pub fn append_entry(&self, buffer: &mut Vec<u8>) {
        let texts = [
            (1, self.topic.as_bytes()),
            (2, self.source.as_bytes()),
            (3, self.subject.as_bytes()),
            (4, self.content_type.as_bytes()),
            (5, self.data),
            (6, self.id.as_bytes()),
        ];
        let later = [(8, self.cause.as_bytes()), (9, self.traceparent.as_bytes())];
        let numbers = [(14, self.epoch), (15, self.seq)];
        let time_len = self.time.encoded_len();
        // All fields have numbers below 16: their keys are one byte.
        let length = [&texts[..], &later]
            .into_iter()
            .flatten()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(_, bytes)| entry_len(bytes.len()))
            .sum::<usize>()
            + entry_len(time_len)
            + numbers.iter().filter(|(_, number)| *number != 0).count() * 9;
        buffer.reserve(entry_len(length));
        buffer.push(EVENTS_TAG);
        encode_varint(length as u64, buffer);
        let put = |(tag, bytes): (u8, &[u8]), buffer: &mut Vec<u8>| {
            if !bytes.is_empty() {
                buffer.push((tag << 3) | WireType::LengthDelimited as u8);
                encode_varint(bytes.len() as u64, buffer);
                buffer.extend_from_slice(bytes);
            }
        };
        texts.into_iter().for_each(|text| put(text, buffer));
        buffer.push((7 << 3) | WireType::LengthDelimited as u8);
        encode_varint(time_len as u64, buffer);
        self.time.encode_raw(buffer);
        later.into_iter().for_each(|text| put(text, buffer));
        for (tag, number) in numbers {
            if number != 0 {
                buffer.push((tag << 3) | WireType::SixtyFourBit as u8);
                buffer.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
}

/// Encodes an event as one entry of `events`.
#[must_use]
pub fn entry(event: &v1::Event) -> Vec<u8> {
    let mut entry = Vec::new();
    append_entry(event, event.encoded_len(), &mut entry);
    entry
}

/// Bytes of a message of this length as an entry of field 1.
#[must_use]
pub fn entry_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// Appends a message, whose encoded length is known, as one entry of the repeated field 1 of another:
/// an event of `EventBusSubscribeResponse`, a new event of `EventBusPublishBatchRequest`.
pub fn append_entry(message: &impl prost::Message, length: usize, buffer: &mut Vec<u8>) {
    buffer.reserve(entry_len(length));
    buffer.push(EVENTS_TAG);
    encode_varint(length as u64, buffer);
    message.encode_raw(buffer);
}

impl prost::Message for SubscribeResponse {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        match self {
            Self::Events(pieces) => pieces.iter().for_each(|piece| buffer.put_slice(piece)),
            Self::Control(control) => control.encode(buffer),
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Events(pieces) => pieces.iter().map(Bytes::len).sum(),
            Self::Control(control) => control.encoded_len(),
        }
    }

    /// The server never receives this message.
    fn merge_field(
        &mut self,
        _tag: u32,
        _wire_type: WireType,
        _buffer: &mut impl bytes::Buf,
        _context: DecodeContext,
    ) -> Result<(), DecodeError> {
        #[expect(
            deprecated,
            reason = "prost offers no other constructor to implementors"
        )]
        Err(DecodeError::new(
            "an encoded SubscribeResponse is only sent, never received",
        ))
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::event_bus_subscribe_response::Control;

    fn event(seq: u64) -> v1::Event {
        v1::Event {
            topic: "lamp.changed".to_owned(),
            data: Bytes::from_static(b"{\"id\":1}"),
            seq,
            ..Default::default()
        }
    }

    #[test]
    fn concatenated_entries_are_a_valid_message() {
        let response = SubscribeResponse::Events(vec![
            [entry(&event(1)), entry(&event(2))].concat().into(),
            entry(&event(3)).into(),
        ]);
        let bytes = response.encode_to_vec();
        assert_eq!(bytes.len(), response.encoded_len());
        let decoded = v1::EventBusSubscribeResponse::decode(bytes.as_slice()).expect("valid");
        assert_eq!(decoded.events, [event(1), event(2), event(3)]);
        assert_eq!(decoded.control, None);
    }

    #[test]
    fn an_event_in_parts_is_encoded_as_the_generated_type_is() {
        let time = prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        };
        let long = "x".repeat(300);
        for (text, data, epoch, seq) in [
            ("", &b""[..], 0, 0),
            ("y", b"{}", 1, 2),
            (&long, b"z", 3, 4),
        ] {
            let parts = Event {
                topic: "lamp.changed",
                source: text,
                subject: "kitchen",
                content_type: text,
                data,
                id: "7",
                time,
                cause: text,
                traceparent: text,
                epoch,
                seq,
            };
            let mut bytes = b"before".to_vec();
            parts.append_entry(&mut bytes);
            let event = v1::Event {
                topic: "lamp.changed".to_owned(),
                source: text.to_owned(),
                subject: "kitchen".to_owned(),
                content_type: text.to_owned(),
                data: Bytes::copy_from_slice(data),
                id: "7".to_owned(),
                time: Some(time),
                cause: text.to_owned(),
                traceparent: text.to_owned(),
                epoch,
                seq,
            };
            assert_eq!(bytes, [b"before", entry(&event).as_slice()].concat());
        }
    }

    #[test]
    fn a_control_item_is_a_valid_message() {
        let control = Control::Bookmark(v1::Position { epoch: 7, seq: 9 });
        let bytes = SubscribeResponse::Control(control).encode_to_vec();
        let decoded = v1::EventBusSubscribeResponse::decode(bytes.as_slice()).expect("valid");
        assert_eq!(decoded.control, Some(control));
    }
}
