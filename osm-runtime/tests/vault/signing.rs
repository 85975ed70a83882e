//! What Vault signs, and what it refuses.

use jiff::Timestamp;
use osm_core::{
    certificate::{Profile, proxy_of},
    identity::{ProxyIdentity, ServiceIdentity, TrustDomain},
};
use osm_runtime::issuer::{Authority, IssueError, Issuer, Provider, RootState, Token, VaultOptions};
use serde_json::json;

use super::{
    ads, ca, open, request,
    secrets::Secrets,
    server::{SPARE_TOKEN, Server, TOKEN, literal, program},
};

fn proxy(namespace: &str, name: &str) -> ProxyIdentity {
    ProxyIdentity {
        uuid: "6a1e9e6b-0000-4000-8000-00000000000f".parse().unwrap(),
        service: ServiceIdentity::new(namespace, name),
    }
}

#[tokio::test]
async fn a_token_that_may_issue_and_nothing_else_is_enough_for_all_the_mesh_needs() {
    let Some(program) = program() else { return };
    let ca = ca();
    let server = Server::start(&program, &ca, 0).await;
    let issuer = open(server.options()).await.unwrap();
    assert_eq!(issuer.roots().roots()[0].pem(), ca.certificate);
    assert_eq!(issuer.check().await, RootState::Same);
    let domain = TrustDomain::default();
    // The second is as long as names may be: 63 bytes each.
    let long = ("n".repeat(63), "a".repeat(63));
    for proxy in [proxy("shop", "buyer"), proxy(&long.0, &long.1)] {
        let leaf = issuer
            .issue(&request(Profile::proxy(&proxy, &domain), 600))
            .await
            .unwrap();
        assert_eq!(proxy_of(&leaf.chain_der()[0], &domain), Ok(proxy.clone()));
        let leaf = issuer
            .issue(&request(Profile::service(&proxy.service, &domain), 600))
            .await
            .unwrap();
        assert_eq!(leaf.chain_der().len(), 1, "the root is not part of the chain");
        assert_eq!(leaf.certificate().uris.len(), 1);
        // A life of less than an hour is kept, however much Vault back-dates.
        let left = leaf.validity().not_after.duration_since(leaf.renew_at(0.0));
        assert!((299..=301).contains(&left.as_secs()), "{left}: half of it");
    }
    issuer.issue(&ads(86_400)).await.unwrap();
    let names = ["z.example.com".to_owned(), "a.example.com".to_owned()];
    let gateway = Profile::gateway(&names).unwrap();
    issuer.issue(&request(gateway, 600)).await.unwrap();
    let webhook = Profile::webhook("osm-injector", "osm-system");
    issuer.issue(&request(webhook, 86_400)).await.unwrap();
}

/// As the original's documentation had it.
#[tokio::test]
async fn a_role_without_uris_gives_certificates_with_names_alone() {
    let Some(program) = program() else { return };
    let role = json!({"allowed_uri_sans": []});
    let server = Server::start_with(&program, &ca(), 0, role, &[]).await;
    let issuer = open(server.options()).await.unwrap();
    let (proxy, domain) = (proxy("shop", "buyer"), TrustDomain::default());
    let leaf = issuer
        .issue(&request(Profile::proxy(&proxy, &domain), 600))
        .await
        .unwrap();
    assert!(leaf.certificate().uris.is_empty());
    assert_eq!(proxy_of(&leaf.chain_der()[0], &domain), Ok(proxy));
}

#[tokio::test]
async fn what_vault_refuses_is_told_in_its_words_and_without_the_token() {
    let Some(program) = program() else { return };
    let server = Server::start(&program, &ca(), 0).await;
    let issuer = open(server.options()).await.unwrap();
    let wrong = VaultOptions {
        token: literal("hvs.wrong-token"),
        ..server.options()
    };
    let denied = open(wrong).await.unwrap().issue(&ads(600)).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    assert!(!denied.to_string().contains("wrong-token"), "{denied}");
    let role = VaultOptions {
        role: "no-such-role".into(),
        ..server.options()
    };
    let denied = open(role).await.unwrap().issue(&ads(600)).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");

    issuer.issue(&ads(600)).await.unwrap();
    server.write("sys/seal", json!({})).await;
    let sealed = issuer.issue(&ads(600)).await.unwrap_err();
    assert!(matches!(&sealed, IssueError::Provider(_)), "{sealed}");
    assert!(sealed.to_string().to_lowercase().contains("sealed"), "{sealed}");
    assert!(matches!(issuer.check().await, RootState::Unknown(_)));
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_again() {
    let Some(program) = program() else { return };
    let server = Server::start(&program, &ca(), 0).await;
    let secrets = Secrets::default();
    secrets.put("vault-token", "token", TOKEN);
    let token = Token::Secret {
        namespace: "osm-system".into(),
        name: "vault-token".into(),
        key: "token".into(),
    };
    let provider = Provider::Vault {
        options: VaultOptions {
            token,
            ..server.options()
        },
        memory: None,
    };
    let issuer = Issuer::open(secrets.client(), &provider, |_| {}).await.unwrap();
    issuer.issue(&ads(600)).await.unwrap();
    server.write("auth/token/revoke", json!({"token": TOKEN})).await;
    secrets.put("vault-token", "token", SPARE_TOKEN);
    let denied = issuer.issue(&ads(600)).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    let again = async {
        // It is left alone for a moment after a refusal.
        while let Err(error) = issuer.issue(&ads(600)).await {
            assert!(matches!(error, IssueError::Closed(_)), "{error}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(super::SOON, again).await.unwrap();
}

#[tokio::test]
async fn over_https_vault_must_be_vouched_for() {
    let Some(program) = program() else { return };
    let (mesh, web) = (ca(), ca());
    let authority = Authority::load(&web, Timestamp::now()).unwrap();
    // Any name will do that can be resolved.
    let mut profile = Profile::webhook("vault", "infra");
    profile.dns_names = vec!["localhost".into()];
    let leaf = authority.sign(&request(profile, 600), Timestamp::now()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let flags = [
        format!("-tls-cert={}", file("tls.crt", leaf.chain_pem()).display()),
        format!("-tls-key={}", file("tls.key", &leaf.key_pem()).display()),
    ];
    let server = Server::start_with(&program, &mesh, 0, json!({}), &flags).await;
    let options = |authorities: &str| VaultOptions {
        address: format!("https://localhost:{}", server.port).parse().unwrap(),
        authorities: Some(file("ca.crt", authorities)),
        ..server.options()
    };
    let issuer = open(options(&web.certificate)).await.unwrap();
    issuer.issue(&ads(600)).await.unwrap();
    let refused = open(options(&mesh.certificate)).await.unwrap_err();
    assert!(matches!(&refused, IssueError::Provider(_)), "{refused}");
    assert!(
        refused.to_string().contains("invalid peer certificate"),
        "{refused}"
    );
}
