//! Kubernetes Events: what operators should see next to their objects.
//!
//! Invariants: reporting never waits and never fails the work it reports on; the same news about one object is one
//! Event that counts; the rate is bounded, and what is beyond it is dropped and counted.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event as KubeEvent, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{CALL, ClientError, within},
    metrics::Metrics,
};

/// News waiting to be written.
const QUEUE: usize = 256;
/// Events remembered, so that a repetition counts up instead of making another.
const REMEMBERED: usize = 512;
/// For how long.
const FORGET: Duration = Duration::from_secs(600);
/// How soon a repetition may be counted up.
const REPEAT: Duration = Duration::from_secs(30);
/// Writes at once after a quiet time, and then one each [`PACE`].
const BURST: u32 = 25;
/// Time between writes when there are many.
const PACE: Duration = Duration::from_secs(1);
/// The API server's bound on the length of a note.
const MAX_NOTE: usize = 1_024;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// For information.
    Normal,
    /// Somebody should look.
    Warning,
}

/// News about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The object: its namespace, name and kind at least (`kube::Resource::object_ref`).
    pub object: ObjectReference,
    /// How bad it is.
    pub severity: Severity,
    /// One word in CamelCase, at most 128 bytes.
    pub reason: &'static str,
    /// A sentence: what is wrong, and what to do. No secrets. Cut at 1,024 bytes.
    pub note: String,
}

/// Takes news and writes them from a task of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<News>,
    dropped: Counter,
}

impl Events {
    /// Starts writing, until `stop`. `component` is the program, `instance` the pod.
    pub fn start(
        client: Client,
        component: &'static str,
        instance: &str,
        metrics: &Metrics,
        stop: CancellationToken,
    ) -> Self {
        let (queue, news) = mpsc::channel(QUEUE);
        let dropped = Counter::default();
        let help = "Events that were not written because there were too many";
        metrics.register(|registry| registry.register("osm_events_dropped", help, dropped.clone()));
        let writer = Writer {
            client,
            component,
            instance: instance.to_owned(),
            written: VecDeque::new(),
        };
        tokio::spawn(async move {
            tokio::select! { () = writer.run(news) => {}, () = stop.cancelled() => {} }
        });
        Self { queue, dropped }
    }

    /// Reports news. Never waits: when too much is waiting already, they are dropped and counted.
    pub fn report(&self, news: News) {
        if self.queue.try_send(news).is_err() {
            self.dropped.inc();
        }
    }
}

struct Written {
    news: News,
    name: String,
    first: Timestamp,
    count: i32,
    at: Instant,
}

struct Writer {
    client: Client,
    component: &'static str,
    instance: String,
    written: VecDeque<Written>,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<News>) {
        let (mut tokens, mut filled) = (BURST, Instant::now());
        while let Some(mut news) = queue.recv().await {
            news.note.truncate(news.note.floor_char_boundary(MAX_NOTE));
            self.written.retain(|written| written.at.elapsed() < FORGET);
            let known = self.written.iter().position(|written| written.news == news);
            if let Some(known) = known
                && self.written[known].at.elapsed() < REPEAT
            {
                self.written[known].count = self.written[known].count.saturating_add(1);
                continue;
            }
            let refill = u32::try_from(filled.elapsed().as_secs() / PACE.as_secs()).unwrap_or(BURST);
            if refill > 0 {
                tokens = tokens.saturating_add(refill).min(BURST);
                filled = Instant::now();
            }
            if tokens == 0 {
                sleep(PACE).await;
            }
            tokens = tokens.saturating_sub(1);
            let outcome = match known {
                Some(known) => self.repeat(known).await,
                None => self.create(news).await,
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "an Event could not be written");
            }
        }
    }

    fn api(&self, news: &News) -> Api<KubeEvent> {
        // Events about objects of the cluster are kept in the namespace `default`.
        Api::namespaced(
            self.client.clone(),
            news.object.namespace.as_deref().unwrap_or("default"),
        )
    }

    async fn create(&mut self, news: News) -> Result<(), ClientError> {
        let now = Timestamp::now();
        let object = news.object.name.as_deref().unwrap_or(self.component);
        let name = format!(
            "{}.{:x}",
            &object[..object.floor_char_boundary(200)],
            now.as_nanosecond()
        );
        let severity = match news.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        let event = KubeEvent {
            action: Some(news.reason.to_owned()),
            event_time: Some(MicroTime(now)),
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(
                    news.object
                        .namespace
                        .clone()
                        .unwrap_or_else(|| "default".to_owned()),
                ),
                ..ObjectMeta::default()
            },
            note: Some(news.note.clone()),
            reason: Some(news.reason.to_owned()),
            regarding: Some(news.object.clone()),
            reporting_controller: Some(format!("openservicemesh.io/{}", self.component)),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(severity.to_owned()),
            ..KubeEvent::default()
        };
        within(CALL, self.api(&news).create(&PostParams::default(), &event)).await?;
        self.written.push_back(Written {
            news,
            name,
            first: now,
            count: 1,
            at: Instant::now(),
        });
        if self.written.len() > REMEMBERED {
            self.written.pop_front();
        }
        Ok(())
    }

    async fn repeat(&mut self, known: usize) -> Result<(), ClientError> {
        let written = &mut self.written[known];
        written.count = written.count.saturating_add(1);
        written.at = Instant::now();
        let series = EventSeries {
            count: written.count,
            last_observed_time: MicroTime(Timestamp::now()),
        };
        let (name, news) = (written.name.clone(), written.news.clone());
        tracing::debug!(event = name, since = %written.first, count = written.count, "an Event repeats");
        let patch = Patch::Merge(json!({ "series": series }));
        match within(
            CALL,
            self.api(&news).patch(&name, &PatchParams::default(), &patch),
        )
        .await
        {
            // The API server forgets Events after an hour.
            Err(error) if error.is_not_found() => {
                self.written.remove(known);
                self.create(news).await
            }
            outcome => outcome.map(drop),
        }
    }
}
