//! The validating webhook: policies that cannot be meant are refused when they are written.
//!
//! Owns nothing but the wiring: the rules are those the mesh reads objects by ([`osm_core::facts`]), so that what is
//! accepted here is what takes effect, and what is refused says what is wrong in the same words. Those of
//! MeshRootCertificates are in [`osm_core::certificate::rotation::admission`].

use axum::Router;
use jiff::Timestamp;
use kube::core::{DynamicObject, admission::Operation};
use osm_core::{
    api::{MeshRootCertificate, TrafficTarget},
    certificate::rotation::{
        Home, Objects,
        admission::{self, Change},
    },
    facts,
};
use osm_runtime::webhook::review::{Limits, Request, ReviewMetrics, Verdict, router};
use tokio::sync::watch;

/// The path the API server posts to.
pub const PATH: &str = "/validate";

/// What objects are judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Whether TrafficTargets are looked at.
    pub targets: bool,
    /// The MeshRootCertificates there are; `None` while that is not known.
    pub roots: watch::Receiver<Option<Objects>>,
    /// What they are read against.
    pub home: Home,
}

/// The webhook's pages.
pub fn pages(rules: Rules, metrics: ReviewMetrics) -> Router {
    router(PATH, Limits::default(), metrics, move |request| {
        let verdict = judge(&request, &rules);
        async move { verdict }
    })
}

/// What is said to an object.
fn judge(request: &Request, rules: &Rules) -> Verdict {
    let verdict = Verdict::from(request);
    if (request.kind.group.as_str(), request.kind.kind.as_str())
        == ("config.openservicemesh.io", "MeshRootCertificate")
    {
        return judge_root(request, rules, verdict);
    }
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return verdict;
    }
    let Some(object) = &request.object else {
        return verdict.deny("the request carries no object");
    };
    let kind = (request.kind.group.as_str(), request.kind.kind.as_str());
    match kind {
        ("access.smi-spec.io", "TrafficTarget") if rules.targets => {
            match object.clone().try_parse::<TrafficTarget>() {
                Ok(mut target) => {
                    // The API server knows the namespace also where the object leaves it out.
                    if let (None, Some(namespace)) = (&target.metadata.namespace, &request.namespace) {
                        target.metadata.namespace = Some(namespace.clone());
                    }
                    match facts::traffic_target::from(&target) {
                        Ok(_) => verdict,
                        Err(problem) => verdict.deny(format!("{}: {}", problem.reason, problem.message)),
                    }
                }
                Err(error) => verdict.deny(format!("the TrafficTarget cannot be read: {error}")),
            }
        }
        ("access.smi-spec.io", "TrafficTarget") => verdict,
        ("policy.openservicemesh.io", "Egress" | "IngressBackend") => {
            let mut verdict = verdict;
            verdict.warnings = Some(vec![format!("{} objects have no effect yet", kind.1)]);
            verdict
        }
        (group, kind) => {
            let kind: String = kind.chars().take(100).collect();
            let group: String = group.chars().take(100).collect();
            verdict.deny(format!(
                "this webhook does not know the kind {kind:?} of the group {group:?}"
            ))
        }
    }
}

/// What is said to a change of a MeshRootCertificate, its deletion included.
fn judge_root(request: &Request, rules: &Rules, verdict: Verdict) -> Verdict {
    let read = |object: &Option<DynamicObject>| -> Result<Option<MeshRootCertificate>, String> {
        let object = object.clone().map(DynamicObject::try_parse).transpose();
        object.map_err(|error| format!("the MeshRootCertificate cannot be read: {error}"))
    };
    let (new, old) = match (read(&request.object), read(&request.old_object)) {
        (Ok(new), Ok(old)) => (new, old),
        // What was there before this webhook was may be repaired, and removed.
        (Ok(new), Err(_)) => (new, None),
        (Err(problem), _) => return verdict.deny(problem),
    };
    let change = match (&request.operation, &new, &old) {
        (Operation::Create, Some(new), _) | (Operation::Update, Some(new), None) => Change::Create(new),
        (Operation::Update, Some(new), Some(old)) => Change::Update { old, new },
        (Operation::Delete, _, Some(old)) => Change::Delete(old),
        _ => return verdict,
    };
    let Some(objects) = rules.roots.borrow().clone() else {
        return verdict.deny("the MeshRootCertificates there are are not known yet; try again");
    };
    match admission::judge(&request.name, change, &objects, &rules.home, Timestamp::now()) {
        Ok(()) => verdict,
        Err(refusal) => verdict.deny(refusal.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use osm_core::{certificate::rotation::Source, identity::TrustDomain};
    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Rules {
        let source = Source::Tresor {
            secret: "osm-ca-bundle".into(),
        };
        let home = Home {
            namespace: "osm-system".into(),
            trust_domain: TrustDomain::default(),
            configured: source,
        };
        Rules {
            targets: true,
            roots: watch::channel(Some(Objects::default())).1,
            home,
        }
    }

    fn root(operation: &str, old: Option<Value>, new: Option<Value>) -> Verdict {
        let request = json!({
            "uid": "7", "operation": operation, "namespace": "osm-system", "name": "root", "userInfo": {},
            "kind": {"group": "config.openservicemesh.io", "version": "v1alpha2", "kind": "MeshRootCertificate"},
            "resource": {"group": "config.openservicemesh.io", "version": "v1alpha2", "resource": "x"},
            "object": new, "oldObject": old,
        });
        judge(&serde_json::from_value(request).unwrap(), &rules())
    }

    #[test]
    fn changes_of_roots_are_judged_by_the_rules_of_rotation() {
        let object = |role: &str, secret: &str| {
            Some(json!({
                "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshRootCertificate",
                "metadata": {"name": "root", "namespace": "osm-system"},
                "spec": {"role": role, "provider": {
                    "tresor": {"ca": {"secretRef": {"name": secret, "namespace": "osm-system"}}}}},
            }))
        };
        assert!(root("CREATE", None, object("active", "osm-ca-bundle")).allowed);
        assert!(root("CREATE", None, object("passive", "other")).allowed);
        let abrupt = root("CREATE", None, object("active", "other"));
        assert!(!abrupt.allowed && abrupt.result.message.contains("osm certificate rotate"));
        assert!(
            !root("DELETE", object("active", "other"), None).allowed,
            "it signs"
        );
        assert!(root("DELETE", object("inactive", "other"), None).allowed);
        assert!(!root("CREATE", None, object("boss", "other")).allowed);
        let moved = root("UPDATE", object("passive", "other"), object("passive", "third"));
        assert!(
            moved.result.message.contains("spec.provider"),
            "{}",
            moved.result.message
        );
    }

    fn ask(kind: (&str, &str), object: Value) -> Verdict {
        let request = json!({
            "uid": "7", "operation": "CREATE", "namespace": "shop", "userInfo": {},
            "kind": {"group": kind.0, "version": "v1", "kind": kind.1},
            "resource": {"group": kind.0, "version": "v1", "resource": "x"},
            "object": object,
        });
        judge(&serde_json::from_value(request).unwrap(), &rules())
    }

    fn target(spec: Value) -> Verdict {
        let object = json!({
            "apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
            "metadata": {"name": "t", "namespace": "shop"}, "spec": spec,
        });
        ask(("access.smi-spec.io", "TrafficTarget"), object)
    }

    #[test]
    fn targets_that_the_mesh_would_ignore_are_refused_with_the_reason() {
        let subject =
            |namespace: &str| json!({"kind": "ServiceAccount", "name": "a", "namespace": namespace});
        let rules = json!([{"kind": "HTTPRouteGroup", "name": "g"}]);
        let good = json!({"destination": subject("shop"), "sources": [subject("other")], "rules": rules});
        assert!(target(good.clone()).allowed);
        for (field, value, reason) in [
            ("destination", subject("other"), "namespace other"),
            (
                "destination",
                json!({"kind": "Pod", "name": "a", "namespace": "shop"}),
                "ServiceAccount",
            ),
            (
                "sources",
                json!([{"kind": "ServiceAccount", "name": "A B"}]),
                "sources[0]",
            ),
            ("rules", json!([]), "rules is empty"),
            (
                "rules",
                json!([{"kind": "Secret", "name": "g"}]),
                "HTTPRouteGroup or TCPRoute",
            ),
            ("rules", json!("x"), "cannot be read"),
            ("destination", json!(null), "cannot be read"),
        ] {
            let mut spec = good.clone();
            spec[field] = value;
            let verdict = target(spec);
            assert!(!verdict.allowed, "{field}");
            assert!(
                verdict.result.message.contains(reason),
                "{field}: {}",
                verdict.result.message
            );
        }
    }

    #[test]
    fn unknown_kinds_are_denied_and_planned_ones_let_through_with_a_warning() {
        assert!(!ask(("apps", "Deployment"), json!({"metadata": {}})).allowed);
        let verdict = ask(("policy.openservicemesh.io", "Egress"), json!({"metadata": {}}));
        assert!(verdict.allowed && verdict.warnings.is_some());
    }
}
