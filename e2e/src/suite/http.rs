//! Who may send which HTTP requests.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{answered, answers, denied, denied_at_last, http_port, serve_client};
use crate::harness::policy::{any_route, http_rule, route_group, traffic_target};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Workload, eventually};

/// Nobody may call anybody unless a TrafficTarget says so; taking it away takes the right away. Who may call something
/// of a server is refused the rest by the server, by identity.
pub(super) async fn http_allowed_and_denied(case: &Case) -> Result<()> {
    let (clients, servers) = (case.namespace("clients").await?, case.namespace("servers").await?);
    case.apply(&[service(&servers, "web", "web", http_port())])
        .await?;
    let peers = case
        .run(&[
            (&clients, Workload::client("friend")),
            (&clients, Workload::client("stranger")),
            (&servers, Workload::server("web", "--http 8080")),
        ])
        .await?;
    let [friend, stranger, _web] = &peers[..] else {
        unreachable!("three were asked for")
    };
    let url = format!("http://web.{servers}/");
    denied_at_last(friend, &url).await?;

    case.apply(&[
        any_route(&servers, "any"),
        traffic_target(
            "friends",
            (&servers, "web"),
            &[http_rule("any", &["any"])],
            &[(&clients, "friend")],
        ),
    ])
    .await?;
    let answer = answered(friend, &url, &[], 200).await?;
    ensure!(answer.responder() == Some("web"), "{answer:?}");
    denied(stranger, &url, &[]).await?;

    case.apply(&[
        route_group(
            &servers,
            "lobby",
            json!([{ "name": "lobby", "pathRegex": "/lobby", "methods": ["GET"] }]),
        ),
        traffic_target(
            "strangers",
            (&servers, "web"),
            &[http_rule("lobby", &["lobby"])],
            &[(&clients, "stranger")],
        ),
    ])
    .await?;
    answered(stranger, &format!("{url}lobby"), &[], 200).await?;
    answers(stranger, &url, &[], 403).await?;

    case.mesh
        .kubernetes
        .delete(
            "access.smi-spec.io/v1alpha3/TrafficTarget",
            Some(&servers),
            "friends",
        )
        .await?;
    denied_at_last(friend, &url).await?;
    Ok(())
}

/// All conditions of a match must hold; paths and header values match as a whole; queries do not count.
pub(super) async fn http_headers_methods_and_paths(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(&namespace, "web", "web", http_port()),
        route_group(
            &namespace,
            "routes",
            json!([
                { "name": "read", "pathRegex": "/books/[0-9]+", "methods": ["GET", "HEAD"],
                  "headers": [{ "x-role": "reader|editor" }] },
                { "name": "write", "pathRegex": "/books", "methods": ["POST"] },
                { "name": "unused", "pathRegex": "/secret", "methods": ["*"] },
            ]),
        ),
        traffic_target(
            "readers",
            (&namespace, "web"),
            &[http_rule("routes", &["read", "write"])],
            &[(&namespace, "client")],
        ),
    ])
    .await?;
    let (client, _web) = case
        .run2(
            (&namespace, Workload::client("client")),
            (&namespace, Workload::server("web", "--http 8080")),
        )
        .await?;
    let url = |path: &str| format!("http://web.{namespace}{path}");
    let reader = ["-H", "x-role: reader"];
    answered(&client, &url("/books/1"), &reader, 200).await?;
    let post = ["-X", "POST"];
    for (path, options) in [
        ("/books/1?page=2", &reader[..]),
        ("/books/12", &["-H", "x-role: editor"]),
        ("/books/1", &["-X", "HEAD", "-H", "x-role: reader"]),
        ("/books", &post),
    ] {
        answers(&client, &url(path), options, 200).await?;
    }
    for (path, options) in [
        ("/books/1", &[][..]),
        ("/books/1", &["-H", "x-role: readers"]),
        ("/books/1/pages", &reader),
        ("/x/books/1", &reader),
        ("/books/one", &reader),
        ("/books/1", &["-X", "PUT", "-H", "x-role: reader"]),
        ("/books", &[]),
        ("/books/1", &post),
        ("/secret", &[]),
    ] {
        denied(&client, &url(path), options).await?;
    }
    Ok(())
}

/// A rule that names no matches grants all matches of its group (the original granted none).
pub(super) async fn route_group_without_matches(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(&namespace, "web", "web", http_port()),
        route_group(
            &namespace,
            "routes",
            json!([
                { "name": "one", "pathRegex": "/one", "methods": ["GET"] },
                { "name": "two", "pathRegex": "/two", "methods": ["GET"] },
            ]),
        ),
        traffic_target(
            "everything",
            (&namespace, "web"),
            &[http_rule("routes", &[])],
            &[(&namespace, "client")],
        ),
    ])
    .await?;
    let (client, _web) = case
        .run2(
            (&namespace, Workload::client("client")),
            (&namespace, Workload::server("web", "--http 8080")),
        )
        .await?;
    answered(&client, &format!("http://web.{namespace}/one"), &[], 200).await?;
    answers(&client, &format!("http://web.{namespace}/two"), &[], 200).await?;
    denied(&client, &format!("http://web.{namespace}/three"), &[]).await?;
    Ok(())
}

/// gRPC passes, by method; a denial is PERMISSION_DENIED.
pub(super) async fn grpc(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(
            &namespace,
            "api",
            "api",
            json!([{ "name": "grpc-api", "port": 9000 }]),
        ),
        route_group(
            &namespace,
            "health",
            json!([
                { "name": "check", "pathRegex": "/grpc.health.v1.Health/Check", "methods": ["POST"] },
                { "name": "watch", "pathRegex": "/grpc.health.v1.Health/Watch", "methods": ["POST"] },
            ]),
        ),
        traffic_target(
            "health",
            (&namespace, "api"),
            &[http_rule("health", &["check"])],
            &[(&namespace, "client")],
        ),
        traffic_target(
            "watchers",
            (&namespace, "api"),
            &[http_rule("health", &["watch"])],
            &[(&namespace, "stranger")],
        ),
    ])
    .await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("client")),
            (&namespace, Workload::client("stranger")),
            (&namespace, Workload::server("api", "--http 9000")),
        ])
        .await?;
    let url = format!("http://api.{namespace}:9000");
    let allowed = eventually("gRPC health", SETTLED, async || {
        let answer = peers[0].grpc(&url).await?;
        ensure!(answer.status == Some(0), "{answer:?}");
        Ok(answer)
    })
    .await?;
    ensure!(allowed.body == "Serving", "{allowed:?}");
    eventually("a denial", SETTLED, async || {
        let denied = peers[1].grpc(&url).await?;
        ensure!(denied.status == Some(7), "PERMISSION_DENIED is 7, not {denied:?}");
        Ok(())
    })
    .await
}

/// A WebSocket is an HTTP request that is upgraded, and allowed or denied as one.
pub(super) async fn websocket(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    serve_client(case, &namespace, http_port()).await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("client")),
            (&namespace, Workload::client("stranger")),
            (&namespace, Workload::server("web", "--http 8080")),
        ])
        .await?;
    let url = format!("ws://web.{namespace}/websocket");
    let answer = eventually("a WebSocket", SETTLED, async || {
        let answer = peers[0].websocket(&url).await?;
        ensure!(answer.status == Some(101), "{answer:?}");
        Ok(answer)
    })
    .await?;
    ensure!(answer.body == "echo: hello", "{answer:?}");
    let denied = peers[1].websocket(&url).await?;
    ensure!(denied.is_denied(), "{denied:?}");
    Ok(())
}
