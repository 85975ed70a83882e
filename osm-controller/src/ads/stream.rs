//! One proxy's stream: requests in, wake-ups in, responses out.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{Fuse, FusedFuture as _, FutureExt as _};
use osm_core::{
    resource::{ClassId, ResourceType, Snapshot},
    xds::{self, Outcome, StreamError},
};
use osm_runtime::serve::Peer;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;

use super::{
    Shared,
    admission::Bucket,
    machine::Machine,
    registry::{Place, StreamStatus},
    requests::{Next, Requests},
    responses::Outgoing,
    service::owns,
    turn::{HEAVY, LARGE, Seat, Turn},
};
use crate::certificates::Wanted;

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
    /// When each kind's response in flight was sent.
    sent: [Option<Instant>; ResourceType::ALL.len()],
    /// Held until it is known that nothing large is to be read, or it is the turn of that.
    seat: Option<Seat>,
    /// The turn to be sent large responses, and to have large requests read.
    turn: Option<Turn>,
    /// What the proxy said when it last rejected something of a kind.
    reasons: [Option<Arc<str>>; ResourceType::ALL.len()],
    /// When the proxy's pod was found to be gone.
    orphaned: Option<Instant>,
    reconnected: bool,
    /// When a proxy that came back has had time to open all its kinds. Others need no timer, of which thousands that
    /// connect at once would go off together.
    settles: Option<Instant>,
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
            seat: None,
            turn: None,
            reasons: Default::default(),
            orphaned: None,
            reconnected: false,
            settles: None,
            shared,
        }
    }

    /// Takes the seat that the new stream waited for.
    pub(super) fn seated(self, seat: Seat) -> Self {
        Self {
            seat: Some(seat),
            ..self
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
        let mut refresh = self.shared.next_refresh();
        let turns = self.shared.turns.clone();
        let mut next_turn = pin!(Fuse::terminated());
        // A large request is on its way.
        let mut large = false;
        loop {
            let Some(snapshot) = self.follow() else {
                return End("not_synced", Some(Status::unavailable("the mesh is not known")));
            };
            if let Some(end) = self.check_pod(&snapshot) {
                return end;
            }
            let due = self.due(&snapshot);
            drop(snapshot);
            let waits = self.turn.is_none() && (due.withheld || large);
            if !waits {
                next_turn.set(Fuse::terminated());
            } else if next_turn.is_terminated() {
                next_turn.set(turns.take().fuse());
            }
            if let Err(end) = self.send(due.responses, responses).await {
                return end;
            }
            if let Some(turn) = &mut self.turn {
                match large || self.sent.iter().any(Option::is_some) {
                    true => turn.hold(),
                    false => turn.rest(),
                }
            }
            let unanswered = self.sent.iter().flatten().min();
            let unanswered = unanswered.map(|sent| *sent + settings.answer);
            if unanswered.is_some_and(|at| at <= Instant::now()) {
                tracing::info!(proxy = %self.machine.proxy(), "ended a stream: the proxy does not answer");
                let status = Status::deadline_exceeded("responses are not answered");
                return End("not_answering", Some(status));
            }
            let orphaned = self.orphaned.map(|since| since + settings.pod_grace);
            let turn_over = self.turn.as_ref().map(Turn::until);
            let seat_over = self.seat.as_ref().filter(|_| !large).map(Seat::until);
            let tick = [self.settles, orphaned, unanswered, turn_over, seat_over]
                .into_iter()
                .flatten()
                .fold(refresh, Instant::min);
            let Self {
                bucket,
                requests,
                woken,
                place,
                peer,
                ..
            } = self;
            let has_turn = self.turn.is_some();
            let request = async {
                sleep_until(bucket.ready_at()).await;
                requests.next(has_turn).await
            };
            tokio::select! {
                request = request, if has_turn || !large => match request {
                    Ok(Next::Request(request)) => {
                        large = false;
                        // The first may be small, and those for what it names large.
                        self.seat.take_if(|_| M::names(&request) < HEAVY);
                        if let Err(end) = self.on_request(&request) {
                            return end;
                        }
                    }
                    Ok(Next::Large) => large = true,
                    Ok(Next::End) => return End("closed", None),
                    Err(status) => return request_failed(&status),
                },
                changed = woken.changed() => if changed.is_err() {
                    // The class is gone with its last member; `follow` finds the new one.
                    self.class = None;
                    tokio::time::sleep(Duration::from_millis(250)).await;
                },
                turn = &mut next_turn => {
                    self.turn = Some(turn);
                    self.seat = None;
                }
                Some(reply) = place.inspect.recv() => self.tell(reply),
                () = sleep_until(tick) => {
                    let now = Instant::now();
                    if self.settles.take_if(|at| *at <= now).is_some() {
                        self.machine.settle();
                    }
                    self.turn.take_if(|turn| turn.until() <= now);
                    self.seat.take_if(|seat| !large && seat.until() <= now);
                    if refresh <= now {
                        refresh = self.shared.next_refresh();
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

    /// What is to be sent now: everything if it is the proxy's turn, else what needs none.
    fn due(&mut self, snapshot: &Arc<Snapshot>) -> xds::Due {
        if self.turn.is_some() {
            self.machine.due(snapshot, usize::MAX)
        } else if self.machine.weight(snapshot) < HEAVY {
            self.machine.due(snapshot, LARGE)
        } else {
            xds::Due {
                withheld: true,
                ..Default::default()
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
        if M::is_reconnect(request) {
            if !std::mem::replace(&mut self.reconnected, true) {
                metrics.reconnected.inc();
            }
            let settles = Instant::now() + self.shared.settings.settle;
            self.settles.get_or_insert(settles);
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
                sent.map_or(0.0, |sent| sent.elapsed().as_secs_f64()),
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

    /// Tells how the stream stands.
    fn tell(&self, reply: oneshot::Sender<StreamStatus>) {
        let waiting = std::array::from_fn(|kind| self.sent[kind].map(|sent| sent.elapsed()));
        // Whoever asked may have gone.
        let _ = reply.send(StreamStatus {
            kinds: self.machine.status(),
            waiting,
            reasons: self.reasons.clone(),
        });
    }

    async fn send(&mut self, due: Vec<xds::Response>, responses: &mpsc::Sender<Outgoing>) -> Result<(), End> {
        for response in due {
            let (kind, count, bytes) = (response.kind, response.resources.len(), response.encoded_len());
            let mut sending = pin!(timeout(
                self.shared.settings.send,
                responses.send(Ok(Box::new(response)))
            ));
            let sent = tokio::select! {
                sent = &mut sending => sent,
                () = over(self.turn.as_ref()) => {
                    self.turn = None;
                    sending.await
                }
            };
            match sent {
                Ok(Ok(())) => {
                    self.shared.metrics.sent(kind, count, bytes);
                    self.sent[kind as usize] = Some(Instant::now());
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

/// Returns when the turn is over; never, if there is none.
async fn over(turn: Option<&Turn>) {
    match turn {
        Some(turn) => sleep_until(turn.until()).await,
        None => std::future::pending().await,
    }
}

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
