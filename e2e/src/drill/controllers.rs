//! Controllers that die, hang, or fall off the network.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::node::{Frozen, Partition, PodProcess};
use super::scene::{REPLICAS, SOON, Scene};

/// A sidecar's kernel gives a controller's host up that has been silent for 16 s, and Envoy asks for another controller
/// within 4 s, its longest wait between two attempts; what is above that is for a busy machine.
const SILENT: Duration = Duration::from_secs(25);
/// A controller that hangs while its kernel answers is killed by its kubelet: three probes 5 s apart of which the last is given
/// up after 3 s, then the 2 s that a kubelet gives at least, then Envoy's 4 s; what is above that is for a busy machine. The
/// sidecars' own pings would take 95 s and more.
const HUNG: Duration = Duration::from_secs(35);
/// A connection that is refused or reset is noticed at once; the first attempts come within fractions of a second, and
/// one in two may still be led to the dead one.
const DEAD: Duration = Duration::from_secs(8);

/// SIGKILL, again and again, of whichever controller serves most proxies.
pub(super) async fn killed_controllers(scene: &Scene) -> Result<()> {
    let rounds = if scene.long { 100 } else { 10 };
    let mut waits = Vec::new();
    for _ in 0..rounds {
        scene.all_served(SOON).await?;
        let (victim, proxies) = busiest(scene)?;
        let at = Instant::now();
        victim.signal(Signal::SIGKILL)?;
        scene.fault();
        waits.extend(scene.attendance.served_again(&proxies, &victim, at, SOON).await?);
        scene.replace(&victim.pod).await?;
        scene
            .mesh
            .component_ready("osm-controller", REPLICAS, SOON)
            .await?;
    }
    served_again(scene, waits, (DEAD / 4, DEAD))
}

/// SIGSTOP: its connections stay, its kernel answers on them, and nobody else does.
pub(super) async fn frozen_controller(scene: &Scene) -> Result<()> {
    let (victim, proxies) = busiest(scene)?;
    let (at, frozen) = (Instant::now(), Frozen::pod_process(&victim)?);
    scene.fault();
    let waits = scene.attendance.served_again(&proxies, &victim, at, SOON).await?;
    served_again(scene, waits, (HUNG, HUNG))?;
    tokio::time::sleep(HUNG.saturating_sub(at.elapsed())).await;
    let ended = !victim.is_alive();
    let state = if ended { "ended" } else { "still there" };
    scene.finding("the process that hung", state, "ended by its kubelet", ended);
    // Runs on, if nobody ended it.
    drop(frozen);
    scene
        .mesh
        .component_ready("osm-controller", REPLICAS, SOON)
        .await?;
    scene.all_served(SOON).await
}

/// Its packets are dropped, both ways; its node and the API server still reach it, so that it stays in the Service.
pub(super) async fn partitioned_controller(scene: &Scene) -> Result<()> {
    let (victim, proxies) = busiest(scene)?;
    let pods = scene.mesh.component("osm-controller").await?;
    let address = pods
        .into_iter()
        .filter(|pod| pod.metadata.uid.as_deref() == Some(victim.uid.as_str()))
        .find_map(|pod| pod.status?.pod_ip)
        .context("the controller's pod has no address")?;
    let (at, partition) = (Instant::now(), Partition::cut(&address)?);
    scene.fault();
    let waits = scene.attendance.served_again(&proxies, &victim, at, SOON).await?;
    // Every other attempt may lead to the one that is cut off, and takes 3 s to fail.
    served_again(scene, waits, (SILENT, SILENT + Duration::from_secs(15)))?;
    drop(partition);
    scene.all_served(SOON).await
}

/// The controller that serves most proxies, and these.
pub(super) fn busiest(scene: &Scene) -> Result<(PodProcess, BTreeSet<String>)> {
    let served = |controller: PodProcess| {
        let proxies = scene.attendance.of(&controller);
        (controller, proxies)
    };
    let busiest = scene.controllers()?.into_iter().map(served);
    let busiest = busiest
        .max_by_key(|(_, proxies)| proxies.len())
        .context("no controller runs")?;
    ensure!(!busiest.1.is_empty(), "no controller serves any proxy");
    Ok(busiest)
}

/// How long proxies were without a controller: median and worst.
fn served_again(scene: &Scene, mut waits: Vec<Duration>, (usual, bound): (Duration, Duration)) -> Result<()> {
    waits.sort();
    let median = *waits.get(waits.len() / 2).context("nobody was served by it")?;
    let worst = *waits.last().context("nobody was served by it")?;
    scene.time(
        format!("until its proxies were served again, median of {}", waits.len()),
        median,
        usual,
    );
    scene.time("the worst of them", worst, bound);
    Ok(())
}
