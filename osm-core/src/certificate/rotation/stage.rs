//! What to do next on the way from one root to another.
//!
//! Invariant: depends on the objects alone, so that a rotation that was interrupted goes on where it stands, whoever
//! began it.

use super::{Objects, PlanError, Role, Source, plan, progress::Goal};

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Describe the root in use, which no object speaks for, in an active object.
    Describe,
    /// Give an object a role, once another (or the same) object's root is where it should be.
    Assign {
        /// The object.
        object: String,
        /// Its role to be.
        role: Role,
        /// What must be so before: of which object's root.
        after: Option<(Goal, String)>,
    },
    /// Nothing: wait until this is so, then it is over.
    Finish {
        /// What is to be.
        goal: Goal,
        /// Of which object's root.
        object: String,
    },
}

/// Why there is no next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StageError {
    /// The present state means nothing.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Another rotation is under way.
    #[error(
        "a rotation from {0} to {1} is under way: finish it first, by `osm certificate rotate` with that one"
    )]
    Busy(String, String),
    /// There is no such object.
    #[error("there is no MeshRootCertificate {0}")]
    Unknown(String),
}

/// The next step towards `target` being the only root in use.
///
/// # Errors
/// [`StageError`].
pub fn next(target: &str, configured: &Source, objects: &Objects) -> Result<Stage, StageError> {
    let object = objects
        .readable
        .get(target)
        .ok_or_else(|| StageError::Unknown(target.to_owned()))?;
    let present = plan(configured, objects)?;
    let live = |(name, object): (&String, &super::RootObject)| {
        (object.role != Role::Inactive && name != target).then(|| (name.clone(), object.role))
    };
    let mut others = objects.readable.iter().filter_map(live);
    let other = others.next();
    if let (Some((one, _)), Some((two, _))) = (&other, others.next()) {
        return Err(StageError::Busy(one.clone(), two));
    }
    let assign = |object: &str, role, after| Stage::Assign {
        object: object.to_owned(),
        role,
        after,
    };
    let of = |goal, name: &str| Some((goal, name.to_owned()));
    Ok(match (object.role, other) {
        // The root in use is no object's, and is not the target's either.
        (Role::Inactive | Role::Passive, None) if present.signs.object.is_none() => Stage::Describe,
        (Role::Inactive, Some((other, Role::Active))) => {
            assign(target, Role::Passive, of(Goal::Signing, &other))
        }
        // Then it is the configured provider that signs.
        (Role::Inactive, Some((other, _))) => return Err(StageError::Busy(configured.to_string(), other)),
        (Role::Inactive, None) => assign(target, Role::Passive, None),
        (Role::Passive, _) => assign(target, Role::Active, of(Goal::Trusted, target)),
        (Role::Active, Some((other, Role::Active))) => {
            // The younger signs already; on the way back it is the other one that still does.
            let goal = match present.signs.object.as_deref() == Some(target) {
                true => Goal::Signing,
                false => Goal::Trusted,
            };
            assign(&other, Role::Passive, of(goal, target))
        }
        (Role::Active, Some((other, _))) => assign(&other, Role::Inactive, of(Goal::Unused, &other)),
        (Role::Active, None) => {
            let mut trusted_still = objects.readable.iter().filter(|(name, object)| {
                *name != target && object.reports.values().any(|report| report.trusted)
            });
            match trusted_still.next() {
                Some((old, _)) => Stage::Finish {
                    goal: Goal::Gone,
                    object: old.clone(),
                },
                None => Stage::Finish {
                    goal: Goal::Signing,
                    object: target.to_owned(),
                },
            }
        }
    })
}

/// The object a rotation that is under way leads to: of two that are not inactive, the younger.
pub fn target(objects: &Objects) -> Option<&str> {
    let live: Vec<_> = objects
        .readable
        .iter()
        .filter(|(_, object)| object.role != Role::Inactive)
        .collect();
    if live.len() < 2 {
        return None;
    }
    let younger = live.iter().max_by_key(|(name, object)| (object.created, *name));
    younger.map(|(name, _)| name.as_str())
}
