//! The gRPC service: which method was called, by whom, and whether they may.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::Incoming;
use osm_core::{
    certificate::proxy_of,
    identity::ProxyIdentity,
    resource::Snapshot,
    xds::{DeltaStream, StateStream},
};
use osm_runtime::serve::{self, Peer, Seats};
use tokio::sync::{mpsc, watch};
use tonic::{Code, Status, metadata::MetadataValue};
use tower::Service;

use super::{
    AdsMetrics, Settings, Shared,
    machine::Machine,
    registry::{Refusal, Registry},
    requests::Requests,
    responses::Responses,
    stream::Session,
    turn::Seat,
};
use crate::{certificates::Certificates, mesh::Mesh, report::Reporter};

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// The aggregated discovery service, to be served over mutual TLS ([`osm_runtime::serve::serve_tls`]).
#[derive(Clone, Debug)]
pub struct Ads {
    shared: Arc<Shared>,
}

impl Ads {
    /// A service over `mesh`.
    pub fn new(
        settings: Settings,
        mesh: Mesh,
        certificates: Certificates,
        reporter: Reporter,
        metrics: AdsMetrics,
    ) -> Self {
        Self {
            shared: Shared::new(settings, mesh, certificates, reporter, metrics),
        }
    }

    /// The connected proxies.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// What new clients wait for, for the server of this service ([`serve::Settings::seats`]).
    pub fn seats(&self) -> Seats {
        self.shared.settings.seats.clone()
    }
}

impl Service<http::Request<Incoming>> for Ads {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        let shared = self.shared.clone();
        // Whatever becomes of the request, its connection keeps no seat.
        let seat = request.extensions().get::<Peer>().and_then(Peer::seat);
        match request.uri().path() {
            DELTA => Box::pin(answer::<DeltaStream>(shared, request, seat)),
            STATE => Box::pin(answer::<StateStream>(shared, request, seat)),
            _ => Box::pin(async {
                Ok(Status::unimplemented("only the aggregated discovery service is here").into_http())
            }),
        }
    }
}

async fn answer<M: Machine>(
    shared: Arc<Shared>,
    request: http::Request<Incoming>,
    seat: Option<serve::Seat>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    let (head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>().cloned();
    let tasks = peer.as_ref().map(|peer| peer.tasks.clone()).unwrap_or_default();
    let requests = Requests::new(body, shared.settings.request_bytes);
    match open::<M>(&shared, peer, requests, seat).await {
        Ok(session) => {
            let (sender, queue) = mpsc::channel(1);
            tasks.spawn(session.run(sender));
            Ok(Responses::answer(queue))
        }
        Err((reason, status)) => {
            shared.metrics.refused(reason);
            Ok(status.into_http())
        }
    }
}

/// Checks who calls and whether they may be served now.
async fn open<M: Machine>(
    shared: &Arc<Shared>,
    peer: Option<Peer>,
    requests: Requests<M::Request>,
    mut seat: Option<serve::Seat>,
) -> Result<Session<M>, (&'static str, Status)> {
    let settings = &shared.settings;
    let peer = peer.ok_or_else(|| ("internal", Status::internal("the connection is not known")))?;
    let leaf = peer.certificates.first();
    let leaf = leaf.ok_or_else(|| {
        (
            "identity",
            Status::unauthenticated("a client certificate is needed"),
        )
    })?;
    let proxy = proxy_of(leaf, &settings.trust_domain).map_err(|error| {
        tracing::info!(peer = %peer.address, %error, "refused a stream");
        ("identity", Status::unauthenticated(error.to_string()))
    })?;
    if shared.mesh.snapshot().is_none() {
        return Err((
            "not_synced",
            Status::unavailable("this replica does not know the mesh yet"),
        ));
    }
    if let Err(wait) = shared.admission.enter(settings.admission_wait).await {
        return Err(("rate", come_back("too many proxies connect at once", wait)));
    }
    if !is_known(&shared.mesh, &proxy) {
        // Others need not wait for the pod, too.
        seat = None;
        if !becomes_known(&shared.mesh, &proxy, settings.pod_wait).await {
            tracing::info!(%proxy, peer = %peer.address, "refused a stream: no such pod");
            let message = format!("there is no pod of proxy {proxy} in this mesh");
            return Err(("no_pod", Status::permission_denied(message)));
        }
    }
    if seat.is_none() {
        seat = settings.seats.take().await;
    }
    let seat = seat.ok_or_else(|| {
        let wait = settings.seats.patience();
        ("seats", come_back("too many proxies wait to be read", wait))
    })?;
    let most = shared.mesh.control().borrow().max_data_plane_connections;
    let place = shared.registry.enter(proxy.clone(), peer.address, M::NAME, most);
    let place = place.map_err(|refusal| match refusal {
        Refusal::Full => {
            shared.metrics.too_many.inc();
            let message = "this replica serves as many proxies as maxDataPlaneConnections allows";
            ("full", come_back(message, Duration::from_secs(5)))
        }
        Refusal::TooFast => (
            "loop",
            come_back("this proxy reconnects too fast", Duration::from_secs(2)),
        ),
    })?;
    let certificate = shared.certificates.want(&proxy.service);
    Ok(Session::new(
        shared.clone(),
        M::new(proxy, settings.limits),
        requests,
        place,
        peer,
        certificate,
    )
    .seated(Seat::of(seat)))
}

fn is_known(mesh: &Mesh, proxy: &ProxyIdentity) -> bool {
    mesh.snapshot().is_some_and(|snapshot| owns(&snapshot, proxy))
}

/// Waits for the pod of a proxy to be known: the proxy may be faster than the watch.
async fn becomes_known(mesh: &Mesh, proxy: &ProxyIdentity, patience: Duration) -> bool {
    let mut publications: watch::Receiver<u64> = mesh.publications();
    let wait = async {
        loop {
            publications.mark_unchanged();
            if is_known(mesh, proxy) {
                return true;
            }
            if publications.changed().await.is_err() {
                return false;
            }
        }
    };
    tokio::time::timeout(patience, wait).await.unwrap_or(false)
}

/// Whether the mesh knows the proxy, under the identity it proved.
pub(super) fn owns(snapshot: &Snapshot, proxy: &ProxyIdentity) -> bool {
    snapshot
        .proxy(proxy.uuid)
        .is_some_and(|entry| entry.identity == proxy.service && snapshot.view(entry.class).is_some())
}

/// A refusal that says when to try again (gRPC retry pushback), each time a little different.
fn come_back(message: &str, wait: Duration) -> Status {
    let wait = osm_runtime::backoff::jittered(wait, 0.3);
    let mut status = Status::new(Code::ResourceExhausted, message);
    if let Ok(value) = MetadataValue::try_from(wait.as_millis().to_string()) {
        status.metadata_mut().insert("grpc-retry-pushback-ms", value);
    }
    status
}
