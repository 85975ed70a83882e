//! EndpointSlices: which pods a Service has, which of them are ready, and on which ports.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{api::discovery::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::Deserialize;

use super::{Diagnostic, Fact, lean, service::port_number};

/// The label that names a slice's Service (Kubernetes API).
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is decoded of an EndpointSlice.
#[derive(Clone, Debug, Deserialize)]
pub struct Object {
    #[serde(default, deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    ports: Option<Vec<v1::EndpointPort>>,
    endpoints: Option<Vec<v1::Endpoint>>,
}

lean::lean!(Object, v1::EndpointSlice);

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
    let namespace = object.metadata.namespace.as_deref().unwrap_or("");
    let labels = object.metadata.labels.as_ref();
    let service = labels
        .and_then(|labels| labels.get(SERVICE_NAME))
        .map_or("", String::as_str);
    let ports = object
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let mut ports: Vec<(Arc<str>, u16)> = ports
        .filter_map(|port| {
            Some((
                port.name.as_deref().unwrap_or("").into(),
                port_number(port.port?)?,
            ))
        })
        .collect();
    ports.sort();
    ports.dedup();
    let mut endpoints: Vec<_> = object
        .endpoints
        .iter()
        .flatten()
        .filter_map(|endpoint| read(endpoint, namespace))
        .collect();
    endpoints.sort();
    endpoints.dedup();
    Ok(Fact::EndpointSlice(EndpointSlice {
        namespace: namespace.into(),
        name: object.metadata.name.as_deref().unwrap_or("").into(),
        service: service.into(),
        ports,
        endpoints,
    }))
}

fn read(endpoint: &v1::Endpoint, namespace: &str) -> Option<SliceEndpoint> {
    // An absent condition means ready, and not terminating (EndpointSlice API).
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|all| all.ready).unwrap_or(true);
    let terminating = conditions.and_then(|all| all.terminating).unwrap_or(false);
    let target = endpoint.target_ref.as_ref()?;
    let is_pod = target.kind.as_deref() == Some("Pod");
    let is_here = target.namespace.as_deref().is_none_or(|other| other == namespace);
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
        pod: target.name.as_deref()?.into(),
        uid: target.uid.as_deref().unwrap_or("").into(),
        addresses,
        hostname: endpoint
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into),
        ready,
    })
}
