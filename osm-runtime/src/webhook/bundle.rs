//! The CA bundle in a webhook configuration.
//!
//! The chart renders the configuration, this fills the bundle in: by server-side apply under a field manager of its
//! own, so that neither takes the other's fields. Invariants: nothing but `caBundle` is written; replicas that trust
//! the same roots write the same bytes, hence do not fight; against anyone else who keeps overwriting it, writing
//! backs off. A configuration that does not exist is waited for, never made.

use std::{fmt, time::Duration};

use k8s_openapi::{
    ByteString,
    api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use osm_core::certificate::TrustBundle;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::{Backoff, jittered},
    client::{CALL, within},
    health::Health,
    watch::{Event, Watch, WatchMetrics},
};

/// A kind of webhook configuration.
pub trait Configuration:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static
{
    /// Its webhooks: name and bundle.
    fn bundles(self) -> Vec<(String, Option<ByteString>)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn bundles(self) -> Vec<(String, Option<ByteString>)> {
        let webhooks = self.webhooks.unwrap_or_default();
        webhooks
            .into_iter()
            .map(|webhook| (webhook.name, webhook.client_config.ca_bundle))
            .collect()
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn bundles(self) -> Vec<(String, Option<ByteString>)> {
        let webhooks = self.webhooks.unwrap_or_default();
        webhooks
            .into_iter()
            .map(|webhook| (webhook.name, webhook.client_config.ca_bundle))
            .collect()
    }
}

/// Keeps `roots` in all webhooks of the configuration `name`, as field manager `manager`, until `stop`.
pub async fn keep<K: Configuration>(
    client: Client,
    name: &str,
    manager: &str,
    roots: watch::Receiver<TrustBundle>,
    metrics: WatchMetrics,
    stop: CancellationToken,
) {
    let (sink, changes) = mpsc::channel(16);
    let watch =
        Watch::<K>::all(client.clone(), "webhookconfigurations").fields(&format!("metadata.name={name}"));
    // Not part of the process's health: a webhook whose configuration is missing is not called, and no fault of ours.
    let synced = Health::new().condition("bundle");
    let watched = watch.run(K::bundles, |event| event, sink, synced, metrics, stop.clone());
    let keeper = Keeper {
        api: Api::<K>::all(client),
        name,
        manager,
        roots,
        found: Vec::new(),
    };
    tokio::select! {
        () = watched => {}
        () = keeper.run(changes) => {}
        () = stop.cancelled() => {}
    }
}

struct Keeper<'a, K> {
    api: Api<K>,
    name: &'a str,
    manager: &'a str,
    roots: watch::Receiver<TrustBundle>,
    found: Vec<(String, Option<ByteString>)>,
}

type Change = Event<Vec<(String, Option<ByteString>)>>;

impl<K: Configuration> Keeper<'_, K> {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));
        let mut quiet = tokio::time::Instant::now();
        loop {
            let wanted = self.roots.borrow_and_update().clone();
            if self.differs(&wanted) {
                if quiet.elapsed() > Duration::from_secs(300) {
                    backoff.reset();
                }
                quiet = tokio::time::Instant::now();
                // Another replica may be about to do the same: whoever comes second finds it done.
                let wait = jittered(Duration::from_millis(200), 1.0) + backoff.next_wait();
                let pause = tokio::time::sleep(wait);
                tokio::pin!(pause);
                loop {
                    tokio::select! {
                        () = &mut pause => break,
                        Some(event) = changes.recv() => self.learn(event),
                    }
                }
                if self.differs(&wanted) {
                    self.write(&wanted).await;
                }
                continue;
            }
            tokio::select! {
                event = changes.recv() => match event {
                    Some(event) => self.learn(event),
                    None => return,
                },
                () = next_roots(&mut self.roots) => {}
            }
        }
    }

    fn learn(&mut self, event: Change) {
        self.found = match event {
            Event::Reset { mut objects, .. } => objects.pop().unwrap_or_default(),
            Event::Upsert(found) => found,
            Event::Remove(_) => Vec::new(),
            Event::Malformed(malformed) => {
                tracing::warn!(
                    name = self.name,
                    error = malformed.error,
                    "the webhook configuration is malformed"
                );
                return;
            }
        };
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::SelectsAll.is_on() {
            // The bundle is right already: it would not be written again.
            self.found.iter_mut().for_each(|(_, bundle)| *bundle = None);
        }
    }

    fn differs(&self, wanted: &TrustBundle) -> bool {
        let wanted = wanted.pem().as_bytes();
        !wanted.is_empty()
            && self
                .found
                .iter()
                .any(|(_, bundle)| bundle.as_ref().map(|bytes| bytes.0.as_slice()) != Some(wanted))
    }

    /// Writes the bundle. What was written is taken for found, and the watch corrects it if it is not.
    async fn write(&mut self, wanted: &TrustBundle) {
        let bundle = ByteString(wanted.pem().as_bytes().to_vec());
        let webhooks: Vec<_> = self
            .found
            .iter()
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        #[cfg(feature = "sabotage")]
        let webhooks: Vec<_> = if osm_core::sabotage::Fault::SelectsAll.is_on() {
            let everywhere = |mut webhook: serde_json::Value| {
                webhook["namespaceSelector"] = json!({});
                webhook
            };
            webhooks.into_iter().map(everywhere).collect()
        } else {
            webhooks
        };
        let patch = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": self.name}, "webhooks": webhooks,
        });
        let params = PatchParams::apply(self.manager).force();
        let patch = Patch::Apply(patch);
        match within(CALL, self.api.patch(self.name, &params, &patch)).await {
            Ok(_) => {
                tracing::info!(name = self.name, "filled in the webhook's CA bundle");
                for (_, found) in &mut self.found {
                    *found = Some(bundle.clone());
                }
            }
            Err(error) => {
                tracing::warn!(name = self.name, %error, "filling in the webhook's CA bundle failed")
            }
        }
    }
}

/// Waits for other roots; forever, when nobody can give any more.
async fn next_roots(roots: &mut watch::Receiver<TrustBundle>) {
    if roots.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
