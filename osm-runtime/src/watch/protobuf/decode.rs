//! Decoding answers in the protobuf of Kubernetes.
//!
//! Every object that stands alone is in an envelope: a magic, then `runtime.Unknown`, which says the kind and has the
//! object as bytes. An event of a watch is bare and has such an envelope; the items of a list are bare objects. (Kubernetes:
//! apimachinery, `runtime/serializer/protobuf`; apiserver, `endpoints/handlers/watch.go`.) Invariants: what is taken apart
//! are slices of what was received; an object that cannot be decoded harms no other.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use kube::{
    api::ObjectList,
    core::{
        Status, TypeMeta, WatchEvent,
        watch::{Bookmark, BookmarkMeta},
    },
};
use osm_core::facts::lean::{Identified, Metadata, Wire};
use prost::Message;

use super::{
    super::{ObjectKey, guarded::Guarded},
    WireError,
};

const MAGIC: &[u8] = b"k8s\0";

/// The annotation of the bookmark that ends a streamed list.
const LIST_ENDS: &str = "k8s.io/initial-events-end";

/// `runtime.Unknown`.
#[derive(Clone, Message)]
struct Envelope {
    #[prost(message, required, tag = "1")]
    types: Types,
    #[prost(bytes = "bytes", tag = "2")]
    raw: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    content_encoding: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    content_type: Bytes,
}

#[derive(Clone, Message)]
struct Types {
    #[prost(bytes = "bytes", tag = "2")]
    kind: Bytes,
}

/// `meta/v1.WatchEvent`.
#[derive(Clone, Message)]
struct Event {
    #[prost(bytes = "bytes", tag = "1")]
    r#type: Bytes,
    #[prost(message, required, tag = "2")]
    object: Extension,
}

#[derive(Clone, Message)]
struct Extension {
    #[prost(bytes = "bytes", tag = "1")]
    raw: Bytes,
}

/// A list of any kind.
#[derive(Clone, Message)]
struct Page {
    #[prost(message, required, tag = "1")]
    metadata: ListMeta,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    items: Vec<Bytes>,
}

#[derive(Clone, Message)]
struct ListMeta {
    #[prost(string, optional, tag = "2")]
    resource_version: Option<String>,
    #[prost(string, optional, tag = "3")]
    r#continue: Option<String>,
}

/// An object of any kind, as far as it says which one it is.
#[derive(Clone, Message)]
struct Anything {
    #[prost(message, required, tag = "1")]
    metadata: Metadata,
}

/// `meta/v1.Status`.
#[derive(Clone, Message)]
struct Refusal {
    #[prost(string, tag = "3")]
    message: String,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(int32, tag = "6")]
    code: i32,
}

/// Decodes one event of a watch.
pub(super) fn decode_event<K: Wire>(frame: Bytes) -> Result<WatchEvent<Guarded<K>>, WireError> {
    let Event { r#type, object } = Event::decode(frame)?;
    let object = |kind| open(object.raw, kind, "");
    Ok(match &*r#type {
        b"ADDED" => WatchEvent::Added(guarded(object(K::KIND)?)?),
        b"MODIFIED" => WatchEvent::Modified(guarded(object(K::KIND)?)?),
        b"DELETED" => WatchEvent::Deleted(guarded(object(K::KIND)?)?),
        b"BOOKMARK" => WatchEvent::Bookmark(bookmark(object(K::KIND)?)?),
        b"ERROR" => WatchEvent::Error(Box::new(status(object("Status")?)?)),
        _ => return Err(WireError::Event),
    })
}

/// Decodes one page of a list.
pub(super) fn decode_page<K: Wire>(body: Bytes) -> Result<ObjectList<Guarded<K>>, WireError> {
    let page = Page::decode(open(body, K::KIND, "List")?)?;
    let items = page.items.into_iter().map(guarded).collect::<Result<_, _>>()?;
    Ok(ObjectList {
        types: TypeMeta::default(),
        metadata: v1::ListMeta {
            continue_: page.metadata.r#continue,
            resource_version: page.metadata.resource_version,
            ..v1::ListMeta::default()
        },
        items,
    })
}

/// Decodes a refusal.
pub(super) fn decode_status(body: Bytes) -> Result<Status, WireError> {
    status(open(body, "Status", "")?)
}

/// What is in an envelope, which must not say that it is of another kind than `kind` with `suffix`.
fn open(mut bytes: Bytes, kind: &'static str, suffix: &str) -> Result<Bytes, WireError> {
    if !bytes.starts_with(MAGIC) {
        return Err(WireError::Magic);
    }
    bytes.advance(MAGIC.len());
    let envelope = Envelope::decode(bytes)?;
    let is = &*envelope.types.kind;
    if !is.is_empty() && is.strip_suffix(suffix.as_bytes()) != Some(kind.as_bytes()) {
        return Err(WireError::Kind(kind));
    }
    let protobuf = matches!(
        &*envelope.content_type,
        b"" | b"application/vnd.kubernetes.protobuf"
    );
    if !protobuf || !envelope.content_encoding.is_empty() {
        return Err(WireError::Encoding);
    }
    Ok(envelope.raw)
}

/// Decodes an object; if that fails, who it is.
fn guarded<K: Wire>(raw: Bytes) -> Result<Guarded<K>, WireError> {
    match K::decode(raw.clone()) {
        Ok(object) => Ok(Guarded::good(object)),
        Err(error) => {
            let Anything { metadata } = Anything::decode(raw)?;
            if metadata.name().is_empty() {
                return Err(WireError::Nameless);
            }
            let key = ObjectKey {
                namespace: metadata.namespace().to_owned(),
                name: metadata.name().to_owned(),
            };
            let version = metadata.version().map(str::to_owned);
            Ok(Guarded::bad(error.to_string(), key, version))
        }
    }
}

fn bookmark(raw: Bytes) -> Result<Bookmark, WireError> {
    let Anything { metadata } = Anything::decode(raw)?;
    let version = metadata.version().ok_or(WireError::Unversioned)?;
    let ends = metadata.annotation(LIST_ENDS);
    Ok(Bookmark {
        types: TypeMeta::default(),
        metadata: BookmarkMeta {
            resource_version: version.to_owned(),
            annotations: ends
                .map(|value| (LIST_ENDS.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
        },
    })
}

fn status(raw: Bytes) -> Result<Status, WireError> {
    let Refusal {
        message,
        reason,
        code,
    } = Refusal::decode(raw)?;
    let code = u16::try_from(code).unwrap_or_default();
    Ok(Status::failure(&message, &reason).with_code(code))
}
