//! Objects of which only what the mesh reads is decoded.
//!
//! A controller receives every write of every pod, Service and EndpointSlice, and most concern nobody: kubelets report,
//! annotations are counted up. Most of such an object is text that is skipped here instead of being made into values that
//! are dropped: above all `managedFields`, a tree of its own. Invariant: whatever a lean type leaves out, no fact needs;
//! lean and whole objects give equal facts.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Deserializer};

use crate::api::annotations::PROMETHEUS_SCRAPE;

/// Makes `$lean` a Kubernetes resource, the one that `$whole` is; its metadata are its field `metadata`.
macro_rules! lean {
    ($lean:ty, $whole:ty) => {
        impl k8s_openapi::Resource for $lean {
            const API_VERSION: &'static str = <$whole as k8s_openapi::Resource>::API_VERSION;
            const GROUP: &'static str = <$whole as k8s_openapi::Resource>::GROUP;
            const KIND: &'static str = <$whole as k8s_openapi::Resource>::KIND;
            const VERSION: &'static str = <$whole as k8s_openapi::Resource>::VERSION;
            const URL_PATH_SEGMENT: &'static str = <$whole as k8s_openapi::Resource>::URL_PATH_SEGMENT;
            type Scope = <$whole as k8s_openapi::Resource>::Scope;
        }

        impl k8s_openapi::Metadata for $lean {
            type Ty = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
}
pub(super) use lean;

/// Decodes who an object is, its age, its labels and the one annotation that is read; the rest stays empty.
pub(super) fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        namespace: Option<String>,
        name: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<Annotations>,
    }

    #[derive(Deserialize)]
    struct Annotations {
        // An attribute cannot name `PROMETHEUS_SCRAPE`.
        #[serde(rename = "prometheus.io/scrape")]
        scrape: Option<String>,
    }

    let read = Metadata::deserialize(deserializer)?;
    let scrape = read.annotations.and_then(|annotations| annotations.scrape);
    Ok(ObjectMeta {
        namespace: read.namespace,
        name: read.name,
        uid: read.uid,
        resource_version: read.resource_version,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        annotations: scrape.map(|value| BTreeMap::from([(PROMETHEUS_SCRAPE.to_owned(), value)])),
        ..ObjectMeta::default()
    })
}
