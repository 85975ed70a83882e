//! Pods that should have a sidecar and have none: made before their namespace was in the mesh, or while no injector
//! answered (`failurePolicy: Ignore`), or past the webhook.
//!
//! Owns the finding; reporting it is the controller's. Invariant: the rule is the injector's own ([`decide`]), so that
//! what the injector would leave alone is never reported.
//!
//! [`decide`]: super::decide

use k8s_openapi::api::core::v1::Pod;

use super::decision::{Candidate, Decision, Home, NamespaceView, decide_for};
use crate::api::labels;

/// On pods that a node made from a file: no webhook can change those.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod without a sidecar, as far as the decision depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bystander {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    host_network: bool,
    windows: bool,
    injection: Option<String>,
}

impl Bystander {
    /// What matters of a pod; nothing if it has a sidecar, cannot get one, has ended or is about to.
    pub fn of(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let mirror = metadata
            .annotations
            .as_ref()
            .is_some_and(|annotations| annotations.contains_key(MIRROR));
        let injected = metadata
            .labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(labels::PROXY_UUID));
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"));
        if injected || over || mirror {
            return None;
        }
        let candidate = Candidate::of(pod);
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone().unwrap_or_default(),
            host_network: candidate.host_network,
            windows: candidate.windows,
            injection: candidate.injection.map(str::to_owned),
        })
    }

    /// Why it should have a sidecar, in a sentence for whoever owns it; nothing if it should not. `namespace` is its
    /// namespace, if that is in the mesh.
    pub fn lacks_sidecar(&self, namespace: Option<NamespaceView<'_>>, home: Home<'_>) -> Option<String> {
        let namespace = namespace?;
        let outside = "the mesh neither protects nor controls its traffic";
        let candidate = Candidate {
            host_network: self.host_network,
            windows: self.windows,
            injection: self.injection.as_deref(),
        };
        match decide_for(candidate, &self.namespace, Some(namespace), home) {
            Ok(Decision::Skip(_)) => None,
            Ok(Decision::Inject(_)) => Some(format!(
                "This pod should have a sidecar and has none: it was made before its namespace was in the mesh, or while \
                 no osm-injector answered; {outside}. Delete it, or restart what made it, and it comes back with one"
            )),
            Err(denial) => Some(format!(
                "This pod has no sidecar, and would be refused if it were made now: {denial}; {outside}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    const HOME: Home<'_> = Home {
        mesh_name: "osm",
        control_plane_namespace: "osm-system",
    };

    fn reason(pod: Value, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Option<String> {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let (labels, annotations) = (map(labels), map(annotations));
        let mut whole = json!({"metadata": {"name": "till-1", "namespace": "shop", "uid": "u"}, "spec": {"containers": []}});
        json_patch::merge(&mut whole, &pod);
        let pod: Pod = serde_json::from_value(whole).unwrap();
        let view = NamespaceView {
            name: "shop",
            labels: &labels,
            annotations: &annotations,
        };
        Bystander::of(&pod)?.lacks_sidecar(Some(view), HOME)
    }

    #[test]
    fn only_pods_that_the_injector_would_have_changed_are_found() {
        let member = ("openservicemesh.io/monitored-by", "osm");
        let on = ("openservicemesh.io/sidecar-injection", "enabled");
        let own = |value: &str| json!({"metadata": {"annotations": {"openservicemesh.io/sidecar-injection": value}}});
        let found = reason(json!({}), &[member], &[on]).unwrap();
        assert!(found.contains("should have a sidecar and has none"), "{found}");
        assert!(
            reason(own("yes"), &[member], &[]).is_some(),
            "the pod asks for it itself"
        );
        let denied = reason(own("perhaps"), &[member], &[on]).unwrap();
        assert!(
            denied.contains("would be refused") && denied.contains("perhaps"),
            "{denied}"
        );

        for (pod, labels, annotations, why) in [
            (
                json!({}),
                vec![],
                vec![on],
                "another mesh's namespace or nobody's",
            ),
            (json!({}), vec![member], vec![], "injection is not switched on"),
            (own("disabled"), vec![member], vec![on], "the pod has opted out"),
            (
                json!({}),
                vec![member, ("openservicemesh.io/ignore", "true")],
                vec![on],
                "an ignored namespace",
            ),
            (
                json!({"spec": {"hostNetwork": true}}),
                vec![member],
                vec![on],
                "the node's network",
            ),
            (
                json!({"spec": {"os": {"name": "windows"}}}),
                vec![member],
                vec![on],
                "Windows",
            ),
            (
                json!({"metadata": {"labels": {"osm-proxy-uuid": "x"}}}),
                vec![member],
                vec![on],
                "it has one",
            ),
            (
                json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
                vec![member],
                vec![on],
                "a static pod",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                vec![member],
                vec![on],
                "it is going",
            ),
            (
                json!({"status": {"phase": "Succeeded"}}),
                vec![member],
                vec![on],
                "it has ended",
            ),
        ] {
            assert_eq!(reason(pod, &labels, &annotations), None, "{why}");
        }
    }

    #[test]
    fn a_namespace_outside_the_mesh_has_no_bystanders() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(Bystander::of(&pod).unwrap().lacks_sidecar(None, HOME), None);
    }
}
