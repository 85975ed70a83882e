//! What becomes of a mesh whose provider of certificates stands still, is gone, or comes back as somebody else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::certificates::{Shown, all_new, shown, want_new};
use super::super::scene::{COMPONENTS, REPLICAS, SOON, Scene};
use super::Provider;
use super::witness::{
    kept, ready, refusal, refused, replace_one, signed_by, start_stranger, stored_root, tellers, waits,
};
use crate::harness::eventually;
use crate::harness::mesh::NAMESPACE;

/// Until all is well again: a provider that failed is left alone for 30 s at most, and who was told so tries again
/// after 30 s at most.
const RECOVERED: Duration = Duration::from_secs(90);
/// How long a provider stands still that is only slow: longer than any answer takes, shorter than it is waited for.
const SLOW: Duration = Duration::from_secs(8);
/// Long enough for what should not happen to happen.
const A_WHILE: Duration = Duration::from_secs(10);
/// All replicas.
const ALL: usize = COMPONENTS.len() * REPLICAS;

/// A real Vault.
pub(crate) async fn vault_outage(scene: &Scene) -> Result<()> {
    outage(scene).await
}

/// A real cert-manager: the same, and it is left no request.
pub(crate) async fn cert_manager_outage(scene: &Scene) -> Result<()> {
    outage(scene).await?;
    // They are deleted when they are answered; one may be under way.
    let left = eventually("requests to be deleted", RECOVERED, async || {
        let kind = "cert-manager.io/v1/CertificateRequest";
        let left = scene.mesh.kubernetes.list(kind, Some(NAMESPACE), "").await?;
        ensure!(left.is_empty(), "{} are left", left.len());
        Ok(left.len() as u64)
    });
    scene.none("CertificateRequests left behind", left.await?);
    Ok(())
}

async fn outage(scene: &Scene) -> Result<()> {
    let provider = scene.provider.as_deref().context("the mesh signs for itself")?;
    let stored = stored_root(scene).await?;
    start_stranger(scene).await?;
    signed_by(scene, &provider.first, "at first").await?;
    slow(scene, provider)
        .await
        .context("while the provider stood still")?;
    gone(scene, provider)
        .await
        .context("while the provider was gone")?;
    another(scene, provider)
        .await
        .context("while the provider had another root")?;
    signed_by(scene, &provider.first, "at last").await?;
    let same = stored_root(scene).await? == stored;
    let stayed = if same { "stayed" } else { "changed" };
    scene.finding("the stored root meanwhile", stayed, "stays", same);
    Ok(())
}

/// It answers late: all are renewed when it does, and everybody serves meanwhile.
async fn slow(scene: &Scene, provider: &Provider) -> Result<()> {
    let (before, frozen) = (shown(scene, Shown::ToSidecars).await?, provider.freeze()?);
    scene.fault();
    want_new(scene).await?;
    tokio::time::sleep(SLOW).await;
    kept(scene, &before, "while the provider stood still").await?;
    all_stay_ready(scene, "meanwhile").await?;
    drop(frozen);
    let begun = Instant::now();
    all_new(scene, &before, RECOVERED + SOON).await?;
    scene.time(
        "until all were renewed when it answered",
        begun.elapsed(),
        RECOVERED,
    );
    Ok(())
}

/// Nobody signs: who has certificates goes on, a new replica says what it waits for, a new pod is refused.
async fn gone(scene: &Scene, provider: &Provider) -> Result<()> {
    let reason = "CertificateIssuanceFailure";
    let (before, told_before) = (
        shown(scene, Shown::ToSidecars).await?,
        tellers(scene, reason).await?,
    );
    provider.scale(&scene.mesh, 0).await?;
    scene.fault();
    want_new(scene).await?;
    let begun = Instant::now();
    eventually("an Event", SOON, async || {
        let told = tellers(scene, reason).await?;
        ensure!(
            !told.is_subset(&told_before),
            "nobody says that nothing is renewed"
        );
        Ok(())
    })
    .await?;
    scene.time(
        "until an Event said that nothing is renewed",
        begun.elapsed(),
        SOON,
    );
    tokio::time::sleep(A_WHILE).await;
    kept(scene, &before, "without a provider").await?;
    all_stay_ready(scene, "without a provider").await?;
    for component in COMPONENTS {
        let newcomer = replace_one(scene, component).await?;
        let waited = waits(scene, &newcomer, reason, "").await?;
        scene.time(
            format!("until a new {component} said why it is not ready"),
            waited,
            SOON,
        );
    }
    refused(scene, "without a provider").await?;
    scene.all_served(SOON).await?;
    provider.scale(&scene.mesh, 1).await?;
    let begun = Instant::now();
    all_ready(scene).await?;
    scene.time(
        "from a provider that runs until all replicas were ready",
        begun.elapsed(),
        RECOVERED,
    );
    all_new(scene, &before, RECOVERED + SOON).await?;
    scene.time(
        "and until all sidecars had new certificates",
        begun.elapsed(),
        RECOVERED,
    );
    Ok(())
}

/// It has another root: nothing of that is used, nothing is replaced, everybody says so.
async fn another(scene: &Scene, provider: &Provider) -> Result<()> {
    let reason = "RootCertificateProblem";
    let before = shown(scene, Shown::ToSidecars).await?;
    provider.become_of(&scene.mesh, &provider.second).await?;
    scene.fault();
    for component in COMPONENTS {
        let newcomer = replace_one(scene, component).await?;
        let waited = waits(scene, &newcomer, reason, "not the one this mesh began with").await?;
        scene.time(
            format!("until a new {component} had refused the other root"),
            waited,
            SOON,
        );
    }
    // The others notice with the next certificate at the latest: of a sidecar, and of a pod that wants in.
    want_new(scene).await?;
    let (begun, mut admitted) = (Instant::now(), 0);
    eventually("all replicas to leave", SOON, async || {
        admitted += u64::from(refusal(scene).await?.is_none());
        let (ready, told) = (ready(scene).await?, tellers(scene, reason).await?);
        ensure!(ready == 0, "{ready} are ready");
        ensure!(told.len() == ALL, "Events are only about {told:?}");
        Ok(())
    })
    .await?;
    scene.time(
        "until all replicas had left, each with an Event",
        begun.elapsed(),
        SOON,
    );
    scene.none("pods admitted meanwhile", admitted);
    kept(scene, &before, "while the provider had another root").await?;
    provider.become_of(&scene.mesh, &provider.first).await?;
    let begun = Instant::now();
    all_ready(scene).await?;
    scene.time(
        "until all replicas were ready with the first root",
        begun.elapsed(),
        RECOVERED,
    );
    all_new(scene, &before, RECOVERED + SOON).await
}

async fn all_stay_ready(scene: &Scene, when: &str) -> Result<()> {
    let ready = ready(scene).await?;
    scene.finding(
        format!("replicas that are ready {when}"),
        ready,
        ALL,
        ready == ALL,
    );
    Ok(())
}

async fn all_ready(scene: &Scene) -> Result<()> {
    for component in COMPONENTS {
        scene.mesh.component_ready(component, REPLICAS, SOON).await?;
    }
    Ok(())
}
