//! The flags of `osm install` that decide what happens when it goes wrong, and how much there is to be of everything.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::SETTINGS;
use crate::ground;
use crate::harness::mesh::{NAMESPACE, Outcome};
use crate::harness::wait::SETTLED;
use crate::harness::{Case, Mesh, eventually};

/// What the mesh has outside its namespace, by the label of all it has.
const CLUSTER_WIDE: [&str; 4] = [
    "admissionregistration.k8s.io/v1/MutatingWebhookConfiguration",
    "admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration",
    "rbac.authorization.k8s.io/v1/ClusterRole",
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
];

/// `--dry-run` prints all and makes nothing; `--ha` is refused where there is one host only; `--timeout` ends the wait for
/// pods that never come, says why they do not, and with `--atomic` nothing is left. No mesh is there afterwards.
pub(super) async fn install_flags(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    ground::uninstall(mesh).await?;

    let shown = install(mesh, &[], &["--dry-run"]).await?;
    ensure!(shown.status == Some(0), "{shown:?}");
    for kind in [
        "CustomResourceDefinition",
        "Deployment",
        "MutatingWebhookConfiguration",
        "ServiceAccount",
    ] {
        let line = format!("kind: {kind}");
        ensure!(
            shown.stdout.lines().any(|it| it == line),
            "no {kind} among what would be installed: {}",
            shown.stderr
        );
    }
    nothing_is_there(mesh, Duration::ZERO).await?;

    // A cluster of somebody else may have hosts enough.
    if mesh.kubernetes.list("v1/Node", None, "").await?.len() == 1 {
        let refused = install(mesh, &[], &["--ha"]).await?;
        let text = refused.stderr.trim();
        ensure!(
            refused.status == Some(1)
                && text.lines().count() == 1
                && text.contains("different hosts")
                && text.contains("hostSpread=preferred"),
            "three replicas on one host were not refused in one sentence: {refused:?}"
        );
        nothing_is_there(mesh, Duration::ZERO).await?;
    }

    let failed = install(mesh, &["image.tag=none-such"], &["--atomic", "--timeout", "20s"]).await?;
    let text = &failed.stderr;
    ensure!(failed.status == Some(1), "{failed:?}");
    ensure!(
        text.contains("was not usable within 20s"),
        "it did not say what it waited for: {text}"
    );
    ensure!(
        text.contains("ErrImagePull") || text.contains("ImagePullBackOff"),
        "it did not say what was in the way: {text}"
    );
    ensure!(
        text.contains("everything but the custom resource definitions is removed again"),
        "it did not say what became of it: {text}"
    );
    nothing_is_there(mesh, SETTLED).await
}

/// `--ha` makes three of each, scaled and with a budget; on hosts that are too few only if one says that this will do.
pub(super) async fn install_ha(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    ground::uninstall(mesh).await?;
    let settings = [
        SETTINGS,
        &[
            "hostSpread=preferred",
            // No more than needed: all of it starts on the two cores that the cluster has.
            "osmController.autoScale.maxReplicas=3",
            "injector.autoScale.maxReplicas=3",
        ],
    ]
    .concat();
    let installed = install(mesh, &settings, &["--ha"]).await?;
    ensure!(installed.status == Some(0), "{installed:?}");
    for component in ["osm-controller", "osm-injector"] {
        // It has waited for them.
        mesh.component_ready(component, 3, Duration::ZERO).await?;
        let named = async |kind: &str, suffix: &str| {
            let name = format!("{component}-{suffix}");
            let object = mesh.kubernetes.get(kind, Some(NAMESPACE), &name).await?;
            object.with_context(|| format!("no {kind} {name}"))
        };
        let autoscaler = named("autoscaling/v2/HorizontalPodAutoscaler", "hpa").await?;
        ensure!(autoscaler["spec"]["minReplicas"] == 3, "{}", autoscaler["spec"]);
        let budget = named("policy/v1/PodDisruptionBudget", "pdb").await?;
        ensure!(budget["spec"]["minAvailable"] == 1, "{}", budget["spec"]);
    }
    ground::mark(mesh).await
}

/// Runs `osm install` of this cluster's images with further settings and flags.
async fn install(mesh: &Mesh, settings: &[&str], flags: &[&str]) -> Result<Outcome> {
    let arguments = mesh.install_arguments(settings);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if flags.contains(&"--timeout")
        && let Some(own) = arguments.iter().position(|argument| *argument == "--timeout")
    {
        arguments.drain(own..own + 2);
    }
    arguments.extend(flags);
    mesh.osm(&arguments).await
}

/// Waits until nothing is there of a mesh but its definitions: neither a namespace, nor anything outside it, nor Helm's
/// memory of it.
async fn nothing_is_there(mesh: &Mesh, at_most: Duration) -> Result<()> {
    eventually("the mesh to be gone", at_most, async || {
        let kubernetes = &mesh.kubernetes;
        let namespace = kubernetes.get("v1/Namespace", None, NAMESPACE).await?;
        ensure!(namespace.is_none(), "the namespace {NAMESPACE} is there");
        for kind in CLUSTER_WIDE {
            let left = kubernetes
                .list(kind, None, "app.kubernetes.io/name=openservicemesh.io")
                .await?;
            let names: Vec<&Value> = left.iter().map(|object| &object["metadata"]["name"]).collect();
            ensure!(names.is_empty(), "there are {kind} {names:?}");
        }
        let releases = kubernetes.list("v1/Secret", None, "owner=helm,name=osm").await?;
        ensure!(releases.is_empty(), "Helm remembers a release");
        Ok(())
    })
    .await
}
