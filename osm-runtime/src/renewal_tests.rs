//! A replica whose own certificate or root is bad takes itself out of the Service (law 8).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use osm_core::{certificate::Profile, identity::TrustDomain};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{guard_root, keep, report_trouble};
use crate::{
    health::Health,
    issuer::{Authority, Issuer, KeyKind, LeafRequest},
};

fn issuer(made: Timestamp) -> Issuer {
    let root = Authority::generate(KeyKind::P256, made).unwrap();
    Issuer::from_authority(Authority::load(&root, made).unwrap())
}

/// Waits until the process is ready, or is not.
async fn becomes(health: &Health, ready: bool) {
    let mut changes = health.ready();
    let wait = changes.wait_for(|now| *now == ready);
    assert!(
        timeout(Duration::from_secs(60), wait).await.is_ok(),
        "{:?}",
        health.not_ready()
    );
}

#[tokio::test]
async fn a_certificate_that_is_over_and_cannot_be_renewed_costs_readiness_until_it_can() {
    let (health, stop) = (Health::new(), CancellationToken::new());
    let broken = Arc::new(AtomicBool::new(false));
    // Issued for two seconds, so that it ends while the test looks on.
    let request = LeafRequest::new(Profile::ads(&TrustDomain::default()), Duration::from_secs(2));
    let present = {
        let broken = broken.clone();
        move |_: &_| {
            if broken.load(Ordering::Relaxed) {
                Err("the provider is broken")
            } else {
                Ok(())
            }
        }
    };
    let condition = health.condition("ads-certificate");
    tokio::spawn(keep(
        issuer(Timestamp::now()),
        request,
        condition,
        stop.clone(),
        present,
    ));
    becomes(&health, true).await;
    broken.store(true, Ordering::Relaxed);
    becomes(&health, false).await;
    assert!(
        health.not_ready()[0].1.contains("the provider is broken"),
        "{:?}",
        health.not_ready()
    );
    broken.store(false, Ordering::Relaxed);
    becomes(&health, true).await;
    stop.cancel();
}

#[tokio::test]
async fn a_root_that_is_over_costs_readiness_and_is_told() {
    let stop = CancellationToken::new();
    let long_ago = Timestamp::now() - SignedDuration::from_hours(87_600 + 24);
    for (made, ready) in [(Timestamp::now(), true), (long_ago, false)] {
        let health = Health::new();
        let root = health.condition("root");
        if !ready {
            root.set_ready();
        }
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let report = move |problem: &str| drop(tell.send(problem.to_owned()));
        tokio::spawn(guard_root(issuer(made), root, stop.clone(), report));
        becomes(&health, ready).await;
        if !ready {
            let problem = told.recv().await.unwrap();
            assert!(problem.contains("expired"), "{problem}");
        }
        assert!(told.try_recv().is_err(), "once, and only what is wrong");
    }
    stop.cancel();
}

#[tokio::test]
async fn a_certificate_that_is_not_taken_is_issued_again_and_readiness_waits_for_it() {
    let health = Health::new();
    let (condition, stop) = (health.condition("certificate"), CancellationToken::new());
    let request = LeafRequest::new(Profile::ads(&TrustDomain::default()), Duration::from_secs(3_600));
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mut attempts = 0;
    let present = move |_: &_| {
        attempts += 1;
        let _ = told.send(attempts);
        if attempts == 1 {
            Err("not this one")
        } else {
            Ok(())
        }
    };
    let kept = tokio::spawn(keep(
        issuer(Timestamp::now()),
        request,
        condition,
        stop.clone(),
        present,
    ));
    assert_eq!(heard.recv().await, Some(1));
    assert!(!health.is_ready());
    assert_eq!(heard.recv().await, Some(2), "tried again");
    health.ready().wait_for(|ready| *ready).await.unwrap();
    stop.cancel();
    kept.await.unwrap();
}

#[tokio::test]
async fn a_root_that_expired_is_told_and_nothing_is_issued() {
    let long_ago = Timestamp::now() - SignedDuration::from_hours(87_600 + 24);
    let (issuer, stop) = (issuer(long_ago), CancellationToken::new());
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let reporting = tokio::spawn(report_trouble(issuer.clone(), stop.clone(), move |trouble| {
        let _ = told.send(trouble.clone());
    }));
    let request = LeafRequest::new(Profile::ads(&TrustDomain::default()), Duration::from_secs(3_600));
    for _ in 0..3 {
        issuer.issue(&request).await.unwrap_err();
    }
    let trouble = heard.recv().await.unwrap();
    assert_eq!(trouble.reason, "RootCertificateProblem");
    assert!(trouble.message.contains("expired"), "{trouble:?}");
    tokio::task::yield_now().await;
    assert!(heard.try_recv().is_err(), "told once");
    stop.cancel();
    reporting.await.unwrap();
}
