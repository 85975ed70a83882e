//! What is seen of a mesh whose provider fails: who signed what is on the wire, who is ready, what Events say, and
//! whether pods are admitted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use osm_core::api::names;
use serde_json::Value;

use super::super::bed::{self, BACKENDS, CLIENT, SHOP};
use super::super::certificates::{Shown, shown};
use super::super::scene::{COMPONENTS, SOON, Scene};
use super::HOME;
use super::authority::Authority;
use crate::harness::kubernetes::is_ready;
use crate::harness::mesh::{NAMESPACE, TRUST_DOMAIN};
use crate::harness::peer::CONTAINER;
use crate::harness::runner::POD_READY;
use crate::harness::{Peer, Workload, eventually};

/// A pod outside the mesh, which looks at certificates.
const STRANGER: &str = "stranger";
/// A pod that is not to be admitted.
const UNWANTED: &str = "unwanted";

/// Starts the pod that looks at certificates from outside.
pub(super) async fn start_stranger(scene: &Scene) -> Result<()> {
    let stranger = Workload::client(STRANGER);
    let kubernetes = &scene.mesh.kubernetes;
    let pod = stranger.pod(HOME, &scene.mesh.images.demo);
    kubernetes.apply(&[stranger.service_account(HOME), pod]).await?;
    kubernetes.ready(HOME, STRANGER, POD_READY).await.map(drop)
}

/// Notes who signed what a backend shows on the wire, and whom the sidecars trust.
pub(super) async fn signed_by(scene: &Scene, authority: &Authority, when: &str) -> Result<()> {
    let stranger = Peer::find(&scene.mesh.kubernetes, HOME, STRANGER, CONTAINER).await?;
    let backend = bed::peer(&scene.mesh, BACKENDS[0]).await?;
    let sni = format!("web.{SHOP}.svc.{TRUST_DOMAIN}");
    let address = format!("{}:8080", backend.ip);
    let shown = stranger.tls(&address, &["--sni", &sni, "--alpn", "osm"]).await?;
    let leaf = shown.certificates.first();
    let leaf = leaf.with_context(|| format!("no certificate was shown: {shown:?}"))?;
    let name = format!("web.{SHOP}.{TRUST_DOMAIN}");
    scene.finding(
        format!("certificate on the wire, {when}"),
        format!("{} by {}", leaf.common_name, leaf.issuer),
        format!("{name} by {}", authority.name),
        leaf.common_name == name && leaf.issuer == authority.name,
    );
    let mut trusted = BTreeSet::new();
    for pod in BACKENDS.iter().chain(&[CLIENT]) {
        trusted.extend(bed::peer(&scene.mesh, pod).await?.envoy().authorities().await?);
    }
    let alone = trusted.iter().eq([&authority.serial]);
    scene.finding(
        format!("CAs that the sidecars trust, {when}"),
        format!("{trusted:?}"),
        format!("{} alone", authority.serial),
        alone,
    );
    Ok(())
}

/// Notes how many sidecars show another certificate than before, or none: none may.
pub(super) async fn kept(scene: &Scene, before: &BTreeMap<String, String>, when: &str) -> Result<()> {
    let now = shown(scene, Shown::ToSidecars).await?;
    let changed = before
        .iter()
        .filter(|(pod, serial)| now.get(*pod) != Some(serial));
    scene.none(
        format!(
            "of {} sidecars, those without their old certificate {when}",
            before.len()
        ),
        changed.count() as u64,
    );
    Ok(())
}

/// How many replicas of both components are ready.
pub(super) async fn ready(scene: &Scene) -> Result<usize> {
    let mut count = 0;
    for component in COMPONENTS {
        let pods = scene.mesh.component(component).await?;
        count += pods.iter().filter(|pod| is_ready(pod)).count();
    }
    Ok(count)
}

async fn names(scene: &Scene, component: &str) -> Result<Vec<String>> {
    let pods = scene.mesh.component(component).await?;
    Ok(pods.into_iter().filter_map(|pod| pod.metadata.name).collect())
}

/// Replaces one replica; returns the name of the one that comes in its place.
pub(super) async fn replace_one(scene: &Scene, component: &str) -> Result<String> {
    let before = names(scene, component).await?;
    let victim = before
        .first()
        .with_context(|| format!("there is no {component}"))?;
    scene.replace(victim).await?;
    eventually(&format!("another {component}"), SOON, async || {
        let now = names(scene, component).await?;
        let new = now.into_iter().find(|name| !before.contains(name));
        new.context("there is none")
    })
    .await
}

/// Waits until Events say for this reason, in these words, why a new replica is not ready, and checks that it is not;
/// returns how long it took.
pub(super) async fn waits(scene: &Scene, pod: &str, reason: &str, words: &str) -> Result<Duration> {
    let begun = Instant::now();
    eventually(&format!("{pod} to say {reason}"), SOON, async || {
        let told = events(scene, pod).await?;
        let said = |(found, note): &(String, String)| found == reason && note.contains(words);
        ensure!(told.iter().any(said), "it says {told:?}");
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    let pods = scene.mesh.kubernetes.pods(NAMESPACE, "").await?;
    let found = pods
        .iter()
        .find(|found| found.metadata.name.as_deref() == Some(pod));
    ensure!(
        found.is_some_and(|found| !is_ready(found)),
        "{pod} is gone or ready"
    );
    Ok(took)
}

/// The replicas about which an Event tells for this reason.
pub(super) async fn tellers(scene: &Scene, reason: &str) -> Result<BTreeSet<String>> {
    let mut tellers = BTreeSet::new();
    for component in COMPONENTS {
        for pod in names(scene, component).await? {
            if events(scene, &pod)
                .await?
                .iter()
                .any(|(found, _)| found == reason)
            {
                tellers.insert(pod);
            }
        }
    }
    Ok(tellers)
}

/// The Events about a pod of the control plane: reasons and notes.
async fn events(scene: &Scene, pod: &str) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = "events.k8s.io/v1/Event";
    let all = scene.mesh.kubernetes.list(kind, Some(NAMESPACE), "").await?;
    let mine = all.iter().filter(|event| event["regarding"]["name"] == pod);
    Ok(mine
        .map(|event| (text(&event["reason"]), text(&event["note"])))
        .collect())
}

/// Tries to bring a pod into the mesh; returns with which words a webhook refused it, if one did.
pub(super) async fn refusal(scene: &Scene) -> Result<Option<String>> {
    let pod = Workload::client(UNWANTED)
        .account(CLIENT)
        .pod(SHOP, &scene.mesh.images.demo);
    match scene.mesh.kubernetes.create(&pod).await {
        Ok(_) => {
            bed::remove(&scene.mesh, UNWANTED).await?;
            Ok(None)
        }
        Err(error) => {
            let words = format!("{error:#}");
            ensure!(
                words.contains("webhook"),
                "something else refused the pod: {words}"
            );
            // The same follows twice more, in the API's own terms.
            let first = words.split(" (Status").next().unwrap_or_default();
            Ok(Some(first.to_owned()))
        }
    }
}

/// Notes that a new pod is refused, with the webhook's words.
pub(super) async fn refused(scene: &Scene, when: &str) -> Result<()> {
    let words = refusal(scene).await?;
    scene.finding(
        format!("a new pod of the mesh {when}"),
        words.as_deref().unwrap_or("was admitted"),
        "refused by the webhook",
        words.is_some(),
    );
    Ok(())
}

/// What the mesh keeps of its root.
pub(super) async fn stored_root(scene: &Scene) -> Result<Value> {
    let name = names::CA_BUNDLE_SECRET;
    let secret = scene
        .mesh
        .kubernetes
        .get("v1/Secret", Some(NAMESPACE), name)
        .await?;
    Ok(secret.with_context(|| format!("no Secret {name}"))?["data"].clone())
}
