//! EndpointSlices: which pods a Service has, which of them are ready, and on which ports.

use std::{net::IpAddr, sync::Arc};

use prost::Message;
use serde::Deserialize;

use super::{
    Diagnostic, Fact,
    lean::{self, Identified},
    service::port_number,
};

/// The label that names a slice's Service (Kubernetes API).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is decoded of an EndpointSlice.
#[derive(Clone, Message, Deserialize)]
#[serde(default)]
pub struct Object {
    #[prost(message, required, tag = "1")]
    metadata: lean::Metadata,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "lean::or_default")]
    ports: Vec<Port>,
}

lean::lean!(
    Object,
    "EndpointSlice",
    "/apis/discovery.k8s.io/v1/endpointslices"
);

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "lean::or_default")]
    addresses: Vec<String>,
    #[prost(message, required, tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    conditions: Conditions,
    #[prost(string, tag = "3")]
    hostname: String,
    #[prost(message, optional, tag = "4")]
    target_ref: Option<Target>,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Conditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Target {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    protocol: String,
    #[prost(int32, tag = "3")]
    port: i32,
}

/// An EndpointSlice. Only endpoints that are pods are in it: an address without a pod is nobody the mesh could trust. A
/// pod that is terminating is in it only if it is ready, which is so in Services that publish those that are not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The Service it belongs to; empty for a slice of none.
    pub service: Arc<str>,
    /// Its TCP ports by the Service port's name, ordered.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Its endpoints, ordered.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A pod of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceEndpoint {
    /// The pod's name; it is in the slice's namespace.
    pub pod: Arc<str>,
    /// The pod's uid; empty when the slice does not say.
    pub uid: Arc<str>,
    /// Its addresses in the slice's family, ordered.
    pub addresses: Vec<IpAddr>,
    /// The name of its own it has within a headless Service.
    pub hostname: Option<Arc<str>>,
    /// Whether it is ready to serve, as far as Kubernetes knows: see [`Proxy::doubted`](super::pod::Proxy::doubted).
    pub ready: bool,
}

/// Reads an EndpointSlice.
///
/// # Errors
/// None today: what does not parse is left out.
pub fn from(object: &Object) -> Result<Fact, Diagnostic> {
    let metadata = &object.metadata;
    let tcp = object.ports.iter();
    let tcp = tcp.filter(|port| matches!(&*port.protocol, "" | "TCP"));
    let mut ports: Vec<(Arc<str>, u16)> = tcp
        .filter_map(|port| Some((port.name.as_str().into(), port_number(port.port)?)))
        .collect();
    ports.sort();
    ports.dedup();
    let endpoints = object.endpoints.iter();
    let mut endpoints: Vec<_> = endpoints
        .filter_map(|endpoint| read(endpoint, metadata.namespace()))
        .collect();
    endpoints.sort();
    endpoints.dedup();
    Ok(Fact::EndpointSlice(EndpointSlice {
        namespace: metadata.namespace().into(),
        name: metadata.name().into(),
        service: metadata
            .labels
            .get(SERVICE_NAME)
            .map_or("", String::as_str)
            .into(),
        ports,
        endpoints,
    }))
}

fn read(endpoint: &Endpoint, namespace: &str) -> Option<SliceEndpoint> {
    // An absent condition means ready, and not terminating (EndpointSlice API).
    let ready = endpoint.conditions.ready.unwrap_or(true);
    let terminating = endpoint.conditions.terminating.unwrap_or(false);
    let target = endpoint.target_ref.as_ref()?;
    let is_pod = target.kind == "Pod" && !target.name.is_empty();
    let is_here = target.namespace.is_empty() || target.namespace == namespace;
    if !((ready || !terminating) && is_pod && is_here) {
        return None;
    }
    let mut addresses: Vec<IpAddr> = endpoint
        .addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Some(SliceEndpoint {
        pod: target.name.as_str().into(),
        uid: target.uid.as_str().into(),
        addresses,
        hostname: Some(&*endpoint.hostname)
            .filter(|name| !name.is_empty())
            .map(Into::into),
        ready,
    })
}
