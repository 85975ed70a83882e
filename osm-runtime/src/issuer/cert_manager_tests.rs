//! Against an API server in memory that plays cert-manager and signs for real.

use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use osm_core::identity::{ServiceIdentity, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tokio::time::timeout;

use super::*;
use crate::issuer::{Issuer, verify};

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Signs,
    OtherRoot,
    Refuses,
    Silent,
}

struct Fake {
    mood: Mutex<Mood>,
    ca: [(rcgen::Certificate, rcgen::Issuer<'static, KeyPair>); 2],
    objects: Mutex<Vec<Value>>,
    deleted: Mutex<Vec<String>>,
}

fn ca() -> (rcgen::Certificate, rcgen::Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).unwrap();
    (certificate, rcgen::Issuer::new(params, key))
}

impl Fake {
    /// The status of a request, as cert-manager fills it in.
    fn status(&self, spec: &Value) -> Value {
        let mood = *self.mood.lock();
        let ready = |status: &str, reason: &str| json!([{"type": "Ready", "status": status, "reason": reason, "message": "as told"}]);
        match mood {
            Mood::Silent => json!({"conditions": ready("False", "Pending")}),
            Mood::Refuses => json!({"conditions": ready("False", "Failed")}),
            Mood::Signs | Mood::OtherRoot => {
                let (root, issuer) = &self.ca[usize::from(mood == Mood::OtherRoot)];
                let csr = STANDARD.decode(spec["request"].as_str().unwrap()).unwrap();
                let mut csr =
                    CertificateSigningRequestParams::from_pem(std::str::from_utf8(&csr).unwrap()).unwrap();
                let wants = |usage: &str| spec["usages"].as_array().unwrap().contains(&usage.into());
                for (usage, purpose) in [
                    ("client auth", ExtendedKeyUsagePurpose::ClientAuth),
                    ("server auth", ExtendedKeyUsagePurpose::ServerAuth),
                ] {
                    if wants(usage) {
                        csr.params.extended_key_usages.push(purpose);
                    }
                }
                let leaf = csr.signed_by(issuer).unwrap();
                let (leaf, root) = (leaf.pem(), root.pem());
                let chain = STANDARD.encode(format!("{leaf}{root}"));
                json!({"conditions": ready("True", "Issued"), "certificate": chain, "ca": STANDARD.encode(root)})
            }
        }
    }

    async fn answer(&self, request: Request<Body>) -> Value {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        assert!(
            path.starts_with("/apis/cert-manager.io/v1/namespaces/osm-system/certificaterequests"),
            "{path}"
        );
        let name = path.rsplit('/').next().unwrap().to_owned();
        match parts.method {
            Method::POST => {
                let body = body.collect().await.unwrap().to_bytes();
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(
                    object["metadata"]["ownerReferences"][0]["name"],
                    "osm-controller-1"
                );
                let mut objects = self.objects.lock();
                object["metadata"]["name"] = format!("osm-{}", objects.len()).into();
                objects.push(object.clone());
                object
            }
            Method::DELETE => {
                self.deleted.lock().push(name);
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
            }
            _ => {
                let mut object = self
                    .objects
                    .lock()
                    .iter()
                    .find(|object| object["metadata"]["name"] == name)
                    .unwrap()
                    .clone();
                object["status"] = self.status(&object["spec"]);
                object
            }
        }
    }

    /// All requests that were made are deleted, soon.
    async fn tidy(&self) {
        for _ in 0..100 {
            if self.deleted.lock().len() == self.objects.lock().len() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "{:?} are left",
            self.objects.lock().len() - self.deleted.lock().len()
        );
    }
}

async fn open() -> (Arc<Fake>, CertManager) {
    let fake = Arc::new(Fake {
        mood: Mutex::new(Mood::Signs),
        ca: [ca(), ca()],
        objects: Mutex::default(),
        deleted: Mutex::default(),
    });
    let server = fake.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let answer = server.answer(request).await.to_string();
            Ok::<_, tower::BoxError>(Response::new(Body::from(answer.into_bytes())))
        }
    });
    let options = CertManagerOptions {
        namespace: "osm-system".into(),
        issuer: "osm-ca".into(),
        kind: "Issuer".into(),
        group: "cert-manager.io".into(),
        owner: Some(OwnerReference {
            kind: "Pod".into(),
            name: "osm-controller-1".into(),
            ..OwnerReference::default()
        }),
    };
    let opened = CertManager::open(Client::new(service, "osm-system"), options)
        .await
        .unwrap();
    (fake, opened)
}

fn request() -> LeafRequest {
    let profile = Profile::service(&ServiceIdentity::new("shop", "buyer"), &TrustDomain::default());
    LeafRequest::new(profile, Duration::from_secs(1_800))
}

#[tokio::test]
async fn requests_are_made_answered_and_deleted() {
    let (fake, issuer) = open().await;
    let leaf = issuer.issue(&request()).await.unwrap();
    assert_eq!(leaf.chain_der().len(), 1, "the root is not part of the chain");
    verify::check(&leaf, &request(), issuer.roots(), Timestamp::now()).unwrap();
    fake.tidy().await;
    let spec = fake.objects.lock()[1]["spec"].clone();
    assert_eq!(
        spec["issuerRef"],
        json!({"name": "osm-ca", "kind": "Issuer", "group": "cert-manager.io"})
    );
    assert_eq!(
        (&spec["duration"], &spec["isCA"]),
        (&json!("1800s"), &json!(false))
    );
    assert_eq!(issuer.check().await, RootState::Same);
    assert_eq!(fake.objects.lock().len(), 2, "nothing is asked for so soon");
}

#[tokio::test]
async fn refusals_silence_and_other_roots_leave_nothing_behind() {
    let (fake, issuer) = open().await;
    *fake.mood.lock() = Mood::Refuses;
    let refused = issuer.issue(&request()).await.unwrap_err();
    assert!(refused.to_string().contains("as told"), "{refused}");
    fake.tidy().await;

    *fake.mood.lock() = Mood::Silent;
    assert!(
        timeout(Duration::from_millis(500), issuer.issue(&request()))
            .await
            .is_err()
    );
    fake.tidy().await;

    *fake.mood.lock() = Mood::OtherRoot;
    let roots = issuer.roots().clone();
    let issuer = Issuer::cert_manager(issuer);
    let other = issuer.issue(&request()).await.unwrap_err();
    assert!(other.to_string().contains("does not chain"), "{other}");
    assert!(matches!(issuer.check().await, RootState::Differs(_)));
    assert_eq!(issuer.roots(), roots);
    fake.tidy().await;

    // Once the issuer is put right that is noticed, though nobody needs a certificate.
    *fake.mood.lock() = Mood::Signs;
    assert_eq!(issuer.check().await, RootState::Same);
    fake.tidy().await;
}

#[tokio::test(start_paused = true)]
async fn what_cert_manager_waits_for_is_told_and_its_root_is_looked_up_from_time_to_time() {
    let (fake, issuer) = open().await;
    *fake.mood.lock() = Mood::Silent;
    let late = issuer.issue(&request()).await.unwrap_err();
    assert!(late.to_string().contains("as told"), "{late}");

    *fake.mood.lock() = Mood::OtherRoot;
    assert_eq!(issuer.check().await, RootState::Same, "as of the last answer");
    tokio::time::sleep(PROBE * 2).await;
    assert!(matches!(issuer.check().await, RootState::Differs(_)));
}
