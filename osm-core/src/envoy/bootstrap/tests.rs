use std::{
    env, fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::*;

fn probes() -> Vec<Probe> {
    let probe = |kind, container: &str, port, path: &str, tls| Probe {
        kind,
        container: container.to_owned(),
        port,
        path: path.to_owned(),
        tls,
        timeout: Duration::from_secs(3),
    };
    vec![
        probe(ProbeKind::Liveness, "app", 8080, "/live?deep=1", false),
        probe(ProbeKind::Liveness, "second", 8443, "/live", true),
        probe(ProbeKind::Readiness, "app", 8080, "/", false),
        probe(ProbeKind::Startup, "second", 8443, "/start", true),
    ]
}

fn render(probes: &[Probe], bind: IpAddr, directory: &str) -> String {
    bootstrap(probes, bind, directory, None)
}

fn bootstrap(probes: &[Probe], bind: IpAddr, directory: &str, relay: Option<&str>) -> String {
    let trust_domain = TrustDomain::default();
    Bootstrap {
        uuid: Uuid::from_u128(7),
        trust_domain: &trust_domain,
        controller_namespace: "osm-system",
        probes,
        bind,
        directory,
        relay,
    }
    .render()
}

fn parsed(probes: &[Probe]) -> Value {
    serde_json::from_str(&render(probes, Ipv4Addr::UNSPECIFIED.into(), DIRECTORY)).expect("JSON")
}

#[test]
fn golden() {
    insta::assert_json_snapshot!("bootstrap", parsed(&probes()));
    let certificate: Value = serde_json::from_str(&certificate_secret(DIRECTORY)).expect("JSON");
    insta::assert_json_snapshot!("certificate_secret", certificate);
    let validation: Value = serde_json::from_str(&validation_secret(DIRECTORY)).expect("JSON");
    insta::assert_json_snapshot!("validation_secret", validation);
}

#[test]
fn with_a_relay_the_controller_is_reached_through_its_socket() {
    let text = bootstrap(
        &[],
        Ipv4Addr::UNSPECIFIED.into(),
        DIRECTORY,
        Some(RELAY_DIRECTORY),
    );
    let bootstrap: Value = serde_json::from_str(&text).expect("JSON");
    insta::assert_json_snapshot!("relay", bootstrap["staticResources"]["clusters"][0]);
    let service = &bootstrap["dynamicResources"]["adsConfig"]["grpcServices"][0];
    assert_eq!(service["envoyGrpc"]["clusterName"], "osm-relay");
    assert!(!text.contains("osm-controller"), "{text}");
}

#[test]
fn a_silent_host_is_left_by_the_kernel_alone() {
    let keepalive = KEEPALIVE_TIME + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES;
    // The first moment to ask after the timeout is the one that ends the connection.
    assert!(USER_TIMEOUT <= keepalive && keepalive < USER_TIMEOUT + KEEPALIVE_INTERVAL);
    assert!(keepalive < PING);
    for whole in [KEEPALIVE_TIME, KEEPALIVE_INTERVAL] {
        assert_eq!(whole, Duration::from_secs(whole.as_secs()));
    }
}

#[test]
fn without_probes_only_the_sidecars_own_readiness_is_served() {
    let bootstrap = parsed(&[]);
    let listeners = bootstrap["staticResources"]["listeners"]
        .as_array()
        .expect("listeners");
    let names: Vec<&Value> = listeners.iter().map(|listener| &listener["name"]).collect();
    assert_eq!(names, [&json!("readiness_listener")]);
}

#[test]
fn envoy_accepts_it_and_calls_nothing_deprecated() {
    let directory = directory("accepts");
    for (name, file) in [
        (CERTIFICATE_SECRET, certificate_secret(&text(&directory))),
        (VALIDATION_SECRET, validation_secret(&text(&directory))),
    ] {
        fs::write(directory.join(name), file).expect("writable");
    }
    for bind in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        for probes in [probes(), vec![]] {
            validate(&directory, &render(&probes, bind, &text(&directory)));
        }
        let relayed = bootstrap(&probes(), bind, &text(&directory), Some(RELAY_DIRECTORY));
        validate(&directory, &relayed);
    }
    fs::remove_dir_all(&directory).expect("ours");
}

#[test]
#[should_panic(expected = "rejected")]
fn the_validation_can_fail() {
    let directory = directory("fails");
    let mut bootstrap = parsed(&[]);
    bootstrap["staticResources"]["clusters"][1]["loadAssignment"]["endpoints"][0]["lbEndpoints"][0]["endpoint"]
        ["address"]["socketAddress"]["portValue"] = json!(70_000);
    validate(&directory, &bootstrap.to_string());
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

fn directory(name: &str) -> PathBuf {
    let directory = env::temp_dir().join(format!("osm-bootstrap-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a temporary folder");
    directory
}

/// Runs the real Envoy over it.
fn validate(directory: &Path, bootstrap: &str) {
    let path = directory.join(BOOTSTRAP);
    fs::write(&path, bootstrap).expect("writable");
    let output = Command::new(envoy())
        .args([
            "--mode",
            "validate",
            "--disable-hot-restart",
            "--log-level",
            "warn",
        ])
        .args(["--service-cluster", "account.namespace", "--config-path"])
        .arg(&path)
        .output()
        .expect("Envoy starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "Envoy rejected {}:\n{log}\n{bootstrap}",
        path.display()
    );
    assert!(!log.to_lowercase().contains("deprecated"), "{log}");
}

/// `$OSM_ENVOY`, or the one that the end-to-end tests keep.
fn envoy() -> PathBuf {
    let folder = |name| {
        env::var_os(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let path = folder("OSM_ENVOY").unwrap_or_else(|| {
        let cache = folder("OSM_CACHE").unwrap_or_else(|| {
            let base = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
            base.expect("HOME is set").join("osm-e2e")
        });
        cache.join("envoy-1.40.0/envoy")
    });
    assert!(
        path.is_file(),
        "no Envoy at {}: run `make test`, which puts it there, or set OSM_ENVOY to one",
        path.display()
    );
    path
}
