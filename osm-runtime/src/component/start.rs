//! A component before it knows the cluster: it can be probed, and it can listen.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use axum::Router;
use osm_core::api::ports;
use parking_lot::Mutex;
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use tokio::{net::TcpListener, time::sleep};

use super::{Component, Flags};
use crate::{
    admin::{Admin, Version},
    client::{self, ClientError},
    event::Events,
    health::{Condition, Health, Heartbeat},
    metrics::Metrics,
    serve::ServeMetrics,
    shutdown::Shutdown,
    status::Status,
    watch::{ThreadError, WatchMetrics},
};

/// The build. Its commit and date are what `OSM_GIT_COMMIT` and `OSM_BUILD_DATE` were when it was compiled.
pub const VERSION: Version = Version {
    version: concat!("v", env!("CARGO_PKG_VERSION")),
    git_commit: match option_env!("OSM_GIT_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
    build_date: match option_env!("OSM_BUILD_DATE") {
        Some(date) => date,
        None => "unknown",
    },
};

/// How long streams and reviews may stand still, all of them, until the process counts as dead. What thousands of sidecars
/// that come at once make a task wait is seconds.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Why a component cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound: another process has it, or the host lacks it.
    #[error("cannot listen on {address} ({purpose})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// There is no way to a cluster.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// There is no thread for watches.
    #[error(transparent)]
    Watches(#[from] ThreadError),
}

/// A component that is being started: [`Start::new`], [`Start::listen`] for each of its ports, [`Start::connect`].
pub struct Start {
    name: &'static str,
    pod: String,
    namespace: String,
    address: IpAddr,
    kubeconfig: Option<PathBuf>,
    shutdown_delay: Duration,
    listeners: Condition,
    admin: JoinHandle<()>,
    health: Health,
    metrics: Metrics,
    shutdown: Shutdown,
    status: Status,
    serve_metrics: ServeMetrics,
}

impl Start {
    /// Answers probes from now on, as not ready, and no longer as alive when the runtime this is called on does not turn for
    /// 30 s. `name` is the component's, `pod` the one it runs in; `pages` are served
    /// beside probes, metrics, version and status.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn new(name: &'static str, pod: &str, flags: &Flags, pages: Router) -> Result<Self, StartError> {
        let (health, metrics, shutdown) = (Health::new(), Metrics::new(), Shutdown::new());
        tokio::spawn(turn(health.heartbeat("runtime", STANDSTILL), STANDSTILL / 30));
        // Registered before the first probe can find the process ready.
        let listeners = health.condition("listeners");
        listeners.set_not_ready("there is no root certificate yet");
        let serve_metrics = ServeMetrics::register(&metrics);
        register_version(&metrics);
        let status = Status::new(name, VERSION.version, pod, &health);
        let admin = Admin {
            health: health.clone(),
            metrics: metrics.clone(),
            version: VERSION,
            more: pages.merge(status.clone().router()),
        };
        let address = SocketAddr::new(flags.address(), ports::ADMIN);
        let (_, admin) = admin
            .spawn(address, serve_metrics.clone(), shutdown.stop.clone())
            .map_err(|source| StartError::Listen {
                address,
                purpose: "health and metrics",
                source,
            })?;
        Ok(Self {
            name,
            pod: pod.to_owned(),
            namespace: flags.osm_namespace.clone(),
            address: flags.address(),
            kubeconfig: flags.kubeconfig.clone(),
            shutdown_delay: flags.shutdown_delay,
            listeners,
            admin,
            health,
            metrics,
            shutdown,
            status,
            serve_metrics,
        })
    }

    /// Binds `port`, which is for `purpose`. Connections wait until somebody accepts them.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub async fn listen(&self, port: u16, purpose: &'static str) -> Result<TcpListener, StartError> {
        let address = SocketAddr::new(self.address, port);
        TcpListener::bind(address)
            .await
            .map_err(|source| StartError::Listen {
                address,
                purpose,
                source,
            })
    }

    /// Finds the way to the cluster. Nothing is sent yet: an API server that is down keeps nobody from starting.
    ///
    /// # Errors
    /// [`StartError::Client`].
    pub async fn connect(self) -> Result<Component, StartError> {
        let agent = format!("{}/{}", self.name, env!("CARGO_PKG_VERSION"));
        let client = client::connect(&agent, self.kubeconfig.clone()).await?;
        let watch_metrics = WatchMetrics::register(&self.metrics);
        self.status.follow_watches(&watch_metrics);
        let stop = self.shutdown.stop.clone();
        let events = Events::start(client.clone(), self.name, &self.pod, &self.metrics, stop);
        Ok(Component {
            name: self.name,
            pod: self.pod,
            namespace: self.namespace,
            shutdown_delay: self.shutdown_delay,
            listeners: self.listeners,
            admin: Arc::new(Mutex::new(Some(self.admin))),
            health: self.health,
            metrics: self.metrics,
            shutdown: self.shutdown,
            status: self.status,
            serve_metrics: self.serve_metrics,
            agent,
            kubeconfig: self.kubeconfig,
            client,
            watch_metrics,
            events,
        })
    }
}

fn register_version(metrics: &Metrics) {
    let labels = [
        ("version", VERSION.version),
        ("build_date", VERSION.build_date),
        ("git_commit", VERSION.git_commit),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let info = Family::<Vec<(String, String)>, Gauge>::default();
    info.get_or_create(&labels.to_vec()).set(1);
    metrics.register(|registry| registry.register("osm_version_info", "The build", info));
}

/// Probes are answered by a thread of their own: this tells them, at each `interval`, that the others still run.
async fn turn(heartbeat: Heartbeat, interval: Duration) {
    loop {
        heartbeat.beat();
        sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_that_stands_still_is_noticed_until_it_turns_again() {
        let (health, silence) = (Health::new(), Duration::from_millis(200));
        tokio::spawn(turn(health.heartbeat("runtime", silence), silence / 20));
        sleep(silence * 2).await;
        assert_eq!(health.stuck(), []);
        // The runtime has one thread, which is this one.
        std::thread::sleep(silence * 2);
        assert_eq!(health.stuck().len(), 1);
        sleep(silence).await;
        assert_eq!(health.stuck(), []);
    }
}
