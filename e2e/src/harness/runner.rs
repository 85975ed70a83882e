//! Runs end-to-end tests on one mesh: several at once, those that change the mesh's settings one by one.
//!
//! Invariant: a test has namespaces of its own, and they are gone when it is over; a test that fails leaves a folder.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Mesh, Peer, Workload, failure};
use crate::harness::envoy::Envoy;
use crate::harness::kubernetes::is_ready;
use crate::harness::peer::CONTAINER;
use crate::progress::seconds;

/// How long a pod may take to get ready while others start, too.
pub const POD_READY: Duration = Duration::from_secs(120);

/// The longest any test may take.
const LIMIT: Duration = Duration::from_secs(300);

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name, unique.
    pub name: &'static str,
    /// Whether it must run without others: it changes what all share.
    pub alone: bool,
    /// The test; an error is a failure.
    pub run: for<'a> fn(&'a Case) -> LocalBoxFuture<'a, Result<()>>,
}

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only tests whose name contains one of these; all when empty.
    pub filters: Vec<String>,
    /// How many run at once.
    pub jobs: usize,
    /// Whether the namespaces of failed tests stay.
    pub keep: bool,
}

/// One run of one test: what it may use and what it made.
pub struct Case {
    /// The test's name.
    pub name: &'static str,
    /// The mesh.
    pub mesh: Arc<Mesh>,
    namespaces: Mutex<Vec<String>>,
}

impl Case {
    /// The name of a namespace of this test.
    pub fn namespace_name(&self, suffix: &str) -> String {
        let name = format!("t-{}-{suffix}", self.name.replace('_', "-"));
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.clone());
        name
    }

    /// Makes a namespace of the mesh, removed when the test is over.
    pub async fn namespace(&self, suffix: &str) -> Result<String> {
        let name = self.namespace_name(suffix);
        self.mesh.meshed_namespace(&name).await?;
        Ok(name)
    }

    /// Makes a namespace outside the mesh, removed when the test is over.
    pub async fn plain_namespace(&self, suffix: &str) -> Result<String> {
        let name = self.namespace_name(suffix);
        self.mesh
            .kubernetes
            .create_namespace(&name, json!({}), json!({}))
            .await?;
        Ok(name)
    }

    /// Starts a pod without waiting for it.
    pub async fn start(&self, namespace: &str, workload: &Workload) -> Result<()> {
        let pod = workload.pod(namespace, &self.mesh.images.demo);
        self.mesh
            .kubernetes
            .apply(&[workload.service_account(namespace), pod])
            .await
    }

    /// Starts pods and waits until all are ready.
    pub async fn run(&self, workloads: &[(&str, Workload)]) -> Result<Vec<Peer>> {
        for (namespace, workload) in workloads {
            self.start(namespace, workload).await?;
        }
        let mut peers = Vec::new();
        for (namespace, workload) in workloads {
            peers.push(self.ready(namespace, &workload.name).await?);
        }
        Ok(peers)
    }

    /// Starts two pods; see [`Case::run`].
    pub async fn run2(&self, first: (&str, Workload), second: (&str, Workload)) -> Result<(Peer, Peer)> {
        let peers = self.run(&[first, second]).await?;
        let [first, second] =
            <[Peer; 2]>::try_from(peers).map_err(|_| anyhow!("two pods became another number"))?;
        Ok((first, second))
    }

    /// Waits for a pod.
    pub async fn ready(&self, namespace: &str, pod: &str) -> Result<Peer> {
        self.mesh.kubernetes.ready(namespace, pod, POD_READY).await?;
        Peer::find(&self.mesh.kubernetes, namespace, pod, CONTAINER).await
    }

    /// Creates or changes objects.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        self.mesh.kubernetes.apply(objects).await
    }

    fn made(&self) -> Vec<String> {
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Fails if a sidecar of this test's pods rejected configuration.
    async fn check_sidecars(&self) -> Result<()> {
        for namespace in self.made() {
            for pod in self.mesh.kubernetes.pods(&namespace, "osm-proxy-uuid").await? {
                if is_ready(&pod) && has_sidecar(&pod) {
                    let name = pod.metadata.name.unwrap_or_default();
                    Envoy::new(&self.mesh.kubernetes, &namespace, &name)
                        .check_healthy()
                        .await?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a pod has a sidecar container, native or not.
pub fn has_sidecar(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .any(|container| container.name == "envoy")
    })
}

/// Runs the tests and says what came of each; returns the names of those that failed.
pub async fn run(mesh: &Arc<Mesh>, tests: &[Test], options: &Options) -> Result<Vec<&'static str>> {
    let chosen: Vec<Test> = tests
        .iter()
        .filter(|test| {
            options.filters.is_empty() || options.filters.iter().any(|part| test.name.contains(part))
        })
        .copied()
        .collect();
    anyhow::ensure!(
        !chosen.is_empty(),
        "no test has a name with {:?}",
        options.filters
    );
    let mut failed = Vec::new();
    // All in one task: tests wait far more than they work.
    let together = chosen.iter().filter(|test| !test.alone);
    let mut running =
        futures::stream::iter(together.map(|test| run_one(Arc::clone(mesh), *test, options.keep)))
            .buffer_unordered(options.jobs.max(1));
    while let Some((name, passed)) = running.next().await {
        if !passed {
            failed.push(name);
        }
    }
    for test in chosen.iter().filter(|test| test.alone) {
        if !run_one(Arc::clone(mesh), *test, options.keep).await.1 {
            failed.push(test.name);
        }
    }
    println!("{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    Ok(failed)
}

async fn run_one(mesh: Arc<Mesh>, test: Test, keep: bool) -> (&'static str, bool) {
    let begun = Instant::now();
    let case = Arc::new(Case {
        name: test.name,
        mesh: Arc::clone(&mesh),
        namespaces: Mutex::default(),
    });
    let mut result = attempt(&case, test).await;
    if result.is_ok() {
        result = case.check_sidecars().await;
    }
    let took = seconds(begun.elapsed());
    let passed = match &result {
        Ok(()) => {
            println!("    ok  {} ({took})", test.name);
            true
        }
        Err(error) => {
            let folder: PathBuf = mesh.failures.join(test.name);
            // A folder of an earlier run would mix with this one's; that there is none is fine.
            let _absent = tokio::fs::remove_dir_all(&folder).await;
            failure::collect(&mesh, &folder, &case.made(), &format!("{error:?}\n")).await;
            println!(
                "FAILED  {} ({took}): {error:#}\n        logs, configuration and statistics: {}",
                test.name,
                folder.display()
            );
            false
        }
    };
    if passed || !keep {
        for namespace in case.made() {
            if let Err(error) = mesh.kubernetes.delete("v1/Namespace", None, &namespace).await {
                println!("        {namespace} stays behind: {error:#}");
            }
        }
    }
    (test.name, passed)
}

async fn attempt(case: &Arc<Case>, test: Test) -> Result<()> {
    let task = std::panic::AssertUnwindSafe((test.run)(case)).catch_unwind();
    match tokio::time::timeout(LIMIT, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(anyhow!(
                "panicked: {}",
                text.or(panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message")
            ))
        }
        Err(_) => Err(anyhow!("not over after {LIMIT:?}")),
    }
}
