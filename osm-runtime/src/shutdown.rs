//! Leaving gently (law 9): not ready, wait for the endpoint to go, drain, stop, and a hard cap on all of it.
//!
//! Owns the order and the two tokens. Invariant: what must stay while connections drain (watches, renewals, the
//! Lease) is told to stop only after every tracked server is done or the drain's time is over.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::health::Health;

/// How long each stage may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From not ready until servers stop accepting: time for the endpoint to disappear everywhere.
    pub delay: Duration,
    /// For servers to finish what they have.
    pub drain: Duration,
    /// For everything else to finish. After that the process ends whatever is left.
    pub stop: Duration,
}

impl Default for Timing {
    /// In all well under the chart's terminationGracePeriodSeconds of 60.
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(5),
            drain: Duration::from_secs(25),
            stop: Duration::from_secs(5),
        }
    }
}

/// The tokens that tell the process's parts to leave. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Servers: accept nothing new, let connections go.
    pub drain: CancellationToken,
    /// Everything else.
    pub stop: CancellationToken,
    /// Servers, spawned here, are waited for while draining.
    pub servers: TaskTracker,
    /// Other tasks that have something to finish (releasing a Lease), spawned here, are waited for at the end.
    pub tasks: TaskTracker,
}

impl Shutdown {
    /// Nothing is leaving yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for SIGTERM or SIGINT, or for `failure` (a part the process cannot do without has ended), then goes
    /// through the stages. A second signal ends the wait of the stage it comes in.
    ///
    /// # Errors
    /// When the signals cannot be listened for.
    pub async fn run(
        &self,
        health: &Health,
        timing: Timing,
        failure: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => tracing::info!("asked to leave"),
            _ = interrupt.recv() => tracing::info!("interrupted"),
            () = failure => tracing::error!("a part of the process has ended; leaving"),
        }
        #[cfg(feature = "sabotage")]
        if osm_core::sabotage::Fault::NoDrain.is_on() {
            std::process::exit(0);
        }
        self.stages(health, timing, async || {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        })
        .await;
        Ok(())
    }

    async fn stages(&self, health: &Health, timing: Timing, mut hurry: impl AsyncFnMut()) {
        health.condition("running").set_not_ready("shutting down");
        let mut wait =
            async |stage: &str, limit: Duration, done: &mut (dyn Future<Output = ()> + Send + Unpin)| {
                tokio::select! {
                    () = done => {}
                    () = tokio::time::sleep(limit) => tracing::info!(stage, "time is up"),
                    () = hurry() => tracing::info!(stage, "hurrying"),
                }
            };
        wait(
            "delay",
            timing.delay + Duration::from_millis(1),
            &mut Box::pin(tokio::time::sleep(timing.delay)),
        )
        .await;
        self.drain.cancel();
        self.servers.close();
        wait("drain", timing.drain, &mut Box::pin(self.servers.wait())).await;
        self.stop.cancel();
        self.tasks.close();
        wait("stop", timing.stop, &mut Box::pin(self.tasks.wait())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn stages_come_in_order_and_the_cap_holds() {
        let (health, shutdown) = (Health::new(), Shutdown::new());
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let (order, health) = (order.clone(), health.clone());
            move || {
                assert!(!health.is_ready());
                order.lock().unwrap().push(what);
            }
        };
        let (drain, stop, drained, stopped) = (
            shutdown.drain.clone(),
            shutdown.stop.clone(),
            note("drained"),
            note("stopped"),
        );
        shutdown.servers.spawn(async move {
            drain.cancelled().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            drained();
        });
        shutdown.tasks.spawn(async move {
            stop.cancelled().await;
            stopped();
            std::future::pending::<()>().await;
        });
        let begin = tokio::time::Instant::now();
        let second = Duration::from_secs(1);
        let timing = Timing {
            delay: second / 10,
            drain: 30 * second,
            stop: second / 10,
        };
        shutdown
            .stages(&health, timing, async || std::future::pending().await)
            .await;
        assert_eq!(*order.lock().unwrap(), ["drained", "stopped"]);
        assert!(
            (400..25_000).contains(&begin.elapsed().as_millis()),
            "{:?}",
            begin.elapsed()
        );
    }
}
