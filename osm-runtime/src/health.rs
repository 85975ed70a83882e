//! Whether the process is usable (readiness) and whether it still turns (liveness).
//!
//! Owns named conditions and heartbeats. Invariants (law 8): ready means every condition is; a condition that was
//! registered is not ready until it says so; liveness depends on the process's own loops alone, never on the API
//! server.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

/// The health of a process. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    conditions: Mutex<BTreeMap<&'static str, Option<String>>>,
    heartbeats: Mutex<Vec<Pulse>>,
    ready: watch::Sender<bool>,
}

#[derive(Debug)]
struct Pulse {
    name: &'static str,
    max_silence: Duration,
    last: Arc<AtomicU64>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Nothing registered: ready and alive.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                started: Instant::now(),
                conditions: Mutex::default(),
                heartbeats: Mutex::default(),
                ready: watch::channel(true).0,
            }),
        }
    }

    /// Registers a condition of readiness, not ready as of now. Registering a name again takes it over.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            shared: self.shared.clone(),
        };
        condition.set_not_ready("starting");
        condition
    }

    /// Registers a loop that promises a [`Heartbeat::beat`] at least every `max_silence`. One that ends without
    /// [`Heartbeat::finish`], a panic included, is missed from then on.
    pub fn heartbeat(&self, name: &'static str, max_silence: Duration) -> Heartbeat {
        let last = Arc::new(AtomicU64::new(self.shared.now()));
        self.shared.heartbeats.lock().push(Pulse {
            name,
            max_silence,
            last: last.clone(),
        });
        Heartbeat {
            last,
            shared: self.shared.clone(),
        }
    }

    /// What keeps the process from being ready, by condition; empty when it is ready.
    pub fn not_ready(&self) -> Vec<(&'static str, String)> {
        let conditions = self.shared.conditions.lock();
        conditions
            .iter()
            .filter_map(|(name, reason)| Some((*name, reason.clone()?)))
            .collect()
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        *self.shared.ready.borrow()
    }

    /// Readiness as it changes.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.shared.ready.subscribe()
    }

    /// The loops that have been silent for too long, and for how long; empty when the process is alive.
    pub fn stuck(&self) -> Vec<(&'static str, Duration)> {
        let now = self.shared.now();
        let heartbeats = self.shared.heartbeats.lock();
        let silence =
            |pulse: &Pulse| Duration::from_millis(now.saturating_sub(pulse.last.load(Ordering::Relaxed)));
        let late = |pulse: &Pulse| silence(pulse) > pulse.max_silence;
        heartbeats
            .iter()
            .filter(|pulse| late(pulse))
            .map(|pulse| (pulse.name, silence(pulse)))
            .collect()
    }
}

impl Shared {
    /// Milliseconds since the process started. The monotonic clock: a jump of the wall clock kills nobody.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn set(&self, name: &'static str, reason: Option<String>) {
        let mut conditions = self.conditions.lock();
        let before = conditions.insert(name, reason.clone());
        if before.as_ref() != Some(&reason) {
            match &reason {
                None => tracing::info!(condition = name, "ready"),
                Some(reason) => tracing::info!(condition = name, reason, "not ready"),
            }
        }
        let ready = conditions.values().all(Option::is_none);
        self.ready
            .send_if_modified(|current| std::mem::replace(current, ready) != ready);
    }
}

/// One condition of readiness. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    shared: Arc<Shared>,
}

impl Condition {
    /// The condition holds.
    pub fn set_ready(&self) {
        self.shared.set(self.name, None);
    }

    /// The condition does not hold; `reason` is shown to whoever asks, so it holds no secret.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.shared.set(self.name, Some(reason.into()));
    }
}

/// The pulse of one loop.
#[derive(Debug)]
pub struct Heartbeat {
    last: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Heartbeat {
    /// The loop turned.
    pub fn beat(&self) {
        self.last.store(self.shared.now(), Ordering::Relaxed);
    }

    /// The loop ends as it should and is not missed.
    pub fn finish(self) {
        let mut heartbeats = self.shared.heartbeats.lock();
        heartbeats.retain(|pulse| !Arc::ptr_eq(&pulse.last, &self.last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_condition_is() {
        let health = Health::new();
        assert!(health.is_ready());
        let (caches, tls) = (health.condition("caches"), health.condition("tls"));
        assert!(!health.is_ready());
        caches.set_ready();
        tls.set_ready();
        assert!(health.is_ready());
        tls.set_not_ready("expired");
        assert_eq!(health.not_ready(), [("tls", "expired".to_owned())]);
        assert!(!*health.ready().borrow());
    }

    #[test]
    fn a_silent_loop_is_missed_unless_it_finished() {
        let health = Health::new();
        let (turning, stuck) = (
            health.heartbeat("turning", Duration::from_secs(60)),
            Duration::ZERO,
        );
        let silent = health.heartbeat("silent", stuck);
        let done = health.heartbeat("done", stuck);
        done.finish();
        drop(silent);
        std::thread::sleep(Duration::from_millis(5));
        turning.beat();
        let names: Vec<_> = health.stuck().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["silent"]);
    }
}
