//! What every component of the control plane begins and ends with.
//!
//! Owns the order of a start (no core dumps, then probes, then listeners, then the cluster) and of the end (servers, then
//! everything else, then probes). Must not know what a component is for. Invariants: probes are answered before anything
//! can wait; what peers call is bound before the cluster is spoken to, so that a port that is taken is said at once;
//! nobody is ready before [`Component::serving`].

mod flags;
mod start;
mod trust;

use std::{fmt, io, path::PathBuf, sync::Arc, thread::JoinHandle, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use flags::{Flags, go_duration, not_empty};
pub use start::{Start, StartError, VERSION};

use crate::{
    client,
    event::{Events, News, Severity},
    health::{Condition, Health},
    lease::{Election, campaign},
    log::{self, Verbosity},
    metrics::Metrics,
    serve::ServeMetrics,
    shutdown::{Shutdown, Timing},
    status::Status,
    watch::{WatchMetrics, WatchThread},
};

/// Runs a component's process: `run`, on a runtime of all cores, with a logger at `verbosity` and without core dumps. For
/// `main`, once the command line is read.
///
/// # Errors
/// What `run` ends with, or that the runtime cannot be made.
pub fn execute<F, E>(verbosity: Verbosity, run: impl FnOnce(log::Handle) -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>>,
    E: From<io::Error>,
{
    let log = log::init(verbosity);
    if let Err(error) = forbid_core_dumps() {
        tracing::warn!(%error, "if this process crashes, its keys may be left in a core dump");
    }
    // Streams, reviews and all else share the cores; probes and metrics have a thread of their own (`admin`).
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(log));
    // What is left (a connection that does not end, a call that hangs) does not keep the process.
    runtime.shutdown_background();
    result
}

/// The root's key, or a provider's token, is in this process's memory (law 11).
fn forbid_core_dumps() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // The limit does not hold where the kernel pipes dumps to a program. This does, and it keeps other processes of the
    // same user out of the memory.
    prctl::set_dumpable(false)
}

/// What a component works with, once it has started. Cheap to clone; all clones are of the one process.
#[derive(Clone)]
pub struct Component {
    name: &'static str,
    pod: String,
    namespace: String,
    shutdown_delay: Duration,
    listeners: Condition,
    /// How it connects.
    agent: String,
    kubeconfig: Option<PathBuf>,
    admin: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Readiness and liveness.
    pub health: Health,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// Tells the parts to leave.
    pub shutdown: Shutdown,
    /// What `/status` shows.
    pub status: Status,
    /// Where servers count.
    pub serve_metrics: ServeMetrics,
    /// The cluster.
    pub client: Client,
    /// Where watches count.
    pub watch_metrics: WatchMetrics,
    /// News for operators.
    pub events: Events,
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Component({})", self.pod)
    }
}

impl Component {
    /// Every listener answers from now on: nothing else that all components share keeps it from being ready.
    pub fn serving(&self) {
        self.listeners.set_ready();
    }

    /// A thread for watches that are told of every write of the cluster.
    ///
    /// # Errors
    /// [`StartError::Watches`].
    pub async fn watch_thread(&self) -> Result<WatchThread, StartError> {
        let (agent, kubeconfig) = (self.agent.clone(), self.kubeconfig.clone());
        let connect = async move { client::connect(&agent, kubeconfig).await };
        Ok(WatchThread::start(connect, self.shutdown.stop.clone()).await?)
    }

    /// Takes part in the election of the replica that does what must not be done twice, under the Lease of the
    /// component's name: whether it is this one.
    pub fn campaign(&self) -> watch::Receiver<bool> {
        let (lead, leader) = watch::channel(false);
        self.status.follow_leader(leader.clone());
        let (client, namespace) = (self.client.clone(), self.namespace.clone());
        let election = Election::new(self.name, &self.pod);
        let stop = self.shutdown.stop.clone();
        self.shutdown
            .tasks
            .spawn(async move { campaign(client, &namespace, election, lead, stop).await });
        leader
    }

    /// Warns of what is wrong with this replica, in an Event on its pod; `reason` and `note` are as in [`News`].
    pub fn warn(&self, reason: &'static str, note: &str) {
        self.events.report(News {
            object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(self.pod.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectReference::default()
            },
            severity: Severity::Warning,
            reason,
            note: note.to_owned(),
        });
    }

    /// Has `serve` start what the component is for; leaves when the process is told to, or when `serve` fails or panics.
    /// That `serve` ends well ends nothing.
    ///
    /// # Errors
    /// When signals cannot be listened for.
    pub async fn run<E>(self, serve: impl Future<Output = Result<(), E>> + Send + 'static) -> io::Result<()>
    where
        E: fmt::Display + Send + 'static,
    {
        let serving = tokio::spawn(Box::pin(serve));
        let failure = async {
            match serving.await {
                Ok(Ok(())) => std::future::pending().await,
                Ok(Err(error)) => tracing::error!(error = format!("{error:#}"), "cannot serve"),
                // The panic hook has told of it.
                Err(_) => {}
            }
        };
        let timing = Timing {
            delay: self.shutdown_delay,
            ..Timing::default()
        };
        self.shutdown.run(&self.health, timing, failure).await?;
        // The admin endpoint is the last to go; it was told to stop with everything else.
        let admin = self.admin.lock().take();
        if let Some(admin) = admin {
            let _ = tokio::task::spawn_blocking(move || admin.join()).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
