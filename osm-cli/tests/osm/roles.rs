//! What the chart lets the control plane do.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::helm::{COMPONENTS, Rendered, has, render};

/// The rules of a role: API groups, resources, names and verbs.
fn rules<'a>(rendered: &'a Rendered, kind: &str, name: &str) -> Vec<&'a Value> {
    rendered.get(kind, name)["rules"]
        .as_array()
        .expect("rules")
        .iter()
        .collect()
}

#[test]
fn roles_are_narrow() {
    for provider in ["tresor", "vault", "cert-manager"] {
        let kind = format!("OpenServiceMesh.certificateProvider.kind={provider}");
        let rendered = render(&[
            &kind,
            "OpenServiceMesh.vault.host=vault",
            "OpenServiceMesh.vault.token=t",
        ]);
        for object in rendered
            .0
            .iter()
            .filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role")
        {
            for rule in object["rules"].as_array().expect("rules") {
                for field in ["apiGroups", "resources", "verbs", "resourceNames"] {
                    assert!(!has(rule, field, "*"), "a wildcard in {rule}");
                }
                for verb in ["escalate", "bind", "impersonate", "deletecollection"] {
                    assert!(!has(rule, "verbs", verb), "{verb} in {rule}");
                }
                for powerful in [
                    "pods/exec",
                    "pods/portforward",
                    "clusterroles",
                    "roles",
                    "deployments",
                ] {
                    assert!(!has(rule, "resources", powerful), "{powerful} in {rule}");
                }
                let webhooks = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
                if webhooks.iter().any(|kind| has(rule, "resources", kind)) {
                    assert_eq!(rule["resourceNames"].as_array().map(Vec::len), Some(1), "{rule}");
                    assert!(
                        !has(rule, "verbs", "create") && !has(rule, "verbs", "delete"),
                        "{rule}"
                    );
                }
            }
        }
        for rule in rules(&rendered, "ClusterRole", "osm-controller-osm") {
            assert!(
                !has(rule, "resources", "secrets"),
                "the controller sees every Secret: {rule}"
            );
        }
        for rule in rules(&rendered, "Role", "osm-controller") {
            if has(rule, "resources", "secrets") && !has(rule, "verbs", "create") {
                assert!(
                    rule["resourceNames"].is_array(),
                    "the controller sees any Secret of its namespace: {rule}"
                );
            }
        }
        let writes_pods = |rule: &&Value| {
            has(rule, "resources", "pods")
                && ["create", "patch", "update", "delete"]
                    .iter()
                    .any(|verb| has(rule, "verbs", verb))
        };
        for role in ["osm-controller-osm", "osm-injector-osm"] {
            assert_eq!(
                rules(&rendered, "ClusterRole", role)
                    .iter()
                    .find(|rule| writes_pods(rule)),
                None
            );
        }
    }
}

/// Everything the control plane may do, one line a rule. Whoever changes a rule changes it here, with the reason beside the
/// rule in the chart.
#[test]
fn roles_grant_this_and_nothing_else() {
    let rendered = render(&[]);
    let words = |rule: &Value, field: &str| {
        let words = rule[field].as_array().into_iter().flatten();
        let words = words.map(|word| match word.as_str().unwrap_or_default() {
            "" => "core",
            word => word,
        });
        words.collect::<Vec<_>>().join(",")
    };
    let mut granted = Vec::new();
    for object in &rendered.0 {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind != "ClusterRole" && kind != "Role" {
            continue;
        }
        granted.push(format!(
            "{kind} {}",
            object["metadata"]["name"].as_str().expect("a name")
        ));
        for rule in object["rules"].as_array().expect("rules") {
            let fields: BTreeSet<&str> = rule
                .as_object()
                .expect("a rule")
                .keys()
                .map(String::as_str)
                .collect();
            let known = BTreeSet::from(["apiGroups", "resourceNames", "resources", "verbs"]);
            assert!(fields.is_subset(&known), "{rule}");
            let mut resources = words(rule, "resources");
            if rule.get("resourceNames").is_some() {
                resources = format!("{resources} [{}]", words(rule, "resourceNames"));
            }
            granted.push(format!(
                "  {} {resources}: {}",
                words(rule, "apiGroups"),
                words(rule, "verbs")
            ));
        }
    }
    let expected = "\
ClusterRole osm-controller-osm
  core namespaces,pods,services,serviceaccounts: get,list,watch
  discovery.k8s.io endpointslices: get,list,watch
  access.smi-spec.io traffictargets: get,list,watch
  specs.smi-spec.io httproutegroups,tcproutes: get,list,watch
  split.smi-spec.io trafficsplits: get,list,watch
  core,events.k8s.io events: create,patch
  admissionregistration.k8s.io validatingwebhookconfigurations [osm-validator-mesh-osm]: get,list,watch,patch
ClusterRole osm-injector-osm
  core namespaces: get,list,watch
  core pods: get,list
  core secrets: get,list,create,update,patch,delete
  core,events.k8s.io events: create,patch
  admissionregistration.k8s.io mutatingwebhookconfigurations [osm-webhook-osm]: get,list,watch,patch
Role osm-controller
  config.openservicemesh.io meshconfigs: get,list,watch,create
  config.openservicemesh.io meshrootcertificates: create
  core configmaps [preset-mesh-config]: get
  coordination.k8s.io leases: create
  coordination.k8s.io leases [osm-controller]: get,update,patch
  core secrets [osm-ca-bundle,osm-ca-bundle-a,osm-ca-bundle-b]: get
  core secrets: create
  config.openservicemesh.io meshrootcertificates: get,list,watch
  config.openservicemesh.io meshrootcertificates/status: patch
Role osm-injector
  config.openservicemesh.io meshconfigs: get,list,watch
  coordination.k8s.io leases: create
  coordination.k8s.io leases [osm-injector]: get,update,patch
  core secrets [osm-ca-bundle,osm-ca-bundle-a,osm-ca-bundle-b]: get
  core secrets: create
  config.openservicemesh.io meshrootcertificates: get,list,watch
  config.openservicemesh.io meshrootcertificates/status: patch";
    assert_eq!(granted.join("\n"), expected);

    // Other providers add these, to both components.
    let role = |sets: &[&str], name: &str| -> Vec<Value> {
        let rendered = render(sets);
        rules(&rendered, "Role", name).into_iter().cloned().collect()
    };
    let vault = [
        "osm.certificateProvider.kind=vault",
        "osm.vault.host=vault",
        "osm.vault.token=t",
    ];
    for (_, name) in COMPONENTS {
        let own = role(&[], name);
        let more = |sets: &[&str]| -> Vec<Value> {
            let rules = role(sets, name).into_iter();
            rules.filter(|rule| !own.contains(rule)).collect()
        };
        assert_eq!(
            more(&["osm.certificateProvider.kind=cert-manager"]),
            [json!({
                "apiGroups": ["cert-manager.io"],
                "resources": ["certificaterequests"],
                "verbs": ["get", "create", "delete"],
            })]
        );
        assert_eq!(
            more(&vault),
            [json!({
                "apiGroups": [""],
                "resources": ["secrets"],
                "resourceNames": ["osm-ca-bundle", "osm-ca-bundle-a", "osm-ca-bundle-b", "osm-vault-token"],
                "verbs": ["get"],
            })]
        );
    }
    for provider in [&["osm.certificateProvider.kind=cert-manager"][..], &vault] {
        let other = render(provider);
        for role in ["osm-controller-osm", "osm-injector-osm"] {
            assert_eq!(
                rules(&other, "ClusterRole", role),
                rules(&rendered, "ClusterRole", role)
            );
        }
    }
}
