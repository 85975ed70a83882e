//! One proxy's stream: requests in, wake-ups in, responses out.

use std::{sync::Arc, time::Duration};

use osm_core::{
    identity::ProxyIdentity,
    resource::{ClassId, ResourceType, Snapshot},
    xds::{self, DeltaStream, KindStatus, Outcome, StateStream, StreamError},
};
use osm_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use osm_runtime::{
    backoff::jittered,
    serve::{Peer, SEND_BUFFER},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

use super::{
    RESPONSE_MEMORY_KIB, Shared,
    admission::Bucket,
    registry::{Place, StreamStatus},
    requests::Requests,
    responses::Outgoing,
    service::owns,
};
use crate::certificates::Wanted;

/// What the two variants of the protocol have in common.
pub(super) trait Machine: Send + 'static {
    type Request: prost::Message + Default + Send + 'static;
    const NAME: &'static str;

    fn new(proxy: ProxyIdentity, limits: xds::Limits) -> Self;
    fn proxy(&self) -> &ProxyIdentity;
    fn on_request(
        &mut self,
        request: &Self::Request,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError>;
    fn next_responses(&mut self, snapshot: &Arc<Snapshot>) -> Vec<xds::Response>;
    fn settle(&mut self);
    fn status(&self) -> Vec<KindStatus>;
    /// Whether the request says that the proxy has configuration from before.
    fn is_reconnect(request: &Self::Request) -> bool;
}

impl Machine for DeltaStream {
    type Request = DeltaDiscoveryRequest;
    const NAME: &'static str = "delta";

    fn new(proxy: ProxyIdentity, limits: xds::Limits) -> Self {
        Self::new(proxy, limits)
    }

    fn proxy(&self) -> &ProxyIdentity {
        self.proxy()
    }

    fn on_request(
        &mut self,
        request: &Self::Request,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError> {
        self.on_request(request, snapshot)
    }

    fn next_responses(&mut self, snapshot: &Arc<Snapshot>) -> Vec<xds::Response> {
        self.next_responses(snapshot)
    }

    fn settle(&mut self) {
        self.settle();
    }

    fn status(&self) -> Vec<KindStatus> {
        self.status()
    }

    fn is_reconnect(request: &Self::Request) -> bool {
        !request.initial_resource_versions.is_empty()
    }
}

impl Machine for StateStream {
    type Request = DiscoveryRequest;
    const NAME: &'static str = "state";

    fn new(proxy: ProxyIdentity, limits: xds::Limits) -> Self {
        Self::new(proxy, limits)
    }

    fn proxy(&self) -> &ProxyIdentity {
        self.proxy()
    }

    fn on_request(
        &mut self,
        request: &Self::Request,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Outcome, StreamError> {
        self.on_request(request, snapshot)
    }

    fn next_responses(&mut self, snapshot: &Arc<Snapshot>) -> Vec<xds::Response> {
        self.next_responses(snapshot)
    }

    fn settle(&mut self) {}

    fn status(&self) -> Vec<KindStatus> {
        self.status()
    }

    fn is_reconnect(request: &Self::Request) -> bool {
        request.response_nonce.is_empty() && !request.version_info.is_empty()
    }
}

/// Why a stream ended, for metrics and the log; and what the proxy is told.
struct End(&'static str, Option<Status>);

pub(super) struct Session<M: Machine> {
    shared: Arc<Shared>,
    machine: M,
    requests: Requests<M::Request>,
    place: Place,
    peer: Peer,
    /// Keeps the certificate of the proxy's identity fresh.
    _certificate: Wanted,
    class: Option<ClassId>,
    woken: watch::Receiver<()>,
    bucket: Bucket,
    /// When each kind's response in flight was sent, and its share of the memory for large ones.
    sent: [Option<(Instant, Share)>; ResourceType::ALL.len()],
    /// What the proxy said when it last rejected something of a kind.
    reasons: [Option<Arc<str>>; ResourceType::ALL.len()],
    /// When the proxy's pod was found to be gone.
    orphaned: Option<Instant>,
    reconnected: bool,
}

impl<M: Machine> Session<M> {
    pub(super) fn new(
        shared: Arc<Shared>,
        machine: M,
        requests: Requests<M::Request>,
        place: Place,
        peer: Peer,
        certificate: Wanted,
    ) -> Self {
        let (burst, rate) = shared.settings.requests;
        Self {
            machine,
            requests,
            place,
            peer,
            _certificate: certificate,
            class: None,
            woken: watch::channel(()).1,
            bucket: Bucket::new(burst, rate),
            sent: Default::default(),
            reasons: Default::default(),
            orphaned: None,
            reconnected: false,
            shared,
        }
    }

    /// Serves the stream until either side ends it.
    pub(super) async fn run(mut self, responses: mpsc::Sender<Outgoing>) {
        let shared = self.shared.clone();
        shared.metrics.connected.inc();
        tracing::debug!(proxy = %self.machine.proxy(), peer = %self.peer.address, variant = M::NAME, "connected");
        let End(reason, status) = self.serve(&responses).await;
        tracing::debug!(proxy = %self.machine.proxy(), reason, "disconnected");
        shared.metrics.ended(reason);
        shared.metrics.connected.dec();
        if let Some(status) = status {
            // A proxy that does not read is not told.
            let _ = timeout(Duration::from_secs(1), responses.send(Err(status))).await;
        }
    }

    async fn serve(&mut self, responses: &mpsc::Sender<Outgoing>) -> End {
        let settings = self.shared.settings.clone();
        let mut settle = Some(Instant::now() + settings.settle);
        let mut refresh = Instant::now() + jittered(settings.refresh, 0.5);
        loop {
            let Some(snapshot) = self.follow() else {
                return End("not_synced", Some(Status::unavailable("the mesh is not known")));
            };
            if let Some(end) = self.check_pod(&snapshot) {
                return end;
            }
            let due = self.machine.next_responses(&snapshot);
            drop(snapshot);
            if let Err(end) = self.send(due, responses).await {
                return end;
            }
            let unanswered = self
                .sent
                .iter()
                .flatten()
                .map(|(sent, _)| *sent + settings.answer)
                .min();
            if unanswered.is_some_and(|at| at <= Instant::now()) {
                tracing::info!(proxy = %self.machine.proxy(), "ended a stream: the proxy does not answer");
                let status = Status::deadline_exceeded("responses are not answered");
                return End("not_answering", Some(status));
            }
            let orphaned = self.orphaned.map(|since| since + settings.pod_grace);
            let tick = [settle, orphaned, unanswered]
                .into_iter()
                .flatten()
                .fold(refresh, Instant::min);
            let Self {
                bucket,
                requests,
                woken,
                place,
                peer,
                machine,
                sent,
                reasons,
                ..
            } = self;
            let request = async {
                sleep_until(bucket.ready_at()).await;
                requests.next().await
            };
            tokio::select! {
                request = request => match request {
                    Ok(Some(request)) => if let Err(end) = self.on_request(&request) { return end },
                    Ok(None) => return End("closed", None),
                    Err(status) => return request_failed(&status),
                },
                changed = woken.changed() => if changed.is_err() {
                    // The class is gone with its last member; `follow` finds the new one.
                    self.class = None;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                },
                Some(reply) = place.inspect.recv() => {
                    let waiting = std::array::from_fn(|kind| sent[kind].as_ref().map(|(sent, _)| sent.elapsed()));
                    let _ = reply.send(StreamStatus { kinds: machine.status(), waiting, reasons: reasons.clone() });
                }
                () = sleep_until(tick) => {
                    let now = Instant::now();
                    if settle.is_some_and(|at| at <= now) {
                        machine.settle();
                        settle = None;
                    }
                    if refresh <= now {
                        refresh = now + jittered(settings.refresh, 0.5);
                    }
                }
                () = place.replaced.cancelled() => {
                    return End("replaced", Some(Status::aborted("a newer stream of this proxy has taken over")));
                }
                () = peer.leaving.cancelled() => return End("leaving", None),
                () = responses.closed() => return End("cut", None),
            }
        }
    }

    /// The newest snapshot; what the proxy's class is in it is listened to.
    fn follow(&mut self) -> Option<Arc<Snapshot>> {
        let uuid = self.machine.proxy().uuid;
        self.woken.mark_unchanged();
        let mut snapshot = self.shared.mesh.snapshot()?;
        // A snapshot published between looking up the class and listening to it must not be missed: look again.
        while let Some(entry) = snapshot.proxy(uuid)
            && self.class != Some(entry.class)
        {
            self.class = Some(entry.class);
            self.woken = self.shared.mesh.class(entry.class);
            snapshot = self.shared.mesh.snapshot()?;
        }
        Some(snapshot)
    }

    /// A proxy whose pod is gone, or is somebody else's now, keeps its stream for a while: a pod that is being deleted
    /// may outlive its object.
    fn check_pod(&mut self, snapshot: &Snapshot) -> Option<End> {
        let proxy = self.machine.proxy();
        if owns(snapshot, proxy) {
            self.orphaned = None;
            return None;
        }
        let since = *self.orphaned.get_or_insert_with(Instant::now);
        let over = since.elapsed() >= self.shared.settings.pod_grace;
        over.then(|| {
            End(
                "no_pod",
                Some(Status::permission_denied("the pod of this proxy is gone")),
            )
        })
    }

    fn on_request(&mut self, request: &M::Request) -> Result<(), End> {
        self.bucket.take();
        let metrics = &self.shared.metrics;
        if !self.reconnected && M::is_reconnect(request) {
            self.reconnected = true;
            metrics.reconnected.inc();
        }
        let Some(snapshot) = self.shared.mesh.snapshot() else {
            return Ok(());
        };
        let outcome = self.machine.on_request(request, &snapshot).map_err(|error| {
            tracing::info!(proxy = %self.machine.proxy(), %error, "ended a stream");
            let status = match error {
                StreamError::TooManyNames { .. } => Status::resource_exhausted(error.to_string()),
                _ => Status::invalid_argument(error.to_string()),
            };
            End("refused_request", Some(status))
        })?;
        let mut answered = |kind: ResourceType, success| {
            let sent = self.sent[kind as usize].take();
            metrics.answered(
                kind,
                success,
                sent.map_or(0.0, |(sent, _)| sent.elapsed().as_secs_f64()),
            );
        };
        match outcome {
            Outcome::UnknownType => metrics.requested(None),
            Outcome::Subscribed(kind) => metrics.requested(Some(kind)),
            Outcome::Stale(kind) => {
                metrics.requested(Some(kind));
                metrics.stale(kind);
            }
            Outcome::Accepted(kind) => {
                metrics.requested(Some(kind));
                answered(kind, true);
            }
            Outcome::Rejected(rejection) => {
                metrics.requested(Some(rejection.kind));
                answered(rejection.kind, false);
                self.reasons[rejection.kind as usize] = Some(rejection.message.as_str().into());
                self.shared.reporter.rejected(self.machine.proxy(), &rejection);
            }
        }
        Ok(())
    }

    async fn send(&mut self, due: Vec<xds::Response>, responses: &mpsc::Sender<Outgoing>) -> Result<(), End> {
        for response in due {
            let (kind, count, bytes) = (response.kind, response.resources.len(), response.encoded_len());
            let share = share(&self.shared.responses, bytes).await;
            match timeout(self.shared.settings.send, responses.send(Ok(Box::new(response)))).await {
                Ok(Ok(())) => {
                    self.shared.metrics.sent(kind, count, bytes);
                    self.sent[kind as usize] = Some((Instant::now(), share));
                }
                Ok(Err(_)) => {
                    self.shared.metrics.failed(kind);
                    return Err(End("cut", None));
                }
                Err(_) => {
                    self.shared.metrics.failed(kind);
                    tracing::info!(proxy = %self.machine.proxy(), "ended a stream: the proxy does not read");
                    return Err(End(
                        "not_reading",
                        Some(Status::deadline_exceeded("responses are not read")),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Waits for room when a large response is due: after a change that concerns everyone, not all are in memory at once.
async fn share(room: &Arc<Semaphore>, bytes: usize) -> Share {
    if bytes < LARGE {
        return None;
    }
    let kib = u32::try_from(bytes.min(HELD) / 1_024).unwrap_or(RESPONSE_MEMORY_KIB);
    let room = room.clone().acquire_many_owned(kib);
    timeout(TURN, room).await.ok()?.ok()
}

/// A share of the memory for large responses, given back when the response is answered.
type Share = Option<OwnedSemaphorePermit>;

/// Most bytes of a response that are in memory at a time: what the transport takes in advance, and the next piece.
const HELD: usize = SEND_BUFFER + 16 * 1024;
/// Responses of fewer bytes need no share.
const LARGE: usize = 64 * 1024;
/// Longest wait for a share. It is a way to take turns, not a lock: proxies that do not answer hold nobody up for long.
const TURN: Duration = Duration::from_secs(2);

fn request_failed(status: &Status) -> End {
    match status.code() {
        // Too large or malformed: the proxy is told what was found.
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => End(
            "refused_request",
            Some(Status::resource_exhausted(status.message())),
        ),
        tonic::Code::InvalidArgument => End("refused_request", Some(status.clone())),
        _ => End("cut", None),
    }
}
