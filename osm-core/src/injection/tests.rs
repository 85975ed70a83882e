mod copied;
mod relay;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{api::mesh_config::LocalProxyMode, envoy::bootstrap::Templates};

const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

fn settings(start_order: StartOrder) -> Settings {
    Settings {
        mesh_name: "osm".to_owned(),
        control_plane_namespace: "osm-system".to_owned(),
        trust_domain: TrustDomain::default(),
        envoy_image: "envoy:1".to_owned(),
        init_image: "osm-sidecar:2".to_owned(),
        healthcheck_image: "osm-sidecar:2".to_owned(),
        pull_policy: None,
        start_order,
        bind: IpAddr::from(Ipv4Addr::UNSPECIFIED),
        templates: Templates::default(),
    }
}

#[test]
fn sidecars_are_native_where_the_cluster_has_them() {
    let container = StartOrder::Container { sleep_hook: false };
    for (major, minor, order) in [
        (1, 28, container),
        (1, 29, StartOrder::NativeSidecar),
        (1, 36, StartOrder::NativeSidecar),
        (2, 0, StartOrder::NativeSidecar),
    ] {
        assert_eq!(StartOrder::of_version(major, minor), order, "{major}.{minor}");
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn member() -> BTreeMap<String, String> {
    map(&[("openservicemesh.io/monitored-by", "osm")])
}

fn enabled() -> BTreeMap<String, String> {
    map(&[("openservicemesh.io/sidecar-injection", "enabled")])
}

/// What one request brings, in a namespace with these labels and annotations.
struct Given<'a> {
    uid: &'a str,
    namespace: &'a str,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    config: MeshConfigSpec,
    start_order: StartOrder,
}

impl Default for Given<'_> {
    fn default() -> Self {
        Self {
            uid: UID,
            namespace: "shop",
            labels: member(),
            annotations: enabled(),
            config: MeshConfigSpec::default(),
            start_order: StartOrder::NativeSidecar,
        }
    }
}

impl Given<'_> {
    fn answer(&self, pod: &Value) -> Result<Outcome, Denial> {
        let namespace = NamespaceView {
            name: self.namespace,
            labels: &self.labels,
            annotations: &self.annotations,
        };
        let request = Request {
            uid: self.uid,
            namespace: self.namespace,
            pod,
        };
        inject(
            request,
            Some(namespace),
            &self.config,
            &settings(self.start_order),
        )
    }

    fn injected(&self, pod: &Value) -> Injection {
        match self.answer(pod) {
            Ok(Outcome::Injected(injection)) => {
                let mut patched = pod.clone();
                json_patch::patch(&mut patched, &injection.patch).expect("the patch applies");
                assert_eq!(patched, injection.pod, "the patch gives the pod that was meant");
                *injection
            }
            other => panic!("not injected: {other:?}"),
        }
    }

    fn skipped(&self, pod: &Value) -> SkipReason {
        match self.answer(pod) {
            Ok(Outcome::Unchanged { reason, .. }) => reason,
            other => panic!("not skipped: {other:?}"),
        }
    }

    fn denied(&self, pod: &Value) -> String {
        let Err(denial) = self.answer(pod) else {
            panic!("not denied")
        };
        let message = denial.to_string();
        assert!(message.len() < 600, "a message for people: {message}");
        message
    }
}

fn simple() -> Value {
    json!({
        "metadata": { "name": "bookbuyer", "labels": { "app": "bookbuyer" } },
        "spec": {
            "serviceAccountName": "bookbuyer",
            "containers": [{ "name": "bookbuyer", "image": "bookbuyer:1" }],
        },
    })
}

fn probed() -> Value {
    json!({
        "metadata": { "generateName": "bookstore-", "annotations": {
            "openservicemesh.io/outbound-port-exclusion-list": "6379,7070",
            "openservicemesh.io/outbound-ip-range-exclusion-list": "10.1.2.3/32",
        } },
        "spec": {
            "serviceAccountName": "bookstore",
            "volumes": [{ "name": "data", "emptyDir": {} }],
            "initContainers": [
                { "name": "migrate", "image": "migrate:1" },
                { "name": "logs", "image": "logs:1", "restartPolicy": "Always",
                  "startupProbe": { "tcpSocket": { "port": 24224 } } },
            ],
            "containers": [
                {
                    "name": "web", "image": "web:1", "newField": { "of a": "later Kubernetes" },
                    "ports": [{ "name": "http", "containerPort": 8080 }, { "name": "tls", "containerPort": 8443 }],
                    "livenessProbe": {
                        "httpGet": { "path": "/live?deep=1", "port": "http", "scheme": "HTTP",
                                     "httpHeaders": [{ "name": "Host", "value": "web.example" }] },
                        "timeoutSeconds": 7, "periodSeconds": 3,
                    },
                    "readinessProbe": { "httpGet": { "path": "/ready", "port": "tls", "scheme": "HTTPS" } },
                    "startupProbe": { "exec": { "command": ["true"] } },
                },
                {
                    "name": "admin", "image": "admin:1",
                    "livenessProbe": { "httpGet": { "port": 9443, "scheme": "HTTPS" } },
                    "readinessProbe": { "grpc": { "port": 9000, "service": "admin.v1" }, "timeoutSeconds": 2 },
                    "startupProbe": { "tcpSocket": { "port": "9000" } },
                },
            ],
        },
    })
}

fn busy_config() -> MeshConfigSpec {
    serde_json::from_value(json!({
        "sidecar": {
            "logLevel": "debug", "envoyImage": "custom-envoy:3", "initContainerImage": "custom-init:3",
            "enablePrivilegedInitContainer": true, "localProxyMode": "PodIP",
            "resources": { "limits": { "cpu": "1500m", "memory": "256Mi" } },
        },
        "traffic": {
            "outboundPortExclusionList": [6379], "inboundPortExclusionList": [2222],
            "outboundIPRangeInclusionList": ["10.0.0.0/8", "fd00::/8"], "networkInterfaceExclusionList": ["net1"],
        },
    }))
    .expect("valid")
}

fn golden(injection: &Injection) -> Value {
    json!({
        "proxy": injection.proxy.to_string(),
        "pod": injection.pod,
        "patch": injection.patch,
        "warnings": injection.warnings,
        "bootstrap": serde_json::from_str::<Value>(&injection.bootstrap).expect("JSON"),
    })
}

#[test]
fn golden_simple() {
    insta::assert_json_snapshot!("simple", golden(&Given::default().injected(&simple())));
}

#[test]
fn golden_probes_and_every_setting() {
    let given = Given {
        annotations: map(&[
            ("openservicemesh.io/sidecar-injection", "YES"),
            ("openservicemesh.io/metrics", "enabled"),
        ]),
        config: busy_config(),
        ..Default::default()
    };
    insta::assert_json_snapshot!("probed", golden(&given.injected(&probed())));
}

#[test]
fn golden_plain_container() {
    let start_order = StartOrder::Container { sleep_hook: true };
    let injection = Given {
        start_order,
        ..Default::default()
    }
    .injected(&probed());
    insta::assert_json_snapshot!("plain", injection.pod);
}

#[test]
fn the_decision_follows_host_network_namespace_and_annotations() {
    let pod = |annotation: Option<&str>| {
        let mut pod = simple();
        if let Some(value) = annotation {
            pod["metadata"]["annotations"] = json!({ "openservicemesh.io/sidecar-injection": value });
        }
        pod
    };
    let given = |annotation: &[(&str, &str)]| Given {
        annotations: map(annotation),
        ..Default::default()
    };
    let key = "openservicemesh.io/sidecar-injection";
    for value in ["enabled", "YES", "True"] {
        given(&[]).injected(&pod(Some(value)));
        given(&[(key, value)]).injected(&pod(None));
    }
    for value in ["disabled", "NO", "False"] {
        assert_eq!(
            given(&[(key, "enabled")]).skipped(&pod(Some(value))),
            SkipReason::NotEnabled
        );
        assert_eq!(given(&[(key, value)]).skipped(&pod(None)), SkipReason::NotEnabled);
    }
    given(&[(key, "disabled")]).injected(&pod(Some("enabled")));
    assert_eq!(given(&[]).skipped(&pod(None)), SkipReason::NotEnabled);
    for value in ["TRUE ", "", "1", "on"] {
        assert!(
            given(&[]).denied(&pod(Some(value))).contains("the pod"),
            "{value:?}"
        );
        assert!(
            given(&[(key, value)])
                .denied(&pod(Some("disabled")))
                .contains("namespace shop"),
            "{value:?}"
        );
    }

    let mut host = pod(Some("nonsense"));
    host["spec"]["hostNetwork"] = json!(true);
    assert_eq!(given(&[]).skipped(&host), SkipReason::HostNetwork);
    for namespace in ["kube-system", "kube-public", "osm-system"] {
        let given = Given {
            namespace,
            ..Default::default()
        };
        assert_eq!(given.skipped(&simple()), SkipReason::SystemNamespace);
    }
    let other = Given {
        labels: map(&[("openservicemesh.io/monitored-by", "other")]),
        ..Default::default()
    };
    assert_eq!(other.skipped(&simple()), SkipReason::NotMonitored);
    let mut ignored = member();
    ignored.insert("openservicemesh.io/ignore".to_owned(), "true".to_owned());
    assert_eq!(
        Given {
            labels: ignored,
            ..Default::default()
        }
        .skipped(&simple()),
        SkipReason::Ignored
    );

    let pod = simple();
    let request = Request {
        uid: UID,
        namespace: "shop",
        pod: &pod,
    };
    let unknown = inject(
        request,
        None,
        &MeshConfigSpec::default(),
        &settings(StartOrder::NativeSidecar),
    );
    assert!(matches!(unknown, Err(Denial::NamespaceUnknown(_))));
}

#[test]
fn windows_pods_stay_as_they_are_unless_they_ask_for_the_impossible() {
    let mut pod = simple();
    pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/os": "windows" });
    assert_eq!(Given::default().skipped(&pod), SkipReason::Windows);
    pod["metadata"]["annotations"] = json!({ "openservicemesh.io/sidecar-injection": "enabled" });
    Given::default().denied(&pod);
}

#[test]
fn what_only_the_sidecar_may_have_is_refused() {
    let with = |path: &str, value: Value| {
        let mut pod = simple();
        *pod.pointer_mut(path).expect("exists") = value;
        Given::default().denied(&pod)
    };
    let container = |extra: Value| {
        let mut container = json!({ "name": "app", "image": "app:1" });
        container
            .as_object_mut()
            .expect("object")
            .extend(extra.as_object().expect("object").clone());
        with("/spec/containers", json!([container]))
    };
    assert!(with("/spec/containers", json!([])).contains("no containers"));
    for name in ["envoy", "osm-init", "osm-healthcheck"] {
        assert!(container(json!({ "name": name })).contains("reserved"));
    }
    for port in [15000, 15003, 15901, 15904] {
        container(json!({ "ports": [{ "containerPort": port }] }));
        container(json!({ "livenessProbe": { "httpGet": { "port": port } } }));
        container(json!({ "readinessProbe": { "grpc": { "port": port } } }));
    }
    assert!(container(json!({ "securityContext": { "runAsUser": 1500 } })).contains("1500"));
    container(json!({ "volumeMounts": [{ "name": "envoy-bootstrap-config-volume", "mountPath": "/x" }] }));

    let mut pod = simple();
    pod["spec"]["securityContext"] = json!({ "runAsUser": 1500 });
    Given::default().denied(&pod);
    pod["spec"]["containers"][0]["securityContext"] = json!({ "runAsUser": 1000 });
    Given::default().injected(&pod);
    for source in [
        json!({ "hostPath": { "path": "/" } }),
        json!({ "configMap": { "name": "x" } }),
        json!({ "projected": { "sources": [] } }),
        json!({ "secret": { "secretName": "mine" } }),
    ] {
        let mut pod = simple();
        let mut volume = json!({ "name": "envoy-bootstrap-config-volume" });
        volume
            .as_object_mut()
            .expect("object")
            .extend(source.as_object().expect("object").clone());
        pod["spec"]["volumes"] = json!([volume]);
        assert!(Given::default().denied(&pod).contains("reserved"));
    }
}

#[test]
fn hostile_shapes_are_answered() {
    for pod in [
        json!(null),
        json!([]),
        json!({}),
        json!({ "spec": 1 }),
        json!({ "spec": { "containers": {} } }),
    ] {
        Given::default().denied(&pod);
    }
    let mut pod = simple();
    pod["metadata"]["annotations"] = json!({
        "openservicemesh.io/outbound-port-exclusion-list": "8,".repeat(500_000),
    });
    Given::default().denied(&pod);
    pod["metadata"]["annotations"] = json!({ "openservicemesh.io/sidecar-injection": "x".repeat(1 << 20) });
    Given::default().denied(&pod);

    let containers = |path: &str| -> Value {
        let container = |index| {
            json!({ "name": format!("c{index}"), "livenessProbe": {
            "httpGet": { "path": path, "port": 8080 } } })
        };
        let mut pod = simple();
        pod["spec"]["containers"] = (0..1000).map(container).collect();
        pod
    };
    Given::default().denied(&containers(&format!("/{}", "x".repeat(500))));
    let mut many = containers("/");
    for container in many["spec"]["containers"].as_array_mut().expect("array") {
        container.as_object_mut().expect("object").remove("livenessProbe");
    }
    Given::default().injected(&many);

    for (port, path) in [(0, "/"), (65_536, "/"), (-1, "/")] {
        let mut pod = simple();
        pod["spec"]["containers"][0]["livenessProbe"] = json!({ "httpGet": { "port": port, "path": path } });
        let injection = Given::default().injected(&pod);
        let probe = &injection.pod["spec"]["containers"][0]["livenessProbe"];
        assert_eq!(
            probe["httpGet"]["port"],
            json!(port),
            "left for the API server to refuse"
        );
    }
    for path in ["/\n", "/\0", &"/x".repeat(5000)] {
        let mut pod = simple();
        pod["spec"]["containers"][0]["livenessProbe"] = json!({ "httpGet": { "port": 80, "path": path } });
        Given::default().denied(&pod);
    }
    for uid in ["", &"x".repeat(300)] {
        Given {
            uid,
            ..Default::default()
        }
        .denied(&simple());
    }
}

#[test]
fn probes_of_other_hosts_and_of_unknown_ports_stay() {
    let mut pod = simple();
    let probe = json!({ "httpGet": { "host": "other.example", "port": 80 } });
    pod["spec"]["containers"][0]["livenessProbe"] = probe.clone();
    let unknown = json!({ "httpGet": { "port": "no-such-name" } });
    pod["spec"]["containers"][0]["readinessProbe"] = unknown.clone();
    let injection = Given::default().injected(&pod);
    assert_eq!(injection.pod["spec"]["containers"][0]["livenessProbe"], probe);
    assert_eq!(injection.pod["spec"]["containers"][0]["readinessProbe"], unknown);
}

#[test]
fn a_rewritten_probe_that_lost_its_original_is_refused() {
    let mut pod = Given::default().injected(&probed()).pod;
    let web = &mut pod["spec"]["containers"][0];
    web["livenessProbe"]["httpGet"]["httpHeaders"] = json!([]);
    assert!(
        Given {
            uid: "another",
            ..Default::default()
        }
        .denied(&pod)
        .contains("liveness probe")
    );
}

#[test]
fn the_secret_is_recognised_by_the_request_that_made_it_only() {
    let certificate = include_str!("testdata/proxy.pem");
    let injection = Given::default().injected(&simple());
    let not_after: Timestamp = "2030-01-01T00:00:00Z".parse().expect("valid");
    let own = BootstrapSecret {
        proxy: &injection.proxy,
        mesh_name: "osm",
        version: "2.0.0",
        request_uid: UID,
        bootstrap: &injection.bootstrap,
        certificate,
        key: "key",
        roots: "roots",
        signer: "",
        not_after,
    };
    let secret = own.build();
    assert_eq!(secret.metadata.name, Some(secret_name(injection.proxy.uuid)));
    let upgraded = BootstrapSecret {
        version: "3.0.0",
        ..own
    };
    assert_eq!(
        upgraded.recognise(&secret),
        Ok(()),
        "a replica of another version in the same rollout"
    );
    for other in [
        BootstrapSecret {
            mesh_name: "other",
            ..own
        },
        BootstrapSecret {
            request_uid: "another",
            ..own
        },
        BootstrapSecret {
            bootstrap: "{}",
            ..own
        },
        BootstrapSecret {
            roots: "other",
            ..own
        },
    ] {
        other.recognise(&secret).expect_err("foreign");
    }
    let mut stolen = secret.clone();
    stolen.data.as_mut().expect("data").remove("sds_cert.pem");
    own.recognise(&stolen).expect_err("no certificate");

    let mut renewed = secret;
    renewed.metadata.resource_version = Some("7".to_owned());
    BootstrapSecret {
        key: "new key",
        ..own
    }
    .renew(&mut renewed);
    let by_another = BootstrapSecret { signer: "new", ..own }.build();
    let tags = [by_another.metadata, renewed.metadata.clone()].map(|metadata| {
        metadata.annotations.expect("annotations")["openservicemesh.io/trust-bundle"].clone()
    });
    assert_ne!(
        tags[0], tags[1],
        "a certificate of the root before is to be renewed"
    );
    assert_eq!(renewed.data.expect("data")["sds_key.pem"].0, b"new key");
    assert_eq!(renewed.metadata.resource_version.as_deref(), Some("7"));
}

fn handler() -> impl Strategy<Value = Value> {
    prop_oneof![
        ("[a-z/?=]{0,12}", 1..=9999, any::<bool>()).prop_map(|(path, port, tls)| json!({ "httpGet": {
            "path": path, "port": port, "scheme": if tls { "HTTPS" } else { "HTTP" } } })),
        (1..=9999).prop_map(|port| json!({ "tcpSocket": { "port": port } })),
        (1..=9999, "[a-z.]{0,8}")
            .prop_map(|(port, service)| json!({ "grpc": { "port": port, "service": service } })),
        Just(json!({ "exec": { "command": ["true"] } })),
    ]
}

prop_compose! {
    fn container(name: &'static str)(
        probes in prop::collection::btree_map(
            prop::sample::select(vec!["livenessProbe", "readinessProbe", "startupProbe"]), handler(), 0..=3),
    ) -> Value {
        let mut container = json!({ "name": name, "image": "app:1" });
        for (field, probe) in probes {
            container[field] = probe;
        }
        container
    }
}

prop_compose! {
    fn pods()(
        containers in (container("a"), container("b")),
        init in prop::option::of(container("c")),
        volumes in prop::option::of(Just(json!([{ "name": "data", "emptyDir": {} }]))),
        labels in prop::option::of(Just(json!({ "app": "x" }))),
        pod_ip in any::<bool>(),
        native in any::<bool>(),
    ) -> (Value, bool, bool) {
        let mut pod = json!({ "metadata": {}, "spec": { "containers": [containers.0, containers.1] } });
        if let Some(init) = init { pod["spec"]["initContainers"] = json!([init]); }
        if let Some(volumes) = volumes { pod["spec"]["volumes"] = volumes; }
        if let Some(labels) = labels { pod["metadata"]["labels"] = labels; }
        (pod, pod_ip, native)
    }
}

proptest! {
    #[test]
    fn injecting_is_repeatable_and_idempotent((pod, pod_ip, native) in pods()) {
        let mut config = MeshConfigSpec::default();
        if pod_ip {
            config.sidecar.local_proxy_mode = LocalProxyMode::PodIP;
        }
        let start_order =
            if native { StartOrder::NativeSidecar } else { StartOrder::Container { sleep_hook: true } };
        let given = Given { config, start_order, ..Default::default() };
        let first = given.injected(&pod);
        let again = given.injected(&pod);
        prop_assert_eq!(serde_json::to_vec(&first.patch).unwrap(), serde_json::to_vec(&again.patch).unwrap());
        prop_assert_eq!(&first.bootstrap, &again.bootstrap);
        // The same request over the result: nothing is left to do.
        let twice = given.injected(&first.pod);
        prop_assert_eq!(&twice.patch.0, &Vec::new());
        prop_assert_eq!(&twice.bootstrap, &first.bootstrap);
    }
}
