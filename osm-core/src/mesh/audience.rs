//! What clients are given of the services they may reach.
//!
//! In permissive mode that is one for everybody, and a thin layer for each namespace, whose clients may use short names;
//! in SMI mode it is one for each identity. Invariant: a client is given the routes, clusters, endpoints and roots that
//! its listener leads to, and no others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    build,
    classes::Classes,
    dirty::Dirty,
    publication::Publication,
    services::Services,
    slots::{Allowed, Holder, SlotKey},
    tables::{Index, Name, Tables, link, unlink},
};
use crate::{
    facts::MeshConfig,
    identity::{ServiceIdentity, TrustDomain},
    ir::{OutboundListener, ServiceKey},
    resource::{ResourceType, TypeSet},
};

/// The sets of each kind, in [`ResourceType::ALL`]'s order.
pub(super) type Sets = [Arc<TypeSet>; ResourceType::ALL.len()];

/// What one holder is given.
#[derive(Debug, Default)]
struct Audience {
    held: BTreeSet<SlotKey>,
    sets: Sets,
    /// The listeners of pods that have an IPv6 address, where there are such.
    ipv6_listeners: Arc<TypeSet>,
    /// The services whose doors it is shown.
    reach: BTreeSet<Name>,
}

/// All audiences.
#[derive(Debug, Default)]
pub(super) struct Audiences {
    mesh: Option<Audience>,
    namespaces: BTreeMap<Arc<str>, Audience>,
    clients: BTreeMap<ServiceIdentity, Audience>,
    /// The clients that are shown a service.
    reachers: Index<Name, ServiceIdentity>,
}

/// What audiences are computed from.
pub(super) struct World<'a> {
    pub(super) tables: &'a Tables,
    pub(super) services: &'a Services,
    pub(super) config: &'a MeshConfig,
    pub(super) trust_domain: &'a TrustDomain,
}

impl Audiences {
    /// What a client is given, in pods with an IPv6 address (`ipv6`) or without.
    pub(super) fn sets(&self, client: &ServiceIdentity, ipv6: bool) -> Sets {
        let of = |audience: &Audience| {
            let mut sets = audience.sets.clone();
            if ipv6 {
                sets[ResourceType::Listener as usize] = Arc::clone(&audience.ipv6_listeners);
            }
            sets
        };
        if let Some(mesh) = &self.mesh {
            let mut sets = of(mesh);
            if let Some(local) = self.namespaces.get(&client.namespace) {
                sets[ResourceType::Route as usize] = local.sets[ResourceType::Route as usize].clone();
            }
            return sets;
        }
        self.clients.get(client).map(of).unwrap_or_default()
    }

    /// Brings audiences up to date. Returns the identities whose sets may have changed.
    pub(super) fn refresh(
        &mut self,
        world: &World<'_>,
        classes: &Classes,
        dirty: &mut Dirty,
        out: &mut Publication,
    ) -> BTreeSet<ServiceIdentity> {
        let is_dirty = std::mem::take(&mut dirty.mesh);
        if world.config.permissive {
            dirty.clients.clear();
            dirty.reached.clear();
            for client in self.clients.keys().cloned().collect::<Vec<_>>() {
                self.drop_client(&client, out);
            }
            self.refresh_mesh(is_dirty, world, classes, dirty, out)
        } else {
            for (namespace, audience) in std::mem::take(&mut self.namespaces) {
                out.exchange(&Holder::Namespace(namespace), &audience.held, &BTreeSet::new());
            }
            if let Some(mesh) = self.mesh.take() {
                out.exchange(&Holder::Mesh, &mesh.held, &BTreeSet::new());
            }
            self.refresh_clients(world, classes, dirty, out)
        }
    }

    fn refresh_mesh(
        &mut self,
        is_dirty: bool,
        world: &World<'_>,
        classes: &Classes,
        dirty: &mut Dirty,
        out: &mut Publication,
    ) -> BTreeSet<ServiceIdentity> {
        let first = self.mesh.is_none();
        let mesh = self.mesh.get_or_insert_default();
        let mut moved = false;
        if is_dirty || first {
            let given = give(world, world.services.outbounds.keys(), None);
            moved = mesh.become_(None, given, world, dirty, out);
        }
        if !moved && !first && dirty.identities.is_empty() {
            return BTreeSet::new();
        }
        let namespaces: BTreeSet<_> = classes.identities().map(|identity| &identity.namespace).collect();
        let gone: Vec<_> = self
            .namespaces
            .keys()
            .filter(|name| !namespaces.contains(name))
            .cloned()
            .collect();
        for namespace in gone {
            let audience = self.namespaces.remove(&namespace).unwrap_or_default();
            out.exchange(&Holder::Namespace(namespace), &audience.held, &BTreeSet::new());
        }
        for namespace in namespaces {
            if moved || !self.namespaces.contains_key(namespace) {
                let audience = self.namespaces.entry(namespace.clone()).or_default();
                audience.localise(namespace, mesh, dirty, out);
            }
        }
        // New namespaces come with new classes, which are composed anyway.
        if moved || first {
            classes.identities().cloned().collect()
        } else {
            BTreeSet::new()
        }
    }

    fn refresh_clients(
        &mut self,
        world: &World<'_>,
        classes: &Classes,
        dirty: &mut Dirty,
        out: &mut Publication,
    ) -> BTreeSet<ServiceIdentity> {
        let mut clients = std::mem::take(&mut dirty.clients);
        for name in &std::mem::take(&mut dirty.reached) {
            clients.extend(self.reachers.get(name).into_iter().flatten().cloned());
            let backends = world
                .services
                .splits
                .get(name)
                .into_iter()
                .flat_map(|split| split.backends.keys());
            for service in backends.chain([&name.1]) {
                let node = world.services.nodes.get(&(name.0.clone(), service.clone()));
                for account in node.into_iter().flat_map(|node| &node.accounts) {
                    let destination = ServiceIdentity::new(name.0.clone(), account.clone());
                    clients.extend(world.tables.clients_of(&destination).cloned());
                }
            }
        }
        for client in dirty.identities.keys() {
            if classes.has(client) {
                clients.insert(client.clone());
            } else {
                self.drop_client(client, out);
            }
        }
        clients.retain(|client| classes.has(client));
        for client in &clients {
            let destinations = world.tables.destinations_of(client);
            let reach = reach(world, &destinations);
            let given = give(world, reach.iter(), Some((client, &destinations)));
            let audience = self.clients.entry(client.clone()).or_default();
            for name in audience.reach.difference(&reach) {
                unlink(&mut self.reachers, name, client);
            }
            for name in reach.difference(&audience.reach) {
                link(&mut self.reachers, name.clone(), client.clone());
            }
            audience.reach = reach;
            audience.become_(Some(client), given, world, dirty, out);
        }
        clients
    }

    fn drop_client(&mut self, client: &ServiceIdentity, out: &mut Publication) {
        let Some(audience) = self.clients.remove(client) else {
            return;
        };
        for name in &audience.reach {
            unlink(&mut self.reachers, name, client);
        }
        out.exchange(&Holder::Client(client.clone()), &audience.held, &BTreeSet::new());
    }
}

impl Audience {
    /// Becomes the layer of a namespace over the `mesh`: its own services, with their short names.
    fn localise(&mut self, namespace: &Arc<str>, mesh: &Audience, dirty: &mut Dirty, out: &mut Publication) {
        let first = SlotKey::Routes(ServiceKey::new(namespace.clone(), ""), 0, false);
        let local = mesh.held.range(first..).map_while(|key| match key {
            SlotKey::Routes(key, port, _) if key.namespace == *namespace => {
                Some(SlotKey::Routes(key.clone(), *port, true))
            }
            _ => None,
        });
        let local: BTreeSet<_> = local.collect();
        dirty
            .slots
            .extend(out.exchange(&Holder::Namespace(namespace.clone()), &self.held, &local));
        let routes = ResourceType::Route as usize;
        self.sets[routes] = TypeSet::over(&mesh.sets[routes], out.slots.entries(&local, ResourceType::Route));
        self.held = local;
    }

    /// Takes what is given to a client, or to everyone. Returns whether a set changed.
    fn become_(
        &mut self,
        client: Option<&ServiceIdentity>,
        given: Given,
        world: &World<'_>,
        dirty: &mut Dirty,
        out: &mut Publication,
    ) -> bool {
        let Given {
            mut listener,
            mut keys,
        } = given;
        let holder = client.map_or(Holder::Mesh, |client| Holder::Client(client.clone()));
        let slot = |ipv6| SlotKey::OutboundListener(client.cloned(), ipv6);
        // Also where it leads nowhere: Envoy then closes what is redirected to it.
        let listeners = match world.tables.has_ipv6() {
            true => vec![(slot(false), false), (slot(true), true)],
            false => vec![(slot(false), false)],
        };
        keys.extend(listeners.iter().map(|(slot, _)| slot.clone()));
        if world.config.egress {
            keys.insert(SlotKey::Passthrough);
        }
        if world.config.settings.tracing.is_some() {
            keys.insert(SlotKey::Tracing);
        }
        if world.config.settings.external_authorization.is_some() {
            keys.insert(SlotKey::ExternalAuthorization);
        }
        let moved = keys != self.held;
        if moved {
            dirty.slots.extend(out.exchange(&holder, &self.held, &keys));
            let become_set = |set: &mut Arc<TypeSet>, keys: &mut dyn Iterator<Item = &SlotKey>, kind| {
                let new = TypeSet::new(out.slots.entries(keys, kind));
                if new != **set {
                    *set = Arc::new(new);
                }
            };
            for kind in ResourceType::ALL {
                let mut keys = keys.iter().filter(|key| **key != slot(true));
                become_set(&mut self.sets[kind as usize], &mut keys, kind);
            }
            let mut ipv6 = keys.iter().filter(|key| **key == slot(true));
            become_set(&mut self.ipv6_listeners, &mut ipv6, ResourceType::Listener);
            self.held = keys;
        }
        for (slot, ipv6) in listeners {
            listener.ipv6 = ipv6;
            dirty.slots.remove(&slot);
            out.put(
                &slot,
                Some(build::outbound_listener(&listener, &world.config.settings)),
            );
        }
        moved
    }
}

/// What a holder is to be given.
struct Given {
    listener: OutboundListener,
    keys: BTreeSet<SlotKey>,
}

/// The services a client may reach: those with pods of an identity it may call, and those whose splits lead there.
fn reach(world: &World<'_>, destinations: &BTreeSet<&ServiceIdentity>) -> BTreeSet<Name> {
    let mut reach = BTreeSet::new();
    for destination in destinations {
        for service in world.services.by_account.get(destination).into_iter().flatten() {
            let name = (destination.namespace.clone(), service.clone());
            reach.extend(world.services.apexes.get(&name).into_iter().flatten().cloned());
            reach.insert(name);
        }
    }
    reach
}

/// What leads to the services `names`: for a client that may call the identities given with it, or for everyone.
fn give<'a>(
    world: &World<'_>,
    names: impl Iterator<Item = &'a Name>,
    client: Option<(&ServiceIdentity, &BTreeSet<&ServiceIdentity>)>,
) -> Given {
    let may_call = |namespace: &Arc<str>, account: &str| {
        client.is_none_or(|(_, destinations)| {
            destinations.contains(&ServiceIdentity::new(namespace.clone(), account))
        })
    };
    let allowed = |key: &ServiceKey| -> Allowed {
        let node = world
            .services
            .nodes
            .get(&(key.namespace.clone(), key.name.clone()))
            .filter(|_| client.is_some())?;
        let permitted: BTreeSet<_> = node
            .accounts
            .iter()
            .filter(|account| may_call(&key.namespace, account))
            .cloned()
            .collect();
        (permitted != node.accounts).then(|| Arc::new(permitted))
    };
    let mut keys = BTreeSet::new();
    let mut chains = Vec::new();
    for name in names {
        let Some(outbound) = world.services.outbounds.get(name) else {
            continue;
        };
        for door in &outbound.doors {
            let Some(chain) = outbound.chain(door, |account| may_call(&name.0, account)) else {
                continue;
            };
            chains.push(chain);
            if outbound.has_routes(door) {
                let local = client.is_some_and(|(client, _)| client.namespace == name.0);
                keys.insert(SlotKey::Routes(outbound.key(door), door.port, local));
            }
            for cluster in outbound.clusters(door).into_keys() {
                let allowed = allowed(&cluster.service);
                keys.insert(SlotKey::Endpoints(cluster.clone(), allowed.clone()));
                keys.insert(SlotKey::Cluster(cluster, allowed));
            }
        }
    }
    chains.sort_by(|a, b| a.name.cmp(&b.name));
    Given {
        listener: OutboundListener {
            chains,
            passthrough: world.config.egress,
            ipv6: false,
        },
        keys,
    }
}
