//! Who may open which TCP connections, and that nothing holds their bytes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{closed, connected};
use crate::harness::policy::{tcp_route, tcp_rule, traffic_target};
use crate::harness::workload::service;
use crate::harness::{Case, Workload};

/// Deny by default, also without any TrafficTarget; a TCPRoute grants its ports and no others, each to its own clients.
pub(super) async fn tcp_allowed_and_denied(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[service(
        &namespace,
        "echo",
        "echo",
        json!([
            { "name": "tcp-open", "port": 9100 },
            { "name": "tcp-shut", "port": 9101 },
        ]),
    )])
    .await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("friend")),
            (&namespace, Workload::client("stranger")),
            (&namespace, Workload::server("echo", "--tcp 9100 --tcp 9101")),
        ])
        .await?;
    let [friend, stranger, _echo] = &peers[..] else {
        unreachable!("three were asked for")
    };
    let (open, shut) = (format!("echo.{namespace}:9100"), format!("echo.{namespace}:9101"));
    closed(friend, &open, "hello").await?;

    case.apply(&[
        tcp_route(&namespace, "open", &[9100]),
        traffic_target(
            "friends",
            (&namespace, "echo"),
            &[tcp_rule("open")],
            &[(&namespace, "friend")],
        ),
    ])
    .await?;
    let answer = connected(friend, &open, "hello").await?;
    ensure!(answer.body == "echo: hello", "{answer:?}");
    closed(stranger, &open, "hello").await?;
    closed(friend, &shut, "hello").await?;

    // Now the server itself has to tell them apart: both lead to it, by different ports.
    case.apply(&[
        tcp_route(&namespace, "shut", &[9101]),
        traffic_target(
            "strangers",
            (&namespace, "echo"),
            &[tcp_rule("shut")],
            &[(&namespace, "stranger")],
        ),
    ])
    .await?;
    connected(stranger, &shut, "hello").await?;
    closed(stranger, &open, "hello").await?;
    closed(friend, &shut, "hello").await?;
    connected(friend, &open, "hello").await?;

    case.mesh
        .kubernetes
        .delete(
            "access.smi-spec.io/v1alpha3/TrafficTarget",
            Some(&namespace),
            "friends",
        )
        .await?;
    crate::harness::eventually(
        "the right to be taken away",
        crate::harness::wait::SETTLED,
        async || closed(friend, &open, "hello").await,
    )
    .await
}

/// Server first and client first both pass at once. The original held a client's "hi" for 15 seconds: it might have
/// become HTTP.
pub(super) async fn tcp_who_speaks_first(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(
            &namespace,
            "talk",
            "talk",
            json!([
                { "name": "tcp-echo", "port": 9100 },
                { "name": "tcp-server-first-greet", "port": 9200 },
                { "name": "greet", "port": 9201, "appProtocol": "tcp-server-first" },
                { "name": "echo", "port": 9101, "appProtocol": "tcp" },
            ]),
        ),
        tcp_route(&namespace, "all", &[9100, 9101, 9200, 9201]),
        traffic_target(
            "all",
            (&namespace, "talk"),
            &[tcp_rule("all")],
            &[(&namespace, "client")],
        ),
    ])
    .await?;
    let (client, _talk) = case
        .run2(
            (&namespace, Workload::client("client")),
            (
                &namespace,
                Workload::server("talk", "--tcp 9100 --tcp 9101 --greet 9200 --greet 9201"),
            ),
        )
        .await?;
    for (port, say, expected) in [
        (9100, "hi", "talk: hi"),
        (9101, "hi", "talk: hi"),
        (9200, "", "talk: welcome\n"),
        (9201, "", "talk: welcome\n"),
    ] {
        let address = format!("talk.{namespace}:{port}");
        connected(&client, &address, say).await?;
        let options = ["--send", say, "--count", "5"];
        let all = client.tcp(&address, &options).await?;
        ensure!(
            all.tally.failed == 0 && all.last.body == expected,
            "{address}: {all:?}"
        );
        let mean = Duration::from_millis(all.tally.elapsed_ms / 5);
        ensure!(
            mean < Duration::from_millis(1000),
            "{address} took {mean:?} to answer"
        );
    }
    Ok(())
}
