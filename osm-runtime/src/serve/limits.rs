//! How much of everything a server gives its peers, and for how long.
//!
//! Owns the bounds of each kind of server. Invariant: there is none without a bound.

use std::time::Duration;

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most connections at a time; more are closed at once.
    pub connections: usize,
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Longest wait for the first request, and in HTTP/1.1 for the head of each.
    pub head: Duration,
    /// Most concurrent HTTP/2 streams of a connection.
    pub streams: u32,
    /// Most bytes of a request's head.
    pub head_bytes: u32,
    /// HTTP/2: most bytes of a request's body that are taken in before the handler reads them. The rest stays with the
    /// peer, and takes a round trip for each so many bytes.
    pub unread: u32,
    /// Bytes that the kernel takes in of a connection before they are read here; it says how many when `None`. What a client
    /// sends before it has heard of [`Self::unread`], 64 KiB and their framing, must fit where clients wait for a seat: the
    /// kernel of one that has more to send to a server that takes in nothing may give the connection up.
    pub receive: Option<usize>,
    /// HTTP/2: how often a quiet peer is pinged; it must answer within as long. `None` where peers ping by themselves.
    pub ping: Option<Duration>,
    /// About how long a peer's host may be silent before the connection counts as dead. The kernel asks (TCP keepalive)
    /// and gives up on what is not acknowledged; that costs this process nothing.
    pub dead: Duration,
    /// How long a connection may live before it is asked to go; jittered by a tenth. No limit when `None`.
    pub max_age: Option<Duration>,
    /// The time over which clients that proved themselves must do so again when the roots have changed, see
    /// [`super::serve_mutual_tls`]; jittered.
    pub proof: Duration,
    /// HTTP/2: handlers run in the task of their connection, one after another, instead of in tasks of their own. For
    /// connections of few streams that mostly wait.
    pub within: bool,
    /// The time over which connections are asked to go when the server drains.
    pub leave_over: Duration,
    /// How long a connection that was asked to go may take.
    pub grace: Duration,
}

impl Limits {
    /// For the webhooks: many short requests over a few connections of the API server. It puts all requests on one
    /// connection, so to one replica, for as long as there is a stream left on it: with few streams to a connection and
    /// an end to its life, more replicas answer more requests.
    pub fn webhook() -> Self {
        Self {
            connections: 1_000,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            streams: 4,
            head_bytes: 64 * 1024,
            unread: 1024 * 1024,
            receive: None,
            ping: Some(Duration::from_secs(30)),
            dead: Duration::from_secs(40),
            max_age: Some(Duration::from_secs(60)),
            proof: Duration::from_secs(60),
            within: false,
            leave_over: Duration::from_secs(1),
            grace: Duration::from_secs(20),
        }
    }

    /// For ADS: thousands of connections, each with one or two streams that live as long as it does, of peers that ping
    /// rarely. When all of them come back at once with large requests, most wait for their turn to be read.
    pub fn ads() -> Self {
        Self {
            connections: 20_000,
            streams: 16,
            head_bytes: 16 * 1024,
            unread: 16 * 1024,
            // Linux makes it twice as much, since what a packet takes beside its bytes counts, too. Sidecars' kernels are told
            // to give up after 15 s without progress, which is less than they may wait for a seat.
            receive: Some(128 * 1024),
            ping: None,
            max_age: None,
            within: true,
            leave_over: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            ..Self::webhook()
        }
    }

    /// For the admin and debug endpoints: a few probes and scrapes.
    pub fn admin() -> Self {
        Self {
            connections: 100,
            max_age: None,
            leave_over: Duration::ZERO,
            grace: Duration::from_secs(1),
            ..Self::webhook()
        }
    }
}
