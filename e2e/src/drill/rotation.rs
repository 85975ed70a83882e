//! The root certificate is exchanged for a new one, and back, while requests flow and new connections are made.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bed::SHOP;
use super::connections;
use super::scene::{SOON, Scene};
use crate::harness::eventually;
use crate::harness::mesh::{NAME, NAMESPACE};

/// The kind of the objects.
const KIND: &str = "config.openservicemesh.io/v1alpha2/MeshRootCertificate";
/// The object that is made for the root in use.
const FIRST: &str = "osm-mesh-root-certificate";
/// The one of the first new root.
const SECOND: &str = "osm-ca-bundle-a";
/// How long one rotation may take. Twice in it the kubelets are given two minutes to deliver the Secrets.
const BOUND: Duration = Duration::from_secs(600);
/// How long a controller may keep a sidecar that proved itself by a root which is trusted no more (`Limits::proof`, and
/// half as much again).
const DISTRUST: Duration = Duration::from_secs(90);

/// A new root, then the old one again: each by `osm certificate rotate`, which a controller and an injector that are
/// killed on the way do not disturb.
pub(super) async fn root_rotation(scene: &Scene) -> Result<()> {
    let before = secret_roots(scene).await?;
    let ways: [(&str, &[&'static str], &[&'static str]); 2] = [
        ("to a new root", &[], &["-c", SECOND]),
        (
            "back to the first one",
            &["-c", FIRST],
            &["-c", FIRST, "--delete"],
        ),
    ];
    for (way, arguments, again) in ways {
        let streams = scene.attendance.now();
        let begun = Instant::now();
        scene.fault();
        Box::pin(connections::during(scene, rotate(scene, arguments, again))).await?;
        scene.time(
            format!("until the mesh was rotated {way}"),
            begun.elapsed(),
            BOUND,
        );
        let ended = Instant::now();
        eventually("other streams than before", DISTRUST + SOON, async || {
            let kept = streams.len() - scene.attendance.moved(&streams);
            ensure!(kept == 0, "{kept} rest on the root that was left");
            Ok(())
        })
        .await?;
        scene.time(
            format!("until no stream of before was left, {way}"),
            ended.elapsed(),
            DISTRUST + Duration::from_secs(10),
        );
        let now = secret_roots(scene).await?;
        let as_expected = now.len() == 1 && (now == before) == (way != "to a new root");
        scene.finding(
            format!("roots in the bootstrap Secrets, {way}"),
            now.len(),
            "1, in all of them",
            as_expected,
        );
        scene.all_served(SOON).await?;
    }
    // As other drills find the mesh: with streams that stay, the configured root, and no object of it. Streams that began
    // amid the way back may rest on the root that was left, too.
    tokio::time::sleep(DISTRUST).await;
    scene.mesh.kubernetes.delete(KIND, Some(NAMESPACE), FIRST).await?;
    eventually("no root object", SOON, async || {
        let left = scene.mesh.kubernetes.list(KIND, Some(NAMESPACE), "").await?;
        ensure!(left.is_empty(), "{} are left", left.len());
        Ok(())
    })
    .await
}

/// Runs the rotation; in its middle a controller is replaced.
async fn rotate(scene: &Scene, arguments: &[&'static str], again: &[&'static str]) -> Result<()> {
    let command = |arguments: &[&'static str]| {
        let own = ["certificate", "rotate", "--mesh-name", NAME, "--accept"];
        own.into_iter()
            .chain(arguments.iter().copied())
            .collect::<Vec<_>>()
    };
    let disturbance = async {
        tokio::time::sleep(Duration::from_secs(20)).await;
        let controllers = scene.mesh.component("osm-controller").await?;
        let victim = controllers.first().and_then(|pod| pod.metadata.name.clone());
        scene.fault();
        scene.replace(&victim.context("no controller")?).await
    };
    let (first, again) = (command(arguments), command(again));
    let (_, disturbed) = futures::future::join(scene.mesh.osm_ok(&first), disturbance).await;
    disturbed?;
    // Run again, it goes on where it stands, and ends at once where nothing is left to do.
    scene.mesh.osm_ok(&again).await.map(drop)
}

/// The different bundles of roots in the shop's bootstrap Secrets.
async fn secret_roots(scene: &Scene) -> Result<BTreeSet<String>> {
    let secrets = scene
        .mesh
        .kubernetes
        .list("v1/Secret", Some(SHOP), "osm-proxy-uuid")
        .await?;
    let root = |secret: &Value| secret["data"]["cacert.pem"].as_str().map(str::to_owned);
    let roots: BTreeSet<String> = secrets.iter().filter_map(root).collect();
    ensure!(!roots.is_empty(), "no bootstrap Secret has a root");
    Ok(roots)
}
