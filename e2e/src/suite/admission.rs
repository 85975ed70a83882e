//! Pods that are made while no injector answers.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::SETTINGS;
use crate::harness::runner::has_sidecar;
use crate::harness::wait::SETTLED;
use crate::harness::{Case, Mesh, Workload, eventually};

const INJECTOR: &str = "osm-injector";
/// How long the injectors may take to end what they were doing.
const GONE: Duration = Duration::from_secs(90);

/// Without an injector a pod of the mesh is refused and the refusal names the webhook; where the operator chose `Ignore`,
/// it is admitted without a sidecar. Either way an upgrade brings the injectors back, and sidecars with them.
pub(super) async fn absent_injectors(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    let namespace = case.namespace("all").await?;
    let workload = Workload::client("pod");
    mesh.kubernetes
        .apply(&[workload.service_account(&namespace)])
        .await?;
    let pod = workload.pod(&namespace, &mesh.images.demo);
    has_one_when_made(mesh, &pod, true).await?;

    let checks = async {
        mesh.scale(INJECTOR, 0, GONE).await?;
        let Err(error) = mesh.kubernetes.dry_run(&pod).await else {
            bail!("a pod of the mesh was admitted though no injector is there")
        };
        let text = format!("{error:#}");
        ensure!(text.contains("osm-inject.k8s.io"), "it was refused with: {text}");

        configure(mesh, &["injector.failurePolicy=Ignore"]).await?;
        // It is the choice of the one case only: whoever can have a sidecar gets one.
        has_one_when_made(mesh, &pod, true).await?;
        ensure!(
            failure_policy(mesh).await? == "Ignore",
            "the injectors changed it to {}",
            failure_policy(mesh).await?
        );
        mesh.scale(INJECTOR, 0, GONE).await?;
        has_one_when_made(mesh, &pod, false).await
    };
    let result = checks.await;
    // Whatever came of it, the others need the mesh as it was.
    let restored = configure(mesh, &[]).await;
    result.and(restored)?;
    ensure!(failure_policy(mesh).await? == "Fail", "it is not closed again");
    has_one_when_made(mesh, &pod, true).await
}

/// Upgrades the mesh of the tests with further settings, and waits for its two injectors.
async fn configure(mesh: &Mesh, settings: &[&str]) -> Result<()> {
    let arguments = mesh.upgrade_arguments(&[SETTINGS, settings].concat());
    mesh.osm_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
    mesh.component_ready(INJECTOR, 2, SETTLED).await
}

/// Waits until a pod that is made is admitted with a sidecar, or without one.
async fn has_one_when_made(mesh: &Mesh, pod: &Value, expected: bool) -> Result<()> {
    // For a moment the API server may still call by what it knew before.
    eventually("the pod to be admitted", SETTLED, async || {
        let made = mesh.kubernetes.dry_run(pod).await?;
        ensure!(
            has_sidecar(&serde_json::from_value(made)?) == expected,
            "it {} a sidecar",
            if expected { "did not get" } else { "got" }
        );
        Ok(())
    })
    .await
}

/// What the API server does when it cannot call the injectors.
async fn failure_policy(mesh: &Mesh) -> Result<String> {
    let configurations = mesh
        .kubernetes
        .list(
            "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
            None,
            "app.kubernetes.io/name=openservicemesh.io",
        )
        .await?;
    let policy = configurations
        .first()
        .and_then(|configuration| configuration.pointer("/webhooks/0/failurePolicy"))
        .and_then(Value::as_str);
    Ok(policy
        .context("there is no webhook with a failure policy")?
        .to_owned())
}
