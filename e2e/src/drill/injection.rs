//! Injectors: one answer whoever gives it, and nothing left behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use nix::sys::signal::Signal;
use osm_core::api::{labels::PROXY_UUID, names::BOOTSTRAP_SECRET_PREFIX};
use serde_json::{Value, json};

use super::bed::{LATE, SHOP};
use super::node;
use super::scene::{REPLICAS, SOON, Scene};
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Workload, eventually};
use crate::suite::webhook::{self, Review};

/// Reviews under way at once.
const AT_ONCE: usize = 8;

/// Each request is delivered four times, at once and through different replicas, one of which is killed meanwhile.
pub(super) async fn repeated_admission(scene: &Scene) -> Result<()> {
    let count = if scene.long { 200 } else { 24 };
    let before = secrets(scene).await?;
    let injectors = webhook::injector(&scene.mesh).await?;
    ensure!(injectors.len() >= 2, "there is only {} injector", injectors.len());
    let deliver = |number: usize| {
        let pod = Workload::client(&format!("never-{number}"))
            .account(LATE)
            .pod(SHOP, &scene.mesh.images.demo);
        let uid = format!("6f2cbd2e-91a5-4b53-8f1c-{number:012}");
        let (review, injectors) = (Review::create_pod(SHOP, pod, &uid), &injectors);
        async move {
            let deliveries = (0..4).map(|delivery| {
                let injector = &injectors[(number + delivery) % injectors.len()];
                injector.post("/mutate-pod-creation", &review.body)
            });
            let mut patches = BTreeSet::new();
            for answer in futures::future::join_all(deliveries).await {
                // One of the replicas is killed meanwhile: the API server would ask another one.
                let Ok(answer) = answer else { continue };
                let body: Value = serde_json::from_str(&answer.body)?;
                let patch = body["response"]["patch"]
                    .as_str()
                    .with_context(|| format!("refused: {body}"))?;
                patches.insert(patch.to_owned());
            }
            anyhow::Ok(patches.len())
        }
    };
    let begun = Instant::now();
    let mut results = futures::stream::iter((0..count).map(deliver)).buffer_unordered(AT_ONCE);
    let (mut several, mut none, mut done) = (0, 0, 0);
    while let Some(patches) = results.next().await {
        match patches? {
            0 => none += 1,
            1 => {}
            _ => several += 1,
        }
        done += 1;
        if done == count / 2 {
            let victim = node::processes("osm-injector")?
                .into_iter()
                .next()
                .context("no injector runs")?;
            victim.signal(Signal::SIGKILL)?;
            scene.fault();
            scene.replace(&victim.pod).await?;
        }
    }
    drop(results);
    let took = begun.elapsed();
    let made = secrets(scene).await?.difference(&before).count();
    scene.none("requests answered with different patches", several);
    scene.none("requests that no replica answered", none);
    scene.finding(
        format!(
            "bootstrap Secrets of {count} requests, each delivered 4 times in {:.1} s",
            took.as_secs_f64()
        ),
        made,
        count,
        made == count,
    );
    for name in secrets(scene).await?.difference(&before) {
        scene
            .mesh
            .kubernetes
            .delete("v1/Secret", Some(SHOP), name)
            .await?;
    }
    scene.mesh.component_ready("osm-injector", REPLICAS, SOON).await
}

/// Three injectors instead of one, for pods that are created as fast as they are admitted. Each injector gets a
/// tenth of a processor, so that it is they that are short and not this machine, and yet none is so slow that the API
/// server loses patience: it would then connect anew, and find the others by that.
pub(super) async fn injectors_added(scene: &Scene) -> Result<()> {
    let little = ["limits", "requests"].map(|kind| format!("injector.resource.{kind}.cpu=0.1"));
    scene.upgrade(&little.each_ref().map(String::as_str)).await?;
    let time = Duration::from_secs(20);
    scene.scale("osm-injector", 1).await?;
    let alone = admitted_in(scene, time).await?;
    scene.scale("osm-injector", 3).await?;
    scene.fault();
    // The API server's connections to the first one live for a minute.
    admitted_in(scene, Duration::from_secs(65)).await?;
    let together = admitted_in(scene, time).await?;
    scene.finding(
        "pods admitted in 20 s, by 1 injector and by 3 a minute after they came",
        format!("{alone} and {together}"),
        "at least twice as many by 3",
        alone > 0 && together >= 2 * alone,
    );
    scene.upgrade(&[]).await
}

/// How many pods the API server admits in that time.
async fn admitted_in(scene: &Scene, time: Duration) -> Result<usize> {
    let pods: Api<Pod> = Api::namespaced(scene.mesh.kubernetes.client(), SHOP);
    let mut pod = Workload::client("crowd")
        .account(LATE)
        .pod(SHOP, &scene.mesh.images.demo);
    // For no scheduler: they are to be admitted, not to run.
    pod["spec"]["schedulerName"] = json!("nobody");
    pod["metadata"]["name"] = Value::Null;
    pod["metadata"]["generateName"] = json!("crowd-");
    pod["metadata"]["labels"]["crowd"] = json!("yes");
    let pod: Pod = serde_json::from_value(pod)?;
    let begun = Instant::now();
    let create = async || {
        let mut created = 0;
        while begun.elapsed() < time {
            // Too few injectors may mean that the API server's patience ends.
            created += usize::from(pods.create(&PostParams::default(), &pod).await.is_ok());
        }
        created
    };
    let created = futures::future::join_all((0..4 * AT_ONCE).map(|_| create())).await;
    let all = ListParams::default().labels("crowd=yes");
    pods.delete_collection(&DeleteParams::default().grace_period(0), &all)
        .await?;
    Ok(created.into_iter().sum())
}

/// Pods that were admitted and never came: their Secrets go after the grace period, those of living pods stay.
pub(super) async fn orphaned_secrets(scene: &Scene) -> Result<()> {
    let grace = json!([{ "op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--bootstrap-grace=1m" }]);
    let patch = [
        "patch",
        "deployment",
        "-n",
        NAMESPACE,
        "osm-injector",
        "--type=json",
        "-p",
        &grace.to_string(),
    ];
    scene.mesh.kubernetes.kubectl(&patch, "").await?;
    scene.rolled_out("osm-injector").await?;
    let before = secrets(scene).await?;
    let living = secrets_of_pods(scene).await?;
    let injectors = webhook::injector(&scene.mesh).await?;
    let count = 20;
    for number in 0..count {
        let pod = Workload::client(&format!("never-{number}"))
            .account(LATE)
            .pod(SHOP, &scene.mesh.images.demo);
        let uid = format!("0d2cbd2e-91a5-4b53-8f1c-{number:012}");
        let review = Review::create_pod(SHOP, pod, &uid);
        injectors[number % injectors.len()]
            .post("/mutate-pod-creation", &review.body)
            .await?;
        scene.fault();
    }
    let made = secrets(scene).await?.difference(&before).count();
    ensure!(
        made == count,
        "{made} Secrets were made for {count} pods that never came"
    );
    let begun = Instant::now();
    // A minute of grace after the first round that sees them; two rounds of 36 s at most.
    let collected = eventually(
        "the Secrets to be collected",
        Duration::from_secs(240),
        async || {
            let left = secrets(scene).await?.difference(&before).count();
            ensure!(left == 0, "{left} are left");
            Ok(())
        },
    )
    .await;
    scene.finding(
        format!("Secrets of {count} pods that never came"),
        match collected {
            Ok(()) => format!("gone after {} s", begun.elapsed().as_secs()),
            Err(error) => format!("{error:#}"),
        },
        "gone, with 60 s of grace after at most 140 s",
        begun.elapsed() < Duration::from_secs(141),
    );
    let lost = living.difference(&secrets(scene).await?).count();
    scene.none("Secrets of living pods that went with them", lost as u64);
    scene.upgrade(&[]).await
}

/// The names of the bootstrap Secrets in the shop.
async fn secrets(scene: &Scene) -> Result<BTreeSet<String>> {
    let kubernetes = &scene.mesh.kubernetes;
    let secrets = kubernetes.list("v1/Secret", Some(SHOP), PROXY_UUID).await?;
    let names = secrets
        .iter()
        .filter_map(|secret| secret["metadata"]["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Those of them whose pods exist. A drill before may have left others, which are being collected.
async fn secrets_of_pods(scene: &Scene) -> Result<BTreeSet<String>> {
    let kubernetes = &scene.mesh.kubernetes;
    let pods = kubernetes.list("v1/Pod", Some(SHOP), PROXY_UUID).await?;
    let uuids = pods
        .iter()
        .filter_map(|pod| pod["metadata"]["labels"][PROXY_UUID].as_str());
    let secrets: BTreeSet<_> = uuids
        .map(|uuid| format!("{BOOTSTRAP_SECRET_PREFIX}{uuid}"))
        .collect();
    ensure!(!secrets.is_empty(), "no pod of the shop has a sidecar");
    Ok(secrets)
}
