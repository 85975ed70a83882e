//! A sidecar that starts anew while the whole control plane is away.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;

use super::bed::{self, CLIENT, SHOP, URL};
use super::node;
use super::scene::{COMPONENTS, REPLICAS, SOON, Scene};
use crate::harness::runner::POD_READY;
use crate::harness::workload::service;
use crate::harness::{Workload, eventually};

/// A client whose last good configuration is kept.
const KEPT: &str = "kept";
/// A Service that is made while nobody looks.
const NEWER: &str = "newer";
/// The port of the relay's numbers.
const RELAY: u16 = 15905;

/// No controller, no injector; then Envoy and its relay are killed. The pod serves again from what was kept, and what
/// changed meanwhile arrives when a controller returns.
pub(super) async fn sidecar_restart_headless(scene: &Scene) -> Result<()> {
    let kubernetes = &scene.mesh.kubernetes;
    bed::remove(&scene.mesh, KEPT).await?;
    let workload = Workload::client(KEPT)
        .account(CLIENT)
        .annotated("openservicemesh.io/keep-last-good-config", "enabled");
    kubernetes
        .apply(&[workload.pod(SHOP, &scene.mesh.images.demo)])
        .await?;
    let pod = kubernetes.ready(SHOP, KEPT, POD_READY).await?;
    let uid = pod.metadata.uid.context("a pod without uid")?;
    let peer = bed::peer(&scene.mesh, KEPT).await?;
    let answered = async |url: &str| {
        let answer = peer.get(url, &[]).await?;
        ensure!(answer.status == Some(200), "{answer:?}");
        Ok(())
    };
    eventually("an answer", SOON, async || answered(URL).await).await?;
    let relay = async |line: &str| {
        let page = kubernetes.fetch(SHOP, KEPT, RELAY, "/metrics").await?;
        ensure!(page.lines().any(|each| each == line), "no {line:?} in\n{page}");
        Ok(())
    };
    eventually("a whole configuration to be kept", SOON, async || {
        relay("osm_relay_kept_complete 1").await
    })
    .await?;

    for component in COMPONENTS {
        scene.scale(component, 0).await?;
    }
    scene.fault();
    let ports = json!([{ "name": "http", "port": 80, "targetPort": 8080 }]);
    kubernetes.apply(&[service(SHOP, NEWER, "web", ports)]).await?;

    let mut killed = 0;
    for process in node::processes_of_pod(&uid)? {
        if ["envoy", "osm-sidecar"].contains(&process.program.as_str()) {
            process.signal(Signal::SIGKILL)?;
            killed += 1;
        }
    }
    let begun = Instant::now();
    ensure!(killed == 2, "{killed} processes of the sidecar were killed, of 2");
    scene.fault();
    eventually("an answer through the new sidecar", SOON, async || {
        answered(URL).await
    })
    .await?;
    scene.time(
        "from SIGKILL of Envoy and its relay until its requests are answered, with no control plane",
        begun.elapsed(),
        Duration::from_secs(20),
    );
    kubernetes.ready(SHOP, KEPT, POD_READY).await?;
    relay("osm_relay_proxy_answered{by=\"kept\"} 1").await?;
    let tally = peer.load(URL, &["--rate", "50", "--duration", "10"]).await?;
    scene.finding(
        "requests of the new sidecar, headless",
        format!("{} of {} failed", tally.failed, tally.sent),
        "0 failed",
        tally.failed == 0 && tally.sent > 0,
    );

    let back = Instant::now();
    for component in COMPONENTS {
        scene.scale(component, REPLICAS).await?;
    }
    let ready = back.elapsed();
    scene.all_served(SOON).await?;
    let newer = format!("http://{NEWER}.{SHOP}/");
    eventually("what changed meanwhile", SOON, async || answered(&newer).await).await?;
    scene.time(
        "from two ready replicas until what changed meanwhile had arrived",
        back.elapsed().saturating_sub(ready),
        Duration::from_secs(15),
    );
    relay("osm_relay_proxy_answered{by=\"controller\"} 1").await?;
    kubernetes.delete("v1/Service", Some(SHOP), NEWER).await?;
    bed::remove(&scene.mesh, KEPT).await
}
