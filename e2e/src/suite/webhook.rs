//! The webhooks, called as the API server calls them, and as it never would.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use crate::harness::mesh::NAMESPACE;
use crate::harness::policy::{any_route, http_rule, traffic_target};
use crate::harness::{Case, Mesh};

/// One admission request.
pub(crate) struct Review {
    /// Its uid.
    pub(crate) uid: String,
    /// Its bytes.
    pub(crate) body: Bytes,
}

impl Review {
    /// The creation of a pod.
    pub(crate) fn create_pod(namespace: &str, pod: Value, uid: &str) -> Self {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": uid,
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "name": pod["metadata"]["name"], "namespace": namespace, "operation": "CREATE",
                "userInfo": { "username": "osm-e2e" }, "dryRun": false, "object": pod,
            },
        });
        Self {
            uid: uid.to_owned(),
            body: Bytes::from(review.to_string()),
        }
    }
}

/// What a webhook answered.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// One replica of a webhook.
pub(crate) struct Webhook {
    mesh: Arc<Mesh>,
    pod: String,
    port: u16,
    /// The name its certificate must have.
    name: String,
}

/// The injectors.
pub(crate) async fn injector(mesh: &Arc<Mesh>) -> Result<Vec<Webhook>> {
    replicas(mesh, "osm-injector", 9090, "osm-injector").await
}

/// The validators, which are the controllers.
pub(super) async fn validator(mesh: &Arc<Mesh>) -> Result<Vec<Webhook>> {
    replicas(mesh, "osm-controller", 9093, "osm-validator").await
}

async fn replicas(mesh: &Arc<Mesh>, app: &str, port: u16, service: &str) -> Result<Vec<Webhook>> {
    let pods = mesh.component(app).await?.into_iter();
    Ok(pods
        .filter_map(|pod| pod.metadata.name)
        .map(|pod| Webhook {
            mesh: Arc::clone(mesh),
            pod,
            port,
            name: format!("{service}.{NAMESPACE}.svc"),
        })
        .collect())
}

impl Webhook {
    /// Sends a body to a path, over TLS that is checked as the API server checks it.
    pub(crate) async fn post(&self, path: &str, body: &Bytes) -> Result<Reply> {
        self.post_as(path, body, "application/json").await
    }

    async fn post_as(&self, path: &str, body: &Bytes, content_type: &str) -> Result<Reply> {
        let pods: Api<Pod> = Api::namespaced(self.mesh.kubernetes.client(), NAMESPACE);
        let mut forward = pods.portforward(&self.pod, &[self.port]).await?;
        let stream = forward
            .take_stream(self.port)
            .context("the port is not forwarded")?;
        let stream = TlsConnector::from(Arc::new(self.trust().await?))
            .connect(ServerName::try_from(self.name.clone())?, stream)
            .await
            .with_context(|| format!("{} has no valid certificate for {}", self.pod, self.name))?;
        let (mut requests, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", &self.name)
            .header("content-type", content_type)
            .body(Full::new(body.clone()))?;
        let response = requests.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        driver.abort();
        forward.abort();
        Ok(Reply {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// Trusts what the webhook's configuration says.
    async fn trust(&self) -> Result<rustls::ClientConfig> {
        let kind = format!(
            "admissionregistration.k8s.io/v1/{}",
            match self.port {
                9090 => "MutatingWebhookConfiguration",
                _ => "ValidatingWebhookConfiguration",
            }
        );
        let configurations = self
            .mesh
            .kubernetes
            .list(&kind, None, "app.kubernetes.io/name=openservicemesh.io")
            .await?;
        let bundle = configurations
            .first()
            .and_then(|configuration| configuration.pointer("/webhooks/0/clientConfig/caBundle"))
            .and_then(Value::as_str)
            .context("the webhook's configuration has no CA bundle")?;
        // As a kubeconfig's: base64 of PEM. Reading it through one spares a dependency.
        let roots = roots_of(bundle).await?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

async fn roots_of(bundle: &str) -> Result<rustls::RootCertStore> {
    let file: Kubeconfig = serde_json::from_value(json!({
        "clusters": [{ "name": "it", "cluster": { "server": "https://localhost", "certificate-authority-data": bundle } }],
        "users": [{ "name": "it", "user": {} }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        "current-context": "it",
    }))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in config.root_cert.context("no certificate in the CA bundle")? {
        roots.add(certificate.into())?;
    }
    Ok(roots)
}

/// Whatever is sent to a webhook gets a 4xx or a denial with the request's uid, and the webhook lives on.
pub(super) async fn bad_admission_bodies(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let restarts = restarts(&case.mesh).await?;
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<(&str, Bytes)> = vec![
        ("nothing", Bytes::new()),
        ("noise", Bytes::from_static(&[0, 159, 146, 150, 255, 1])),
        (
            "no request",
            Bytes::from_static(br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#),
        ),
        ("null", Bytes::from_static(b"null")),
        ("10 MB", Bytes::from(vec![b' '; 10 << 20])),
        ("deep nesting", Bytes::from(deep)),
        ("wrong version", {
            let review = Review::create_pod(&namespace, json!({ "metadata": { "name": "x" } }), "uid-1");
            Bytes::from(
                String::from_utf8_lossy(&review.body)
                    .replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1"),
            )
        }),
        (
            "a pod that is none",
            Review::create_pod(&namespace, json!({ "metadata": [], "spec": "no" }), "uid-2").body,
        ),
    ];
    let targets = [
        (injector(&case.mesh).await?, "/mutate-pod-creation"),
        (validator(&case.mesh).await?, "/validate"),
    ];
    for (replicas, path) in &targets {
        let webhook = replicas.first().context("no replica")?;
        for (what, body) in &bodies {
            let reply = match webhook.post(path, body).await {
                Ok(reply) => reply,
                // A server may close the connection while 10 MB are still on their way.
                Err(_) if body.len() > 1 << 20 => continue,
                Err(error) => return Err(error.context(format!("{what} to {path}"))),
            };
            if reply.status == 200 {
                let review: Value =
                    serde_json::from_str(&reply.body).with_context(|| format!("{what}: {reply:?}"))?;
                let uid = review["response"]["uid"].as_str().unwrap_or_default();
                let denied = review["response"]["allowed"] == false;
                ensure!(
                    denied && uid.starts_with("uid-"),
                    "{what} to {path} was answered {reply:?}"
                );
            } else {
                ensure!(
                    (400..500).contains(&reply.status),
                    "{what} to {path} was answered {reply:?}"
                );
            }
        }
        let plain = webhook
            .post_as(path, &Bytes::from_static(b"{}"), "text/plain")
            .await?;
        ensure!(
            (400..500).contains(&plain.status),
            "text/plain to {path} was answered {plain:?}"
        );
    }
    ensure!(
        restarts == self::restarts(&case.mesh).await?,
        "a replica was restarted"
    );
    // They still do what they are for.
    let pod = crate::harness::Workload::client("pod");
    case.apply(&[pod.service_account(&namespace)]).await?;
    case.mesh
        .kubernetes
        .dry_run(&pod.pod(&namespace, &case.mesh.images.demo))
        .await?;
    Ok(())
}

async fn restarts(mesh: &Mesh) -> Result<i32> {
    let mut sum = 0;
    for app in ["osm-controller", "osm-injector"] {
        for pod in mesh.component(app).await? {
            let containers = pod
                .status
                .into_iter()
                .flat_map(|status| status.container_statuses.unwrap_or_default());
            sum += containers.map(|container| container.restart_count).sum::<i32>();
        }
    }
    Ok(sum)
}

/// A TrafficTarget must be in the namespace of its destination.
pub(super) async fn validator_guards_traffic_targets(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let mut target = traffic_target(
        "web",
        (&namespace, "web"),
        &[http_rule("any", &["any"])],
        &[(&namespace, "client")],
    );
    case.apply(&[any_route(&namespace, "any"), target.clone()])
        .await?;
    target["spec"]["destination"]["namespace"] = json!("elsewhere");
    target["metadata"]["name"] = json!("astray");
    let Err(error) = case.apply(&[target]).await else {
        bail!("a TrafficTarget for another namespace was admitted")
    };
    let text = format!("{error:#}");
    ensure!(
        text.contains("elsewhere") && text.contains(&namespace),
        "it was refused with: {text}"
    );
    Ok(())
}
