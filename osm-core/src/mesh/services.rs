//! The services of the mesh: the pods behind, the doors in front, where their traffic goes.
//!
//! Invariant: every value here is a function of the facts; a stage that finds its value unchanged marks nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    diagnostics::{Diagnostics, Stage},
    dirty::Dirty,
    slots::{SlotKey, Slots},
    tables::{Index, Name, Tables, link, unlink},
};
use crate::{
    facts::{FactKey, FactKind, Problem, Service, TrafficSplit, endpoint_slice::SliceEndpoint, pod::Proxy},
    identity::ServiceIdentity,
    ir::{ClusterKey, ServiceKey, TargetPort},
    policy::{
        Door, Outbound,
        outbound::{self, Ready},
        split,
    },
};

/// A service of the mesh.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) service: Arc<Service>,
    /// The service accounts of all pods behind it, ready or not: a peer is known before its first request.
    pub(super) accounts: BTreeSet<Arc<str>>,
    /// The pods that are ready, by name; if there are none, those that Kubernetes merely doubts.
    pub(super) ready: BTreeMap<Arc<str>, Ready>,
    /// The doors it would have if nobody else claimed them.
    wanted: Vec<Door>,
    /// The doors it has.
    doors: Vec<Door>,
}

/// Who would have a door: the oldest service first, then by name and port.
type Claimant = (i64, Name, u16);

/// All services of the mesh.
#[derive(Debug, Default)]
pub(super) struct Services {
    pub(super) nodes: BTreeMap<Name, Node>,
    /// Who claims an address and a port.
    claims: Index<(IpAddr, u16), Claimant>,
    /// The split that counts, by apex.
    pub(super) splits: BTreeMap<Name, Arc<TrafficSplit>>,
    /// The services whose splits name a service.
    pub(super) apexes: Index<Name, Name>,
    pub(super) outbounds: BTreeMap<Name, Outbound>,
    /// The services with pods of an identity, in its namespace.
    pub(super) by_account: Index<ServiceIdentity, Arc<str>>,
}

impl Services {
    /// Decides which split of each apex counts: the oldest, then the first by name.
    pub(super) fn split(&mut self, tables: &Tables, dirty: &mut Dirty, diagnostics: &mut Diagnostics) {
        for apex in std::mem::take(&mut dirty.apexes) {
            let counts = tables.monitored.contains(&apex.0);
            let splits: Vec<_> = tables.splits_by_apex.get(&apex).into_iter().flatten().collect();
            for (index, (_, name)) in splits.iter().enumerate() {
                let shadowed = (counts && index > 0).then(|| Problem {
                    reason: "SplitShadowed",
                    message: format!(
                        "TrafficSplit {} divides the traffic of {} already: this one does nothing",
                        splits[0].1, apex.1
                    ),
                });
                let key = FactKey::new(FactKind::TrafficSplit, apex.0.clone(), name.clone());
                diagnostics.set(Stage::Shadow, key, shadowed.into_iter().collect());
            }
            let first = splits.first().filter(|_| counts);
            let new = first.and_then(|(_, name)| tables.splits.get(&(apex.0.clone(), name.clone())));
            let old = self.splits.get(&apex);
            if old == new {
                continue;
            }
            if let Some(old) = old {
                let key = FactKey::new(FactKind::TrafficSplit, old.namespace.clone(), old.name.clone());
                diagnostics.set(Stage::Split, key, Vec::new());
            }
            for (split, is_new) in old
                .iter()
                .map(|old| (*old, false))
                .chain(new.iter().map(|new| (*new, true)))
            {
                for backend in split.backends.keys() {
                    let backend = (apex.0.clone(), backend.clone());
                    if is_new {
                        link(&mut self.apexes, backend.clone(), apex.clone());
                    } else {
                        unlink(&mut self.apexes, &backend, &apex);
                    }
                    // A backend answers to its apexes' hosts.
                    dirty.inbound.insert(backend);
                }
            }
            match new.cloned() {
                Some(new) => self.splits.insert(apex.clone(), new),
                None => self.splits.remove(&apex),
            };
            dirty.services.insert(apex.clone());
            dirty.outbound.insert(apex.clone());
            dirty.reached.insert(apex);
        }
    }

    /// Brings nodes up to date.
    pub(super) fn refresh(
        &mut self,
        tables: &Tables,
        slots: &Slots,
        dirty: &mut Dirty,
        diagnostics: &mut Diagnostics,
    ) {
        for name in std::mem::take(&mut dirty.services) {
            let new = self.derive(&name, tables);
            let old = self.nodes.remove(&name);
            if old.is_none() && new.is_none() {
                continue;
            }
            let fact = |node: &Option<Node>| node.as_ref().map(|node| Arc::clone(&node.service));
            if fact(&old) != fact(&new) {
                dirty.outbound.insert(name.clone());
                dirty
                    .outbound
                    .extend(self.apexes.get(&name).into_iter().flatten().cloned());
                dirty.inbound.insert(name.clone());
                let backends = self
                    .splits
                    .get(&name)
                    .into_iter()
                    .flat_map(|split| split.backends.keys());
                dirty
                    .inbound
                    .extend(backends.map(|backend| (name.0.clone(), backend.clone())));
                let members = tables.members.get(&name).into_iter().flatten();
                dirty
                    .pods
                    .extend(members.map(|pod| (name.0.clone(), pod.clone())));
                dirty.reached.insert(name.clone());
                let problems = new
                    .as_ref()
                    .map(|node| port_conflicts(&node.service))
                    .unwrap_or_default();
                diagnostics.set(Stage::Ports, service_key(&name), problems);
            }
            let (none, empty) = (BTreeSet::new(), BTreeMap::new());
            let before = old.as_ref().map_or(&none, |node| &node.accounts);
            let after = new.as_ref().map_or(&none, |node| &node.accounts);
            let ready_changed = old.as_ref().map_or(&empty, |node| &node.ready)
                != new.as_ref().map_or(&empty, |node| &node.ready);
            if before != after {
                let identity = |account: &Arc<str>| ServiceIdentity::new(name.0.clone(), account.clone());
                for account in before.difference(after) {
                    unlink(&mut self.by_account, &identity(account), &name.1);
                }
                for account in after.difference(before) {
                    link(&mut self.by_account, identity(account), name.1.clone());
                }
                dirty.reached.insert(name.clone());
                dirty.slots.extend(clusters(slots, &name));
            }
            if ready_changed {
                dirty.slots.extend(endpoints(slots, &name));
            }
            self.claim(&name, old.as_ref(), new.as_ref(), dirty);
            if let Some(mut node) = new {
                node.doors = old.map(|old| old.doors).unwrap_or_default();
                self.nodes.insert(name, node);
            }
        }
    }

    fn derive(&self, name: &Name, tables: &Tables) -> Option<Node> {
        let service = tables.services.get(name)?;
        let selects = !service.selector.is_empty() || self.splits.contains_key(name);
        if service.external || !selects || !tables.monitored.contains(&name.0) {
            return None;
        }
        let members = tables.members.get(name);
        let pod = |pod: &Arc<str>| tables.pods.get(&(name.0.clone(), pod.clone()));
        let accounts = members
            .into_iter()
            .flatten()
            .filter_map(pod)
            .map(|pod| pod.identity.name.clone())
            .collect();
        // With nobody else left, those whose nodes alone are in doubt: they are likelier to answer than nobody, and where
        // they are gone Envoy finds that out by itself.
        let mut ready = serving(name, service, tables, |endpoint, _| endpoint.ready);
        if ready.is_empty() {
            ready = serving(name, service, tables, |endpoint, pod| {
                !endpoint.ready && pod.doubted
            });
            #[cfg(feature = "sabotage")]
            if crate::sabotage::Fault::Credulous.is_on() {
                ready.clear();
            }
        }
        let wanted = outbound::doors(service, ready.values());
        Some(Node {
            service: Arc::clone(service),
            accounts,
            ready,
            wanted,
            doors: Vec::new(),
        })
    }

    fn claim(&mut self, name: &Name, old: Option<&Node>, new: Option<&Node>, dirty: &mut Dirty) {
        let claims = |node: Option<&Node>| -> BTreeMap<(IpAddr, u16), BTreeSet<Claimant>> {
            let mut claims = BTreeMap::<_, BTreeSet<_>>::new();
            for (node, door) in node
                .into_iter()
                .flat_map(|node| node.wanted.iter().map(move |door| (node, door)))
            {
                for address in door.addresses.keys() {
                    let claimant = (node.service.created, name.clone(), door.port);
                    claims
                        .entry((*address, door.number))
                        .or_default()
                        .insert(claimant);
                }
            }
            claims
        };
        let same = old.map(|node| (&node.wanted, node.service.created))
            == new.map(|node| (&node.wanted, node.service.created));
        if same {
            return;
        }
        dirty.doors.insert(name.clone());
        for (place, claimants) in claims(old) {
            for claimant in claimants {
                unlink(&mut self.claims, &place, &claimant);
            }
            dirty.doors.extend(
                self.claims
                    .get(&place)
                    .into_iter()
                    .flatten()
                    .map(|(_, other, _)| other.clone()),
            );
        }
        for (place, claimants) in claims(new) {
            dirty.doors.extend(
                self.claims
                    .get(&place)
                    .into_iter()
                    .flatten()
                    .map(|(_, other, _)| other.clone()),
            );
            for claimant in claimants {
                link(&mut self.claims, place, claimant);
            }
        }
    }

    /// Gives each door to the first who claims it.
    pub(super) fn open(&mut self, dirty: &mut Dirty, diagnostics: &mut Diagnostics) {
        for name in std::mem::take(&mut dirty.doors) {
            let Some(node) = self.nodes.get_mut(&name) else {
                diagnostics.set(Stage::Doors, service_key(&name), Vec::new());
                continue;
            };
            let mut problems = Vec::new();
            let mut doors = node.wanted.clone();
            for door in &mut doors {
                let (port, number) = (door.port, door.number);
                door.addresses.retain(|address, _| {
                    let owner = self.claims.get(&(*address, number)).and_then(|claimants| claimants.first());
                    let owned = owner.is_none_or(|(_, owner, other)| *owner == name && *other == port);
                    if let (false, Some((_, (namespace, other), other_port))) = (owned, owner) {
                        problems.push(Problem {
                            reason: "AddressConflict",
                            message: format!(
                                "port {port} is at {address}:{number}, and so is port {other_port} of the older service {namespace}/{other}: connections go to that one"
                            ),
                        });
                    }
                    owned
                });
            }
            doors.retain(|door| !door.addresses.is_empty());
            problems.truncate(MAX_CONFLICTS);
            diagnostics.set(Stage::Doors, service_key(&name), problems);
            if doors != node.doors {
                node.doors = doors;
                dirty.outbound.insert(name);
            }
        }
    }

    /// Brings where traffic goes up to date.
    pub(super) fn route(&mut self, slots: &Slots, dirty: &mut Dirty, diagnostics: &mut Diagnostics) {
        for name in std::mem::take(&mut dirty.outbound) {
            let split = self.splits.get(&name);
            let find = |backend: &str| {
                self.nodes
                    .get(&(name.0.clone(), backend.into()))
                    .map(|node| &*node.service)
            };
            let (new, mut problems) = match self.nodes.get(&name) {
                Some(node) => {
                    let (forwards, problems) =
                        split::forwards(&node.service, split.map(|split| &**split), find);
                    let outbound = Outbound {
                        service: Arc::clone(&node.service),
                        doors: node.doors.clone(),
                        forwards,
                    };
                    (Some(outbound), problems)
                }
                None => (None, Vec::new()),
            };
            if let Some(split) = split {
                if new.is_none() {
                    let message = format!("there is no service {}: the split does nothing", split.apex);
                    problems.push(Problem {
                        reason: "ApexNotFound",
                        message,
                    });
                }
                let key = FactKey::new(
                    FactKind::TrafficSplit,
                    split.namespace.clone(),
                    split.name.clone(),
                );
                diagnostics.set(Stage::Split, key, problems);
            }
            let old = self.outbounds.get(&name);
            if old == new.as_ref() {
                continue;
            }
            dirty.slots.extend(routes(slots, &name));
            if old.map(outline) != new.as_ref().map(outline) {
                dirty.mesh = true;
                dirty.reached.insert(name.clone());
            }
            match new {
                Some(new) => self.outbounds.insert(name, new),
                None => self.outbounds.remove(&name),
            };
        }
    }
}

/// The pods behind a service of which this holds, by name.
fn serving(
    name: &Name,
    service: &Service,
    tables: &Tables,
    holds: impl Fn(&SliceEndpoint, &Proxy) -> bool,
) -> BTreeMap<Arc<str>, Ready> {
    let members = tables.members.get(name);
    let mut serving = BTreeMap::<Arc<str>, Ready>::new();
    for slice in tables.slices_of.get(name).into_iter().flatten() {
        let Some(slice) = tables.slices.get(&(name.0.clone(), slice.clone())) else {
            continue;
        };
        let number = |port: &Arc<str>| {
            slice
                .ports
                .iter()
                .find(|(name, _)| name == port)
                .map(|(_, number)| *number)
        };
        for endpoint in &slice.endpoints {
            let member = members.is_some_and(|members| members.contains(&endpoint.pod));
            let pod = tables.pods.get(&(name.0.clone(), endpoint.pod.clone()));
            let Some(proxy) = pod.filter(|pod| member && holds(endpoint, pod)) else {
                continue;
            };
            if !endpoint.uid.is_empty() && endpoint.uid != proxy.uid {
                continue;
            }
            // A slice may be written by a tenant; the pod's addresses are the kubelet's word.
            let addresses: BTreeSet<IpAddr> = endpoint
                .addresses
                .iter()
                .filter(|address| proxy.addresses.contains(address))
                .copied()
                .collect();
            if addresses.is_empty() {
                continue;
            }
            let pod = serving.entry(endpoint.pod.clone()).or_insert_with(|| Ready {
                account: proxy.identity.name.clone(),
                hostname: None,
                addresses: BTreeSet::new(),
                ports: vec![None; service.ports.len()],
            });
            if service.headless && pod.hostname.is_none() {
                pod.hostname = endpoint.hostname.clone();
            }
            pod.addresses.extend(addresses);
            for (port, found) in service.ports.iter().zip(&mut pod.ports) {
                *found = found.or_else(|| number(&port.name));
            }
        }
    }
    serving
}

/// What a listener and a set of names show of a service's traffic.
fn outline(outbound: &Outbound) -> Vec<(&Door, Option<crate::ir::OutboundChain>, BTreeSet<ClusterKey>)> {
    let doors = outbound.doors.iter();
    doors
        .map(|door| {
            (
                door,
                outbound.chain(door, |_| true),
                outbound.clusters(door).into_keys().collect(),
            )
        })
        .collect()
}

/// Most conflicts that are told of one service.
const MAX_CONFLICTS: usize = 8;

/// Service ports that lead to one port of the pods and speak differently.
fn port_conflicts(service: &Service) -> Vec<Problem> {
    let mut first = BTreeMap::new();
    let mut problems = Vec::new();
    for port in &service.ports {
        let known = first.entry(&port.target).or_insert(port);
        if known.protocol.is_http() != port.protocol.is_http() {
            problems.push(Problem {
                reason: "TargetPortConflict",
                message: format!(
                    "ports {} ({}) and {} ({}) lead to the same target port {}: it is taken for {}",
                    known.number, known.protocol, port.number, port.protocol, port.target, known.protocol
                ),
            });
        }
    }
    problems
}

fn service_key(name: &Name) -> FactKey {
    FactKey::new(FactKind::Service, name.0.clone(), name.1.clone())
}

fn is_of(key: &ServiceKey, name: &Name) -> bool {
    key.namespace == name.0 && key.name == name.1
}

fn first_cluster(name: &Name) -> ClusterKey {
    ClusterKey {
        service: ServiceKey::new(name.0.clone(), name.1.clone()),
        target_port: TargetPort::Number(0),
    }
}

fn endpoints(slots: &Slots, name: &Name) -> Vec<SlotKey> {
    let first = SlotKey::Endpoints(first_cluster(name), None);
    let belongs = |key: &SlotKey| matches!(key, SlotKey::Endpoints(key, _) if is_of(&key.service, name));
    slots.range(&first, belongs).cloned().collect()
}

fn clusters(slots: &Slots, name: &Name) -> Vec<SlotKey> {
    let first = SlotKey::Cluster(first_cluster(name), None);
    let belongs = |key: &SlotKey| matches!(key, SlotKey::Cluster(key, _) if is_of(&key.service, name));
    slots.range(&first, belongs).cloned().collect()
}

fn routes(slots: &Slots, name: &Name) -> Vec<SlotKey> {
    let first = SlotKey::Routes(ServiceKey::new(name.0.clone(), name.1.clone()), 0, false);
    slots
        .range(
            &first,
            |key| matches!(key, SlotKey::Routes(key, ..) if is_of(key, name)),
        )
        .cloned()
        .collect()
}
