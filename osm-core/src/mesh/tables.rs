//! The facts, by kind, and the indexes that find them.
//!
//! Owns what the engine was told. Every write compares first, keeps the indexes, and marks in [`Dirty`] what may have to
//! be computed anew. Invariant: an index is a function of the facts alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{Options, dirty::Dirty};
use crate::{
    api::{labels, names},
    facts::{
        EndpointSlice, Fact, FactKey, FactKind, HttpRouteGroup, MeshConfig, Service, TcpRoute, TrafficSplit,
        TrafficTarget, pod::Proxy, traffic_target::Rule,
    },
    identity::ServiceIdentity,
};

/// Namespace and name of an object.
pub(super) type Name = (Arc<str>, Arc<str>);
/// A namespace, and the key and value of a label in it.
type Label = (Arc<str>, Arc<str>, Arc<str>);
/// Objects of a kind.
pub(super) type Table<T> = BTreeMap<Name, Arc<T>>;
/// A set for each key; without empty sets.
pub(super) type Index<K, V> = BTreeMap<K, BTreeSet<V>>;

/// The facts and their indexes.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// The namespaces of the mesh.
    pub(super) monitored: BTreeSet<Arc<str>>,
    namespaces: BTreeMap<Arc<str>, crate::facts::Namespace>,
    pub(super) services: Table<Service>,
    pub(super) slices: Table<EndpointSlice>,
    /// Pods that have a sidecar.
    pub(super) pods: Table<Proxy>,
    /// How many of them have an IPv6 address.
    ipv6_pods: usize,
    pub(super) accounts: BTreeSet<Name>,
    pub(super) config: Option<Arc<MeshConfig>>,
    pub(super) targets: Table<TrafficTarget>,
    pub(super) groups: Table<HttpRouteGroup>,
    pub(super) tcp_routes: Table<TcpRoute>,
    pub(super) splits: Table<TrafficSplit>,

    /// Services by namespace and the first label of their selector.
    selectors: Index<Label, Arc<str>>,
    /// Pods by namespace and each of their labels.
    labelled: Index<Label, Arc<str>>,
    /// The pods of a service, in its namespace.
    pub(super) members: Index<Name, Arc<str>>,
    /// The services of a pod, in its namespace.
    pub(super) memberships: Index<Name, Arc<str>>,
    /// Slices of a service.
    pub(super) slices_of: Index<Name, Arc<str>>,
    /// Pods that claim a uuid, the oldest first.
    pub(super) claims: Index<Uuid, (i64, Name)>,
    pub(super) targets_by_destination: Index<ServiceIdentity, Arc<str>>,
    pub(super) targets_by_source: Index<ServiceIdentity, Name>,
    /// Targets by namespace, kind and name of a route they refer to; `true` is HTTP.
    targets_by_route: Index<(Arc<str>, bool, Arc<str>), Arc<str>>,
    /// Splits by apex, the oldest first.
    pub(super) splits_by_apex: Index<Name, (i64, Arc<str>)>,
}

impl Tables {
    /// Takes note of an object. Returns whether it differs from what was known.
    pub(super) fn insert(&mut self, fact: Fact, options: &Options, dirty: &mut Dirty) -> bool {
        let FactKey { namespace, name, .. } = fact.key();
        let key = (namespace, name);
        match fact {
            Fact::Namespace(fact) => self.set_namespace(key.1, Some(fact), options, dirty),
            Fact::Service(fact) => self.set_service(key, Some(fact), dirty),
            Fact::EndpointSlice(fact) => self.set_slice(key, Some(fact), dirty),
            Fact::Pod(fact) => self.set_pod(key, fact.proxy.map(|proxy| *proxy), dirty),
            Fact::ServiceAccount(_) => self.set_account(key, true, dirty),
            Fact::MeshConfig(fact) => self.set_config(*fact, options, dirty),
            Fact::TrafficTarget(fact) => self.set_target(key, Some(fact), dirty),
            Fact::HTTPRouteGroup(fact) => self.set_group(key, Some(fact), dirty),
            Fact::TCPRoute(fact) => self.set_tcp_route(key, Some(fact), dirty),
            Fact::TrafficSplit(fact) => self.set_split(key, Some(fact), dirty),
        }
    }

    /// Forgets an object. Returns whether it was known.
    ///
    /// MeshConfig stays as it was last read: its loss must not turn the mesh's policy over.
    pub(super) fn remove(&mut self, key: FactKey, options: &Options, dirty: &mut Dirty) -> bool {
        let name = (key.namespace, key.name);
        match key.kind {
            FactKind::Namespace => self.set_namespace(name.1, None, options, dirty),
            FactKind::Service => self.set_service(name, None, dirty),
            FactKind::EndpointSlice => self.set_slice(name, None, dirty),
            FactKind::Pod => self.set_pod(name, None, dirty),
            FactKind::ServiceAccount => self.set_account(name, false, dirty),
            FactKind::MeshConfig => false,
            FactKind::TrafficTarget => self.set_target(name, None, dirty),
            FactKind::HTTPRouteGroup => self.set_group(name, None, dirty),
            FactKind::TCPRoute => self.set_tcp_route(name, None, dirty),
            FactKind::TrafficSplit => self.set_split(name, None, dirty),
        }
    }

    /// The objects of a kind that are known.
    pub(super) fn keys(&self, kind: FactKind) -> Vec<FactKey> {
        fn of<'a>(kind: FactKind, names: impl Iterator<Item = &'a Name>) -> Vec<FactKey> {
            names
                .map(|(namespace, name)| FactKey::new(kind, namespace.clone(), name.clone()))
                .collect()
        }
        match kind {
            FactKind::Namespace => self
                .namespaces
                .keys()
                .map(|name| FactKey::new(kind, "", name.clone()))
                .collect(),
            FactKind::Service => of(kind, self.services.keys()),
            FactKind::EndpointSlice => of(kind, self.slices.keys()),
            FactKind::Pod => of(kind, self.pods.keys()),
            FactKind::ServiceAccount => of(kind, self.accounts.iter()),
            FactKind::MeshConfig => Vec::new(),
            FactKind::TrafficTarget => of(kind, self.targets.keys()),
            FactKind::HTTPRouteGroup => of(kind, self.groups.keys()),
            FactKind::TCPRoute => of(kind, self.tcp_routes.keys()),
            FactKind::TrafficSplit => of(kind, self.splits.keys()),
        }
    }

    fn set_namespace(
        &mut self,
        name: Arc<str>,
        fact: Option<crate::facts::Namespace>,
        options: &Options,
        dirty: &mut Dirty,
    ) -> bool {
        if self.namespaces.get(&name) == fact.as_ref() {
            return false;
        }
        let ours = |fact: &crate::facts::Namespace| {
            !fact.ignored && fact.monitored_by.as_ref() == Some(&options.mesh_name)
        };
        let now = fact.as_ref().is_some_and(ours);
        match fact {
            Some(fact) => self.namespaces.insert(name.clone(), fact),
            None => self.namespaces.remove(&name),
        };
        let before = if now {
            !self.monitored.insert(name.clone())
        } else {
            self.monitored.remove(&name)
        };
        if now != before {
            dirty
                .services
                .extend(within(&self.services, &name).map(|(key, _)| key.clone()));
            dirty
                .pods
                .extend(within(&self.pods, &name).map(|(key, _)| key.clone()));
            dirty.apexes.extend(
                within(&self.splits, &name).map(|(_, split)| (split.namespace.clone(), split.apex.clone())),
            );
            for (key, target) in within(&self.targets, &name) {
                dirty.target(key, target);
            }
            dirty.any = true;
        }
        true
    }

    fn set_service(&mut self, key: Name, fact: Option<Service>, dirty: &mut Dirty) -> bool {
        let fact = fact.map(Arc::new);
        let Some(old) = exchange(&mut self.services, &key, &fact) else {
            return false;
        };
        let label =
            |service: &Arc<Service>| selector(service).map(|(k, v)| (key.0.clone(), k.clone(), v.clone()));
        let same = old.as_ref().and_then(|service| effective(service))
            == fact.as_ref().and_then(|service| effective(service));
        if !same {
            if let Some(label) = old.as_ref().and_then(label) {
                unlink(&mut self.selectors, &label, &key.1);
            }
            if let Some(label) = fact.as_ref().and_then(label) {
                link(&mut self.selectors, label, key.1.clone());
            }
            dirty.selectors.insert(key.clone());
        }
        dirty.services.insert(key);
        true
    }

    fn set_slice(&mut self, key: Name, fact: Option<EndpointSlice>, dirty: &mut Dirty) -> bool {
        let fact = fact.map(Arc::new);
        let Some(old) = exchange(&mut self.slices, &key, &fact) else {
            return false;
        };
        for (slice, is_new) in old
            .iter()
            .map(|old| (old, false))
            .chain(fact.iter().map(|new| (new, true)))
        {
            let service = (key.0.clone(), slice.service.clone());
            if is_new {
                link(&mut self.slices_of, service.clone(), key.1.clone());
            } else {
                unlink(&mut self.slices_of, &service, &key.1);
            }
            dirty.services.insert(service);
        }
        true
    }

    fn set_pod(&mut self, key: Name, fact: Option<Proxy>, dirty: &mut Dirty) -> bool {
        let fact = fact.map(Arc::new);
        let Some(old) = exchange(&mut self.pods, &key, &fact) else {
            return false;
        };
        let had_ipv6 = self.has_ipv6();
        let ipv6 = |pod: &Option<Arc<Proxy>>| usize::from(pod.as_ref().is_some_and(|pod| pod.has_ipv6()));
        self.ipv6_pods = self.ipv6_pods - ipv6(&old) + ipv6(&fact);
        dirty.families |= had_ipv6 != self.has_ipv6();
        for (pod, is_new) in old
            .iter()
            .map(|old| (old, false))
            .chain(fact.iter().map(|new| (new, true)))
        {
            let claim = (pod.created, key.clone());
            let indexed = pod
                .labels
                .iter()
                .filter(|(label, _)| &***label != labels::PROXY_UUID);
            let indexed = indexed.map(|(label, value)| (key.0.clone(), label.clone(), value.clone()));
            if is_new {
                indexed.for_each(|label| link(&mut self.labelled, label, key.1.clone()));
                link(&mut self.claims, pod.uuid, claim);
            } else {
                indexed.for_each(|label| unlink(&mut self.labelled, &label, &key.1));
                unlink(&mut self.claims, &pod.uuid, &claim);
            }
            dirty.uuids.insert(pod.uuid);
        }
        dirty.links.insert(key);
        true
    }

    /// Whether any pod has an IPv6 address.
    pub(super) fn has_ipv6(&self) -> bool {
        self.ipv6_pods > 0
    }

    fn set_account(&mut self, key: Name, exists: bool, dirty: &mut Dirty) -> bool {
        let existed = if exists {
            !self.accounts.insert(key.clone())
        } else {
            self.accounts.remove(&key)
        };
        if exists == existed {
            return false;
        }
        // Whether a namespace's accounts are known at all decides about every reference to it.
        let known = self
            .accounts
            .range((key.0.clone(), "".into())..)
            .take_while(|other| other.0 == key.0)
            .take(2)
            .count();
        let all = known <= 1;
        let concerned =
            |identity: &ServiceIdentity| identity.namespace == key.0 && (all || identity.name == key.1);
        let first = ServiceIdentity::new(key.0.clone(), if all { "".into() } else { key.1.clone() });
        let sources = self
            .targets_by_source
            .range(first.clone()..)
            .take_while(|(identity, _)| concerned(identity));
        dirty
            .references
            .extend(sources.flat_map(|(_, targets)| targets.iter().cloned()));
        let destinations = self
            .targets_by_destination
            .range(first..)
            .take_while(|(identity, _)| concerned(identity));
        for (identity, targets) in destinations {
            dirty.references.extend(
                targets
                    .iter()
                    .map(|name| (identity.namespace.clone(), name.clone())),
            );
        }
        dirty.any = true;
        true
    }

    fn set_config(&mut self, fact: MeshConfig, options: &Options, dirty: &mut Dirty) -> bool {
        let ours = fact.namespace == options.osm_namespace && &*fact.name == names::MESH_CONFIG;
        if !ours || self.config.as_deref() == Some(&fact) {
            return false;
        }
        self.config = Some(Arc::new(fact));
        dirty.settings = true;
        true
    }

    fn set_target(&mut self, key: Name, fact: Option<TrafficTarget>, dirty: &mut Dirty) -> bool {
        let fact = fact.map(Arc::new);
        let Some(old) = exchange(&mut self.targets, &key, &fact) else {
            return false;
        };
        for (target, is_new) in old
            .iter()
            .map(|old| (old, false))
            .chain(fact.iter().map(|new| (new, true)))
        {
            let route = |rule: &Rule| match rule {
                Rule::Http { group, .. } => (key.0.clone(), true, group.clone()),
                Rule::Tcp { route } => (key.0.clone(), false, route.clone()),
            };
            if is_new {
                link(
                    &mut self.targets_by_destination,
                    target.destination.clone(),
                    key.1.clone(),
                );
                for source in &target.sources {
                    link(&mut self.targets_by_source, source.clone(), key.clone());
                }
                for rule in &target.rules {
                    link(&mut self.targets_by_route, route(rule), key.1.clone());
                }
            } else {
                unlink(&mut self.targets_by_destination, &target.destination, &key.1);
                for source in &target.sources {
                    unlink(&mut self.targets_by_source, source, &key);
                }
                for rule in &target.rules {
                    unlink(&mut self.targets_by_route, &route(rule), &key.1);
                }
            }
            dirty.target(&key, target);
        }
        true
    }

    fn set_group(&mut self, key: Name, fact: Option<HttpRouteGroup>, dirty: &mut Dirty) -> bool {
        let changed = exchange(&mut self.groups, &key, &fact.map(Arc::new)).is_some();
        if changed {
            self.mark_route(key, true, dirty);
        }
        changed
    }

    fn set_tcp_route(&mut self, key: Name, fact: Option<TcpRoute>, dirty: &mut Dirty) -> bool {
        let changed = exchange(&mut self.tcp_routes, &key, &fact.map(Arc::new)).is_some();
        if changed {
            self.mark_route(key, false, dirty);
        }
        changed
    }

    fn mark_route(&self, (namespace, name): Name, http: bool, dirty: &mut Dirty) {
        let targets = self
            .targets_by_route
            .get(&(namespace.clone(), http, name))
            .into_iter()
            .flatten();
        let targets = targets.filter_map(|name| self.targets.get(&(namespace.clone(), name.clone())));
        dirty
            .destinations
            .extend(targets.map(|target| target.destination.clone()));
        dirty.any = true;
    }

    fn set_split(&mut self, key: Name, fact: Option<TrafficSplit>, dirty: &mut Dirty) -> bool {
        let fact = fact.map(Arc::new);
        let Some(old) = exchange(&mut self.splits, &key, &fact) else {
            return false;
        };
        for (split, is_new) in old
            .iter()
            .map(|old| (old, false))
            .chain(fact.iter().map(|new| (new, true)))
        {
            let apex = (key.0.clone(), split.apex.clone());
            let entry = (split.created, key.1.clone());
            if is_new {
                link(&mut self.splits_by_apex, apex.clone(), entry);
            } else {
                unlink(&mut self.splits_by_apex, &apex, &entry);
            }
            dirty.apexes.insert(apex);
        }
        true
    }

    /// Brings the members of services up to date with the pods and selectors that changed, and marks what follows.
    pub(super) fn relink(&mut self, dirty: &mut Dirty) {
        for pod in std::mem::take(&mut dirty.links) {
            let services = self
                .pods
                .get(&pod)
                .map(|proxy| self.services_selecting(&pod.0, proxy))
                .unwrap_or_default();
            let before = self.memberships.get(&pod).cloned().unwrap_or_default();
            for name in before.difference(&services) {
                unlink(&mut self.members, &(pod.0.clone(), name.clone()), &pod.1);
                unlink(&mut self.memberships, &pod, name);
            }
            for name in services.difference(&before) {
                link(&mut self.members, (pod.0.clone(), name.clone()), pod.1.clone());
                link(&mut self.memberships, pod.clone(), name.clone());
            }
            dirty
                .services
                .extend(before.union(&services).map(|name| (pod.0.clone(), name.clone())));
            dirty.pods.insert(pod);
        }
        for service in std::mem::take(&mut dirty.selectors) {
            let pods = self
                .services
                .get(&service)
                .map(|fact| self.pods_selected(&service.0, fact))
                .unwrap_or_default();
            let before = self.members.get(&service).cloned().unwrap_or_default();
            for name in before.difference(&pods) {
                unlink(
                    &mut self.memberships,
                    &(service.0.clone(), name.clone()),
                    &service.1,
                );
                unlink(&mut self.members, &service, name);
            }
            for name in pods.difference(&before) {
                link(
                    &mut self.memberships,
                    (service.0.clone(), name.clone()),
                    service.1.clone(),
                );
                link(&mut self.members, service.clone(), name.clone());
            }
            dirty.pods.extend(
                before
                    .symmetric_difference(&pods)
                    .map(|name| (service.0.clone(), name.clone())),
            );
            dirty.services.insert(service);
        }
    }

    fn services_selecting(&self, namespace: &Arc<str>, pod: &Proxy) -> BTreeSet<Arc<str>> {
        let candidates = pod.labels.iter().filter_map(|(label, value)| {
            self.selectors
                .get(&(namespace.clone(), label.clone(), value.clone()))
        });
        let selects = |name: &&Arc<str>| {
            let service = self.services.get(&(namespace.clone(), Arc::clone(name)));
            service.is_some_and(|service| matches(service, pod))
        };
        candidates.flatten().filter(selects).cloned().collect()
    }

    fn pods_selected(&self, namespace: &Arc<str>, service: &Service) -> BTreeSet<Arc<str>> {
        let Some((label, value)) = selector(service) else {
            return BTreeSet::new();
        };
        let candidates = self
            .labelled
            .get(&(namespace.clone(), label.clone(), value.clone()));
        let selected = |name: &&Arc<str>| {
            self.pods
                .get(&(namespace.clone(), Arc::clone(name)))
                .is_some_and(|pod| matches(service, pod))
        };
        candidates
            .into_iter()
            .flatten()
            .filter(selected)
            .cloned()
            .collect()
    }

    /// The targets of a destination that count, ordered by name.
    pub(super) fn targets_of<'a>(
        &'a self,
        destination: &'a ServiceIdentity,
    ) -> impl Iterator<Item = &'a TrafficTarget> {
        let counts = self.monitored.contains(&destination.namespace);
        let names = self
            .targets_by_destination
            .get(destination)
            .filter(|_| counts)
            .into_iter()
            .flatten();
        names.filter_map(|name| {
            self.targets
                .get(&(destination.namespace.clone(), name.clone()))
                .map(|target| &**target)
        })
    }

    /// Whom a client may call, by targets that count.
    pub(super) fn destinations_of<'a>(&'a self, client: &ServiceIdentity) -> BTreeSet<&'a ServiceIdentity> {
        let targets = self.targets_by_source.get(client).into_iter().flatten();
        let targets = targets.filter(|(namespace, _)| self.monitored.contains(namespace));
        targets
            .filter_map(|name| self.targets.get(name))
            .map(|target| &target.destination)
            .collect()
    }

    /// Who may call an identity, by targets that count.
    pub(super) fn clients_of<'a>(
        &'a self,
        destination: &'a ServiceIdentity,
    ) -> impl Iterator<Item = &'a ServiceIdentity> {
        self.targets_of(destination).flat_map(|target| &target.sources)
    }
}

/// The objects of a namespace.
pub(super) fn within<'a, T>(
    table: &'a BTreeMap<Name, T>,
    namespace: &'a Arc<str>,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    let first: Name = (namespace.clone(), "".into());
    table
        .range(first..)
        .take_while(move |((other, _), _)| other == namespace)
}

/// What selects pods; nothing for a Service outside the cluster.
fn effective(service: &Service) -> Option<&BTreeMap<Arc<str>, Arc<str>>> {
    (!service.external && !service.selector.is_empty()).then_some(&service.selector)
}

fn selector(service: &Service) -> Option<(&Arc<str>, &Arc<str>)> {
    // The uuid's label is not indexed; nobody selects by it alone.
    effective(service)?
        .iter()
        .find(|(label, _)| &***label != labels::PROXY_UUID)
}

fn matches(service: &Service, pod: &Proxy) -> bool {
    effective(service).is_some_and(|selector| {
        selector
            .iter()
            .all(|(label, value)| pod.labels.get(label) == Some(value))
    })
}

/// Replaces an entry. Returns the old one, or `None` if nothing changed.
fn exchange<T: PartialEq>(table: &mut Table<T>, key: &Name, new: &Option<Arc<T>>) -> Option<Option<Arc<T>>> {
    if table.get(key) == new.as_ref() {
        return None;
    }
    Some(match new {
        Some(new) => table.insert(key.clone(), Arc::clone(new)),
        None => table.remove(key),
    })
}

pub(super) fn link<K: Ord, V: Ord>(index: &mut Index<K, V>, key: K, value: V) {
    index.entry(key).or_default().insert(value);
}

pub(super) fn unlink<K: Ord, V: Ord>(index: &mut Index<K, V>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
