//! All controllers compute the same, whatever each of them has been through.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::bed::{CLIENT, LATE, SHOP};
use super::node::PodProcess;
use super::scene::{SOON, Scene};
use crate::harness::eventually;
use crate::harness::policy::{any_route, http_rule, route_group, traffic_split, traffic_target};
use crate::harness::workload::service;

/// Random changes to services and policies, a controller killed in the middle of them; when it is quiet, every replica
/// has the same versions for every proxy.
pub(super) async fn identical_configuration(scene: &Scene) -> Result<()> {
    scene.scale("osm-controller", 3).await?;
    let length = Duration::from_secs(if scene.long { 300 } else { 30 });
    let (begun, mut chance) = (Instant::now(), Chance(0x5eed));
    let (mut changes, mut killed) = (0_u64, false);
    while begun.elapsed() < length {
        change(scene, &mut chance).await?;
        changes += 1;
        if !killed && begun.elapsed() > length / 2 {
            let (victim, _) = super::controllers::busiest(scene)?;
            victim.signal(Signal::SIGKILL)?;
            scene.fault();
            scene.replace(&victim.pod).await?;
            killed = true;
        }
    }
    let quiet = Instant::now();
    scene.mesh.component_ready("osm-controller", 3, SOON).await?;
    let compared = eventually(
        "all controllers to say the same",
        Duration::from_secs(60),
        async || compare(scene).await,
    )
    .await;
    scene.finding(
        format!("versions that differ between 3 replicas after {changes} changes"),
        match &compared {
            Ok(versions) => format!(
                "0 of {versions}, {:.1} s after the last change",
                quiet.elapsed().as_secs_f64()
            ),
            Err(error) => format!("{error:#}"),
        },
        0,
        compared.is_ok_and(|versions| versions > 0),
    );
    Ok(())
}

/// Compares what all controllers have for all proxies; returns how many versions were compared.
async fn compare(scene: &Scene) -> Result<usize> {
    let controllers = scene.controllers()?;
    ensure!(
        controllers.len() == 3,
        "there are {} controllers",
        controllers.len()
    );
    let mut compared = 0;
    for proxy in scene.proxies().await? {
        let first = versions(&controllers[0], &proxy).await?;
        for other in &controllers[1..] {
            let theirs = versions(other, &proxy).await?;
            let differing: Vec<&String> = first
                .iter()
                .filter(|(name, version)| theirs.get(*name) != Some(version))
                .map(|(name, _)| name)
                .collect();
            ensure!(
                differing.is_empty() && theirs.len() == first.len(),
                "{} and {} differ for {proxy} in {} of {} resources, such as {:?}",
                controllers[0].pod,
                other.pod,
                differing.len(),
                first.len(),
                differing.first()
            );
            compared += theirs.len();
        }
    }
    Ok(compared)
}

/// The versions a controller has for a proxy. Secrets are left out: each replica issues its own certificates.
async fn versions(controller: &PodProcess, proxy: &str) -> Result<BTreeMap<String, String>> {
    let (status, body) = controller
        .get(9092, &format!("/debug/config?proxy={proxy}"))
        .await?;
    ensure!(status == 200, "{} answers {status}: {body}", controller.pod);
    let kinds: BTreeMap<String, Vec<Value>> = serde_json::from_str(&body)?;
    let mut versions = BTreeMap::new();
    for (kind, resources) in kinds.into_iter().filter(|(kind, _)| kind != "SDS") {
        for resource in resources {
            let text = |name: &str| resource[name].as_str().map(str::to_owned);
            let name = text("name").context("a resource without name")?;
            let version = text("version").context("a resource without version")?;
            versions.insert(format!("{kind} {name}"), version);
        }
    }
    Ok(versions)
}

/// One random change, of objects that do not concern the traffic that is counted.
async fn change(scene: &Scene, chance: &mut Chance) -> Result<()> {
    let kubernetes = &scene.mesh.kubernetes;
    let number = chance.below(6);
    let name = format!("churn-{number}");
    let kinds = [
        "v1/Service",
        "access.smi-spec.io/v1alpha3/TrafficTarget",
        "specs.smi-spec.io/v1alpha4/HTTPRouteGroup",
        "split.smi-spec.io/v1alpha2/TrafficSplit",
    ];
    let which = chance.below(kinds.len());
    if chance.below(3) == 0 {
        return kubernetes.delete(kinds[which], Some(SHOP), &name).await;
    }
    let object = match which {
        0 => {
            let port = 8100 + chance.below(50);
            service(
                SHOP,
                &name,
                "web",
                json!([{ "name": "http", "port": port, "targetPort": 8080 }]),
            )
        }
        1 => {
            let source = [CLIENT, LATE][chance.below(2)];
            traffic_target(&name, (SHOP, "web"), &[http_rule(&name, &[])], &[(SHOP, source)])
        }
        2 if chance.below(2) == 0 => any_route(SHOP, &name),
        2 => route_group(
            SHOP,
            &name,
            json!([{ "name": "some", "pathRegex": format!("/{}", chance.below(100)), "methods": ["GET"] }]),
        ),
        _ => {
            let weight = u32::try_from(chance.below(100))?;
            let backends = [("web", weight), ("churn-0", 100 - weight)];
            traffic_split(SHOP, &name, &format!("churn-{}", 1 + number % 5), &backends)
        }
    };
    // The validating webhook may refuse a combination, as it would a user's.
    let _refused = kubernetes.apply(&[object]).await;
    Ok(())
}

/// Numbers that look random and are the same in every run.
struct Chance(u64);

impl Chance {
    /// A number from 0 to below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound.max(1)
    }
}
