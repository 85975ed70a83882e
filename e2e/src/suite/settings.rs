//! The mesh's settings, changed while traffic flows.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{HELLO, answered, answers, closed, connected, denied, denied_at_last, http_port, serve_client};
use crate::harness::policy::{any_route, http_rule, tcp_route, tcp_rule, traffic_target};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Mesh, Workload, eventually};

/// Switching between permissive and SMI mode changes who may call, and does not cost one request of those who may
/// anyway.
pub(super) async fn permissive_switch_loses_nothing(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(
            &namespace,
            "web",
            "web",
            json!([
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "tcp-echo", "port": 9100 },
            ]),
        ),
        any_route(&namespace, "any"),
        tcp_route(&namespace, "echo", &[9100]),
        traffic_target(
            "web",
            (&namespace, "web"),
            &[http_rule("any", &["any"]), tcp_rule("echo")],
            &[(&namespace, "friend")],
        ),
    ])
    .await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("friend")),
            (&namespace, Workload::client("stranger")),
            (&namespace, Workload::server("web", "--http 8080 --tcp 9100")),
        ])
        .await?;
    let [friend, stranger, _web] = &peers[..] else {
        unreachable!("three were asked for")
    };
    let (url, address) = (
        format!("http://web.{namespace}/"),
        format!("web.{namespace}:9100"),
    );
    answered(friend, &url, &[], 200).await?;
    denied(stranger, &url, &[]).await?;
    closed(stranger, &address, HELLO).await?;

    let traffic = friend.load(&url, &["--rate", "100", "--duration", "20", "--timeout", "10"]);
    let switching = async {
        for permissive in [true, false, true, false] {
            switch(&case.mesh, permissive).await?;
            if permissive {
                answered(stranger, &url, &[], 200).await?;
                connected(stranger, &address, "hi").await?;
            } else {
                denied_at_last(stranger, &url).await?;
                eventually("TCP to be denied again", SETTLED, async || {
                    closed(stranger, &address, HELLO).await
                })
                .await?;
            }
        }
        anyhow::Ok(())
    };
    let (traffic, switched) = tokio::join!(traffic, switching);
    // Whatever happened, the other tests need SMI mode.
    switch(&case.mesh, false).await?;
    switched?;
    let traffic = traffic.context("the traffic")?;
    ensure!(traffic.sent > 1500, "only {} requests were sent", traffic.sent);
    ensure!(
        traffic.failed == 0,
        "{} of {} failed: {:?}",
        traffic.failed,
        traffic.sent,
        traffic.failures.first()
    );
    Ok(())
}

async fn switch(mesh: &Mesh, permissive: bool) -> Result<()> {
    mesh.configure(json!({ "traffic": { "enablePermissiveTrafficPolicyMode": permissive } }))
        .await
}

/// With egress allowed, what is outside the mesh can be reached; without, it cannot; inside nothing changes.
pub(super) async fn egress(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    case.apply(&[service(
        &outside,
        "web",
        "web",
        json!([
            { "name": "http", "port": 80, "targetPort": 8080 },
            { "name": "https", "port": 443, "targetPort": 8443 },
            { "name": "tcp-echo", "port": 9100 },
            { "name": "greet", "port": 9200 },
        ]),
    )])
    .await?;
    serve_client(case, &inside, http_port()).await?;
    let peers = case
        .run(&[
            (&inside, Workload::client("client")),
            (&inside, Workload::server("web", "--http 8080")),
            (
                &outside,
                Workload::server("web", "--http 8080 --https 8443 --tcp 9100 --greet 9200"),
            ),
        ])
        .await?;
    let client = &peers[0];
    let (near, far) = (format!("http://web.{inside}/"), format!("http://web.{outside}/"));
    let checks = async {
        answered(client, &near, &[], 200).await?;
        answered(client, &far, &[], 200).await?;
        let secure = client
            .tls(&format!("web.{outside}:443"), &["--sni", "localhost"])
            .await?;
        ensure!(secure.error.is_none(), "{secure:?}");
        connected(client, &format!("web.{outside}:9100"), "hi").await?;
        connected(client, &format!("web.{outside}:9200"), "").await?;

        case.mesh
            .configure(json!({ "traffic": { "enableEgress": false } }))
            .await?;
        eventually("the way out to be shut", SETTLED, async || {
            let answer = client.get(&far, &["--timeout", "3"]).await?;
            ensure!(
                matches!(answer.outcome().as_str(), "closed" | "reset" | "refused"),
                "{answer:?}"
            );
            Ok(())
        })
        .await?;
        closed(client, &format!("web.{outside}:9100"), HELLO).await?;
        closed(client, &format!("web.{outside}:9200"), "").await?;
        answers(client, &near, &[], 200).await?;

        case.mesh
            .configure(json!({ "traffic": { "enableEgress": true } }))
            .await?;
        answered(client, &far, &[], 200).await?;
        anyhow::Ok(())
    };
    let result = checks.await;
    case.mesh
        .configure(json!({ "traffic": { "enableEgress": true } }))
        .await?;
    result
}
