//! The cluster: connecting to it, and finding the meshes in it.
//!
//! A mesh is a Deployment labelled `app=osm-controller`; its name is the label `meshName`.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use osm_core::api::{labels, names};
use serde::Serialize;

use crate::Global;

/// How long a cluster may take to answer at first.
const ANSWER: Duration = Duration::from_secs(10);
/// The oldest minor version of Kubernetes 1 that knows everything in the chart.
const OLDEST_MINOR: u32 = 27;

/// A reachable cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) minor: Option<u32>,
}

/// A mesh in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Mesh {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) version: String,
    /// Whether it tolerates no other mesh.
    #[serde(skip)]
    pub(crate) single: bool,
}

impl Cluster {
    /// Connects, and waits for the first answer.
    pub(crate) async fn connect(global: &Global) -> Result<Cluster> {
        let config = config(global)
            .await
            .map_err(|error| anyhow!("Error fetching kubeconfig: {error:#}"))?;
        let at = config.cluster_url.to_string();
        let unreachable = |why: String| {
            anyhow!("Could not access Kubernetes cluster, check kubeconfig: no good answer from {at}: {why}")
        };
        let client = Client::try_from(config).map_err(|error| unreachable(chain(&error)))?;
        let version = match tokio::time::timeout(ANSWER, client.apiserver_version()).await {
            Ok(Ok(version)) => version,
            Ok(Err(error)) => return Err(unreachable(chain(&error))),
            Err(_) => {
                return Err(unreachable(format!(
                    "it did not answer within {} s",
                    ANSWER.as_secs()
                )));
            }
        };
        let minor = version
            .minor
            .trim_end_matches(|c: char| !c.is_ascii_digit())
            .parse()
            .ok();
        Ok(Cluster { client, minor })
    }

    /// Refuses a cluster that is too old for the chart.
    pub(crate) fn check_version(&self) -> Result<()> {
        match self.minor {
            Some(minor) if minor < OLDEST_MINOR => {
                bail!(
                    "The cluster is Kubernetes 1.{minor}, but osm needs 1.{OLDEST_MINOR} or newer: upgrade it first"
                )
            }
            _ => Ok(()),
        }
    }

    /// All meshes, by namespace and name.
    pub(crate) async fn meshes(&self) -> Result<Vec<Mesh>> {
        let selector = format!("{}={}", labels::APP, names::CONTROLLER);
        let deployments = Api::<Deployment>::all(self.client.clone())
            .list(&ListParams::default().labels(&selector))
            .await
            .context("Could not list the meshes in the cluster (Deployments labelled app=osm-controller)")?;
        let mut meshes: Vec<Mesh> = deployments.iter().map(mesh).collect();
        meshes.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        Ok(meshes)
    }

    /// The mesh of that name.
    pub(crate) async fn mesh(&self, name: &str) -> Result<Mesh> {
        let meshes = self.meshes().await?;
        let known: Vec<&str> = meshes.iter().map(|mesh| mesh.name.as_str()).collect();
        meshes.iter().find(|mesh| mesh.name == name).cloned().ok_or_else(|| match known.as_slice() {
            [] => anyhow!("There is no mesh [{name}] in the cluster: install one with `osm install --mesh-name {name}`"),
            known => anyhow!("There is no mesh [{name}] in the cluster: known are [{}]; choose with --mesh-name", known.join("], [")),
        })
    }

    /// The namespaces of a mesh, or of any.
    pub(crate) async fn mesh_namespaces(&self, mesh: Option<&str>) -> Result<Vec<Namespace>> {
        let selector = match mesh {
            Some(mesh) => format!("{}={mesh}", labels::MONITORED_BY),
            None => labels::MONITORED_BY.to_owned(),
        };
        let list = Api::<Namespace>::all(self.client.clone())
            .list(&ListParams::default().labels(&selector))
            .await
            .context("Could not list the namespaces of the mesh")?;
        Ok(list.items)
    }

    /// A ready pod of a component of the control plane.
    pub(crate) async fn component_pod(&self, namespace: &str, component: &str) -> Result<String> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .list(&ListParams::default().labels(&format!("{}={component}", labels::APP)))
            .await
            .with_context(|| format!("Could not list the {component} pods in namespace [{namespace}]"))?;
        pods.iter()
            .find(|pod| is_ready(pod))
            .map(ResourceExt::name_any)
            .ok_or_else(|| anyhow!("No {component} pod in namespace [{namespace}] is ready"))
    }

    /// All pods of a component of the control plane that are not about to go, by name.
    pub(crate) async fn component_pods(&self, namespace: &str, component: &str) -> Result<Vec<String>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace)
            .list_metadata(&ListParams::default().labels(&format!("{}={component}", labels::APP)))
            .await
            .with_context(|| format!("Could not list the {component} pods in namespace [{namespace}]"))?;
        let there = pods
            .items
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let mut names: Vec<String> = there.map(ResourceExt::name_any).collect();
        names.sort();
        Ok(names)
    }

    /// How many nodes take new pods.
    pub(crate) async fn schedulable_nodes(&self) -> Result<usize> {
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await
            .context("Could not list the nodes of the cluster")?;
        Ok(nodes.iter().filter(|node| takes_pods(node)).count())
    }
}

/// Whether a node takes new pods that tolerate nothing.
pub(crate) fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    spec.and_then(|spec| spec.unschedulable) != Some(true)
        && taints.into_iter().all(|taint| taint.effect == "PreferNoSchedule")
}

/// Whether a pod is ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// An error and everything that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn mesh(deployment: &Deployment) -> Mesh {
    let label = |name: &str| deployment.labels().get(name).cloned().unwrap_or_default();
    Mesh {
        name: label(labels::MESH_NAME),
        namespace: deployment.namespace().unwrap_or_default(),
        version: Some(label(labels::APP_VERSION))
            .filter(|text| !text.is_empty())
            .unwrap_or_else(|| "Unknown".to_owned()),
        single: label(labels::ENFORCE_SINGLE_MESH) == "true",
    }
}

/// The kubeconfig that was asked for; without one, what the pod this runs in gives.
async fn config(global: &Global) -> Result<Config> {
    let options = KubeConfigOptions {
        context: global.context.clone(),
        ..KubeConfigOptions::default()
    };
    let read = match global.kubeconfig.as_deref() {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let hint = "name one with --kubeconfig or in $KUBECONFIG";
    let kubeconfig = match read {
        Ok(kubeconfig) => kubeconfig,
        Err(error) if global.kubeconfig.is_some() || global.context.is_some() => {
            bail!("{}: {hint}", chain(&error))
        }
        Err(error) => return Config::incluster().map_err(|_| anyhow!("{}: {hint}", chain(&error))),
    };
    Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| anyhow!("{}: {hint}", chain(&error)))
}
