//! Which resources of one kind a proxy asked for.
//!
//! Invariant: `added` holds no name of `shared`, `dropped` only names of `shared`. The usual subscription, to every
//! name its view has, is one pointer to the view's own set.

use std::{collections::BTreeSet, sync::Arc};

use crate::resource::TypeSet;

#[derive(Debug, Default)]
pub(super) struct Subscription {
    wildcard: bool,
    shared: Arc<TypeSet>,
    added: BTreeSet<Arc<str>>,
    dropped: BTreeSet<Arc<str>>,
}

impl Subscription {
    /// Whether everything is subscribed to.
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(super) fn set_wildcard(&mut self, wildcard: bool) {
        self.wildcard = wildcard;
    }

    /// Whether updates of `name` are wanted, by wildcard or by name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.wildcard || self.names(name)
    }

    /// The same for a name that is known to be of `set`; cheap if that is what the subscription points to.
    pub(super) fn contains_of(&self, set: &Arc<TypeSet>, name: &str) -> bool {
        if Arc::ptr_eq(set, &self.shared) {
            self.wildcard || !self.dropped.contains(name)
        } else {
            self.contains(name)
        }
    }

    /// Whether `name` itself was subscribed to.
    pub(super) fn names(&self, name: &str) -> bool {
        self.added.contains(name) || (self.shared.slot(name).is_some() && !self.dropped.contains(name))
    }

    /// How many names were subscribed to.
    pub(super) fn len(&self) -> usize {
        self.shared.len() - self.dropped.len() + self.added.len()
    }

    /// The names subscribed to, unordered.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        let shared = self.shared.iter().map(|(name, _)| name);
        shared
            .filter(|name| !self.dropped.contains(*name))
            .chain(&self.added)
    }

    pub(super) fn insert(&mut self, name: Arc<str>) {
        if self.shared.slot(&name).is_some() {
            self.dropped.remove(&name);
        } else {
            self.added.insert(name);
        }
    }

    /// Subscribes to the names of `set` but for those `dropped`, and to no others.
    pub(super) fn name_all(&mut self, set: &Arc<TypeSet>, dropped: Vec<Arc<str>>) {
        self.shared = set.clone();
        self.added = BTreeSet::new();
        self.dropped = dropped.into_iter().collect();
    }

    pub(super) fn remove(&mut self, name: &str) {
        if !self.added.remove(name)
            && let Some((name, _)) = self.shared.get(name)
        {
            self.dropped.insert(name.clone());
        }
    }

    /// Drops these names, if the names of `set` are what is left then. Returns whether it did.
    pub(super) fn drop_all_but(&mut self, names: &[&str], set: &Arc<TypeSet>) -> bool {
        if !(self.added.is_empty() && self.dropped.is_empty()) {
            return false;
        }
        let left = self.shared.all_but(names, set.len());
        let is_set = left
            .is_some_and(|left| left.len() == set.len() && left.iter().all(|name| set.slot(name).is_some()));
        if is_set {
            self.name_all(set, Vec::new());
        }
        is_set
    }

    /// Points to `set` instead of holding names, if they are the same.
    pub(super) fn share(&mut self, set: &Arc<TypeSet>) {
        if Arc::ptr_eq(&self.shared, set) || self.len() != set.len() {
            return;
        }
        if self.iter().all(|name| set.slot(name).is_some()) {
            self.name_all(set, Vec::new());
        }
    }

    /// Whether it costs no memory of its own.
    #[cfg(test)]
    pub(super) fn is_shared(&self) -> bool {
        self.added.is_empty() && self.dropped.is_empty()
    }
}
