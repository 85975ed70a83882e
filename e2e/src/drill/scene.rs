//! What a drill works with: the mesh, the shop and its traffic, who serves whom, and the log of faults and findings.
//!
//! Invariant: what a drill changes on the control plane through this is put back by [`restore`] before the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::attendance::Attendance;
use super::bed::{self, SHOP, Stream};
use super::finding::Finding;
use super::node::{self, PodProcess};
use super::provider::Provider;
use super::sabotage::Sabotage;
use crate::checkout::Checkout;
use crate::harness::envoy::Envoy;
use crate::harness::kubernetes::is_ready;
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Mesh, eventually};

/// How long the control plane may take to get where a drill wants it.
pub const SOON: Duration = Duration::from_secs(120);
/// The components.
pub const COMPONENTS: [&str; 2] = ["osm-controller", "osm-injector"];
/// Replicas of each before every drill.
pub const REPLICAS: usize = 2;

#[derive(Default)]
struct Log {
    faults: u64,
    findings: Vec<Finding>,
}

/// Where a drill happens.
pub struct Scene {
    /// The mesh.
    pub mesh: Arc<Mesh>,
    /// Whether it should take the time that only a nightly run has.
    pub long: bool,
    /// Who serves whom.
    pub attendance: Attendance,
    /// Since when requests are counted.
    pub begun: Instant,
    /// The working copy.
    pub checkout: Checkout,
    /// Where the control plane's programs are, for those that run outside a pod.
    pub programs: PathBuf,
    /// The name of the fault that is built in, for the same.
    pub sabotage: Option<&'static str>,
    /// Who signs, if not the mesh itself.
    pub provider: Option<Arc<Provider>>,
    stream: Stream,
    settings: Vec<String>,
    log: Mutex<Log>,
}

impl Scene {
    /// A drill's scene, with traffic flowing.
    pub async fn set(stage: &super::stage::Stage, rate: u32, long: bool) -> Result<Self> {
        let stream = bed::send(&stage.mesh, rate).await?;
        let attendance = Attendance::start(SHOP);
        let scene = Self {
            mesh: Arc::clone(&stage.mesh),
            long,
            attendance,
            begun: stream.begun,
            checkout: stage.checkout.clone(),
            programs: stage.programs.clone(),
            sabotage: stage.sabotage.map(Sabotage::name),
            provider: stage.provider.clone(),
            stream,
            settings: stage.settings(),
            log: Mutex::default(),
        };
        scene.all_served(SOON).await?;
        Ok(Self {
            // What came before everyone was seen once does not count as a gap.
            begun: Instant::now(),
            ..scene
        })
    }

    /// One fault was injected.
    pub fn fault(&self) {
        self.lock().faults += 1;
    }

    /// Something was measured.
    pub fn finding(&self, what: impl Into<String>, measured: impl Display, bound: impl Display, holds: bool) {
        let finding = Finding {
            what: what.into(),
            measured: measured.to_string(),
            bound: bound.to_string(),
            holds,
        };
        let mark = if holds { "" } else { "  <-- BROKEN" };
        println!(
            "        {}: {} (bound: {}){mark}",
            finding.what, finding.measured, finding.bound
        );
        self.lock().findings.push(finding);
    }

    /// A time was measured that may be as long as `bound`.
    pub fn time(&self, what: impl Into<String>, measured: Duration, bound: Duration) {
        let text = |time: Duration| format!("{:.1} s", time.as_secs_f64());
        self.finding(
            what,
            text(measured),
            format!("at most {}", text(bound)),
            measured <= bound,
        );
    }

    /// Things were counted of which there may be none.
    pub fn none(&self, what: impl Into<String>, count: u64) {
        self.finding(what, count, 0, count == 0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults so far, and findings.
    pub fn log(&self) -> (u64, Vec<Finding>) {
        let log = self.lock();
        (log.faults, log.findings.clone())
    }

    /// The requests so far.
    pub async fn loss(&self) -> Result<super::traffic::Loss> {
        self.stream.loss(&self.mesh).await
    }

    /// The controllers' processes.
    pub fn controllers(&self) -> Result<Vec<PodProcess>> {
        node::processes("osm-controller")
    }

    /// The proxies of the shop: the uuids of its pods.
    pub async fn proxies(&self) -> Result<BTreeSet<String>> {
        let pods = self.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await?;
        let uuids = pods
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(uuids
            .filter_map(|mut pod| pod.metadata.labels.as_mut()?.remove("osm-proxy-uuid"))
            .collect())
    }

    /// Waits until each proxy of the shop is served by a controller.
    pub async fn all_served(&self, at_most: Duration) -> Result<()> {
        eventually("a controller for every sidecar", at_most, async || {
            let (proxies, served) = (self.proxies().await?, self.attendance.now());
            let without: Vec<&String> = proxies
                .iter()
                .filter(|proxy| !served.contains_key(*proxy))
                .collect();
            ensure!(without.is_empty(), "nobody serves {without:?}");
            Ok(())
        })
        .await
    }

    /// Sets the number of replicas, and waits until there are so many.
    pub async fn scale(&self, component: &str, replicas: usize) -> Result<()> {
        set_replicas(&self.mesh, component, replicas).await?;
        self.mesh.component_ready(component, replicas, SOON).await
    }

    /// Removes a pod of the control plane at once: one whose process was killed then gets a successor without the wait
    /// that Kubernetes puts before each restart in place.
    pub async fn replace(&self, pod: &str) -> Result<()> {
        let arguments = [
            "delete",
            "pod",
            "-n",
            NAMESPACE,
            pod,
            "--grace-period=0",
            "--force",
            "--ignore-not-found",
        ];
        self.mesh.kubernetes.kubectl(&arguments, "").await.map(drop)
    }

    /// Restarts all pods of a component, one after the other as its Deployment says, and waits for the end of it.
    pub async fn restart(&self, component: &str) -> Result<()> {
        let name = format!("deployment/{component}");
        let kubernetes = &self.mesh.kubernetes;
        kubernetes
            .kubectl(&["rollout", "restart", "-n", NAMESPACE, &name], "")
            .await?;
        self.rolled_out(component).await
    }

    /// Waits until a component's Deployment is as it should be, and the pods of before are gone.
    pub async fn rolled_out(&self, component: &str) -> Result<()> {
        let name = format!("deployment/{component}");
        self.mesh
            .kubernetes
            .kubectl(
                &["rollout", "status", "-n", NAMESPACE, &name, "--timeout=180s"],
                "",
            )
            .await?;
        let replicas = self.replicas(component).await?;
        self.mesh.component_ready(component, replicas, SOON).await
    }

    async fn replicas(&self, component: &str) -> Result<usize> {
        let deployment = self
            .mesh
            .kubernetes
            .get("apps/v1/Deployment", Some(NAMESPACE), component)
            .await?
            .with_context(|| format!("no Deployment {component}"))?;
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        Ok(usize::try_from(replicas)?)
    }

    /// Installs the mesh's chart again with further settings, as an operator would, and waits for the end of it.
    pub async fn upgrade(&self, settings: &[&str]) -> Result<()> {
        upgrade(&self.mesh, &self.settings, settings).await?;
        for component in COMPONENTS {
            self.rolled_out(component).await?;
        }
        Ok(())
    }

    /// The statistics of all sidecars of the shop, by pod.
    pub async fn stats(&self) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
        let mut all = BTreeMap::new();
        for pod in self.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await? {
            if is_ready(&pod) {
                let name = pod.metadata.name.unwrap_or_default();
                let stats = Envoy::new(&self.mesh.kubernetes, SHOP, &name).stats().await?;
                all.insert(name, stats);
            }
        }
        Ok(all)
    }

    /// The file that leads to the cluster.
    pub fn kubeconfig(&self) -> &Path {
        self.mesh.kubernetes.kubeconfig()
    }
}

async fn set_replicas(mesh: &Mesh, component: &str, replicas: usize) -> Result<()> {
    let change = json!({ "spec": { "replicas": replicas } });
    mesh.kubernetes
        .merge("apps/v1/Deployment", Some(NAMESPACE), component, &change)
        .await
        .map(drop)
}

/// Installs the mesh's chart again with further settings.
pub async fn upgrade(mesh: &Mesh, own: &[String], settings: &[&str]) -> Result<()> {
    let all: Vec<&str> = own
        .iter()
        .map(String::as_str)
        .chain(settings.iter().copied())
        .collect();
    let arguments = mesh.upgrade_arguments(&all);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    mesh.osm_ok(&arguments).await.map(drop)
}

/// Puts the control plane and the shop back to how every drill finds them.
pub async fn restore(mesh: &Mesh) -> Result<()> {
    for component in COMPONENTS {
        set_replicas(mesh, component, REPLICAS).await?;
    }
    for component in COMPONENTS {
        mesh.component_ready(component, REPLICAS, SOON).await?;
    }
    bed::make_whole(mesh).await
}
