//! Who is who: nobody enters without a certificate of the mesh, and certificates say who one is.

use anyhow::{Context as _, Result, ensure};

use super::{answered, closed, http_port, serve_client};
use crate::harness::mesh::TRUST_DOMAIN;
use crate::harness::policy::{any_route, http_rule, traffic_target};
use crate::harness::workload::service;
use crate::harness::{Case, Workload};

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
