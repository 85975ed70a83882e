//! Waiting until an installed mesh is usable, and saying what is in the way when it does not become so.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerState, Event, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, LogParams, PostParams};
use osm_core::api::{MeshConfig, MeshRootCertificate, labels, names};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, chain, is_ready};
use crate::progress::Step;

const POLL: Duration = Duration::from_millis(500);
/// How many lines of a crashed container's log are shown.
const LOG_LINES: i64 = 5;
/// How many warning events are shown.
const MAX_EVENTS: usize = 8;
/// Name of an object that is only ever written in a dry run.
const PROBE: &str = "osm-install-probe";
/// How the API server begins to say that it could not call a webhook.
const WEBHOOK_NOT_CALLED: &str = "failed calling webhook";

/// What is waited for.
pub(crate) struct Rollout<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) namespace: &'a str,
    /// Deployments, and the fewest replicas each is to have.
    pub(crate) components: Vec<(&'static str, i32)>,
    pub(crate) mutating_webhook: String,
    pub(crate) validating_webhook: String,
}

impl Rollout<'_> {
    /// Waits until every component is rolled out, the webhooks can be called and the settings can be changed.
    pub(crate) async fn wait(&self, timeout: Duration) -> Result<()> {
        let mut step = Step::begin("Waiting for the control plane");
        let deadline = Instant::now() + timeout;
        loop {
            let unanswered = match self.look().await {
                Ok(states) => {
                    let text: Vec<String> = states.iter().map(|(text, _)| text.clone()).collect();
                    step.update(&text.join(", "));
                    if states.iter().all(|(_, done)| *done) {
                        step.done();
                        return Ok(());
                    }
                    None
                }
                Err(error) => Some(error),
            };
            if Instant::now() > deadline {
                step.failed();
                self.explain().await;
                if let Some(error) = unanswered {
                    return Err(
                        error.context("The API server did not answer while the control plane was starting")
                    );
                }
                bail!(
                    "The control plane in namespace [{}] was not usable within {}: see what is in its way above, \
                     or give it longer with --timeout",
                    self.namespace,
                    humane(timeout)
                );
            }
            sleep(POLL).await;
        }
    }

    /// How far each part is, and whether it is done.
    async fn look(&self) -> Result<Vec<(String, bool)>> {
        let deployments = Api::<Deployment>::namespaced(self.cluster.client.clone(), self.namespace);
        let mut states = Vec::new();
        for (name, fewest) in &self.components {
            let deployment = deployments
                .get(name)
                .await
                .with_context(|| format!("Could not read Deployment {name}"))?;
            let wanted = deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .unwrap_or(1)
                .max(*fewest);
            let status = deployment.status.clone().unwrap_or_default();
            let observed = status.observed_generation >= deployment.metadata.generation;
            let updated = status.updated_replicas.unwrap_or(0);
            let available = status.available_replicas.unwrap_or(0);
            let old = status.replicas.unwrap_or(0) - updated;
            let ready = available.min(updated);
            let done = observed && updated >= wanted && available >= wanted && old <= 0;
            states.push((format!("{name} {ready}/{wanted} ready"), done));
        }
        if states.iter().all(|(_, done)| *done) {
            let done = self.webhooks_filled().await?;
            states.push((
                format!("webhooks {}", if done { "ready" } else { "without CA bundle" }),
                done,
            ));
            let done = self.is_configured().await?;
            states.push((
                format!("MeshConfig {}", if done { "there" } else { "not there yet" }),
                done,
            ));
        }
        // Last, and only then: the calls are answered by what has been waited for until here.
        if states.iter().all(|(_, done)| *done) {
            for (component, labels) in [
                ("validator", None),
                ("injector", Some((labels::PROBE, "injector"))),
            ] {
                let done = self.is_reached(labels).await?;
                states.push((
                    format!("{component} {}", if done { "answers" } else { "not reached yet" }),
                    done,
                ));
            }
        }
        Ok(states)
    }

    /// Whether the API server reaches a webhook: for a moment after a pod is ready its Service may lead nowhere, and
    /// what is applied right after the installation would be refused.
    async fn is_reached(&self, label: Option<(&str, &str)>) -> Result<bool> {
        // As the schema wants it: the API server calls validators only for what that lets through.
        let provider =
            json!({ "tresor": { "ca": { "secretRef": { "name": PROBE, "namespace": self.namespace } } } });
        let spec = serde_json::from_value(json!({ "role": "inactive", "provider": provider }))?;
        let mut probe = MeshRootCertificate::new(PROBE, spec);
        probe.metadata.labels = label.map(|(key, value)| [(key.to_owned(), value.to_owned())].into());
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let certificates =
            Api::<MeshRootCertificate>::namespaced(self.cluster.client.clone(), self.namespace);
        match certificates.create(&dry, &probe).await {
            // Taken or refused, by the webhook or by the rights of this user: nothing is left to wait for.
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) => Ok(!status.message.contains(WEBHOOK_NOT_CALLED)),
            Err(error) => Err(error).context("Could not ask the API server to call a webhook"),
        }
    }

    /// Whether the controllers have made the MeshConfig: scripts change it as soon as the mesh is installed.
    async fn is_configured(&self) -> Result<bool> {
        let configs = Api::<MeshConfig>::namespaced(self.cluster.client.clone(), self.namespace);
        let found = configs.get_metadata_opt(names::MESH_CONFIG).await;
        Ok(found.context("Could not read the MeshConfig")?.is_some())
    }

    /// Whether the components have written their CA bundles into the webhook configurations.
    async fn webhooks_filled(&self) -> Result<bool> {
        let client = &self.cluster.client;
        let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone())
            .get(&self.mutating_webhook)
            .await?;
        let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone())
            .get(&self.validating_webhook)
            .await?;
        let configs = mutating
            .webhooks
            .iter()
            .flatten()
            .map(|webhook| &webhook.client_config);
        let configs = configs.chain(
            validating
                .webhooks
                .iter()
                .flatten()
                .map(|webhook| &webhook.client_config),
        );
        Ok(configs.into_iter().all(|config| {
            config
                .ca_bundle
                .as_ref()
                .is_some_and(|bundle| !bundle.0.is_empty())
        }))
    }

    /// Prints the states and events of pods that are not ready.
    async fn explain(&self) {
        for line in self
            .obstacles()
            .await
            .unwrap_or_else(|error| vec![format!("{error:#}")])
        {
            eprintln!("  {line}");
        }
    }

    async fn obstacles(&self) -> Result<Vec<String>> {
        let components: Vec<&str> = self.components.iter().map(|(name, _)| *name).collect();
        let selector = format!("{} in ({})", labels::APP, components.join(","));
        let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), self.namespace);
        let list = pods
            .list(&ListParams::default().labels(&selector))
            .await
            .context("Could not list the pods")?;
        let mut lines = Vec::new();
        if list.items.is_empty() {
            lines.push("there are no pods yet".to_owned());
        }
        for pod in list.iter().filter(|pod| !is_ready(pod)) {
            lines.push(format!("pod {}: {}", pod.name_any(), state(pod)));
            if let Some(previous) = crashed(pod) {
                let params = LogParams {
                    previous,
                    tail_lines: Some(LOG_LINES),
                    ..LogParams::default()
                };
                if let Ok(log) = pods.logs(&pod.name_any(), &params).await {
                    lines.extend(log.lines().map(|line| format!("    | {line}")));
                }
            }
        }
        let events = Api::<Event>::namespaced(self.cluster.client.clone(), self.namespace);
        let params = ListParams::default().fields("type=Warning");
        let mut warnings = events
            .list(&params)
            .await
            .context("Could not list the events")?
            .items;
        warnings.sort_by(|one, other| other.last_timestamp.cmp(&one.last_timestamp));
        let mut seen = BTreeSet::new();
        for event in warnings {
            let name = event.involved_object.name.unwrap_or_default();
            let reason = event.reason.unwrap_or_default();
            let component = components.iter().find(|component| name.starts_with(**component));
            // The newest of a kind says it.
            if component
                .is_some_and(|component| seen.len() < MAX_EVENTS && seen.insert((*component, reason.clone())))
            {
                lines.push(format!(
                    "event about {name}: {reason}: {}",
                    event.message.unwrap_or_default()
                ));
            }
        }
        Ok(lines)
    }
}

/// Waits until no pod of the control plane is left.
pub(crate) async fn wait_for_deletion(cluster: &Cluster, namespace: &str, timeout: Duration) -> Result<()> {
    let selector = format!("{} in ({},{})", labels::APP, names::CONTROLLER, names::INJECTOR);
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    let deadline = Instant::now() + timeout;
    let mut step = Step::begin("Waiting for the control plane to go");
    loop {
        match pods.list_metadata(&ListParams::default().labels(&selector)).await {
            Ok(list) if list.items.is_empty() => {
                step.done();
                return Ok(());
            }
            Ok(list) => step.update(&format!("{} pods left", list.items.len())),
            Err(error) => step.update(&chain(&error)),
        }
        if Instant::now() > deadline {
            step.failed();
            bail!(
                "Pods of the control plane are still in namespace [{namespace}] after {}",
                humane(timeout)
            );
        }
        sleep(POLL).await;
    }
}

/// Why a pod is not ready.
fn state(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "unknown".to_owned();
    };
    let mut parts = vec![status.phase.clone().unwrap_or_default()];
    for condition in status.conditions.iter().flatten() {
        if condition.type_ == "PodScheduled" && condition.status == "False" {
            parts.push(condition.message.clone().unwrap_or_default());
        }
    }
    for container in status.container_statuses.iter().flatten() {
        if let Some(text) = container.state.as_ref().and_then(describe) {
            parts.push(text);
        } else if !container.ready {
            parts.push("running, but not ready".to_owned());
        }
        if container.restart_count > 0 {
            parts.push(format!("restarted {} times", container.restart_count));
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join(": ")
}

/// What holds a container up.
fn describe(state: &ContainerState) -> Option<String> {
    if let Some(waiting) = &state.waiting {
        let message = waiting
            .message
            .as_deref()
            .map(|text| format!(" ({text})"))
            .unwrap_or_default();
        return Some(format!(
            "{}{message}",
            waiting.reason.as_deref().unwrap_or("waiting")
        ));
    }
    state
        .terminated
        .as_ref()
        .map(|ended| format!("ended with status {}", ended.exit_code))
}

/// Whether a container of the pod crashed, and if so, whether its log is that of the previous one.
fn crashed(pod: &Pod) -> Option<bool> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let restarted = status.restart_count > 0;
    let ended = status
        .state
        .as_ref()
        .is_some_and(|state| state.terminated.is_some());
    (restarted || ended || status.state.as_ref().is_some_and(|state| state.running.is_some()))
        .then_some(restarted)
}

/// A duration for a person.
pub(crate) fn humane(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, 0) => format!("{minutes}m"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}
