//! TrafficTargets: who may call whom.

use std::sync::Arc;

use super::{Diagnostic, Fact, FactKey, FactKind, excerpt};
use crate::{
    api::{self, access::IdentityBindingSubject},
    identity::{ServiceIdentity, is_dns_label, is_dns_subdomain},
};

/// Most sources or rules of one target.
const MAX_ITEMS: usize = 1_024;

/// A TrafficTarget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficTarget {
    /// Its namespace, and its destination's.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Who is called.
    pub destination: ServiceIdentity,
    /// Who may call, ordered, each once.
    pub sources: Vec<ServiceIdentity>,
    /// What may be called; never empty.
    pub rules: Vec<Rule>,
}

/// A reference to routes in the target's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Matches of an HTTPRouteGroup; all of them when none is named.
    Http {
        /// The group.
        group: Arc<str>,
        /// Names of its matches, ordered.
        matches: Vec<Arc<str>>,
    },
    /// A TCPRoute.
    Tcp {
        /// The route.
        route: Arc<str>,
    },
}

/// Reads a TrafficTarget.
///
/// # Errors
/// `InvalidDestination`, `InvalidSource`, `InvalidRule`, `NoRules` (SMI: a target without rules grants nothing; the
/// original refused it too) or `TooMany`.
pub fn from(object: &api::TrafficTarget) -> Result<Fact, Diagnostic> {
    let key = FactKey::of(FactKind::TrafficTarget, &object.metadata);
    let fail = |reason, message: String| Err(Diagnostic::new(key.clone(), reason, message));
    let spec = &object.spec;
    if spec.sources.len() > MAX_ITEMS || spec.rules.len() > MAX_ITEMS {
        return fail(
            "TooMany",
            format!("more than {MAX_ITEMS} sources or rules; divide it into several targets"),
        );
    }
    let destination = match identity(&spec.destination, &key.namespace) {
        Ok(destination) => destination,
        Err(problem) => return fail("InvalidDestination", format!("spec.destination {problem}")),
    };
    if destination.namespace != key.namespace {
        return fail(
            "InvalidDestination",
            format!(
                "spec.destination is in namespace {}, the target in {}: a target grants access in its own namespace only",
                destination.namespace, key.namespace
            ),
        );
    }
    let mut sources = Vec::new();
    for (index, source) in spec.sources.iter().enumerate() {
        match identity(source, &key.namespace) {
            Ok(source) => sources.push(source),
            Err(problem) => return fail("InvalidSource", format!("spec.sources[{index}] {problem}")),
        }
    }
    sources.sort();
    sources.dedup();
    if spec.rules.is_empty() {
        return fail(
            "NoRules",
            "spec.rules is empty: name an HTTPRouteGroup or a TCPRoute".to_owned(),
        );
    }
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        rules.push(match &*rule.kind {
            "HTTPRouteGroup" => {
                let mut matches: Vec<Arc<str>> =
                    rule.matches.iter().map(|name| name.as_str().into()).collect();
                matches.sort();
                matches.dedup();
                Rule::Http {
                    group: rule.name.as_str().into(),
                    matches,
                }
            }
            "TCPRoute" => Rule::Tcp {
                route: rule.name.as_str().into(),
            },
            other => {
                let problem = format!("spec.rules[{index}].kind is {:?}", excerpt(other));
                return fail(
                    "InvalidRule",
                    format!("{problem}: it must be HTTPRouteGroup or TCPRoute"),
                );
            }
        });
    }
    rules.sort();
    rules.dedup();
    Ok(Fact::TrafficTarget(TrafficTarget {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        destination,
        sources,
        rules,
    }))
}

fn identity(subject: &IdentityBindingSubject, namespace: &str) -> Result<ServiceIdentity, String> {
    if subject.kind != "ServiceAccount" {
        return Err(format!(
            "is of kind {:?}: only ServiceAccount is supported",
            excerpt(&subject.kind)
        ));
    }
    let namespace = subject
        .namespace
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(namespace);
    if !is_dns_label(namespace) {
        return Err(format!(
            "names the namespace {:?}, which cannot exist",
            excerpt(namespace)
        ));
    }
    if !is_dns_subdomain(&subject.name) {
        return Err(format!(
            "names the service account {:?}, which cannot exist",
            excerpt(&subject.name)
        ));
    }
    Ok(ServiceIdentity::new(namespace, subject.name.as_str()))
}
