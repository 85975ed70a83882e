//! Kubernetes' own control plane: etcd, the API server, the controller manager and the scheduler.
//!
//! Owns their command lines. They run on the node's network, so that the API server reaches Services (webhooks,
//! aggregated APIs) through kube-proxy as everyone does.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::certificates::Certificates;
use super::daemon::{Daemon, Supervisor, arguments};
use super::kubectl::Kubectl;
use super::network;
use super::process::Process;
use super::programs::Programs;
use crate::progress::wait_for;

const ETCD: &str = "http://127.0.0.1:2379";

/// What the parts of a cluster are started with.
pub(super) struct Setup<'a> {
    /// Starts and records.
    pub(super) supervisor: &'a Supervisor,
    /// The built programs.
    pub(super) programs: &'a Programs,
    /// Keys and kubeconfigs.
    pub(super) certificates: &'a Certificates,
    /// The cluster's folder.
    pub(super) state: &'a Path,
}

impl Setup<'_> {
    /// Starts one of the built programs on the node's network.
    pub(super) fn start(&self, name: &str, mounts: Option<i32>, flags: Vec<String>) -> Result<Process> {
        self.supervisor.start(&Daemon {
            name,
            program: self.programs.path(name)?,
            arguments: arguments(flags),
            network: Some(network::namespace_file()),
            mounts,
        })
    }

    fn file(&self, name: &str) -> String {
        self.certificates.file(name).display().to_string()
    }
}

/// Starts etcd. Nothing is synced to disk: the cluster does not outlive the machine.
pub(super) fn start_etcd(setup: &Setup<'_>) -> Result<Process> {
    let flags = [
        "--name=osm-e2e".to_owned(),
        format!("--data-dir={}", setup.state.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-cluster=osm-e2e=http://127.0.0.1:2380".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--quota-backend-bytes=8589934592".to_owned(),
        "--auto-compaction-retention=5m".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    setup.start("etcd", None, flags.into())
}

/// Starts the API server.
pub(super) fn start_api_server(setup: &Setup<'_>) -> Result<Process> {
    let flags = [
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", network::NODE),
        "--secure-port=6443".to_owned(),
        format!("--service-cluster-ip-range={}", network::SERVICES),
        format!("--tls-cert-file={}", setup.file("apiserver.crt")),
        format!("--tls-private-key-file={}", setup.file("apiserver.key")),
        format!("--client-ca-file={}", setup.file("ca.crt")),
        format!(
            "--kubelet-client-certificate={}",
            setup.file("apiserver-kubelet-client.crt")
        ),
        format!(
            "--kubelet-client-key={}",
            setup.file("apiserver-kubelet-client.key")
        ),
        format!("--kubelet-certificate-authority={}", setup.file("ca.crt")),
        // Nothing resolves the node's name.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={}", setup.file("service-account.pub")),
        format!(
            "--service-account-signing-key-file={}",
            setup.file("service-account.key")
        ),
        format!(
            "--proxy-client-cert-file={}",
            setup.file("front-proxy-client.crt")
        ),
        format!("--proxy-client-key-file={}", setup.file("front-proxy-client.key")),
        format!(
            "--requestheader-client-ca-file={}",
            setup.file("front-proxy-ca.crt")
        ),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        // A whole mesh talks to one API server here, and all of it at once when it starts.
        "--max-requests-inflight=3000".to_owned(),
        "--max-mutating-requests-inflight=1500".to_owned(),
    ];
    setup.start("kube-apiserver", None, flags.into())
}

/// Waits until the API server serves and its built-in roles and priority classes exist.
pub(super) fn await_api_server(setup: &Setup<'_>, processes: &[&Process], kubectl: &Kubectl) -> Result<()> {
    wait_for("the API server", Duration::from_secs(90), || {
        for process in processes {
            setup.supervisor.expect_alive(process)?;
        }
        Ok(kubectl.answers("/readyz"))
    })
}

/// Starts the controller manager and the scheduler; there is one of each, so nothing is elected.
pub(super) fn start_controllers(setup: &Setup<'_>) -> Result<()> {
    let credentials = |name: &str| {
        let file = setup.file(&format!("{name}.kubeconfig"));
        [
            "kubeconfig",
            "authentication-kubeconfig",
            "authorization-kubeconfig",
        ]
        .map(|flag| format!("--{flag}={file}"))
    };
    let common = [
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--kube-api-qps=300".to_owned(),
        "--kube-api-burst=600".to_owned(),
    ];
    let mut flags = vec![
        "--use-service-account-credentials=true".to_owned(),
        format!(
            "--service-account-private-key-file={}",
            setup.file("service-account.key")
        ),
        format!("--root-ca-file={}", setup.file("ca.crt")),
        format!("--cluster-signing-cert-file={}", setup.file("ca.crt")),
        format!("--cluster-signing-key-file={}", setup.file("ca.key")),
        // Autoscaling is watched by tests, which should not wait for minutes.
        "--horizontal-pod-autoscaler-sync-period=5s".to_owned(),
        "--horizontal-pod-autoscaler-initial-readiness-delay=5s".to_owned(),
        "--horizontal-pod-autoscaler-cpu-initialization-period=20s".to_owned(),
    ];
    flags.extend(common.clone());
    flags.extend(credentials("controller-manager"));
    setup.start("kube-controller-manager", None, flags)?;

    let flags = common.into_iter().chain(credentials("scheduler")).collect();
    setup.start("kube-scheduler", None, flags)?;
    Ok(())
}
