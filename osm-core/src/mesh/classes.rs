//! The proxies, by class: those that get the same configuration.
//!
//! Invariants: every proxy is of one class; a class has at least one proxy; a [`ClassId`] that was given back is not
//! given out again in the same batch, so that who is woken by it is who had it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    audience::{Audiences, Sets, World},
    build,
    diagnostics::{Diagnostics, Stage},
    dirty::Dirty,
    publication::Publication,
    services::Services,
    slots::{Holder, SlotKey},
    tables::{Index, Name, Tables, link, unlink},
};
use crate::{
    facts::{FactKey, FactKind, Problem, pod::Proxy},
    identity::ServiceIdentity,
    ir::TargetPort,
    policy::{
        Access, Inbound,
        inbound::{self, Backing, Own},
    },
    resource::{ClassId, ProxyEntry, ResourceType, TypeSet, TypeSetEntry, View},
};

/// All that the configuration of a proxy depends on, of its pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClassKey {
    identity: ServiceIdentity,
    /// Whether Prometheus scrapes the sidecar.
    scraped: bool,
    /// Whether the pod has an IPv6 address.
    ipv6: bool,
    /// The services the pod is behind, in its namespace.
    services: BTreeMap<Arc<str>, Backing>,
}

#[derive(Debug)]
struct Class {
    key: ClassKey,
    proxies: usize,
    held: BTreeSet<SlotKey>,
    own: [Vec<TypeSetEntry>; ResourceType::ALL.len()],
    bases: Sets,
    view: Arc<View>,
}

/// All classes.
#[derive(Debug, Default)]
pub(super) struct Classes {
    ids: BTreeMap<ClassKey, ClassId>,
    classes: BTreeMap<ClassId, Class>,
    by_identity: Index<ServiceIdentity, ClassId>,
    by_service: Index<Name, ClassId>,
    proxies: BTreeMap<Uuid, ClassId>,
    free: Vec<ClassId>,
    next: u32,
}

impl Classes {
    /// The identities that have proxies, ordered.
    pub(super) fn identities(&self) -> impl Iterator<Item = &ServiceIdentity> {
        self.by_identity.keys()
    }

    /// Whether an identity has a proxy.
    pub(super) fn has(&self, identity: &ServiceIdentity) -> bool {
        self.by_identity.contains_key(identity)
    }

    /// All classes.
    pub(super) fn all(&self) -> impl Iterator<Item = ClassId> {
        self.classes.keys().copied()
    }

    /// The classes of an identity.
    pub(super) fn of(&self, identity: &ServiceIdentity) -> impl Iterator<Item = ClassId> {
        self.by_identity.get(identity).into_iter().flatten().copied()
    }

    /// The classes with pods behind a service.
    pub(super) fn behind(&self, service: &Name) -> impl Iterator<Item = ClassId> {
        self.by_service.get(service).into_iter().flatten().copied()
    }

    /// The classes a holder stands for.
    pub(super) fn held_by(&self, holder: &Holder) -> Vec<ClassId> {
        match holder {
            Holder::Mesh => self.all().collect(),
            Holder::Namespace(namespace) => {
                let first = ServiceIdentity::new(namespace.clone(), "");
                let here = self
                    .by_identity
                    .range(first..)
                    .take_while(|(identity, _)| identity.namespace == *namespace);
                here.flat_map(|(_, classes)| classes.iter().copied()).collect()
            }
            Holder::Client(identity) => self.of(identity).collect(),
            Holder::Class(class) => vec![*class],
        }
    }

    /// Puts the proxies of changed pods into their classes.
    pub(super) fn assign(
        &mut self,
        tables: &Tables,
        services: &Services,
        dirty: &mut Dirty,
        diagnostics: &mut Diagnostics,
        out: &mut Publication,
    ) {
        let mut uuids = std::mem::take(&mut dirty.uuids);
        uuids.extend(
            std::mem::take(&mut dirty.pods)
                .iter()
                .filter_map(|pod| tables.pods.get(pod))
                .map(|pod| pod.uuid),
        );
        let mut emptied = BTreeSet::new();
        for uuid in uuids {
            let mut owner = None;
            for (_, pod) in tables.claims.get(&uuid).into_iter().flatten() {
                let mut problems = Vec::new();
                if tables.monitored.contains(&pod.0) && *owner.get_or_insert(pod) != pod {
                    let message = format!(
                        "the sidecar's uuid {uuid} belongs to an older pod: this one has no place in the mesh; \
                         delete it, so that it is made anew"
                    );
                    problems.push(Problem {
                        reason: "DuplicateProxyUuid",
                        message,
                    });
                }
                let key = FactKey::new(FactKind::Pod, pod.0.clone(), pod.1.clone());
                diagnostics.set(Stage::Uuid, key, problems);
            }
            let key = owner.and_then(|pod| Some(class_key(pod, tables.pods.get(pod)?, tables, services)));
            let before = self.proxies.get(&uuid).copied();
            if before
                .and_then(|class| self.classes.get(&class))
                .map(|class| &class.key)
                == key.as_ref()
            {
                continue;
            }
            if let Some(class) = before {
                self.proxies.remove(&uuid);
                out.classes.insert(class);
                if let Some(old) = self.classes.get_mut(&class) {
                    old.proxies -= 1;
                    if old.proxies == 0 {
                        emptied.insert(class);
                    }
                }
            }
            let entry = key.map(|key| {
                let identity = key.identity.clone();
                let class = self.enter(key, dirty);
                emptied.remove(&class);
                self.proxies.insert(uuid, class);
                ProxyEntry { identity, class }
            });
            out.set_proxy(uuid, entry);
        }
        for class in emptied {
            self.remove(class, dirty, out);
        }
    }

    fn enter(&mut self, key: ClassKey, dirty: &mut Dirty) -> ClassId {
        if let Some(id) = self.ids.get(&key) {
            if let Some(class) = self.classes.get_mut(id) {
                class.proxies += 1;
            }
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            ClassId(self.next - 1)
        });
        dirty
            .identities
            .entry(key.identity.clone())
            .or_insert(self.has(&key.identity));
        link(&mut self.by_identity, key.identity.clone(), id);
        for service in key.services.keys() {
            link(
                &mut self.by_service,
                (key.identity.namespace.clone(), service.clone()),
                id,
            );
        }
        self.ids.insert(key.clone(), id);
        let class = Class {
            key,
            proxies: 1,
            held: BTreeSet::new(),
            own: Default::default(),
            bases: Default::default(),
            view: Arc::default(),
        };
        self.classes.insert(id, class);
        dirty.classes.insert(id);
        id
    }

    fn remove(&mut self, id: ClassId, dirty: &mut Dirty, out: &mut Publication) {
        let Some(class) = self.classes.remove(&id) else {
            return;
        };
        dirty.identities.entry(class.key.identity.clone()).or_insert(true);
        unlink(&mut self.by_identity, &class.key.identity, &id);
        for service in class.key.services.keys() {
            unlink(
                &mut self.by_service,
                &(class.key.identity.namespace.clone(), service.clone()),
                &id,
            );
        }
        self.ids.remove(&class.key);
        dirty.classes.remove(&id);
        out.exchange(&Holder::Class(id), &class.held, &BTreeSet::new());
        out.set_view(id, None);
        dirty.freed.push(id);
    }

    /// Makes the ids of classes that are gone free again, for the next batch.
    pub(super) fn settle(&mut self, freed: Vec<ClassId>) {
        self.free.extend(freed);
    }

    /// Brings a class's own resources up to date.
    pub(super) fn refresh(
        &mut self,
        id: ClassId,
        world: &World<'_>,
        access: &BTreeMap<ServiceIdentity, Access>,
        dirty: &mut Dirty,
        out: &mut Publication,
    ) {
        let Some(class) = self.classes.get_mut(&id) else {
            return;
        };
        let nobody = Access::default();
        let identity = &class.key.identity;
        let access = (!world.config.permissive).then(|| access.get(identity).unwrap_or(&nobody));
        let inbound = inbound(&class.key, world, access);
        let settings = &world.config.settings;

        // The listener also where no service leads to the pod: Envoy then closes what is redirected to it.
        let listener = SlotKey::InboundListener(id);
        let mut keys = BTreeSet::from([
            SlotKey::Certificate(identity.clone()),
            SlotKey::InboundRoots,
            SlotKey::OutboundRoots,
            listener.clone(),
        ]);
        if class.key.scraped {
            keys.extend([SlotKey::Metrics, SlotKey::Prometheus(class.key.ipv6)]);
        }
        keys.extend(
            inbound
                .locals
                .iter()
                .map(|(key, number)| SlotKey::Local(key.clone(), *number)),
        );
        keys.extend(
            inbound
                .routes
                .keys()
                .map(|number| SlotKey::InboundRoutes(id, *number)),
        );
        dirty
            .slots
            .extend(out.exchange(&Holder::Class(id), &class.held, &keys));
        for kind in ResourceType::ALL {
            class.own[kind as usize] = out.slots.entries(&keys, kind);
        }
        class.held = keys;

        dirty.slots.remove(&listener);
        out.put(
            &listener,
            Some(build::inbound_listener(&inbound.listener, settings)),
        );
        for (number, routes) in &inbound.routes {
            let key = SlotKey::InboundRoutes(id, *number);
            dirty.slots.remove(&key);
            out.put(&key, Some(build::inbound_routes(routes)));
        }
    }

    /// Lays a class's own resources over what its identity is given.
    pub(super) fn compose(&mut self, id: ClassId, audiences: &Audiences, out: &mut Publication) {
        let Some(class) = self.classes.get_mut(&id) else {
            return;
        };
        let bases = audiences.sets(&class.key.identity, class.key.ipv6);
        let mut view = View::clone(&class.view);
        for kind in ResourceType::ALL {
            let (base, own) = (&bases[kind as usize], &class.own[kind as usize]);
            let set = TypeSet::over(base, own.clone());
            let same_base = Arc::ptr_eq(base, &class.bases[kind as usize]);
            if !same_base || set != *view.set(kind) {
                view = view.with(kind, set);
            }
        }
        class.bases = bases;
        let known = out.has_view(id);
        if !known || view != *class.view {
            class.view = Arc::new(view);
            out.set_view(id, Some(Arc::clone(&class.view)));
        }
    }
}

fn class_key(pod: &Name, proxy: &Proxy, tables: &Tables, services: &Services) -> ClassKey {
    let mut backings = BTreeMap::new();
    for name in tables.memberships.get(pod).into_iter().flatten() {
        let Some(node) = services.nodes.get(&(pod.0.clone(), name.clone())) else {
            continue;
        };
        let is_subdomain = node.service.headless && proxy.subdomain.as_ref() == Some(name);
        let named = node.service.ports.iter().filter_map(|port| match &port.target {
            TargetPort::Name(name) => Some((name.clone(), *proxy.ports.get(name)?)),
            TargetPort::Number(_) => None,
        });
        let backing = Backing {
            hostname: proxy.hostname.clone().filter(|_| is_subdomain),
            ports: named.collect(),
        };
        backings.insert(name.clone(), backing);
    }
    ClassKey {
        identity: proxy.identity.clone(),
        scraped: proxy.scraped,
        ipv6: proxy.has_ipv6(),
        services: backings,
    }
}

fn inbound(key: &ClassKey, world: &World<'_>, access: Option<&Access>) -> Inbound {
    let services = world.services;
    let node = |name: &Name| services.nodes.get(name).map(|node| &*node.service);
    let own = key.services.iter().filter_map(|(service, backing)| {
        let name = (key.identity.namespace.clone(), service.clone());
        let apexes = services
            .apexes
            .get(&name)
            .into_iter()
            .flatten()
            .filter_map(node)
            .collect();
        Some(Own {
            service: node(&name)?,
            backing,
            apexes,
        })
    });
    let mut inbound = inbound::of(&own.collect::<Vec<_>>(), access, world.trust_domain);
    inbound.listener.ipv6 = key.ipv6;
    inbound
}
