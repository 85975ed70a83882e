//! The accept loop of every server: bounded, time-limited, and leaving gently.
//!
//! Owns connections from accept on: `connection` serves one until it ends, `crew` and `drive` run what serves its
//! streams in one task, `limits` says how much of everything there is, `seats` how many new clients are listened to at a time.
//! Invariants: no more than [`Limits::connections`] at a time; a peer that does not finish its handshake, or does not send a
//! first request, is dropped in time; whoever has proved nothing holds no seat; a client whose certificate is not good any
//! more is let go; a panic in a handler ends that request, at worst its connection; once told to drain, nothing new is
//! accepted and every connection is asked to go within [`Limits::leave_over`], at a random moment, so that its peers do not
//! arrive elsewhere all at once.

mod connection;
mod crew;
mod drive;
mod limits;
mod seats;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::{Body, Incoming};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use socket2::SockRef;
use tokio::{net::TcpListener, sync::Semaphore, time::sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{BoxError, Service};

use self::{connection::Connection, seats::Handover};
pub use self::{
    crew::Tasks,
    limits::Limits,
    seats::{Seat, Seats},
};
use crate::{
    metrics::Metrics,
    tls::{ClientRoots, H2},
};

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
    seat: Handover,
}

impl Peer {
    /// The seat that the connection has waited for ([`Settings::seats`]), if no request has taken it yet. Whoever serves
    /// the first request is to take it, and to drop it in time: others wait for it.
    pub fn seat(&self) -> Option<Seat> {
        self.seat.take()
    }
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
    /// What clients wait for once they have proved who they are; `None` if anyone is listened to at once.
    pub seats: Option<Seats>,
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
    if let Some(bytes) = settings.limits.receive
        // Connections inherit it: on one that is made it comes too late for the window it begins with.
        && let Err(error) = SockRef::from(&listener).set_recv_buffer_size(bytes)
    {
        tracing::warn!(server = settings.name, %error, "the kernel takes in as much as it likes");
    }
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

#[cfg(test)]
mod tests;
