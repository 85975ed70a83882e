//! `osm install`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::checkout::Checkout;
use crate::command::{command, run};
use crate::ground;
use crate::harness::mesh::NAMESPACE;
use crate::harness::wait::SETTLED;
use crate::harness::{Case, eventually};

/// A definition that only the chart of an installation that is refused has.
const PROBE: &str = "probes.e2e.openservicemesh.io";

/// Values out of bounds, unknown keys, a second mesh: each refused in one sentence, before anything is changed.
pub(super) async fn refusals_change_nothing(case: &Case) -> Result<()> {
    let namespace = format!("t-{}-never", case.name.replace('_', "-"));
    let refuse = async |arguments: &[&str], names: &str| {
        let base = ["install", "--mesh-name", "second", "--osm-namespace", &namespace];
        let arguments = [&base[..], arguments].concat();
        let outcome = case.mesh.osm(&arguments).await?;
        ensure!(
            outcome.status.is_some_and(|status| status != 0),
            "{arguments:?} was not refused"
        );
        let text = outcome.stderr.trim();
        ensure!(
            text.to_lowercase().contains(names),
            "{arguments:?} was refused without naming {names}: {text}"
        );
        ensure!(
            text.lines().count() == 1 && !text.contains("panicked"),
            "{arguments:?} was not refused in one sentence: {text}"
        );
        anyhow::Ok(())
    };
    for component in ["osmController", "injector"] {
        let set = |setting: &str| format!("--set=OpenServiceMesh.{component}.autoScale.{setting}");
        refuse(&[&set("enable=true"), &set("minReplicas=0")], "minreplicas").await?;
        refuse(&[&set("enable=true"), &set("maxReplicas=11")], "maxreplicas").await?;
        refuse(
            &[&set("enable=true"), &set("targetAverageUtilization=101")],
            "targetaverageutilization",
        )
        .await?;
        refuse(
            &[&set("enable=true"), &set("minReplicas=4"), &set("maxReplicas=3")],
            "minreplicas",
        )
        .await?;
    }
    refuse(&["--set=OpenServiceMesh.noSuchKey=1"], "nosuchkey").await?;
    refuse(
        &["--set=OpenServiceMesh.enableEgress"],
        "openservicemesh.enableegress",
    )
    .await?;
    refuse(&["--helm", "/no/such/helm"], "helm").await?;
    // The mesh of these tests was installed with enforceSingleMesh.
    let only = "enforces that it is the only mesh";
    refuse(&[], only).await?;
    let folder = tempfile::tempdir()?;
    let chart = folder.path().join("chart");
    let original = Checkout::find()?.root().join("charts/osm");
    run(command("cp", ["-r"]).args([&original, &chart]))?;
    tokio::fs::write(chart.join("crds/probe.yaml"), probe().to_string()).await?;
    refuse(&["--osm-chart-path", &chart.to_string_lossy()], only).await?;

    let kubernetes = &case.mesh.kubernetes;
    let definition = "apiextensions.k8s.io/v1/CustomResourceDefinition";
    let defined = kubernetes.get(definition, None, PROBE).await?;
    kubernetes.delete(definition, None, PROBE).await?;
    ensure!(
        defined.is_none(),
        "a refused installation applied its custom resource definitions"
    );
    let releases = kubernetes
        .list("v1/Secret", None, "owner=helm,name=second")
        .await?;
    ensure!(releases.is_empty(), "a refused installation left a Helm release");
    let made = kubernetes.get("v1/Namespace", None, &namespace).await?;
    ensure!(
        made.is_none(),
        "a refused installation left the namespace {namespace}"
    );
    Ok(())
}

/// The definition called [`PROBE`].
fn probe() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": PROBE },
        "spec": {
            "group": "e2e.openservicemesh.io",
            "scope": "Namespaced",
            "names": { "kind": "Probe", "plural": "probes", "singular": "probe" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object" } },
            }],
        },
    })
}

/// Autoscaling and disruption budgets are what a file of values asked for, in the spelling of the early chart; uninstalling
/// leaves nothing behind.
pub(super) async fn autoscaling_and_disruption_budget(case: &Case) -> Result<()> {
    let mesh = &case.mesh;
    ground::uninstall(mesh).await?;
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        let kind = format!("admissionregistration.k8s.io/v1/{kind}");
        let left = mesh
            .kubernetes
            .list(&kind, None, "app.kubernetes.io/name=openservicemesh.io")
            .await?;
        ensure!(left.is_empty(), "uninstalling left a {kind}");
    }
    let values = json!({ "OpenServiceMesh": {
        "osmController": {
            "enablePodDisruptionBudget": true,
            "autoScale": { "enable": true, "minReplicas": 2, "maxReplicas": 7, "targetAverageUtilization": 65 },
        },
        "injector": {
            "enablePodDisruptionBudget": true,
            "autoScale": {
                "enable": true, "minReplicas": 2, "maxReplicas": 4, "cpu": { "targetAverageUtilization": 70 },
            },
        },
    } });
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("values.yaml");
    tokio::fs::write(&file, values.to_string()).await?;
    let file = file.to_string_lossy();
    let arguments = mesh.install_arguments(&[]);
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["-f", &file]);
    mesh.osm_ok(&arguments).await?;
    ground::mark(mesh).await?;
    for (component, most, target) in [("osm-controller", 7, 65), ("osm-injector", 4, 70)] {
        let autoscaler = mesh
            .kubernetes
            .get(
                "autoscaling/v2/HorizontalPodAutoscaler",
                Some(NAMESPACE),
                &format!("{component}-hpa"),
            )
            .await?
            .with_context(|| format!("no HorizontalPodAutoscaler {component}-hpa"))?;
        let spec = &autoscaler["spec"];
        ensure!(spec["minReplicas"] == 2 && spec["maxReplicas"] == most, "{spec}");
        ensure!(spec["scaleTargetRef"]["name"] == component, "{spec}");
        let cpu = spec["metrics"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|metric| metric["resource"]["name"] == "cpu");
        let cpu = cpu.with_context(|| format!("{component}-hpa does not look at the CPU: {spec}"))?;
        ensure!(cpu["resource"]["target"]["averageUtilization"] == target, "{cpu}");

        let budget = mesh
            .kubernetes
            .get(
                "policy/v1/PodDisruptionBudget",
                Some(NAMESPACE),
                &format!("{component}-pdb"),
            )
            .await?
            .with_context(|| format!("no PodDisruptionBudget {component}-pdb"))?;
        ensure!(budget["spec"]["minAvailable"] == 1, "{}", budget["spec"]);
        mesh.component_ready(component, 2, SETTLED).await?;
        eventually(
            &format!("the budget of {component} to be counted"),
            SETTLED,
            async || {
                let name = format!("{component}-pdb");
                let budget = mesh
                    .kubernetes
                    .get("policy/v1/PodDisruptionBudget", Some(NAMESPACE), &name)
                    .await?;
                let status = budget
                    .map(|budget| budget["status"].clone())
                    .unwrap_or(Value::Null);
                ensure!(
                    status["currentHealthy"] == 2 && status["disruptionsAllowed"] == 1,
                    "{status}"
                );
                Ok(())
            },
        )
        .await?;
        // With metrics-server's first readings the autoscaler knows its target, which needs the pods' CPU requests.
        eventually(
            &format!("the autoscaler of {component} to see the CPU"),
            Duration::from_secs(120),
            async || {
                let name = format!("{component}-hpa");
                let hpa = mesh
                    .kubernetes
                    .get("autoscaling/v2/HorizontalPodAutoscaler", Some(NAMESPACE), &name)
                    .await?;
                let metrics = hpa
                    .map(|hpa| hpa["status"]["currentMetrics"].clone())
                    .unwrap_or(Value::Null);
                let seen = metrics[0]["resource"]["current"]["averageUtilization"].is_u64();
                ensure!(seen, "its current metrics are {metrics}");
                Ok(())
            },
        )
        .await?;
    }
    // An upgrade leaves the number of replicas to the autoscaler.
    mesh.kubernetes
        .merge(
            "apps/v1/Deployment",
            Some(NAMESPACE),
            "osm-injector",
            &json!({ "spec": { "replicas": 3 } }),
        )
        .await?;
    let upgrade = mesh.upgrade_arguments(&[]);
    let mut upgrade: Vec<&str> = upgrade.iter().map(String::as_str).collect();
    upgrade.extend(["--values", &file]);
    mesh.osm_ok(&upgrade).await?;
    let replicas = mesh
        .kubernetes
        .get("apps/v1/Deployment", Some(NAMESPACE), "osm-injector")
        .await?;
    let replicas = replicas
        .map(|deployment| deployment["spec"]["replicas"].clone())
        .unwrap_or(Value::Null);
    ensure!(replicas == 3, "the upgrade set the replicas to {replicas}");
    Ok(())
}
