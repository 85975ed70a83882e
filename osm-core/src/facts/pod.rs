//! Pods: the proxies of the mesh.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, de::IgnoredAny};
use uuid::Uuid;

use super::{Diagnostic, Fact, FactKey, FactKind, created, excerpt, lean, service::port_number};
use crate::{
    api::{annotations, labels},
    identity::{ServiceIdentity, is_dns_label, is_dns_subdomain},
};

/// What is decoded of a Pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Object {
    #[serde(default, deserialize_with = "lean::metadata")]
    metadata: ObjectMeta,
    spec: Option<Spec>,
    status: Option<Status>,
}

lean::lean!(Object, v1::Pod);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    service_account: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    readiness_gates: Option<Vec<IgnoredAny>>,
    hostname: Option<String>,
    subdomain: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    ports: Option<Vec<v1::ContainerPort>>,
    restart_policy: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<v1::PodIP>>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Deserialize)]
struct Condition {
    r#type: String,
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
    let namespace: Arc<str> = metadata.namespace.as_deref().unwrap_or("").into();
    let name: Arc<str> = metadata.name.as_deref().unwrap_or("").into();
    let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
    let ended = matches!(phase, Some("Succeeded" | "Failed"));
    let label = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(labels::PROXY_UUID));
    let proxy = match label {
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
    let account = spec
        .service_account_name
        .as_deref()
        .or(spec.service_account.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    // Both enter principals; the API server lets nothing else through.
    if !is_dns_label(namespace) || !is_dns_subdomain(account) {
        return None;
    }
    let status = object.status.as_ref();
    let list = status
        .and_then(|status| status.pod_ips.as_ref())
        .into_iter()
        .flatten()
        .map(|ip| ip.ip.as_str());
    let single = status.and_then(|status| status.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> = list
        .chain(single)
        .filter_map(|address| address.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    // Restartable init containers are sidecars: they serve too.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut ports = BTreeMap::new();
    for port in spec
        .containers
        .iter()
        .flatten()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
    {
        let tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        if let (true, Some(name), Some(number)) = (tcp, &port.name, port_number(port.container_port)) {
            ports.entry(name.as_str().into()).or_insert(number);
        }
    }
    let scrape = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|map| map.get(annotations::PROMETHEUS_SCRAPE));
    let text = |text: &Option<String>| text.as_deref().filter(|text| is_dns_label(text)).map(Into::into);
    Some(Proxy {
        uuid,
        uid: object.metadata.uid.as_deref().unwrap_or("").into(),
        created: created(&object.metadata),
        identity: ServiceIdentity::new(namespace.clone(), account),
        labels: object
            .metadata
            .labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
            .collect(),
        addresses,
        ports,
        hostname: text(&spec.hostname),
        subdomain: text(&spec.subdomain),
        scraped: scrape.is_some_and(|value| matches!(&**value, "1" | "t" | "T" | "true" | "TRUE" | "True")),
        doubted: is_doubted(object),
    })
}

/// The node lifecycle controller turns `Ready` alone; a kubelet turns `ContainersReady` with it. With readiness gates
/// `Ready` may be false for reasons of their own.
fn is_doubted(object: &Object) -> bool {
    let gates = object
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    let conditions = object
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let is = |kind: &str, status: &str| {
        let mut all = conditions.into_iter().flatten();
        all.any(|condition| condition.r#type == kind && condition.status == status)
    };
    object.metadata.deletion_timestamp.is_none()
        && gates.is_none_or(Vec::is_empty)
        && is("Ready", "False")
        && is("ContainersReady", "True")
}
