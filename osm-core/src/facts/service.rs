//! Services: the ports and addresses clients use, and the pods behind.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;
use serde::Deserialize;

use super::{
    Diagnostic, Fact,
    lean::{self, Identified},
};
use crate::{
    ir::{Protocol, ServiceKey, TargetPort},
    policy::protocol,
};

/// What is decoded of a Service.
#[derive(Clone, Message, Deserialize)]
#[serde(default)]
pub struct Object {
    #[prost(message, required, tag = "1")]
    metadata: lean::Metadata,
    #[prost(message, required, tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    spec: Spec,
}

lean::lean!(Object, "Service", "/api/v1/services");

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "lean::or_default")]
    ports: Vec<Port>,
    #[prost(btree_map = "string, string", tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    selector: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[prost(string, tag = "4")]
    r#type: String,
    #[prost(string, repeated, tag = "18")]
    #[serde(rename = "clusterIPs", deserialize_with = "lean::or_default")]
    cluster_ips: Vec<String>,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    protocol: String,
    #[prost(int32, tag = "3")]
    port: i32,
    #[prost(message, required, tag = "4")]
    #[serde(deserialize_with = "lean::or_default")]
    target_port: Target,
    #[prost(string, optional, tag = "6")]
    app_protocol: Option<String>,
}

/// A number or a name; the number 0 is none.
#[derive(Clone, Message, Deserialize)]
#[serde(from = "IntOrString")]
struct Target {
    /// 0 for a number, 1 for a name.
    #[prost(int64, tag = "1")]
    r#type: i64,
    #[prost(int32, tag = "2")]
    number: i32,
    #[prost(string, tag = "3")]
    name: String,
}

impl From<IntOrString> for Target {
    fn from(target: IntOrString) -> Self {
        let (r#type, number, name) = match target {
            IntOrString::Int(number) => (0, number, String::new()),
            IntOrString::String(name) => (1, 0, name),
        };
        Self { r#type, number, name }
    }
}

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
    let spec = &object.spec;
    let addresses = match &*spec.cluster_ips {
        [] => std::slice::from_ref(&spec.cluster_ip),
        several => several,
    };
    let mut addresses: Vec<IpAddr> = addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let mut ports: Vec<_> = spec.ports.iter().filter_map(port).collect();
    ports.sort_by_key(|port| port.number);
    ports.dedup_by_key(|port| port.number);
    Ok(Fact::Service(Service {
        namespace: object.metadata.namespace().into(),
        name: object.metadata.name().into(),
        created: object.metadata.created(),
        selector: spec
            .selector
            .iter()
            .map(|(k, v)| (k.as_str().into(), v.as_str().into()))
            .collect(),
        external: spec.r#type == "ExternalName",
        headless: spec.cluster_ip == "None",
        addresses,
        ports,
    }))
}

fn port(port: &Port) -> Option<ServicePort> {
    if !matches!(&*port.protocol, "" | "TCP") {
        return None;
    }
    let number = port_number(port.port)?;
    let target = match &port.target_port {
        Target { r#type: 1, name, .. } => TargetPort::Name(name.as_str().into()),
        Target { number: 0, .. } => TargetPort::Number(number),
        Target { number, .. } => TargetPort::Number(port_number(*number)?),
    };
    let protocol = protocol::of(port.app_protocol.as_deref(), &port.name);
    Some(ServicePort {
        name: port.name.as_str().into(),
        number,
        target,
        protocol,
    })
}

/// A port that can be connected to: 1 to 65535.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}
