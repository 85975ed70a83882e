//! What is counted of the watches of a process.
//!
//! Owns the metrics, and when each running watch last heard from the API server. A watch counts every event, so it holds
//! what it counts with: nothing is looked up for an event. Invariant: a watch that is not run is not missed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tokio::time::Instant;

use crate::metrics::Metrics;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Happened {
    kind: &'static str,
    what: &'static str,
}

/// When a watch last heard from the API server, by the monotonic clock; nothing if never.
type Heard = Arc<Mutex<Option<Instant>>>;

/// Metrics of the watches of a process.
#[derive(Clone, Debug, Default)]
pub struct WatchMetrics {
    events: Family<Happened, Counter>,
    restarts: Family<Happened, Counter>,
    proof_of_life: Family<Kind, Gauge>,
    /// Of each watch that runs.
    heard: Arc<Mutex<BTreeMap<&'static str, Heard>>>,
}

impl WatchMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register(
                "osm_watch_events",
                "Objects and changes received",
                new.events.clone(),
            );
            registry.register(
                "osm_watch_restarts",
                "Watches begun again, by reason",
                new.restarts.clone(),
            );
            let help = "Unix time of the last sign of life of a watch: an object, a change or a bookmark";
            registry.register("osm_watch_proof_of_life_seconds", help, new.proof_of_life.clone());
        });
        new
    }

    /// For how long each running watch has heard nothing from the API server, by kind: `None` if nothing ever. A
    /// bookmark comes about every minute, so more than a few minutes mean that the API server cannot be reached.
    pub fn silences(&self) -> Vec<(&'static str, Option<Duration>)> {
        let heard = self.heard.lock();
        let silence = |at: &Heard| at.lock().map(|at| at.elapsed());
        heard.iter().map(|(kind, at)| (*kind, silence(at))).collect()
    }

    /// What the watch `kind` counts with while it runs.
    pub(super) fn running(&self, kind: &'static str) -> Running {
        let heard = Heard::default();
        self.heard.lock().insert(kind, heard.clone());
        let count = |what| self.events.get_or_create_owned(&Happened { kind, what });
        Running {
            kind,
            upserts: count("upsert"),
            removals: count("remove"),
            malformed: count("malformed"),
            listed: count("list"),
            resets: count("reset"),
            proof_of_life: self.proof_of_life.get_or_create_owned(&Kind { kind }),
            heard,
            metrics: self.clone(),
        }
    }
}

/// What one watch counts with, until dropped.
pub(super) struct Running {
    kind: &'static str,
    /// Objects that are new or changed.
    pub(super) upserts: Counter,
    /// Objects that are gone.
    pub(super) removals: Counter,
    /// Objects that cannot be decoded.
    pub(super) malformed: Counter,
    /// Objects of lists.
    pub(super) listed: Counter,
    /// Whole lists.
    pub(super) resets: Counter,
    proof_of_life: Gauge,
    heard: Heard,
    metrics: WatchMetrics,
}

impl Running {
    /// The API server gave a sign of life.
    pub(super) fn alive(&self) {
        self.proof_of_life.set(jiff::Timestamp::now().as_second());
        *self.heard.lock() = Some(Instant::now());
    }

    /// The watch is begun again, for this reason.
    pub(super) fn restarted(&self, what: &'static str) {
        let kind = self.kind;
        self.metrics
            .restarts
            .get_or_create(&Happened { kind, what })
            .inc();
    }

    /// Something that changes whenever the server gave a sign of life.
    pub(super) fn progress(&self) -> (u64, i64) {
        let counters = [
            &self.upserts,
            &self.removals,
            &self.malformed,
            &self.listed,
            &self.resets,
        ];
        (
            counters.into_iter().map(Counter::get).sum(),
            self.proof_of_life.get(),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut heard = self.metrics.heard.lock();
        // Not what a newer watch of the kind counts with.
        if heard
            .get(self.kind)
            .is_some_and(|current| Arc::ptr_eq(current, &self.heard))
        {
            heard.remove(self.kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_each_watch_has_been_silent_is_known_while_it_runs() {
        let metrics = WatchMetrics::default();
        let (pods, nodes) = (metrics.running("pods"), metrics.running("nodes"));
        pods.alive();
        std::thread::sleep(Duration::from_millis(20));
        let silences = metrics.silences();
        let [("nodes", None), ("pods", Some(silence))] = silences.as_slice() else {
            panic!("{silences:?}")
        };
        assert!(*silence >= Duration::from_millis(20));
        pods.alive();
        drop(nodes);
        assert!(matches!(metrics.silences().as_slice(), [("pods", Some(now))] if now < silence));
        let again = metrics.running("pods");
        drop(pods);
        assert_eq!(metrics.silences(), [("pods", None)], "the newer one runs");
        drop(again);
        assert!(metrics.silences().is_empty(), "one that is not run is not missed");
    }
}
