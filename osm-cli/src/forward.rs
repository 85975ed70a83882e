//! HTTP to a port of a pod, through the API server's port forwarding. No local port is opened.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// The largest answer that is read: the configuration of a sidecar in a large mesh is some tens of megabytes.
const MAX_ANSWER: usize = 512 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a replica of the control plane may take to answer, when all are asked: one that hangs is shown, not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a replica of the control plane for a page of JSON.
pub(crate) async fn ask<T: DeserializeOwned>(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> Result<T, String> {
    let answer = send(cluster, namespace, pod, port, http::Method::GET, path);
    let text = match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return Err(format!("{error:#}")),
        Err(_) => return Err(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    serde_json::from_str(&text).map_err(|error| format!("the page {path} cannot be read: {error}"))
}

/// Asks several replicas at once, and returns their answers by name.
pub(crate) async fn ask_all<T: DeserializeOwned + Send + 'static>(
    cluster: &Cluster,
    namespace: &str,
    pods: &[String],
    port: u16,
    path: &str,
) -> Vec<(String, Result<T, String>)> {
    let mut asked = JoinSet::new();
    for pod in pods {
        let (cluster, namespace) = (cluster.clone(), namespace.to_owned());
        let (pod, path) = (pod.clone(), path.to_owned());
        asked.spawn(async move {
            let answer = ask(&cluster, &namespace, &pod, port, &path).await;
            (pod, answer)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|(one, _), (other, _)| one.cmp(other));
    answers
}

/// Sends a request without a body to a port of a pod and returns the answer's body.
pub(crate) async fn request(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    port: u16,
    method: http::Method,
    path: &str,
) -> Result<String> {
    let what = format!("{method} {path} at port {port} of pod {namespace}/{pod}");
    tokio::time::timeout(TIMEOUT, send(cluster, namespace, pod, port, method, path))
        .await
        .unwrap_or_else(|_| Err(anyhow!("no answer within {} s", TIMEOUT.as_secs())))
        .with_context(|| format!("Could not get {what}"))
}

async fn send(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    port: u16,
    method: http::Method,
    path: &str,
) -> Result<String> {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let stream = forwarder
        .take_stream(port)
        .ok_or_else(|| anyhow!("the API server forwards no such port"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, format!("localhost:{port}"))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| anyhow!("{error}"))?;
    connection.abort();
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    if !status.is_success() {
        return Err(anyhow!("the answer is {status}: {}", text.trim()));
    }
    Ok(text)
}
