//! The Envoy API as the mesh speaks it: generated, nothing hand-written but this page.
//!
//! Invariant: encoding a message is deterministic. Map fields are `BTreeMap`, so that equal messages have equal
//! bytes in every process; byte fields are `bytes::Bytes`, so that cloning a message copies no payload.
#![allow(missing_docs, rustdoc::all, clippy::all, unreachable_pub)]

include!(concat!(env!("OUT_DIR"), "/api.rs"));

/// The `google.protobuf.FileDescriptorSet` of every message here, for reflection (JSON output, golden tests).
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
