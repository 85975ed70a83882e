//! Bootstrap Secrets after their pods are admitted: given to their pods, renewed, collected.
//!
//! Owns the rounds; what is to be done is decided in `osm_core::injection`. One replica at a time does them (a Lease),
//! and two doing them do no harm: each write names the Secret's uid or version it is meant for. Invariants: a round
//! holds metadata only; the service account of a renewed certificate is the one the pod runs under and the one it was
//! admitted with, both; a Secret that fails does not keep the others.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use osm_core::{
    api::labels::{APP_INSTANCE, APP_NAME, APP_NAME_VALUE, PROXY_UUID},
    certificate::rotation::progress::Count,
    identity::{ProxyIdentity, ServiceIdentity},
    injection::{Action, PodView, SecretView, Upkeep, UpkeepRules, bootstrap_account, lag},
    status::Held,
};
use osm_runtime::{
    CancellationToken,
    backoff::jittered,
    client::{CALL, ClientError, retrying, within},
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::bootstrap::Bootstraps;

/// Time between rounds, jittered by a fifth.
const PERIOD: Duration = Duration::from_secs(30);
/// From a change of the roots until the next round.
const SOON: Duration = Duration::from_secs(2);
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Writes at a time.
const CONCURRENT: usize = 8;

/// The Secrets of pods as the last round found them. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    last: Arc<Mutex<Option<Found>>>,
}

/// How many there are, and when the certificate that ends first does.
type Found = (u64, Option<Timestamp>);

impl Seen {
    /// How many certificates sidecars connect with, made to live for `validity`, and the end of the one that ends first;
    /// nothing if this replica does no rounds.
    pub fn held(&self, validity: Duration) -> Option<Held> {
        self.last.lock().map(|(count, first)| Held {
            count,
            first_not_after: first.map(|first| first.as_second()),
            lifetime_seconds: validity.as_secs(),
        })
    }

    fn set(&self, secrets: Option<&[SecretView]>) {
        *self.last.lock() = secrets.map(|secrets| {
            // One without a pod is on its way to be collected.
            let used = secrets.iter().filter(|secret| secret.owned);
            let ends = used.clone().filter_map(|secret| secret.not_after);
            (used.count() as u64, ends.min())
        });
    }
}

/// Does rounds while `leader` says so, until `stop`; one more soon after the roots or the signer changed. `seen` tells
/// what they find, and `counted` is
/// what the last round found of Secrets that lack them; `None` when another replica does the rounds.
pub async fn keep(
    bootstraps: Bootstraps,
    seen: Seen,
    grace: Duration,
    mut leader: watch::Receiver<bool>,
    counted: watch::Sender<Option<Count>>,
    stop: CancellationToken,
) {
    let begun = Instant::now();
    let (mut roots, mut signer) = (
        bootstraps.issuer().watch_roots(),
        bootstraps.issuer().watch_signer(),
    );
    let run = async {
        loop {
            counted.send_replace(None);
            if leader.wait_for(|leading| *leading).await.is_err() {
                return;
            }
            // What an earlier leader saw is not known: Secrets without pods are counted from here.
            let mut upkeep = Upkeep::default();
            while *leader.borrow() {
                roots.mark_unchanged();
                signer.mark_unchanged();
                match round(&bootstraps, &seen, &mut upkeep, grace, begun.elapsed()).await {
                    Ok(count) => drop(counted.send_replace(Some(count))),
                    Err(error) => tracing::warn!(%error, "bootstrap Secrets cannot be looked after now"),
                }
                let rotated = tokio::select! {
                    () = tokio::time::sleep(jittered(PERIOD, 0.2)) => false,
                    Ok(()) = roots.changed() => true,
                    Ok(()) = signer.changed() => true,
                    _ = leader.wait_for(|leading| !*leading) => false,
                };
                if rotated {
                    // What belongs together has changed by then: roots and signer.
                    tokio::time::sleep(jittered(SOON, 0.5)).await;
                }
            }
            seen.set(None);
        }
    };
    tokio::select! { () = run => {}, () = stop.cancelled() => {} }
}

/// Looks at all Secrets and pods once, and does what is to be done. Returns how many Secrets there are, and how many of
/// them did not hold the present roots and signer before.
///
/// # Errors
/// When they cannot be listed. What fails for one Secret is logged and done again in the next round.
pub async fn round(
    bootstraps: &Bootstraps,
    seen: &Seen,
    upkeep: &mut Upkeep,
    grace: Duration,
    elapsed: Duration,
) -> Result<Count, ClientError> {
    let client = bootstraps.client();
    let selector = format!(
        "{APP_NAME}={APP_NAME_VALUE},{APP_INSTANCE}={},{PROXY_UUID}",
        bootstraps.owner().mesh_name
    );
    // Secrets first: a pod that comes between the two lists is then only found early.
    let secrets = list(&Api::<Secret>::all(client.clone()), &selector, SecretView::of).await?;
    let pods = list(&Api::<Pod>::all(client.clone()), PROXY_UUID, PodView::of).await?;
    seen.set(Some(&secrets));
    let pods: BTreeSet<PodView> = pods.into_iter().collect();
    let tag = bootstraps.tag();
    let rules = UpkeepRules {
        grace,
        validity: bootstraps.owner().validity,
        trust_bundle: &tag,
    };
    let count = lag(&secrets, &pods, &tag);
    let actions = upkeep.round(&secrets, &pods, &rules, elapsed, Timestamp::now());
    futures::stream::iter(actions)
        .for_each_concurrent(CONCURRENT, |(secret, action)| async move {
            match Box::pin(act(bootstraps, &secret, action)).await {
                Ok(what) => bootstraps.metrics().count(what),
                Err(error) => {
                    bootstraps.metrics().count("failed");
                    tracing::warn!(namespace = secret.namespace, secret = secret.name, %error, "upkeep of a Secret failed");
                }
            }
        })
        .await;
    Ok(count)
}

/// All objects of the selector, page by page, as far as they are of interest.
async fn list<K, T>(
    api: &Api<K>,
    selector: &str,
    read: impl Fn(&ObjectMeta) -> Option<T>,
) -> Result<Vec<T>, ClientError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + fmt::Debug + DeserializeOwned,
{
    let mut params = ListParams::default().labels(selector).limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = retrying(CALL, || api.list_metadata(&params)).await?;
        all.extend(page.items.iter().filter_map(|object| read(&object.metadata)));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(all),
        }
    }
}

/// Why nothing came of an action.
#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no certificate: {0}")]
    Issue(#[from] osm_runtime::issuer::IssueError),
    #[error("pod {0} is not the one the Secret was made for: its proxy or service account is another")]
    OtherPod(String),
}

/// Does one thing, and says which.
async fn act(
    bootstraps: &Bootstraps,
    view: &SecretView,
    action: Action,
) -> Result<&'static str, UpkeepError> {
    let api = Api::<Secret>::namespaced(bootstraps.client().clone(), &view.namespace);
    match action {
        Action::Adopt(pod) => {
            // The uid makes it fail for a Secret that was made again meanwhile.
            let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid });
            let patch = json!({ "metadata": { "uid": view.uid, "ownerReferences": [owner] } });
            within(
                CALL,
                api.patch_metadata(&view.name, &PatchParams::default(), &Patch::Merge(patch)),
            )
            .await?;
            Ok("adopted")
        }
        Action::Renew(pod) => {
            Box::pin(renew(bootstraps, &api, view, &pod)).await?;
            Ok("renewed")
        }
        Action::Delete => {
            let preconditions = Preconditions {
                uid: Some(view.uid.clone()),
                ..Default::default()
            };
            let params = DeleteParams {
                preconditions: Some(preconditions),
                ..Default::default()
            };
            match within(CALL, api.delete(&view.name, &params)).await {
                Ok(_) => Ok("deleted"),
                Err(error) if error.is_not_found() => Ok("deleted"),
                Err(error) => Err(error.into()),
            }
        }
    }
}

/// Puts a new certificate into the Secret. The kubelet brings it into the pod, Envoy reads it from there.
async fn renew(
    bootstraps: &Bootstraps,
    api: &Api<Secret>,
    view: &SecretView,
    pod: &PodView,
) -> Result<(), UpkeepError> {
    let pods = Api::<Pod>::namespaced(bootstraps.client().clone(), &view.namespace);
    let found = within(CALL, pods.get(&pod.name)).await?;
    let mut secret = within(CALL, api.get(&view.name)).await?;
    let other = || UpkeepError::OtherPod(pod.name.clone());
    let account = found
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .ok_or_else(other)?;
    let same_pod = PodView::of(&found.metadata).as_ref() == Some(pod);
    if !same_pod || bootstrap_account(&secret) != Some(account.as_str()) {
        return Err(other());
    }
    let uuid = view.proxy.parse().map_err(|_| other())?;
    let proxy = ProxyIdentity {
        uuid,
        service: ServiceIdentity::new(view.namespace.as_str(), account),
    };
    let issued = bootstraps.issue(&proxy).await?;
    bootstraps.describe(&proxy, "", "", &issued).renew(&mut secret);
    within(CALL, api.replace(&view.name, &PostParams::default(), &secret)).await?;
    tracing::info!(
        namespace = view.namespace,
        pod = pod.name,
        "renewed a sidecar's certificate"
    );
    Ok(())
}
