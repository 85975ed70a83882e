//! Service certificates that are renewed while they are used, and those of different controllers that meet.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::bed::{self, BACKENDS, CLIENT, SHOP};
use super::scene::{SOON, Scene};
use crate::harness::envoy::Envoy;
use crate::harness::eventually;

/// Every service certificate of the mesh is renewed again and again, while new connections are made all the time.
pub(super) async fn renewed_certificates(scene: &Scene) -> Result<()> {
    spread(scene).await?;
    let rounds = if scene.long { 12 } else { 4 };
    let client = bed::peer(&scene.mesh, CLIENT).await?;
    let address = format!("web.{SHOP}:9100");
    let connections = async {
        let mut tally = crate::report::Tally::default();
        // Until the other half is done: it is dropped then.
        let deadline = Instant::now() + Duration::from_secs(8 * rounds);
        while Instant::now() < deadline {
            let part = client
                .tcp(&address, &["--send", "hi", "--count", "200"])
                .await?
                .tally;
            tally.sent += part.sent;
            tally.failed += part.failed;
            tally.failures.extend(part.failures);
            for (pod, count) in part.responders {
                *tally.responders.entry(pod).or_default() += count;
            }
        }
        anyhow::Ok(tally)
    };
    let renewals = async {
        let mut waits = Vec::new();
        for round in 0..rounds {
            let (before, begun) = (serials(scene).await?, Instant::now());
            // A shorter life takes effect at once; MeshConfig's bound is ten minutes.
            let validity = format!("{}m", 1439 - round);
            scene
                .mesh
                .configure(json!({ "certificate": { "serviceCertValidityDuration": validity } }))
                .await?;
            scene.fault();
            eventually("new certificates everywhere", SOON, async || {
                let now = serials(scene).await?;
                let old: Vec<&String> = before
                    .iter()
                    .filter(|(pod, serial)| now.get(*pod).is_none_or(|other| other == *serial))
                    .map(|(pod, _)| pod)
                    .collect();
                ensure!(old.is_empty(), "{old:?} still show the old ones");
                Ok(())
            })
            .await?;
            waits.push(begun.elapsed());
        }
        anyhow::Ok(waits)
    };
    let result = futures::future::try_join(connections, renewals).await;
    scene
        .mesh
        .configure(json!({ "certificate": { "serviceCertValidityDuration": "24h" } }))
        .await?;
    let (tally, waits) = result?;
    let reason = tally
        .failures
        .first()
        .map(|failure| format!("; {}", failure.reason));
    scene.finding(
        "new connections between sidecars, with a handshake each",
        format!(
            "{} of {} failed{}",
            tally.failed,
            tally.sent,
            reason.unwrap_or_default()
        ),
        "0 failed",
        tally.failed == 0 && tally.sent > 0,
    );
    scene.finding(
        "backends that answered them, whichever controller signed for them",
        tally.responders.len(),
        BACKENDS.len(),
        tally.responders.len() == BACKENDS.len(),
    );
    let worst = waits.into_iter().max().unwrap_or_default();
    scene.time(
        format!("until all sidecars had the new one, worst of {rounds}"),
        worst,
        Duration::from_secs(15),
    );
    Ok(())
}

/// Sees to it that the backends, which are one service, are served by two controllers, and that these sign for them
/// with different certificates of one name.
async fn spread(scene: &Scene) -> Result<()> {
    for _ in 0..10 {
        let controllers = backends_by_controller(scene).await?;
        if controllers.len() >= 2 {
            let serials = serials(scene).await?;
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

/// The serial number of the certificate that each sidecar shows to other sidecars.
async fn serials(scene: &Scene) -> Result<BTreeMap<String, String>> {
    let mut serials = BTreeMap::new();
    for pod in scene.mesh.kubernetes.pods(SHOP, "osm-proxy-uuid").await? {
        let name = pod.metadata.name.unwrap_or_default();
        let envoy = Envoy::new(&scene.mesh.kubernetes, SHOP, &name);
        let shown: Value = serde_json::from_str(&envoy.admin("/certs").await?)?;
        let chains = shown["certificates"].as_array().into_iter().flatten();
        let mine = chains
            .flat_map(|pair| pair["cert_chain"].as_array().into_iter().flatten())
            // A workload's certificate has a DNS name; the one for the controller has none.
            .find(|certificate| {
                let names = certificate["subject_alt_names"].as_array();
                names.is_some_and(|names| names.iter().any(|name| name["dns"].is_string()))
            })
            .and_then(|certificate| certificate["serial_number"].as_str());
        if let Some(serial) = mine {
            serials.insert(name, serial.to_owned());
        }
    }
    Ok(serials)
}
