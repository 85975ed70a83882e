//! SMI `access.smi-spec.io/v1alpha3`: who may call whom.

use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

/// Grants the `sources` access to the `destination` by the `rules` (SMI traffic access v1alpha3).
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "access.smi-spec.io",
    version = "v1alpha3",
    kind = "TrafficTarget",
    namespaced,
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
pub struct TrafficTargetSpec {
    /// The service account whose pods are called; it must be in the object's own namespace.
    pub destination: IdentityBindingSubject,
    /// What may be called. A target without rules grants nothing.
    #[serde(default)]
    pub rules: Vec<TrafficTargetRule>,
    /// The service accounts that may call.
    #[serde(default)]
    pub sources: Vec<IdentityBindingSubject>,
}

/// A workload identity, by reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityBindingSubject {
    /// `ServiceAccount`; nothing else is supported.
    pub kind: String,
    /// Name of the service account.
    pub name: String,
    /// Namespace of the service account; the object's own when absent.
    #[serde(default)]
    pub namespace: Option<String>,
}

/// A reference to routes in the object's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficTargetRule {
    /// `HTTPRouteGroup` or `TCPRoute`.
    pub kind: String,
    /// Name of the route object.
    pub name: String,
    /// For an HTTPRouteGroup: the names of its matches that count; all of them when empty.
    #[serde(default)]
    pub matches: Vec<String>,
}
