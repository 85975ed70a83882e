//! Which changes of MeshRootCertificates are refused.
//!
//! Owns the original's rules, and one more: no step before the mesh has followed the last one. Invariant: what passes
//! is safe whatever the replicas' order of seeing it ([`super::Plan::leads_to`]).

use jiff::Timestamp;

use super::{
    Home, Objects, PlanError, Role, RootObject, plan,
    progress::{Goal, obstacles},
};
use crate::api::MeshRootCertificate;

/// Annotation of an object: `true` lets a step through before the mesh has followed the last one. Connections may fail.
pub const UNCHECKED: &str = "openservicemesh.io/unchecked-rotation";

/// A change that is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A new object.
    Create(&'a MeshRootCertificate),
    /// An object changes.
    Update {
        /// As it is.
        old: &'a MeshRootCertificate,
        /// As it is to be.
        new: &'a MeshRootCertificate,
    },
    /// An object goes.
    Delete(&'a MeshRootCertificate),
}

/// Why a change is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The object itself makes no sense.
    #[error("{0}")]
    Malformed(String),
    /// A field that never changes was changed.
    #[error("{0} cannot be changed: create another MeshRootCertificate")]
    Immutable(&'static str),
    /// There is one like it.
    #[error("MeshRootCertificate {0} is {1} already")]
    RoleTaken(String, Role),
    /// Its root is another's.
    #[error("MeshRootCertificate {0} is of the same root: use that one")]
    RootTaken(String),
    /// A role was skipped.
    #[error("the role cannot go from {0} to {1}: make it passive first")]
    Skipped(Role, Role),
    /// The set would mean nothing.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Sidecars would stop trusting each other.
    #[error(
        "this would leave sidecars that do not trust each other, since the root in use would be replaced in one step: \
         create the new one as passive, with an object of role active for the root in use (`osm certificate rotate` \
         does all of it)"
    )]
    Abrupt,
    /// The mesh has not followed yet.
    #[error(
        "the mesh is not ready for this step: {0}; wait (`osm certificate status` shows progress), or annotate the \
         object with {UNCHECKED}=true and accept that requests fail"
    )]
    TooEarly(String),
}

/// Judges a change to the object `name`, given all `objects` as they are.
///
/// # Errors
/// [`Refusal`].
pub fn judge(
    name: &str,
    change: Change<'_>,
    objects: &Objects,
    home: &Home,
    now: Timestamp,
) -> Result<(), Refusal> {
    let read = |object| RootObject::from(object, home).map_err(Refusal::Malformed);
    let mut before = objects.clone();
    let mut after = objects.clone();
    // The object itself is judged as the request has it: a watch may be behind.
    before.problems.remove(name);
    after.problems.remove(name);
    before.readable.remove(name);
    after.readable.remove(name);
    let (old, new) = match change {
        Change::Create(new) => (None, Some(new)),
        Change::Update { old, new } => (Some(old), Some(new)),
        Change::Delete(old) => (Some(old), None),
    };
    let was = old.and_then(|old| RootObject::from(old, home).ok());
    before
        .readable
        .extend(was.clone().map(|was| (name.to_owned(), was)));
    let is = match new {
        Some(new) => {
            let is = match (&was, old) {
                // One that is and stays malformed may be touched: labels, finalizers, or its repair.
                (None, Some(old)) if old.spec == new.spec => return Ok(()),
                _ => read(new)?,
            };
            others(name, &is, was.as_ref(), objects)?;
            after.readable.insert(name.to_owned(), is.clone());
            Some(is)
        }
        None => None,
    };
    if let (Some(old), Some(new)) = (old, new) {
        immutable(old, new)?;
    }
    if was.as_ref().map(|was| (was.role, &was.source)) == is.as_ref().map(|is| (is.role, &is.source)) {
        return Ok(());
    }
    let next = match plan(&home.configured, &after) {
        Ok(next) => next,
        // What was meaningless before may be repaired step by step.
        Err(_) if plan(&home.configured, &before).is_err() => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let Ok(present) = plan(&home.configured, &before) else {
        return Ok(());
    };
    if !present.leads_to(&next) {
        return Err(Refusal::Abrupt);
    }
    let annotated = new
        .or(old)
        .and_then(|object| object.metadata.annotations.as_ref()?.get(UNCHECKED));
    if annotated.is_some_and(|value| value == "true") {
        return Ok(());
    }
    let check = |goal, object: &Option<String>| {
        let Some(object) = object.as_ref().and_then(|name| before.readable.get(name)) else {
            return Ok(());
        };
        let mut reports = object.reports.clone();
        reports.retain(|_, report| report.is_recent(now));
        let found = obstacles(goal, None, &reports);
        match found.is_empty() {
            true => Ok(()),
            false => Err(Refusal::TooEarly(found.join("; "))),
        }
    };
    if !present.signs.source.is_same(&next.signs.source) {
        check(Goal::Trusted, &next.signs.object)?;
    }
    for gone in present
        .trusts
        .iter()
        .filter(|member| !next.trusts(&member.source))
    {
        check(Goal::Unused, &gone.object)?;
    }
    Ok(())
}

/// The original's rules about the other objects.
fn others(name: &str, is: &RootObject, was: Option<&RootObject>, objects: &Objects) -> Result<(), Refusal> {
    let others = || objects.readable.iter().filter(|(other, _)| *other != name);
    if let Some(was) = was {
        if matches!(
            (was.role, is.role),
            (Role::Active, Role::Inactive) | (Role::Inactive, Role::Active)
        ) {
            return Err(Refusal::Skipped(was.role, is.role));
        }
        return Ok(());
    }
    if is.role != Role::Inactive
        && let Some((other, object)) = others().find(|(_, object)| object.role == is.role)
    {
        return Err(Refusal::RoleTaken(other.clone(), object.role));
    }
    match others().find(|(_, object)| object.source.is_same(&is.source)) {
        Some((other, _)) => Err(Refusal::RootTaken(other.clone())),
        None => Ok(()),
    }
}

fn immutable(old: &MeshRootCertificate, new: &MeshRootCertificate) -> Result<(), Refusal> {
    if old.spec.provider != new.spec.provider {
        Err(Refusal::Immutable("spec.provider"))
    } else if old.spec.trust_domain != new.spec.trust_domain {
        Err(Refusal::Immutable("spec.trustDomain"))
    } else if old.spec.spiffe_enabled != new.spec.spiffe_enabled {
        Err(Refusal::Immutable("spec.spiffeEnabled"))
    } else {
        Ok(())
    }
}
