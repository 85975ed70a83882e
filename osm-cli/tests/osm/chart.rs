//! The chart, rendered by the real helm.

use std::collections::BTreeSet;

use crate::helm::{COMPONENTS, Rendered, has, render, template};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::Resource;
use osm_core::api::mesh_config::MeshConfigSpec;
use osm_core::api::{HTTPRouteGroup, MeshConfig, TCPRoute, TrafficSplit, TrafficTarget};
use serde_json::{Value, json};

#[test]
fn the_default_objects() {
    let rendered = render(&[]);
    let found: BTreeSet<String> = rendered
        .0
        .iter()
        .map(|object| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!(
                "{} {} {}",
                text(&object["apiVersion"]),
                text(&object["kind"]),
                text(&object["metadata"]["name"])
            )
        })
        .collect();
    let expected: BTreeSet<String> = [
        "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration osm-webhook-osm",
        "admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration osm-validator-mesh-osm",
        "apps/v1 Deployment osm-controller",
        "apps/v1 Deployment osm-injector",
        "rbac.authorization.k8s.io/v1 ClusterRole osm-controller-osm",
        "rbac.authorization.k8s.io/v1 ClusterRole osm-injector-osm",
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding osm-controller-osm",
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding osm-injector-osm",
        "rbac.authorization.k8s.io/v1 Role osm-controller",
        "rbac.authorization.k8s.io/v1 Role osm-injector",
        "rbac.authorization.k8s.io/v1 RoleBinding osm-controller",
        "rbac.authorization.k8s.io/v1 RoleBinding osm-injector",
        "v1 ConfigMap preset-mesh-config",
        "v1 Service osm-controller",
        "v1 Service osm-injector",
        "v1 Service osm-validator",
        "v1 ServiceAccount osm-controller",
        "v1 ServiceAccount osm-injector",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(found, expected);
    for object in &rendered.0 {
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/name"], "openservicemesh.io",
            "{object}"
        );
        assert_eq!(
            object["metadata"]["labels"]["app.kubernetes.io/instance"], "osm",
            "{object}"
        );
    }
}

#[test]
fn the_autoscaler_takes_what_it_is_given_and_owns_the_replicas() {
    for (key, name) in COMPONENTS {
        let rendered = render(&[
            &format!("OpenServiceMesh.{key}.autoScale.enable=true"),
            &format!("OpenServiceMesh.{key}.autoScale.minReplicas=2"),
            &format!("OpenServiceMesh.{key}.autoScale.maxReplicas=7"),
            &format!("OpenServiceMesh.{key}.autoScale.targetAverageUtilization=65"),
        ]);
        let hpa = rendered.get("HorizontalPodAutoscaler", &format!("{name}-hpa"));
        assert_eq!(hpa["apiVersion"], "autoscaling/v2");
        assert_eq!(hpa["spec"]["minReplicas"], 2);
        assert_eq!(hpa["spec"]["maxReplicas"], 7);
        assert_eq!(
            hpa["spec"]["scaleTargetRef"],
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": name})
        );
        assert_eq!(metrics(hpa), [("cpu".to_owned(), 65)]);
        assert_eq!(rendered.get("Deployment", name)["spec"].get("replicas"), None);
    }
}

/// The resources an autoscaler looks at, and their targets.
fn metrics(hpa: &Value) -> Vec<(String, i64)> {
    let metrics = hpa["spec"]["metrics"].as_array().expect("metrics");
    let metric = |metric: &Value| {
        let resource = &metric["resource"];
        assert_eq!(resource["target"]["type"], "Utilization");
        (
            resource["name"].as_str().expect("a name").to_owned(),
            resource["target"]["averageUtilization"]
                .as_i64()
                .expect("a target"),
        )
    };
    metrics.iter().map(metric).collect()
}

#[test]
fn connections_are_given_an_age_in_both_spellings() {
    let argument = |set: &[&str]| {
        let rendered = render(set);
        let arguments =
            rendered.get("Deployment", "osm-controller")["spec"]["template"]["spec"]["containers"][0]["args"]
                .clone();
        let arguments = arguments.as_array().cloned().unwrap_or_default().into_iter();
        let mut arguments = arguments.filter_map(|argument| argument.as_str().map(str::to_owned));
        arguments.find(|argument| argument.starts_with("--max-connection-age"))
    };
    assert_eq!(
        argument(&[]).as_deref(),
        Some("--max-connection-age=0s"),
        "off unless asked for"
    );
    for spelling in ["OpenServiceMesh", "osm"] {
        let set = format!("{spelling}.osmController.maxConnectionAge=90m");
        assert_eq!(
            argument(&[&set]).as_deref(),
            Some("--max-connection-age=90m"),
            "{set}"
        );
    }
}

#[test]
fn every_spelling_of_a_target_is_the_same() {
    for (key, name) in COMPONENTS {
        let on = format!("osm.{key}.autoScale.enable=true");
        let target = |spelling: &str| format!("osm.{key}.autoScale.{spelling}targetAverageUtilization=42");
        let early = render(&[&on, &target("")]);
        assert_eq!(early, render(&[&on, &target("cpu.")]));
        assert_eq!(
            metrics(early.get("HorizontalPodAutoscaler", &format!("{name}-hpa"))),
            [("cpu".to_owned(), 42)]
        );
        let both = render(&[&on, &target("memory.")]);
        let hpa = both.get("HorizontalPodAutoscaler", &format!("{name}-hpa"));
        assert_eq!(metrics(hpa), [("cpu".to_owned(), 80), ("memory".to_owned(), 42)]);
    }
}

#[test]
fn both_prefixes_render_the_same() {
    let sets = [
        "meshName=shop",
        "enforceSingleMesh=false",
        "enableEgress=false",
        "maxDataPlaneConnections=0",
        "osmController.replicaCount=4",
        "osmController.enablePodDisruptionBudget=true",
        "osmController.podLabels.team=mesh",
        "injector.autoScale.enable=true",
        "injector.autoScale.targetAverageUtilization=50",
        "injector.tolerations[0].key=dedicated",
        "image.tag=dev",
        "outboundPortExclusionList={6379}",
        "tracing.address=",
    ];
    let with = |prefix: &str| {
        let sets: Vec<String> = sets.iter().map(|set| format!("{prefix}.{set}")).collect();
        render(&sets.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let canonical = with("OpenServiceMesh");
    assert_eq!(canonical, with("osm"));
    assert_ne!(canonical, render(&[]));
}

#[test]
fn false_and_zero_under_the_alias_win_over_the_defaults() {
    let preset = preset(&render(&[
        "osm.enableEgress=false",
        "osm.enablePermissiveTrafficPolicy=false",
    ]));
    assert!(!preset.traffic.enable_egress);
    assert!(!preset.traffic.enable_permissive_traffic_policy_mode);
}

/// The MeshConfig the controller will make, read as the controller reads it.
fn preset(rendered: &Rendered) -> MeshConfigSpec {
    let map = rendered.get("ConfigMap", "preset-mesh-config");
    let text = map["data"]["preset-mesh-config.json"]
        .as_str()
        .expect("the preset");
    serde_json::from_str(text).expect("the preset is a MeshConfig")
}

#[test]
fn the_preset_is_a_mesh_config() {
    let spec = preset(&render(&[
        "osm.outboundIPRangeExclusionList={10.0.0.0/8}",
        "osm.envoyLogLevel=debug",
    ]));
    assert!(spec.traffic.enable_egress && spec.traffic.enable_permissive_traffic_policy_mode);
    assert_eq!(spec.traffic.outbound_ip_range_exclusion_list, ["10.0.0.0/8"]);
    assert_eq!(spec.sidecar.log_level, "debug");
    assert_eq!(spec.certificate.service_cert_validity_duration, "24h");
}

#[test]
fn disruption_budgets_are_there_when_asked_for() {
    for (key, name) in COMPONENTS {
        let budget = format!("{name}-pdb");
        assert_eq!(render(&[]).find("PodDisruptionBudget", &budget), None);
        let rendered = render(&[&format!("OpenServiceMesh.{key}.enablePodDisruptionBudget=true")]);
        let budget = rendered.get("PodDisruptionBudget", &budget);
        assert_eq!(budget["apiVersion"], "policy/v1");
        assert_eq!(budget["spec"]["minAvailable"], 1);
        assert_eq!(budget["spec"]["selector"]["matchLabels"]["app"], name);
    }
}

#[test]
fn highly_available_is_three_replicas_on_different_hosts() {
    let rendered = render(&["OpenServiceMesh.ha=true"]);
    for (_, name) in COMPONENTS {
        assert_eq!(
            rendered.get("HorizontalPodAutoscaler", &format!("{name}-hpa"))["spec"]["minReplicas"],
            3
        );
        rendered.get("PodDisruptionBudget", &format!("{name}-pdb"));
        assert_eq!(host_spread(&rendered, name), "DoNotSchedule");
    }
    assert_eq!(
        host_spread(
            &render(&["osm.ha=true", "osm.hostSpread=preferred"]),
            "osm-injector"
        ),
        "ScheduleAnyway"
    );
    assert_eq!(host_spread(&render(&[]), "osm-controller"), "ScheduleAnyway");
}

fn host_spread(rendered: &Rendered, name: &str) -> String {
    let spec = &rendered.get("Deployment", name)["spec"]["template"]["spec"];
    let constraints = spec["topologySpreadConstraints"].as_array().expect("spread");
    let host = constraints
        .iter()
        .find(|constraint| constraint["topologyKey"] == "kubernetes.io/hostname");
    host.expect("a spread over hosts")["whenUnsatisfiable"]
        .as_str()
        .expect("an answer")
        .to_owned()
}

#[test]
fn pods_are_locked_down_probed_and_gentle() {
    let rendered = render(&[]);
    for (_, name) in COMPONENTS {
        let deployment = &rendered.get("Deployment", name)["spec"];
        assert_eq!(
            deployment["strategy"]["rollingUpdate"],
            json!({"maxUnavailable": 0, "maxSurge": "25%"})
        );
        let spec = &deployment["template"]["spec"];
        assert_eq!(spec["serviceAccountName"], name);
        assert_eq!(spec["terminationGracePeriodSeconds"], 40);
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let container = &spec["containers"][0];
        assert_eq!(
            container["securityContext"],
            json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
        );
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/health/ready");
        assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/health/alive");
        assert_eq!(container["startupProbe"]["httpGet"]["path"], "/health/alive");
        let alive = &container["livenessProbe"];
        let seconds = |name: &str| alive[name].as_u64().expect("a number");
        assert_eq!(
            seconds("periodSeconds") * seconds("failureThreshold") + seconds("timeoutSeconds"),
            18,
            "what hangs is killed in time"
        );
        assert_eq!(seconds("terminationGracePeriodSeconds"), 1);
        assert!(
            container["resources"]["requests"]["cpu"].is_string(),
            "no CPU request: the autoscaler needs one"
        );
    }
}

#[test]
fn webhooks_select_the_mesh_and_never_the_control_plane() {
    let rendered = render(&[
        "osm.meshName=shop",
        "osm.injector.failurePolicy=Ignore",
        "osm.injector.webhookTimeoutSeconds=7",
    ]);
    let mutating = &rendered.get("MutatingWebhookConfiguration", "osm-webhook-shop")["webhooks"][0];
    assert_eq!(mutating["name"], "osm-inject.k8s.io");
    assert_eq!(mutating["failurePolicy"], "Ignore");
    assert_eq!(mutating["timeoutSeconds"], 7);
    assert_eq!(mutating["sideEffects"], "NoneOnDryRun");
    assert_eq!(
        mutating["clientConfig"]["service"]["path"],
        "/mutate-pod-creation"
    );
    assert_eq!(
        mutating["clientConfig"].get("caBundle"),
        None,
        "the injector fills it in; Helm must not own it"
    );
    let probe = &rendered.get("MutatingWebhookConfiguration", "osm-webhook-shop")["webhooks"][1];
    assert_eq!(probe["clientConfig"], mutating["clientConfig"]);
    assert_eq!(
        (
            &probe["rules"][0]["resources"],
            &probe["objectSelector"]["matchLabels"]
        ),
        (
            &json!(["meshrootcertificates"]),
            &json!({"openservicemesh.io/install-probe": "injector"})
        ),
        "nobody's objects but those of the installation"
    );
    let validating =
        &rendered.get("ValidatingWebhookConfiguration", "osm-validator-mesh-shop")["webhooks"][0];
    for webhook in [mutating, validating] {
        let selector = &webhook["namespaceSelector"];
        assert_eq!(
            selector["matchLabels"],
            json!({"openservicemesh.io/monitored-by": "shop"})
        );
        let names = &selector["matchExpressions"][1];
        assert_eq!(
            (&names["key"], &names["operator"]),
            (&json!("kubernetes.io/metadata.name"), &json!("NotIn"))
        );
        for never in ["osm-system", "kube-system"] {
            assert!(has(names, "values", never), "{never} could be locked out");
        }
    }
}

#[test]
fn images_follow_registry_tag_and_digest() {
    let image = |rendered: &Rendered, name: &str| {
        rendered.get("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"]
            .as_str()
            .map(str::to_owned)
    };
    let tagged = render(&[
        "OpenServiceMesh.image.registry=localhost/osm",
        "OpenServiceMesh.image.tag=dev",
    ]);
    assert_eq!(
        image(&tagged, "osm-controller").as_deref(),
        Some("localhost/osm/osm-controller:dev")
    );
    let text = tagged.get("Deployment", "osm-injector").to_string();
    assert!(
        text.contains(
            r#"{"name":"OSM_DEFAULT_INIT_CONTAINER_IMAGE","value":"localhost/osm/osm-sidecar:dev"}"#
        ),
        "{text}"
    );
    let pinned = render(&["osm.image.digest.osmController=sha256:abc"]);
    assert_eq!(
        image(&pinned, "osm-controller").as_deref(),
        Some("openservicemesh/osm-controller@sha256:abc")
    );
    let default = image(&render(&[]), "osm-injector").expect("an image");
    assert_eq!(
        default,
        concat!("openservicemesh/osm-injector:v", env!("CARGO_PKG_VERSION"))
    );
}

/// What the CLI refuses before it runs helm, the chart refuses too, for those who use helm alone.
#[test]
fn the_chart_itself_refuses_bad_values() {
    for (sets, expected) in [
        (
            &["OpenServiceMesh.osmController.autoScale.minReplicas=0"][..],
            "minReplicas",
        ),
        (&["osm.osmController.autoScale.maxReplicas=11"], "maxReplicas"),
        (
            &["OpenServiceMesh.injector.autoScale.targetAverageUtilization=101"],
            "targetAverageUtilization",
        ),
        (
            &["OpenServiceMesh.injector.autoScale.minReplicas=6"],
            "minReplicas is 6, more than maxReplicas, which is 5",
        ),
        (&["OpenServiceMesh.osmController.replicaCount=0"], "replicaCount"),
        (&["OpenServiceMesh.osmController.replicas=1"], "replicas"),
        (
            &[
                "osm.injector.autoScale.enable=true",
                "osm.injector.autoScale.cpu.targetAverageUtilization=0",
            ],
            "give 1 to 100",
        ),
        (
            &["osm.ha=true", "osm.injector.autoScale.maxReplicas=2"],
            "at least 3 replicas",
        ),
        (&["osm.certificateProvider.kind=vault"], "vault"),
    ] {
        let output = template(sets);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(expected),
            "{sets:?}: {text}"
        );
    }
}

#[test]
fn the_custom_resources_are_those_the_controller_reads() {
    let mut served = BTreeSet::new();
    for entry in std::fs::read_dir(crate::helm::chart().join("crds")).expect("crds") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let crd: CustomResourceDefinition = serde_saphyr::from_str(&text).expect("a definition");
        assert_eq!(
            crd.metadata.name,
            Some(format!("{}.{}", crd.spec.names.plural, crd.spec.group))
        );
        assert_eq!(
            crd.spec.versions.iter().filter(|version| version.storage).count(),
            1,
            "{}",
            path.display()
        );
        for version in crd.spec.versions.iter().filter(|version| version.served) {
            served.insert(format!(
                "{}/{} {} {}",
                crd.spec.group, version.name, crd.spec.names.kind, crd.spec.names.plural
            ));
        }
    }
    fn name<K: Resource<DynamicType = ()>>() -> String {
        format!("{} {} {}", K::api_version(&()), K::kind(&()), K::plural(&()))
    }
    for read in [
        name::<MeshConfig>(),
        name::<TrafficTarget>(),
        name::<HTTPRouteGroup>(),
        name::<TCPRoute>(),
        name::<TrafficSplit>(),
    ] {
        assert!(served.contains(&read), "{read} is not among {served:?}");
    }
    assert_eq!(served.len(), 13);
}
