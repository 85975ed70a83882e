//! The validating webhook: policies that cannot be meant are refused when they are written.
//!
//! Owns nothing but the wiring: the rules are those the mesh reads objects by ([`osm_core::facts`]), so that what is
//! accepted here is what takes effect, and what is refused says what is wrong in the same words.

use axum::Router;
use kube::core::admission::Operation;
use osm_core::{api::TrafficTarget, facts};
use osm_runtime::webhook::review::{Limits, Request, ReviewMetrics, Verdict, router};

/// The path the API server posts to.
pub const PATH: &str = "/validate";

/// The webhook's pages. With `targets`, TrafficTargets are looked at.
pub fn pages(targets: bool, metrics: ReviewMetrics) -> Router {
    router(PATH, Limits::default(), metrics, move |request| {
        let verdict = judge(&request, targets);
        async move { verdict }
    })
}

/// What is said to an object.
fn judge(request: &Request, targets: bool) -> Verdict {
    let verdict = Verdict::from(request);
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return verdict;
    }
    let Some(object) = &request.object else {
        return verdict.deny("the request carries no object");
    };
    let kind = (request.kind.group.as_str(), request.kind.kind.as_str());
    match kind {
        ("access.smi-spec.io", "TrafficTarget") if targets => {
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
        ("policy.openservicemesh.io", "Egress" | "IngressBackend")
        | ("config.openservicemesh.io", "MeshRootCertificate") => {
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ask(kind: (&str, &str), object: Value) -> Verdict {
        let request = json!({
            "uid": "7", "operation": "CREATE", "namespace": "shop", "userInfo": {},
            "kind": {"group": kind.0, "version": "v1", "kind": kind.1},
            "resource": {"group": kind.0, "version": "v1", "resource": "x"},
            "object": object,
        });
        judge(&serde_json::from_value(request).unwrap(), true)
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
