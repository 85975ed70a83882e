//! Stands between Envoy and the controller, and in for the controller when none answers.
//!
//! Every message passes as it is. What Envoy accepts is kept on the pod's memory-backed volume, so that a sidecar that
//! restarts while the whole control plane is away serves again with its last good configuration and certificates, and
//! goes on with live updates when a controller returns. The rules are in `osm_core::relay`; here are files and sockets.
//! Invariants: keys never leave the volume and this process; everything has a bound; a relay that cannot keep anything
//! still passes everything on.

mod codec;
mod controller;
mod keeper;
mod page;
mod proxy;
mod retry;
mod stream;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
    stat::{Mode, umask},
};
use osm_core::{envoy::bootstrap::RELAY_SOCKET, relay::Limits};
use parking_lot::Mutex;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use controller::{Connection, Controller};
use keeper::Keeper;
use page::State;
use retry::Retry;

/// The aggregated discovery service, incremental: the one method a sidecar calls.
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Where the controller is, and where to keep what it says.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The controller, as host:port.
    #[arg(long)]
    controller: String,
    /// The DNS name that the controller's certificate must have.
    #[arg(long)]
    server_name: String,
    /// Folder of the files sds_cert.pem, sds_key.pem and cacert.pem, which are read at every connection.
    #[arg(long, default_value = "/etc/envoy")]
    certificates: PathBuf,
    /// Folder for the socket and what is kept: on a memory-backed volume, because there are keys in it.
    #[arg(long, default_value = "/var/run/osm-relay")]
    directory: PathBuf,
    /// Most bytes to keep. The volume must have room for two and a half times as many.
    #[arg(long, default_value_t = Limits::default().bytes)]
    max_bytes: u64,
    /// Port of the pages /health/alive and /metrics.
    #[arg(long, default_value_t = 15905)]
    port: u16,
}

/// What the streams share.
struct Relay {
    controller: Controller,
    keeper: Mutex<Keeper>,
    /// A connection that was made to find out whether a controller answers.
    spare: Mutex<Option<Connection>>,
    retry: Mutex<Retry>,
    /// The number of the newest stream. Older ones end: there is one proxy.
    turn: watch::Sender<u64>,
    state: State,
}

impl Relay {
    /// A connection to a controller: the spare one if it still lives.
    async fn connection(&self) -> Result<Connection> {
        let spare = self.spare.lock().take();
        match spare.filter(Connection::is_open) {
            Some(connection) => Ok(connection),
            None => self.controller.connect().await,
        }
    }

    /// Returns when a controller can be connected to.
    async fn reach(&self) {
        loop {
            let wait = self.retry.lock().next_wait();
            tokio::time::sleep(wait).await;
            if let Ok(connection) = self.controller.connect().await {
                *self.spare.lock() = Some(connection);
                return;
            }
        }
    }
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    // Whatever is made here is nobody else's: the socket and the file with the keys.
    umask(Mode::from_bits_truncate(0o077));
    // The keys pass through its memory: no core dump, by file or by pipe.
    let forbidden = setrlimit(Resource::RLIMIT_CORE, 0, 0).and_then(|()| prctl::set_dumpable(false));
    if let Err(error) = forbidden {
        println!("if this process crashes, the keys of this pod may be left in a core dump: {error}");
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        // Names are looked up there, one at a time.
        .max_blocking_threads(2)
        .build()
        .context("starting the runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Arguments) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let limits = Limits {
        bytes: arguments.max_bytes,
        ..Limits::default()
    };
    let keeper = Keeper::open(&arguments.directory, limits);
    println!("{}", keeper.summary());
    let relay = Arc::new(Relay {
        controller: Controller::new(
            &arguments.controller,
            &arguments.server_name,
            arguments.certificates,
        )?,
        keeper: Mutex::new(keeper),
        spare: Mutex::default(),
        retry: Mutex::new(Retry::default()),
        turn: watch::Sender::default(),
        state: State::default(),
    });
    let socket = arguments.directory.join(RELAY_SOCKET);
    tokio::select! {
        error = proxy::serve(&socket, &relay) => error.context("serving the proxy"),
        error = page::serve(arguments.port, &relay) => error.context("serving health and metrics"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
