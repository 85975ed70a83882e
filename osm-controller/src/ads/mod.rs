//! The aggregated discovery service: incremental and state-of-the-world, for proxies that prove who they are.
//!
//! Owns streams from the request's head to the last response. Decides nothing about what is sent ([`osm_core::xds`]).
//! Invariants: a stream serves the proxy its client certificate names, and nobody else (law 1); every list, wait, count
//! and buffer is bounded; a proxy has at most one stream, the newest; nobody is served before the mesh is known.

mod admission;
mod machine;
mod metrics;
mod registry;
mod requests;
mod responses;
mod service;
mod stream;
mod turn;

use std::{sync::Arc, time::Duration};

use osm_core::{envoy::bootstrap::PING, identity::TrustDomain, xds};
use osm_runtime::serve::Seats;
use rand::Rng as _;
use tokio::time::Instant;

pub use metrics::AdsMetrics;
pub(crate) use metrics::name as kind_name;
pub use registry::{Connection, Registry, StreamStatus};
pub use service::Ads;

use crate::{certificates::Certificates, mesh::Mesh, report::Reporter};

/// gRPC's prefix of a message, in bytes: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Bounds of the service. The defaults hold for a mesh of ten thousand proxies on two cores.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The suffix of all names in certificates.
    pub trust_domain: TrustDomain,
    /// New streams let in each second.
    pub new_streams_per_second: u32,
    /// Longest wait of a new stream to be let in; then it is told to come back later.
    pub admission_wait: Duration,
    /// Longest wait for the pod of a proxy to become known.
    pub pod_wait: Duration,
    /// How long a proxy whose pod is gone keeps its stream.
    pub pod_grace: Duration,
    /// Longest time a response may take to be taken by the transport.
    pub send: Duration,
    /// Longest time a response may go unanswered. Envoy holds an answer back while what it was sent warms up, so this
    /// is far longer than any round trip.
    pub answer: Duration,
    /// Streams that may be sent large responses at a time, and how long each may take over it before the next has its
    /// turn. Each holds a transport's buffer and a piece, 80 KiB.
    pub turns: (usize, Duration),
    /// What new streams sit on until it is known that nothing large of theirs is to be read, or it is the turn of that. Others
    /// wait before HTTP/2 is spoken with them, or are told to come back: they have a configuration.
    pub seats: Seats,
    /// Most bytes of one request: a big sidecar that reconnects lists all it has.
    pub request_bytes: usize,
    /// Requests a stream may send at once, and how many each second after that.
    pub requests: (u32, u32),
    /// After this time a proxy is taken to have opened all kinds it uses.
    pub settle: Duration,
    /// How often streams move to the newest snapshot even if nothing concerns them, so that old ones are freed. They do so
    /// at about the same time, within a hundredth of it: then few snapshots are held by all of them.
    pub refresh: Duration,
    /// What a stream may remember.
    pub limits: xds::Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            new_streams_per_second: 800,
            admission_wait: Duration::from_secs(5),
            pod_wait: Duration::from_secs(5),
            pod_grace: Duration::from_secs(30),
            send: Duration::from_secs(30),
            answer: Duration::from_secs(180),
            turns: (200, Duration::from_secs(10)),
            // A proxy that waits is not answered on HTTP/2: the wait must be over before its first ping is. That what it sends is
            // taken in meanwhile, so that its kernel waits as well, is seen to by `Limits::receive` of its server.
            seats: Seats::new(300, PING / 3),
            request_bytes: 16 << 20,
            requests: (2_000, 500),
            settle: Duration::from_secs(5),
            refresh: Duration::from_secs(300),
            limits: xds::Limits::default(),
        }
    }
}

/// What all streams share.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    mesh: Mesh,
    registry: Registry,
    certificates: Certificates,
    reporter: Reporter,
    metrics: AdsMetrics,
    admission: admission::Admission,
    turns: turn::Turns,
    begun: Instant,
}

impl Shared {
    fn new(
        settings: Settings,
        mesh: Mesh,
        certificates: Certificates,
        reporter: Reporter,
        metrics: AdsMetrics,
    ) -> Arc<Self> {
        let admission = admission::Admission::new(settings.new_streams_per_second);
        let (count, longest) = settings.turns;
        let turns = turn::Turns::new(count, longest);
        Arc::new(Self {
            settings,
            mesh,
            registry: Registry::default(),
            certificates,
            reporter,
            metrics,
            admission,
            turns,
            begun: Instant::now(),
        })
    }

    /// When a stream is to move to the newest snapshot.
    fn next_refresh(&self) -> Instant {
        let period = self.settings.refresh.max(Duration::from_secs(1));
        let past = self.begun.elapsed().as_secs_f64() / period.as_secs_f64();
        let spread = rand::rng().random_range(0.0..0.01);
        self.begun + period.mul_f64(past.floor() + 1.0 + spread)
    }
}
