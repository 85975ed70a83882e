//! From keys to resources: policy decides, `envoy` builds, `resource` encodes.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    services::Services,
    slots::{Allowed, SlotKey},
};
use crate::{
    api::names,
    envoy,
    facts::MeshConfig,
    identity::{ServiceIdentity, TrustDomain},
    ir::{
        InboundListener, InboundRoutes, LocalCluster, OutboundListener, ServiceCertificate, ServiceKey,
        Settings, UpstreamCluster, ValidationContext,
    },
    policy::outbound,
    resource::{Resource, ResourceType},
};

/// What resources are built from, besides policy.
pub(super) struct Materials<'a> {
    pub(super) services: &'a Services,
    pub(super) config: &'a MeshConfig,
    pub(super) trust_domain: &'a TrustDomain,
    pub(super) roots: Option<&'a Arc<str>>,
    pub(super) certificates: &'a BTreeMap<ServiceIdentity, ServiceCertificate>,
}

/// The resource of a key; `None` while what it is made of is missing, and for listeners and inbound routes, which are
/// built where their classes and audiences are.
pub(super) fn resource(key: &SlotKey, materials: &Materials<'_>) -> Option<Arc<Resource>> {
    use ResourceType::{Cluster, Endpoint, Listener, Route, Secret};
    let settings = &materials.config.settings;
    let (kind, name) = (key.kind(), key.name());
    Some(match key {
        SlotKey::Passthrough => Resource::new(Cluster, name, &envoy::passthrough_cluster()),
        SlotKey::Metrics => Resource::new(Cluster, name, &envoy::metrics_cluster()),
        SlotKey::Tracing => Resource::new(Cluster, name, &envoy::tracing_cluster(settings.tracing.as_ref()?)),
        SlotKey::ExternalAuthorization => {
            let server = settings.external_authorization.as_ref()?;
            Resource::new(Cluster, name, &envoy::external_authorization_cluster(server))
        }
        SlotKey::Prometheus(ipv6) => Resource::new(Listener, name, &envoy::prometheus_listener(*ipv6)),
        SlotKey::Cluster(key, allowed) => {
            let cluster = UpstreamCluster {
                key: key.clone(),
                servers: servers(&key.service, allowed, materials),
            };
            Resource::new(Cluster, name, &envoy::upstream_cluster(&cluster, settings))
        }
        SlotKey::Local(key, port) => {
            let cluster = LocalCluster {
                name: key.local(),
                port: *port,
            };
            Resource::new(Cluster, name, &envoy::local_cluster(&cluster))
        }
        SlotKey::Endpoints(key, allowed) => {
            let node = materials
                .services
                .nodes
                .get(&(key.service.namespace.clone(), key.service.name.clone()))?;
            let endpoints = outbound::endpoints(&node.service, node.ready.values(), key, allowed.as_deref());
            Resource::new(Endpoint, name, &envoy::endpoints(&endpoints))
        }
        SlotKey::Routes(key, port, local) => {
            let outbound = materials
                .services
                .outbounds
                .get(&(key.namespace.clone(), key.name.clone()))?;
            Resource::new(
                Route,
                name,
                &envoy::outbound_routes(&outbound.routes(key, *port, *local)),
            )
        }
        SlotKey::OutboundRoots | SlotKey::InboundRoots => {
            let context = ValidationContext {
                name: name.to_string(),
                roots: materials.roots?.clone(),
            };
            Resource::new(Secret, name, &envoy::validation_context(&context))
        }
        SlotKey::Certificate(identity) => {
            let certificate = materials.certificates.get(identity)?;
            Resource::new(Secret, name, &envoy::service_certificate(certificate))
        }
        SlotKey::OutboundListener(..) | SlotKey::InboundListener(_) | SlotKey::InboundRoutes(..) => {
            debug_assert!(false, "{kind:?} {name} is built elsewhere");
            return None;
        }
    })
}

/// The names that a server behind the service may have; none when no pod is behind it.
///
/// Also for one pod of a headless service those of all its pods: a pod that is not ready for a moment is none that can be
/// found by its host name, and its cluster would be replaced each time.
fn servers(key: &ServiceKey, allowed: &Allowed, materials: &Materials<'_>) -> Vec<String> {
    let node = materials
        .services
        .nodes
        .get(&(key.namespace.clone(), key.name.clone()));
    let accounts = node
        .into_iter()
        .flat_map(|node| &node.accounts)
        .filter(|account| allowed.as_ref().is_none_or(|allowed| allowed.contains(*account)));
    let identity = |account: &Arc<str>| ServiceIdentity::new(key.namespace.clone(), account.clone());
    let mut servers: Vec<_> = accounts
        .map(|account| identity(account).principal(materials.trust_domain))
        .collect();
    servers.sort();
    servers
}

pub(super) fn outbound_listener(listener: &OutboundListener, settings: &Settings) -> Arc<Resource> {
    let message = envoy::outbound_listener(listener, settings);
    Resource::new(ResourceType::Listener, names::OUTBOUND_LISTENER, &message)
}

pub(super) fn inbound_listener(listener: &InboundListener, settings: &Settings) -> Arc<Resource> {
    let message = envoy::inbound_listener(listener, settings);
    Resource::new(ResourceType::Listener, names::INBOUND_LISTENER, &message)
}

pub(super) fn inbound_routes(routes: &InboundRoutes) -> Arc<Resource> {
    Resource::new(
        ResourceType::Route,
        routes.name.as_str(),
        &envoy::inbound_routes(routes),
    )
}
