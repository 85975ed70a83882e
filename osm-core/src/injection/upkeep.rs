//! What becomes of bootstrap Secrets after their pods are admitted.
//!
//! Owns the decision per Secret: give it to its pod, renew its certificate, delete it, or leave it. Must not act.
//! Invariants: a Secret that has an owner is never deleted here, that is Kubernetes' business; one without a pod is
//! deleted only after it was seen so for the whole grace period, measured by the caller's monotonic clock, so that no
//! jump of the wall clock deletes the Secret of a pod that is about to exist.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::secret::{NOT_AFTER, TRUST_BUNDLE};
use crate::{api::labels::PROXY_UUID, certificate::rotation::progress::Count};

/// A bootstrap Secret, by its metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its own uid: a Secret made again under the same name is another.
    pub uid: String,
    /// The proxy it is for.
    pub proxy: String,
    /// Whether it has an owner, and is collected by Kubernetes with it.
    pub owned: bool,
    /// When its certificate expires; absent if nobody can tell.
    pub not_after: Option<Timestamp>,
    /// The roots in it.
    pub trust_bundle: Option<String>,
}

/// A pod of the mesh, by its metadata.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The proxy in it.
    pub proxy: String,
}

impl SecretView {
    /// What the metadata of a bootstrap Secret says; nothing for other Secrets.
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        let annotation = |key| metadata.annotations.as_ref()?.get(key);
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            proxy: metadata.labels.as_ref()?.get(PROXY_UUID)?.clone(),
            owned: metadata
                .owner_references
                .as_ref()
                .is_some_and(|owners| !owners.is_empty()),
            not_after: annotation(NOT_AFTER).and_then(|text| text.parse().ok()),
            trust_bundle: annotation(TRUST_BUNDLE).cloned(),
        })
        .filter(|secret| {
            secret.name == format!("{}{}", crate::api::names::BOOTSTRAP_SECRET_PREFIX, secret.proxy)
        })
    }
}

impl PodView {
    /// What the metadata of a pod with a sidecar says; nothing for other pods.
    pub fn of(metadata: &ObjectMeta) -> Option<Self> {
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            proxy: metadata.labels.as_ref()?.get(PROXY_UUID)?.clone(),
        })
    }
}

/// What to do with a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make the pod its owner.
    Adopt(PodView),
    /// Put a new certificate into it, for the pod.
    Renew(PodView),
    /// Delete it, if it still has this uid: its pod never came.
    Delete,
}

/// The rules.
#[derive(Debug, Clone, Copy)]
pub struct UpkeepRules<'a> {
    /// How long a Secret may be without a pod.
    pub grace: Duration,
    /// How long certificates are valid.
    pub validity: Duration,
    /// The tag of the present roots.
    pub trust_bundle: &'a str,
}

/// The memory from one round to the next: since when each Secret has been seen without a pod. It holds only those, so
/// it is as large as the number of admissions that failed elsewhere within the grace period.
#[derive(Debug, Default)]
pub struct Upkeep {
    orphans: BTreeMap<String, Duration>,
}

impl Upkeep {
    /// What to do in this round. `elapsed` is a monotonic clock with any zero, `now` the time of day.
    pub fn round(
        &mut self,
        secrets: &[SecretView],
        pods: &BTreeSet<PodView>,
        rules: &UpkeepRules<'_>,
        elapsed: Duration,
        now: Timestamp,
    ) -> Vec<(SecretView, Action)> {
        let pods: BTreeMap<(&str, &str), &PodView> = pods
            .iter()
            .map(|pod| ((pod.namespace.as_str(), pod.proxy.as_str()), pod))
            .collect();
        let mut orphans = BTreeMap::new();
        let mut actions = Vec::new();
        for secret in secrets {
            let action = match pods.get(&(secret.namespace.as_str(), secret.proxy.as_str())) {
                Some(pod) if is_due(secret, rules, now) => Some(Action::Renew((*pod).clone())),
                Some(pod) if !secret.owned => Some(Action::Adopt((*pod).clone())),
                None if !secret.owned => {
                    let since = self.orphans.get(&secret.uid).copied().unwrap_or(elapsed);
                    orphans.insert(secret.uid.clone(), since);
                    (elapsed.saturating_sub(since) >= rules.grace).then_some(Action::Delete)
                }
                _ => None,
            };
            actions.extend(action.map(|action| (secret.clone(), action)));
        }
        self.orphans = orphans;
        #[cfg(feature = "sabotage")]
        if crate::sabotage::Fault::NoCollection.is_on() {
            actions.retain(|(_, action)| *action != Action::Delete);
        }
        actions
    }
}

/// How many Secrets belong to a pod, and how many of those do not hold the bundle and the signer of `trust_bundle` yet.
pub fn lag(secrets: &[SecretView], pods: &BTreeSet<PodView>, trust_bundle: &str) -> Count {
    let pods: BTreeSet<(&str, &str)> = pods
        .iter()
        .map(|pod| (pod.namespace.as_str(), pod.proxy.as_str()))
        .collect();
    let mut count = Count::default();
    for secret in secrets {
        if pods.contains(&(secret.namespace.as_str(), secret.proxy.as_str())) {
            count.total += 1;
            count.behind += u64::from(secret.trust_bundle.as_deref() != Some(trust_bundle));
        }
    }
    count
}

/// A certificate is renewed at half its life: a proxy then always has at least that much left, which is how long the
/// control plane may be away. The proxy's uuid spreads renewals over a tenth of the life.
fn is_due(secret: &SecretView, rules: &UpkeepRules<'_>, now: Timestamp) -> bool {
    #[cfg(feature = "sabotage")]
    if crate::sabotage::Fault::NoRenewal.is_on() {
        return false;
    }
    if secret.trust_bundle.as_deref() != Some(rules.trust_bundle) {
        return true;
    }
    let Some(not_after) = secret.not_after else {
        return true;
    };
    let left = not_after.duration_since(now);
    let hash = blake3::hash(secret.proxy.as_bytes());
    let spread = rules.validity / 10 * u32::from(hash.as_bytes()[0]) / 256;
    let due = rules.validity / 2 + spread;
    left <= jiff::SignedDuration::try_from(due).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const RULES: UpkeepRules<'_> = UpkeepRules {
        grace: Duration::from_secs(600),
        validity: Duration::from_secs(48 * 3600),
        trust_bundle: "roots",
    };

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().expect("valid")
    }

    fn secret(proxy: &str, left: Duration, owned: bool) -> SecretView {
        SecretView {
            namespace: "shop".to_owned(),
            name: format!("envoy-bootstrap-config-{proxy}"),
            uid: format!("uid-of-{proxy}"),
            proxy: proxy.to_owned(),
            owned,
            not_after: Some(now() + left),
            trust_bundle: Some("roots".to_owned()),
        }
    }

    fn pod(proxy: &str) -> PodView {
        let [namespace, name, uid] = ["shop", "pod", "pod-uid"].map(str::to_owned);
        PodView {
            namespace,
            name,
            uid,
            proxy: proxy.to_owned(),
        }
    }

    fn once(secret: &SecretView, pods: &[PodView]) -> Option<Action> {
        let pods = pods.iter().cloned().collect();
        let mut actions = Upkeep::default().round(std::slice::from_ref(secret), &pods, &RULES, HOUR, now());
        actions.pop().map(|(_, action)| action)
    }

    #[test]
    fn a_secret_is_given_to_its_pod_once() {
        assert_eq!(
            once(&secret("a", 47 * HOUR, false), &[pod("a")]),
            Some(Action::Adopt(pod("a")))
        );
        assert_eq!(once(&secret("a", 47 * HOUR, true), &[pod("a")]), None);
        let elsewhere = PodView {
            namespace: "other".to_owned(),
            ..pod("a")
        };
        assert_eq!(once(&secret("a", 47 * HOUR, false), &[elsewhere, pod("b")]), None);
    }

    #[test]
    fn certificates_are_renewed_at_half_their_life_and_with_new_roots() {
        assert_eq!(
            once(&secret("a", 24 * HOUR, true), &[pod("a")]),
            Some(Action::Renew(pod("a")))
        );
        assert_eq!(once(&secret("a", 30 * HOUR, true), &[pod("a")]), None);
        let unreadable = SecretView {
            not_after: None,
            ..secret("a", HOUR, true)
        };
        assert_eq!(once(&unreadable, &[pod("a")]), Some(Action::Renew(pod("a"))));
        let rotated = SecretView {
            trust_bundle: Some("old".to_owned()),
            ..secret("a", 47 * HOUR, true)
        };
        assert_eq!(once(&rotated, &[pod("a")]), Some(Action::Renew(pod("a"))));
        assert_eq!(
            once(&secret("a", HOUR, true), &[]),
            None,
            "its owner is gone, Kubernetes collects it"
        );
    }

    #[test]
    fn secrets_that_lack_a_new_root_are_counted_while_they_have_a_pod() {
        let mut old = secret("b", HOUR, true);
        old.trust_bundle = Some("old".to_owned());
        let secrets = [secret("a", HOUR, true), old, secret("gone", HOUR, false)];
        let count = |pods: &[&str]| lag(&secrets, &pods.iter().map(|proxy| pod(proxy)).collect(), "roots");
        assert_eq!(count(&["a", "b"]), Count { total: 2, behind: 1 });
        assert_eq!(count(&["a"]), Count { total: 1, behind: 0 });
        assert_eq!(count(&[]), Count::default());
    }

    #[test]
    fn a_secret_without_a_pod_goes_after_being_seen_so_for_the_grace_period() {
        let mut upkeep = Upkeep::default();
        let secrets = [secret("a", 47 * HOUR, false)];
        let mut at = |seconds, pods: &[PodView], now| {
            let pods = pods.iter().cloned().collect();
            upkeep.round(&secrets, &pods, &RULES, Duration::from_secs(seconds), now)
        };
        assert!(at(1000, &[], now()).is_empty());
        assert!(
            at(1599, &[], now() + 20 * HOUR).is_empty(),
            "the wall clock does not count"
        );
        assert_eq!(at(1600, &[], now())[0].1, Action::Delete);
        // A pod that shows up late starts the period over.
        assert_eq!(at(1601, &[pod("a")], now())[0].1, Action::Adopt(pod("a")));
        assert!(at(1602, &[], now()).is_empty());
    }
}
