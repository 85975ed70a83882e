//! Service certificates that are renewed while they are used, and those of different controllers that meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::bed::{self, BACKENDS, SHOP};
use super::connections;
use super::node;
use super::scene::{SOON, Scene};
use crate::harness::envoy::Envoy;
use crate::harness::eventually;
use crate::harness::mesh::NAMESPACE;

/// Every service certificate of the mesh is renewed again and again, while new connections are made all the time.
pub(super) async fn renewed_certificates(scene: &Scene) -> Result<()> {
    spread(scene).await?;
    let rounds = if scene.long { 12 } else { 4 };
    let renewals = async {
        let mut waits = Vec::new();
        for _ in 0..rounds {
            let begun = Instant::now();
            scene.fault();
            renew_all(scene).await?;
            waits.push(begun.elapsed());
        }
        anyhow::Ok(waits)
    };
    let (waits, answered) = Box::pin(connections::during(scene, renewals)).await?;
    scene.finding(
        "backends that answered them, whichever controller signed for them",
        answered.len(),
        BACKENDS.len(),
        answered.len() == BACKENDS.len(),
    );
    let worst = waits.into_iter().max().unwrap_or_default();
    scene.time(
        format!("until all sidecars had the new one, worst of {rounds}"),
        worst,
        Duration::from_secs(15),
    );
    Ok(())
}

/// Minutes that service certificates live: always fewer, since only a shorter life takes effect at once.
static LIFE: AtomicU32 = AtomicU32::new(24 * 60);

/// All service certificates are made anew; returns when every sidecar shows its new one.
pub(super) async fn renew_all(scene: &Scene) -> Result<()> {
    let before = shown(scene, Shown::ToSidecars).await?;
    want_new(scene).await?;
    all_new(scene, &before, SOON).await
}

/// From now on controllers want a new certificate for every service.
pub(super) async fn want_new(scene: &Scene) -> Result<()> {
    let life = LIFE.fetch_sub(1, Ordering::Relaxed) - 1;
    let change = json!({ "certificate": { "serviceCertValidityDuration": format!("{life}m") } });
    scene.mesh.configure(change).await
}

/// Waits until every sidecar shows other sidecars another certificate than before.
pub(super) async fn all_new(
    scene: &Scene,
    before: &BTreeMap<String, String>,
    at_most: Duration,
) -> Result<()> {
    eventually("new certificates everywhere", at_most, async || {
        let now = shown(scene, Shown::ToSidecars).await?;
        let old = still_shown(before, &now);
        ensure!(old.is_empty(), "{old:?} still show the old ones");
        Ok(())
    })
    .await
}

/// The pods that show what they showed before, or nothing.
fn still_shown<'a>(before: &'a BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<&'a String> {
    let is_old = |(pod, serial): &(&String, &String)| now.get(*pod).is_none_or(|other| other == *serial);
    before.iter().filter(is_old).map(|(pod, _)| pod).collect()
}

/// The certificates that sidecars prove themselves to controllers with are renewed in place, though the injector whose
/// turn it is dies: Envoy takes them from its volume, and no stream ends.
pub(super) async fn renewed_bootstraps(scene: &Scene) -> Result<()> {
    let before = shown(scene, Shown::ToControllers).await?;
    // Due is what has less than half of its intended life left: of a longer life that is all there is.
    scene
        .upgrade(&["certificateProvider.bootstrapCertValidityDuration=100h"])
        .await?;
    scene.all_served(SOON).await?;
    let (begun, streams) = (Instant::now(), scene.attendance.now());
    let victim = eventually("an injector to hold the Lease", SOON, || holder(scene)).await?;
    victim.signal(Signal::SIGKILL)?;
    scene.fault();
    scene.replace(&victim.pod).await?;
    // A Lease that is not renewed, two rounds, and the kubelet, which delivers Secrets each minute or so.
    eventually("new certificates in every sidecar", 4 * SOON, async || {
        let now = shown(scene, Shown::ToControllers).await?;
        let old = still_shown(&before, &now);
        ensure!(old.is_empty(), "{old:?} still have the old ones");
        Ok(())
    })
    .await?;
    scene.time(
        format!("until all {} sidecars had new ones", before.len()),
        begun.elapsed(),
        2 * SOON,
    );
    scene.none(
        "streams that ended meanwhile",
        scene.attendance.moved(&streams) as u64,
    );
    scene.upgrade(&[]).await
}

/// The injector that holds the Lease. Just after a rollout that may still be one that has ended.
async fn holder(scene: &Scene) -> Result<node::PodProcess> {
    let kubernetes = &scene.mesh.kubernetes;
    let lease = kubernetes
        .get("coordination.k8s.io/v1/Lease", Some(NAMESPACE), "osm-injector")
        .await?
        .context("the injectors have no Lease")?;
    let holder = lease["spec"]["holderIdentity"]
        .as_str()
        .context("nobody holds the Lease")?;
    node::processes("osm-injector")?
        .into_iter()
        .find(|injector| injector.pod == holder)
        .context("the holder of the Lease has ended")
}

/// Sees to it that the backends, which are one service, are served by two controllers, and that these sign for them
/// with different certificates of one name.
async fn spread(scene: &Scene) -> Result<()> {
    for _ in 0..10 {
        let controllers = backends_by_controller(scene).await?;
        if controllers.len() >= 2 {
            let serials = shown(scene, Shown::ToSidecars).await?;
            let shown: BTreeSet<&String> = BACKENDS.iter().filter_map(|pod| serials.get(*pod)).collect();
            scene.finding(
                "certificates of the one service, from so many controllers",
                format!("{} from {}", shown.len(), controllers.len()),
                "one from each",
                shown.len() == controllers.len(),
            );
            return Ok(());
        }
        // A pod made anew chooses a controller anew.
        let away = BACKENDS[2];
        scene
            .mesh
            .kubernetes
            .kubectl(&["delete", "pod", "-n", SHOP, away], "")
            .await?;
        bed::start_backend(&scene.mesh, away).await?;
        scene.all_served(SOON).await?;
    }
    anyhow::bail!("ten times all backends chose the same controller")
}

async fn backends_by_controller(scene: &Scene) -> Result<BTreeMap<String, Vec<String>>> {
    let served = scene.attendance.now();
    let mut controllers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in scene.mesh.kubernetes.pods(SHOP, "app=web").await? {
        let labels = pod.metadata.labels.unwrap_or_default();
        let uuid = labels
            .get("osm-proxy-uuid")
            .context("a backend without sidecar")?;
        if let Some(sighting) = served.get(uuid) {
            let pods = controllers.entry(sighting.controller.pod.clone()).or_default();
            pods.push(pod.metadata.name.unwrap_or_default());
        }
    }
    Ok(controllers)
}

/// Which certificate of a sidecar.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// The one of its service.
    ToSidecars,
    /// The one from its bootstrap Secret.
    ToControllers,
}

/// The serial number of the certificate that each sidecar shows.
pub(super) async fn shown(scene: &Scene, whom: Shown) -> Result<BTreeMap<String, String>> {
    let mut serials = BTreeMap::new();
    for pod in scene.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await? {
        let name = pod.metadata.name.unwrap_or_default();
        let envoy = Envoy::new(&scene.mesh.kubernetes, SHOP, &name);
        let shown: Value = serde_json::from_str(&envoy.admin("/certs").await?)?;
        let chains = shown["certificates"].as_array().into_iter().flatten();
        let serial = chains
            .flat_map(|pair| pair["cert_chain"].as_array().into_iter().flatten())
            // A workload's certificate has a DNS name; the one for the controller has none.
            .find(|certificate| {
                let names = certificate["subject_alt_names"].as_array().into_iter().flatten();
                let has_dns = names.clone().any(|name| name["dns"].is_string());
                has_dns == (whom == Shown::ToSidecars)
            })
            .and_then(|certificate| certificate["serial_number"].as_str());
        if let Some(serial) = serial {
            serials.insert(name, serial.to_owned());
        }
    }
    Ok(serials)
}
