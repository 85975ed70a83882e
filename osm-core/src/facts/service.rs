//! Services: the ports and addresses clients use, and the pods behind.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde::Deserialize;

use super::{Diagnostic, Fact, created, lean};
use crate::{
    ir::{Protocol, ServiceKey, TargetPort},
    policy::protocol,
};

/// What is decoded of a Service.
#[derive(Clone, Debug, Deserialize)]
pub struct Object {
    #[serde(default, deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    spec: Option<v1::ServiceSpec>,
}

lean::lean!(Object, v1::Service);

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Seconds since 1970: the older of two that conflict keeps what both claim.
    pub created: i64,
    /// The labels of its pods; no pods are selected when empty.
    pub selector: BTreeMap<Arc<str>, Arc<str>>,
    /// Whether it stands for a name outside the cluster (`ExternalName`).
    pub external: bool,
    /// Whether it has no address of its own (`clusterIP: None`).
    pub headless: bool,
    /// Its cluster IPs, ordered.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports, ordered by number, each number once.
    pub ports: Vec<ServicePort>,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service.
    pub name: Arc<str>,
    /// The port clients connect to.
    pub number: u16,
    /// The port pods listen on.
    pub target: TargetPort,
    /// What is spoken on it.
    pub protocol: Protocol,
}

impl Service {
    /// Its name in the mesh.
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(self.namespace.clone(), self.name.clone())
    }

    /// The TCP port of this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// Reads a Service. UDP and SCTP ports are left out: the mesh does not touch their traffic.
///
/// # Errors
/// None today: the API server validates what is read here, and what does not parse is left out.
pub fn from(object: &Object) -> Result<Fact, Diagnostic> {
    let spec = object.spec.clone().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let single = spec.cluster_ip.clone().into_iter().collect();
    let addresses = spec
        .cluster_ips
        .filter(|addresses| !addresses.is_empty())
        .unwrap_or(single);
    let mut addresses: Vec<IpAddr> = addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let mut ports: Vec<_> = spec.ports.unwrap_or_default().iter().filter_map(port).collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    Ok(Fact::Service(Service {
        namespace: object.metadata.namespace.as_deref().unwrap_or("").into(),
        name: object.metadata.name.as_deref().unwrap_or("").into(),
        created: created(&object.metadata),
        selector: spec
            .selector
            .unwrap_or_default()
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect(),
        external: spec.type_.as_deref() == Some("ExternalName"),
        headless,
        addresses,
        ports,
    }))
}

fn port(port: &v1::ServicePort) -> Option<ServicePort> {
    if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
        return None;
    }
    let number = port_number(port.port)?;
    let target = match &port.target_port {
        None => TargetPort::Number(number),
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => TargetPort::Number(port_number(*target)?),
        Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
    };
    let name = port.name.as_deref().unwrap_or("");
    let protocol = protocol::of(port.app_protocol.as_deref(), name);
    Some(ServicePort {
        name: name.into(),
        number,
        target,
        protocol,
    })
}

/// A port that can be connected to: 1 to 65535.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
