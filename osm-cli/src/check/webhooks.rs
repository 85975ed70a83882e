//! Whether the webhooks are asked about the mesh's namespaces and nobody else's, and trust the root in use.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use osm_core::api::labels;

use super::control_plane::GROUP;
use super::facts::{Facts, Labelled, Webhook};
use super::finding::{Check, Finding};
use crate::commands::namespace::SYSTEM;

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    vec![bundle(facts), scope(facts)]
}

fn bundle(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-cp-webhook-bundle",
        what: "the API server trusts the webhooks' certificates",
    };
    let webhooks = match &facts.webhooks {
        Ok(webhooks) if webhooks.is_empty() => return missing(facts, check),
        Ok(webhooks) => webhooks,
        Err(error) => return check.unknown(error),
    };
    let used: BTreeSet<&str> = facts
        .answers()
        .flat_map(|(_, answer)| &answer.replica.roots)
        .map(|root| root.fingerprint.as_str())
        .collect();
    let mut failures = Vec::new();
    for webhook in webhooks {
        match &webhook.roots {
            Err(error) => failures.push(format!("{}: {error}", webhook.name)),
            Ok(roots) => {
                let lacks = used
                    .iter()
                    .any(|root| !roots.iter().any(|trusted| trusted == root));
                if lacks {
                    failures.push(format!(
                        "the CA bundle of {} in {} lacks a root that replicas use",
                        webhook.name, webhook.configuration
                    ));
                }
            }
        }
    }
    if failures.is_empty() && used.is_empty() {
        return check.unknown("no replica says which root it uses");
    }
    let fix = format!(
        "the components fill it in within seconds; if not, {} logs deployment/osm-injector says why",
        facts.kubectl()
    );
    check.of(failures, Vec::new(), fix)
}

fn missing(facts: &Facts, check: Check) -> Finding {
    check.fail(
        format!(
            "mesh [{}] has no webhook configuration: no pod gets a sidecar",
            facts.mesh
        ),
        facts.upgrade(""),
    )
}

fn scope(facts: &Facts) -> Finding {
    let check = Check {
        group: GROUP,
        code: "osm-cp-webhook-scope",
        what: "the injector is asked about this mesh's namespaces and no others",
    };
    let (webhooks, namespaces) = match (&facts.webhooks, &facts.namespaces) {
        (Ok(webhooks), Ok(namespaces)) => (webhooks, namespaces),
        (Err(error), _) | (_, Err(error)) => return check.unknown(error),
    };
    let injectors: Vec<&Webhook> = webhooks.iter().filter(|webhook| webhook.pods).collect();
    if injectors.is_empty() {
        return missing(facts, check);
    }
    let mut failures = Vec::new();
    for webhook in &injectors {
        for namespace in namespaces {
            let protected = SYSTEM.contains(&namespace.name.as_str()) || namespace.name == facts.namespace;
            let member = !protected && is_member(namespace, &facts.mesh);
            let selected = selects(&webhook.namespaces, &namespace.labels);
            let name = &namespace.name;
            match (selected, member, protected) {
                (true, _, true) => failures.push(format!(
                    "{} selects namespace {name}: without an injector nothing could start there, the injector included",
                    webhook.name
                )),
                (true, false, false) => {
                    failures.push(format!("{} selects namespace {name}, which is not in the mesh", webhook.name));
                }
                (false, true, _) => failures.push(format!(
                    "{} does not select namespace {name}, which is in the mesh: its pods get no sidecar",
                    webhook.name
                )),
                _ => {}
            }
        }
    }
    let fix = facts.upgrade("");
    if failures.is_empty() {
        let members = namespaces
            .iter()
            .filter(|namespace| is_member(namespace, &facts.mesh));
        return check.ok_with(format!("{} namespaces", members.count()));
    }
    check.of(failures, Vec::new(), fix)
}

fn is_member(namespace: &Labelled, mesh: &str) -> bool {
    // Kubernetes' convention for namespaces that no webhook should stand in the way of.
    let kept_away = [labels::IGNORE, "control-plane"];
    namespace
        .labels
        .get(labels::MONITORED_BY)
        .is_some_and(|by| by == mesh)
        && !kept_away
            .iter()
            .any(|label| namespace.labels.contains_key(*label))
}

/// Whether a label selector selects something with these labels.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let mut equal = equal.map(|(key, value)| labels.get(key) == Some(value));
    let mut expressions = selector.match_expressions.iter().flatten().map(|expression| {
        let value = labels.get(&expression.key);
        let listed = value.is_some_and(|value| expression.values.iter().flatten().any(|each| each == value));
        match expression.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal.all(|holds| holds) && expressions.all(|holds| holds)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Verdict, fixture};
    use super::*;

    fn scoped(selector: Value) -> Finding {
        let mut facts = fixture::healthy();
        facts.webhooks.as_mut().unwrap()[0].namespaces = serde_json::from_value(selector).unwrap();
        scope(&facts)
    }

    #[track_caller]
    fn fails(finding: Finding, words: &str) {
        assert_eq!(finding.verdict, Verdict::Failure, "{finding:?}");
        assert!(finding.why.clone().unwrap().contains(words), "{finding:?}");
    }

    #[test]
    fn selectors_are_read_as_the_api_server_reads_them() {
        let labels: BTreeMap<String, String> = [("a".to_owned(), "1".to_owned())].into();
        for (selector, selected) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchLabels": {"a": "1", "b": "1"}}), false),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "b", "operator": "In", "values": ["1"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
                false,
            ),
        ] {
            let read: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&read, &labels), selected, "{selector}");
        }
    }

    #[test]
    fn a_webhook_that_could_lock_the_cluster_out_is_a_failure() {
        fails(
            scoped(json!({})),
            "selects namespace kube-system: without an injector nothing could start there",
        );
        fails(
            scoped(json!({"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "osm-system"]}
            ]})),
            "selects namespace other, which is not in the mesh",
        );
        fails(
            scoped(json!({"matchLabels": {"openservicemesh.io/monitored-by": "another"}})),
            "does not select namespace shop",
        );
    }

    #[test]
    fn a_bundle_without_the_root_in_use_is_a_failure() {
        let mut facts = fixture::healthy();
        facts.webhooks.as_mut().unwrap()[0].roots = Ok(vec!["ff".repeat(32)]);
        fails(bundle(&facts), "lacks a root that replicas use");
        facts.webhooks.as_mut().unwrap()[0].roots = Err("there is no CA bundle".to_owned());
        fails(bundle(&facts), "there is no CA bundle");
        facts.webhooks = Ok(Vec::new());
        fails(bundle(&facts), "no webhook configuration");
        fails(scope(&facts), "no webhook configuration");
    }
}
