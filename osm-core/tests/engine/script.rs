//! Random things that happen, and what is true after them.

use std::{collections::BTreeMap, sync::Arc};

use osm_core::{
    facts::{Diagnostic, Fact, FactKey, FactKind},
    identity::ServiceIdentity,
    ir::ServiceCertificate,
    mesh::Event,
};
use proptest::prelude::*;

use crate::mesh::{self, Choices};

/// What is true: the last good reading of every object that exists, and what else was told.
#[derive(Clone, Default)]
pub(crate) struct Model {
    facts: BTreeMap<FactKey, Fact>,
    malformed: BTreeMap<FactKey, Diagnostic>,
    roots: Option<Arc<str>>,
    certificates: BTreeMap<ServiceIdentity, ServiceCertificate>,
}

impl Model {
    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Upsert(fact) => {
                self.malformed.remove(&fact.key());
                self.facts.insert(fact.key(), fact.clone());
            }
            Event::Remove(key) => self.remove(key),
            Event::Reset {
                kind,
                facts,
                malformed,
            } => {
                let stays = |key: &FactKey| {
                    key.kind != *kind
                        || facts.iter().any(|fact| fact.key() == *key)
                        || malformed.iter().any(|bad| bad.object == *key)
                };
                let keys = self.facts.keys().chain(self.malformed.keys());
                let gone: Vec<_> = keys.filter(|key| !stays(key)).cloned().collect();
                gone.iter().for_each(|key| self.remove(key));
                facts
                    .iter()
                    .for_each(|fact| self.note(&Event::Upsert(fact.clone())));
                malformed
                    .iter()
                    .for_each(|bad| self.note(&Event::Malformed(bad.clone())));
            }
            Event::Malformed(diagnostic) => {
                self.malformed
                    .insert(diagnostic.object.clone(), diagnostic.clone());
            }
            Event::Roots(roots) => self.roots = Some(roots.clone()),
            Event::Certificate {
                identity,
                certificate: Some(certificate),
            } => {
                self.certificates.insert(identity.clone(), certificate.clone());
            }
            Event::Certificate {
                identity,
                certificate: None,
            } => {
                self.certificates.remove(identity);
            }
        }
    }

    fn remove(&mut self, key: &FactKey) {
        self.malformed.remove(key);
        // The settings of the mesh outlive their object.
        if key.kind != FactKind::MeshConfig {
            self.facts.remove(key);
        }
    }

    /// Everything that is true, as events.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events: Vec<_> = self.facts.values().cloned().map(Event::Upsert).collect();
        events.extend(self.roots.clone().map(Event::Roots));
        events.extend(
            self.certificates
                .iter()
                .map(|(identity, certificate)| Event::Certificate {
                    identity: identity.clone(),
                    certificate: Some(certificate.clone()),
                }),
        );
        events.extend(self.malformed.values().cloned().map(Event::Malformed));
        events
    }
}

impl Model {
    /// What is true and can be read, as events.
    pub(crate) fn known(&self) -> Vec<Event> {
        let unread = |event: &Event| match event {
            Event::Upsert(fact) => self.malformed.contains_key(&fact.key()),
            Event::Malformed(_) => true,
            _ => false,
        };
        self.events().into_iter().filter(|event| !unread(event)).collect()
    }
}

/// The events in another order; what is malformed stays last, since reading an object clears that.
pub(crate) fn shuffled(mut events: Vec<Event>, seed: u64) -> Vec<Event> {
    let mut state = seed;
    for index in (1..events.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        events.swap(index, (state >> 33) as usize % (index + 1));
    }
    events.sort_by_key(|event| matches!(event, Event::Malformed(_)));
    events
}

/// Something that happens, by the choices made about it.
#[derive(Clone, Copy)]
pub(crate) struct Step([u8; 16]);

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} = {:?}", self.0, self.event(&Model::default()))
    }
}

/// Any step.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    any::<[u8; 16]>().prop_map(Step)
}

impl Step {
    /// A step from a number, for scripts without proptest.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self(std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        }))
    }

    /// What happens; a relist and a repetition depend on what is true.
    pub(crate) fn event(&self, model: &Model) -> Event {
        let c = &mut Choices::new(self.0);
        match c.of(32) {
            0 => {
                let roots = format!("root {}", c.of(2));
                Event::Roots(roots.into())
            }
            1 | 2 => mesh::certificate(c),
            3..=6 => Event::Remove(fact(c).key()),
            7 => malformed(fact(c).key(), c),
            8 => {
                let kind = FactKind::ALL[usize::from(c.of(10))];
                let all: Vec<_> = model
                    .facts
                    .values()
                    .filter(|fact| fact.key().kind == kind)
                    .cloned()
                    .collect();
                let (kept, lost): (Vec<_>, Vec<_>) = all.into_iter().partition(|_| c.of(5) != 0);
                let bad = lost
                    .iter()
                    .filter(|_| c.flag())
                    .map(|fact| diagnostic(fact.key(), 0))
                    .collect();
                Event::Reset {
                    kind,
                    facts: kept,
                    malformed: bad,
                }
            }
            9 => {
                // Something that is true is told again.
                let index = usize::from(c.of(64));
                match model.facts.values().nth(index) {
                    Some(fact) => Event::Upsert(fact.clone()),
                    None => Event::Roots("root 0".into()),
                }
            }
            _ => Event::Upsert(fact(c)),
        }
    }
}

fn diagnostic(key: FactKey, number: u8) -> Diagnostic {
    Diagnostic::new(key, "Garbage", format!("garbage {number}"))
}

fn malformed(key: FactKey, c: &mut Choices) -> Event {
    Event::Malformed(diagnostic(key, c.of(2)))
}

fn fact(c: &mut Choices) -> Fact {
    let namespace = c.namespace();
    match c.of(24) {
        0 => mesh::namespace(namespace, c),
        1..=4 => mesh::service(namespace, mesh::service_name(c), c),
        5..=8 => mesh::slice(namespace, mesh::slice_name(c), c),
        9..=13 => mesh::pod(namespace, mesh::pod_name(c), c),
        14 => mesh::account(namespace, mesh::account_name(c)),
        15 | 16 => mesh::config(c),
        17 | 18 => mesh::target(namespace, mesh::target_name(c), c),
        19 => mesh::group(namespace, mesh::group_name(c), c),
        20 => mesh::tcp_route(namespace, mesh::tcp_route_name(c), c),
        _ => mesh::split(namespace, mesh::split_name(c), c),
    }
}
