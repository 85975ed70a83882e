//! Kubernetes' own API server gone, and the whole cluster gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bed::{self, LATE, SHOP, URL};
use super::node::{self, Frozen, PodProcess};
use super::scene::{COMPONENTS, REPLICAS, SOON, Scene};
use crate::cluster::power;
use crate::harness::eventually;
use crate::harness::mesh::NAMESPACE;
use crate::harness::policy::{http_rule, traffic_target};

/// The API server stands still: connections stay, watches are silent, nothing is answered.
pub(super) async fn silent_api_server(scene: &Scene) -> Result<()> {
    let outage = Duration::from_secs(if scene.long { 300 } else { 90 });
    let (before, sidecars) = (control_plane()?, scene.proxies().await?.len());
    let frozen = Frozen::cluster_program("kube-apiserver")?;
    scene.fault();
    let unready = unready_during(scene, outage, sidecars).await;
    drop(frozen);
    afterwards(scene, &before, unready?).await
}

/// The API server is killed, and started again later: connections are refused.
pub(super) async fn killed_api_server(scene: &Scene) -> Result<()> {
    let outage = Duration::from_secs(if scene.long { 300 } else { 60 });
    let (before, sidecars) = (control_plane()?, scene.proxies().await?.len());
    let cut = power::cut(&["kube-apiserver"])?;
    scene.fault();
    let unready = unready_during(scene, outage, sidecars).await;
    power::restore(&scene.checkout, &cut)?;
    afterwards(scene, &before, unready?).await
}

fn control_plane() -> Result<BTreeSet<PodProcess>> {
    let mut all = BTreeSet::new();
    for component in COMPONENTS {
        all.extend(node::processes(component)?);
    }
    Ok(all)
}

/// How often a replica said that it is not ready, asked each second on its loopback, and what it said.
async fn unready_during(scene: &Scene, outage: Duration, sidecars: usize) -> Result<Vec<String>> {
    let (begun, mut unready) = (Instant::now(), Vec::new());
    while begun.elapsed() < outage {
        for process in control_plane()? {
            match process.get(9091, "/health/ready").await {
                Ok((200, _)) => {}
                Ok((status, reasons)) => unready.push(format!("{} {status} {reasons}", process.pod)),
                Err(error) => unready.push(format!("{} {error:#}", process.pod)),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let served = scene.attendance.now().len();
    scene.finding(
        format!("sidecars still served after {} s of it", outage.as_secs()),
        served,
        sidecars,
        served == sidecars,
    );
    Ok(unready)
}

async fn afterwards(scene: &Scene, before: &BTreeSet<PodProcess>, unready: Vec<String>) -> Result<()> {
    let back = Instant::now();
    scene.finding(
        "times a replica was not ready meanwhile",
        match unready.first() {
            Some(first) => format!("{}: {first}", unready.len()),
            None => "0".to_owned(),
        },
        0,
        unready.is_empty(),
    );
    let late = eventually("the API server", SOON, async || {
        bed::peer(&scene.mesh, LATE).await
    })
    .await?;
    let change = traffic_target(
        "late",
        (SHOP, "web"),
        &[http_rule("any", &["any"])],
        &[(SHOP, LATE)],
    );
    eventually("a change to be taken", SOON, async || {
        scene.mesh.kubernetes.apply(std::slice::from_ref(&change)).await
    })
    .await?;
    let written = Instant::now();
    eventually("it to arrive", SOON, async || {
        let answer = late.get(URL, &[]).await?;
        ensure!(answer.status == Some(200), "{answer:?}");
        Ok(())
    })
    .await?;
    // A watch that is connected again after backoff: 30 s at most.
    scene.time(
        "until a change made after it arrived",
        written.elapsed(),
        Duration::from_secs(40),
    );
    // What a liveness probe would have killed, or the node's return evicted, shows by now.
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(back.elapsed())).await;
    let after = control_plane()?;
    let ended = before.difference(&after).count();
    scene.none("processes of the control plane that were restarted", ended as u64);
    let kind = "access.smi-spec.io/v1alpha3/TrafficTarget";
    scene.mesh.kubernetes.delete(kind, Some(SHOP), "late").await
}

/// Power cut: every process of the cluster but the container runtime is killed at once, pods included, and all of it
/// comes up by itself with the mesh installed. The pods of the control plane have to be made anew, as when their node does
/// not come back: with nobody there who could admit them.
pub(super) async fn cold_start(scene: &Scene) -> Result<()> {
    // What everything else needs is named last.
    let store = ["kube-apiserver", "etcd"];
    let programs = [
        "kubelet",
        "kube-proxy",
        "kube-scheduler",
        "kube-controller-manager",
    ];
    let sidecars = scene.proxies().await?.len();
    let mut cut = power::cut(&programs)?;
    cut.extend(power::cut(&store)?);
    power::kill_pods()?;
    scene.fault();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let back = Instant::now();
    let at_most = Duration::from_secs(120);
    eventually(
        "the pods of the control plane to be forgotten",
        at_most,
        async || {
            power::restore(&scene.checkout, &cut[programs.len()..])?;
            for pod in scene.mesh.kubernetes.pods(NAMESPACE, "").await? {
                let name = pod.metadata.name.unwrap_or_default();
                let forget = ["delete", "pod", "-n", NAMESPACE, &name, "--force", "--wait=false"];
                scene.mesh.kubernetes.kubectl(&forget, "").await?;
            }
            ensure!(
                scene.mesh.kubernetes.pods(NAMESPACE, "").await?.is_empty(),
                "some are there"
            );
            Ok(())
        },
    )
    .await?;
    // What the API server says of pods is from before at first: that a controller answers is not.
    eventually("a controller for every sidecar", at_most, async || {
        power::restore(&scene.checkout, &cut)?;
        let served = scene.attendance.now().len();
        ensure!(served == sidecars, "{served} of {sidecars} are served");
        Ok(())
    })
    .await?;
    scene.time("until every sidecar was served", back.elapsed(), at_most);
    for component in COMPONENTS {
        scene.mesh.component_ready(component, REPLICAS, at_most).await?;
    }
    eventually("the sidecars", at_most, async || {
        for pod in scene.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await? {
            let name = pod.metadata.name.clone().unwrap_or_default();
            ensure!(crate::harness::kubernetes::is_ready(&pod), "{name} is not ready");
        }
        Ok(())
    })
    .await?;
    scene.all_served(SOON).await?;
    scene.time(
        "until every pod of the mesh was ready again",
        back.elapsed(),
        at_most,
    );
    Ok(())
}
