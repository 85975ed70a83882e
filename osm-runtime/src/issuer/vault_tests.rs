//! Against a server that speaks Vault's three calls over loopback and signs for real.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::{SignedDuration, Timestamp};
use osm_core::{
    certificate::{Profile, RootError, Usage, proxy_of},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    Authority, IssueError, Issuer, KeyKind, LeafRequest, RootState, Token, VaultOptions, vault::Vault,
};

const TOKEN: &str = "hvs.secret-token";

#[derive(Clone)]
struct Fake(Arc<Mutex<Behaviour>>);

struct Behaviour {
    authority: Arc<Authority>,
    /// Instead of an answer.
    status: Option<u16>,
    /// How late each certificate already is.
    late: SignedDuration,
    uris_allowed: bool,
    asked: Vec<Value>,
}

fn authority(at: Timestamp) -> Arc<Authority> {
    let stored = Authority::generate(KeyKind::P256, at).unwrap();
    Arc::new(Authority::load(&stored, at).unwrap())
}

async fn ca(State(fake): State<Fake>) -> Response {
    let behaviour = fake.0.lock();
    match behaviour.status {
        Some(status) => StatusCode::from_u16(status).unwrap().into_response(),
        None => behaviour.authority.root().pem().into_response(),
    }
}

async fn issue(State(fake): State<Fake>, headers: HeaderMap, body: String) -> Response {
    let mut behaviour = fake.0.lock();
    let refuse = |status: u16, message: &str| {
        (
            StatusCode::from_u16(status).unwrap(),
            Json(json!({"errors": [message]})),
        )
            .into_response()
    };
    if let Some(status) = behaviour.status {
        return refuse(status, "sealed");
    }
    if headers.get("x-vault-token").is_none_or(|token| token != TOKEN) {
        return refuse(403, "permission denied");
    }
    let asked: Value = serde_json::from_str(&body).unwrap();
    let text = |field: &str| asked[field].as_str().unwrap().to_owned();
    let list = |field: &str| {
        text(field)
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let profile = Profile {
        common_name: text("common_name"),
        dns_names: list("alt_names"),
        uris: list("uri_sans"),
        usage: Usage::Both,
    };
    if !profile.uris.is_empty() && !behaviour.uris_allowed {
        return refuse(
            400,
            "URI Subject Alternative Names are not allowed in this role, but were provided via the API",
        );
    }
    let seconds = text("ttl").trim_end_matches('s').parse().unwrap();
    let request = LeafRequest::new(profile, Duration::from_secs(seconds));
    let leaf = behaviour
        .authority
        .sign(&request, Timestamp::now() - behaviour.late)
        .unwrap();
    let root = behaviour.authority.root().pem();
    behaviour.asked.push(asked);
    Json(json!({"data": {
        "certificate": leaf.chain_pem().trim(), "private_key": leaf.key_pem().trim(), "issuing_ca": root,
        "ca_chain": [root], "serial_number": "00", "expiration": 0,
    }}))
    .into_response()
}

async fn serve() -> (Fake, VaultOptions) {
    let behaviour = Behaviour {
        authority: authority(Timestamp::now() - SignedDuration::from_hours(10)),
        status: None,
        late: SignedDuration::ZERO,
        uris_allowed: true,
        asked: Vec::new(),
    };
    let fake = Fake(Arc::new(Mutex::new(behaviour)));
    let router = Router::new()
        .route("/v1/pki/ca/pem", get(ca))
        .route("/v1/pki/issue/openservicemesh", post(issue))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let token = Token::Literal(Zeroizing::new(TOKEN.to_owned()));
    (
        fake,
        VaultOptions {
            address,
            role: "openservicemesh".into(),
            token,
            authorities: None,
        },
    )
}

fn proxy() -> ProxyIdentity {
    let uuid = "6a1e9e6b-0000-4000-8000-00000000000f".parse().unwrap();
    ProxyIdentity {
        uuid,
        service: ServiceIdentity::new("shop", "buyer"),
    }
}

fn requests() -> [LeafRequest; 3] {
    let domain = TrustDomain::default();
    [
        Profile::proxy(&proxy(), &domain),
        Profile::ads(&domain),
        Profile::service(&proxy().service, &domain),
    ]
    .map(|profile| LeafRequest::new(profile, Duration::from_secs(1_800)))
}

#[tokio::test]
async fn vault_signs_what_the_mesh_asks_for() {
    let (fake, options) = serve().await;
    let issuer = Issuer::vault(Vault::open(None, options).await.unwrap());
    assert_eq!(issuer.roots().roots(), [fake.0.lock().authority.root().clone()]);
    for request in requests() {
        let leaf = issuer.issue(&request).await.unwrap();
        assert_eq!(leaf.chain_der().len(), 1, "the root is not part of the chain");
        // Life is a fraction of an hour, and is read from the certificate.
        let life = leaf.validity().lifetime().as_secs();
        assert!((1_799..=1_801).contains(&life), "{life}");
    }
    assert_eq!(fake.0.lock().asked[0]["ttl"], "1800s");
    fake.0.lock().uris_allowed = false;
    let leaf = issuer.issue(&requests()[0]).await.unwrap();
    assert_eq!(
        proxy_of(&leaf.chain_der()[0], &TrustDomain::default()),
        Ok(proxy())
    );
    assert_eq!(issuer.check().await, RootState::Same);
}

#[tokio::test]
async fn another_root_an_expired_certificate_or_a_failure_is_reported_and_changes_nothing() {
    let (fake, options) = serve().await;
    let issuer = Issuer::vault(Vault::open(None, options.clone()).await.unwrap());
    let roots = issuer.roots();
    let first = std::mem::replace(&mut fake.0.lock().authority, authority(Timestamp::now()));
    let other_root = issuer.issue(&requests()[1]).await.unwrap_err();
    assert!(other_root.to_string().contains("does not chain"), "{other_root}");
    assert!(matches!(issuer.check().await, RootState::Differs(_)));
    assert_eq!(issuer.roots(), roots);

    fake.0.lock().authority = first;
    fake.0.lock().late = SignedDuration::from_hours(1);
    let expired = issuer.issue(&requests()[1]).await.unwrap_err();
    assert!(expired.to_string().contains("not valid now"), "{expired}");

    fake.0.lock().late = SignedDuration::ZERO;
    fake.0.lock().status = Some(503);
    let sealed = issuer.issue(&requests()[1]).await.unwrap_err();
    assert!(
        matches!(&sealed, IssueError::Provider(message) if message.contains("sealed")),
        "{sealed}"
    );
    assert!(
        matches!(issuer.issue(&requests()[1]).await, Err(IssueError::Closed(_))),
        "not asked again at once"
    );
    assert!(matches!(issuer.check().await, RootState::Unknown(_)));
    let trouble = issuer.watch_trouble().borrow().clone().unwrap();
    assert!(
        trouble.message.contains("does not chain"),
        "the first failure: {trouble:?}"
    );

    fake.0.lock().status = None;
    let wrong = VaultOptions {
        token: Token::Literal(Zeroizing::new("wrong".into())),
        ..options.clone()
    };
    let issuer = Issuer::vault(Vault::open(None, wrong.clone()).await.unwrap());
    let denied = issuer.issue(&requests()[1]).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    assert!(
        !format!("{denied:?} {wrong:?}").contains("wrong"),
        "no token in errors"
    );

    // Long ago: over by now.
    fake.0.lock().authority = authority(Timestamp::now() - SignedDuration::from_hours(100_000));
    let unfit = Vault::open(None, options).await.err();
    assert!(matches!(unfit, Some(IssueError::Root(RootError::Expired(_)))));
}
