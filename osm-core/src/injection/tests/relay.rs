//! Pods whose sidecar's last good configuration is kept.

use super::*;

const KEY: &str = "openservicemesh.io/keep-last-good-config";

fn keeping() -> MeshConfigSpec {
    let mut config = busy_config();
    config.sidecar.keep_last_good_config = true;
    config
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers
        .filter_map(|container| Some(container["name"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn the_relay_is_envoys_way_to_the_controller_and_may_do_no_more() {
    let given = Given {
        config: keeping(),
        ..Default::default()
    };
    let injection = given.injected(&simple());
    let spec = &injection.pod["spec"];
    let expected = json!({
        "name": "osm-relay",
        "image": "osm-sidecar:2",
        "restartPolicy": "Always",
        "command": ["osm-sidecar"],
        "args": [
            "relay",
            "--controller=osm-controller.osm-system.svc.cluster.local.:15128",
            "--server-name=ads.cluster.local",
        ],
        "ports": [{ "name": "relay", "containerPort": 15905, "protocol": "TCP" }],
        "resources": {
            "requests": { "cpu": "5m", "memory": "16Mi" },
            "limits": { "cpu": "200m", "memory": "128Mi" },
        },
        "livenessProbe": {
            "httpGet": { "path": "/health/alive", "port": 15905, "scheme": "HTTP" },
            "periodSeconds": 10, "timeoutSeconds": 2, "failureThreshold": 3,
        },
        "securityContext": {
            "runAsUser": 1500, "runAsGroup": 1500, "runAsNonRoot": true,
            "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            { "name": "envoy-bootstrap-config-volume", "mountPath": "/etc/envoy", "readOnly": true },
            { "name": "osm-relay-volume", "mountPath": "/var/run/osm-relay" },
        ],
    });
    assert_eq!(spec["initContainers"][1], expected);
    let mounts = &spec["initContainers"][2]["volumeMounts"];
    let mount = json!({ "name": "osm-relay-volume", "mountPath": "/var/run/osm-relay", "readOnly": true });
    assert_eq!(mounts[1], mount);
    let volume =
        json!({ "name": "osm-relay-volume", "emptyDir": { "medium": "Memory", "sizeLimit": "48Mi" } });
    assert_eq!(spec["volumes"][1], volume);
    let redirect = spec["initContainers"][0]["args"].to_string();
    assert!(
        redirect.contains("--inbound-port-exclusion-list=2222,15905"),
        "{redirect}"
    );
    assert!(injection.bootstrap.contains("/var/run/osm-relay/xds.sock"));
}

#[test]
fn the_relay_runs_before_envoy_and_beside_it_where_it_cannot() {
    let mut given = Given {
        config: keeping(),
        ..Default::default()
    };
    let pod = given.injected(&probed()).pod;
    let order = [
        "osm-init",
        "osm-relay",
        "envoy",
        "osm-healthcheck",
        "migrate",
        "logs",
    ];
    assert_eq!(names(&pod, "initContainers"), order);
    given.start_order = StartOrder::Container { sleep_hook: false };
    let pod = given.injected(&probed()).pod;
    assert!(names(&pod, "containers").ends_with(&[
        "osm-healthcheck".into(),
        "osm-relay".into(),
        "envoy".into()
    ]));
}

#[test]
fn the_pod_decides_then_its_namespace_then_the_mesh() {
    let keeps = |pod: Option<&str>, namespace: Option<&str>, mesh: bool| {
        let mut given = Given::default();
        given.config.sidecar.keep_last_good_config = mesh;
        if let Some(value) = namespace {
            given.annotations.insert(KEY.to_owned(), value.to_owned());
        }
        let mut wanted = simple();
        if let Some(value) = pod {
            wanted["metadata"]["annotations"] = json!({ KEY: value });
        }
        let pod = given.injected(&wanted).pod;
        names(&pod, "initContainers").contains(&"osm-relay".to_owned())
    };
    assert!(!keeps(None, None, false));
    assert!(keeps(None, None, true));
    assert!(!keeps(None, Some("disabled"), true));
    assert!(keeps(None, Some("enabled"), false));
    assert!(keeps(Some("yes"), Some("disabled"), false));
    assert!(!keeps(Some("no"), Some("enabled"), true));
    let mut pod = simple();
    pod["metadata"]["annotations"] = json!({ KEY: "perhaps" });
    assert!(Given::default().denied(&pod).contains(KEY));
}

#[test]
fn what_only_the_relay_may_have_is_refused() {
    let given = Given {
        config: keeping(),
        ..Default::default()
    };
    let container = |extra: Value| {
        let mut pod = simple();
        let fields = extra.as_object().expect("object").clone();
        pod["spec"]["containers"][0]
            .as_object_mut()
            .expect("object")
            .extend(fields);
        pod
    };
    let port = container(json!({ "ports": [{ "containerPort": 15905 }] }));
    assert!(given.denied(&port).contains("15905"));
    Given::default().injected(&port);
    for given in [given, Given::default()] {
        given.denied(&container(json!({ "name": "osm-relay" })));
        given.denied(&container(
            json!({ "volumeMounts": [{ "name": "osm-relay-volume", "mountPath": "/x" }] }),
        ));
        let mut pod = simple();
        pod["spec"]["volumes"] = json!([{ "name": "osm-relay-volume", "emptyDir": {} }]);
        given.denied(&pod);
    }
}

#[test]
fn a_copied_pod_gets_a_relay_only_if_it_is_to_have_one() {
    let keeping = Given {
        config: keeping(),
        ..Default::default()
    };
    let model = keeping.injected(&probed());
    let other = Given {
        uid: "another",
        config: busy_config(),
        ..Default::default()
    };
    assert_eq!(
        other.injected(&model.pod).pod["spec"],
        other.injected(&probed()).pod["spec"]
    );
    let keeping = Given {
        uid: "another",
        ..keeping
    };
    assert_eq!(
        keeping.injected(&model.pod).pod["spec"],
        keeping.injected(&probed()).pod["spec"]
    );
}
