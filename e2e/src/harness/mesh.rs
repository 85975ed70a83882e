//! A mesh on a cluster, driven by the real `osm`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::Kubernetes;
use super::kubernetes::is_ready;
use super::wait::eventually;

/// The namespace of the control plane.
pub const NAMESPACE: &str = "osm-system";
/// The mesh's name.
pub const NAME: &str = "osm";
/// The kind of the mesh's settings.
pub const MESH_CONFIG: &str = "config.openservicemesh.io/v1alpha2/MeshConfig";
/// Trust domain: the suffix of all names in certificates.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// Where the images of the mesh and of the demo are.
#[derive(Clone, Debug)]
pub struct Images {
    /// Registry of the control plane's images.
    pub registry: String,
    /// Their tag.
    pub tag: String,
    /// Envoy.
    pub envoy: String,
    /// `osm-demo`.
    pub demo: String,
    /// MariaDB.
    pub mariadb: String,
}

impl Images {
    /// Any other image that was made here.
    pub fn named(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.registry, self.tag)
    }
}

/// What an `osm` command did.
#[derive(Debug)]
pub struct Outcome {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: Option<i32>,
}

/// A cluster, the programs to drive it with, and the mesh on it.
pub struct Mesh {
    /// The cluster.
    pub kubernetes: Kubernetes,
    /// The images.
    pub images: Images,
    /// Where failures are written.
    pub failures: PathBuf,
    bin: PathBuf,
}

impl Mesh {
    /// A cluster on which a mesh is, or will be, installed; `bin` holds `osm` and `helm`.
    pub fn new(kubernetes: Kubernetes, images: Images, bin: &Path, failures: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            kubernetes,
            images,
            bin: bin.to_owned(),
            failures,
        })
    }

    /// Runs `osm` to its end, whatever that is.
    pub async fn osm(&self, arguments: &[&str]) -> Result<Outcome> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(self.bin.clone()).chain(std::env::split_paths(&path)))?;
        let output = tokio::process::Command::new(self.bin.join("osm"))
            .args(arguments)
            .env("PATH", path)
            .env("KUBECONFIG", self.kubernetes.kubeconfig())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot start {}", self.bin.join("osm").display()))?;
        Ok(Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status.code(),
        })
    }

    /// Runs `osm`, which must succeed.
    pub async fn osm_ok(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.osm(arguments).await?;
        if outcome.status != Some(0) {
            bail!(
                "osm {} failed:\n{}{}",
                arguments.join(" "),
                outcome.stdout,
                outcome.stderr
            );
        }
        Ok(outcome.stdout)
    }

    /// Arguments of `osm install` with this cluster's images and two replicas of everything; `settings` are values
    /// below `OpenServiceMesh.`.
    pub fn install_arguments(&self, settings: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "install",
            "--mesh-name",
            NAME,
            "--osm-namespace",
            NAMESPACE,
            "--timeout",
            "3m",
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(self.values(settings));
        arguments
    }

    /// Arguments of `osm mesh upgrade` to the same with other `settings`; none of those before count.
    pub fn upgrade_arguments(&self, settings: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = [
            "mesh",
            "upgrade",
            "--mesh-name",
            NAME,
            "--osm-namespace",
            NAMESPACE,
            "--timeout",
            "2m",
        ]
        .map(str::to_owned)
        .into();
        arguments.extend(self.values(settings));
        arguments
    }

    /// Values of the chart for this cluster, as flags.
    fn values(&self, settings: &[&str]) -> Vec<String> {
        let own = [
            format!("image.registry={}", self.images.registry),
            format!("image.tag={}", self.images.tag),
            format!("sidecarImage={}", self.images.envoy),
            "osmController.replicaCount=2".to_owned(),
            "injector.replicaCount=2".to_owned(),
            // Two cores must do for everything.
            "osmController.resource.requests.cpu=0.1".to_owned(),
            "injector.resource.requests.cpu=0.1".to_owned(),
        ];
        own.iter()
            .map(String::as_str)
            .chain(settings.iter().copied())
            .map(|setting| format!("--set=OpenServiceMesh.{setting}"))
            .collect()
    }

    /// Whether a control plane is there.
    pub async fn is_installed(&self) -> Result<bool> {
        let deployments = self
            .kubernetes
            .list("apps/v1/Deployment", Some(NAMESPACE), "app=osm-controller")
            .await?;
        Ok(!deployments.is_empty())
    }

    /// The running pods of a component.
    pub async fn component(&self, app: &str) -> Result<Vec<Pod>> {
        self.kubernetes.pods(NAMESPACE, &format!("app={app}")).await
    }

    /// Waits until a component has so many ready pods, and no others.
    pub async fn component_ready(&self, app: &str, replicas: usize, at_most: Duration) -> Result<()> {
        eventually(&format!("{replicas} of {app}"), at_most, async || {
            let pods = self.component(app).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(
                ready == replicas && pods.len() == replicas,
                "{ready} of {} pods are ready",
                pods.len()
            );
            Ok(())
        })
        .await
    }

    /// Sets a component's replicas, and waits until so many pods are ready and no others are left.
    pub async fn scale(&self, component: &str, replicas: usize, at_most: Duration) -> Result<()> {
        let change = json!({ "spec": { "replicas": replicas } });
        self.kubernetes
            .merge("apps/v1/Deployment", Some(NAMESPACE), component, &change)
            .await?;
        self.component_ready(component, replicas, at_most).await
    }

    /// Changes the mesh's settings: a merge patch of MeshConfig's spec.
    pub async fn configure(&self, spec: Value) -> Result<()> {
        self.kubernetes
            .merge(
                MESH_CONFIG,
                Some(NAMESPACE),
                "osm-mesh-config",
                &json!({ "spec": spec }),
            )
            .await
            .context("cannot change the MeshConfig")?;
        Ok(())
    }

    /// Creates a namespace of the mesh.
    pub async fn meshed_namespace(&self, name: &str) -> Result<()> {
        self.kubernetes
            .create_namespace(
                name,
                json!({ "openservicemesh.io/monitored-by": NAME }),
                json!({ "openservicemesh.io/sidecar-injection": "enabled" }),
            )
            .await
    }
}
