//! The kubelet's probes, which do not speak the mesh's TLS.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::harness::kubernetes::is_ready;
use crate::harness::{Case, Workload, eventually};

const PORTS: &str = "--http 8080 --https 8443 --tcp 9100";

fn probes() -> [(&'static str, Value); 5] {
    [
        (
            "http",
            json!({ "httpGet": { "path": "/status/200", "port": 8080 } }),
        ),
        (
            "https",
            json!({ "httpGet": { "path": "/status/200", "port": 8443, "scheme": "HTTPS" } }),
        ),
        ("tcp", json!({ "tcpSocket": { "port": 9100 } })),
        ("grpc", json!({ "grpc": { "port": 8080 } })),
        (
            "named",
            json!({ "httpGet": { "path": "/status/200", "port": "web" } }),
        ),
    ]
}

fn server(name: &str, probe: &Value) -> Workload {
    let mut probe = probe.clone();
    probe["periodSeconds"] = json!(1);
    let mut startup = probe.clone();
    startup["failureThreshold"] = json!(60);
    Workload::server(name, PORTS).with_container(json!({
        "ports": [{ "name": "web", "containerPort": 8080 }],
        "startupProbe": startup, "readinessProbe": probe, "livenessProbe": probe,
    }))
}

/// Startup, readiness and liveness probes over HTTP, HTTPS, TCP and gRPC, by number and by name.
pub(super) async fn probes_reach_the_application(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let pods: Vec<(&str, Workload)> = probes()
        .iter()
        .map(|(name, probe)| (namespace.as_str(), server(name, probe)))
        .collect();
    case.run(&pods).await?;
    // Some rounds of liveness probes: none may have ended a container.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for pod in case.mesh.kubernetes.pods(&namespace, "").await? {
        let restarts: i32 = pod
            .status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten())
            .map(|container| container.restart_count)
            .sum();
        ensure!(
            is_ready(&pod) && restarts == 0,
            "{:?} restarted {restarts} times",
            pod.metadata.name
        );
    }
    Ok(())
}

/// A probe tells the truth: one that fails, or whose port nobody listens on, keeps the pod from being ready.
pub(super) async fn probe_of_a_wrong_port_fails(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let wrong = [
        (
            "http",
            json!({ "httpGet": { "path": "/status/200", "port": 8099 } }),
        ),
        (
            "unwell",
            json!({ "httpGet": { "path": "/status/500", "port": 8080 } }),
        ),
        (
            "https",
            json!({ "httpGet": { "path": "/status/200", "port": 8499, "scheme": "HTTPS" } }),
        ),
        ("tcp", json!({ "tcpSocket": { "port": 9199 } })),
        ("grpc", json!({ "grpc": { "port": 9199 } })),
    ];
    for (name, probe) in &wrong {
        let mut probe = probe.clone();
        probe["periodSeconds"] = json!(1);
        let workload = Workload::server(name, PORTS).with_container(json!({ "readinessProbe": probe }));
        case.start(&namespace, &workload).await?;
    }
    case.run(&[(&namespace, server("right", &probes()[0].1))]).await?;
    eventually(
        "all failing probes to be noticed",
        crate::harness::runner::POD_READY,
        async || {
            let events = case
                .mesh
                .kubernetes
                .list("v1/Event", Some(&namespace), "")
                .await?;
            for (name, _) in &wrong {
                let unhealthy = |event: &Value| {
                    event["reason"] == "Unhealthy" && event["involvedObject"]["name"] == *name
                };
                ensure!(
                    events.iter().any(unhealthy),
                    "the probe of {name} has not failed yet"
                );
            }
            Ok(())
        },
    )
    .await?;
    for pod in case.mesh.kubernetes.pods(&namespace, "").await? {
        let name = pod.metadata.name.clone().unwrap_or_default();
        ensure!(
            is_ready(&pod) == (name == "right"),
            "{name} is {}ready",
            if is_ready(&pod) { "" } else { "not " }
        );
    }
    Ok(())
}
