//! One connection, from its TLS handshake to its end.
//!
//! Owns the HTTP on it and why it ends: by itself, silent, too old, of a client that is not good any more, or because the
//! server drains. Invariant: whatever the peer does, it ends in time ([`Limits`](super::Limits)).

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use prometheus_client::metrics::gauge::Gauge;
use rand::Rng;
use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceExt};

use super::{
    Handler, Peer, Secure, Settings,
    crew::{Crew, Tasks},
    drive::Driven,
    seats::{Handover, Seat},
};
use crate::{
    backoff::jittered,
    tls::{self, ClientRoots, H2},
};

/// Bytes of an answer that HTTP/2 takes in before the peer has taken them off: its default of 400 KiB, times thousands of
/// peers, would be the memory of the process.
const SEND_BUFFER: usize = 64 * 1024;

/// What every connection begins with; no setting makes it less (RFC 9113, section 6.9.2).
const SMALLEST_CONNECTION_WINDOW: u32 = 65_535;

/// Time after which a client's certificate is looked at even if nothing says so.
const LOOK: Duration = Duration::from_secs(3_600);
const SECOND: Duration = Duration::from_secs(1);

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

/// A connection that was accepted.
pub(super) struct Connection {
    /// Whose it is.
    pub(super) settings: Settings,
    /// Whom it is with.
    pub(super) address: SocketAddr,
    /// Who may stay, and word of when that changes; `None` if anyone may.
    pub(super) clients: Option<(ClientRoots, watch::Receiver<()>)>,
    /// Its place among all connections of the server.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Serves it until it has ended.
    pub(super) async fn serve<S, B>(self, stream: TcpStream, tls: Option<Secure>, handler: S)
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
            return self.exchange(stream, Arc::default(), None, false, handler).await;
        };
        // Boxed, here and below: what a connection no longer needs would stay in its task for as long as it lives.
        let accept = Box::pin(tls.acceptor.accept(stream));
        match timeout(self.settings.limits.handshake, accept).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let certificates = session.peer_certificates().unwrap_or_default().to_vec().into();
                let http2 = tls.always_http2 || session.alpn_protocol() == Some(H2);
                let Ok(seat) = self.seat().await else { return };
                Box::pin(self.exchange(Box::new(stream), certificates, seat, http2, handler)).await;
            }
            Ok(Err(error)) => {
                self.settings.refuse("handshake");
                tracing::debug!(server = self.settings.name, peer = %self.address, %error, "TLS handshake failed");
            }
            Err(_) => self.settings.refuse("handshake_timeout"),
        }
    }

    /// Waits for a seat, if the server has any.
    async fn seat(&self) -> Result<Option<Seat>, NoSeat> {
        let Some(seats) = &self.settings.seats else {
            return Ok(None);
        };
        tokio::select! {
            () = self.settings.drain.cancelled() => Err(NoSeat),
            seat = seats.take() => match seat {
                None => {
                    self.settings.refuse("seats");
                    Err(NoSeat)
                }
                seat => Ok(seat),
            },
        }
    }

    async fn exchange<S, B>(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificates: Arc<[CertificateDer<'static>]>,
        seat: Option<Seat>,
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
            seat: Handover::of(seat),
        };
        let spoke = Arc::new(Notify::new());
        let service = {
            let (peer, spoke) = (peer.clone(), spoke.clone());
            service_fn(move |mut request: Request<Incoming>| {
                spoke.notify_one();
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
                .initial_connection_window_size(limits.unread.max(SMALLEST_CONNECTION_WINDOW))
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
    async fn drive<C>(&self, connection: C, crew: Crew, peer: &Peer, spoke: &Notify)
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

    async fn until_over<C>(&self, driven: &mut Driven<C>, peer: &Peer, spoke: &Notify)
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
        // The timer goes with the first request: those of thousands that connect at once would go off at once.
        let silence = async {
            if timeout(limits.head, spoke.notified()).await.is_ok() {
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

/// There is none in time, or the server drains.
struct NoSeat;

/// Counts a connection down, also when its task panics.
struct Closing(Gauge);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.dec();
    }
}
