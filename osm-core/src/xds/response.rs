//! Responses, written to the wire from resources that are encoded already.
//!
//! Invariant: the bytes are those `prost` would write for the same message (a test compares them).

use std::{borrow::Cow, sync::Arc};

use bytes::{BufMut, BytesMut};
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
        let mut index = 0;
        while let Some((number, value)) = self.field(index) {
            write(number, &value);
            index += 1;
        }
    }

    /// A field by its place in the order, from 0 on.
    fn field(&self, index: usize) -> Option<(u32, Cow<'_, [u8]>)> {
        let text = |text: String| Cow::Owned(text.into_bytes());
        let mut left = index;
        if let Some(version) = self.version {
            if left == 0 {
                return Some((field::VERSION_INFO, text(version.to_string())));
            }
            left -= 1;
        }
        if let Some(resource) = self.resources.get(left) {
            let bytes = if self.version.is_some() {
                resource.any_bytes()
            } else {
                &resource.encoded()[..]
            };
            return Some((field::RESOURCES, Cow::Borrowed(bytes)));
        }
        left -= self.resources.len();
        match left {
            0 => Some((field::TYPE_URL, Cow::Borrowed(self.kind.type_url().as_bytes()))),
            1 => Some((field::NONCE, text(self.nonce.to_string()))),
            _ => {
                let name = self.removed.get(left - 2)?;
                Some((field::REMOVED_RESOURCES, Cow::Borrowed(name.as_bytes())))
            }
        }
    }
}

/// A response on its way out: its bytes are written when they are asked for, so that a large response to a slow proxy
/// takes no room.
#[derive(Debug)]
pub struct Pieces {
    response: Response,
    /// Bytes not yet written.
    left: usize,
    /// The field that is being written.
    field: usize,
    /// How much of its value has been; `None` while its head has not.
    written: Option<usize>,
}

impl Pieces {
    /// Nothing of `response` has been written.
    pub fn new(response: Response) -> Self {
        Self {
            left: response.encoded_len(),
            response,
            field: 0,
            written: None,
        }
    }

    /// Bytes not yet written.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Appends to `piece` until it has about `room` bytes or nothing is left. Pieces add up to what
    /// [`Response::encode`] writes.
    ///
    /// A field's head is not divided: `piece` may exceed `room` by that (10 bytes).
    pub fn fill(&mut self, piece: &mut BytesMut, room: usize) {
        let before = piece.len();
        while piece.len() < room
            && let Some((number, value)) = self.response.field(self.field)
        {
            let written = self.written.unwrap_or_else(|| {
                encode_key(number, WireType::LengthDelimited, piece);
                encode_varint(value.len() as u64, piece);
                0
            });
            let part = (value.len() - written).min(room.saturating_sub(piece.len()));
            piece.put_slice(&value[written..written + part]);
            if written + part == value.len() {
                self.field += 1;
                self.written = None;
            } else {
                self.written = Some(written + part);
            }
        }
        self.left = self.left.saturating_sub(piece.len() - before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_add_up_to_the_whole() {
        use osm_proto::envoy::config::cluster::v3::Cluster;
        let cluster = |size: usize| {
            let cluster = Cluster {
                alt_stat_name: "x".repeat(size),
                ..Default::default()
            };
            Resource::new(ResourceType::Cluster, size.to_string(), &cluster)
        };
        for version in [None, Some(Version::of(b"all"))] {
            let response = Response {
                kind: ResourceType::Cluster,
                nonce: 12,
                resources: [0, 1, 300, 70_000].map(cluster).into(),
                removed: vec!["gone".into(), "".into()],
                version,
            };
            let mut whole = Vec::new();
            response.encode(&mut whole);
            for room in [1, 2, 7, 100, 16_375, 1 << 20] {
                let (mut pieces, mut sum) = (Pieces::new(response.clone()), Vec::new());
                while pieces.left() > 0 {
                    let mut piece = BytesMut::new();
                    pieces.fill(&mut piece, room);
                    assert!(!piece.is_empty() && piece.len() <= room + 10);
                    sum.extend_from_slice(&piece);
                }
                assert_eq!(sum, whole, "pieces of {room} bytes");
            }
        }
    }
}
