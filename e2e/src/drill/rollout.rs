//! Controllers and injectors that are restarted, drained and evicted in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::EvictParams;
use serde_json::json;

use super::scene::{COMPONENTS, REPLICAS, SOON, Scene};
use crate::cluster::node;
use crate::harness::mesh::NAMESPACE;

/// A proxy that is asked to go comes back elsewhere after at most one wait of Envoy's, 4 s when it is the longest.
const MOVED: Duration = Duration::from_secs(5);
/// What Envoy counts about its stream to the controller.
const CUT: &str = "cluster.osm-controller.upstream_cx_destroy_remote_with_active_rq";
const REFUSED: &str = "cluster.osm-controller.upstream_cx_connect_fail";

/// All controllers and injectors are replaced, as an upgrade does.
pub(super) async fn rolling_restart(scene: &Scene) -> Result<()> {
    let rounds = if scene.long { 5 } else { 1 };
    let before = scene.stats().await?;
    for _ in 0..rounds {
        for component in COMPONENTS {
            scene.restart(component).await?;
            scene.fault();
        }
    }
    scene.all_served(SOON).await?;
    scene.time(
        "longest time a sidecar was without a controller",
        scene.attendance.longest_gap(scene.begun),
        MOVED,
    );
    let after = scene.stats().await?;
    let grown = |is_meant: &dyn Fn(&str) -> bool| grown(&before, &after, is_meant);
    let (cut, _) = grown(&|name| name == CUT);
    scene.none("streams cut instead of ended", cut);
    let (refused, _) = grown(&|name| name == REFUSED);
    scene.none("sidecars sent to a controller that was gone", refused);
    let (updates, which) = grown(&|name| name.ends_with(".update_success") && is_configuration(name));
    scene.finding(
        "updates that sidecars got, apart from certificates",
        if updates == 0 {
            "0".to_owned()
        } else {
            format!("{updates}: {}", which.join(", "))
        },
        0,
        updates == 0,
    );
    let (listeners, _) = grown(&|name| {
        ["added", "modified", "removed", "in_place_updated"]
            .iter()
            .any(|change| name == format!("listener_manager.listener_{change}"))
    });
    scene.none("listeners added, changed, drained or removed", listeners);
    // The connections between sidecars, but for those that were idle for so long that they were closed.
    let of_pool =
        |end: &'static str| move |name: &str| name.starts_with("cluster.d-shop/web|") && name.ends_with(end);
    let (closed, _) = grown(&of_pool(".upstream_cx_destroy"));
    let (idle, _) = grown(&of_pool(".upstream_cx_idle_timeout"));
    scene.none(
        "connections between sidecars dropped",
        closed.saturating_sub(idle),
    );
    Ok(())
}

/// Whether a statistic is about configuration that must not be sent again: everything but certificates.
fn is_configuration(name: &str) -> bool {
    // The last counts answers of DNS.
    !name.contains(".client_ssl_socket_factory.")
        && !name.contains(".server_ssl_socket_factory.")
        && !name.starts_with("sds.")
        && !name.starts_with("cluster.osm-controller.")
}

type Stats = BTreeMap<String, BTreeMap<String, u64>>;

/// By how much the counters that are meant have grown, and where.
fn grown(before: &Stats, after: &Stats, is_meant: &dyn Fn(&str) -> bool) -> (u64, Vec<String>) {
    let (mut sum, mut which) = (0, Vec::new());
    for (pod, stats) in after {
        for (name, value) in stats.iter().filter(|(name, _)| is_meant(name)) {
            let earlier = before.get(pod).and_then(|stats| stats.get(name)).copied();
            let more = value.saturating_sub(earlier.unwrap_or_default());
            if more > 0 {
                sum += more;
                which.push(format!("{pod} {name} +{more}"));
            }
        }
    }
    which.truncate(4);
    (sum, which)
}

/// The node is cordoned and its control plane evicted: what the budget allows, until another node is there.
pub(super) async fn drained_node(scene: &Scene) -> Result<()> {
    let cordon = |on: bool| {
        let change = json!({ "spec": { "unschedulable": on } });
        async move {
            scene
                .mesh
                .kubernetes
                .merge("v1/Node", None, node::NAME, &change)
                .await
        }
    };
    cordon(true).await?;
    let evicted = evict_all_but_the_last(scene).await;
    cordon(false).await?;
    let (allowed, refused) = evicted?;
    scene.finding(
        "evictions of one of two replicas",
        format!("{allowed} allowed"),
        "2 allowed",
        allowed == 2,
    );
    scene.finding(
        "evictions of the last replica",
        format!("{refused} refused"),
        "2 refused",
        refused == 2,
    );
    for component in COMPONENTS {
        scene.mesh.component_ready(component, REPLICAS, SOON).await?;
    }
    // Now there is room elsewhere: those that stayed behind can go, too.
    for component in COMPONENTS {
        let oldest = oldest(scene, component).await?;
        ensure!(
            evict(scene, &oldest).await?,
            "{oldest} cannot be evicted though another is ready"
        );
        scene.mesh.component_ready(component, REPLICAS, SOON).await?;
    }
    scene.all_served(SOON).await?;
    scene.time(
        "longest time a sidecar was without a controller",
        scene.attendance.longest_gap(scene.begun),
        MOVED,
    );
    Ok(())
}

async fn evict_all_but_the_last(scene: &Scene) -> Result<(u32, u32)> {
    let (mut allowed, mut refused) = (0, 0);
    for component in COMPONENTS {
        let first = oldest(scene, component).await?;
        allowed += u32::from(evict(scene, &first).await?);
        scene.fault();
        // The budget is counted anew when the pod is on its way out.
        let begun = Instant::now();
        let mut last = oldest(scene, component).await?;
        while last == first && begun.elapsed() < SOON {
            tokio::time::sleep(Duration::from_millis(200)).await;
            last = oldest(scene, component).await?;
        }
        refused += u32::from(!evict(scene, &last).await?);
    }
    Ok((allowed, refused))
}

/// The oldest pod of a component that is not on its way out and runs somewhere.
async fn oldest(scene: &Scene, component: &str) -> Result<String> {
    let pods = scene.mesh.component(component).await?;
    pods.into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()))
        .min_by_key(|pod| pod.metadata.creation_timestamp.clone())
        .and_then(|pod| pod.metadata.name)
        .with_context(|| format!("no {component} runs"))
}

/// Asks for a pod to be evicted; says whether it was.
async fn evict(scene: &Scene, pod: &str) -> Result<bool> {
    let pods: Api<Pod> = Api::namespaced(scene.mesh.kubernetes.client(), NAMESPACE);
    match pods.evict(pod, &EvictParams::default()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 429 => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot evict {pod}")),
    }
}
