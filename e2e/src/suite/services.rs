//! Services of every shape.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{HELLO, answered, answers, closed, connected, denied, http_port, serve_client};
use crate::harness::policy::{any_route, http_rule, tcp_route, tcp_rule, traffic_target};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Workload, eventually};

/// One pod may have several Services, each with several ports, also two that lead to one.
pub(super) async fn many_ports_and_services(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[
        service(
            &namespace,
            "front",
            "web",
            json!([
                { "name": "http-a", "port": 80, "targetPort": 8080 },
                { "name": "http-b", "port": 81, "targetPort": 8081 },
                { "name": "tcp-c", "port": 9100 },
            ]),
        ),
        service(
            &namespace,
            "back",
            "web",
            json!([
                { "name": "http-a", "port": 8080 },
                { "name": "http-d", "port": 80, "targetPort": 8081 },
            ]),
        ),
        any_route(&namespace, "any"),
        tcp_route(&namespace, "echo", &[9100]),
        traffic_target(
            "web",
            (&namespace, "web"),
            &[http_rule("any", &["any"]), tcp_rule("echo")],
            &[(&namespace, "client")],
        ),
    ])
    .await?;
    let (client, _web) = case
        .run2(
            (&namespace, Workload::client("client")),
            (
                &namespace,
                Workload::server("web", "--http 8080 --http 8081 --tcp 9100"),
            ),
        )
        .await?;
    for url in ["front", "front.NS:81", "back.NS:8080", "back.NS"] {
        let url = if url.contains("NS") {
            url.replace("NS", &namespace)
        } else {
            format!("{url}.{namespace}")
        };
        answered(&client, &format!("http://{url}/"), &[], 200).await?;
    }
    connected(&client, &format!("front.{namespace}:9100"), "hi").await?;
    Ok(())
}

/// A named target port may be another number in each pod.
pub(super) async fn named_target_ports(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    serve_client(
        case,
        &namespace,
        json!([{ "name": "http", "port": 80, "targetPort": "web" }]),
    )
    .await?;
    let server = |name: &str, port: u16| {
        Workload::server(name, &format!("--http {port}"))
            .labelled("app", "web")
            .account("web")
            .with_container(json!({ "ports": [{ "name": "web", "containerPort": port }] }))
    };
    let peers = case
        .run(&[
            (&namespace, Workload::client("client")),
            (&namespace, server("one", 8080)),
            (&namespace, server("two", 8090)),
        ])
        .await?;
    let url = format!("http://web.{namespace}/");
    eventually("both pods to answer", SETTLED, async || {
        let load = peers[0].load(&url, &["--rate", "50", "--duration", "1"]).await?;
        ensure!(load.failed == 0 && load.responders.len() == 2, "{load:?}");
        Ok(())
    })
    .await
}

/// The pods of a StatefulSet are reached by their own names through a headless Service, and all together by its name.
pub(super) async fn stateful_set(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let mut headless = service(
        &namespace,
        "db",
        "db",
        json!([
            { "name": "http", "port": 8080 },
            { "name": "tcp-echo", "port": 9100 },
        ]),
    );
    headless["spec"]["clusterIP"] = json!("None");
    let db = Workload::server("db", "--http 8080 --tcp 9100");
    case.apply(&[
        headless,
        db.service_account(&namespace),
        db.stateful_set(&namespace, &case.mesh.images.demo, 2),
        any_route(&namespace, "any"),
        tcp_route(&namespace, "echo", &[9100]),
        traffic_target(
            "db",
            (&namespace, "db"),
            &[http_rule("any", &["any"]), tcp_rule("echo")],
            &[(&namespace, "client"), (&namespace, "db")],
        ),
    ])
    .await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("client")),
            (&namespace, Workload::client("stranger")),
        ])
        .await?;
    let [client, stranger] = &peers[..] else {
        unreachable!("two were asked for")
    };
    let first = case.ready(&namespace, "db-0").await?;
    case.ready(&namespace, "db-1").await?;
    for pod in ["db-0", "db-1"] {
        let host = format!("{pod}.db.{namespace}");
        let answer = answered(client, &format!("http://{host}:8080/"), &[], 200).await?;
        ensure!(
            answer.responder() == Some(pod),
            "{host} was answered by {:?}",
            answer.responder()
        );
        let answer = connected(client, &format!("{host}:9100"), "hi").await?;
        ensure!(answer.body == format!("{pod}: hi"), "{answer:?}");
    }
    answered(client, &format!("http://db.{namespace}:8080/"), &[], 200).await?;
    // Members of the set talk to each other, as a quorum does.
    answered(&first, &format!("http://db-1.db.{namespace}:8080/"), &[], 200).await?;
    denied(stranger, &format!("http://db-0.db.{namespace}:8080/"), &[]).await?;
    closed(stranger, &format!("db-0.db.{namespace}:9100"), HELLO).await
}

/// A Service without selector leads wherever its endpoints are, outside the mesh: it is left alone.
pub(super) async fn service_without_selector(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    let (client, server) = case
        .run2(
            (&inside, Workload::client("client")),
            (&outside, Workload::server("web", "--http 8080 --tcp 9100")),
        )
        .await?;
    case.apply(&[
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "elsewhere", "namespace": inside },
            "spec": { "ports": [
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "tcp-echo", "port": 9100 },
            ] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "elsewhere", "namespace": inside,
                "labels": { "kubernetes.io/service-name": "elsewhere" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }, { "name": "tcp-echo", "port": 9100 }],
            "endpoints": [{ "addresses": [server.ip], "conditions": { "ready": true } }],
        }),
    ])
    .await?;
    let answer = answered(&client, &format!("http://elsewhere.{inside}/"), &[], 200).await?;
    ensure!(answer.responder() == Some("web"), "{answer:?}");
    connected(&client, &format!("elsewhere.{inside}:9100"), "hi").await?;
    Ok(())
}

/// A Service is reached by all of its names, short ones only from its own namespace, with and without the port.
pub(super) async fn short_and_long_names(case: &Case) -> Result<()> {
    let (near, far) = (case.namespace("near").await?, case.namespace("far").await?);
    case.apply(&[
        service(&near, "web", "web", http_port()),
        any_route(&near, "any"),
        traffic_target(
            "web",
            (&near, "web"),
            &[http_rule("any", &["any"])],
            &[(&near, "client"), (&far, "client")],
        ),
    ])
    .await?;
    let peers = case
        .run(&[
            (&near, Workload::client("client")),
            (&far, Workload::client("client")),
            (&near, Workload::server("web", "--http 8080")),
        ])
        .await?;
    let long = [
        format!("web.{near}"),
        format!("web.{near}:80"),
        format!("web.{near}.svc"),
        format!("web.{near}.svc.cluster.local"),
        format!("web.{near}.svc.cluster.local:80"),
    ];
    for host in &long {
        for client in &peers[..2] {
            answered(client, &format!("http://{host}/"), &[], 200).await?;
        }
    }
    answered(&peers[0], "http://web/", &[], 200).await?;
    // From the other namespace the short name is nobody's, whatever the address.
    answers(
        &peers[1],
        &format!("http://web.{near}/"),
        &["-H", "host: web"],
        404,
    )
    .await?;
    Ok(())
}
