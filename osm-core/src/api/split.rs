//! SMI `split.smi-spec.io/v1alpha2`: one service's traffic, divided among others.

use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

/// Divides the traffic to `service` among `backends` by weight (SMI traffic split v1alpha2).
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "split.smi-spec.io",
    version = "v1alpha2",
    kind = "TrafficSplit",
    namespaced,
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
pub struct TrafficSplitSpec {
    /// The apex service clients call: a name in the object's namespace, or a qualified name of a service there.
    pub service: String,
    /// The services that answer.
    #[serde(default)]
    pub backends: Vec<TrafficSplitBackend>,
}

/// One part of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficSplitBackend {
    /// Name of the service, in the object's namespace.
    pub service: String,
    /// Its share: weight over the sum of all weights. Negative weights are refused.
    pub weight: i64,
}
