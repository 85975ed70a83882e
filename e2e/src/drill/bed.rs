//! What the drills break things under: a small shop in the mesh, and a pod that sends requests to it all the time.
//!
//! Owns its namespace and pods. Invariant: whole at the beginning of every drill.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::traffic::{self, BOOKS, Loss};
use crate::harness::kubernetes::is_ready;
use crate::harness::mesh::Mesh;
use crate::harness::peer::CONTAINER;
use crate::harness::policy::{any_route, http_rule, tcp_route, tcp_rule, traffic_target};
use crate::harness::runner::POD_READY;
use crate::harness::workload::service;
use crate::harness::{Peer, Workload, eventually};
use crate::report::Tally;

/// The namespace of the shop.
pub const SHOP: &str = "d-shop";
/// The backends of the Service `web`.
pub const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];
/// May call `web`, and waits for orders.
pub const CLIENT: &str = "client";
/// May not call `web` unless a drill lets it.
pub const LATE: &str = "late";
/// Calls `web` all the time.
const SENDER: &str = "sender";
/// The label of pods that come for one drill.
const GUEST: &str = "guest";
/// The label of a backend that is no longer one.
const RETIRED: &str = "retired";
/// What it calls.
pub const URL: &str = "http://web.d-shop/";

/// The requests that are counted during one drill.
pub struct Stream {
    before: Tally,
    /// When counting began.
    pub begun: Instant,
}

/// Makes what is missing of the shop, makes anew what is broken, and removes guests.
pub async fn make_whole(mesh: &Mesh) -> Result<()> {
    let kubernetes = &mesh.kubernetes;
    mesh.meshed_namespace(SHOP).await?;
    // After a fault the API server may have heard that the webhooks are ready before its node leads anyone there.
    eventually("the shop's policy to be taken", POD_READY, async || {
        kubernetes.apply(&objects()).await
    })
    .await?;
    let pods = kubernetes.pods(SHOP, "").await?;
    let is_guest = |pod: &Pod| pod.labels().contains_key(GUEST);
    let is_retired = |pod: &Pod| pod.labels().get("app").is_some_and(|app| app == RETIRED);
    if pods.iter().any(is_guest) {
        mesh.configure(sidecar_needs()).await?;
    }
    let unwanted = pods
        .iter()
        .filter(|pod| !is_ready(pod) || is_guest(pod) || is_retired(pod))
        .filter_map(|pod| pod.metadata.name.clone());
    for pod in unwanted {
        remove(mesh, &pod).await?;
    }
    let clients = [CLIENT, LATE].map(client);
    for workload in BACKENDS.map(backend).iter().chain(&clients) {
        eventually("the shop's pods to be admitted", POD_READY, async || {
            start(mesh, workload).await
        })
        .await?;
    }
    for pod in BACKENDS.iter().chain(&[CLIENT, LATE]) {
        kubernetes.ready(SHOP, pod, POD_READY).await?;
    }
    Ok(())
}

/// Brings further sidecars in, until the shop is made whole. They ask for less, so that all find room on the node.
pub async fn invite(mesh: &Mesh, count: usize) -> Result<()> {
    let less = json!({ "sidecar": { "resources": { "requests": { "cpu": "10m" } } } });
    mesh.configure(less).await?;
    let names: Vec<String> = (0..count).map(|number| format!("guest-{number}")).collect();
    for name in &names {
        let guest = Workload::client(name).account(CLIENT).labelled(GUEST, "yes");
        start(mesh, &guest).await?;
    }
    for name in &names {
        mesh.kubernetes.ready(SHOP, name, POD_READY).await?;
    }
    Ok(())
}

fn backend(name: &str) -> Workload {
    let server = Workload::server(name, "--http 8080 --tcp 9100");
    server
        .labelled("app", "web")
        .account("web")
        .with_container(needs())
        .with(outranked_by_none())
}

fn client(name: &str) -> Workload {
    Workload::client(name)
        .with_container(needs())
        .with(outranked_by_none())
}

/// A pod that asks for nothing gets next to nothing while a controller starts beside it on the same two cores: its
/// requests would fail for want of a processor, not for want of a control plane.
fn needs() -> Value {
    json!({ "resources": { "requests": { "cpu": "50m" } } })
}

/// Controllers and injectors that find no room on the node wait until others have left. Their priority would drive the
/// shop's pods away.
fn outranked_by_none() -> Value {
    json!({ "spec": { "priorityClassName": "system-cluster-critical" } })
}

/// The same for sidecars: a merge patch of MeshConfig's spec.
pub fn sidecar_needs() -> Value {
    json!({ "sidecar": { "resources": { "requests": { "cpu": "100m" } } } })
}

async fn start(mesh: &Mesh, workload: &Workload) -> Result<()> {
    let pod = workload.pod(SHOP, &mesh.images.demo);
    let account = workload.service_account(SHOP);
    if mesh
        .kubernetes
        .get("v1/Pod", Some(SHOP), &workload.name)
        .await?
        .is_none()
    {
        mesh.kubernetes.apply(&[account, pod]).await?;
    }
    Ok(())
}

fn objects() -> Vec<Value> {
    let ports = json!([
        { "name": "http", "port": 80, "targetPort": 8080 },
        { "name": "tcp-echo", "port": 9100 },
    ]);
    vec![
        service(SHOP, "web", "web", ports),
        any_route(SHOP, "any"),
        tcp_route(SHOP, "any-tcp", &[]),
        traffic_target(
            "web",
            (SHOP, "web"),
            &[http_rule("any", &["any"]), tcp_rule("any-tcp")],
            &[(SHOP, SENDER), (SHOP, CLIENT)],
        ),
    ]
}

/// Ends a pod at once, and waits until it is gone.
pub async fn remove(mesh: &Mesh, pod: &str) -> Result<()> {
    let arguments = [
        "delete",
        "pod",
        "-n",
        SHOP,
        pod,
        "--grace-period=0",
        "--force",
        "--ignore-not-found",
    ];
    mesh.kubernetes.kubectl(&arguments, "").await?;
    eventually(&format!("{pod} to go"), POD_READY, async || {
        let left = mesh.kubernetes.get("v1/Pod", Some(SHOP), pod).await?;
        ensure!(left.is_none(), "it is still there");
        Ok(())
    })
    .await
}

/// Takes a backend out of its Service and then ends it: nobody loses a connection.
pub async fn retire(mesh: &Mesh, pod: &str) -> Result<()> {
    let label = format!("app={RETIRED}");
    let arguments = ["label", "pod", "-n", SHOP, pod, &label, "--overwrite"];
    mesh.kubernetes.kubectl(&arguments, "").await?;
    // Until the senders' sidecars know, and what they had begun is done.
    tokio::time::sleep(Duration::from_secs(3)).await;
    remove(mesh, pod).await
}

/// Makes a backend again.
pub async fn start_backend(mesh: &Mesh, name: &str) -> Result<()> {
    start(mesh, &backend(name)).await?;
    mesh.kubernetes.ready(SHOP, name, POD_READY).await?;
    Ok(())
}

/// One of its pods, to give orders to.
pub async fn peer(mesh: &Mesh, pod: &str) -> Result<Peer> {
    Peer::find(&mesh.kubernetes, SHOP, pod, CONTAINER).await
}

/// Starts a sender of so many requests a second, and counts from when all of them succeed and every backend answers.
pub async fn send(mesh: &Mesh, rate: u32) -> Result<Stream> {
    remove(mesh, SENDER).await?;
    let (rate, books) = (rate.to_string(), BOOKS.to_string());
    let sender = client(SENDER).with_container(json!({
        "command": ["osm-demo", "load", URL, "--rate", rate, "--report-port", books],
    }));
    start(mesh, &sender).await?;
    mesh.kubernetes.ready(SHOP, SENDER, POD_READY).await?;
    let mut earlier = traffic::read(&mesh.kubernetes, SHOP, SENDER)
        .await
        .unwrap_or_default();
    let before = eventually("requests to flow", POD_READY, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tally = traffic::read(&mesh.kubernetes, SHOP, SENDER).await?;
        let loss = Loss::between(&earlier, &tally)?;
        earlier = tally.clone();
        ensure!(
            loss.failed == 0 && loss.sent > 0 && loss.responders.len() == BACKENDS.len(),
            "{}, from {} backends",
            loss.summary(),
            loss.responders.len()
        );
        Ok(tally)
    })
    .await?;
    Ok(Stream {
        before,
        begun: Instant::now(),
    })
}

impl Stream {
    /// What was sent and lost until now.
    pub async fn loss(&self, mesh: &Mesh) -> Result<Loss> {
        let after = traffic::read(&mesh.kubernetes, SHOP, SENDER).await?;
        Loss::between(&self.before, &after)
    }
}
