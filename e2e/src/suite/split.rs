//! TrafficSplit.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::connected;
use crate::harness::policy::{any_route, http_rule, tcp_route, tcp_rule, traffic_split, traffic_target};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Peer, Workload, eventually};
use crate::report::Tally;

/// The share of version 1, in percent, and what chance may make of it.
const SHARE: u32 = 20;
const TOLERANCE: f64 = 7.0;

async fn versions(case: &Case, namespace: &str, options: &str, ports: Value) -> Result<Peer> {
    let server = |version: &str| {
        Workload::server(&format!("web-{version}"), options)
            .labelled("app", "web")
            .labelled("version", version)
    };
    let mut leaves = Vec::new();
    for version in ["v1", "v2"] {
        let mut leaf = service(namespace, &format!("web-{version}"), "web", ports.clone());
        leaf["spec"]["selector"]["version"] = json!(version);
        leaves.push(leaf);
    }
    case.apply(&[service(namespace, "web", "web", ports)]).await?;
    case.apply(&leaves).await?;
    let peers = case
        .run(&[
            (namespace, Workload::client("client")),
            (namespace, server("v1")),
            (namespace, server("v2")),
        ])
        .await?;
    Ok(peers[0].clone())
}

fn check(tally: &Tally) -> Result<()> {
    let count = |pod: &str| tally.responders.get(pod).copied().unwrap_or_default();
    let (first, second) = (count("web-v1"), count("web-v2"));
    ensure!(
        tally.failed == 0,
        "{} of {} failed: {:?}",
        tally.failed,
        tally.sent,
        tally.failures.first()
    );
    #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
    let share = 100.0 * first as f64 / (first + second).max(1) as f64;
    ensure!(
        (share - f64::from(SHARE)).abs() <= TOLERANCE,
        "version 1 answered {first}, version 2 {second}: {share:.1} % instead of {SHARE} %"
    );
    Ok(())
}

/// HTTP is divided by weight. The apex is given as name.namespace, which the original took for a subdomain: Envoy
/// rejected the result, and all was 404.
pub(super) async fn split_http(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        any_route(&namespace, "any"),
        traffic_target(
            "v1",
            (&namespace, "web-v1"),
            &[http_rule("any", &["any"])],
            &[(&namespace, "client")],
        ),
        traffic_target(
            "v2",
            (&namespace, "web-v2"),
            &[http_rule("any", &["any"])],
            &[(&namespace, "client")],
        ),
        traffic_split(
            &namespace,
            "web",
            &format!("web.{namespace}"),
            &[("web-v1", SHARE), ("web-v2", 100 - SHARE)],
        ),
    ])
    .await?;
    let client = versions(case, &namespace, "--http 8080", super::http_port()).await?;
    let url = format!("http://web.{namespace}/");
    eventually("the split", SETTLED, async || {
        let load = client.load(&url, &["--rate", "150", "--duration", "4"]).await?;
        ensure!(load.sent >= 400, "only {} requests were sent", load.sent);
        check(&load)
    })
    .await?;
    // The leaves can still be called by their own names, each for all of its traffic.
    let leaf = client
        .load(
            &format!("http://web-v1.{namespace}/"),
            &["--rate", "50", "--duration", "1"],
        )
        .await?;
    ensure!(leaf.failed == 0 && leaf.responders.len() == 1, "{leaf:?}");

    // All weight on one side: the other gets nothing.
    case.apply(&[traffic_split(
        &namespace,
        "web",
        &format!("web.{namespace}"),
        &[("web-v1", 0), ("web-v2", 1)],
    )])
    .await?;
    eventually("all of it on one side", SETTLED, async || {
        let load = client.load(&url, &["--rate", "100", "--duration", "1"]).await?;
        ensure!(
            load.failed == 0 && load.responders.keys().eq(["web-v2"]),
            "{load:?}"
        );
        Ok(())
    })
    .await
}

/// TCP connections are divided by weight.
pub(super) async fn split_tcp(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        tcp_route(&namespace, "echo", &[9100]),
        traffic_target(
            "v1",
            (&namespace, "web-v1"),
            &[tcp_rule("echo")],
            &[(&namespace, "client")],
        ),
        traffic_target(
            "v2",
            (&namespace, "web-v2"),
            &[tcp_rule("echo")],
            &[(&namespace, "client")],
        ),
        traffic_split(
            &namespace,
            "web",
            "web",
            &[("web-v1", SHARE), ("web-v2", 100 - SHARE)],
        ),
    ])
    .await?;
    let client = versions(
        case,
        &namespace,
        "--tcp 9100",
        json!([{ "name": "tcp-echo", "port": 9100 }]),
    )
    .await?;
    let address = format!("web.{namespace}:9100");
    connected(&client, &address, "hello").await?;
    eventually("the split", SETTLED, async || {
        check(
            &client
                .tcp(&address, &["--send", "hello", "--count", "400"])
                .await?
                .tally,
        )
    })
    .await
}
