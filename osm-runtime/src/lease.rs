//! Leader election over a `coordination.k8s.io` Lease, for writes that should not be doubled.
//!
//! Owns one Lease's comings and goings. Invariants: the holder knows that it lost the Lease before anyone else can
//! take it (it steps down when it could not renew for two thirds of the duration); waiting for an absent holder is
//! measured on the own monotonic clock from the last change seen, so that clocks may differ; it is given back on exit.
//! Leadership is an economy, not a lock: whatever is written under it must be safe if two do it.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::jittered,
    client::{ClientError, within},
};

/// An election.
#[derive(Clone, Debug)]
pub struct Election {
    /// Name of the Lease.
    pub name: String,
    /// The own name: the pod's.
    pub holder: String,
    /// How long the Lease holds without being renewed.
    pub duration: Duration,
    /// How often it is renewed or looked at; jittered by a fifth.
    pub period: Duration,
}

impl Election {
    /// An election with the usual times: 15 s, looked at every 3 s.
    pub fn new(name: impl Into<String>, holder: impl Into<String>) -> Self {
        let (duration, period) = (Duration::from_secs(15), Duration::from_secs(3));
        Self {
            name: name.into(),
            holder: holder.into(),
            duration,
            period,
        }
    }
}

/// Where the Lease is kept. Writes fail when it was changed since it was read.
trait Store: Sync {
    fn read(&self) -> impl Future<Output = Result<Option<Lease>, ClientError>> + Send;
    fn write(&self, lease: Lease) -> impl Future<Output = Result<Lease, ClientError>> + Send;
}

struct Remote {
    api: Api<Lease>,
    name: String,
    limit: Duration,
}

impl Store for Remote {
    async fn read(&self) -> Result<Option<Lease>, ClientError> {
        within(self.limit, self.api.get_opt(&self.name)).await
    }

    async fn write(&self, lease: Lease) -> Result<Lease, ClientError> {
        let params = PostParams::default();
        if lease.metadata.resource_version.is_some() {
            within(self.limit, self.api.replace(&self.name, &params, &lease)).await
        } else {
            within(self.limit, self.api.create(&params, &lease)).await
        }
    }
}

/// Takes part in an election in `namespace` until `stop`, then gives the Lease back. `leader` says whether this
/// process leads.
pub async fn campaign(
    client: Client,
    namespace: &str,
    election: Election,
    leader: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let api = Api::namespaced(client, namespace);
    let store = Remote {
        api,
        name: election.name.clone(),
        limit: election.duration / 3,
    };
    Candidate {
        store,
        election,
        leader,
        seen: None,
        renewed: Instant::now(),
    }
    .run(stop)
    .await;
}

struct Candidate<S> {
    store: S,
    election: Election,
    leader: watch::Sender<bool>,
    /// The last spec that was seen, and since when it has been the same.
    seen: Option<(LeaseSpec, Instant)>,
    /// When the last successful renewal was begun.
    renewed: Instant,
}

impl<S> fmt::Debug for Candidate<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Candidate({})", self.election.holder)
    }
}

impl<S: Store> Candidate<S> {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let deadline = self.renewed + self.election.duration * 2 / 3;
            let leading = *self.leader.borrow();
            let give_up = async {
                match leading {
                    true => tokio::time::sleep_until(deadline).await,
                    false => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                outcome = self.step() => outcome,
                () = give_up => Err("it could not be renewed in time".to_owned()),
                () = stop.cancelled() => break,
            };
            match outcome {
                Ok(leads) => self.lead(leads),
                Err(error) => {
                    tracing::debug!(
                        lease = self.election.name,
                        error,
                        "the Lease cannot be read or written"
                    );
                    if Instant::now() >= deadline {
                        #[cfg(feature = "sabotage")]
                        if leading && osm_core::sabotage::Fault::FatalLease.is_on() {
                            std::process::exit(1);
                        }
                        self.lead(false);
                    }
                }
            }
            let pause = jittered(self.election.period, 0.2);
            tokio::select! { () = tokio::time::sleep(pause) => {}, () = stop.cancelled() => break }
        }
        self.release().await;
    }

    fn lead(&self, leads: bool) {
        if self.leader.send_replace(leads) != leads {
            let message = if leads { "took the Lease" } else { "lost the Lease" };
            tracing::info!(lease = self.election.name, "{message}");
        }
    }

    /// Looks at the Lease and takes or renews it if that is right; whether this process leads now.
    async fn step(&mut self) -> Result<bool, String> {
        let begun = Instant::now();
        let current = self.store.read().await.map_err(|error| error.to_string())?;
        let spec = current
            .as_ref()
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let ours = holder == self.election.holder;
        if !ours && !holder.is_empty() && !self.has_lapsed(&spec) {
            return Ok(false);
        }
        let now = Some(MicroTime(Timestamp::now()));
        let transitions = spec
            .lease_transitions
            .unwrap_or(0)
            .saturating_add(i32::from(!ours));
        let new = LeaseSpec {
            holder_identity: Some(self.election.holder.clone()),
            lease_duration_seconds: i32::try_from(self.election.duration.as_secs().max(1)).ok(),
            acquire_time: if ours {
                spec.acquire_time.or_else(|| now.clone())
            } else {
                now.clone()
            },
            renew_time: now,
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        };
        match self.store.write(self.with(current, new)).await {
            Ok(_) => {
                self.renewed = begun;
                Ok(true)
            }
            // Someone else was first.
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether nobody has touched the Lease for as long as it says it holds.
    fn has_lapsed(&mut self, spec: &LeaseSpec) -> bool {
        let now = Instant::now();
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let holds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
                now.duration_since(*since) > Duration::from_secs(holds).max(self.election.duration)
            }
            _ => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    fn with(&self, current: Option<Lease>, spec: LeaseSpec) -> Lease {
        let name = || ObjectMeta {
            name: Some(self.election.name.clone()),
            ..ObjectMeta::default()
        };
        let metadata = current.map_or_else(name, |lease| lease.metadata);
        Lease {
            metadata,
            spec: Some(spec),
        }
    }

    async fn release(&mut self) {
        if !*self.leader.borrow() {
            return;
        }
        self.lead(false);
        let Ok(Some(lease)) = self.store.read().await else {
            return;
        };
        let Some(mut spec) = lease.spec.clone() else {
            return;
        };
        if spec.holder_identity.as_deref() != Some(self.election.holder.as_str()) {
            return;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = self.store.write(self.with(Some(lease), spec)).await {
            tracing::debug!(lease = self.election.name, %error, "the Lease was not given back; it lapses");
        }
    }
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
