//! Load on the injector: AdmissionReviews of pods over TLS, as the API server sends them, each answered after a Secret has
//! been written to the real API server.
//!
//! Owns the injector's process and the reviews. A connection of HTTP/2 carries all reviews, as the API server's does.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use h2::{
    Reason,
    client::{self, SendRequest},
};
use http::{Request, header};
use osm_core::{
    api::{annotations, names, ports},
    certificate::TrustBundle,
};
use osm_runtime::tls;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Mutex};
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use crate::{
    api::Api,
    phase::{Latency, Phase},
    population::{CONTROL_PLANE, MESH, namespace},
    server::{Server, own_usage},
    world::{authority, program},
};

/// Where it listens.
const HOST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 30);
/// Longest start.
const START: Duration = Duration::from_secs(60);

/// How reviews are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// So many a second, whether answered or not.
    Rate(u32),
    /// So many at a time, the next when one is answered.
    Busy(usize),
}

/// An injector and a connection to its webhook.
pub(crate) struct Injector<'a> {
    api: &'a Api,
    server: Server,
    caller: Caller,
    sent: u64,
}

impl<'a> Injector<'a> {
    /// Starts an injector; the mesh's root must exist.
    pub(crate) async fn start(api: &'a Api) -> Result<Self> {
        let mut command = Command::new(program("osm-injector")?);
        command
            .args(["--mesh-name", MESH, "--osm-namespace", CONTROL_PLANE])
            .args(["--webhook-config-name", "osm-webhook-osm", "--bind-address"])
            .arg(HOST.to_string())
            .arg("--kubeconfig")
            .arg(api.kubeconfig())
            .env("INJECTOR_POD_NAME", "osm-injector-0")
            .env("POD_IP", "10.0.0.1")
            .env("OSM_DEFAULT_ENVOY_IMAGE", "envoyproxy/envoy:v1.40.0")
            .env(
                "OSM_DEFAULT_INIT_CONTAINER_IMAGE",
                "openservicemesh/osm-sidecar:v2.0.0",
            );
        let mut server = Server::start("osm-injector", api.folder(), &command)?;
        server
            .until_ready((HOST, ports::ADMIN).into(), "/health/ready", START)
            .await?;
        let authority = authority(api).await?;
        let caller = Caller::connect(TrustBundle::new(vec![authority.root().clone()])).await?;
        Ok(Self {
            api,
            server,
            caller,
            sent: 0,
        })
    }

    /// Sends reviews for so long and waits for all answers. A denial, or an answer without a patch, is an error.
    pub(crate) async fn load(&mut self, name: &str, time: Duration, pace: Pace) -> Result<Phase> {
        self.server.forget_peak();
        let (usage, generator, api) = (self.server.usage()?, own_usage(), self.api.cpu()?);
        let begun = Instant::now();
        let first = self.sent;
        let caller = &self.caller;
        let reviews = (first..).take_while(|_| begun.elapsed() < time);
        let (gap, at_once) = match pace {
            Pace::Rate(rate) => (Duration::from_secs(1) / rate.max(1), 256),
            Pace::Busy(at_once) => (Duration::ZERO, at_once),
        };
        let latencies: Vec<Result<u64>> = stream::iter(reviews)
            .map(|number| async move {
                let turn = begun + gap * u32::try_from(number - first)?;
                // A review that is late because others are counts as late.
                let from = if gap.is_zero() { Instant::now() } else { turn };
                tokio::time::sleep_until(turn.into()).await;
                caller.ask(number).await?;
                Ok(u64::try_from(from.elapsed().as_micros())?)
            })
            .buffer_unordered(at_once)
            .collect()
            .await;
        let latencies: Vec<u64> = latencies.into_iter().collect::<Result<_>>()?;
        self.sent += latencies.len() as u64;
        let seconds = begun.elapsed().as_secs_f64();
        let now = self.server.usage()?;
        let (count, cpu) = (latencies.len(), now.cpu - usage.cpu);
        Ok(Phase {
            name: format!("injector: {name}"),
            repetitions: 1,
            seconds,
            proxies: count,
            latency: Latency::of(&[latencies]),
            cpu,
            load: cpu / seconds,
            resident: now.resident,
            peak: now.peak,
            generator_cpu: own_usage().cpu - generator.cpu,
            api_cpu: self.api.cpu()? - api,
            note: format!(
                "{:.0}/s; {:.0} for each second of a core",
                count as f64 / seconds,
                count as f64 / cpu.max(0.01)
            ),
            ..Phase::default()
        })
    }
}

/// Calls the webhook as an API server does: over one connection, and over another when the webhook lets it go, as it does
/// each minute.
struct Caller {
    roots: TrustBundle,
    /// The connection, and how many there were before it.
    current: Mutex<(u64, SendRequest<Bytes>)>,
}

impl Caller {
    async fn connect(roots: TrustBundle) -> Result<Self> {
        let first = connect(&roots).await?;
        Ok(Self {
            roots,
            current: Mutex::new((0, first)),
        })
    }

    /// Has a pod injected. What the webhook did not take in is sent again (RFC 9113, section 8.7): because it lets the
    /// connection go, or because a new one was given more than it allows before it could say how much.
    async fn ask(&self, number: u64) -> Result<()> {
        loop {
            let (count, requests) = self.current.lock().await.clone();
            let error = match ask(requests, number).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let said = error
                .downcast_ref::<h2::Error>()
                .filter(|error| error.is_remote());
            if said.is_some_and(|error| error.reason() == Some(Reason::REFUSED_STREAM) && error.is_reset()) {
                continue;
            }
            if !said.is_some_and(h2::Error::is_go_away) {
                return Err(error);
            }
            let mut current = self.current.lock().await;
            if current.0 == count {
                *current = (count + 1, connect(&self.roots).await?);
            }
        }
    }
}

async fn connect(roots: &TrustBundle) -> Result<SendRequest<Bytes>> {
    let mut store = RootCertStore::empty();
    for root in roots.roots() {
        store.add(root.der().to_vec().into())?;
    }
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(format!("{}.{CONTROL_PLANE}.svc", names::INJECTOR))?;
    let tcp = TcpStream::connect((IpAddr::from(HOST), ports::INJECTOR_WEBHOOK)).await?;
    tcp.set_nodelay(true)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (requests, connection) = client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .handshake(stream)
        .await?;
    tokio::spawn(async move {
        // Its end shows in the requests.
        let _ = connection.await;
    });
    Ok(requests)
}

async fn ask(requests: SendRequest<Bytes>, number: u64) -> Result<()> {
    let body = review(number).to_string();
    let uri = format!(
        "https://{HOST}:{}/mutate-pod-creation?timeout=20s",
        ports::INJECTOR_WEBHOOK
    );
    let request = Request::post(uri)
        .header(header::CONTENT_TYPE, "application/json")
        .body(())?;
    let mut requests = requests.ready().await?;
    let (response, mut stream) = requests.send_request(request, false)?;
    stream.send_data(body.into(), true)?;
    let mut parts = response.await?.into_body();
    let mut answer = BytesMut::new();
    while let Some(part) = parts.data().await {
        let part = part?;
        parts.flow_control().release_capacity(part.len())?;
        answer.extend_from_slice(&part);
    }
    let answer: Value = serde_json::from_slice(&answer).context("the webhook's answer is no JSON")?;
    let response = &answer["response"];
    ensure!(
        response["allowed"] == true && response["patch"].is_string(),
        "a pod was not injected: {response}"
    );
    Ok(())
}

/// The review of a pod that a ReplicaSet makes.
fn review(number: u64) -> Value {
    let namespace = namespace(0);
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-5d4f8c7b9-",
            "namespace": namespace,
            "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
            "annotations": {annotations::SIDECAR_INJECTION: "enabled"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9",
                "uid": Uuid::from_u128(1).to_string(), "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "serviceAccountName": "web",
            "containers": [{
                "name": "web", "image": "example/web:1",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [{"name": "MODE", "value": "production"}],
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080}},
                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080}},
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            }],
            "restartPolicy": "Always",
        },
    });
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": Uuid::from_u128(0x11ad_0000_0000_4000_8000_0000_0000_0000 | u128::from(number)).to_string(),
            "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "namespace": namespace, "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": pod, "oldObject": null,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}
