//! Answers the probes that Envoy cannot: whether a TCP port accepts connections, whether a gRPC server is healthy.
//!
//! The kubelet asks over HTTP; headers tell what. Invariants: everything has a deadline and a bound; only ports named
//! on the command line are asked, so that nobody can scan the pod's loopback through this.

mod grpc;
mod http;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use http::{Request, Status};

/// The one path there is.
const PATH: &str = "/osm-healthcheck";
/// Threads, which is also how many probes are answered at once.
const WORKERS: usize = 32;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time for the application, whatever the probe says.
const MAX_TIMEOUT: u64 = 300;

/// Where to listen, whom to ask.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Port to listen at.
    #[arg(long, default_value_t = 15904)]
    port: u16,
    /// Address of the application; loopback unless given.
    #[arg(long)]
    address: Option<IpAddr>,
    /// Ports of the application that may be asked; any unless given.
    #[arg(long, value_delimiter = ',')]
    allowed_ports: Vec<u16>,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    // Blocked before there are threads, so that all of them leave the signals to this one. Without a handler they
    // would not even end process 1 of a container.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking signals")?;

    let listener = listen(arguments.port)?;
    println!("answering probes at {}", listener.local_addr()?);
    serve(listener, Prober::new(arguments.address, arguments.allowed_ports))?;
    let signal = signals.wait().context("waiting for signals")?;
    println!("ending on {signal}");
    Ok(())
}

/// On all addresses of both protocols, or of IPv4 where the kernel has no other.
fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| {
            format!("port {port} cannot be listened at: is it taken by another container of the pod?")
        })
}

fn serve(listener: TcpListener, prober: Prober) -> Result<()> {
    let (listener, prober) = (Arc::new(listener), Arc::new(prober));
    for _ in 0..WORKERS {
        let (listener, prober) = (listener.clone(), prober.clone());
        let worker = move || {
            loop {
                match listener.accept() {
                    Ok((stream, _)) => http::answer(&stream, PATIENCE, |request| prober.answer(request)),
                    // Out of file descriptors, for instance: it passes.
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(worker)
            .context("starting a thread")?;
    }
    Ok(())
}

/// What a probe asks for.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Tcp(u16),
    Grpc(u16, &'a str),
}

/// Asks the application.
struct Prober {
    addresses: Vec<IpAddr>,
    allowed_ports: BTreeSet<u16>,
}

impl Prober {
    fn new(address: Option<IpAddr>, allowed_ports: Vec<u16>) -> Self {
        let loopback = || vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Self {
            addresses: address.map_or_else(loopback, |address| vec![address]),
            allowed_ports: allowed_ports.into_iter().collect(),
        }
    }

    fn answer(&self, request: &Request<'_>) -> Status {
        if request.path != PATH {
            return Status(404, format!("the only path is {PATH}"));
        }
        let target = match target(request) {
            Ok(target) => target,
            Err(problem) => return Status(400, problem),
        };
        let (Target::Tcp(port) | Target::Grpc(port, _)) = target;
        if !self.allowed_ports.is_empty() && !self.allowed_ports.contains(&port) {
            return Status(403, format!("no probe of this pod asks port {port}"));
        }
        let seconds = request
            .header("Original-Timeout-Seconds")
            .and_then(|text| text.parse().ok())
            .unwrap_or(1);
        let deadline = Instant::now() + Duration::from_secs(u64::clamp(seconds, 1, MAX_TIMEOUT));
        let stream = match self.connect(port, deadline) {
            Ok(stream) => stream,
            Err(error) => return Status(404, format!("port {port} accepts no connection: {error}")),
        };
        match target {
            Target::Tcp(_) => Status(200, format!("port {port} accepts connections")),
            Target::Grpc(_, service) => match grpc::check(&stream, port, service, deadline) {
                Ok(()) => Status(200, "SERVING".to_owned()),
                Err(error) => Status(503, error.to_string()),
            },
        }
    }

    /// Connects to the first address that answers.
    fn connect(&self, port: u16, deadline: Instant) -> std::io::Result<TcpStream> {
        let mut failure = std::io::ErrorKind::TimedOut.into();
        for address in &self.addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&SocketAddr::new(*address, port), left) {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

fn target<'a>(request: &Request<'a>) -> Result<Target<'a>, String> {
    let port = |name, text: &str| match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("header {name} is not a port")),
    };
    if let Some(text) = request.header("Original-Tcp-Port") {
        return Ok(Target::Tcp(port("Original-Tcp-Port", text)?));
    }
    let Some(text) = request.header("Original-Grpc-Port") else {
        return Err("header Original-Tcp-Port or Original-Grpc-Port must tell what to ask".to_owned());
    };
    let service = request.header("Original-Grpc-Service").unwrap_or_default();
    Ok(Target::Grpc(port("Original-Grpc-Port", text)?, service))
}

#[cfg(test)]
mod tests;
