//! Who is who: nobody enters without a certificate of the mesh, and certificates say who one is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use osm_core::api::names::CA_BUNDLE_SECRET;
use osm_core::certificate::Profile;
use osm_core::identity::ServiceIdentity;
use osm_runtime::issuer::{Authority, LeafRequest, StoredRoot};
use serde_json::json;

use super::{answered, closed, http_port, serve_client};
use crate::harness::mesh::{NAMESPACE, TRUST_DOMAIN};
use crate::harness::policy::{any_route, http_rule, tcp_route, tcp_rule, traffic_target};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Workload, eventually};

/// Plain HTTP and TCP from a pod outside the mesh are refused, by address and by name, also in permissive mode's absence
/// of policy.
pub(super) async fn plaintext_from_outside_is_refused(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    serve_client(case, &inside, http_port()).await?;
    let peers = case
        .run(&[
            (&inside, Workload::client("client")),
            (&outside, Workload::client("stranger")),
            (&inside, Workload::server("web", "--http 8080")),
        ])
        .await?;
    let [client, stranger, web] = &peers[..] else {
        unreachable!("three were asked for")
    };
    // The server is there, and configured.
    answered(client, &format!("http://web.{inside}/"), &[], 200).await?;
    for url in [
        format!("http://{}:8080/", web.ip),
        format!("http://web.{inside}/"),
    ] {
        let answer = stranger.get(&url, &["--timeout", "3"]).await?;
        ensure!(
            matches!(answer.outcome().as_str(), "closed" | "reset" | "refused"),
            "{url} was answered: {answer:?}"
        );
    }
    closed(stranger, &format!("{}:8080", web.ip), "hello").await
}

/// The certificate on the wire is the service account's; a client without one, or with one of its own making, is not
/// let in.
pub(super) async fn certificates_on_the_wire(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    case.apply(&[
        service(&inside, "web", "web", http_port()),
        any_route(&inside, "any"),
        traffic_target(
            "web",
            (&inside, "librarian"),
            &[http_rule("any", &["any"])],
            &[(&inside, "client")],
        ),
    ])
    .await?;
    let peers = case
        .run(&[
            (&inside, Workload::client("client")),
            (&outside, Workload::client("stranger")),
            (
                &inside,
                Workload::server("web", "--http 8080").account("librarian"),
            ),
        ])
        .await?;
    let [client, stranger, web] = &peers[..] else {
        unreachable!("three were asked for")
    };
    answered(client, &format!("http://web.{inside}/"), &[], 200).await?;

    let address = format!("{}:8080", web.ip);
    let sni = format!("web.{inside}.svc.cluster.local");
    let mesh = ["--sni", &sni, "--alpn", "osm"];
    let shown = stranger.tls(&address, &mesh).await?;
    let name = format!("librarian.{inside}.{TRUST_DOMAIN}");
    let leaf = shown
        .certificates
        .first()
        .with_context(|| format!("no certificate: {shown:?}"))?;
    ensure!(
        leaf.common_name == name,
        "the common name is {} instead of {name}",
        leaf.common_name
    );
    ensure!(
        leaf.names.contains(&name),
        "the DNS names are {:?} without {name}",
        leaf.names
    );
    let error = shown.error.as_deref().unwrap_or_default();
    ensure!(
        error.contains("CertificateRequired"),
        "a client without certificate was not told that it needs one: {shown:?}"
    );

    let friend = format!("client.{inside}.{TRUST_DOMAIN}");
    let forged = [&mesh[..], &["--forge", &friend]].concat();
    let shown = stranger.tls(&address, &forged).await?;
    ensure!(
        shown.error.is_some(),
        "a forged certificate was let in: {shown:?}"
    );

    let identities = client.envoy().identities().await?;
    ensure!(
        identities.contains(&friend),
        "the client's sidecar is {identities:?}"
    );
    Ok(())
}

/// A TCP server's sidecar lets a certificate of the mesh in by whose it is, and by nothing else: a peer that speaks to it
/// past its own sidecar is judged all the same.
pub(super) async fn a_certificate_opens_only_its_own_doors(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    case.apply(&[
        service(
            &inside,
            "echo",
            "echo",
            json!([{ "name": "tcp-echo", "port": 9100 }]),
        ),
        tcp_route(&inside, "echo", &[9100]),
        traffic_target(
            "friends",
            (&inside, "echo"),
            &[tcp_rule("echo")],
            &[(&inside, "friend")],
        ),
    ])
    .await?;
    let (caller, echo) = case
        .run2(
            (&outside, Workload::client("caller")),
            (&inside, Workload::server("echo", "--tcp 9100")),
        )
        .await?;
    let address = format!("{}:9100", echo.ip);
    let sni = format!("echo.{inside}.svc.cluster.local");
    let present = async |account: &str| {
        let (chain, key) = certificate_of(case, &inside, account).await?;
        // Text that begins with a dash is taken for an option unless it is joined to its own.
        let (chain, key) = (format!("--chain={chain}"), format!("--key={key}"));
        let options = ["--sni", &sni, "--alpn", "osm", &chain, &key];
        caller.tls(&address, &options).await
    };
    eventually("the friend to be let in", SETTLED, async || {
        let shown = present("friend").await?;
        ensure!(shown.error.is_none(), "the friend was turned away: {shown:?}");
        Ok(())
    })
    .await?;
    let shown = present("stranger").await?;
    ensure!(
        shown.version.is_some() && shown.error.is_some(),
        "a stranger with a certificate of the mesh was let in, or not even heard: {shown:?}"
    );
    Ok(())
}

/// A service certificate of an account, signed as the controllers sign.
async fn certificate_of(case: &Case, namespace: &str, account: &str) -> Result<(String, String)> {
    let kubernetes = &case.mesh.kubernetes;
    let secret = kubernetes
        .get("v1/Secret", Some(NAMESPACE), CA_BUNDLE_SECRET)
        .await?
        .context("the mesh has no root")?;
    let text = |field: &str| -> Result<String> {
        let value = secret["data"][field]
            .as_str()
            .with_context(|| format!("the root has no {field}"))?;
        Ok(String::from_utf8(BASE64_STANDARD.decode(value)?)?)
    };
    let stored = StoredRoot {
        certificate: text("ca.crt")?,
        key: text("private.key")?.into(),
    };
    let identity = ServiceIdentity::new(namespace, account);
    let profile = Profile::service(&identity, &TRUST_DOMAIN.parse()?);
    let now = Timestamp::now();
    let leaf =
        Authority::load(&stored, now)?.sign(&LeafRequest::new(profile, Duration::from_secs(3600)), now)?;
    Ok((leaf.chain_pem().to_string(), leaf.key_pem().to_string()))
}
