//! What operators should see next to their objects: problems with them, and rejections by sidecars.
//!
//! Invariant: reporting never waits and never fails what it reports on; it is bounded in rate and length.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};
use osm_core::{
    api::labels,
    facts::{Diagnostic, FactKind},
    identity::ProxyIdentity,
    xds::Rejection,
};
use osm_runtime::{
    client::{CALL, within},
    event::{Events, News, Severity},
};
use tokio::sync::{mpsc, watch};

use crate::ads::kind_name;

/// Rejections waiting for their pod to be looked up.
const QUEUE: usize = 64;
/// Names of resources that a report lists.
const NAMES: usize = 5;

/// Takes rejections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Reporter {
    queue: Option<mpsc::Sender<(ProxyIdentity, String)>>,
}

impl Reporter {
    /// Reports rejections as events on the pods.
    pub fn start(client: Client, events: Events) -> Self {
        let (queue, received) = mpsc::channel(QUEUE);
        tokio::spawn(rejections(client, events, received));
        Self { queue: Some(queue) }
    }

    /// A proxy rejected a response.
    pub fn rejected(&self, proxy: &ProxyIdentity, rejection: &Rejection) {
        let kind = kind_name(rejection.kind);
        let names: Vec<_> = rejection
            .resources
            .iter()
            .take(NAMES)
            .map(|(name, _)| name.as_ref())
            .collect();
        let more = if rejection.resources.len() > NAMES {
            ", ..."
        } else {
            ""
        };
        let names = format!("{}{more}", names.join(", "));
        let message = &rejection.message;
        if rejection.resources.is_empty() {
            tracing::info!(%proxy, kind, message, "a sidecar rejected several resources; offering them one by one");
            return;
        }
        tracing::warn!(%proxy, kind, names, message, "a sidecar rejected its configuration");
        if let Some(queue) = &self.queue {
            let note = format!("The sidecar rejected {kind} {names} and goes on with what it had: {message}");
            let _ = queue.try_send((proxy.clone(), note));
        }
    }
}

async fn rejections(client: Client, events: Events, mut queue: mpsc::Receiver<(ProxyIdentity, String)>) {
    while let Some((proxy, note)) = queue.recv().await {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &proxy.service.namespace);
        let label = format!("{}={}", labels::PROXY_UUID, proxy.uuid);
        match within(CALL, pods.list(&ListParams::default().labels(&label).limit(2))).await {
            Ok(found) => {
                if let [pod] = found.items.as_slice() {
                    let object = ObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Pod".into()),
                        name: Some(pod.name_any()),
                        namespace: pod.namespace(),
                        uid: pod.uid(),
                        ..ObjectReference::default()
                    };
                    events.report(News {
                        object,
                        severity: Severity::Warning,
                        reason: "ConfigurationRejected",
                        note,
                    });
                }
            }
            Err(error) => tracing::debug!(%error, "the pod of a rejection cannot be looked up"),
        }
    }
}

/// Reports problems with objects as events on them, while this replica is the one that does.
pub async fn problems(
    events: Events,
    leader: watch::Receiver<bool>,
    mut found: mpsc::Receiver<Vec<Diagnostic>>,
) {
    while let Some(diagnostics) = found.recv().await {
        for diagnostic in diagnostics {
            let object = diagnostic.object.to_string();
            tracing::warn!(
                object,
                reason = diagnostic.reason,
                message = diagnostic.message,
                "an object has a problem"
            );
            if *leader.borrow() {
                events.report(news(diagnostic));
            }
        }
    }
}

fn news(diagnostic: Diagnostic) -> News {
    let object = &diagnostic.object;
    let object = ObjectReference {
        api_version: Some(api_version(object.kind).into()),
        kind: Some(object.kind.name().into()),
        name: Some(object.name.to_string()),
        namespace: (!object.namespace.is_empty()).then(|| object.namespace.to_string()),
        ..ObjectReference::default()
    };
    News {
        object,
        severity: Severity::Warning,
        reason: diagnostic.reason,
        note: diagnostic.message,
    }
}

fn api_version(kind: FactKind) -> &'static str {
    match kind {
        FactKind::Namespace | FactKind::Service | FactKind::Pod | FactKind::ServiceAccount => "v1",
        FactKind::EndpointSlice => "discovery.k8s.io/v1",
        FactKind::MeshConfig => "config.openservicemesh.io/v1alpha2",
        FactKind::TrafficTarget => "access.smi-spec.io/v1alpha3",
        FactKind::HTTPRouteGroup | FactKind::TCPRoute => "specs.smi-spec.io/v1alpha4",
        FactKind::TrafficSplit => "split.smi-spec.io/v1alpha2",
    }
}
