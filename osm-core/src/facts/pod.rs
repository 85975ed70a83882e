//! Pods: the proxies of the mesh.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use prost::Message;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Diagnostic, Fact, FactKey, FactKind, excerpt,
    lean::{self, Identified},
    service::port_number,
};
use crate::{
    api::{annotations, labels},
    identity::{ServiceIdentity, is_dns_label, is_dns_subdomain},
};

/// What is decoded of a Pod.
#[derive(Clone, Message, Deserialize)]
#[serde(default)]
pub struct Object {
    #[prost(message, required, tag = "1")]
    metadata: lean::Metadata,
    #[prost(message, optional, tag = "2")]
    spec: Option<Spec>,
    #[prost(message, optional, tag = "3")]
    status: Option<Status>,
}

lean::lean!(Object, "Pod", "/api/v1/pods");

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    containers: Vec<Container>,
    #[prost(string, tag = "8")]
    service_account_name: String,
    #[prost(string, tag = "9")]
    service_account: String,
    #[prost(string, tag = "16")]
    hostname: String,
    #[prost(string, tag = "17")]
    subdomain: String,
    #[prost(message, repeated, tag = "20")]
    #[serde(deserialize_with = "lean::or_default")]
    init_containers: Vec<Container>,
    #[prost(message, repeated, tag = "28")]
    #[serde(deserialize_with = "lean::or_default")]
    readiness_gates: Vec<Gate>,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "lean::or_default")]
    ports: Vec<Port>,
    #[prost(string, tag = "24")]
    restart_policy: String,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    container_port: i32,
    #[prost(string, tag = "4")]
    protocol: String,
}

/// That there is one is all that is read.
#[derive(Clone, Message, Deserialize)]
struct Gate {}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Status {
    #[prost(string, tag = "1")]
    phase: String,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "lean::or_default")]
    conditions: Vec<Condition>,
    #[prost(string, tag = "6")]
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[prost(message, repeated, tag = "12")]
    #[serde(rename = "podIPs", deserialize_with = "lean::or_default")]
    pod_ips: Vec<Ip>,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Ip {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, Message, Deserialize)]
#[serde(default)]
struct Condition {
    #[prost(string, tag = "1")]
    r#type: String,
    #[prost(string, tag = "2")]
    status: String,
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its sidecar; `None` for a pod outside the mesh and for one that has ended.
    pub proxy: Option<Box<Proxy>>,
}

/// What matters of a pod that has a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// The sidecar's uuid, by the pod's label.
    pub uuid: Uuid,
    /// The pod's uid, which tells it from an earlier pod of its name.
    pub uid: Arc<str>,
    /// Seconds since 1970: the older of two pods that claim one uuid keeps it.
    pub created: i64,
    /// Who it acts as.
    pub identity: ServiceIdentity,
    /// Its labels, which Services select it by.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Its addresses, ordered.
    pub addresses: Vec<IpAddr>,
    /// Its named TCP ports.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// The name of its own it has within the headless Service [`subdomain`](Self::subdomain).
    pub hostname: Option<Arc<str>>,
    /// The headless Service that gives it a name.
    pub subdomain: Option<Arc<str>>,
    /// Whether Prometheus scrapes its sidecar.
    pub scraped: bool,
    /// Whether Kubernetes calls the pod not ready though its kubelet has not: the kubelet last said that all containers
    /// are, and then nothing was heard from its node for a while. That befalls every pod of a cluster at once when the
    /// API server was away for longer than kubelets may be silent (`--node-monitor-grace-period`, 50 s).
    pub doubted: bool,
}

impl Proxy {
    /// Whether the pod has an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }
}

/// Reads a Pod. One that has succeeded or failed has no proxy any more; one that is terminating still has.
///
/// # Errors
/// `InvalidProxyUuid` when the label of a pod is not a uuid as the injector writes it.
pub fn from(object: &Object) -> Result<Fact, Diagnostic> {
    let metadata = &object.metadata;
    let namespace: Arc<str> = metadata.namespace().into();
    let name: Arc<str> = metadata.name().into();
    let phase = object.status.as_ref().map(|status| &*status.phase);
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let proxy = match metadata.labels.get(labels::PROXY_UUID) {
        Some(label) if !ended => {
            let Some(uuid) = Uuid::try_parse(label)
                .ok()
                .filter(|uuid| uuid.to_string() == *label)
            else {
                let message = format!(
                    "the label {} is {:?}, not a uuid as the injector writes it: the pod has no place in the mesh; \
                     delete it, so that it is made anew",
                    labels::PROXY_UUID,
                    excerpt(label)
                );
                let key = FactKey::new(FactKind::Pod, namespace, name);
                return Err(Diagnostic::new(key, "InvalidProxyUuid", message));
            };
            proxy(object, uuid, &namespace).map(Box::new)
        }
        _ => None,
    };
    Ok(Fact::Pod(Pod {
        namespace,
        name,
        proxy,
    }))
}

fn proxy(object: &Object, uuid: Uuid, namespace: &Arc<str>) -> Option<Proxy> {
    let spec = object.spec.as_ref()?;
    let account = [&*spec.service_account_name, &*spec.service_account, "default"]
        .into_iter()
        .find(|name| !name.is_empty())?;
    // Both enter principals; the API server lets nothing else through.
    if !is_dns_label(namespace) || !is_dns_subdomain(account) {
        return None;
    }
    let status = object.status.iter();
    let mut addresses: Vec<IpAddr> = status
        .flat_map(|status| {
            let list = status.pod_ips.iter().map(|ip| &ip.ip);
            list.chain([&status.pod_ip])
        })
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    // Restartable init containers are sidecars: they serve too.
    let sidecars = spec.init_containers.iter();
    let sidecars = sidecars.filter(|container| container.restart_policy == "Always");
    let containers = spec.containers.iter().chain(sidecars);
    let mut ports = BTreeMap::new();
    for port in containers.flat_map(|container| &container.ports) {
        let tcp = matches!(&*port.protocol, "" | "TCP");
        if let (true, false, Some(number)) = (tcp, port.name.is_empty(), port_number(port.container_port)) {
            ports.entry(port.name.as_str().into()).or_insert(number);
        }
    }
    let scrape = object.metadata.annotation(annotations::PROMETHEUS_SCRAPE);
    let label = |text: &str| is_dns_label(text).then(|| text.into());
    Some(Proxy {
        uuid,
        uid: object.metadata.uid.as_str().into(),
        created: object.metadata.created(),
        identity: ServiceIdentity::new(namespace.clone(), account),
        labels: object
            .metadata
            .labels
            .iter()
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect(),
        addresses,
        ports,
        hostname: label(&spec.hostname),
        subdomain: label(&spec.subdomain),
        scraped: matches!(scrape, Some("1" | "t" | "T" | "true" | "TRUE" | "True")),
        doubted: is_doubted(object),
    })
}

/// The node lifecycle controller turns `Ready` alone; a kubelet turns `ContainersReady` with it. With readiness gates
/// `Ready` may be false for reasons of their own.
fn is_doubted(object: &Object) -> bool {
    let gates = object.spec.iter().flat_map(|spec| &spec.readiness_gates);
    let is = |kind: &str, status: &str| {
        let mut conditions = object.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|condition| condition.r#type == kind && condition.status == status)
    };
    !object.metadata.is_ending()
        && gates.count() == 0
        && is("Ready", "False")
        && is("ContainersReady", "True")
}
