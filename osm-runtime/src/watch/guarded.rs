//! Decoding one object so that a malformed one does not fail the whole answer.
//!
//! The text of the object is decoded directly; only when that fails is its metadata decoded alone. (The client
//! library's own guard decodes every object twice, through a generic value.)

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Malformed, ObjectKey};

/// Longest error text that is passed on.
const MAX_ERROR: usize = 512;

/// An object, or what is wrong with it.
#[derive(Clone, Debug)]
pub struct Guarded<K> {
    /// The object, or the decoder's complaint.
    pub object: Result<K, String>,
    /// Of a malformed object, its metadata.
    metadata: ObjectMeta,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    metadata: ObjectMeta,
}

impl<K: Resource> Guarded<K> {
    /// A decoded object.
    pub fn good(object: K) -> Self {
        Self {
            object: Ok(object),
            metadata: ObjectMeta::default(),
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match &self.object {
            Ok(object) => object.meta(),
            Err(_) => &self.metadata,
        }
    }

    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        let metadata = self.metadata();
        ObjectKey {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }

    /// Its version.
    pub fn version(&self) -> Option<&str> {
        self.metadata().resource_version.as_deref()
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

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        match serde_json::from_str(text.get()) {
            Ok(object) => Ok(Self {
                object: Ok(object),
                metadata: ObjectMeta::default(),
            }),
            Err(error) => {
                let only: OnlyMetadata =
                    serde_json::from_str(text.get()).map_err(serde::de::Error::custom)?;
                Ok(Self {
                    object: Err(error.to_string()),
                    metadata: only.metadata,
                })
            }
        }
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &K::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.object {
            Ok(object) => object.meta_mut(),
            Err(_) => &mut self.metadata,
        }
    }
}
