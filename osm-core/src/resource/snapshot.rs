//! The snapshot: every resource, every class's view of them, and which proxy is of which class.
//!
//! Persistent maps and vectors (`imbl`) make publishing one cheap: a clone shares everything that did not change.

use std::sync::Arc;

use uuid::Uuid;

use super::{Resource, ResourceType, TypeSet};
use crate::identity::ServiceIdentity;

/// A class of proxies that get the same configuration: same identity, same services, same settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u32);

/// A place in the snapshot's table that holds one resource, across its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// What the mesh knows of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyEntry {
    /// The service account of its pod. A stream must prove this identity by its certificate.
    pub identity: ServiceIdentity,
    /// Its class.
    pub class: ClassId,
}

/// Everything a class of proxies gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    sets: [Arc<TypeSet>; ResourceType::ALL.len()],
}

impl View {
    /// The resources of one kind.
    pub fn set(&self, kind: ResourceType) -> &Arc<TypeSet> {
        &self.sets[kind as usize]
    }

    /// The view with another set of one kind.
    pub fn with(mut self, kind: ResourceType, set: Arc<TypeSet>) -> Self {
        self.sets[kind as usize] = set;
        self
    }
}

/// How many changed slots a snapshot remembers.
const LOG: usize = 1_024;

/// One consistent state of the whole mesh, shared by all streams. Cloning it is cheap.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts publications of this process; means nothing to another process and is never sent. To be raised after the
    /// changes of a publication, not before.
    pub revision: u64,
    /// The slots changed last, each with the revision it changed in.
    log: imbl::Vector<(u64, Slot)>,
    /// All changes after this revision are in the log.
    complete_after: u64,
    table: imbl::Vector<Option<Arc<Resource>>>,
    views: imbl::HashMap<ClassId, Arc<View>>,
    proxies: imbl::HashMap<Uuid, ProxyEntry>,
}

impl Snapshot {
    /// The resource in a slot; `None` while it is not known yet (a certificate being issued) or no longer.
    pub fn resource(&self, slot: Slot) -> Option<&Arc<Resource>> {
        self.table.get(slot.0 as usize)?.as_ref()
    }

    /// The view of a class.
    pub fn view(&self, class: ClassId) -> Option<&Arc<View>> {
        self.views.get(&class)
    }

    /// The proxy with this uuid.
    pub fn proxy(&self, uuid: Uuid) -> Option<&ProxyEntry> {
        self.proxies.get(&uuid)
    }

    /// How many proxies the mesh has, connected or not.
    pub fn proxy_count(&self) -> usize {
        self.proxies.len()
    }

    /// All proxies, in no particular order.
    pub fn proxies(&self) -> impl Iterator<Item = (&Uuid, &ProxyEntry)> {
        self.proxies.iter()
    }

    /// Puts a resource into a slot, or empties it.
    pub fn set_resource(&mut self, slot: Slot, resource: Option<Arc<Resource>>) {
        let index = slot.0 as usize;
        while self.table.len() <= index {
            self.table.push_back(None);
        }
        self.table.set(index, resource);
        self.log.push_back((self.revision + 1, slot));
        if self.log.len() > LOG
            && let Some((revision, _)) = self.log.pop_front()
        {
            self.complete_after = revision;
        }
    }

    /// The slots whose resources may differ from those of `older`, an earlier snapshot of the same mesh; repetitions are
    /// possible. `None` when that was too long or too many changes ago: everything may differ.
    pub fn changed_since(&self, older: &Self) -> Option<impl Iterator<Item = Slot>> {
        let covered = older.revision >= self.complete_after && older.revision <= self.revision;
        let changes = self.log.iter().rev();
        covered.then(|| {
            changes
                .take_while(|(revision, _)| *revision > older.revision)
                .map(|(_, slot)| *slot)
        })
    }

    /// Sets or removes the view of a class.
    pub fn set_view(&mut self, class: ClassId, view: Option<Arc<View>>) {
        match view {
            Some(view) => self.views.insert(class, view),
            None => self.views.remove(&class),
        };
    }

    /// Sets or removes a proxy.
    pub fn set_proxy(&mut self, uuid: Uuid, entry: Option<ProxyEntry>) {
        match entry {
            Some(entry) => self.proxies.insert(uuid, entry),
            None => self.proxies.remove(&uuid),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn changed(newer: &Snapshot, older: &Snapshot) -> Option<BTreeSet<u32>> {
        Some(newer.changed_since(older)?.map(|slot| slot.0).collect())
    }

    #[test]
    fn what_changed_since_is_known_for_a_while() {
        let mut snapshot = Snapshot::default();
        let mut history = vec![snapshot.clone()];
        for index in 0..3_000 {
            snapshot.set_resource(Slot(index % 7), None);
            if index % 2 == 1 {
                snapshot.revision += 1;
                history.push(snapshot.clone());
            }
        }
        let newest = &history[1_500];
        assert_eq!(changed(newest, newest), Some(BTreeSet::new()));
        assert_eq!(
            changed(newest, &history[1_499]),
            Some([2_998 % 7, 2_999 % 7].into())
        );
        assert_eq!(changed(newest, &history[1_496]), Some((0..7).collect()));
        assert_eq!(changed(newest, &history[10]), None, "too long ago");
        assert_eq!(changed(&history[10], newest), None, "not older");
    }
}
