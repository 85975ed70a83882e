//! The engine: facts in, snapshots out.
//!
//! Owns the tables between facts and resources. One writer, plain data, no clock. Invariants: what the engine publishes
//! depends on the facts it holds and not on the way they came; it recomputes only what a change can reach.

use std::{collections::BTreeMap, sync::Arc};

pub use crate::facts::mesh_config::ControlSettings;
use crate::{
    facts::{Diagnostic, Fact, FactKey, FactKind},
    identity::{ServiceIdentity, TrustDomain},
    ir::ServiceCertificate,
    resource::{ClassId, Snapshot},
};

/// What an engine is told once.
#[derive(Clone, Debug)]
pub struct Options {
    /// The mesh's name, as in the namespaces' label.
    pub mesh_name: Arc<str>,
    /// The control plane's namespace, where MeshConfig is.
    pub osm_namespace: Arc<str>,
    /// The suffix of every name in a certificate.
    pub trust_domain: TrustDomain,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object is there, or has changed.
    Upsert(Fact),
    /// An object is gone.
    Remove(FactKey),
    /// All objects of a kind, after a watch had to start over.
    Reset {
        /// The kind.
        kind: FactKind,
        /// All its objects that can be read.
        facts: Vec<Fact>,
        /// Those that cannot: what was last read of them stays in force, if anything was.
        malformed: Vec<Diagnostic>,
    },
    /// An object cannot be read. What was last read of it stays in force.
    Malformed(Diagnostic),
    /// The roots that the mesh trusts, PEM.
    Roots(Arc<str>),
    /// The certificate of an identity, or that there is none any more.
    Certificate {
        /// Whose.
        identity: ServiceIdentity,
        /// The certificate.
        certificate: Option<ServiceCertificate>,
    },
}

/// What a batch of events changed.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The new state of the mesh; `None` when nothing changed.
    pub snapshot: Option<Arc<Snapshot>>,
    /// The classes whose streams must look: all whose resources or membership changed, and the former class of every
    /// proxy that moved or vanished. Ordered.
    pub classes: Vec<ClassId>,
    /// Identities that have a proxy now and had none before: they need a certificate. Ordered.
    pub appeared: Vec<ServiceIdentity>,
    /// Identities whose last proxy is gone: their certificate is not needed. Ordered.
    pub vanished: Vec<ServiceIdentity>,
    /// What is newly found wrong with objects.
    pub diagnostics: Vec<Diagnostic>,
    /// How many resources were built, changed or not: the cost of the batch.
    pub recomputed: usize,
}

/// The mesh, from facts to snapshots.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    facts: BTreeMap<FactKey, Fact>,
    snapshot: Arc<Snapshot>,
    control: ControlSettings,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            facts: BTreeMap::new(),
            snapshot: Arc::default(),
            control: ControlSettings::default(),
        }
    }

    /// Takes note of what happened and says what it changed.
    pub fn apply(&mut self, events: Vec<Event>) -> Change {
        let mut change = Change::default();
        for event in events {
            match event {
                Event::Upsert(fact) => {
                    if let Fact::MeshConfig(config) = &fact
                        && config.namespace == self.options.osm_namespace
                    {
                        self.control = config.control.clone();
                    }
                    self.facts.insert(fact.key(), fact);
                }
                Event::Remove(key) => drop(self.facts.remove(&key)),
                Event::Reset { kind, facts, malformed } => {
                    let kept = |key: &FactKey| malformed.iter().any(|diagnostic| diagnostic.object == *key);
                    self.facts.retain(|key, _| key.kind != kind || kept(key));
                    self.facts
                        .extend(facts.into_iter().map(|fact| (fact.key(), fact)));
                }
                Event::Malformed(diagnostic) => change.diagnostics.push(diagnostic),
                Event::Roots(_) | Event::Certificate { .. } => {}
            }
        }
        change
    }

    /// The last state published.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// What MeshConfig says about the control plane itself.
    pub fn control(&self) -> &ControlSettings {
        &self.control
    }

    /// Everything that is wrong with objects now, ordered.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        std::iter::empty()
    }

    /// The identities that have a proxy, ordered.
    pub fn identities(&self) -> impl Iterator<Item = &ServiceIdentity> {
        std::iter::empty()
    }
}
