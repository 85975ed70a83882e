//! What a failed test leaves behind: everything one needs to find out why, in one folder.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::fs;

use super::Mesh;
use super::envoy::Envoy;
use super::mesh::{MESH_CONFIG, NAMESPACE};

/// What of the API is kept, besides pods.
const KINDS: [&str; 11] = [
    "v1/Service",
    "v1/ServiceAccount",
    "v1/Event",
    "discovery.k8s.io/v1/EndpointSlice",
    "apps/v1/Deployment",
    "apps/v1/StatefulSet",
    "access.smi-spec.io/v1alpha3/TrafficTarget",
    "specs.smi-spec.io/v1alpha4/HTTPRouteGroup",
    "specs.smi-spec.io/v1alpha4/TCPRoute",
    "split.smi-spec.io/v1alpha2/TrafficSplit",
    MESH_CONFIG,
];

/// What of a sidecar is kept. Private keys are not among it: Envoy redacts them.
const ADMIN: [(&str, &str); 4] = [
    ("config_dump?include_eds", "envoy-config.json"),
    ("stats", "envoy-stats.txt"),
    ("clusters", "envoy-clusters.txt"),
    ("certs", "envoy-certs.json"),
];

/// Writes the error, and of the namespaces and the control plane all objects, logs, and sidecars' state. Never fails:
/// what cannot be had is said in its place.
pub async fn collect(mesh: &Mesh, folder: &Path, namespaces: &[String], error: &str) {
    if let Err(problem) = write(&folder.join("error.txt"), error).await {
        eprintln!("cannot write {}: {problem}", folder.display());
        return;
    }
    for namespace in namespaces.iter().map(String::as_str).chain([NAMESPACE]) {
        let folder = folder.join(namespace);
        for kind in KINDS {
            let file = kind.rsplit('/').next().unwrap_or(kind).to_lowercase();
            match mesh.kubernetes.list(kind, Some(namespace), "").await {
                Ok(objects) if objects.is_empty() => {}
                Ok(objects) => {
                    keep(
                        &folder.join(format!("{file}.json")),
                        Ok(pretty(&Value::Array(objects))),
                    )
                    .await
                }
                Err(error) => keep(&folder.join(format!("{file}.error.txt")), Err(error)).await,
            }
        }
        match mesh.kubernetes.pods(namespace, "").await {
            Ok(pods) => {
                for pod in pods {
                    collect_pod(mesh, &folder, namespace, &pod).await;
                }
            }
            Err(error) => keep(&folder.join("pods.error.txt"), Err(error)).await,
        }
    }
}

async fn collect_pod(mesh: &Mesh, folder: &Path, namespace: &str, pod: &Pod) {
    let Some(name) = pod.metadata.name.as_deref() else {
        return;
    };
    let folder = folder.join(name);
    keep(
        &folder.join("pod.json"),
        serde_json::to_value(pod)
            .map(|pod| pretty(&pod))
            .map_err(Into::into),
    )
    .await;
    let Some(spec) = &pod.spec else { return };
    let containers = || spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers() {
        let logs = mesh
            .kubernetes
            .logs(namespace, name, &container.name, false)
            .await;
        keep(&folder.join(format!("{}.log", container.name)), logs).await;
        if let Ok(logs) = mesh.kubernetes.logs(namespace, name, &container.name, true).await {
            keep(&folder.join(format!("{}.previous.log", container.name)), Ok(logs)).await;
        }
    }
    if containers().any(|container| container.name == "envoy") {
        let envoy = Envoy::new(&mesh.kubernetes, namespace, name);
        for (path, file) in ADMIN {
            keep(&folder.join(file), envoy.admin(&format!("/{path}")).await).await;
        }
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

async fn keep(file: &Path, text: Result<String>) {
    let text = text.unwrap_or_else(|error| format!("not available: {error:#}\n"));
    if let Err(error) = write(file, &text).await {
        eprintln!("cannot write {}: {error}", file.display());
    }
}

async fn write(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).await?;
    }
    fs::write(file, text).await
}
