//! The kubelet silent while the pods of its node run on: Kubernetes calls them all unready, and is wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::bed::{BACKENDS, SHOP};
use super::node::Frozen;
use super::scene::{SOON, Scene};
use crate::harness::eventually;
use crate::harness::kubernetes::is_ready;

/// The kubelet stands still until Kubernetes has doubted its node for a while; it is back before Kubernetes would evict
/// the pods, which is after five minutes.
pub(super) async fn silent_kubelet(scene: &Scene) -> Result<()> {
    let doubt = Duration::from_secs(if scene.long { 120 } else { 40 });
    let sidecars = scene.proxies().await?.len();
    let frozen = Frozen::cluster_program("kubelet")?;
    // Nothing is broken before Kubernetes doubts the node.
    eventually("every backend to be called unready", SOON, async || {
        let ready = ready_endpoints(scene).await?;
        ensure!(ready.is_empty(), "{ready:?} are ready");
        Ok(())
    })
    .await?;
    scene.fault();
    // The books of the requests are read through the kubelet: they are closed meanwhile.
    tokio::time::sleep(doubt).await;
    let ready = ready_endpoints(scene).await?;
    let served = scene.attendance.now().len();
    drop(frozen);
    let back = Instant::now();
    scene.finding(
        format!(
            "backends that Kubernetes called ready {} s after it had called all unready",
            doubt.as_secs()
        ),
        ready.len(),
        0,
        ready.is_empty(),
    );
    scene.finding("sidecars still served", served, sidecars, served == sidecars);
    eventually("every backend to be called ready", SOON, async || {
        let ready = ready_endpoints(scene).await?;
        ensure!(ready.len() == BACKENDS.len(), "only {ready:?} are ready");
        for pod in scene.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await? {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            ensure!(is_ready(&pod), "{name} is not ready");
        }
        Ok(())
    })
    .await?;
    scene.time("until all were ready again", back.elapsed(), SOON);
    Ok(())
}

/// The addresses behind the Service `web` that Kubernetes calls ready.
async fn ready_endpoints(scene: &Scene) -> Result<Vec<String>> {
    let arguments = [
        "get",
        "endpointslices",
        "-n",
        SHOP,
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}",
    ];
    let addresses = scene.mesh.kubernetes.kubectl(&arguments, "").await?;
    Ok(addresses.split_whitespace().map(str::to_owned).collect())
}
