//! A pod that runs `osm-demo`, as a client the tests give orders to.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Kubernetes;
use super::envoy::Envoy;
use crate::report::{Answer, Handshake, Tally};

/// The container of `osm-demo` in every pod the tests make.
pub const CONTAINER: &str = "app";

/// What TCP connections got: the last answer, and all counted.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpAnswer {
    /// The last connection's.
    #[serde(flatten)]
    pub last: Answer,
    /// All of them.
    pub tally: Tally,
}

/// A running pod.
#[derive(Clone)]
pub struct Peer {
    kubernetes: Kubernetes,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The container of `osm-demo`.
    pub container: String,
    /// Its address.
    pub ip: String,
}

impl Peer {
    /// The pod of this name; it must have an address.
    pub async fn find(kubernetes: &Kubernetes, namespace: &str, pod: &str, container: &str) -> Result<Self> {
        let found = kubernetes
            .pods(namespace, "")
            .await?
            .into_iter()
            .find(|candidate| candidate.metadata.name.as_deref() == Some(pod))
            .with_context(|| format!("no pod {namespace}/{pod}"))?;
        let ip = found
            .status
            .and_then(|status| status.pod_ip)
            .with_context(|| format!("{pod} has no address"))?;
        Ok(Self {
            kubernetes: kubernetes.clone(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            ip,
        })
    }

    /// Its sidecar.
    pub fn envoy(&self) -> Envoy {
        Envoy::new(&self.kubernetes, &self.namespace, &self.pod)
    }

    /// Sends one HTTP request, with further options of `osm-demo get`.
    pub async fn get(&self, url: &str, options: &[&str]) -> Result<Answer> {
        self.demo("get", &[&[url], options].concat()).await
    }

    /// Sends requests at a constant rate.
    pub async fn load(&self, url: &str, options: &[&str]) -> Result<Tally> {
        self.demo("load", &[&[url], options].concat()).await
    }

    /// Opens TCP connections.
    pub async fn tcp(&self, address: &str, options: &[&str]) -> Result<TcpAnswer> {
        self.demo("tcp", &[&[address], options].concat()).await
    }

    /// Shakes hands over TLS.
    pub async fn tls(&self, address: &str, options: &[&str]) -> Result<Handshake> {
        self.demo("tls", &[&[address], options].concat()).await
    }

    /// Sends one WebSocket message.
    pub async fn websocket(&self, url: &str) -> Result<Answer> {
        self.demo("websocket", &[url]).await
    }

    /// Asks for gRPC health.
    pub async fn grpc(&self, url: &str) -> Result<Answer> {
        self.demo("grpc", &[url]).await
    }

    /// Runs `osm-demo` in the pod and reads what it printed.
    pub async fn demo<T: DeserializeOwned>(&self, role: &str, options: &[&str]) -> Result<T> {
        let command = [&["osm-demo", role], options].concat();
        let ran = self
            .kubernetes
            .exec(&self.namespace, &self.pod, &self.container, &command)
            .await?;
        ensure!(
            ran.success,
            "{command:?} in {}/{} failed: {}{}",
            self.namespace,
            self.pod,
            ran.stdout,
            ran.stderr
        );
        serde_json::from_str(&ran.stdout).with_context(|| {
            format!(
                "{command:?} in {}/{} printed no result: {}{}",
                self.namespace, self.pod, ran.stdout, ran.stderr
            )
        })
    }
}
