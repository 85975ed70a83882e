//! What a failing test leaves behind.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{answered, http_port, serve_client};
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Case, Workload, failure};

/// Private keys as they are written in PEM, and the same in base64, as Envoy prints bytes.
const KEYS: [&str; 3] = [
    "PRIVATE KEY",
    "LS0tLS1CRUdJTiBQUklWQVRFIEtFW",
    "LS0tLS1CRUdJTiBFQyBQUklWQVRFIEtFW",
];
/// What Envoy prints instead of a private key, in base64.
const REDACTED: &str = "W3JlZGFjdGVkXQ==";

/// Everything one needs to find out why a test failed is in its folder: of each pod its state, its logs, and its sidecar's
/// configuration and statistics; the same of the control plane. No private key is.
pub(super) async fn failures_are_kept(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    serve_client(case, &namespace, http_port()).await?;
    let (client, _web) = case
        .run2(
            (&namespace, Workload::client("client")),
            (&namespace, Workload::server("web", "--http 8080")),
        )
        .await?;
    // Both sidecars have certificates, and keys, by then.
    answered(&client, &format!("http://web.{namespace}/"), &[], 200).await?;

    let folder = tempfile::tempdir()?;
    failure::collect(
        &case.mesh,
        folder.path(),
        std::slice::from_ref(&namespace),
        "it went wrong\n",
    )
    .await;
    let mut files = BTreeMap::new();
    read(folder.path(), folder.path(), &mut files)?;
    let file = |path: String| files.get(&path).with_context(|| format!("there is no {path}"));

    let error = file("error.txt".to_owned())?;
    ensure!(error == "it went wrong\n", "error.txt says: {error}");
    for kind in ["service", "httproutegroup", "traffictarget", "event"] {
        file(format!("{namespace}/{kind}.json"))?;
    }
    for pod in ["client", "web"] {
        for name in [
            "pod.json",
            "app.log",
            "osm-init.log",
            "envoy-config.json",
            "envoy-stats.txt",
            "envoy-clusters.txt",
            "envoy-certs.json",
        ] {
            let text = file(format!("{namespace}/{pod}/{name}"))?;
            ensure!(!text.trim().is_empty(), "{name} of {pod} is empty");
        }
        // At this level of logging a sidecar that is well may have nothing to say.
        file(format!("{namespace}/{pod}/envoy.log"))?;
        let certificates = file(format!("{namespace}/{pod}/envoy-certs.json"))?;
        ensure!(
            certificates.contains(&format!("{pod}.{namespace}.")),
            "the certificates of {pod} are not its own: {certificates}"
        );
        // Its secrets are in there: that no key is below proves something.
        let configuration = file(format!("{namespace}/{pod}/envoy-config.json"))?;
        ensure!(
            configuration.contains(REDACTED) && configuration.contains("dynamic_endpoint_configs"),
            "the configuration of {pod} lacks its secrets or its endpoints"
        );
    }
    file(format!("{NAMESPACE}/meshconfig.json"))?;
    for component in ["osm-controller", "osm-injector"] {
        let pods = case.mesh.component(component).await?;
        ensure!(!pods.is_empty(), "there is no {component}");
        for pod in pods {
            let pod = pod.metadata.name.unwrap_or_default();
            file(format!("{NAMESPACE}/{pod}/pod.json"))?;
            let log = file(format!("{NAMESPACE}/{pod}/{component}.log"))?;
            ensure!(!log.is_empty(), "the log of {pod} is empty");
        }
    }
    for (path, text) in &files {
        ensure!(
            !path.ends_with(".error.txt") && !text.starts_with("not available"),
            "{path} could not be had: {text}"
        );
        for key in KEYS {
            ensure!(!text.contains(key), "there is a private key in {path}");
        }
    }
    Ok(())
}

/// Reads all files below `folder`, by their path from `top`.
fn read(top: &Path, folder: &Path, files: &mut BTreeMap<String, String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read(top, &path, files)?;
        } else {
            let name = path.strip_prefix(top)?.to_string_lossy().into_owned();
            files.insert(name, String::from_utf8_lossy(&std::fs::read(&path)?).into_owned());
        }
    }
    Ok(())
}
