//! The snapshot in the making.
//!
//! Invariants: a resource whose bytes did not change keeps its place and wakes nobody; whoever holds one that did is
//! woken.

use std::{collections::BTreeSet, sync::Arc};

use super::slots::{Holder, SlotKey, Slots};
use crate::resource::{ClassId, ProxyEntry, Resource, Snapshot, View};

#[derive(Debug, Default)]
pub(super) struct Publication {
    pub(super) slots: Slots,
    working: Snapshot,
    published: Arc<Snapshot>,
    changed: bool,
    /// Whom this batch concerns.
    pub(super) holders: BTreeSet<Holder>,
    /// Classes this batch concerns beyond that.
    pub(super) classes: BTreeSet<ClassId>,
    recomputed: usize,
}

impl Publication {
    /// The last state published.
    pub(super) fn published(&self) -> &Arc<Snapshot> {
        &self.published
    }

    /// Makes `holder` hold other resources. Returns those that nobody held until now and that have to be built.
    pub(super) fn exchange(
        &mut self,
        holder: &Holder,
        before: &BTreeSet<SlotKey>,
        after: &BTreeSet<SlotKey>,
    ) -> Vec<SlotKey> {
        self.slots.exchange(holder, before, after)
    }

    /// Puts a resource that was just built where its key says, if anybody holds it and it differs.
    pub(super) fn put(&mut self, key: &SlotKey, resource: Option<Arc<Resource>>) {
        self.recomputed += usize::from(resource.is_some());
        let Some(slot) = self.slots.slot(key) else { return };
        let version = |resource: &Arc<Resource>| resource.version();
        if self.working.resource(slot).map(version) != resource.as_ref().map(version) {
            self.working.set_resource(slot, resource);
            self.holders.extend(self.slots.holders(key).cloned());
            self.changed = true;
        }
    }

    /// Whether a class has a view.
    pub(super) fn has_view(&self, class: ClassId) -> bool {
        self.working.view(class).is_some()
    }

    /// Sets or removes a class's view, and wakes it.
    pub(super) fn set_view(&mut self, class: ClassId, view: Option<Arc<View>>) {
        self.working.set_view(class, view);
        self.classes.insert(class);
        self.changed = true;
    }

    /// Sets or removes a proxy.
    pub(super) fn set_proxy(&mut self, uuid: uuid::Uuid, entry: Option<ProxyEntry>) {
        self.working.set_proxy(uuid, entry);
        self.changed = true;
    }

    /// Ends the batch. Returns the new snapshot if there is one, and how many resources were built.
    pub(super) fn finish(&mut self) -> (Option<Arc<Snapshot>>, usize) {
        for slot in self.slots.settle() {
            self.working.set_resource(slot, None);
        }
        let recomputed = std::mem::take(&mut self.recomputed);
        if !std::mem::take(&mut self.changed) {
            return (None, recomputed);
        }
        self.working.revision += 1;
        self.published = Arc::new(self.working.clone());
        (Some(Arc::clone(&self.published)), recomputed)
    }
}
