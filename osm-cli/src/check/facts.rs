//! What is known of a mesh when it is judged: plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use osm_core::status::{Proxies, Replica, Uninjected};

/// The answer to a question, or why there is none.
pub(crate) type Asked<T> = Result<T, String>;

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The mesh's name.
    pub(crate) mesh: String,
    /// The control plane's namespace.
    pub(crate) namespace: String,
    /// The version of this program.
    pub(crate) version: String,
    /// This machine's clock: milliseconds since 1970.
    pub(crate) now_millis: i64,
    /// The minor version of Kubernetes 1.
    pub(crate) minor: Option<u32>,
    /// The controller and the injector.
    pub(crate) components: Vec<Component>,
    pub(crate) nodes: Asked<Vec<Node>>,
    pub(crate) namespaces: Asked<Vec<Labelled>>,
    pub(crate) webhooks: Asked<Vec<Webhook>>,
    /// How long the MeshConfig has service certificates live; nothing if there is none.
    pub(crate) lifetime: Asked<Option<Duration>>,
    /// Pods that lack their sidecar, as the controller that leads lists them.
    pub(crate) uninjected: Vec<Uninjected>,
    /// The proxies of each controller, by its pod. Empty unless they were asked for.
    pub(crate) proxies: Vec<(String, Asked<Proxies>)>,
}

/// A component of the control plane.
#[derive(Debug, Clone)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) key: &'static str,
    pub(crate) rollout: Asked<Rollout>,
    pub(crate) replicas: Asked<Vec<Instance>>,
    pub(crate) budget: Asked<Option<Budget>>,
    pub(crate) autoscaler: Asked<Option<Autoscaler>>,
}

/// How far a Deployment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rollout {
    pub(crate) desired: i32,
    pub(crate) updated: i32,
    pub(crate) available: i32,
    /// Whether its containers request CPU, which the autoscaler's target is a share of.
    pub(crate) requests_cpu: bool,
}

/// A replica: its pod, and what it says.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) pod: String,
    pub(crate) node: Option<String>,
    pub(crate) ready: bool,
    pub(crate) answer: Asked<Answer>,
}

/// What a replica says of itself, and between which two looks at this machine's clock.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) replica: Replica,
    pub(crate) asked_millis: i64,
    pub(crate) answered_millis: i64,
}

impl Answer {
    /// How far its clock is ahead of this machine's, in seconds, as far as that can be told.
    pub(crate) fn ahead(&self) -> i64 {
        let clock = self.replica.clock_millis;
        let ahead = (clock - self.answered_millis).max(0) + (clock - self.asked_millis).min(0);
        ahead / 1_000
    }

    /// How long until an instant by its own clock.
    pub(crate) fn until(&self, instant: i64) -> i64 {
        instant - self.replica.clock_millis / 1_000
    }
}

/// A PodDisruptionBudget.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    pub(crate) name: String,
    /// Pods it is about.
    pub(crate) expected: i32,
    pub(crate) healthy: i32,
    /// Healthy ones there must be.
    pub(crate) needed: i32,
    /// Pods that may be evicted now.
    pub(crate) allowed: i32,
}

/// A HorizontalPodAutoscaler.
#[derive(Debug, Clone)]
pub(crate) struct Autoscaler {
    pub(crate) name: String,
    pub(crate) min: i32,
    pub(crate) max: i32,
    pub(crate) current: i32,
    /// Target for CPU, in percent of what is requested.
    pub(crate) cpu: Option<i32>,
    /// Why it does not scale, if it does not.
    pub(crate) idle: Option<String>,
}

/// A node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    pub(crate) takes_pods: bool,
    pub(crate) ready: bool,
    /// When it renewed its Lease, by its own clock: milliseconds since 1970.
    pub(crate) renewed_millis: Option<i64>,
}

/// A namespace.
#[derive(Debug, Clone)]
pub(crate) struct Labelled {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// A webhook of the mesh.
#[derive(Debug, Clone)]
pub(crate) struct Webhook {
    pub(crate) name: String,
    /// The configuration it is in, and its kind.
    pub(crate) configuration: String,
    /// Fingerprints of the roots its caller trusts.
    pub(crate) roots: Asked<Vec<String>>,
    pub(crate) namespaces: LabelSelector,
    /// Whether what it is asked about fails when it does not answer.
    pub(crate) fails: bool,
    /// Whether it is asked about pods.
    pub(crate) pods: bool,
}

impl Facts {
    /// All replicas.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.components
            .iter()
            .filter_map(|component| component.replicas.as_ref().ok())
            .flatten()
    }

    /// What the replicas that answered say, with their pods.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&str, &Answer)> {
        self.instances()
            .filter_map(|instance| Some((instance.pod.as_str(), instance.answer.as_ref().ok()?)))
    }

    /// The command that changes the installation, with these flags.
    pub(crate) fn upgrade(&self, flags: &str) -> String {
        format!(
            "osm mesh upgrade --mesh-name {} --osm-namespace {} {flags} and the values it was installed with",
            self.mesh, self.namespace
        )
        .replace("  ", " ")
    }

    /// How a command about the control plane's namespace begins.
    pub(crate) fn kubectl(&self) -> String {
        format!("kubectl --namespace {}", self.namespace)
    }
}
