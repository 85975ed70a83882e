//! Does the cluster work? Everything the mesh and its tests rely on, tried once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::kubectl::Kubectl;
use super::{BUSYBOX, Cluster};
use crate::checkout::Checkout;
use crate::image::{catalog, import};
use crate::progress::{Progress, wait_for};

const NAMESPACE: &str = "osm-e2e-check";
const WORKLOAD: &str = include_str!("../../manifests/check.yaml");
const WEBHOOK: &str = include_str!("../../manifests/check-webhook.yaml");

/// Tries everything and removes what it made for it.
pub fn check(checkout: &Checkout, progress: &Progress) -> Result<()> {
    let cluster = Cluster::connect()?;
    let kubectl = cluster.kubectl();
    if cluster.is_local {
        for image in catalog::build(&["busybox"], "release", checkout, progress)? {
            import::import(&image, checkout)?;
        }
    }
    remove(&kubectl)?;
    let result = try_all(&cluster, &kubectl, progress);
    let removed = remove(&kubectl);
    result.and(removed)
}

fn try_all(cluster: &Cluster, kubectl: &Kubectl, progress: &Progress) -> Result<()> {
    progress.step("a node is ready", || {
        let ready = kubectl.run(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=30s"])?;
        ensure!(ready.contains("condition met"), "no node is ready: {ready}");
        Ok(())
    })?;
    progress.step("pods start", || {
        kubectl.apply(&WORKLOAD.replace("${IMAGE}", &cluster.foreign_image(&BUSYBOX)))?;
        for workload in ["deployment/web", "deployment/client"] {
            kubectl.run(["-n", NAMESPACE, "rollout", "status", workload, "--timeout=60s"])?;
        }
        Ok(())
    })?;
    progress.step("names are resolved", || {
        let address = kubectl.run([
            "-n",
            NAMESPACE,
            "get",
            "service",
            "web",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])?;
        let name = format!("web.{NAMESPACE}.svc.cluster.local");
        let answer = in_client(kubectl, &["nslookup", &name])?;
        ensure!(
            answer.contains(&address),
            "cluster DNS does not answer {address} for {name}: {answer}"
        );
        Ok(())
    })?;
    progress.step("a Service reaches each of its pods", || {
        let mut seen = std::collections::BTreeSet::new();
        wait_for("an answer of both replicas", Duration::from_secs(20), || {
            seen.extend(
                in_client(
                    kubectl,
                    &["timeout", "3", "wget", "-q", "-O", "-", "http://web:8080/name"],
                )
                .ok(),
            );
            Ok(seen.len() == 2)
        })
    })?;
    progress.step("logs are readable", || {
        let logs = kubectl.run(["-n", NAMESPACE, "logs", "deployment/client"])?;
        ensure!(logs.contains("the client is here"), "unexpected logs: {logs}");
        Ok(())
    })?;
    progress.step("the API server reaches a webhook's Service", || {
        webhook_is_reached(kubectl)
    })?;
    progress.step("the node's use is measured", || {
        wait_for("`kubectl top node`", Duration::from_secs(60), || {
            Ok(kubectl.run(["top", "node"]).is_ok())
        })
    })?;
    progress.step("pods are measured for autoscaling", || {
        kubectl.run([
            "-n",
            NAMESPACE,
            "autoscale",
            "deployment",
            "web",
            "--cpu=50%",
            "--min=2",
            "--max=3",
        ])?;
        let condition = "jsonpath={.status.conditions[?(@.type=='ScalingActive')].status}";
        wait_for(
            "the autoscaler to see the pods' use",
            Duration::from_secs(90),
            || Ok(kubectl.run(["-n", NAMESPACE, "get", "hpa", "web", "-o", condition])? == "True"),
        )
    })
}

/// Nothing here speaks a webhook's protocol, but any HTTPS server shows whether it is reached: that it is not trusted is
/// only found out after connecting to it.
fn webhook_is_reached(kubectl: &Kubectl) -> Result<()> {
    kubectl.run([
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/metrics-server",
        "--timeout=60s",
    ])?;
    kubectl.apply(WEBHOOK)?;
    let mut last = String::new();
    wait_for("the webhook to be called", Duration::from_secs(20), || {
        let made = kubectl.run([
            "-n",
            NAMESPACE,
            "create",
            "configmap",
            "probe",
            "--dry-run=server",
        ]);
        last = made.err().map(|error| error.to_string()).unwrap_or_default();
        Ok(last.contains("x509"))
    })
    .with_context(|| format!("the last answer was: {last}"))
}

fn in_client(kubectl: &Kubectl, line: &[&str]) -> Result<String> {
    kubectl.run(
        ["-n", NAMESPACE, "exec", "deployment/client", "--"]
            .iter()
            .chain(line),
    )
}

fn remove(kubectl: &Kubectl) -> Result<()> {
    kubectl.run([
        "delete",
        "validatingwebhookconfiguration",
        NAMESPACE,
        "--ignore-not-found",
    ])?;
    kubectl.run([
        "delete",
        "namespace",
        NAMESPACE,
        "--ignore-not-found",
        "--timeout=60s",
    ])?;
    Ok(())
}
