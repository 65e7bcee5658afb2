//! An event is encoded once, whoever receives it.
//!
//! The log keeps each event as one entry of the field `events` of `EventBusSubscribeResponse`: tag,
//! length, bytes. The concatenation of such entries is a valid message, so that sending a batch to a
//! subscriber is copying bytes.

use bytes::{BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, encoded_len_varint};
use prost::{DecodeError, Message as _};

use crate::v1;

/// Tag of `EventBusSubscribeResponse.events`: field 1, length-delimited.
const EVENTS_TAG: u8 = (1 << 3) | 2;

/// What the server sends for `EventBus.Subscribe`; on the wire an
/// [`v1::EventBusSubscribeResponse`].
#[derive(Clone, Debug, PartialEq)]
pub enum SubscribeResponse {
    /// Events, each piece one or several entries made by [`entry`].
    Events(Vec<Bytes>),
    /// A control item.
    Control(v1::event_bus_subscribe_response::Control),
}

impl Default for SubscribeResponse {
    fn default() -> Self {
        Self::Events(Vec::new())
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
    prost::encoding::encode_varint(length as u64, buffer);
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
    fn a_control_item_is_a_valid_message() {
        let control = Control::Bookmark(v1::Position { epoch: 7, seq: 9 });
        let bytes = SubscribeResponse::Control(control).encode_to_vec();
        let decoded = v1::EventBusSubscribeResponse::decode(bytes.as_slice()).expect("valid");
        assert_eq!(decoded.control, Some(control));
    }
}
