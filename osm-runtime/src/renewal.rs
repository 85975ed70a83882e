//! Keeping a certificate fresh, and an eye on the root.
//!
//! Owns the loops that renew what servers present and that compare the root in use with the stored one. Invariants:
//! the old certificate serves until the new one does; a failed renewal is tried again with backoff and jitter, and
//! costs readiness only once the certificate in use is over (law 8); a jump of the clock is noticed within a minute.

use std::{fmt::Display, time::Duration};

use jiff::Timestamp;
use rand::Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::{Backoff, jittered},
    health::Condition,
    issuer::{IssueError, Issuer, Leaf, LeafRequest, RootState, Trouble},
};

/// Longest time one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(60);
/// Longest sleep between looks at the clock.
const LOOK: Duration = Duration::from_secs(30);
/// Shortest time between two renewals.
const REST: Duration = Duration::from_secs(1);
/// How often the root is compared with the stored one.
const ROOT_CHECK: Duration = Duration::from_secs(30);
/// Over how long renewals are spread when another root signs.
const SPREAD: Duration = Duration::from_secs(2);
/// How often what is still wrong is told again.
const REPORT_AGAIN: Duration = Duration::from_secs(10 * 60);
/// How long new trouble is not told after the last has ended.
const CALM: Duration = Duration::from_secs(60);

/// Issues a leaf now and again before it is due, and after another root began to sign, giving each to `present`, until `stop`.
/// `condition` is ready while the leaf in use is valid.
pub async fn keep<E: Display>(
    issuer: Issuer,
    request: LeafRequest,
    condition: Condition,
    stop: CancellationToken,
    mut present: impl FnMut(&Leaf) -> Result<(), E>,
) {
    let mut signer = issuer.watch_signer();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let mut current: Option<Leaf> = None;
    let run = async {
        loop {
            signer.mark_unchanged();
            match attempt(&issuer, &request, &mut present).await {
                Ok(leaf) => {
                    backoff.reset();
                    condition.set_ready();
                    wait_until_due(current.insert(leaf), &mut signer).await;
                }
                Err(error) => {
                    let name = &request.profile.common_name;
                    tracing::warn!(certificate = name, %error, "issuing a certificate failed");
                    if !current
                        .as_ref()
                        .is_some_and(|leaf| leaf.validity().contains(Timestamp::now()))
                    {
                        condition.set_not_ready(format!("no valid certificate for {name}: {error}"));
                    }
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    };
    tokio::select! { () = run => {}, () = stop.cancelled() => {} }
}

async fn attempt<E: Display>(
    issuer: &Issuer,
    request: &LeafRequest,
    present: &mut impl FnMut(&Leaf) -> Result<(), E>,
) -> Result<Leaf, IssueError> {
    let leaf = tokio::time::timeout(ATTEMPT, issuer.issue(request))
        .await
        .unwrap_or(Err(IssueError::Timeout(ATTEMPT)))?;
    present(&leaf).map_err(|error| IssueError::Answer(error.to_string()))?;
    Ok(leaf)
}

async fn wait_until_due(leaf: &Leaf, signer: &mut tokio::sync::watch::Receiver<std::sync::Arc<str>>) {
    // However short a life the provider gives, it is not asked without a pause.
    tokio::time::sleep(jittered(REST, 0.5)).await;
    let due = leaf.renew_at(rand::rng().random());
    loop {
        let now = Timestamp::now();
        if now >= due || leaf.due(now) {
            return;
        }
        let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK)) => {}
            changed = signer.changed() => match changed {
                Ok(()) => return tokio::time::sleep(jittered(SPREAD / 2, 1.0)).await,
                Err(_) => tokio::time::sleep(left.min(LOOK)).await,
            }
        }
    }
}

/// Compares the root in use with the stored one from time to time, until `stop`: `condition` is ready while they are
/// the same and valid. An API server or provider that does not answer changes nothing. `report` is told of what is wrong,
/// and again from time to time while it lasts (an Event, for the operator, which Kubernetes forgets after an hour).
pub async fn guard_root(
    issuer: Issuer,
    condition: Condition,
    stop: CancellationToken,
    mut report: impl FnMut(&str),
) {
    let mut reported: Option<(String, Instant)> = None;
    let mut known = false;
    loop {
        let found = match issuer.check().await {
            RootState::Same => Some(
                issuer
                    .roots()
                    .check_validity(Timestamp::now())
                    .map_err(|error| error.to_string()),
            ),
            RootState::Differs(message) => Some(Err(message)),
            RootState::Unknown(error) if known => {
                tracing::debug!(%error, "the stored root cannot be looked up");
                None
            }
            RootState::Unknown(error) => {
                condition.set_not_ready(format!("the stored root is unknown: {error}"));
                None
            }
        };
        known |= found.is_some();
        match found {
            Some(Ok(())) => {
                reported = None;
                condition.set_ready();
            }
            Some(Err(message)) => {
                condition.set_not_ready(message.clone());
                let fresh = |(said, at): &(String, Instant)| *said == message && at.elapsed() < REPORT_AGAIN;
                if !reported.as_ref().is_some_and(fresh) {
                    report(&message);
                    reported = Some((message, Instant::now()));
                }
            }
            None => {}
        }
        tokio::select! {
            () = tokio::time::sleep(jittered(ROOT_CHECK, 0.3)) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Tells `report` when certificates can no longer be issued, and again from time to time while that lasts, until
/// `stop`. What is served meanwhile is what was issued before, so readiness is not touched here.
pub async fn report_trouble(issuer: Issuer, stop: CancellationToken, mut report: impl FnMut(&Trouble)) {
    let mut trouble = issuer.watch_trouble();
    let run = async {
        loop {
            if trouble.wait_for(Option::is_some).await.is_err() {
                return;
            }
            if let Some(now) = trouble.borrow().clone() {
                report(&now);
            }
            let over = async { trouble.wait_for(Option::is_none).await.is_ok() };
            match tokio::time::timeout(jittered(REPORT_AGAIN, 0.2), over).await {
                Ok(true) => {
                    tracing::info!("certificates are issued again");
                    // One request in many that fails is not news each time.
                    tokio::time::sleep(jittered(CALM, 0.2)).await;
                }
                Ok(false) => return,
                Err(_) => {}
            }
        }
    };
    tokio::select! { () = run => {}, () = stop.cancelled() => {} }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
