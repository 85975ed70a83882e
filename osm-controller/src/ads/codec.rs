//! Requests off the wire, responses onto it. Responses are spliced from resources that are encoded already.

use std::marker::PhantomData;

use osm_core::xds::Response;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Bytes a stream's buffers begin with; they grow with what is read and written. Tonic's default of 8 KiB each would be
/// a quarter of what a connected proxy may cost.
const BUFFER: usize = 512;
/// What is written before the transport is asked whether it wants more.
const YIELD: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct DiscoveryCodec<Q>(pub(super) PhantomData<fn() -> Q>);

impl<Q: Message + Default + Send + 'static> Codec for DiscoveryCodec<Q> {
    type Encode = Response;
    type Decode = Q;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<Q> Encoder for DiscoveryCodec<Q> {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, response: Response, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(response.encoded_len());
        response.encode(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}

impl<Q: Message + Default> Decoder for DiscoveryCodec<Q> {
    type Item = Q;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Q>, Status> {
        let malformed = |error| Status::invalid_argument(format!("the request is malformed: {error}"));
        Q::decode(buffer).map(Some).map_err(malformed)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD)
    }
}
