//! Which resources exist, where they are in the snapshot's table, and who holds them.
//!
//! Invariants: a resource has a slot as long as somebody holds it; a slot that was given back is not given out again
//! before the next batch, so that within one batch a slot means one resource.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    api::names,
    identity::ServiceIdentity,
    ir::{ClusterKey, ServiceKey},
    policy::{inbound, outbound},
    resource::{ClassId, ResourceType, Slot, TypeSetEntry},
};

/// The service accounts whose pods a client may reach behind a service; `None` for all there are, so that clients who
/// may reach everything share one resource.
pub(super) type Allowed = Option<Arc<BTreeSet<Arc<str>>>>;

/// What names a resource across its versions. Variants of one name have different keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SlotKey {
    Passthrough,
    Metrics,
    Tracing,
    ExternalAuthorization,
    /// The listener for Prometheus, of pods with an IPv6 address (`true`) or without.
    Prometheus(bool),
    Cluster(ClusterKey, Allowed),
    Endpoints(ClusterKey, Allowed),
    /// The application's own cluster, at this port.
    Local(ClusterKey, u16),
    /// The routes to a service port, for clients of its namespace (`true`) or others.
    Routes(ServiceKey, u16, bool),
    OutboundRoots,
    InboundRoots,
    Certificate(ServiceIdentity),
    /// The outbound listener of a client, or of everyone in permissive mode, in pods with an IPv6 address (`true`) or
    /// without.
    OutboundListener(Option<ServiceIdentity>, bool),
    InboundListener(ClassId),
    InboundRoutes(ClassId, u16),
}

impl SlotKey {
    /// The kind of the resource.
    pub(super) fn kind(&self) -> ResourceType {
        match self {
            Self::Passthrough
            | Self::Metrics
            | Self::Tracing
            | Self::ExternalAuthorization
            | Self::Cluster(..)
            | Self::Local(..) => ResourceType::Cluster,
            Self::Endpoints(..) => ResourceType::Endpoint,
            Self::Prometheus(_) | Self::OutboundListener(..) | Self::InboundListener(_) => {
                ResourceType::Listener
            }
            Self::Routes(..) | Self::InboundRoutes(..) => ResourceType::Route,
            Self::OutboundRoots | Self::InboundRoots | Self::Certificate(_) => ResourceType::Secret,
        }
    }

    /// The name of the resource.
    pub(super) fn name(&self) -> Arc<str> {
        match self {
            Self::Passthrough => names::PASSTHROUGH_CLUSTER.into(),
            Self::Metrics => names::METRICS_CLUSTER.into(),
            Self::Tracing => names::TRACING_CLUSTER.into(),
            Self::ExternalAuthorization => names::EXTERNAL_AUTHORIZATION_CLUSTER.into(),
            Self::Prometheus(_) => names::PROMETHEUS_LISTENER.into(),
            Self::Cluster(key, _) | Self::Endpoints(key, _) => key.to_string().into(),
            Self::Local(key, _) => key.local().into(),
            Self::Routes(key, port, _) => outbound::routes_name(key, *port).into(),
            Self::OutboundRoots => names::ROOT_CERTIFICATE_OUTBOUND.into(),
            Self::InboundRoots => names::ROOT_CERTIFICATE_INBOUND.into(),
            Self::Certificate(_) => names::SERVICE_CERTIFICATE.into(),
            Self::OutboundListener(..) => names::OUTBOUND_LISTENER.into(),
            Self::InboundListener(_) => names::INBOUND_LISTENER.into(),
            Self::InboundRoutes(_, number) => inbound::routes_name(*number).into(),
        }
    }
}

/// Whose views a resource is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// Everyone's (permissive mode).
    Mesh,
    /// Everyone's in a namespace (permissive mode).
    Namespace(Arc<str>),
    /// A client's (SMI mode).
    Client(ServiceIdentity),
    /// A class's.
    Class(ClassId),
}

#[derive(Debug)]
struct Held {
    entry: TypeSetEntry,
    holders: BTreeSet<Holder>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Slots {
    held: BTreeMap<SlotKey, Held>,
    free: Vec<Slot>,
    /// Given back in this batch.
    released: Vec<Slot>,
    next: u32,
}

impl Slots {
    /// The slot of a resource, if anybody holds it.
    pub(super) fn slot(&self, key: &SlotKey) -> Option<Slot> {
        Some(self.held.get(key)?.entry.1)
    }

    /// Who holds a resource.
    pub(super) fn holders(&self, key: &SlotKey) -> impl Iterator<Item = &Holder> {
        self.held.get(key).into_iter().flat_map(|held| &held.holders)
    }

    /// Makes `holder`, which held `before`, hold `after`. Returns what nobody held until now.
    pub(super) fn exchange(
        &mut self,
        holder: &Holder,
        before: &BTreeSet<SlotKey>,
        after: &BTreeSet<SlotKey>,
    ) -> Vec<SlotKey> {
        let mut created = Vec::new();
        for key in after.difference(before) {
            if let Some(held) = self.held.get_mut(key) {
                held.holders.insert(holder.clone());
                continue;
            }
            let slot = self.free.pop().unwrap_or_else(|| {
                self.next += 1;
                Slot(self.next - 1)
            });
            let held = Held {
                entry: (key.name(), slot),
                holders: BTreeSet::from([holder.clone()]),
            };
            self.held.insert(key.clone(), held);
            created.push(key.clone());
        }
        for key in before.difference(after) {
            let Some(held) = self.held.get_mut(key) else {
                continue;
            };
            held.holders.remove(holder);
            if held.holders.is_empty() {
                self.released.push(held.entry.1);
                self.held.remove(key);
            }
        }
        created
    }

    /// The entries of the resources of one kind among `keys`.
    pub(super) fn entries<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a SlotKey>,
        kind: ResourceType,
    ) -> Vec<TypeSetEntry> {
        let keys = keys.into_iter().filter(|key| key.kind() == kind);
        keys.filter_map(|key| Some(self.held.get(key)?.entry.clone()))
            .collect()
    }

    /// The held resources from `first` on, as long as `belongs` says so.
    pub(super) fn range<'a>(
        &'a self,
        first: &SlotKey,
        belongs: impl Fn(&SlotKey) -> bool + 'a,
    ) -> impl Iterator<Item = &'a SlotKey> {
        self.held
            .range(first..)
            .map(|(key, _)| key)
            .take_while(move |key| belongs(key))
    }

    /// All held resources.
    pub(super) fn keys(&self) -> impl Iterator<Item = &SlotKey> {
        self.held.keys()
    }

    /// Ends the batch: the slots given back, to be emptied, and free from now on.
    pub(super) fn settle(&mut self) -> Vec<Slot> {
        let released = std::mem::take(&mut self.released);
        self.free.extend(&released);
        released
    }
}
