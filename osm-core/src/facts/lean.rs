//! Objects of which only what the mesh reads is decoded.
//!
//! A controller receives every write of every pod, Service and EndpointSlice, and most concern nobody: kubelets report,
//! annotations are counted up. Kubernetes encodes them in protobuf if asked, where a field that is not declared is skipped
//! by its length: above all `managedFields`, a tree of its own. Lean types are protobuf messages for that, with the field
//! numbers of Kubernetes; they decode from its YAML and JSON too. Must not be encoded and sent anywhere: they lack most.
//! Invariants: whatever a lean type leaves out, no fact needs; an empty text is an absent one, since the API server
//! writes empty texts into protobuf and leaves them out of JSON.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1;
use prost::Message;
use serde::{Deserialize, Deserializer};

use crate::api::annotations::PROMETHEUS_SCRAPE;

/// An object that says which one it is.
pub trait Identified {
    /// Its namespace; empty for an object of the cluster.
    fn namespace(&self) -> &str;

    /// Its name.
    fn name(&self) -> &str;

    /// The version of this write of it, if it says.
    fn version(&self) -> Option<&str>;
}

impl<K: kube_core::Resource> Identified for K {
    fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or("")
    }

    fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or("")
    }

    fn version(&self) -> Option<&str> {
        self.meta().resource_version.as_deref()
    }
}

/// An object that is read from the protobuf of Kubernetes.
pub trait Wire: Message + Identified + Default + Clone + 'static {
    /// Its kind as Kubernetes spells it.
    const KIND: &'static str;
    /// Where the API server has all objects of the kind.
    const PATH: &'static str;
}

/// Makes `$lean`, whose metadata are its field `metadata`, the objects of `$kind` that are at `$path`.
macro_rules! lean {
    ($lean:ty, $kind:literal, $path:literal) => {
        impl $crate::facts::lean::Identified for $lean {
            fn namespace(&self) -> &str {
                self.metadata.namespace()
            }

            fn name(&self) -> &str {
                self.metadata.name()
            }

            fn version(&self) -> Option<&str> {
                self.metadata.version()
            }
        }

        impl $crate::facts::lean::Wire for $lean {
            const KIND: &'static str = $kind;
            const PATH: &'static str = $path;
        }
    };
}
pub(super) use lean;

/// Who an object is, its age, its labels and its annotations: of JSON, only the one that is read.
#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(message, optional, tag = "8")]
    creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    #[serde(deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    // A list, not a map, of slices of what was received: they are long, and all but one are dropped.
    #[prost(message, repeated, tag = "12")]
    #[serde(deserialize_with = "scrape")]
    annotations: Vec<Annotation>,
}

#[derive(Clone, Message)]
struct Annotation {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// A moment; without seconds, the one that means none.
#[derive(Clone, Message, Deserialize)]
#[serde(from = "v1::Time")]
struct Time {
    #[prost(int64, optional, tag = "1")]
    seconds: Option<i64>,
}

impl From<v1::Time> for Time {
    fn from(time: v1::Time) -> Self {
        Self {
            seconds: Some(time.0.as_second()),
        }
    }
}

impl Identified for Metadata {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> Option<&str> {
        Some(&*self.resource_version).filter(|version| !version.is_empty())
    }
}

impl Metadata {
    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let found = self
            .annotations
            .iter()
            .rfind(|annotation| annotation.key == key)?;
        std::str::from_utf8(&found.value).ok()
    }

    /// Seconds since 1970 at which the object was created; what the API server never sets counts as youngest.
    pub(super) fn created(&self) -> i64 {
        let time = self.creation_timestamp.as_ref();
        time.and_then(|time| time.seconds).unwrap_or(i64::MAX)
    }

    /// Whether the object is being deleted.
    pub(super) fn is_ending(&self) -> bool {
        let time = self.deletion_timestamp.as_ref();
        time.is_some_and(|time| time.seconds.is_some())
    }
}

/// Decodes what may be `null`: to Go a list without items is one.
pub(super) fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Decodes the one annotation that is read.
fn scrape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Annotation>, D::Error> {
    #[derive(Deserialize)]
    struct Annotations {
        // An attribute cannot name `PROMETHEUS_SCRAPE`.
        #[serde(rename = "prometheus.io/scrape")]
        scrape: Option<String>,
    }

    let read: Option<Annotations> = Option::deserialize(deserializer)?;
    let scrape = read.and_then(|annotations| annotations.scrape);
    let annotation = scrape.map(|value| Annotation {
        key: Bytes::from_static(PROMETHEUS_SCRAPE.as_bytes()),
        value: value.into(),
    });
    Ok(annotation.into_iter().collect())
}
