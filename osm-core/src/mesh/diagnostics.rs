//! What is wrong with objects now.
//!
//! Invariant: what a stage finds wrong with an object replaces what it found before; only what is new is reported.

use std::collections::BTreeMap;

use crate::facts::{Diagnostic, FactKey, FactKind, Problem};

/// Who finds fault. Displayed nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// The object cannot be read.
    Malformed,
    /// A part of it cannot be read.
    Fact,
    /// Another split of its apex counts.
    Shadow,
    /// A split's services.
    Split,
    /// A service's ports.
    Ports,
    /// A service's addresses.
    Doors,
    /// A target's rules.
    Rules,
    /// A target's accounts.
    References,
    /// A pod's uuid.
    Uuid,
}

#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    found: BTreeMap<(FactKey, Stage), Vec<Diagnostic>>,
    fresh: Vec<Diagnostic>,
}

impl Diagnostics {
    /// Replaces what a stage finds wrong with an object.
    pub(super) fn set(&mut self, stage: Stage, object: FactKey, problems: Vec<Problem>) {
        let diagnostic = |problem: Problem| Diagnostic::new(object.clone(), problem.reason, problem.message);
        let mut now: Vec<Diagnostic> = problems.into_iter().map(diagnostic).collect();
        now.sort();
        now.dedup();
        let key = (object, stage);
        let before = self.found.remove(&key).unwrap_or_default();
        self.fresh.extend(
            now.iter()
                .filter(|diagnostic| !before.contains(diagnostic))
                .cloned(),
        );
        if !now.is_empty() {
            self.found.insert(key, now);
        }
    }

    /// Drops everything about an object that is gone.
    pub(super) fn forget(&mut self, object: &FactKey) {
        let all = (object.clone(), Stage::Malformed)..=(object.clone(), Stage::Uuid);
        let stages: Vec<_> = self.found.range(all).map(|(key, _)| key.clone()).collect();
        for key in stages {
            self.found.remove(&key);
        }
    }

    /// The objects of a kind that cannot be read.
    pub(super) fn malformed(&self, kind: FactKind) -> impl Iterator<Item = FactKey> {
        let malformed = self
            .found
            .keys()
            .filter(move |(key, stage)| key.kind == kind && *stage == Stage::Malformed);
        malformed.map(|(key, _)| key.clone())
    }

    /// What was found since it was last asked for.
    pub(super) fn take_fresh(&mut self) -> Vec<Diagnostic> {
        std::mem::take(&mut self.fresh)
    }

    /// All that is wrong, ordered by object.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.found.values().flatten()
    }
}
