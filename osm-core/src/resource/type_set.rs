//! The names a class of proxies gets of one kind, in layers.

use std::{cmp::Ordering, sync::Arc};

use super::Slot;

/// A name and the slot its resource is in.
pub type TypeSetEntry = (Arc<str>, Slot);

/// How many layers a set has at most; a deeper one is flattened.
const LAYERS: usize = 3;

/// The resources of one kind that a class gets: names and the slots they are in. Membership only; bodies are in the
/// table, so that a changed body changes no set.
///
/// A set is its own entries over an optional shared one: what a thousand classes have in common (in permissive mode:
/// every service of the mesh) is held once. An own entry hides the shared one of the same name.
#[derive(Debug, Default)]
pub struct TypeSet {
    base: Option<Arc<TypeSet>>,
    entries: Box<[TypeSetEntry]>,
    len: usize,
}

impl TypeSet {
    /// A set from its entries; of several entries of one name the first stays.
    pub fn new(mut entries: Vec<TypeSetEntry>) -> Self {
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.dedup_by(|later, first| later.0 == first.0);
        Self {
            base: None,
            len: entries.len(),
            entries: entries.into(),
        }
    }

    /// `entries` over `base`. Without entries it is `base` itself.
    pub fn over(base: &Arc<TypeSet>, entries: Vec<TypeSetEntry>) -> Arc<Self> {
        if entries.is_empty() {
            return Arc::clone(base);
        }
        let own = Self::new(entries);
        if base.is_empty() {
            return Arc::new(own);
        }
        if base.depth() >= LAYERS {
            let flat = base.iter().filter(|(name, _)| own.slot(name).is_none());
            return Arc::new(Self::new(flat.chain(own.iter()).cloned().collect()));
        }
        let added = own
            .entries
            .iter()
            .filter(|(name, _)| base.slot(name).is_none())
            .count();
        Arc::new(Self {
            base: Some(Arc::clone(base)),
            len: base.len + added,
            entries: own.entries,
        })
    }

    /// The entries, ordered by name, each name once.
    pub fn iter(&self) -> TypeSetIter<'_> {
        let mut layers: [&[TypeSetEntry]; LAYERS] = [&[]; LAYERS];
        let mut set = Some(self);
        for layer in &mut layers {
            let Some(this) = set else { break };
            *layer = &this.entries;
            set = this.base.as_deref();
        }
        TypeSetIter { layers }
    }

    /// The slot of the resource `name`.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.get(name).map(|(_, slot)| *slot)
    }

    /// The entry of the resource `name`.
    pub fn get(&self, name: &str) -> Option<&TypeSetEntry> {
        match self
            .entries
            .binary_search_by(|(entry, _)| entry.as_ref().cmp(name))
        {
            Ok(index) => Some(&self.entries[index]),
            Err(_) => self.base.as_ref()?.get(name),
        }
    }

    /// The names of the set that are not among `names`, if those are names of the set, each once, and lack at most `most`
    /// of it. Cheapest for names in the set's own order.
    pub fn all_but(&self, names: &[&str], most: usize) -> Option<Vec<Arc<str>>> {
        if names.len() > self.len || names.len() + most < self.len {
            return None;
        }
        let mut left = names.iter().peekable();
        let lacks = |name: &&TypeSetEntry| left.next_if(|next| **next == name.0.as_ref()).is_none();
        let missing: Vec<_> = self.iter().filter(lacks).take(most + 1).collect();
        if left.peek().is_none() && missing.len() + names.len() == self.len {
            return Some(missing.into_iter().map(|(name, _)| name.clone()).collect());
        }
        let mut slots = names
            .iter()
            .map(|name| self.slot(name))
            .collect::<Option<Vec<_>>>()?;
        slots.sort_unstable();
        if slots.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        let missing = self.iter().filter(|(_, slot)| slots.binary_search(slot).is_err());
        Some(missing.map(|(name, _)| name.clone()).collect())
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn depth(&self) -> usize {
        1 + self.base.as_ref().map_or(0, |base| base.depth())
    }
}

/// Sets are equal when they have the same names in the same slots, however layered.
impl PartialEq for TypeSet {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for TypeSet {}

impl<'a> IntoIterator for &'a TypeSet {
    type Item = &'a TypeSetEntry;
    type IntoIter = TypeSetIter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The entries of a [`TypeSet`], ordered by name. Does not allocate.
#[derive(Clone, Debug)]
pub struct TypeSetIter<'a> {
    /// The rest of each layer, the topmost first.
    layers: [&'a [TypeSetEntry]; LAYERS],
}

impl<'a> Iterator for TypeSetIter<'a> {
    type Item = &'a TypeSetEntry;

    fn next(&mut self) -> Option<Self::Item> {
        let mut least: Option<&'a TypeSetEntry> = None;
        for layer in &self.layers {
            let Some(head) = layer.first() else { continue };
            if least.is_none_or(|least| head.0.cmp(&least.0) == Ordering::Less) {
                least = Some(head);
            }
        }
        let least = least?;
        for layer in &mut self.layers {
            if let Some((head, rest)) = layer.split_first()
                && head.0 == least.0
            {
                *layer = rest;
            }
        }
        Some(least)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn entries(map: &BTreeMap<u8, u32>) -> Vec<TypeSetEntry> {
        map.iter()
            .map(|(name, slot)| (name.to_string().into(), Slot(*slot)))
            .collect()
    }

    proptest! {
        #[test]
        fn layers_read_as_one_set(layers in prop::collection::vec(prop::collection::btree_map(0_u8..20, 0_u32..9, 0..9), 1..6)) {
            let mut set = Arc::new(TypeSet::default());
            let mut model = BTreeMap::new();
            for layer in &layers {
                set = TypeSet::over(&set, entries(layer));
                model.extend(layer.clone());
                let flat = TypeSet::new(entries(&model));
                prop_assert_eq!(&*set, &flat);
                prop_assert!(set.depth() <= LAYERS);
                prop_assert_eq!(set.iter().count(), set.len());
                let unique = model.values().collect::<BTreeSet<_>>().len() == model.len();
                let owned: Vec<String> = model.keys().rev().map(u8::to_string).collect();
                let mut names: Vec<&str> = owned.iter().map(String::as_str).collect();
                prop_assert!(!unique || set.all_but(&names, 0) == Some(Vec::new()));
                names.sort_unstable();
                prop_assert_eq!(set.all_but(&names, 0), Some(Vec::new()));
                let Some(first) = names.first().copied() else { continue };
                names.remove(0);
                prop_assert_eq!(set.all_but(&names, 0), None);
                prop_assert_eq!(set.all_but(&names, 1), Some(vec![first.into()]));
                names.reverse();
                prop_assert!(!unique || set.all_but(&names, 1) == Some(vec![first.into()]));
                names.push("other");
                prop_assert_eq!(set.all_but(&names, 1), None);
                prop_assert!(set.len() != 2 || set.all_but(&[first, first], 1).is_none());
                for name in 0_u8..20 {
                    prop_assert_eq!(set.slot(&name.to_string()), model.get(&name).map(|slot| Slot(*slot)));
                }
            }
        }
    }
}
