//! What the demo and the tests stand on: a cluster, images of this checkout on it, and the programs to drive it.
//!
//! Owns how these are got ready, and how what an earlier run left is removed. Must not touch a mesh it did not install.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::checkout::Checkout;
use crate::cluster::programs::Programs;
use crate::cluster::{self, Cluster};
use crate::harness::mesh::{Images, NAME, NAMESPACE};
use crate::harness::{Kubernetes, Mesh};
use crate::image::{catalog, import};
use crate::progress::Progress;

/// The label of everything made here, by which it is found again and removed.
pub const MADE_BY: &str = "osm-e2e/made-by";

/// How long it may take for namespaces with all their pods to go.
const GONE: Duration = Duration::from_secs(120);

/// The images that are needed.
const IMAGES: [&str; 6] = [
    "osm-controller",
    "osm-injector",
    "osm-sidecar",
    "osm-demo",
    "envoy",
    "mariadb",
];

/// A cluster that is up, with all that is needed on it.
pub struct Ground {
    checkout: Checkout,
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
}

/// Brings a cluster up, builds the mesh's programs and images and gives them to it. With `CLUSTER=current` the cluster
/// of `$KUBECONFIG` is used as it is: it pulls its images.
pub fn prepare() -> Result<Ground> {
    let (checkout, progress) = (Checkout::find()?, Progress::new());
    cluster::up::up(&checkout, &progress)?;
    let profile = profile();
    progress.long_step("compile the mesh", || catalog::compile(profile, &checkout))?;
    let cluster = Cluster::connect()?;
    if cluster.is_local {
        catalog::prepare(&progress)?;
        for image in catalog::build(&IMAGES, profile, &checkout, &progress)? {
            progress.step(&image.reference(), || import::import(&image, &checkout))?;
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok(Ground {
        checkout,
        cluster,
        runtime,
    })
}

/// Cargo's profile for what is put on the cluster: what is debugged is built for debugging.
pub fn profile() -> &'static str {
    if cfg!(debug_assertions) { "dev" } else { "release" }
}

impl Ground {
    /// The working copy.
    pub fn checkout(&self) -> &Checkout {
        &self.checkout
    }

    /// The file that leads to the cluster.
    pub fn kubeconfig(&self) -> &Path {
        &self.cluster.kubeconfig
    }

    /// The folder of `kubectl`, `helm` and `osm`.
    pub fn bin(&self) -> PathBuf {
        self.checkout.bin()
    }

    /// Gives the local cluster images of programs that only some drills need, building what is not built.
    pub fn import_programs(&self, names: impl IntoIterator<Item = &'static str>) -> Result<()> {
        let progress = Progress::new();
        for name in names {
            let binary = Programs::ensure_one(&self.checkout, name, &progress)?;
            let image = catalog::of_program(name, &binary)?;
            progress.step(&image.reference(), || import::import(&image, &self.checkout))?;
        }
        Ok(())
    }

    /// Runs asynchronous work to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The mesh that is, or will be, on the cluster.
    pub async fn mesh(&self) -> Result<Arc<Mesh>> {
        let kubernetes = Kubernetes::connect(&self.cluster.kubeconfig, self.cluster.kubectl.clone()).await?;
        let images = Images {
            registry: self.cluster.registry.clone(),
            tag: self.cluster.tag.clone(),
            envoy: self.cluster.foreign_image(&cluster::ENVOY),
            demo: self.cluster.image("osm-demo"),
            mariadb: self.cluster.foreign_image(&cluster::MARIADB),
        };
        Ok(Mesh::new(
            kubernetes,
            images,
            &self.bin(),
            self.checkout.local().join("failures"),
        ))
    }
}

/// Remembers that the mesh was installed from here.
pub async fn mark(mesh: &Mesh) -> Result<()> {
    let change = json!({ "metadata": { "labels": { MADE_BY: "osm-e2e" } } });
    mesh.kubernetes
        .merge("v1/Namespace", None, NAMESPACE, &change)
        .await?;
    Ok(())
}

/// Removes what earlier runs of the demo and the tests made, their mesh included.
pub async fn clear(mesh: &Mesh) -> Result<()> {
    let ours = mesh.kubernetes.list("v1/Namespace", None, MADE_BY).await?;
    let ours: Vec<String> = ours
        .iter()
        .filter_map(|namespace| namespace["metadata"]["name"].as_str())
        .map(str::to_owned)
        .collect();
    let marked = ours.iter().any(|name| name == NAMESPACE);
    if mesh.is_installed().await? && !marked && !is_local() {
        bail!(
            "the cluster has a mesh in {NAMESPACE} that was not installed from here; \
             `osm uninstall mesh` it or use another cluster"
        );
    }
    // Applications first: their pods' Secrets and sidecars then end while somebody can still answer them.
    let applications: Vec<String> = ours.into_iter().filter(|name| name != NAMESPACE).collect();
    mesh.kubernetes.delete_namespaces(&applications, GONE).await?;
    uninstall(mesh).await
}

/// Removes the mesh, if there is one, with its namespace.
pub async fn uninstall(mesh: &Mesh) -> Result<()> {
    if mesh.is_installed().await? {
        let arguments = [
            "uninstall",
            "mesh",
            "--mesh-name",
            NAME,
            "--osm-namespace",
            NAMESPACE,
            "--force",
            "--delete-namespace",
        ];
        mesh.osm_ok(&arguments).await?;
    }
    mesh.kubernetes
        .delete_namespaces(&[NAMESPACE.to_owned()], GONE)
        .await
}

fn is_local() -> bool {
    !cluster::is_current()
}
