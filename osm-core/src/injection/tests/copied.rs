//! Pods whose template was copied from an injected pod.

use super::*;

#[test]
fn a_label_set_before_does_not_make_an_identity() {
    let mut pod = simple();
    pod["metadata"]["labels"]["osm-proxy-uuid"] = json!("00000000-0000-0000-0000-000000000001");
    let injection = Given::default().injected(&pod);
    let uuid = injection.proxy.uuid.to_string();
    assert_eq!(injection.pod["metadata"]["labels"]["osm-proxy-uuid"], json!(uuid));
    assert_eq!(uuid, proxy_uuid(UID, "shop").to_string());
    assert_ne!(proxy_uuid(UID, "shop"), proxy_uuid(UID, "other"));
}

/// The model's identity must appear nowhere in the copy.
fn assert_copied(copy: &Injection, model: &Injection) {
    let text = copy.pod.to_string() + &copy.bootstrap;
    assert!(!text.contains(&model.proxy.uuid.to_string()), "{text}");
}

#[test]
fn a_copied_pod_gets_one_sidecar_and_an_identity_of_its_own() {
    for start_order in [
        StartOrder::NativeSidecar,
        StartOrder::Container { sleep_hook: false },
    ] {
        let given = Given {
            start_order,
            ..Default::default()
        };
        let model = given.injected(&probed());
        let other = Given {
            uid: "another",
            start_order,
            ..Default::default()
        };
        let fresh = other.injected(&probed());
        let copy = other.injected(&model.pod);
        assert_copied(&copy, &model);
        assert_eq!(copy.bootstrap, fresh.bootstrap);
        // The original's fields that stand for the same (a named port, an absent path) may be spelled out now.
        assert_eq!(copy.pod["spec"], fresh.pod["spec"]);

        // `kubectl debug --copy-to`: labels, annotations and probes are gone.
        let mut debug = model.pod.clone();
        debug["metadata"] = json!({ "name": "debug" });
        for container in debug["spec"]["containers"].as_array_mut().expect("array") {
            container
                .as_object_mut()
                .expect("object")
                .retain(|key, _| !key.ends_with("Probe"));
        }
        assert_copied(&other.injected(&debug), &model);
    }
}
