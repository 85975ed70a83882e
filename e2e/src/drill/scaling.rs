//! More controllers, fewer controllers, and all sidecars at once at the door of one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::attendance::Sighting;
use super::bed;
use super::scene::{REPLICAS, SOON, Scene};
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Workload, eventually};

/// More replicas: no established connection moves.
pub(super) async fn scaled_up(scene: &Scene) -> Result<()> {
    let before = scene.attendance.now();
    scene.scale("osm-controller", 4).await?;
    scene.fault();
    tokio::time::sleep(Duration::from_secs(15)).await;
    let after = scene.attendance.now();
    scene.finding(
        "connections of each replica, before and after",
        format!("{} and {}", counts(&before), counts(&after)),
        "the same, and 0 of the new ones",
        counts(&before) == counts(&after),
    );
    scene.none("connections that moved", scene.attendance.moved(&before) as u64);
    Ok(())
}

/// Fewer replicas: their sidecars land on those that stay.
pub(super) async fn scaled_down(scene: &Scene) -> Result<()> {
    scene.scale("osm-controller", 4).await?;
    // So that those that go have something to lose.
    scene.restart("osm-controller").await?;
    let rounds = if scene.long { 5 } else { 1 };
    let begun = Instant::now();
    for _ in 0..rounds {
        scene.scale("osm-controller", 4).await?;
        scene.scale("osm-controller", 1).await?;
        scene.fault();
        scene.all_served(SOON).await?;
    }
    let longest = scene.attendance.longest_gap(begun);
    scene.time(
        "longest time a sidecar was without a controller",
        longest,
        Duration::from_secs(5),
    );
    scene.finding(
        "connections of the replica that stayed",
        counts(&scene.attendance.now()),
        "all",
        scene.proxies().await?.len() == scene.attendance.now().len(),
    );
    Ok(())
}

/// Asked to, sidecars reconnect from time to time, so that they spread.
pub(super) async fn connections_of_bounded_age(scene: &Scene) -> Result<()> {
    scene.upgrade(&["osmController.maxConnectionAge=10s"]).await?;
    scene.fault();
    scene.all_served(SOON).await?;
    let (begun, before) = (Instant::now(), scene.attendance.streams().len());
    tokio::time::sleep(Duration::from_secs(45)).await;
    let streams = scene.attendance.streams().len() - before;
    let proxies = scene.proxies().await?.len();
    scene.finding(
        format!("times that {proxies} sidecars reconnected in 45 s, at 10 s"),
        streams,
        format!("at least {}", 3 * proxies),
        streams >= 3 * proxies,
    );
    scene.time(
        "longest time a sidecar was without a controller",
        scene.attendance.longest_gap(begun),
        Duration::from_secs(5),
    );
    scene.upgrade(&[]).await
}

/// How many sidecars come beside the shop's. They come back within some four seconds by themselves, each after a random
/// wait of its own: only of many do more come within one of these than are let in.
const GUESTS: usize = 12;

/// All sidecars come at once to a replica that lets in two a second: it does, and nobody starves.
pub(super) async fn reconnect_storm(scene: &Scene) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    scene.upgrade(&["osmController.newStreamsPerSecond=1"]).await?;
    scene.scale("osm-controller", 1).await?;
    bed::invite(&scene.mesh, GUESTS).await?;
    scene.all_served(SOON).await?;
    let (victim, proxies) = super::controllers::busiest(scene)?;
    let at = Instant::now();
    victim.signal(Signal::SIGKILL)?;
    scene.fault();
    scene.replace(&victim.pod).await?;
    scene.mesh.component_ready("osm-controller", 1, SOON).await?;
    let ready = at.elapsed();
    let waits = scene.attendance.served_again(&proxies, &victim, at, SOON).await?;
    let worst = waits.into_iter().max().unwrap_or_default();
    let since = scene
        .attendance
        .now()
        .into_values()
        .map(|sighting| sighting.since);
    let (most, allowed) = (most_within_a_second(since.collect())?, 2 * cores);
    ensure!(
        proxies.len() > GUESTS,
        "{} sidecars are no storm for a replica that lets in {allowed} at first",
        proxies.len()
    );
    scene.finding(
        format!("sidecars of {} let in within a second", proxies.len()),
        most,
        format!("at most {allowed}: a second's worth in hand, and one more"),
        most <= allowed,
    );
    scene.time(
        "from ready until the last was served",
        worst.saturating_sub(ready),
        Duration::from_secs(40),
    );
    scene.upgrade(&[]).await
}

/// The most of the times (RFC 3339) that lie within one second.
fn most_within_a_second(times: Vec<String>) -> Result<usize> {
    let mut at = Vec::new();
    for time in times {
        at.push(time.parse::<jiff::Timestamp>()?);
    }
    at.sort();
    let within = |first: usize| {
        at[first..]
            .iter()
            .take_while(|time| time.duration_since(at[first]).as_millis() < 1000)
            .count()
    };
    Ok((0..at.len()).map(within).max().unwrap_or_default())
}

/// Real load on the CPU: the autoscaler adds replicas, and takes them away when it is over.
pub(super) async fn autoscaled(scene: &Scene) -> Result<()> {
    let mut settings = Vec::new();
    for component in ["osmController", "injector"] {
        for setting in [
            "enable=true",
            "minReplicas=2",
            "maxReplicas=4",
            // Idle replicas use a fifth of what they ask for, loaded ones several times it.
            "targetAverageUtilization=60",
        ] {
            settings.push(format!("{component}.autoScale.{setting}"));
        }
    }
    scene
        .upgrade(&settings.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
    let namespace = "d-load";
    scene
        .mesh
        .kubernetes
        .create_namespace(namespace, json!({}), json!({}))
        .await?;
    for component in ["osm-controller", "osm-injector"] {
        let url = format!("http://{component}.{NAMESPACE}:9091/metrics");
        let load = Workload::client(component).with_container(json!({
            "command": ["osm-demo", "load", url, "--rate", "700", "--fresh"],
        }));
        let pod = load.pod(namespace, &scene.mesh.images.demo);
        scene
            .mesh
            .kubernetes
            .apply(&[load.service_account(namespace), pod])
            .await?;
    }
    scene.fault();
    let begun = Instant::now();
    for component in ["osm-controller", "osm-injector"] {
        let most = until_replicas(scene, component, |replicas| replicas > REPLICAS as u64, 240).await;
        scene.finding(
            format!("replicas of {component} under load"),
            format!("{} after {} s", show(&most), begun.elapsed().as_secs()),
            "more than 2, at most 4",
            most.is_ok_and(|replicas| replicas <= 4),
        );
    }
    scene
        .mesh
        .kubernetes
        .delete_namespaces(&[namespace.to_owned()], SOON)
        .await?;
    let over = Instant::now();
    for component in ["osm-controller", "osm-injector"] {
        let least = until_replicas(scene, component, |replicas| replicas == REPLICAS as u64, 600).await;
        scene.finding(
            format!("replicas of {component} when it is over"),
            format!("{} after {} s", show(&least), over.elapsed().as_secs()),
            2,
            least.is_ok(),
        );
    }
    scene.upgrade(&[]).await
}

fn show(replicas: &Result<u64>) -> String {
    match replicas {
        Ok(replicas) => replicas.to_string(),
        Err(error) => format!("{error:#}"),
    }
}

async fn until_replicas(
    scene: &Scene,
    component: &str,
    enough: impl Fn(u64) -> bool,
    seconds: u64,
) -> Result<u64> {
    eventually("the autoscaler", Duration::from_secs(seconds), async || {
        let deployment = scene
            .mesh
            .kubernetes
            .get("apps/v1/Deployment", Some(NAMESPACE), component)
            .await?;
        let replicas = deployment
            .as_ref()
            .and_then(|deployment| deployment["status"]["readyReplicas"].as_u64());
        let replicas = replicas.unwrap_or_default();
        let hpa = scene
            .mesh
            .kubernetes
            .get(
                "autoscaling/v2/HorizontalPodAutoscaler",
                Some(NAMESPACE),
                &format!("{component}-hpa"),
            )
            .await?;
        let metrics = hpa.map_or(Value::Null, |hpa| hpa["status"]["currentMetrics"].clone());
        ensure!(enough(replicas), "{replicas} are ready; it sees {metrics}");
        Ok(replicas)
    })
    .await
}

/// How many connections each controller has, by its pod.
fn counts(served: &BTreeMap<String, Sighting>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for sighting in served.values() {
        *counts.entry(&sighting.controller.pod).or_default() += 1;
    }
    let counts: Vec<String> = counts.values().map(usize::to_string).collect();
    counts.join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_counted_from_any_of_the_times() {
        let times = |fractions: &[&str]| {
            fractions
                .iter()
                .map(|fraction| format!("2026-01-01T00:00:{fraction}Z"))
                .collect()
        };
        assert_eq!(
            most_within_a_second(times(&["00.1", "00.5", "01.05", "01.2", "03"])).unwrap(),
            3
        );
        assert_eq!(most_within_a_second(Vec::new()).unwrap(), 0);
    }
}
