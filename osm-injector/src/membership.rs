//! Which namespaces are in the mesh, and what they say about injection.
//!
//! Owns a cache of them, kept by a watch. Invariant: a namespace that the cache does not have is asked of the API
//! server before anyone is told that it does not exist: one that was made a moment ago is not in the cache yet.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, core::PartialObjectMeta};
use osm_core::{api::labels::MONITORED_BY, injection::NamespaceView};
use osm_runtime::{
    CancellationToken,
    client::{ClientError, retrying},
    health::Condition,
    watch::{Event, Watch, WatchMetrics},
};
use parking_lot::RwLock;
use tokio::sync::mpsc;

/// Longest wait for the API server, within the time of a review.
const ASK: std::time::Duration = std::time::Duration::from_secs(5);
/// Changes waiting to be taken in.
const QUEUE: usize = 64;

/// What a namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    name: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Membership {
    fn of(metadata: ObjectMeta) -> Self {
        Self {
            name: metadata.name.unwrap_or_default(),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
        }
    }

    /// As injection takes it.
    pub fn view(&self) -> NamespaceView<'_> {
        NamespaceView {
            name: &self.name,
            labels: &self.labels,
            annotations: &self.annotations,
        }
    }
}

/// The namespaces. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Memberships {
    api: Api<Namespace>,
    known: Arc<RwLock<BTreeMap<String, Arc<Membership>>>>,
}

impl Memberships {
    /// Nothing is known yet.
    pub fn new(client: Client) -> Self {
        Self {
            api: Api::all(client),
            known: Arc::default(),
        }
    }

    /// Keeps the cache of the mesh's namespaces until `stop`. `synced` becomes ready once all are there.
    pub async fn keep(
        &self,
        client: Client,
        mesh_name: &str,
        synced: Condition,
        metrics: WatchMetrics,
        stop: CancellationToken,
    ) {
        let (sink, mut changes) = mpsc::channel(QUEUE);
        let watch = Watch::<PartialObjectMeta<Namespace>, _>::metadata(client, "namespaces")
            .labels(&format!("{MONITORED_BY}={mesh_name}"));
        let convert = |namespace: PartialObjectMeta<Namespace>| Membership::of(namespace.metadata);
        let learn = async {
            while let Some(event) = changes.recv().await {
                self.learn(event);
            }
        };
        tokio::join!(
            watch.run(convert, |event| event, sink, synced, metrics, stop),
            learn
        );
    }

    fn learn(&self, event: Event<Membership>) {
        match event {
            Event::Reset { objects, .. } => {
                let objects = objects
                    .into_iter()
                    .map(|each| (each.name.clone(), Arc::new(each)));
                *self.known.write() = objects.collect();
            }
            Event::Upsert(namespace) => {
                self.known
                    .write()
                    .insert(namespace.name.clone(), Arc::new(namespace));
            }
            Event::Remove(key) => {
                self.known.write().remove(&key.name);
            }
            Event::Malformed(malformed) => {
                tracing::warn!(namespace = %malformed.key, error = malformed.error, "a namespace is malformed");
            }
        }
    }

    /// What the namespace says; `None` if there is no such namespace.
    ///
    /// # Errors
    /// When it is not known and the API server does not answer.
    pub async fn get(&self, name: &str) -> Result<Option<Arc<Membership>>, ClientError> {
        if let Some(known) = self.known.read().get(name) {
            return Ok(Some(known.clone()));
        }
        let found = retrying(ASK, || self.api.get_metadata_opt(name)).await?;
        Ok(found.map(|namespace| Arc::new(Membership::of(namespace.metadata))))
    }
}
