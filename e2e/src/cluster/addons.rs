//! What runs in a cluster besides the control plane: cluster DNS and metrics.

use std::time::Duration;

use anyhow::{Context, Result};

use super::kubectl::Kubectl;
use super::network;
use crate::progress::wait_for;

const COREDNS: &str = include_str!("../../manifests/coredns.yaml");
const METRICS_SERVER: &str = include_str!("../../manifests/metrics-server.yaml");

/// Creates them; they become ready when they can.
pub(super) fn apply(kubectl: &Kubectl) -> Result<()> {
    let manifests = format!("{COREDNS}\n---\n{METRICS_SERVER}").replace("${DNS}", &network::DNS.to_string());
    kubectl
        .apply(&manifests)
        .context("cannot create the cluster's DNS and metrics")?;
    Ok(())
}

/// Waits for the node and for cluster DNS. Metrics come later by themselves: they need two readings.
pub(super) fn await_ready(kubectl: &Kubectl) -> Result<()> {
    let node = [
        "get",
        "nodes",
        "-o",
        "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
    ];
    wait_for("the node to be ready", Duration::from_secs(90), || {
        Ok(kubectl.run(node).is_ok_and(|status| status == "True"))
    })?;
    let dns = [
        "get",
        "deployment",
        "coredns",
        "-n",
        "kube-system",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    wait_for("cluster DNS", Duration::from_secs(90), || {
        Ok(kubectl.run(dns).is_ok_and(|ready| ready == "1"))
    })
    .context("see `kubectl -n kube-system describe pods`")
}
