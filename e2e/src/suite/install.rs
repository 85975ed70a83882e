//! `osm install`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::ground;
use crate::harness::mesh::{NAME, NAMESPACE};
use crate::harness::wait::SETTLED;
use crate::harness::{Case, eventually};

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
            text.lines().count() <= 3 && !text.contains("panicked"),
            "{arguments:?}: {text}"
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
    refuse(&[], "mesh").await?;
    let made = case.mesh.kubernetes.get("v1/Namespace", None, &namespace).await?;
    ensure!(
        made.is_none(),
        "a refused installation left the namespace {namespace}"
    );
    Ok(())
}

/// Autoscaling and disruption budgets are what was asked for, in the spelling of the early chart; uninstalling leaves
/// nothing behind.
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
    let arguments = mesh.install_arguments(&[
        "osmController.autoScale.enable=true",
        "osmController.autoScale.minReplicas=2",
        "osmController.autoScale.maxReplicas=7",
        "osmController.autoScale.targetAverageUtilization=65",
        "osmController.enablePodDisruptionBudget=true",
        "injector.autoScale.enable=true",
        "injector.autoScale.minReplicas=2",
        "injector.autoScale.maxReplicas=4",
        "injector.autoScale.cpu.targetAverageUtilization=70",
        "injector.enablePodDisruptionBudget=true",
    ]);
    mesh.osm_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
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
    let mut upgrade: Vec<String> = ["mesh", "upgrade", "--mesh-name", NAME].map(str::to_owned).into();
    upgrade.extend(
        arguments
            .iter()
            .filter(|argument| argument.starts_with("--set"))
            .cloned(),
    );
    mesh.osm_ok(
        &[
            &upgrade.iter().map(String::as_str).collect::<Vec<_>>()[..],
            &["--osm-namespace", NAMESPACE],
        ]
        .concat(),
    )
    .await?;
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
