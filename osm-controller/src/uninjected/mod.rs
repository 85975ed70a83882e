//! Pods that slipped in without a sidecar: found, counted, and reported on the pods themselves.
//!
//! Owns the search; the rule is `osm_core::injection`'s. Only the replica that holds the Lease searches, because it
//! watches pods that the mesh otherwise never looks at. Invariants: of each pod only the few fields that the rule reads
//! are kept; a pod is reported once, and only after it has been without for a while, so that a namespace that has just
//! joined can be restarted in peace.

mod table;

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, routing::get};
use k8s_openapi::api::core::v1::{Namespace, ObjectReference, Pod};
use kube::{Client, core::PartialObjectMeta};
use osm_core::{
    api::labels::{MONITORED_BY, PROXY_UUID},
    injection::{Bystander, Home},
    status::{UNINJECTED_PAGE, Uninjected},
};
use osm_runtime::{
    CancellationToken,
    event::{Events, News, Severity},
    health::Health,
    metrics::Metrics,
    watch::{ObjectKey, Watch, WatchMetrics},
};
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use table::{Change, Member, Seen, Table};

/// Changes waiting to be taken in.
const QUEUE: usize = 256;
/// How often it is looked again while something changes.
const LOOK: Duration = Duration::from_secs(2);
/// Most pods that are listed. All are counted.
const MOST_LISTED: usize = 200;

/// What was found. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Nothing while another replica searches, or nothing is known yet.
    found: Arc<Mutex<Option<Found>>>,
    pods: Gauge,
}

#[derive(Clone, Debug, Default)]
struct Found {
    count: usize,
    first: Vec<Uninjected>,
}

impl Findings {
    /// Registers the metric.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        let help = "Pods that should have a sidecar and have none; 0 on replicas that do not hold the Lease";
        metrics.register(|registry| {
            registry.register("osm_pods_without_sidecar", help, new.pods.clone());
        });
        new
    }

    /// How many pods were found; nothing if this replica does not search.
    pub fn count(&self) -> Option<usize> {
        self.found.lock().as_ref().map(|found| found.count)
    }

    /// The page that lists them, to be served on loopback: it names workloads.
    pub fn router(&self) -> Router {
        let found = self.found.clone();
        let page = async move || Json(found.lock().as_ref().map(|found| found.first.clone()));
        Router::new().route(UNINJECTED_PAGE, get(page))
    }

    fn set(&self, found: Option<Found>) {
        let count = found.as_ref().map_or(0, |found| found.count);
        self.pods.set(i64::try_from(count).unwrap_or(i64::MAX));
        *self.found.lock() = found;
    }
}

/// What the search needs.
#[derive(Clone)]
pub struct Search {
    /// Where pods are read.
    pub client: Client,
    /// The mesh's name.
    pub mesh_name: String,
    /// The control plane's namespace.
    pub osm_namespace: String,
    /// Where what is found is reported.
    pub events: Events,
    /// Of its watches.
    pub metrics: WatchMetrics,
    /// Where what is found is kept.
    pub findings: Findings,
}

impl Search {
    /// Searches while `leader` says so, until `stop`.
    pub async fn keep(self, mut leader: watch::Receiver<bool>, stop: CancellationToken) {
        let run = async {
            while leader.wait_for(|leading| *leading).await.is_ok() {
                let over = stop.child_token();
                tokio::select! {
                    () = self.search(over.clone()) => {}
                    _ = leader.wait_for(|leading| !*leading) => {}
                }
                over.cancel();
                self.findings.set(None);
            }
        };
        tokio::select! { () = run => {}, () = stop.cancelled() => {} }
    }

    async fn search(&self, over: CancellationToken) {
        let (sink, mut changes) = mpsc::channel(QUEUE);
        // Not part of readiness: it is a courtesy to operators.
        let health = Health::new();
        let member = format!("{MONITORED_BY}={}", self.mesh_name);
        let namespaces =
            Watch::<PartialObjectMeta<Namespace>, _>::metadata(self.client.clone(), "member-namespaces")
                .labels(&member);
        tokio::spawn(namespaces.run(
            |namespace| Member::of(namespace.metadata),
            Change::Namespace,
            sink.clone(),
            health.condition("member-namespaces"),
            self.metrics.clone(),
            over.clone(),
        ));
        let pods =
            Watch::<Pod>::all(self.client.clone(), "pods-without-sidecar").labels(&format!("!{PROXY_UUID}"));
        tokio::spawn(pods.run(
            |pod| Seen {
                key: ObjectKey {
                    namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                    name: pod.metadata.name.clone().unwrap_or_default(),
                },
                bystander: Bystander::of(&pod),
            },
            Change::Pod,
            sink,
            health.condition("pods-without-sidecar"),
            self.metrics.clone(),
            over,
        ));
        let mut table = Table::default();
        loop {
            // Without news it is looked again only as long as somebody's grace is running.
            let patience = if table.waits() { LOOK } else { Duration::MAX };
            match timeout(patience, changes.recv()).await {
                Ok(Some(change)) => table.take(change),
                Ok(None) => return,
                Err(_) => {}
            }
            // What comes together is looked at together.
            sleep(LOOK).await;
            while let Ok(change) = changes.try_recv() {
                table.take(change);
            }
            if health.is_ready() {
                self.look(&mut table);
            }
        }
    }

    fn look(&self, table: &mut Table) {
        let home = Home {
            mesh_name: &self.mesh_name,
            control_plane_namespace: &self.osm_namespace,
        };
        let found = table.find(home);
        for (bystander, reason) in table.due(&found, Instant::now()) {
            self.events.report(News {
                object: reference(bystander),
                severity: Severity::Warning,
                reason: "SidecarMissing",
                note: reason.clone(),
            });
        }
        let first = found
            .iter()
            .take(MOST_LISTED)
            .map(|(bystander, reason)| Uninjected {
                namespace: bystander.namespace.clone(),
                pod: bystander.name.clone(),
                reason: reason.clone(),
            });
        self.findings.set(Some(Found {
            count: found.len(),
            first: first.collect(),
        }));
    }
}

fn reference(pod: &Bystander) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name.clone()),
        namespace: Some(pod.namespace.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_replica_that_searches_counts() {
        let findings = Findings::default();
        assert_eq!(findings.count(), None);
        findings.set(Some(Found {
            count: 3,
            first: Vec::new(),
        }));
        assert_eq!((findings.count(), findings.pods.get()), (Some(3), 3));
        findings.set(None);
        assert_eq!((findings.count(), findings.pods.get()), (None, 0));
    }
}
