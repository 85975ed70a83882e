//! HTTP to a port of a pod, through the API server's port forwarding. No local port is opened.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use crate::cluster::Cluster;

/// The largest answer that is read: the configuration of a sidecar in a large mesh is some tens of megabytes.
const MAX_ANSWER: usize = 512 << 20;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(60);

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
