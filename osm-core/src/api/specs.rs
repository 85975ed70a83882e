//! SMI `specs.smi-spec.io/v1alpha4`: what traffic looks like.

use std::collections::BTreeMap;

use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

/// Named matches of HTTP requests (SMI traffic specs v1alpha4).
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "HTTPRouteGroup",
    plural = "httproutegroups",
    namespaced,
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
pub struct HTTPRouteGroupSpec {
    /// The matches.
    #[serde(default)]
    pub matches: Vec<HTTPMatch>,
}

/// One way an HTTP request may look; all conditions that are given must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HTTPMatch {
    /// Name within the group, for TrafficTargets to refer to.
    pub name: String,
    /// Methods; any when empty or `*`.
    #[serde(default)]
    pub methods: Vec<String>,
    /// A regular expression (RE2) of the whole path, query excluded; any path when absent.
    #[serde(default)]
    pub path_regex: Option<String>,
    /// Header names and regular expressions (RE2) of their whole values. `host` means `:authority`.
    #[serde(default, deserialize_with = "headers")]
    pub headers: BTreeMap<String, String>,
}

/// Reads headers as the CRD has them (a list of maps) or as one map, which older manifests use.
fn headers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Headers {
        List(Vec<BTreeMap<String, String>>),
        Map(BTreeMap<String, String>),
    }
    Ok(match Option::<Headers>::deserialize(deserializer)? {
        None => BTreeMap::new(),
        Some(Headers::Map(map)) => map,
        Some(Headers::List(list)) => list.into_iter().flatten().collect(),
    })
}

/// Matches of TCP connections (SMI traffic specs v1alpha4).
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "specs.smi-spec.io",
    version = "v1alpha4",
    kind = "TCPRoute",
    plural = "tcproutes",
    namespaced,
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
pub struct TCPRouteSpec {
    /// The ports, as the destination pods listen on them.
    #[serde(default)]
    pub matches: TCPMatch,
}

/// Destination ports of TCP connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TCPMatch {
    /// Name of the match; not used.
    #[serde(default)]
    pub name: Option<String>,
    /// Target ports, 1 to 65535; any port when empty.
    #[serde(default)]
    pub ports: Vec<i32>,
}
