//! What a client makes of `EventBus.Subscribe`: the message as it came, with its events left encoded, so
//! that what is queued costs nothing before it is handled.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message};

use crate::v1;

const EVENTS: u32 = 1;

/// An [`v1::EventBusSubscribeResponse`] whose events are read one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubscribeResponse {
    /// The events.
    pub events: Events,
    /// A control item.
    pub control: Option<v1::event_bus_subscribe_response::Control>,
}

/// Encoded events: an iterator over slices of the one message that brought them, each an encoded
/// [`v1::Event`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Events {
    /// What is left of the message.
    message: Bytes,
    left: usize,
    last: Bytes,
}

impl Events {
    /// Bytes of memory that they hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.message.len()
    }

    /// The last of all; empty if there was none.
    #[must_use]
    pub fn last_event(&self) -> Bytes {
        self.last.clone()
    }
}

impl Iterator for Events {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.left > 0 {
            // It was walked through before: nothing here can fail.
            let (tag, wire_type) = decode_key(&mut self.message).ok()?;
            if tag != EVENTS {
                let context = DecodeContext::default();
                skip_field(wire_type, tag, &mut self.message, context).ok()?;
                continue;
            }
            let length = decode_varint(&mut self.message).ok()?;
            self.left -= 1;
            let length = usize::try_from(length).ok()?;
            return Some(self.message.split_to(length));
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Events {}

impl Message for SubscribeResponse {
    fn merge(&mut self, mut buffer: impl Buf) -> Result<(), DecodeError> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        let mut rest = &message[..];
        self.clear();
        let mut last = 0..0;
        while rest.has_remaining() {
            let (tag, wire_type) = decode_key(&mut rest)?;
            if (tag, wire_type) == (EVENTS, WireType::LengthDelimited) {
                let length = usize::try_from(decode_varint(&mut rest)?);
                let length = length.ok().filter(|length| *length <= rest.len());
                let Some(length) = length else {
                    return Err(malformed("an event is longer than its message"));
                };
                let start = message.len() - rest.len();
                last = start..start + length;
                rest.advance(length);
                self.events.left += 1;
            } else {
                self.merge_field(tag, wire_type, &mut rest, DecodeContext::default())?;
            }
        }
        self.events.last = message.slice(last);
        self.events.message = message;
        Ok(())
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            EVENTS => Err(malformed("an event is not length-delimited")),
            2..=4 => v1::event_bus_subscribe_response::Control::merge(
                &mut self.control,
                tag,
                wire_type,
                buffer,
                context,
            ),
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    /// Not meant to be sent: servers have [`crate::encoded::SubscribeResponse`].
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        for event in self.events.clone() {
            prost::encoding::bytes::encode(EVENTS, &event, buffer);
        }
        if let Some(control) = &self.control {
            control.encode(buffer);
        }
    }

    fn encoded_len(&self) -> usize {
        let events = self.events.clone();
        let events = events.map(|event| prost::encoding::bytes::encoded_len(EVENTS, &event));
        let control = self.control.as_ref();
        events.sum::<usize>() + control.map_or(0, |control| control.encoded_len())
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn malformed(why: &'static str) -> DecodeError {
    #[expect(
        deprecated,
        reason = "prost offers no other constructor to implementors"
    )]
    DecodeError::new(why)
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
    fn it_says_the_same_as_the_generated_type() {
        let response = v1::EventBusSubscribeResponse {
            events: vec![event(1), v1::Event::default(), event(3)],
            control: Some(Control::Bookmark(v1::Position { epoch: 7, seq: 9 })),
        };
        let bytes = response.encode_to_vec();
        let received = SubscribeResponse::decode(bytes.as_slice()).expect("valid");
        assert_eq!(received.control, response.control);
        assert_eq!(received.events.len(), 3);
        assert_eq!(received.events.last_event(), event(3).encode_to_vec());
        let events: Vec<_> = received
            .events
            .clone()
            .map(|event| v1::Event::decode(event).expect("valid"))
            .collect();
        assert_eq!(events, response.events);
        assert_eq!(received.encode_to_vec(), bytes);
        assert_eq!(received.encoded_len(), bytes.len());
    }

    #[test]
    fn unknown_fields_between_events_are_passed_over() {
        let mut bytes = vec![];
        prost::encoding::bytes::encode(1, &event(1).encode_to_vec(), &mut bytes);
        prost::encoding::uint64::encode(99, &7, &mut bytes);
        prost::encoding::bytes::encode(1, &event(2).encode_to_vec(), &mut bytes);
        prost::encoding::string::encode(98, &"later".to_owned(), &mut bytes);
        let received = SubscribeResponse::decode(bytes.as_slice()).expect("valid");
        let seqs: Vec<_> = received
            .events
            .map(|event| v1::Event::decode(event).expect("valid").seq)
            .collect();
        assert_eq!(seqs, [1, 2]);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let too_long = [(1 << 3) | 2, 5, 0];
        let no_bytes = [1 << 3, 5];
        let cut = [(1 << 3) | 2];
        for bytes in [&too_long[..], &no_bytes, &cut] {
            SubscribeResponse::decode(bytes).expect_err("malformed");
        }
    }

    #[test]
    fn any_bytes_are_either_refused_or_read_to_the_end() {
        // A small generator of its own: everything that starts like a message.
        let mut state: u64 = 7;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..24)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 33) as u8 & 0x1f
                })
                .collect();
            if let Ok(received) = SubscribeResponse::decode(bytes.as_slice()) {
                let expected = received.events.len();
                assert_eq!(received.events.count(), expected);
            }
        }
    }
}
