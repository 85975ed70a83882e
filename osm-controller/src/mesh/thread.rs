//! The engine's thread: takes in events in batches, publishes what they changed.
//!
//! Invariant: the only writer of the mesh. Nothing is published before all lists and the roots are in. A panic in the
//! engine ends this thread, which liveness notices: the process is restarted and computes everything anew.

use std::{
    collections::BTreeSet,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use osm_core::{
    facts::{Diagnostic, FactKind},
    mesh::{Engine, Event, Options},
};
use osm_runtime::{
    health::{Condition, Health, Heartbeat},
    metrics::Metrics,
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tokio::sync::mpsc;

use super::{
    Mesh,
    batch::{Pace, is_structural},
};

/// Events waiting for the engine. More make the watches wait.
const QUEUE: usize = 16 * 1024;
/// Most events of one batch.
const BATCH: usize = 256 * 1024;
/// How long the thread may be silent before the process counts as stuck. A cold start of a large mesh is one batch.
const SILENCE: Duration = Duration::from_secs(120);
/// How often an idle thread shows that it lives.
const PULSE: Duration = Duration::from_secs(5);

/// What the thread takes in.
#[derive(Debug)]
pub enum Input {
    /// Something happened.
    Event(Event),
    /// Nothing happened; show that you live.
    Pulse,
}

/// The way to the engine.
pub type Inputs = mpsc::Sender<Input>;

/// Metrics of the engine.
#[derive(Clone, Debug)]
pub struct EngineMetrics {
    batches: Counter,
    events: Counter,
    recomputed: Counter,
    published: Counter,
    queued: Gauge,
    problems: Gauge,
    duration: Histogram,
}

impl EngineMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self {
            batches: Counter::default(),
            events: Counter::default(),
            recomputed: Counter::default(),
            published: Counter::default(),
            queued: Gauge::default(),
            problems: Gauge::default(),
            duration: Histogram::new([0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]),
        };
        metrics.register(|registry| {
            registry.register(
                "osm_engine_batches",
                "Batches of events computed",
                new.batches.clone(),
            );
            registry.register("osm_engine_events", "Events taken in", new.events.clone());
            registry.register(
                "osm_engine_resources_built",
                "Resources built",
                new.recomputed.clone(),
            );
            registry.register(
                "osm_proxy_broadcast_event_count",
                "Snapshots published",
                new.published.clone(),
            );
            registry.register(
                "osm_events_queued",
                "Events waiting for the engine",
                new.queued.clone(),
            );
            registry.register(
                "osm_object_problems",
                "Objects with something wrong",
                new.problems.clone(),
            );
            registry.register(
                "osm_engine_batch_seconds",
                "Time to compute a batch",
                new.duration.clone(),
            );
        });
        new
    }
}

/// Starts the thread. It ends when all senders of [`Inputs`] are gone. New problems with objects go to `problems`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(
    options: Options,
    mesh: Mesh,
    health: &Health,
    metrics: EngineMetrics,
    problems: mpsc::Sender<Vec<Diagnostic>>,
) -> std::io::Result<(Inputs, JoinHandle<()>)> {
    let (inputs, receiver) = mpsc::channel(QUEUE);
    let thread = Thread {
        engine: Engine::new(options),
        mesh,
        missing: FactKind::ALL.into_iter().collect(),
        rooted: false,
        held: Vec::new(),
        pace: Pace::default(),
        heartbeat: health.heartbeat("engine", SILENCE),
        published: health.condition("mesh"),
        metrics,
        problems,
    };
    thread
        .published
        .set_not_ready("not all objects have been listed yet");
    let pulse = inputs.downgrade();
    tokio::spawn(async move {
        while let Some(inputs) = pulse.upgrade() {
            // A full queue needs no pulse.
            let _ = inputs.try_send(Input::Pulse);
            drop(inputs);
            tokio::time::sleep(PULSE).await;
        }
    });
    let handle = std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || thread.run(receiver))?;
    Ok((inputs, handle))
}

struct Thread {
    engine: Engine,
    mesh: Mesh,
    /// Kinds that have not been listed yet.
    missing: BTreeSet<FactKind>,
    rooted: bool,
    /// What came before everything was listed.
    held: Vec<Event>,
    pace: Pace,
    heartbeat: Heartbeat,
    published: Condition,
    metrics: EngineMetrics,
    problems: mpsc::Sender<Vec<Diagnostic>>,
}

impl Thread {
    fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        while let Some(batch) = self.gather(&mut inputs) {
            self.heartbeat.beat();
            if !batch.is_empty() {
                self.compute(batch);
            }
        }
        self.heartbeat.finish();
    }

    /// The next batch; empty if there was only a pulse, `None` when nobody sends any more.
    fn gather(&self, inputs: &mut mpsc::Receiver<Input>) -> Option<Vec<Event>> {
        let mut batch = match inputs.blocking_recv()? {
            Input::Event(event) => vec![event],
            Input::Pulse => return Some(Vec::new()),
        };
        let begun = Instant::now();
        loop {
            let structural = batch.iter().any(is_structural);
            let left = self.pace.window(structural).saturating_sub(begun.elapsed());
            std::thread::sleep(left);
            let before = batch.len();
            while batch.len() < BATCH
                && let Ok(input) = inputs.try_recv()
            {
                if let Input::Event(event) = input {
                    batch.push(event);
                }
            }
            let waits_longer = !structural && batch[before..].iter().any(is_structural);
            if !waits_longer || batch.len() >= BATCH {
                self.metrics
                    .queued
                    .set(i64::try_from(inputs.len()).unwrap_or(i64::MAX));
                return Some(batch);
            }
        }
    }

    fn compute(&mut self, batch: Vec<Event>) {
        for event in &batch {
            match event {
                Event::Reset { kind, .. } => drop(self.missing.remove(kind)),
                Event::Roots(_) => self.rooted = true,
                _ => {}
            }
        }
        self.metrics.events.inc_by(batch.len() as u64);
        self.held.extend(batch);
        if !self.missing.is_empty() || !self.rooted {
            let mut waits: Vec<_> = self.missing.iter().map(|kind| kind.name()).collect();
            if !self.rooted {
                waits.push("the root certificate");
            }
            self.published
                .set_not_ready(format!("waiting for {}", waits.join(", ")));
            return;
        }
        let begun = Instant::now();
        let change = self.engine.apply(std::mem::take(&mut self.held));
        let first = self.mesh.snapshot().is_none();
        if let Some(snapshot) = change
            .snapshot
            .or_else(|| first.then(|| self.engine.snapshot().clone()))
        {
            self.mesh.publish(snapshot, &change.classes);
            self.metrics.published.inc();
            self.published.set_ready();
        }
        self.mesh.set_control(self.engine.control());
        let cost = begun.elapsed();
        self.pace.spent(cost);
        self.metrics.batches.inc();
        self.metrics.recomputed.inc_by(change.recomputed as u64);
        self.metrics.duration.observe(cost.as_secs_f64());
        tracing::debug!(
            recomputed = change.recomputed,
            classes = change.classes.len(),
            micros = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX),
            "computed"
        );
        if !change.diagnostics.is_empty() || !self.mesh.problems().is_empty() {
            let all: Vec<_> = self.engine.diagnostics().cloned().collect();
            self.metrics
                .problems
                .set(i64::try_from(all.len()).unwrap_or(i64::MAX));
            self.mesh.set_problems(all);
        }
        if !change.diagnostics.is_empty() {
            // Reports are a courtesy: nobody waits for them.
            let _ = self.problems.try_send(change.diagnostics);
        }
    }
}

#[cfg(test)]
mod tests {
    use osm_core::{facts::FactKey, identity::TrustDomain};

    use super::*;

    fn listed(kind: FactKind) -> Input {
        Input::Event(Event::Reset {
            kind,
            facts: Vec::new(),
            malformed: Vec::new(),
        })
    }

    #[tokio::test]
    async fn nothing_is_published_before_everything_is_known() {
        let (mesh, health) = (Mesh::new(), Health::new());
        let options = Options {
            mesh_name: "osm".into(),
            osm_namespace: "osm-system".into(),
            trust_domain: TrustDomain::default(),
        };
        let metrics = EngineMetrics::register(&Metrics::new());
        let (problems, _found) = mpsc::channel(1);
        let (inputs, thread) = start(options, mesh.clone(), &health, metrics, problems).unwrap();
        let mut publications = mesh.publications();
        for kind in FactKind::ALL {
            inputs.send(listed(kind)).await.unwrap();
        }
        let gone = FactKey::new(FactKind::Pod, "shop", "gone");
        inputs.send(Input::Event(Event::Remove(gone))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(mesh.snapshot().is_none());
        assert!(
            health.not_ready()[0].1.contains("root certificate"),
            "{:?}",
            health.not_ready()
        );
        inputs
            .send(Input::Event(Event::Roots("roots".into())))
            .await
            .unwrap();
        publications.changed().await.unwrap();
        assert!(mesh.snapshot().is_some());
        drop(inputs);
        tokio::task::spawn_blocking(move || thread.join())
            .await
            .unwrap()
            .unwrap();
        assert!(health.is_ready());
    }
}
