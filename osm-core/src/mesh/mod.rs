//! The engine: facts in, snapshots out.
//!
//! Owns the tables between facts and resources. One writer, plain data, no clock. Facts are compared first; what a
//! changed fact can reach is recomputed in a fixed order of stages, each of which stops where its result is the same:
//!
//! ```text
//! tables (facts, members) -> splits -> nodes (pods, endpoints) -> doors -> outbound -> access
//!   -> classes (which proxy is like which) -> audiences (outbound) -> classes (inbound, views) -> resources -> snapshot
//! ```
//!
//! Invariants: what the engine publishes depends on the facts it holds and not on the way they came; no stage looks at
//! more than what a change can reach; nothing that is gone leaves anything behind.

mod audience;
mod build;
mod classes;
mod diagnostics;
mod dirty;
mod publication;
mod services;
mod slots;
mod stages;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::{
    audience::Audiences,
    classes::Classes,
    diagnostics::{Diagnostics, Stage},
    dirty::Dirty,
    publication::Publication,
    services::Services,
    slots::SlotKey,
    tables::Tables,
};
pub use crate::facts::mesh_config::ControlSettings;
use crate::{
    facts::{Diagnostic, Fact, FactKey, FactKind, MeshConfig, Problem},
    identity::{ServiceIdentity, TrustDomain},
    ir::ServiceCertificate,
    policy::Access,
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
    /// What MeshConfig says about the control plane itself, if that changed.
    pub control: Option<ControlSettings>,
    /// What is newly found wrong with objects.
    pub diagnostics: Vec<Diagnostic>,
    /// How many resources were built, changed or not: the cost of the batch.
    pub recomputed: usize,
}

/// The mesh, from facts to snapshots.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    tables: Tables,
    services: Services,
    access: BTreeMap<ServiceIdentity, Access>,
    audiences: Audiences,
    classes: Classes,
    publication: Publication,
    diagnostics: Diagnostics,
    /// The MeshConfig in force; one with every field absent until one is read.
    config: Arc<MeshConfig>,
    roots: Option<Arc<str>>,
    certificates: BTreeMap<ServiceIdentity, ServiceCertificate>,
}

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(options: Options) -> Self {
        let config = MeshConfig::absent(options.osm_namespace.clone());
        Self {
            options,
            tables: Tables::default(),
            services: Services::default(),
            access: BTreeMap::new(),
            audiences: Audiences::default(),
            classes: Classes::default(),
            publication: Publication::default(),
            diagnostics: Diagnostics::default(),
            config: Arc::new(config),
            roots: None,
            certificates: BTreeMap::new(),
        }
    }

    /// Takes note of what happened and says what it changed.
    pub fn apply(&mut self, events: Vec<Event>) -> Change {
        let mut dirty = Dirty::default();
        for event in events {
            self.note(event, &mut dirty);
        }
        let mut change = Change::default();
        if !dirty.is_empty() {
            self.propagate(dirty, &mut change);
        }
        change.diagnostics = self.diagnostics.take_fresh();
        change
    }

    /// The last state published.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        self.publication.published()
    }

    /// What MeshConfig says about the control plane itself.
    pub fn control(&self) -> &ControlSettings {
        &self.config.control
    }

    /// Whether every workload of the mesh may call every other.
    pub fn is_permissive(&self) -> bool {
        self.config.permissive
    }

    /// Everything that is wrong with objects now, ordered by object.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter()
    }

    /// The identities that have a proxy, ordered.
    pub fn identities(&self) -> impl Iterator<Item = &ServiceIdentity> {
        self.classes.identities()
    }

    fn note(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Upsert(fact) => self.insert(fact, dirty),
            Event::Remove(key) => self.remove(key, dirty),
            Event::Reset {
                kind,
                facts,
                malformed,
            } => {
                let mut gone: BTreeSet<FactKey> = self.tables.keys(kind).into_iter().collect();
                gone.extend(self.diagnostics.malformed(kind));
                for key in facts
                    .iter()
                    .map(Fact::key)
                    .chain(malformed.iter().map(|bad| bad.object.clone()))
                {
                    gone.remove(&key);
                }
                gone.into_iter().for_each(|key| self.remove(key, dirty));
                facts
                    .into_iter()
                    .filter(|fact| fact.key().kind == kind)
                    .for_each(|fact| self.insert(fact, dirty));
                malformed
                    .into_iter()
                    .for_each(|diagnostic| self.malformed(diagnostic));
            }
            Event::Malformed(diagnostic) => self.malformed(diagnostic),
            Event::Roots(roots) => {
                if self.roots.as_ref() != Some(&roots) {
                    self.roots = Some(roots);
                    let held = self.publication.slots.keys();
                    let roots =
                        held.filter(|key| matches!(key, SlotKey::OutboundRoots | SlotKey::InboundRoots));
                    dirty.slots.extend(roots.cloned());
                }
            }
            Event::Certificate {
                identity,
                certificate,
            } => {
                if self.certificates.get(&identity) != certificate.as_ref() {
                    dirty.slots.insert(SlotKey::Certificate(identity.clone()));
                    match certificate {
                        Some(certificate) => self.certificates.insert(identity, certificate),
                        None => self.certificates.remove(&identity),
                    };
                }
            }
        }
    }

    fn insert(&mut self, fact: Fact, dirty: &mut Dirty) {
        let key = fact.key();
        let problems = match &fact {
            Fact::HTTPRouteGroup(group) => group.problems.clone(),
            _ => Vec::new(),
        };
        self.diagnostics.set(Stage::Malformed, key.clone(), Vec::new());
        if matches!(&fact, Fact::Pod(pod) if pod.proxy.is_none()) {
            self.diagnostics.set(Stage::Uuid, key.clone(), Vec::new());
        }
        self.diagnostics.set(Stage::Fact, key, problems);
        self.tables.insert(fact, &self.options, dirty);
    }

    fn remove(&mut self, key: FactKey, dirty: &mut Dirty) {
        self.diagnostics.forget(&key);
        self.tables.remove(key, &self.options, dirty);
    }

    fn malformed(&mut self, diagnostic: Diagnostic) {
        let Diagnostic {
            object,
            reason,
            message,
        } = diagnostic;
        self.diagnostics
            .set(Stage::Malformed, object, vec![Problem { reason, message }]);
    }
}
