//! Rotating the root: which roots are trusted, which one signs, and when the next step is safe.
//!
//! Owns the rules over MeshRootCertificate objects as pure functions: [`plan`] (what a set of objects means, the same
//! on every replica), [`admission`] (which changes of it are refused), [`progress`] (how far the mesh has followed)
//! and [`stage`] (what to do next). Must not read an object's certificate: a root is told apart by where it comes from
//! ([`Source`]).
//!
//! Invariant: a change that admission lets through never signs with a root that was not trusted before, and never
//! takes away a root that signed before. Proved over all sets of objects in the tests.

pub mod admission;
pub mod progress;
mod source;
pub mod stage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use crate::api::mesh_root_certificate::RootRole as Role;
use crate::{api::MeshRootCertificate, identity::TrustDomain};
pub use progress::Report;
pub use source::{SecretKey, Source};

/// Most objects that may be trusted at a time.
const MOST: usize = 2;

/// A MeshRootCertificate that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootObject {
    /// What it does.
    pub role: Role,
    /// Where the root comes from.
    pub source: Source,
    /// When it was created; tells the younger of two.
    pub created: Option<Timestamp>,
    /// Its generation: grows with each change of the spec.
    pub generation: i64,
    /// What replicas say of it, by the replica's name.
    pub reports: BTreeMap<String, Report>,
}

/// What the objects of a mesh are read against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The control plane's namespace: the only one whose Secrets it may read.
    pub namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// The provider that the installation configures: the mesh's root until objects say otherwise.
    pub configured: Source,
}

impl RootObject {
    /// Reads an object.
    ///
    /// # Errors
    /// What is wrong with it: it names another trust domain than the mesh's, not exactly one provider, or a Secret
    /// that the control plane cannot read.
    pub fn from(object: &MeshRootCertificate, home: &Home) -> Result<Self, String> {
        let spec = &object.spec;
        if spec.trust_domain.is_empty() {
            return Err("spec.trustDomain is empty: it is the suffix of every name in certificates".into());
        }
        if spec.trust_domain != home.trust_domain.to_string() {
            return Err(format!(
                "spec.trustDomain is not the mesh's, {}: a rotation keeps the names in certificates",
                home.trust_domain
            ));
        }
        let metadata = &object.metadata;
        let status = object.status.as_ref();
        Ok(Self {
            role: spec.role,
            source: Source::from(&spec.provider, &home.namespace)?,
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            generation: metadata.generation.unwrap_or(0),
            reports: status
                .map(|status| progress::reports(&status.0))
                .unwrap_or_default(),
        })
    }
}

/// The objects of a mesh, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Those that can be read, in their last readable state.
    pub readable: BTreeMap<String, RootObject>,
    /// What is wrong with those that cannot, or could not when they were changed last.
    pub problems: BTreeMap<String, String>,
}

/// A root in a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The object it is of; `None` for the configured provider, which no object speaks for.
    pub object: Option<String>,
    /// Where it comes from.
    pub source: Source,
}

/// Which roots are in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The one that signs; it is among the trusted.
    pub signs: Member,
    /// The trusted ones, ordered.
    pub trusts: Vec<Member>,
}

impl Plan {
    /// Whether a root from this source is trusted.
    pub fn trusts(&self, source: &Source) -> bool {
        self.trusts.iter().any(|member| member.source.is_same(source))
    }

    /// Whether going from this plan to `next` keeps every connection possible: what signs next is trusted already,
    /// what signed until now stays trusted.
    pub fn leads_to(&self, next: &Self) -> bool {
        self.trusts(&next.signs.source) && next.trusts(&self.signs.source)
    }
}

/// Why a set of objects means nothing. What was in use stays in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing signs.
    #[error("no MeshRootCertificate is active: make the one that signed last active again")]
    NoneActive,
    /// More than two roots.
    #[error(
        "more than two MeshRootCertificates are active or passive ({}): make all but two inactive", .0.join(", ")
    )]
    TooMany(Vec<String>),
}

/// What a set of objects means. Depends on nothing but the objects, so every replica that sees the same ones does the
/// same.
///
/// The configured provider signs, as if it had an active object, until an object speaks for it or another one is
/// active. Of two active objects the younger signs: both are trusted, so either would do, but all must agree.
///
/// # Errors
/// [`PlanError`] when the roles contradict each other.
pub fn plan(configured: &Source, objects: &Objects) -> Result<Plan, PlanError> {
    let live: Vec<(&String, &RootObject)> = objects
        .readable
        .iter()
        .filter(|(_, object)| object.role != Role::Inactive)
        .collect();
    if live.len() > MOST {
        let names = live.iter().map(|(name, _)| (*name).clone());
        return Err(PlanError::TooMany(names.collect()));
    }
    let member = |(name, object): &(&String, &RootObject)| Member {
        object: Some((*name).clone()),
        source: object.source.clone(),
    };
    let mut trusts: Vec<Member> = live.iter().map(member).collect();
    let active = live.iter().filter(|(_, object)| object.role == Role::Active);
    let signs = match active.max_by_key(|(name, object)| (object.created, *name)) {
        Some(youngest) => member(youngest),
        None => {
            let mut readable = objects.readable.values();
            let spoken_for = readable.any(|object| object.source.is_same(configured));
            if spoken_for || !objects.problems.is_empty() || live.len() == MOST {
                return Err(PlanError::NoneActive);
            }
            let implied = Member {
                object: None,
                source: configured.clone(),
            };
            trusts.push(implied.clone());
            implied
        }
    };
    trusts.sort();
    Ok(Plan { signs, trusts })
}
