//! What a proxy lets into its application.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Access, hosts};
use crate::{
    facts::{Service, service::ServicePort},
    identity::TrustDomain,
    ir::{
        ClusterKey, Forward, HttpMatch, InboundChain, InboundListener, InboundRoute, InboundRoutes,
        InboundVirtualHost, ServiceKey, TargetPort, WeightedCluster,
    },
};

/// How a pod stands behind a service, as far as pods of one service may differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backing {
    /// The pod's own name within the service, if that is headless.
    pub hostname: Option<Arc<str>>,
    /// The numbers the pod gives to the named target ports of the service; what it does not know is missing.
    pub ports: BTreeMap<Arc<str>, u16>,
}

impl Backing {
    /// The port the pod listens on for a service port.
    pub fn resolve(&self, target: &TargetPort) -> Option<u16> {
        match target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => self.ports.get(name).copied(),
        }
    }
}

/// A service that a proxy's pod is behind.
#[derive(Clone, Debug)]
pub struct Own<'a> {
    /// The service.
    pub service: &'a Service,
    /// How the pod is behind it.
    pub backing: &'a Backing,
    /// The services whose splits name it as a backend: requests to them arrive here under their names.
    pub apexes: Vec<&'a Service>,
}

/// Everything inbound of a class of proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// The listener.
    pub listener: InboundListener,
    /// The routes by port.
    pub routes: BTreeMap<u16, InboundRoutes>,
    /// The application's own clusters, and the ports it listens on.
    pub locals: BTreeMap<ClusterKey, u16>,
}

/// What a proxy behind the services `own`, ordered by name, lets in: what `access` allows, or everyone in the mesh if
/// that is `None` (permissive mode).
///
/// Of two ports of a service that lead to one port of the pod, the lower counts. Of two services that answer to one
/// host on one port of the pod, the one whose own name it is keeps it, else the first.
pub fn of(own: &[Own<'_>], access: Option<&Access>, trust_domain: &TrustDomain) -> Inbound {
    let mut inbound = Inbound::default();
    inbound.listener.trust_domain = trust_domain.clone();
    let mut hosts = BTreeMap::<u16, Vec<VirtualHost<'_>>>::new();
    for own in own {
        let mut keys = vec![own.service.key()];
        keys.extend(
            own.backing
                .hostname
                .iter()
                .map(|hostname| own.service.key().pod(hostname.clone())),
        );
        for key in keys {
            let mut taken = BTreeMap::<u16, bool>::new();
            for port in &own.service.ports {
                let Some(number) = own.backing.resolve(&port.target) else {
                    continue;
                };
                let is_http = port.protocol.is_http();
                if *taken.entry(number).or_insert(is_http) != is_http {
                    continue;
                }
                let cluster = ClusterKey {
                    service: key.clone(),
                    target_port: port.target.clone(),
                };
                let virtual_hosts = hosts.entry(number).or_default();
                let known = inbound
                    .listener
                    .chains
                    .iter()
                    .any(|chain| chain.port == number && chain.server_name == key.fqdn());
                if !known {
                    inbound
                        .listener
                        .chains
                        .push(chain(&key, port, number, &cluster, access));
                    if is_http {
                        virtual_hosts.push(VirtualHost {
                            key: key.clone(),
                            own,
                            ports: Vec::new(),
                            cluster: cluster.local(),
                        });
                    }
                    inbound.locals.insert(cluster, number);
                }
                if let Some(host) = virtual_hosts.iter_mut().find(|host| host.key == key) {
                    host.ports.push(port);
                }
            }
        }
    }
    inbound.listener.chains.sort_by(|a, b| a.name.cmp(&b.name));
    let routes = access.map_or_else(everyone, |access| access.routes.clone());
    for (number, virtual_hosts) in hosts {
        if !virtual_hosts.is_empty() {
            let name = routes_name(number);
            let virtual_hosts = named(number, &virtual_hosts, &routes);
            inbound
                .routes
                .insert(number, InboundRoutes { name, virtual_hosts });
        }
    }
    inbound
}

/// The name of the route configuration of a port.
pub fn routes_name(number: u16) -> String {
    format!("rds-inbound.{number}")
}

fn everyone() -> Vec<InboundRoute> {
    vec![InboundRoute {
        request: HttpMatch::default(),
        principals: None,
    }]
}

fn chain(
    key: &ServiceKey,
    port: &ServicePort,
    number: u16,
    cluster: &ClusterKey,
    access: Option<&Access>,
) -> InboundChain {
    let is_http = port.protocol.is_http();
    InboundChain {
        name: format!("inbound_{key}_{}_{}", port.target, port.protocol),
        port: number,
        server_name: key.fqdn(),
        forward: if is_http {
            Forward::Routes(routes_name(number))
        } else {
            Forward::Clusters(vec![WeightedCluster {
                cluster: cluster.local(),
                weight: 1,
            }])
        },
        judges_paths: is_http
            && access.is_some_and(|access| access.routes.iter().any(|route| route.request.path.is_some())),
        access: access.map(|access| {
            if is_http {
                access.http.clone()
            } else {
                access.tcp.clone()
            }
        }),
    }
}

/// A service, or the pod by its own name, on one port of the pod.
struct VirtualHost<'a> {
    key: ServiceKey,
    own: &'a Own<'a>,
    /// The service ports that lead here.
    ports: Vec<&'a ServicePort>,
    cluster: String,
}

fn named(number: u16, hosts: &[VirtualHost<'_>], routes: &[InboundRoute]) -> Vec<InboundVirtualHost> {
    let mut taken = BTreeSet::new();
    let mut all: Vec<(&VirtualHost<'_>, Vec<String>)> = Vec::new();
    // Own names first: an apex may be one of the pod's own services.
    for host in hosts {
        let mut ports: BTreeSet<u16> = host.ports.iter().map(|port| port.number).collect();
        if host.own.service.headless {
            ports.insert(number);
        }
        let domains = hosts::of(&host.key, &host.own.service.addresses, &ports, true);
        all.push((
            host,
            domains
                .into_iter()
                .filter(|domain| taken.insert(domain.clone()))
                .collect(),
        ));
    }
    for (host, domains) in &mut all {
        if host.key.hostname.is_some() {
            continue;
        }
        for apex in &host.own.apexes {
            let ports = host.ports.iter().map(|port| port.number);
            let ports: BTreeSet<u16> = ports.filter(|port| apex.port(*port).is_some()).collect();
            if !ports.is_empty() {
                let apex = hosts::of(&apex.key(), &apex.addresses, &ports, true);
                domains.extend(apex.into_iter().filter(|domain| taken.insert(domain.clone())));
            }
        }
        domains.sort();
    }
    let host = |(host, domains): (&VirtualHost<'_>, Vec<String>)| InboundVirtualHost {
        name: format!("inbound_virtual-host|{}", host.key.fqdn()),
        domains,
        routes: routes.to_vec(),
        cluster: host.cluster.clone(),
    };
    let mut hosts: Vec<_> = all
        .into_iter()
        .filter(|(_, domains)| !domains.is_empty())
        .map(host)
        .collect();
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts
}
