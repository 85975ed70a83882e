use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use osm_core::{
    certificate::{BACKDATE, Profile, Root, RootError, Usage},
    identity::TrustDomain,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData};
use zeroize::Zeroizing;

use super::{
    Authority, IssueError, Issuer, KeyKind, LeafRequest, StoredRoot,
    tresor::{RootStore, StoreError, load_or_create},
};

fn request() -> LeafRequest {
    LeafRequest::new(Profile::ads(&TrustDomain::default()), Duration::from_secs(3_600))
}

/// A store in memory that is slow, fails before the deed and loses answers after it, as `seed` has it.
pub(super) struct Unreliable {
    stored: Mutex<Option<StoredRoot>>,
    luck: Mutex<StdRng>,
    /// Failures of each kind in a hundred calls.
    failures: u32,
    writes: Mutex<Vec<String>>,
}

impl Unreliable {
    pub(super) fn new(seed: u64, failures: u32) -> Self {
        let luck = Mutex::new(StdRng::seed_from_u64(seed));
        Self {
            stored: Mutex::default(),
            luck,
            failures,
            writes: Mutex::default(),
        }
    }

    async fn pause(&self) {
        let wait = self.luck.lock().random_range(0..3_000);
        tokio::time::sleep(Duration::from_micros(wait)).await;
    }

    fn misfortune(&self, what: &str) -> Result<(), StoreError> {
        if self.luck.lock().random_range(0..100) < self.failures {
            return Err(StoreError::Temporary(what.to_owned()));
        }
        Ok(())
    }
}

impl RootStore for Unreliable {
    async fn read(&self) -> Result<Option<StoredRoot>, StoreError> {
        self.pause().await;
        self.misfortune("the read failed")?;
        let found = self.stored.lock().clone();
        self.pause().await;
        Ok(found)
    }

    async fn create(&self, root: &StoredRoot) -> Result<(), StoreError> {
        self.pause().await;
        self.misfortune("the write failed")?;
        let first = {
            let mut stored = self.stored.lock();
            let first = stored.is_none();
            if first {
                *stored = Some(root.clone());
                self.writes.lock().push(root.certificate.clone());
            }
            first
        };
        self.pause().await;
        self.misfortune("the answer was lost")?;
        // What a real server answers to the second one is a conflict, which counts as done: reading tells.
        let _ = first;
        Ok(())
    }
}

/// However many start at once, whatever is slow, fails or is lost, and whoever is killed on the way: one root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_starters_end_with_one_root() {
    for seed in 0..12 {
        let store = Arc::new(Unreliable::new(seed, 15));
        let starters: Vec<_> = (0..50)
            .map(|starter| {
                let store = store.clone();
                let limit = match starter % 5 {
                    // Killed at some moment, mostly between writing and reading back; another takes its place.
                    0 => Duration::from_micros(500 * (starter as u64 % 17)),
                    _ => Duration::from_secs(60),
                };
                tokio::spawn(async move {
                    let load = || load_or_create(&*store, KeyKind::P256, Timestamp::now, |_| {});
                    match tokio::time::timeout(limit, load()).await {
                        Ok(loaded) => loaded.unwrap(),
                        Err(_) => load().await.unwrap(),
                    }
                })
            })
            .collect();
        let mut roots = Vec::new();
        for starter in starters {
            roots.push(starter.await.unwrap().root().clone());
        }
        let stored = Root::from_pem(&store.stored.lock().as_ref().unwrap().certificate).unwrap();
        assert!(roots.iter().all(|root| *root == stored), "seed {seed}");
        assert_eq!(store.writes.lock().len(), 1, "seed {seed}");
    }
}

async fn load(stored: StoredRoot) -> Result<Authority, IssueError> {
    let store = Unreliable::new(0, 0);
    *store.stored.lock() = Some(stored.clone());
    let loaded = load_or_create(&store, KeyKind::P256, Timestamp::now, |_| {}).await;
    let after = store.stored.lock().clone().unwrap();
    assert_eq!(
        (after.certificate, &*after.key),
        (stored.certificate, &*stored.key),
        "never replaced"
    );
    loaded
}

#[tokio::test]
async fn an_unfit_root_is_an_error_and_is_never_replaced() {
    let now = Timestamp::now();
    let good = Authority::generate(KeyKind::P256, now).unwrap();
    let other = Authority::generate(KeyKind::P256, now).unwrap();
    let old = Authority::generate(KeyKind::P256, now - SignedDuration::from_hours(100_000)).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf = params.self_signed(&key).unwrap().pem();
    let with = |certificate: &str, key: &str| StoredRoot {
        certificate: certificate.to_owned(),
        key: Zeroizing::new(key.to_owned()),
    };
    let root_error = |error| match error {
        IssueError::Root(error) => error,
        other => panic!("{other}"),
    };
    assert!(matches!(
        root_error(load(with("", "")).await.unwrap_err()),
        RootError::Parse(_)
    ));
    assert!(matches!(
        root_error(load(with("junk", &good.key)).await.unwrap_err()),
        RootError::Parse(_)
    ));
    assert!(matches!(
        root_error(load(with(&good.certificate, "junk")).await.unwrap_err()),
        RootError::Key(_)
    ));
    let swapped = load(with(&good.certificate, &other.key)).await.unwrap_err();
    assert_eq!(root_error(swapped.clone()), RootError::KeyMismatch);
    assert!(
        !format!("{swapped:?}{swapped}").contains(&other.key[40..80]),
        "no key in errors"
    );
    assert!(matches!(
        root_error(load(old).await.unwrap_err()),
        RootError::Expired(_)
    ));
    assert_eq!(
        root_error(load(with(&leaf, &key.serialize_pem())).await.unwrap_err()),
        RootError::NotCa
    );
    assert!(load(good).await.is_ok());
}

#[test]
fn roots_with_keys_of_every_common_form_can_sign() {
    let now = Timestamp::now();
    let pem_of = |tag: &str, der: &[u8]| Zeroizing::new(pem::encode(&pem::Pem::new(tag, der)));
    let ec = Authority::generate(KeyKind::P256, now).unwrap();
    let rsa = Authority::generate(KeyKind::Rsa2048, now).unwrap();
    // What follows PKCS#8's fixed header is the older form of the same key.
    let ec_der = pem::parse(ec.key.as_bytes()).unwrap().into_contents();
    let rsa_der = pem::parse(rsa.key.as_bytes()).unwrap().into_contents();
    let sec1 = StoredRoot {
        key: pem_of("EC PRIVATE KEY", &ec_der[29..]),
        ..ec.clone()
    };
    let pkcs1 = StoredRoot {
        key: pem_of("RSA PRIVATE KEY", &rsa_der[26..]),
        ..rsa.clone()
    };
    for (name, stored) in [
        ("pkcs8 ec", ec),
        ("pkcs8 rsa", rsa),
        ("sec1", sec1),
        ("pkcs1", pkcs1),
    ] {
        let authority = Authority::load(&stored, now).unwrap_or_else(|error| panic!("{name}: {error}"));
        let leaf = authority.sign(&request(), now).unwrap();
        assert_eq!(
            leaf.certificate().issuer,
            authority.root().certificate().subject,
            "{name}"
        );
    }
}

#[test]
fn a_leaf_is_what_was_asked_for() {
    let now = Timestamp::now();
    let stored = Authority::generate(KeyKind::P256, now).unwrap();
    let authority = Authority::load(&stored, now).unwrap();
    assert!(authority.root().validity().remaining(now) > Duration::from_secs(9 * 365 * 86_400));
    let leaf = authority.sign(&request(), now).unwrap();
    assert_eq!(leaf.certificate().dns_names, ["ads.cluster.local"]);
    assert_eq!(leaf.certificate().usage, Some(Usage::Server));
    let life = leaf.validity().lifetime().as_secs();
    assert!((3_599..=3_601).contains(&life), "{life}");
    assert!(
        leaf.validity()
            .contains(now - SignedDuration::try_from(BACKDATE).unwrap() + SignedDuration::from_secs(2))
    );

    let key = KeyPair::try_from(&leaf.key_der()).unwrap();
    assert_eq!(key.subject_public_key_info(), leaf.certificate().public_key);
    let again = super::Leaf::from_pem(leaf.chain_pem(), &leaf.key_pem()).unwrap();
    assert_eq!(again.key_der(), leaf.key_der());
    let shown = format!(
        "{leaf:?} {stored:?} {authority:?} {:?}",
        leaf.to_service_certificate()
    );
    assert!(!shown.contains("BEGIN") && !shown.contains(&leaf.key_pem()[40..80]));

    let mut bad = request();
    bad.profile.dns_names = vec!["ä".into()];
    assert!(matches!(authority.sign(&bad, now), Err(IssueError::Signing(_))));
    let too_late = now + SignedDuration::from_hours(24 * 366 * 20);
    assert!(matches!(
        authority.sign(&request(), too_late),
        Err(IssueError::Root(RootError::Expired(_)))
    ));
}

#[tokio::test]
async fn rsa_leaves_can_be_had_too() {
    let now = Timestamp::now();
    let authority = Authority::load(&Authority::generate(KeyKind::P256, now).unwrap(), now).unwrap();
    let issuer = Issuer::from_authority(authority);
    let leaf = issuer
        .issue(&LeafRequest {
            key: KeyKind::Rsa2048,
            ..request()
        })
        .await
        .unwrap();
    assert!(leaf.key_pem().starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(issuer.roots().roots().len(), 1);
}
