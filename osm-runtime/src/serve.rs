//! The accept loop of every server: bounded, time-limited, and leaving gently.
//!
//! Owns connections from accept to close. Invariants: no more than [`Limits::connections`] at a time; a peer that
//! does not finish its handshake, or does not send a first request, is dropped in time; a client whose certificate is
//! not good any more is let go; a panic in a
//! handler ends that request, at worst its connection; once told to drain, nothing new is accepted and every connection is asked to go within
//! [`Limits::leave_over`], at a random moment, so that its peers do not arrive elsewhere all at once.

use std::{
    future::poll_fn,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use rand::Rng;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service, ServiceExt};

pub use crate::crew::Tasks;
use crate::{
    backoff::jittered,
    crew::Crew,
    drive::Driven,
    metrics::Metrics,
    tls::{self, ClientRoots, H2},
};

/// Bytes of an answer that HTTP/2 takes in before the peer has taken them off: its default of 400 KiB, times thousands of
/// peers, would be the memory of the process.
const SEND_BUFFER: usize = 64 * 1024;

/// Time after which a client's certificate is looked at even if nothing says so.
const LOOK: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);

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
    /// peer.
    pub unread: u32,
    /// HTTP/2: how often a quiet peer is pinged; it must answer within as long. `None` where peers ping by themselves.
    pub ping: Option<Duration>,
    /// About how long a peer's host may be silent before the connection counts as dead. The kernel asks (TCP keepalive)
    /// and gives up on what is not acknowledged; that costs this process nothing.
    pub dead: Duration,
    /// How long a connection may live before it is asked to go; jittered by a tenth. No limit when `None`.
    pub max_age: Option<Duration>,
    /// The time over which clients that proved themselves must do so again when the roots have changed, see
    /// [`serve_mutual_tls`]; jittered.
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
    /// every few seconds. When all of them come back at once with large requests, most wait for their turn to be read.
    pub fn ads() -> Self {
        Self {
            connections: 20_000,
            streams: 16,
            head_bytes: 16 * 1024,
            unread: 64 * 1024,
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

/// The address at which a pod with this address of its own is reached at all of them: `0.0.0.0`, or `::` where the
/// pod's first address is an IPv6 one, which takes IPv4 in, too.
pub fn any_address(pod: &str) -> IpAddr {
    match pod.parse() {
        Ok(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// Who is at the other end of a request's connection: an extension of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Its verified certificate chain (DER), leaf first; empty when it was not asked for one.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// Cancelled when the connection is asked to go: a handler whose stream would not end by itself ends it then.
    pub leaving: CancellationToken,
    /// Where to run what serves the connection's streams on, see [`Limits::within`].
    pub tasks: Tasks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    server: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    server: &'static str,
    reason: &'static str,
}

/// Metrics of the servers of a process.
#[derive(Clone, Debug, Default)]
pub struct ServeMetrics {
    open: Family<Server, Gauge>,
    accepted: Family<Server, Counter>,
    refused: Family<Refusal, Counter>,
}

impl ServeMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register("osm_server_connections", "Open connections", new.open.clone());
            registry.register(
                "osm_server_accepted",
                "Connections that were accepted",
                new.accepted.clone(),
            );
            registry.register(
                "osm_server_refused",
                "Connections that were refused or cut",
                new.refused.clone(),
            );
        });
        new
    }
}

/// A server: its name in metrics and logs, its bounds, and when it drains.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name, such as `ads`.
    pub name: &'static str,
    /// The bounds.
    pub limits: Limits,
    /// Where it counts.
    pub metrics: ServeMetrics,
    /// Cancelled when it should stop accepting and let its connections go.
    pub drain: CancellationToken,
}

/// What a server answers with: axum's `Router`, tonic's `Routes`, or any tower service.
pub trait Handler<B>:
    Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<B, S> Handler<B> for S where
    S: Service<Request<Incoming>, Response = Response<B>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Serves HTTP/2 and HTTP/1.1 (as ALPN decides) over TLS, until drained; returns when every connection is gone.
pub async fn serve_tls<S, B>(listener: TcpListener, tls: Arc<ServerConfig>, settings: Settings, handler: S)
where
    S: Handler<B>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    accept_loop(listener, Some(Secure::new(tls, None)), settings, handler).await;
}

/// Like [`serve_tls`], for clients with certificates ([`crate::tls::ads`]), which must stay good: whose has expired, or
/// whose root is not among `clients` any more, is asked to go within about [`Limits::proof`] and then cut off. A
/// connection may otherwise outlive what it was let in for by as long as it likes.
pub async fn serve_mutual_tls<S, B>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    clients: ClientRoots,
    settings: Settings,
    handler: S,
) where
    S: Handler<B>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    accept_loop(listener, Some(Secure::new(tls, Some(clients))), settings, handler).await;
}

/// TLS, and which HTTP speaks whoever does not say (ALPN): HTTP/2 where nothing else is offered.
#[derive(Clone)]
struct Secure {
    acceptor: TlsAcceptor,
    always_http2: bool,
    clients: Option<ClientRoots>,
}

impl Secure {
    fn new(tls: Arc<ServerConfig>, clients: Option<ClientRoots>) -> Self {
        Self {
            always_http2: tls.alpn_protocols == [H2],
            acceptor: TlsAcceptor::from(tls),
            clients,
        }
    }
}

/// Serves HTTP/1.1 without TLS, until drained; returns when every connection is gone.
pub async fn serve_plain<S, B>(listener: TcpListener, settings: Settings, handler: S)
where
    S: Handler<B>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    accept_loop(listener, None, settings, handler).await;
}

async fn accept_loop<S, B>(listener: TcpListener, tls: Option<Secure>, settings: Settings, handler: S)
where
    S: Handler<B>,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(settings.limits.connections));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = settings.drain.cancelled() => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or a connection that is gone already: neither ends the server.
                tracing::warn!(server = settings.name, %error, "accepting a connection failed");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            settings.refuse("connections");
            continue;
        };
        settings.metrics.accepted.get_or_create(&settings.server()).inc();
        let connection = Connection {
            settings: settings.clone(),
            address,
            // Before the handshake: roots that change during it must not be missed.
            clients: tls
                .as_ref()
                .and_then(|tls| tls.clients.as_ref())
                .map(|clients| (clients.clone(), clients.changes())),
            _permit: permit,
        };
        let (tls, handler) = (tls.clone(), handler.clone());
        connections.spawn(async move { connection.serve(stream, tls, handler).await });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

impl Settings {
    fn server(&self) -> Server {
        Server { server: self.name }
    }

    fn refuse(&self, reason: &'static str) {
        self.metrics
            .refused
            .get_or_create(&Refusal {
                server: self.name,
                reason,
            })
            .inc();
    }
}

/// Lets the kernel find out that the other host is gone.
fn watched(stream: &TcpStream, dead: Duration) -> std::io::Result<()> {
    const PROBES: u32 = 4;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(dead / 2)
        .with_interval(dead / 2 / PROBES)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(dead))
}

struct Connection {
    settings: Settings,
    address: SocketAddr,
    clients: Option<(ClientRoots, watch::Receiver<()>)>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn serve<S, B>(self, stream: TcpStream, tls: Option<Secure>, handler: S)
    where
        S: Handler<B>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let open = self
            .settings
            .metrics
            .open
            .get_or_create_owned(&self.settings.server());
        open.inc();
        let _open = Closing(open);
        // A connection without them works, too.
        let _ = stream.set_nodelay(true);
        let _ = watched(&stream, self.settings.limits.dead);
        let Some(tls) = tls else {
            return self.exchange(stream, Arc::default(), false, handler).await;
        };
        // Boxed, here and below: what a connection no longer needs would stay in its task for as long as it lives.
        let accept = Box::pin(tls.acceptor.accept(stream));
        match timeout(self.settings.limits.handshake, accept).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let certificates = session.peer_certificates().unwrap_or_default().to_vec().into();
                let http2 = tls.always_http2 || session.alpn_protocol() == Some(H2);
                Box::pin(self.exchange(Box::new(stream), certificates, http2, handler)).await;
            }
            Ok(Err(error)) => {
                self.settings.refuse("handshake");
                tracing::debug!(server = self.settings.name, peer = %self.address, %error, "TLS handshake failed");
            }
            Err(_) => self.settings.refuse("handshake_timeout"),
        }
    }

    async fn exchange<S, B>(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificates: Arc<[CertificateDer<'static>]>,
        http2: bool,
        handler: S,
    ) where
        S: Handler<B>,
        B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    {
        let limits = &self.settings.limits;
        let crew = Crew::default();
        let peer = Peer {
            address: self.address,
            certificates,
            leaving: CancellationToken::new(),
            tasks: if limits.within && http2 {
                crew.tasks()
            } else {
                Tasks::default()
            },
        };
        let spoke = Arc::new(AtomicBool::new(false));
        let service = {
            let (peer, spoke) = (peer.clone(), spoke.clone());
            service_fn(move |mut request: Request<Incoming>| {
                spoke.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(peer.clone());
                handler.clone().oneshot(request)
            })
        };
        let io = TokioIo::new(stream);
        if http2 {
            let connection = http2::Builder::new(peer.tasks.clone())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.streams)
                .max_header_list_size(limits.head_bytes)
                .max_pending_accept_reset_streams(20)
                .max_local_error_reset_streams(100)
                .max_send_buf_size(SEND_BUFFER)
                .initial_stream_window_size(limits.unread)
                .initial_connection_window_size(limits.unread)
                .keep_alive_interval(limits.ping)
                .keep_alive_timeout(limits.ping.unwrap_or(limits.dead))
                .serve_connection(io, service);
            self.drive(connection, crew, &peer, &spoke).await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.head)
                .max_buf_size(limits.head_bytes.max(8_192) as usize)
                .serve_connection(io, service);
            self.drive(connection, crew, &peer, &spoke).await;
        }
    }

    /// Runs a connection until it ends, is asked to go and goes, or has to be cut; and then what served its streams, which
    /// sees that it is over.
    async fn drive<C>(&self, connection: C, crew: Crew, peer: &Peer, spoke: &AtomicBool)
    where
        C: GracefulConnection,
        C::Error: std::fmt::Display,
    {
        let mut driven = Driven::new(connection, crew);
        self.until_over(&mut driven, peer, spoke).await;
        let mut crew = driven.cut();
        let rest = poll_fn(|context| crew.poll(context));
        if timeout(self.settings.limits.grace, rest).await.is_err() {
            self.settings.refuse("grace");
        }
    }

    async fn until_over<C>(&self, driven: &mut Driven<C>, peer: &Peer, spoke: &AtomicBool)
    where
        C: GracefulConnection,
        C::Error: std::fmt::Display,
    {
        let limits = &self.settings.limits;
        let age = async {
            match limits.max_age {
                Some(age) => sleep(jittered(age, 0.1)).await,
                None => std::future::pending().await,
            }
        };
        let silence = async {
            sleep(limits.head).await;
            if spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let wave = limits.leave_over.mul_f64(rand::rng().random_range(0.0..=1.0));
        let drain = async {
            self.settings.drain.cancelled().await;
            sleep(wave).await;
        };
        tokio::select! {
            biased;
            ended = &mut *driven => return self.ended(ended),
            () = silence => return self.settings.refuse("silent"),
            () = self.unproven(peer) => self.settings.refuse("unproven"),
            () = age => {}
            () = drain => {}
        }
        peer.leaving.cancel();
        driven.let_go();
        match timeout(limits.grace, driven).await {
            Ok(ended) => self.ended(ended),
            Err(_) => self.settings.refuse("grace"),
        }
    }

    /// Waits until the client would not be let in any more. It is asked only when that may be: when the roots have changed,
    /// when a certificate expires, and now and then, because clocks jump.
    async fn unproven(&self, peer: &Peer) {
        let Some((clients, changes)) = &self.clients else {
            return std::future::pending().await;
        };
        let mut changes = changes.clone();
        loop {
            let left = tls::time_left(&peer.certificates);
            tokio::select! {
                () = sleep(left.min(jittered(LOOK, 0.5)).max(self.settings.limits.proof.min(SECOND))) => {}
                Ok(()) = changes.changed() => sleep(jittered(self.settings.limits.proof, 0.5)).await,
            }
            if let Err(error) = clients.verify(&peer.certificates) {
                tracing::info!(server = self.settings.name, peer = %self.address, %error, "a client is not trusted any more");
                return;
            }
        }
    }

    fn ended<E: std::fmt::Display>(&self, result: Result<(), E>) {
        if let Err(error) = result {
            tracing::debug!(server = self.settings.name, peer = %self.address, %error, "connection ended");
        }
    }
}

/// Counts a connection down, also when its task panics.
struct Closing(Gauge);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
