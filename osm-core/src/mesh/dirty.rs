//! What may have to be computed anew, as a batch is worked through.
//!
//! One set for each stage, in the order the stages run; a stage empties its own and fills only later ones.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{slots::SlotKey, tables::Name};
use crate::{facts::TrafficTarget, identity::ServiceIdentity, resource::ClassId};

#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// Something changed that the sets may not show.
    pub(super) any: bool,
    /// MeshConfig changed.
    pub(super) settings: bool,
    /// Pods with an IPv6 address came to be, or are no more.
    pub(super) families: bool,
    /// Pods that may have become or ceased to be members of services.
    pub(super) links: BTreeSet<Name>,
    /// Services that may have gained or lost members.
    pub(super) selectors: BTreeSet<Name>,
    /// Services that may be split otherwise.
    pub(super) apexes: BTreeSet<Name>,
    /// Services whose node may have changed: fact, members, endpoints.
    pub(super) services: BTreeSet<Name>,
    /// Services whose doors may have changed hands.
    pub(super) doors: BTreeSet<Name>,
    /// Services whose traffic may go elsewhere.
    pub(super) outbound: BTreeSet<Name>,
    /// Services that may be within the reach of other clients than before, or reached otherwise.
    pub(super) reached: BTreeSet<Name>,
    /// Services whose pods may have to let in something else.
    pub(super) inbound: BTreeSet<Name>,
    /// Identities that may be called by others than before.
    pub(super) destinations: BTreeSet<ServiceIdentity>,
    /// Targets that may refer to accounts that do not exist.
    pub(super) references: BTreeSet<Name>,
    /// Pods whose class may have changed.
    pub(super) pods: BTreeSet<Name>,
    /// Uuids that may be another pod's.
    pub(super) uuids: BTreeSet<Uuid>,
    /// Whether what everyone gets (permissive mode) may have changed.
    pub(super) mesh: bool,
    /// Clients that may reach other services, or services otherwise.
    pub(super) clients: BTreeSet<ServiceIdentity>,
    /// Classes whose own resources may have changed.
    pub(super) classes: BTreeSet<ClassId>,
    /// Identities that got their first or lost their last proxy, and whether they had one before the batch.
    pub(super) identities: BTreeMap<ServiceIdentity, bool>,
    /// Classes that are gone; their ids are free when the batch is over.
    pub(super) freed: Vec<ClassId>,
    /// Resources that may have changed.
    pub(super) slots: BTreeSet<SlotKey>,
}

impl Dirty {
    /// Marks what depends on a target that came, went or changed.
    pub(super) fn target(&mut self, name: &Name, target: &TrafficTarget) {
        self.destinations.insert(target.destination.clone());
        self.clients.extend(target.sources.iter().cloned());
        self.references.insert(name.clone());
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        !(self.any || self.settings || self.mesh)
            && self.links.is_empty()
            && self.selectors.is_empty()
            && self.apexes.is_empty()
            && self.services.is_empty()
            && self.destinations.is_empty()
            && self.references.is_empty()
            && self.pods.is_empty()
            && self.uuids.is_empty()
            && self.clients.is_empty()
            && self.slots.is_empty()
    }
}
