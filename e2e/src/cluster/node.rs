//! The node: kubelet and kube-proxy.
//!
//! Owns their configuration. One node now; everything that would differ for another one (name, address, mounts) comes
//! from outside.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::control_plane::Setup;
use super::{cgroup, containerd, network};

/// The node's name.
pub const NAME: &str = "node-1";

/// Starts the kubelet, among the node's mounts.
pub(super) fn start_kubelet(setup: &Setup<'_>, mounts: i32) -> Result<()> {
    let resolver = setup.state.join("resolv.conf");
    // Pods that ask for the node's resolver get none: there is nothing outside to resolve.
    fs::write(&resolver, "options ndots:1\n").context("cannot write the node's resolver configuration")?;
    let config = write(
        setup,
        "kubelet.json",
        &kubelet(setup, &resolver.display().to_string()),
    )?;
    let flags = [
        format!("--config={config}"),
        format!(
            "--kubeconfig={}",
            setup.certificates.file("node.kubeconfig").display()
        ),
        format!("--hostname-override={NAME}"),
        format!("--node-ip={}", network::NODE),
    ];
    setup.start("kubelet", Some(mounts), flags.into())?;
    Ok(())
}

/// Starts kube-proxy.
pub(super) fn start_proxy(setup: &Setup<'_>) -> Result<()> {
    let config = write(setup, "kube-proxy.json", &proxy(setup))?;
    let flags = [
        format!("--config={config}"),
        format!("--hostname-override={NAME}"),
    ];
    setup.start("kube-proxy", None, flags.into())?;
    Ok(())
}

fn write(setup: &Setup<'_>, name: &str, config: &Value) -> Result<String> {
    let path = setup.state.join(name);
    fs::write(&path, serde_json::to_vec_pretty(config)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.display().to_string())
}

fn kubelet(setup: &Setup<'_>, resolver: &str) -> Value {
    let file = |name: &str| setup.certificates.file(name).display().to_string();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": file("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": file("kubelet.crt"),
        "tlsPrivateKeyFile": file("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{}", containerd::socket().display()),
        "clusterDNS": [network::DNS.to_string()],
        "clusterDomain": "cluster.local",
        "resolvConf": resolver,
        // Everything a container does happens below the cluster's own control group.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", cgroup::GROUP),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "localStorageCapacityIsolation": false,
        "maxPods": 250,
        // Images are made here and cannot be pulled again, so none is ever removed to save space.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%", "imagefs.available": "1%",
        },
        "serializeImagePulls": false,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 300,
        "kubeAPIBurst": 600,
        // A ConfigMap or Secret a pod mounts is seen by it within seconds.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    })
}

fn proxy(setup: &Setup<'_>) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": setup.certificates.file("proxy.kubeconfig").display().to_string(),
            "qps": 100, "burst": 200,
        },
        "mode": "nftables",
        "clusterCIDR": network::PODS,
        // These would change settings of the whole machine.
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}
