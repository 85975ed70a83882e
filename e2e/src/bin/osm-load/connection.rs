//! One fake Envoy's connection: TCP, mutual TLS, HTTP/2, one gRPC stream, and connecting anew.
//!
//! Owns the bytes on the wire and the waiting. What is said is the [`Sidecar`]'s business. Reconnects wait as the
//! sidecars' bootstrap says: a random time below a bound that doubles from 300 ms to 4 s.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Ping, PingPong, RecvStream, SendStream, client};
use http::{Request, Uri, header};
use osm_core::envoy::bootstrap::{KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, PONG, USER_TIMEOUT};
use rand::Rng as _;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, sync::watch, task::JoinHandle, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    library::Library,
    sidecar::{Sidecar, Variant},
    tally::Tally,
};

/// The bootstrap's flow control windows.
const WINDOW: u32 = 1 << 20;
/// Longest time to connect, TLS included. Longer than the bootstrap's 3 s: thousands of clients share a core here.
const CONNECT: Duration = Duration::from_secs(20);
/// The first bound of the wait before connecting anew.
const BASE_WAIT: Duration = Duration::from_millis(300);
/// The largest bound.
const LONGEST_WAIT: Duration = Duration::from_secs(4);
/// The longest that Envoy waits before a ping, in intervals: it adds up to 15 % at random.
const LATEST: f64 = 1.15;
/// Largest response.
const LARGEST: usize = 256 << 20;

/// What a fake Envoy is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Have a stream.
    pub(crate) connected: bool,
    /// Read what is sent.
    pub(crate) reading: bool,
    /// Reject all responses.
    pub(crate) rejecting: bool,
}

impl Mode {
    /// As it begins: without a stream.
    pub(crate) const OFF: Self = Self {
        connected: false,
        reading: true,
        rejecting: false,
    };
}

/// What the fake Envoys of a thread share.
pub(crate) struct Shared {
    pub(crate) library: RefCell<Library>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) server_name: ServerName<'static>,
    /// How often Envoy pings.
    pub(crate) ping: Duration,
    /// Whether Envoy has its kernel watch connections, as the bootstrap says.
    pub(crate) watched: bool,
    pub(crate) variant: Variant,
}

/// Runs one fake Envoy for as long as somebody may tell it what to do.
pub(crate) async fn live(
    number: usize,
    tls: Arc<ClientConfig>,
    mut sidecar: Sidecar,
    mut mode: watch::Receiver<Mode>,
    shared: Rc<Shared>,
) {
    let mut bound = BASE_WAIT;
    loop {
        if mode.wait_for(|mode| mode.connected).await.is_err() {
            return;
        }
        let mut stopped = mode.clone();
        let mut served = false;
        tokio::select! {
            ended = stream(number, &tls, &mut mode, &shared, &mut sidecar, &mut served) => {
                if ended.is_err() {
                    shared.tally.failed();
                }
            }
            gone = stopped.wait_for(|mode| !mode.connected) => {
                if gone.is_err() {
                    return;
                }
                bound = BASE_WAIT;
                continue;
            }
        }
        if served {
            bound = BASE_WAIT;
        }
        let wait = bound.mul_f64(rand::rng().random());
        bound = (bound * 2).min(LONGEST_WAIT);
        tokio::time::sleep(wait).await;
    }
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An open stream, counted until dropped.
struct Open<'a> {
    tally: &'a Tally,
    number: usize,
    server: usize,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.tally.closed(self.number, self.server);
    }
}

async fn stream(
    number: usize,
    tls: &Arc<ClientConfig>,
    mode: &mut watch::Receiver<Mode>,
    shared: &Rc<Shared>,
    sidecar: &mut Sidecar,
    served: &mut bool,
) -> Result<()> {
    let tally = &*shared.tally;
    let server = rand::rng().random_range(0..shared.servers.len());
    let connect = async {
        let tcp = TcpStream::connect(shared.servers[server]).await?;
        tcp.set_nodelay(true)?;
        if shared.watched {
            watch_by_kernel(&tcp)?;
        }
        let tls = TlsConnector::from(tls.clone())
            .connect(shared.server_name.clone(), tcp)
            .await?;
        let http2 = client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false)
            .handshake::<_, Bytes>(tls)
            .await?;
        anyhow::Ok(http2)
    };
    let (client, mut connection) = timeout(CONNECT, connect)
        .await
        .context("connecting takes too long")??;
    let pings = connection.ping_pong().context("a connection without pings")?;
    let interval = shared.ping;
    let _connection = Task(tokio::task::spawn_local(async move {
        // Its end shows on the stream.
        tokio::select! {
            _ = connection => {}
            () = ping(pings, interval) => {}
        }
    }));
    let mut client = client.ready().await?;
    let (response, mut requests) = client.send_request(request(shared.variant)?, false)?;
    for message in sidecar.start(&shared.library.borrow()) {
        send(&mut requests, &message)?;
    }
    let response = response.await?;
    if response.headers().contains_key("grpc-status") || !response.status().is_success() {
        tally.refused();
        return Ok(());
    }
    let _open = Open {
        tally,
        number,
        server,
    };
    tally.opened(server);
    tally.set_synced(number, sidecar.is_synced());
    *served = true;
    converse(number, response.into_body(), requests, mode, shared, sidecar).await
}

/// What the bootstrap has Envoy's kernel do.
fn watch_by_kernel(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Seconds in which every connection that is pinged each `interval` is pinged.
pub(crate) fn all_pinged(interval: Duration) -> u64 {
    interval.mul_f64(LATEST).as_secs() + 1
}

/// Pings until the other end does not answer.
async fn ping(mut pings: PingPong, interval: Duration) {
    loop {
        tokio::time::sleep(interval.mul_f64(rand::rng().random_range(1.0..LATEST))).await;
        if !matches!(timeout(PONG, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

async fn converse(
    number: usize,
    mut responses: RecvStream,
    mut requests: SendStream<Bytes>,
    mode: &mut watch::Receiver<Mode>,
    shared: &Shared,
    sidecar: &mut Sidecar,
) -> Result<()> {
    let tally = &*shared.tally;
    let mut buffer = BytesMut::new();
    loop {
        if !mode.borrow_and_update().reading {
            mode.changed().await?;
            continue;
        }
        let chunk = tokio::select! {
            chunk = responses.data() => chunk,
            changed = mode.changed() => {
                changed?;
                continue;
            }
        };
        let Some(chunk) = chunk else {
            // The server let the stream end, well or with a status: either way Envoy connects anew.
            return Ok(());
        };
        let chunk = chunk?;
        responses.flow_control().release_capacity(chunk.len())?;
        buffer.extend_from_slice(&chunk);
        drop(chunk);
        while let Some(message) = unframe(&mut buffer)? {
            let accept = !mode.borrow().rejecting;
            let taken = sidecar.take(&message, accept, &mut shared.library.borrow_mut())?;
            tally.received(message.len(), &taken, accept);
            for request in &taken.requests {
                send(&mut requests, request)?;
            }
            tally.set_synced(number, sidecar.is_synced());
            tally.answered(number);
        }
        if buffer.is_empty() {
            // A proxy that is up to date does not hold the memory of what it was sent.
            buffer = BytesMut::new();
        }
    }
}

fn request(variant: Variant) -> Result<Request<()>> {
    let method = match variant {
        Variant::Delta => "DeltaAggregatedResources",
        Variant::State => "StreamAggregatedResources",
    };
    let uri: Uri =
        format!("https://osm-controller/envoy.service.discovery.v3.AggregatedDiscoveryService/{method}")
            .parse()?;
    Ok(Request::post(uri)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?)
}

/// Sends a message with gRPC's prefix: no compression, the length.
fn send(requests: &mut SendStream<Bytes>, message: &[u8]) -> Result<()> {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(message);
    requests.send_data(framed.freeze(), false)?;
    Ok(())
}

/// The next message, if all of it is there.
fn unframe(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(prefix) = buffer.get(..5) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length > LARGEST {
        bail!("a compressed response, or one of {length} bytes");
    }
    if buffer.len() < length + 5 {
        buffer.reserve(length + 5 - buffer.len());
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_out_of_their_frames() {
        let mut buffer = BytesMut::new();
        for byte in [0, 0, 0, 0, 2, b'a'] {
            buffer.put_u8(byte);
            assert_eq!(unframe(&mut buffer).unwrap(), None);
        }
        buffer.put_slice(b"b\x00\x00\x00\x00\x00");
        assert_eq!(unframe(&mut buffer).unwrap().unwrap(), "ab");
        assert_eq!(unframe(&mut buffer).unwrap().unwrap(), "");
        assert!(buffer.is_empty());
        buffer.put_slice(&[1, 0, 0, 0, 0]);
        assert!(unframe(&mut buffer).is_err());
    }
}
