//! The messages of the incremental protocol, as far as the relay looks into them. Resources stay the bytes they are.

use bytes::Bytes;

/// A `DeltaDiscoveryResponse` whose resources are not decoded: they share the message's memory.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) removed: Vec<String>,
}

/// What a `discovery.v3.Resource` is called. Its payload is skipped.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Label {
    #[prost(string, tag = "3")]
    pub(super) name: String,
    #[prost(string, tag = "1")]
    pub(super) version: String,
}
