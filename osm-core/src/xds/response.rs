//! Responses, written to the wire from resources that are encoded already.
//!
//! Invariant: the bytes are those `prost` would write for the same message (a test compares them).

use std::sync::Arc;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::resource::{Resource, ResourceType, Version};

/// The most bytes of resources one response carries, as far as the protocol lets it be divided. A response may be
/// larger by one resource, and a state-of-the-world response of clusters or listeners holds all of them.
pub const RESPONSE_BYTES: usize = 2 << 20;

/// One response, ready to be written.
#[derive(Clone, Debug)]
pub struct Response {
    /// The kind of its resources.
    pub kind: ResourceType,
    /// Its number in the stream; the proxy's answer names it.
    pub nonce: u64,
    /// The resources.
    pub resources: Vec<Arc<Resource>>,
    /// The names of resources that do not exist, or no longer. Empty in state-of-the-world responses.
    pub removed: Vec<Arc<str>>,
    /// The version of the whole, in state-of-the-world responses only.
    pub version: Option<Version>,
}

/// Fields of `DeltaDiscoveryResponse` and `DiscoveryResponse`.
mod field {
    pub(super) const VERSION_INFO: u32 = 1;
    pub(super) const RESOURCES: u32 = 2;
    pub(super) const TYPE_URL: u32 = 4;
    pub(super) const NONCE: u32 = 5;
    pub(super) const REMOVED_RESOURCES: u32 = 6;
}

impl Response {
    /// The bytes of the message.
    pub fn encoded_len(&self) -> usize {
        let mut length = 0;
        self.fields(|field, bytes| {
            length += key_len(field) + encoded_len_varint(bytes.len() as u64) + bytes.len()
        });
        length
    }

    /// Writes a `DeltaDiscoveryResponse`, or a `DiscoveryResponse` if there is a [`version`](Self::version).
    ///
    /// `buffer` must have room for [`encoded_len`](Self::encoded_len) bytes or grow.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        self.fields(|field, bytes| {
            encode_key(field, WireType::LengthDelimited, buffer);
            encode_varint(bytes.len() as u64, buffer);
            buffer.put_slice(bytes);
        });
    }

    /// All fields, in the order of their numbers.
    fn fields(&self, mut write: impl FnMut(u32, &[u8])) {
        if let Some(version) = self.version {
            write(field::VERSION_INFO, version.to_string().as_bytes());
        }
        for resource in &self.resources {
            let bytes = if self.version.is_some() {
                resource.any_bytes()
            } else {
                &resource.encoded()[..]
            };
            write(field::RESOURCES, bytes);
        }
        write(field::TYPE_URL, self.kind.type_url().as_bytes());
        write(field::NONCE, self.nonce.to_string().as_bytes());
        for name in &self.removed {
            write(field::REMOVED_RESOURCES, name.as_bytes());
        }
    }
}
