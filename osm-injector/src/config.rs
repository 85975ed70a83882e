//! The mesh's settings, as they are now.
//!
//! Owns the last good MeshConfig. Invariant: one that is malformed or gone changes nothing: the last good one stays;
//! until there has been one, the zero values of all fields hold, as for the original.

use std::sync::Arc;

use arc_swap::ArcSwap;
use kube::Client;
use osm_core::api::{MeshConfig, mesh_config::MeshConfigSpec};
use osm_runtime::{
    CancellationToken,
    health::Condition,
    log::{Handle, Verbosity},
    watch::{Event, Watch, WatchMetrics},
};
use tokio::sync::mpsc;

/// The settings. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Config {
    current: Arc<ArcSwap<MeshConfigSpec>>,
}

impl Config {
    /// The settings of this moment.
    pub fn get(&self) -> Arc<MeshConfigSpec> {
        self.current.load_full()
    }

    /// Follows the MeshConfig that is watched until `stop`, and sets the log level it asks for.
    pub async fn keep(
        &self,
        watch: Watch<MeshConfig>,
        log: Handle,
        synced: Condition,
        metrics: WatchMetrics,
        stop: CancellationToken,
    ) {
        let (sink, mut changes) = mpsc::channel(4);
        let convert = |config: MeshConfig| config.spec;
        let learn = async {
            while let Some(event) = changes.recv().await {
                self.learn(event, &log);
            }
        };
        tokio::join!(
            watch.run(convert, |event| event, sink, synced, metrics, stop),
            learn
        );
    }

    /// The watch of the MeshConfig `name` in `namespace`.
    pub fn watch(client: Client, namespace: &str, name: &str) -> Watch<MeshConfig> {
        Watch::namespaced(client, "meshconfigs", namespace)
            .fields(&format!("metadata.name={name}"))
            .optional()
    }

    fn learn(&self, event: Event<MeshConfigSpec>, log: &Handle) {
        let (found, malformed) = match event {
            Event::Reset {
                mut objects,
                mut malformed,
            } => (objects.pop(), malformed.pop()),
            Event::Upsert(spec) => (Some(spec), None),
            Event::Malformed(malformed) => (None, Some(malformed)),
            Event::Remove(key) => {
                tracing::warn!(config = %key, "the MeshConfig is gone; its last settings stay in use");
                (None, None)
            }
        };
        if let Some(malformed) = malformed {
            let error = malformed.error;
            tracing::warn!(config = %malformed.key, error, "the MeshConfig is malformed; its last settings stay in use");
        }
        let Some(spec) = found else { return };
        let level = spec.observability.osm_log_level.as_str();
        if !level.is_empty() {
            match level.parse::<Verbosity>() {
                Ok(verbosity) => log.set(verbosity),
                Err(error) => {
                    tracing::warn!(%error, "spec.observability.osmLogLevel of the MeshConfig is ignored")
                }
            }
        }
        self.current.store(Arc::new(spec));
    }
}
