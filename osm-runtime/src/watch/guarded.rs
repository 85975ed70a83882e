//! Decoding JSON answers so that a malformed object does not fail the others.
//!
//! The text of each object is decoded directly; only when that fails is its metadata decoded alone. (The client
//! library's own guard decodes every object twice, through a generic value.)

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use kube::{
    Error, Resource,
    api::ObjectList,
    core::{Status, TypeMeta, WatchEvent, watch::Bookmark},
};
use osm_core::facts::lean::Identified;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Malformed, ObjectKey};

/// Longest error text that is passed on.
const MAX_ERROR: usize = 512;

/// An object, or what is wrong with it.
#[derive(Clone, Debug)]
pub struct Guarded<K> {
    /// The object, or the decoder's complaint.
    pub object: Result<K, String>,
    /// Of a malformed object, which one it is.
    key: ObjectKey,
    /// Of a malformed object, its version.
    version: Option<String>,
}

impl<K> Guarded<K> {
    /// A decoded object.
    pub fn good(object: K) -> Self {
        Self {
            object: Ok(object),
            key: ObjectKey::default(),
            version: None,
        }
    }

    /// An object of which only `key` and `version` could be decoded.
    pub(super) fn bad(error: String, key: ObjectKey, version: Option<String>) -> Self {
        Self {
            object: Err(error),
            key,
            version,
        }
    }
}

impl<K: Identified> Guarded<K> {
    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        match &self.object {
            Ok(object) => ObjectKey {
                namespace: object.namespace().to_owned(),
                name: object.name().to_owned(),
            },
            Err(_) => self.key.clone(),
        }
    }

    /// Its version.
    pub fn version(&self) -> Option<&str> {
        match &self.object {
            Ok(object) => object.version(),
            Err(_) => self.version.as_deref(),
        }
    }

    /// What to report of a malformed object.
    pub fn malformed(&self) -> Malformed {
        let mut error = self.object.as_ref().err().cloned().unwrap_or_default();
        error.truncate(error.floor_char_boundary(MAX_ERROR));
        Malformed {
            key: self.key(),
            error,
        }
    }
}

impl<K: DeserializeOwned> Guarded<K> {
    /// Decodes one object.
    fn decode(text: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct OnlyMetadata {
            metadata: ObjectMeta,
        }
        match serde_json::from_str(text) {
            Ok(object) => Ok(Self::good(object)),
            Err(error) => {
                let OnlyMetadata { metadata } = serde_json::from_str(text)?;
                let key = ObjectKey {
                    namespace: metadata.namespace.unwrap_or_default(),
                    name: metadata.name.unwrap_or_default(),
                };
                Ok(Self::bad(error.to_string(), key, metadata.resource_version))
            }
        }
    }
}

/// An event whose object is decoded.
pub(super) fn good_event<K>(event: WatchEvent<K>) -> WatchEvent<Guarded<K>> {
    match event {
        WatchEvent::Added(object) => WatchEvent::Added(Guarded::good(object)),
        WatchEvent::Modified(object) => WatchEvent::Modified(Guarded::good(object)),
        WatchEvent::Deleted(object) => WatchEvent::Deleted(Guarded::good(object)),
        WatchEvent::Bookmark(bookmark) => WatchEvent::Bookmark(bookmark),
        WatchEvent::Error(status) => WatchEvent::Error(status),
    }
}

/// Decodes one event of a watch.
pub(super) fn decode_event<K: DeserializeOwned>(line: &[u8]) -> kube::Result<WatchEvent<Guarded<K>>> {
    // Almost every event is decoded in one go.
    match serde_json::from_slice(line) {
        Ok(event) => Ok(good_event(event)),
        Err(_) => decode_part_by_part(line),
    }
}

/// Decodes an event that may be of a malformed object.
fn decode_part_by_part<K: DeserializeOwned>(line: &[u8]) -> kube::Result<WatchEvent<Guarded<K>>> {
    #[derive(Deserialize)]
    struct Line<'a> {
        r#type: &'a str,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let decode = || {
        let Line { r#type, object } = serde_json::from_slice(line)?;
        Ok(match r#type {
            "ADDED" => WatchEvent::Added(Guarded::decode(object.get())?),
            "MODIFIED" => WatchEvent::Modified(Guarded::decode(object.get())?),
            "DELETED" => WatchEvent::Deleted(Guarded::decode(object.get())?),
            "BOOKMARK" => WatchEvent::Bookmark(serde_json::from_str::<Bookmark>(object.get())?),
            "ERROR" => WatchEvent::Error(Box::new(serde_json::from_str::<Status>(object.get())?)),
            _ => return Err(serde::de::Error::custom("an event of unknown type")),
        })
    };
    decode().map_err(Error::SerdeError)
}

/// Decodes one page of a list.
pub(super) fn decode_page<K: Resource<DynamicType = ()> + DeserializeOwned + Clone>(
    text: &str,
) -> kube::Result<ObjectList<Guarded<K>>> {
    #[derive(Deserialize)]
    struct Page<'a> {
        metadata: ListMeta,
        #[serde(borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    let decode = || {
        let page: Page<'_> = serde_json::from_str(text)?;
        let items = page.items.unwrap_or_default();
        let items = items
            .into_iter()
            .map(|item| Guarded::decode(item.get()))
            .collect::<Result<_, _>>()?;
        Ok(ObjectList {
            types: TypeMeta::list::<K>(),
            metadata: page.metadata,
            items,
        })
    };
    decode().map_err(Error::SerdeError)
}
