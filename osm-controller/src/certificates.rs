//! Certificates of the identities that are connected to this replica.
//!
//! Owns when one is issued, renewed and dropped. Invariants: an identity has a certificate as long as one of its
//! proxies has a stream here, and a while longer; they are in memory only; renewal is jittered, and until it succeeds
//! the old one serves. Replicas issue different ones for the same identity, and all are valid (same root, same name).

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::Timestamp;
use osm_core::{
    certificate::{Profile, Validity},
    facts::mesh_config::ControlSettings,
    identity::{ServiceIdentity, TrustDomain},
    mesh::Event,
};
use osm_runtime::{
    backoff::{Backoff, jittered},
    issuer::{Issuer, Leaf, LeafRequest},
    metrics::Metrics,
};
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep},
};

use crate::mesh::{Input, Inputs};

/// How long the certificate of an identity without a stream is kept.
const IDLE: Duration = Duration::from_secs(600);
/// Longest sleep between looks at the clock: it may jump.
const LOOK: Duration = Duration::from_secs(60);
/// Shortest time between two renewals.
const REST: Duration = Duration::from_secs(1);
/// Over how long renewals are spread when another root signs.
const SPREAD: Duration = Duration::from_secs(10);
/// Certificates issued at a time.
const CONCURRENT: usize = 4;

/// Metrics of issued certificates; the names are the original's.
#[derive(Clone, Debug)]
pub struct CertificateMetrics {
    issued: Counter,
    failed: Counter,
    held: Gauge,
    seconds: Histogram,
}

impl Default for CertificateMetrics {
    fn default() -> Self {
        let seconds = Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0]);
        Self {
            issued: Counter::default(),
            failed: Counter::default(),
            held: Gauge::default(),
            seconds,
        }
    }
}

impl CertificateMetrics {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register(|registry| {
            registry.register("osm_cert_issued_count", "Certificates issued", new.issued.clone());
            registry.register(
                "osm_cert_failed_count",
                "Certificates that were not issued",
                new.failed.clone(),
            );
            registry.register(
                "osm_cert_identities",
                "Identities whose certificate is held",
                new.held.clone(),
            );
            registry.register(
                "osm_cert_issued_time",
                "Seconds to issue a certificate",
                new.seconds.clone(),
            );
        });
        new
    }
}

/// A held certificate, for debug pages.
#[derive(Clone, Debug)]
pub struct Held {
    /// Whose.
    pub identity: ServiceIdentity,
    /// How many streams need it.
    pub streams: usize,
    /// The time it is good for; `None` while it is being issued.
    pub validity: Option<Validity>,
}

#[derive(Debug)]
struct Slot {
    streams: watch::Sender<usize>,
    validity: Option<Validity>,
}

#[derive(Debug)]
struct Inner {
    issuer: Issuer,
    trust_domain: TrustDomain,
    inputs: Inputs,
    control: watch::Receiver<ControlSettings>,
    metrics: CertificateMetrics,
    permits: Semaphore,
    slots: Mutex<HashMap<ServiceIdentity, Slot>>,
}

/// The certificates. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Certificates {
    inner: Option<Arc<Inner>>,
}

/// Keeps the certificate of an identity for as long as it lives.
#[derive(Debug)]
pub struct Wanted {
    inner: Weak<Inner>,
    identity: ServiceIdentity,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade()
            && let Some(slot) = inner.slots.lock().get(&self.identity)
        {
            slot.streams.send_modify(|streams| *streams -= 1);
        }
    }
}

impl Certificates {
    /// Certificates from `issuer`, for the engine behind `inputs`. `control` says how long they live.
    pub fn new(
        issuer: Issuer,
        trust_domain: TrustDomain,
        inputs: Inputs,
        control: watch::Receiver<ControlSettings>,
        metrics: CertificateMetrics,
    ) -> Self {
        let permits = Semaphore::new(CONCURRENT);
        let slots = Mutex::default();
        Self {
            inner: Some(Arc::new(Inner {
                issuer,
                trust_domain,
                inputs,
                control,
                metrics,
                permits,
                slots,
            })),
        }
    }

    /// No certificates: for a mesh whose snapshots hold them already.
    pub fn none() -> Self {
        Self { inner: None }
    }

    /// Sees to it that `identity` has a certificate while the result lives.
    pub fn want(&self, identity: &ServiceIdentity) -> Wanted {
        let wanted = |inner| Wanted {
            inner,
            identity: identity.clone(),
        };
        let Some(inner) = &self.inner else {
            return wanted(Weak::new());
        };
        let mut slots = inner.slots.lock();
        if let Some(slot) = slots.get(identity) {
            slot.streams.send_modify(|streams| *streams += 1);
        } else {
            let (streams, needed) = watch::channel(1);
            slots.insert(
                identity.clone(),
                Slot {
                    streams,
                    validity: None,
                },
            );
            inner.metrics.held.inc();
            tokio::spawn(keep(inner.clone(), identity.clone(), needed));
        }
        wanted(Arc::downgrade(inner))
    }

    /// How many certificates proxies that are connected here hold, and the end of the one that ends first.
    pub fn in_the_field(&self) -> (usize, Option<Timestamp>) {
        let Some(inner) = &self.inner else {
            return (0, None);
        };
        let slots = inner.slots.lock();
        let used = slots.values().filter(|slot| *slot.streams.borrow() > 0);
        let ends: Vec<_> = used.filter_map(|slot| Some(slot.validity?.not_after)).collect();
        (ends.len(), ends.into_iter().min())
    }

    /// What is held, by identity.
    pub fn held(&self) -> Vec<Held> {
        let Some(inner) = &self.inner else {
            return Vec::new();
        };
        let slots = inner.slots.lock();
        let held = |(identity, slot): (&ServiceIdentity, &Slot)| Held {
            identity: identity.clone(),
            streams: *slot.streams.borrow(),
            validity: slot.validity,
        };
        let mut all: Vec<_> = slots.iter().map(held).collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }
}

/// Issues and renews the certificate of one identity until nobody has needed it for a while.
async fn keep(inner: Arc<Inner>, identity: ServiceIdentity, mut needed: watch::Receiver<usize>) {
    let mut signer = inner.issuer.watch_signer();
    let mut control = inner.control.clone();
    // Held until its successor is with the engine: what signed it is in use until then.
    let mut held: Option<Leaf> = None;
    loop {
        signer.mark_unchanged();
        let lifetime = control.borrow_and_update().service_certificate_validity;
        let leaf = issue(&inner, &identity, lifetime).await;
        if let Some(slot) = inner.slots.lock().get_mut(&identity) {
            slot.validity = Some(leaf.validity());
        }
        let certificate = Some(leaf.to_service_certificate());
        if !tell(&inner, &identity, certificate).await {
            return;
        }
        let leaf = held.insert(leaf);
        let renewal = async {
            #[cfg(feature = "sabotage")]
            if osm_core::sabotage::Fault::NoRenewal.is_on() {
                std::future::pending::<()>().await;
            }
            tokio::select! {
                () = due(leaf) => {}
                Ok(()) = signer.changed() => sleep(jittered(SPREAD / 2, 1.0)).await,
                () = shortened(&mut control, lifetime) => {}
            }
        };
        tokio::select! {
            () = renewal => {}
            () = unused(&mut needed) => {
                let gone = {
                    let mut slots = inner.slots.lock();
                    // Somebody may have come meanwhile.
                    let gone = *needed.borrow() == 0;
                    if gone {
                        slots.remove(&identity);
                    }
                    gone
                };
                if gone {
                    inner.metrics.held.dec();
                    tell(&inner, &identity, None).await;
                    return;
                }
            }
        }
    }
}

async fn issue(inner: &Inner, identity: &ServiceIdentity, lifetime: Duration) -> Leaf {
    let request = LeafRequest::new(Profile::service(identity, &inner.trust_domain), lifetime);
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let permit = inner.permits.acquire().await;
        let begun = Instant::now();
        let issued = inner.issuer.issue(&request).await;
        drop(permit);
        match issued {
            Ok(leaf) => {
                inner.metrics.issued.inc();
                inner.metrics.seconds.observe(begun.elapsed().as_secs_f64());
                return leaf;
            }
            Err(error) => {
                inner.metrics.failed.inc();
                tracing::warn!(%identity, %error, "issuing a service certificate failed");
                sleep(backoff.next_wait()).await;
            }
        }
    }
}

async fn tell(
    inner: &Inner,
    identity: &ServiceIdentity,
    certificate: Option<osm_core::ir::ServiceCertificate>,
) -> bool {
    let event = Event::Certificate {
        identity: identity.clone(),
        certificate,
    };
    inner.inputs.send(Input::Event(event)).await.is_ok()
}

/// Waits until a leaf should be renewed.
async fn due(leaf: &Leaf) {
    // However short a life the provider gives, it is not asked without a pause.
    sleep(jittered(REST, 0.5)).await;
    let at = leaf.renew_at(rand::random());
    loop {
        let now = Timestamp::now();
        if now >= at || leaf.due(now) {
            return;
        }
        let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        sleep(left.min(LOOK)).await;
    }
}

/// Waits until certificates should live less long than `lifetime`.
async fn shortened(control: &mut watch::Receiver<ControlSettings>, lifetime: Duration) {
    if control
        .wait_for(|settings| settings.service_certificate_validity < lifetime)
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
}

/// Waits until nobody has needed the certificate for [`IDLE`].
async fn unused(needed: &mut watch::Receiver<usize>) {
    loop {
        if needed.wait_for(|streams| *streams == 0).await.is_err() {
            return;
        }
        tokio::select! {
            () = sleep(IDLE) => return,
            _ = needed.wait_for(|streams| *streams > 0) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use osm_runtime::issuer::{Authority, KeyKind, Member};
    use tokio::sync::mpsc;

    use super::*;

    fn setup() -> (Certificates, mpsc::Receiver<Input>) {
        let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
        let authority = Authority::load(&root, Timestamp::now()).unwrap();
        let (inputs, received) = mpsc::channel(16);
        let control = watch::channel(ControlSettings::default()).1;
        let issuer = Issuer::from_authority(authority);
        let metrics = CertificateMetrics::default();
        (
            Certificates::new(issuer, TrustDomain::default(), inputs, control, metrics),
            received,
        )
    }

    fn certificate(input: Option<Input>) -> (String, bool) {
        match input {
            Some(Input::Event(Event::Certificate {
                identity,
                certificate,
            })) => (identity.to_string(), certificate.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn certificates_are_issued_anew_when_another_root_signs() {
        let member = || {
            let root = Authority::generate(KeyKind::P256, Timestamp::now()).unwrap();
            Member::from_authority(Authority::load(&root, Timestamp::now()).unwrap())
        };
        let (old, new) = (member(), member());
        let issuer = Issuer::of(old.clone());
        let (inputs, mut received) = mpsc::channel(16);
        let control = watch::channel(ControlSettings::default()).1;
        let metrics = CertificateMetrics::default();
        let certificates =
            Certificates::new(issuer.clone(), TrustDomain::default(), inputs, control, metrics);
        let _wanted = certificates.want(&ServiceIdentity::new("shop", "buyer"));
        received.recv().await.unwrap();
        issuer.arrange(old.clone(), vec![old.clone(), new.clone()]);
        sleep(SPREAD * 2).await;
        assert!(received.try_recv().is_err(), "a root more to trust is no reason");
        assert_eq!((old.leaves(), new.leaves()), (1, 0));
        issuer.arrange(new.clone(), vec![old.clone(), new.clone()]);
        received.recv().await.unwrap();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(
            (old.leaves(), new.leaves()),
            (0, 1),
            "nothing depends on the old root any more"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_certificate_an_identity_dropped_when_long_unused() {
        let (certificates, mut received) = setup();
        let identity = ServiceIdentity::new("shop", "buyer");
        let first = certificates.want(&identity);
        let second = certificates.want(&identity);
        assert_eq!(
            certificate(received.recv().await),
            ("buyer.shop".to_owned(), true)
        );
        drop(first);
        sleep(IDLE * 2).await;
        assert!(received.try_recv().is_err(), "it is still needed");
        assert_eq!(certificates.held()[0].streams, 1);
        let not_after = certificates.held()[0].validity.map(|validity| validity.not_after);
        assert_eq!(certificates.in_the_field(), (1, not_after));
        drop(second);
        assert_eq!(
            certificates.in_the_field(),
            (0, None),
            "no proxy holds it any more"
        );
        sleep(IDLE / 2).await;
        let third = certificates.want(&identity);
        sleep(IDLE).await;
        assert!(received.try_recv().is_err(), "it was needed again in time");
        drop(third);
        assert_eq!(
            certificate(received.recv().await),
            ("buyer.shop".to_owned(), false)
        );
        assert!(certificates.held().is_empty());
        let _again = certificates.want(&identity);
        assert_eq!(
            certificate(received.recv().await),
            ("buyer.shop".to_owned(), true)
        );
    }
}
