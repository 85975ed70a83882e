//! The whole control plane gone: the mesh runs headless.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::bed::{self, BACKENDS, LATE, SHOP, URL};
use super::node;
use super::scene::{COMPONENTS, REPLICAS, SOON, Scene};
use crate::harness::mesh::NAMESPACE;
use crate::harness::policy::{any_route, http_rule, traffic_target};
use crate::harness::{Workload, eventually};

/// No controller, no injector; two of three backends die meanwhile, one by SIGKILL of all it runs, one with its whole
/// network. Then everything comes back, and with it what was changed meanwhile.
pub(super) async fn headless(scene: &Scene) -> Result<()> {
    let outage = Duration::from_secs(if scene.long { 600 } else { 45 });
    // Its routes come during the outage: they are not validated, TrafficTargets are.
    let target = traffic_target(
        "late",
        (SHOP, "web"),
        &[http_rule("late", &["any"])],
        &[(SHOP, LATE)],
    );
    scene.mesh.kubernetes.apply(&[target]).await?;
    for component in COMPONENTS {
        scene.scale(component, 0).await?;
    }
    let begun = Instant::now();
    for component in COMPONENTS {
        ensure!(
            node::processes(component)?.is_empty(),
            "some {component} still runs"
        );
    }
    scene.fault();

    admission_while_absent(scene).await?;
    tokio::time::sleep(outage / 4).await;
    kill_backend(scene, BACKENDS[2]).await?;
    scene.fault();
    tokio::time::sleep(outage / 4).await;
    bed::remove(&scene.mesh, BACKENDS[1]).await?;
    scene.fault();
    let late = bed::peer(&scene.mesh, LATE).await?;
    let denied = late.get(URL, &[]).await?;
    ensure!(
        denied.status != Some(200),
        "{LATE} should not have been let in yet: {denied:?}"
    );
    scene.mesh.kubernetes.apply(&[any_route(SHOP, "late")]).await?;
    tokio::time::sleep(outage.saturating_sub(begun.elapsed())).await;
    let loss = scene.loss().await?;
    scene.finding(
        format!("requests while nobody answered, {} s", begun.elapsed().as_secs()),
        loss.summary(),
        "0 failed",
        loss.failed == 0,
    );

    let back = Instant::now();
    for component in COMPONENTS {
        scene.scale(component, REPLICAS).await?;
    }
    let ready = back.elapsed();
    scene.all_served(SOON).await?;
    scene.time(
        "from two ready replicas until every sidecar was served",
        back.elapsed() - ready,
        Duration::from_secs(10),
    );
    eventually("what changed meanwhile", SOON, async || {
        let answer = late.get(URL, &[]).await?;
        ensure!(answer.status == Some(200), "{answer:?}");
        Ok(())
    })
    .await?;
    scene.time(
        "and until what changed meanwhile had arrived",
        back.elapsed() - ready,
        Duration::from_secs(15),
    );
    for kind in [
        "access.smi-spec.io/v1alpha3/TrafficTarget",
        "specs.smi-spec.io/v1alpha4/HTTPRouteGroup",
    ] {
        scene.mesh.kubernetes.delete(kind, Some(SHOP), "late").await?;
    }
    // Whole again while requests are still counted: coming back loses none either.
    bed::make_whole(&scene.mesh).await?;
    scene.all_served(SOON).await
}

/// SIGKILL of everything in a pod, its sidecar included.
async fn kill_backend(scene: &Scene, name: &str) -> Result<()> {
    let pods = scene.mesh.kubernetes.pods(SHOP, "").await?;
    let uid = pods
        .into_iter()
        .find(|pod| pod.metadata.name.as_deref() == Some(name))
        .and_then(|pod| pod.metadata.uid)
        .unwrap_or_default();
    let mut killed = 0;
    for process in node::processes_of_pod(&uid)? {
        // Its end may have ended others of the pod.
        killed += u32::from(process.signal(Signal::SIGKILL).is_ok());
    }
    ensure!(killed >= 2, "{name} has no application and sidecar to kill");
    Ok(())
}

/// Pods of the mesh are refused, with a reason; nobody else's are touched.
async fn admission_while_absent(scene: &Scene) -> Result<()> {
    let kubernetes = &scene.mesh.kubernetes;
    let create = async |namespace: &str| {
        let mut pod = Workload::client("lockout").pod(namespace, &scene.mesh.images.demo);
        pod["spec"]["serviceAccountName"] = "default".into();
        kubernetes.dry_run(&pod).await.map(drop)
    };
    let refusal = create(SHOP).await.err().map(|error| format!("{error:#}"));
    let reason = refusal.unwrap_or_else(|| "admitted without a sidecar".to_owned());
    let told = reason.contains("osm-inject.k8s.io");
    scene.finding(
        "new pods of the mesh meanwhile",
        reason.chars().take(160).collect::<String>(),
        "refused, naming the webhook",
        told,
    );
    let mut locked_out = Vec::new();
    for namespace in ["default", "kube-system", NAMESPACE] {
        if let Err(error) = create(namespace).await {
            locked_out.push(format!("{namespace}: {error:#}"));
        }
    }
    scene.finding(
        "new pods of default, kube-system and the control plane's namespace",
        if locked_out.is_empty() {
            "admitted".to_owned()
        } else {
            locked_out.join("; ")
        },
        "admitted",
        locked_out.is_empty(),
    );
    Ok(())
}
