//! One kind's resources in one snapshot, and how two of them differ.
//!
//! Must not know what a proxy has or wants. Invariant: it is shared, never copied.

use std::{cmp::Ordering, sync::Arc};

use crate::resource::{Resource, Slot, Snapshot, TypeSet};

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

    /// The names whose entries may differ between two bases, ordered, each with its slot in the newer one.
    pub(super) fn changes<'a>(&'a self, newer: &'a Self) -> Vec<(&'a Arc<str>, Option<Slot>)> {
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
                let mut names: Vec<_> = slots
                    .into_iter()
                    .filter_map(|slot| {
                        let (old, new) = (resource(self, slot), resource(newer, slot));
                        let (name, known) =
                            newer.set.get(new.or(old)?.name()).map(|(name, at)| (name, *at))?;
                        (known == slot && !same(old, new)).then_some((name, Some(slot)))
                    })
                    .collect();
                names.sort();
                names.dedup();
                return names;
            }
            let changed = |slot: Slot| !same(resource(self, slot), resource(newer, slot));
            let entries = newer.set.iter().filter(|(_, slot)| changed(*slot));
            return entries.map(|(name, slot)| (name, Some(*slot))).collect();
        }
        let (mut old, mut new) = (self.set.iter().peekable(), newer.set.iter().peekable());
        let mut names = Vec::new();
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
                (_, Some((name, slot))) => names.push((name, Some(*slot))),
                (Some((name, _)), None) => names.push((name, None)),
                (None, None) => {}
            }
        }
        names
    }
}
