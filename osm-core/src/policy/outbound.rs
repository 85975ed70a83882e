//! How clients reach a service: where they connect, what hosts they may name, where their traffic goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{hosts, split::Forwards};
use crate::{
    facts::Service,
    ir::{
        ClusterEndpoints, ClusterKey, Endpoint, Forward, OutboundChain, OutboundRoutes, Protocol, ServiceKey,
        WeightedCluster,
    },
};

/// A pod that is ready to serve a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The service account it runs under, in the service's namespace.
    pub account: Arc<str>,
    /// The name of its own it has within a headless service.
    pub hostname: Option<Arc<str>>,
    /// Its addresses, ordered.
    pub addresses: BTreeSet<IpAddr>,
    /// The ports it listens on, one for each port of the service; `None` where it has none.
    pub ports: Vec<Option<u16>>,
}

/// A port and the addresses at which clients connect to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    /// The pod's own name, at the door of one pod of a headless service.
    pub hostname: Option<Arc<str>>,
    /// The service port it belongs to.
    pub port: u16,
    /// The port clients connect to: the service port, or the pods' own where the service is headless, since nothing
    /// translates it then.
    pub number: u16,
    /// The addresses, and for those of pods the service account.
    pub addresses: BTreeMap<IpAddr, Option<Arc<str>>>,
}

/// The doors of a service: its cluster IPs, or its ready pods if it is headless. Ordered by service port, hostname and
/// number; without addresses there is no door.
///
/// A pod that has a name of its own has a door of its own: who connects to it wants that pod, whichever of the
/// service's names led there.
pub fn doors<'a>(service: &Service, ready: impl Iterator<Item = &'a Ready> + Clone) -> Vec<Door> {
    let mut doors = BTreeMap::<_, BTreeMap<IpAddr, Option<Arc<str>>>>::new();
    for (index, port) in service.ports.iter().enumerate() {
        if !service.headless {
            let addresses = service.addresses.iter().map(|address| (*address, None)).collect();
            doors.insert((port.number, None, port.number), addresses);
            continue;
        }
        for pod in ready.clone() {
            if let Some(number) = pod.ports.get(index).copied().flatten() {
                let door = doors
                    .entry((port.number, pod.hostname.clone(), number))
                    .or_default();
                door.extend(
                    pod.addresses
                        .iter()
                        .map(|address| (*address, Some(pod.account.clone()))),
                );
            }
        }
    }
    let doors = doors.into_iter().filter(|(_, addresses)| !addresses.is_empty());
    doors
        .map(|((port, hostname, number), addresses)| Door {
            hostname,
            port,
            number,
            addresses,
        })
        .collect()
}

/// The endpoints of a cluster of `service`: its ready pods, one address each, IPv4 first; only those of the `allowed`
/// service accounts if given.
pub fn endpoints<'a>(
    service: &Service,
    ready: impl Iterator<Item = &'a Ready>,
    key: &ClusterKey,
    allowed: Option<&BTreeSet<Arc<str>>>,
) -> ClusterEndpoints {
    let mut endpoints = BTreeSet::new();
    for pod in ready {
        let mine = key.service.hostname.is_none() || key.service.hostname == pod.hostname;
        let allowed = allowed.is_none_or(|allowed| allowed.contains(&pod.account));
        let (true, true, Some(address)) = (mine, allowed, pod.addresses.first()) else {
            continue;
        };
        let ports = service
            .ports
            .iter()
            .zip(&pod.ports)
            .filter(|(port, _)| port.target == key.target_port);
        endpoints.extend(ports.filter_map(|(_, port)| {
            Some(Endpoint {
                address: *address,
                port: (*port)?,
            })
        }));
    }
    ClusterEndpoints {
        key: key.clone(),
        endpoints: endpoints.into_iter().collect(),
    }
}

/// Everything clients need of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The service.
    pub service: Arc<Service>,
    /// Where clients connect; no two doors of the mesh have an address and a port in common.
    pub doors: Vec<Door>,
    /// Where traffic goes that comes through doors without a hostname.
    pub forwards: Forwards,
}

impl Outbound {
    /// The key of the service, or of its pod, that is behind a door.
    pub fn key(&self, door: &Door) -> ServiceKey {
        match &door.hostname {
            Some(hostname) => self.service.key().pod(hostname.clone()),
            None => self.service.key(),
        }
    }

    /// The clusters behind a door, and their shares.
    pub fn clusters(&self, door: &Door) -> BTreeMap<ClusterKey, u32> {
        self.shares(&self.key(door), door.port)
    }

    fn shares(&self, key: &ServiceKey, port: u16) -> BTreeMap<ClusterKey, u32> {
        if key.hostname.is_none() {
            return self.forwards.get(&port).cloned().unwrap_or_default();
        }
        let own = |port: &crate::facts::service::ServicePort| {
            (
                ClusterKey {
                    service: key.clone(),
                    target_port: port.target.clone(),
                },
                1,
            )
        };
        self.service.port(port).map(own).into_iter().collect()
    }

    fn protocol(&self, door: &Door) -> Protocol {
        self.service
            .port(door.port)
            .map_or(Protocol::Tcp, |port| port.protocol)
    }

    /// Whether requests, not just connections, come through a door.
    pub fn has_routes(&self, door: &Door) -> bool {
        self.protocol(door).is_http()
    }

    /// The filter chain of a door; `None` when no address is left.
    ///
    /// Addresses of pods whose service account is not `allowed` are left out.
    pub fn chain(&self, door: &Door, allowed: impl Fn(&str) -> bool) -> Option<OutboundChain> {
        let open = |account: &Option<Arc<str>>| account.as_deref().is_none_or(&allowed);
        let addresses = door.addresses.iter().filter(|(_, account)| open(account));
        let addresses: Vec<IpAddr> = addresses.map(|(address, _)| *address).collect();
        let clusters = self.clusters(door);
        if addresses.is_empty() || clusters.is_empty() {
            return None;
        }
        let (key, protocol) = (self.key(door), self.protocol(door));
        // Where pods of a headless service name different numbers, each has its own chain.
        let suffix = if door.number == door.port {
            String::new()
        } else {
            format!("_{}", door.number)
        };
        Some(OutboundChain {
            name: format!("outbound_{key}_{}_{protocol}{suffix}", door.port),
            port: door.number,
            addresses,
            protocol,
            forward: if protocol.is_http() {
                Forward::Routes(routes_name(&key, door.port))
            } else {
                Forward::Clusters(weighted(&clusters))
            },
        })
    }

    /// The routes of a service port, for clients of the same namespace (`local`) or others.
    pub fn routes(&self, key: &ServiceKey, port: u16, local: bool) -> OutboundRoutes {
        let mut ports = BTreeSet::from([port]);
        let doors = self
            .doors
            .iter()
            .filter(|door| door.port == port && door.hostname == key.hostname);
        ports.extend(doors.map(|door| door.number));
        let mut domains = hosts::of(key, &self.service.addresses, &ports, local);
        if key.hostname.is_some() {
            domains.append(&mut hosts::of(&self.service.key(), &[], &ports, local));
        }
        OutboundRoutes {
            name: routes_name(key, port),
            virtual_host: format!("outbound_virtual-host|{}", key.fqdn()),
            domains: domains.into_iter().collect(),
            clusters: weighted(&self.shares(key, port)),
        }
    }
}

/// The name of the route configuration of a service port.
pub fn routes_name(key: &ServiceKey, port: u16) -> String {
    format!("rds-outbound.{key}|{port}")
}

fn weighted(shares: &BTreeMap<ClusterKey, u32>) -> Vec<WeightedCluster> {
    let weighted = |(key, weight): (&ClusterKey, &u32)| WeightedCluster {
        cluster: key.to_string(),
        weight: *weight,
    };
    let mut clusters: Vec<_> = shares.iter().map(weighted).collect();
    clusters.sort();
    clusters
}
