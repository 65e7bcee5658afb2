//! A channel's frames as plain bytes outward, so that a test can send what no generated type can
//! express: kinds of messages that nobody knows, and bytes that are no message at all.

use bytes::{Buf as _, BufMut as _, Bytes};
use core_proto::v1::CoreMessage;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Bytes out, [`CoreMessage`]s in.
#[derive(Debug, Default)]
pub(crate) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Bytes;
    type Decode = CoreMessage;
    type Encoder = BytesCodec;
    type Decoder = Self;

    fn encoder(&mut self) -> BytesCodec {
        BytesCodec
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

/// Bytes out, bytes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

impl Decoder for FrameCodec {
    type Item = CoreMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<CoreMessage>, Status> {
        let message = CoreMessage::decode(buffer);
        message
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
