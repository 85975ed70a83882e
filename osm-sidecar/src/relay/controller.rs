//! The way to the controller, as Envoy's bootstrap would have it: TLS 1.3, the server's name pinned, HTTP/2 with pings, and
//! a kernel that notices a controller's host that is gone.
//!
//! Certificate, key and roots are read at every connection, so that renewed ones are used without a restart.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use osm_core::envoy::bootstrap::{
    CERTIFICATE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, KEEPALIVE_TIME, KEY, PING, PONG, ROOT, USER_TIMEOUT,
};
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, version::TLS13};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use socket2::{SockRef, TcpKeepalive};
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, body::Body, client::Grpc, codegen::http::uri::PathAndQuery};

use super::{DELTA, codec::Raw};

/// How long connecting may take, from looking up the name to the end of the TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// One response in flight is enough.
const WINDOW: u32 = 1 << 20;
/// Largest response: the controller divides what is larger than 2 MiB, as far as it can be divided.
const RESPONSE_BYTES: usize = 64 << 20;
/// Addresses of the controller that are tried, and remembered for when the name cannot be looked up.
const ADDRESSES: usize = 4;

/// Where the controller is, and whom to believe.
pub(super) struct Controller {
    address: String,
    name: ServerName<'static>,
    certificates: PathBuf,
    known: Mutex<Vec<SocketAddr>>,
}

impl Controller {
    pub(super) fn new(address: &str, name: &str, certificates: PathBuf) -> Result<Self> {
        let named = |name: &str| ServerName::try_from(name.to_owned());
        Ok(Self {
            address: address.to_owned(),
            name: named(name).with_context(|| format!("{name:?} is not a DNS name"))?,
            certificates,
            known: Mutex::default(),
        })
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        timeout(CONNECT, self.try_connect())
            .await
            .map_err(|_| anyhow!("no connection to {} within {CONNECT:?}", self.address))?
    }

    async fn try_connect(&self) -> Result<Connection> {
        let tls = TlsConnector::from(Arc::new(tls(&self.certificates)?));
        let stream = self.dial().await?;
        // A request waits for nothing to be sent along with it.
        let _ = stream.set_nodelay(true);
        // A connection without it works, too.
        let _ = watched(&stream);
        let stream = tls
            .connect(self.name.clone(), stream)
            .await
            .with_context(|| format!("TLS with {}", self.address))?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2")?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// Connects to the first address that accepts. A name that cannot be looked up keeps the addresses it had.
    async fn dial(&self) -> Result<TcpStream> {
        let failed = match tokio::net::lookup_host(&self.address).await {
            Ok(found) => {
                let found: Vec<_> = found.take(ADDRESSES).collect();
                if !found.is_empty() {
                    *self.known.lock() = found;
                }
                None
            }
            Err(error) => Some(error),
        };
        let known = self.known.lock().clone();
        let mut failure = failed.map_or_else(|| anyhow!("the name has no address"), anyhow::Error::from);
        for address in known {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = anyhow::Error::from(error).context(address),
            }
        }
        Err(failure.context(format!("connecting to {}", self.address)))
    }
}

/// Lets the kernel find out that the controller's host is gone.
fn watched(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_TIME)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

fn tls(folder: &Path) -> Result<ClientConfig> {
    let file = |name: &str| folder.join(name);
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(file(ROOT)).context(ROOT)? {
        roots.add(root.context(ROOT)?).context(ROOT)?;
    }
    let chain = CertificateDer::pem_file_iter(file(CERTIFICATE))
        .and_then(Iterator::collect)
        .context(CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_file(file(KEY)).context(KEY)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .context("certificate and key")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An HTTP/2 connection to a controller.
#[derive(Clone)]
pub(super) struct Connection(http2::SendRequest<Body>);

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Opens the discovery stream. Requests may be queued before it is open.
    pub(super) async fn open(self, requests: mpsc::Receiver<Bytes>) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = Grpc::new(self).max_decoding_message_size(RESPONSE_BYTES);
        grpc.ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let requests = tonic::Request::new(ReceiverStream::new(requests));
        let response = grpc
            .streaming(requests, PathAndQuery::from_static(DELTA), Raw)
            .await?;
        Ok(response.into_inner())
    }
}

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        // HTTP/2 wants to be told the authority; the controller does not look at it.
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = http::Uri::builder()
            .scheme("https")
            .authority("osm-controller")
            .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
            .build()
            .unwrap_or_default();
        Box::pin(self.0.send_request(request))
    }
}
