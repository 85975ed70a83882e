//! The servers of the tests: one process can serve several protocols on several ports.
//!
//! Invariant: every answer says which pod gave it.

mod http;
mod tcp;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub(crate) use http::serve as serve_http;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// A port that serves HTTP/1, HTTP/2, gRPC health and WebSocket; may be given several times.
    #[arg(long)]
    http: Vec<u16>,
    /// The same over TLS, with a certificate signed by itself.
    #[arg(long)]
    https: Vec<u16>,
    /// A port that answers what the client says first.
    #[arg(long)]
    tcp: Vec<u16>,
    /// A port that greets each client before it says anything.
    #[arg(long)]
    greet: Vec<u16>,
    /// A name to answer with instead of the pod's.
    #[arg(long)]
    name: Option<String>,
}

/// The name of this pod.
pub(crate) fn pod() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "unknown".to_owned())
}

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let name: Arc<str> = options.name.unwrap_or_else(pod).into();
    let router = http::router(&name).await;
    let mut servers = JoinSet::new();
    for port in options.http {
        let listener = listen(port).await?;
        log(format_args!("{name} serves HTTP on port {port}"));
        servers.spawn(serve_http(listener, router.clone()));
    }
    for port in options.https {
        let (listener, acceptor) = (listen(port).await?, acceptor()?);
        log(format_args!("{name} serves HTTPS on port {port}"));
        servers.spawn(http::serve_tls(listener, acceptor, router.clone()));
    }
    for port in options.tcp {
        let listener = listen(port).await?;
        log(format_args!("{name} answers TCP on port {port}"));
        servers.spawn(tcp::echo(listener, Arc::clone(&name)));
    }
    for port in options.greet {
        let listener = listen(port).await?;
        log(format_args!("{name} greets TCP clients on port {port}"));
        servers.spawn(tcp::greet(listener, Arc::clone(&name)));
    }
    if servers.is_empty() {
        log(format_args!("{name} waits to be told what to send"));
        std::future::pending::<()>().await;
    }
    while let Some(ended) = servers.join_next().await {
        ended.context("a server ended")?;
    }
    Ok(())
}

/// A line for whoever reads the pod's log, on standard error: what clients print on the other is read by programs.
fn log(line: std::fmt::Arguments<'_>) {
    eprintln!("{line}");
}

/// Listens on all addresses, IPv4 included.
pub(crate) async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        // Without IPv6 in the kernel.
        Err(_) => TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("cannot listen on port {port}")),
    }
}

/// Accepts connections for ever, one task each.
async fn accept<Handler, Handling>(listener: TcpListener, handler: Handler)
where
    Handler: Fn(TcpStream, SocketAddr) -> Handling,
    Handling: Future<Output = ()> + Send + 'static,
{
    loop {
        // An error of one connection (reset before it was accepted) is not one of the server.
        if let Ok((stream, peer)) = listener.accept().await {
            // Latency matters here, throughput does not.
            if stream.set_nodelay(true).is_ok() {
                tokio::spawn(handler(stream, peer));
            }
        }
    }
}

fn acceptor() -> anyhow::Result<TlsAcceptor> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
