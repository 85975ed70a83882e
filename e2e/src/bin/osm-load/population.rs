//! The mesh that is loaded onto the API server: how many services, pods and policies, and who may call whom.
//!
//! Owns the objects' content. Everything follows from [`Size`], so that two runs have the same mesh. Service 0 is the hub:
//! many call it, which makes the fan-out uneven; every other service is called by a few, chosen by a fixed scramble.

use std::{collections::BTreeSet, net::Ipv4Addr};

use osm_core::{
    api::labels,
    identity::{ProxyIdentity, ServiceIdentity},
};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// The mesh's name.
pub(crate) const MESH: &str = "osm";
/// The control plane's namespace.
pub(crate) const CONTROL_PLANE: &str = "osm-system";
/// The service that many call.
pub(crate) const HUB: usize = 0;
/// Services of one namespace.
const NEIGHBOURS: usize = 100;
/// The port of every service.
const PORT: u16 = 80;
/// The port of every pod.
const TARGET_PORT: u16 = 8080;

/// How large the mesh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Size {
    /// Services.
    pub(crate) services: usize,
    /// Pods, each with a proxy, spread evenly over the services.
    pub(crate) proxies: usize,
    /// Services that each service may call, besides the hub.
    pub(crate) upstreams: usize,
    /// Services that may call the hub.
    pub(crate) hub_callers: usize,
}

/// An object to be written: where, what, and its status if it has one of its own.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    /// The collection's path.
    pub(crate) collection: String,
    /// The object.
    pub(crate) body: Value,
    /// The status, written after the object.
    pub(crate) status: Option<Value>,
}

impl Size {
    /// The pods of a service: numbers in the order of all proxies.
    pub(crate) fn pods(&self, service: usize) -> std::ops::Range<usize> {
        let bound = |service: usize| service * self.proxies / self.services;
        bound(service)..bound(service + 1)
    }

    /// The service of a proxy.
    pub(crate) fn service_of(&self, proxy: usize) -> usize {
        let guess = proxy * self.services / self.proxies;
        let near = guess.saturating_sub(1)..=(guess + 1).min(self.services - 1);
        near.into_iter()
            .find(|service| self.pods(*service).contains(&proxy))
            .unwrap_or(guess)
    }

    /// The services that `service` may call.
    pub(crate) fn upstreams_of(&self, service: usize) -> BTreeSet<usize> {
        let mut upstreams = BTreeSet::new();
        let mut state = service as u64 + 1;
        while upstreams.len() < self.upstreams.min(self.services.saturating_sub(2)) {
            state = scramble(state);
            let upstream = usize::try_from(state % self.services as u64).unwrap_or(HUB);
            if upstream != service && upstream != HUB {
                upstreams.insert(upstream);
            }
        }
        if service != HUB && service <= self.hub_callers {
            upstreams.insert(HUB);
        }
        upstreams
    }

    /// The services that may call each service.
    fn callers(&self) -> Vec<Vec<usize>> {
        let mut callers = vec![Vec::new(); self.services];
        for service in 0..self.services {
            for upstream in self.upstreams_of(service) {
                callers[upstream].push(service);
            }
        }
        callers
    }

    /// Who a proxy is.
    pub(crate) fn identity(&self, proxy: usize) -> ProxyIdentity {
        let service = self.service_of(proxy);
        ProxyIdentity {
            uuid: proxy_uuid(proxy),
            service: ServiceIdentity::new(namespace(service), name(service)),
        }
    }

    /// The namespaces, the control plane's first.
    pub(crate) fn namespaces(&self) -> Vec<Object> {
        let mut all = vec![object(
            "/api/v1/namespaces",
            json!({"metadata": {"name": CONTROL_PLANE}}),
        )];
        for first in (0..self.services).step_by(NEIGHBOURS) {
            let labels = json!({labels::MONITORED_BY: MESH});
            let body = json!({"metadata": {"name": namespace(first), "labels": labels}});
            all.push(object("/api/v1/namespaces", body));
        }
        all
    }

    /// Everything else, in an order in which it can be written.
    pub(crate) fn objects(&self) -> Vec<Object> {
        let mut all = Vec::new();
        let callers = self.callers();
        for (service, callers) in callers.iter().enumerate() {
            let (namespace, name) = (namespace(service), name(service));
            all.push(object(
                &format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
                json!({"metadata": {"name": name}}),
            ));
            all.push(object(
                &format!("/api/v1/namespaces/{namespace}/services"),
                json!({
                    "metadata": {"name": name},
                    "spec": {
                        "selector": {"app": name},
                        "ports": [{
                            "name": "http", "port": PORT, "targetPort": TARGET_PORT, "appProtocol": "http"
                        }],
                    },
                }),
            ));
            all.push(routes(service));
            if !callers.is_empty() {
                all.push(object(
                    &format!("/apis/access.smi-spec.io/v1alpha3/namespaces/{namespace}/traffictargets"),
                    target(service, callers),
                ));
            }
        }
        for service in 0..self.services {
            all.extend(self.pods(service).map(|proxy| pod(service, proxy)));
            all.push(self.slice(service));
        }
        all
    }

    /// The EndpointSlice of a service, all its pods ready.
    fn slice(&self, service: usize) -> Object {
        let (namespace, name) = (namespace(service), name(service));
        let endpoint = |proxy| {
            json!({
                "addresses": [address(proxy).to_string()],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod_name(proxy)},
            })
        };
        let endpoints: Vec<_> = self.pods(service).map(endpoint).collect();
        let body = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
        });
        object(&slices(&namespace), body)
    }

    /// The TrafficTarget that lets these call a service.
    pub(crate) fn target(&self, service: usize, callers: &[usize]) -> Value {
        target(service, callers)
    }

    /// The services that may call `service`.
    pub(crate) fn callers_of(&self, service: usize) -> Vec<usize> {
        (0..self.services)
            .filter(|other| self.upstreams_of(*other).contains(&service))
            .collect()
    }
}

/// A TrafficSplit of the hub: most of it to itself, the rest to another service.
pub(crate) fn split(other: usize, weight: usize) -> Object {
    let namespace = namespace(HUB);
    let body = json!({
        "apiVersion": "split.smi-spec.io/v1alpha2",
        "kind": "TrafficSplit",
        "metadata": {"name": "hub"},
        "spec": {
            "service": name(HUB),
            "backends": [
                {"service": name(HUB), "weight": 100 - weight},
                {"service": name(other), "weight": weight},
            ],
        },
    });
    object(
        &format!("/apis/split.smi-spec.io/v1alpha2/namespaces/{namespace}/trafficsplits"),
        body,
    )
}

/// The MeshConfig.
pub(crate) fn mesh_config(permissive: bool) -> Object {
    let body = json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2",
        "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config"},
        "spec": {
            "traffic": {"enablePermissiveTrafficPolicyMode": permissive, "enableEgress": false},
            "certificate": {"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048},
            "featureFlags": {},
        },
    });
    object(
        &format!("/apis/config.openservicemesh.io/v1alpha2/namespaces/{CONTROL_PLANE}/meshconfigs"),
        body,
    )
}

/// The namespace of a service.
pub(crate) fn namespace(service: usize) -> String {
    format!("load-{}", service / NEIGHBOURS)
}

/// The name of a service, of its account and of its pods' `app` label.
pub(crate) fn name(service: usize) -> String {
    format!("service-{service}")
}

/// The path of a namespace's EndpointSlices.
fn slices(namespace: &str) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices")
}

/// The path of a service's EndpointSlice.
pub(crate) fn slice_path(service: usize) -> String {
    format!("{}/{}", slices(&namespace(service)), name(service))
}

/// The name of a proxy's pod.
pub(crate) fn pod_name(proxy: usize) -> String {
    format!("pod-{proxy}")
}

/// The address of a proxy's pod.
pub(crate) fn address(proxy: usize) -> Ipv4Addr {
    let number = u32::try_from(proxy).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits().wrapping_add(number))
}

fn proxy_uuid(proxy: usize) -> Uuid {
    // The version and variant bits are those of a random uuid.
    Uuid::from_u128(0x6a1e_9e6b_0000_4000_8000_0000_0000_0000 | proxy as u128)
}

/// An xorshift: the same on every machine.
fn scramble(mut state: u64) -> u64 {
    state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state ^= state >> 29;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^ (state >> 32)
}

/// An object without a status.
pub(crate) fn object(collection: &str, body: Value) -> Object {
    Object {
        collection: collection.to_owned(),
        body,
        status: None,
    }
}

fn routes(service: usize) -> Object {
    let namespace = namespace(service);
    object(
        &format!("/apis/specs.smi-spec.io/v1alpha4/namespaces/{namespace}/httproutegroups"),
        json!({
            "apiVersion": "specs.smi-spec.io/v1alpha4",
            "kind": "HTTPRouteGroup",
            "metadata": {"name": name(service)},
            "spec": {"matches": [
                {"name": "read", "pathRegex": "/api/.*", "methods": ["GET"]},
                {"name": "write", "pathRegex": "/api/items/.*", "methods": ["POST", "PUT"],
                 "headers": [{"client-app": "load"}]},
            ]},
        }),
    )
}

fn target(service: usize, callers: &[usize]) -> Value {
    let source = |caller: &usize| json!({"kind": "ServiceAccount", "name": name(*caller), "namespace": namespace(*caller)});
    let sources: Vec<_> = callers.iter().map(source).collect();
    json!({
        "apiVersion": "access.smi-spec.io/v1alpha3",
        "kind": "TrafficTarget",
        "metadata": {"name": name(service)},
        "spec": {
            "destination": {"kind": "ServiceAccount", "name": name(service), "namespace": namespace(service)},
            "rules": [{"kind": "HTTPRouteGroup", "name": name(service), "matches": ["read", "write"]}],
            "sources": sources,
        },
    })
}

/// A pod as the injector leaves it and a kubelet reports it, in the parts that take room.
pub(crate) fn pod(service: usize, proxy: usize) -> Object {
    let (namespace, name) = (namespace(service), name(service));
    let address = address(proxy).to_string();
    let probe = |port: u16| json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 10});
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let limits = json!({"requests": {"cpu": "10m", "memory": "64Mi"}});
    let body = json!({
        "metadata": {
            "name": pod_name(proxy),
            "labels": {"app": name, labels::PROXY_UUID: proxy_uuid(proxy).to_string(), "pod-template-hash": "5d4f8c7b9"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "15010", "prometheus.io/path": "/stats/prometheus"},
        },
        "spec": {
            "serviceAccountName": name,
            "automountServiceAccountToken": false,
            "nodeName": format!("node-{}", proxy % 100),
            "initContainers": [{
                "name": "osm-init", "image": "openservicemesh/osm-sidecar:v2.0.0", "args": ["redirect"],
                "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}, "runAsUser": 0},
            }],
            "containers": [
                {
                    "name": "app", "image": "example/app:1", "resources": limits,
                    "ports": [{"name": "http", "containerPort": TARGET_PORT}],
                    "env": [{"name": "POD", "valueFrom": field("metadata.name")}],
                    "livenessProbe": probe(15901), "readinessProbe": probe(15902),
                },
                {
                    "name": "envoy", "image": "envoyproxy/envoy:v1.40.0", "resources": limits,
                    "args": ["--log-level", "error", "--config-path", "/etc/envoy/bootstrap.yaml",
                             "--service-cluster", format!("{name}.{namespace}")],
                    "ports": [
                        {"name": "proxy-admin", "containerPort": 15000}, {"name": "proxy-inbound", "containerPort": 15003},
                        {"name": "proxy-metrics", "containerPort": 15010},
                    ],
                    "env": [
                        {"name": "POD_UID", "valueFrom": field("metadata.uid")},
                        {"name": "POD_NAME", "valueFrom": field("metadata.name")},
                        {"name": "POD_IP", "valueFrom": field("status.podIP")},
                    ],
                    "volumeMounts": [{"name": "envoy-bootstrap-config-volume", "mountPath": "/etc/envoy", "readOnly": true}],
                },
            ],
            "volumes": [{"name": "envoy-bootstrap-config-volume", "secret": {
                "secretName": format!("envoy-bootstrap-config-{}", proxy_uuid(proxy))}}],
        },
    });
    let container = |name: &str| json!({"name": name, "ready": true, "started": true, "restartCount": 0, "image": "i", "imageID": "i", "state": {"running": {}}});
    let condition = |name: &str| json!({"type": name, "status": "True"});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let containers = ["app", "envoy"].map(container);
    let status = json!({
        "phase": "Running",
        "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.0.0.1",
        "conditions": conditions,
        "containerStatuses": containers,
    });
    Object {
        collection: format!("/api/v1/namespaces/{namespace}/pods"),
        body,
        status: Some(json!({ "status": status })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        services: 30,
        proxies: 100,
        upstreams: 3,
        hub_callers: 10,
    };

    #[test]
    fn every_proxy_is_of_the_service_that_lists_it() {
        let mut seen = 0;
        for service in 0..SIZE.services {
            for proxy in SIZE.pods(service) {
                assert_eq!(SIZE.service_of(proxy), service);
                seen += 1;
            }
        }
        assert_eq!(seen, SIZE.proxies);
    }

    #[test]
    fn the_hub_is_called_by_as_many_as_stated_and_others_by_their_share() {
        assert_eq!(SIZE.callers_of(HUB).len(), SIZE.hub_callers);
        assert_eq!(SIZE.callers()[HUB], SIZE.callers_of(HUB));
        for service in 1..SIZE.services {
            let upstreams = SIZE.upstreams_of(service);
            let others = upstreams.iter().filter(|other| **other != HUB).count();
            assert_eq!(others, SIZE.upstreams);
            assert!(!upstreams.contains(&service));
        }
    }

    #[test]
    fn addresses_and_uuids_differ() {
        let addresses: BTreeSet<_> = (0..20_000).map(address).collect();
        let uuids: BTreeSet<_> = (0..SIZE.proxies).map(proxy_uuid).collect();
        assert_eq!((addresses.len(), uuids.len()), (20_000, SIZE.proxies));
    }
}
