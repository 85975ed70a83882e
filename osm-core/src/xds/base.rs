//! One kind's resources in one snapshot, and how two of them differ.
//!
//! Must not know what a proxy has or wants. Invariant: it is shared, never copied.

use std::{cmp::Ordering, sync::Arc};

use crate::resource::{Resource, Slot, Snapshot, TypeSet, TypeSetEntry};

/// One kind's resources in one snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    pub(super) set: Arc<TypeSet>,
    pub(super) snapshot: Arc<Snapshot>,
}

/// What a base says of a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry<'a> {
    Resource(&'a Arc<Resource>),
    /// It exists but is not known yet, such as a certificate that is being issued.
    Pending,
    Absent,
}

/// A name whose entries may differ between two bases, and its slots in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Change<'a> {
    pub(super) name: &'a Arc<str>,
    pub(super) before: Option<Slot>,
    pub(super) after: Option<Slot>,
}

impl<'a> Change<'a> {
    /// Of a name that keeps its slot.
    fn within((name, slot): &'a TypeSetEntry) -> Self {
        let slot = Some(*slot);
        Self {
            name,
            before: slot,
            after: slot,
        }
    }
}

impl Base {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.set, &other.set) && Arc::ptr_eq(&self.snapshot, &other.snapshot)
    }

    pub(super) fn entry(&self, name: &str) -> Entry<'_> {
        self.at(self.set.slot(name))
    }

    /// The entry of the name that has this slot in its set, if it has one.
    pub(super) fn at(&self, slot: Option<Slot>) -> Entry<'_> {
        let Some(slot) = slot else { return Entry::Absent };
        self.snapshot
            .resource(slot)
            .map_or(Entry::Pending, Entry::Resource)
    }

    /// What may differ between two bases, ordered by name.
    pub(super) fn changes<'a>(&'a self, newer: &'a Self) -> Vec<Change<'a>> {
        if self.is(newer) {
            return Vec::new();
        }
        let resource = |base: &'a Self, slot| base.snapshot.resource(slot);
        let same = |a: Option<&Arc<Resource>>, b: Option<&Arc<Resource>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.version() == b.version(),
            (None, None) => true,
            _ => false,
        };
        if Arc::ptr_eq(&self.set, &newer.set) {
            // A stream that nothing has concerned since thousands connected is a thousand changes behind, nearly all of others:
            // then its own names are fewer.
            let most = newer.set.len();
            let slots = newer.snapshot.changed_since(&self.snapshot);
            let slots: Option<Vec<_>> = slots.map(|slots| slots.take(most + 1).collect());
            if let Some(slots) = slots.filter(|slots| slots.len() <= most) {
                let mut changes: Vec<_> = slots
                    .into_iter()
                    .filter_map(|slot| {
                        let (old, new) = (resource(self, slot), resource(newer, slot));
                        let entry = newer.set.get(new.or(old)?.name())?;
                        (entry.1 == slot && !same(old, new)).then_some(Change::within(entry))
                    })
                    .collect();
                changes.sort();
                changes.dedup();
                return changes;
            }
            let changed = |slot: Slot| !same(resource(self, slot), resource(newer, slot));
            let entries = newer.set.iter().filter(|(_, slot)| changed(*slot));
            return entries.map(Change::within).collect();
        }
        let (mut old, mut new) = (self.set.iter().peekable(), newer.set.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let order = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) if Arc::ptr_eq(&a.0, &b.0) => Ordering::Equal,
                (Some(a), Some(b)) => a.0.cmp(&b.0),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let before = old.next_if(|_| order != Ordering::Greater);
            let after = new.next_if(|_| order != Ordering::Less);
            match (before, after) {
                (Some(before), Some(after)) if same(resource(self, before.1), resource(newer, after.1)) => {}
                _ => changes.extend(after.or(before).map(|(name, _)| Change {
                    name,
                    before: before.map(|(_, slot)| *slot),
                    after: after.map(|(_, slot)| *slot),
                })),
            }
        }
        changes
    }
}
