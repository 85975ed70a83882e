//! The control plane itself.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{A_WHILE, answered, answers, denied, http_port, serve_client};
use crate::harness::mesh::NAMESPACE;
use crate::harness::policy::{
    any_route, http_rule, route_group, tcp_route, tcp_rule, traffic_split, traffic_target,
};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Workload, eventually};

/// Objects that contradict themselves, refer to nothing, or are hostile are told of by events on them, and touch nothing
/// else: neither other namespaces nor other services of the same one, and changes still arrive.
pub(super) async fn malformed_objects_harm_nothing_else(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    case.apply(&[service(
        &namespace,
        "other",
        "web",
        json!([{ "name": "http", "port": 81, "targetPort": 8080 }]),
    )])
    .await?;
    serve_client(case, &namespace, http_port()).await?;
    let peers = case
        .run(&[
            (&namespace, Workload::client("client")),
            (&namespace, Workload::client("late")),
            (&namespace, Workload::server("web", "--http 8080")),
        ])
        .await?;
    let url = format!("http://web.{namespace}/");
    answered(&peers[0], &url, &[], 200).await?;

    let long = "a".repeat(2000);
    let hostile = [
        route_group(
            &namespace,
            "regex",
            json!([{ "name": "bad", "pathRegex": "(((", "methods": ["GET"] }]),
        ),
        route_group(
            &namespace,
            "bomb",
            json!([
                { "name": "bad", "pathRegex": "((a{1000}){1000}){1000}", "methods": ["GET"] },
            ]),
        ),
        route_group(
            &namespace,
            "headers",
            json!([
                { "name": "bad", "headers": [{ "not a header\n": "[" }, { long.as_str(): ".*" }] },
            ]),
        ),
        route_group(
            &namespace,
            "twins",
            json!([{ "name": "a", "pathRegex": "/a" }, { "name": "a", "pathRegex": "/b" }]),
        ),
        tcp_route(&namespace, "ports", &[0]),
        traffic_target(
            "dangling",
            (&namespace, "web"),
            &[http_rule("nowhere", &["no"]), tcp_rule("nowhere")],
            &[("nowhere", "nobody")],
        ),
        traffic_target(
            "regexes",
            (&namespace, "web"),
            &[
                http_rule("regex", &[]),
                http_rule("bomb", &[]),
                http_rule("headers", &[]),
                http_rule("twins", &[]),
            ],
            &[(&namespace, "client")],
        ),
        traffic_split(&namespace, "zero", "other", &[("web", 0)]),
        traffic_split(&namespace, "loop", "other", &[("other", 1), ("nowhere", 1)]),
        traffic_split(&namespace, "empty", "nowhere.elsewhere.svc", &[]),
        // Two Services of one pod with the same port and target are no contradiction, but two equal listeners would be.
        service(&namespace, "twin", "web", http_port()),
    ];
    let mut refused = Vec::new();
    for object in &hostile {
        // The schema of the kind or the validating webhook may refuse it: as good.
        if let Err(error) = case.apply(std::slice::from_ref(object)).await {
            refused.push(format!("{error:#}"));
        }
    }
    ensure!(
        refused.len() < hostile.len(),
        "nothing hostile was admitted: this proves nothing"
    );
    tokio::time::sleep(A_WHILE).await;
    answers(&peers[0], &url, &[], 200).await?;
    denied(&peers[1], &url, &[]).await?;
    case.apply(&[traffic_target(
        "late",
        (&namespace, "web"),
        &[http_rule("any", &["any"])],
        &[(&namespace, "late")],
    )])
    .await?;
    answered(&peers[1], &url, &[], 200).await?;
    answers(&peers[0], &url, &[], 200).await?;
    // Whoever wrote them is told, next to them.
    for (kind, name, reason, part) in [
        ("HTTPRouteGroup", "regex", "InvalidMatch", "((("),
        ("TrafficTarget", "dangling", "RouteNotFound", "nowhere"),
    ] {
        eventually(&format!("an event on {kind} {name}"), SETTLED, async || {
            let events = case
                .mesh
                .kubernetes
                .list("v1/Event", Some(&namespace), "")
                .await?;
            let told = events.iter().any(|event| {
                let object = &event["involvedObject"];
                let message = event["message"].as_str().unwrap_or_default();
                object["kind"] == kind
                    && object["name"] == name
                    && event["reason"] == reason
                    && event["type"] == "Warning"
                    && message.contains(part)
            });
            ensure!(
                told,
                "{} events, none of them {reason} with `{part}`; refused were {refused:?}",
                events.len()
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// All controllers have the same resources in the same versions for a proxy, and pods of one kind have them, whichever
/// controller each talks to: versions are hashes of content.
pub(super) async fn two_controllers_agree(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let server = |name: &str| {
        Workload::server(name, "--http 8080")
            .labelled("app", "web")
            .account("web")
    };
    case.apply(&[
        service(&namespace, "web", "web", http_port()),
        any_route(&namespace, "any"),
        traffic_target(
            "web",
            (&namespace, "web"),
            &[http_rule("any", &["any"])],
            &[(&namespace, "web")],
        ),
    ])
    .await?;
    let names = ["one", "two", "three", "four", "five", "six"];
    let pods: Vec<(&str, Workload)> = names
        .iter()
        .map(|name| (namespace.as_str(), server(name)))
        .collect();
    let peers = case.run(&pods).await?;
    let uuid = case
        .mesh
        .kubernetes
        .pods(&namespace, "app=web")
        .await?
        .into_iter()
        .find_map(|mut pod| pod.metadata.labels.as_mut()?.remove("osm-proxy-uuid"));
    let uuid = uuid.context("no pod has a sidecar")?;
    let controllers = case.mesh.component("osm-controller").await?;
    ensure!(
        controllers.len() >= 2,
        "there is only {} controller",
        controllers.len()
    );
    eventually("all controllers to say the same", SETTLED, async || {
        let mut said = Vec::new();
        for controller in &controllers {
            let name = controller.metadata.name.as_deref().unwrap_or_default();
            let path = format!("/debug/config?proxy={uuid}");
            let config = case.mesh.kubernetes.fetch(NAMESPACE, name, 9092, &path).await?;
            said.push((name, without_secrets(serde_json::from_str(&config)?)));
        }
        for pair in said.windows(2) {
            let (first, second) = (&pair[0], &pair[1]);
            ensure!(
                first.1 == second.1,
                "{} and {} differ: {} and {}",
                first.0,
                second.0,
                first.1,
                second.1
            );
        }
        let resources = said[0].1.as_object().into_iter().flat_map(|kinds| kinds.values());
        let count: usize = resources.filter_map(Value::as_array).map(Vec::len).sum();
        ensure!(count >= 5, "there are only {count} resources");
        Ok(())
    })
    .await?;
    eventually("all sidecars to have the same versions", SETTLED, async || {
        let first = peers[0].envoy().versions().await?;
        ensure!(
            first.len() >= 5,
            "the config dump of {} has only {first:?}",
            peers[0].pod
        );
        for peer in &peers[1..] {
            let other = peer.envoy().versions().await?;
            let differing: Vec<_> = first
                .iter()
                .filter(|(name, version)| other.get(*name) != Some(version))
                .collect();
            ensure!(
                differing.is_empty() && first.len() == other.len(),
                "{} and {} differ in {differing:?}, {} and {} resources",
                peers[0].pod,
                peer.pod,
                first.len(),
                other.len()
            );
        }
        Ok(())
    })
    .await
}

/// Secrets are minted by each replica: they differ, and all are valid. A replica that serves no sidecar of an identity has
/// none for it (`null`): it happens that all sidecars of a test are at one replica.
fn without_secrets(mut config: Value) -> Value {
    for kind in config
        .as_object_mut()
        .into_iter()
        .flat_map(|kinds| kinds.values_mut())
    {
        if let Some(resources) = kind.as_array_mut() {
            let is_secret =
                |resource: &Value| resource["resource"] == "[redacted]" || resource["name"] == "service-cert";
            resources.retain(|resource| !is_secret(resource));
        }
    }
    config
}

/// Every replica answers on its admin port.
pub(super) async fn health_and_version(case: &Case) -> Result<()> {
    let outside = case.plain_namespace("out").await?;
    let peers = case.run(&[(&outside, Workload::client("prometheus"))]).await?;
    for app in ["osm-controller", "osm-injector"] {
        for pod in case.mesh.component(app).await? {
            let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
            for path in ["/health/ready", "/health/alive"] {
                answers(&peers[0], &format!("http://{ip}:9091{path}"), &[], 200).await?;
            }
            let version = answers(&peers[0], &format!("http://{ip}:9091/version"), &[], 200).await?;
            let version: Value = serde_json::from_str(&version.body)?;
            ensure!(
                version["version"].is_string() && version["git_commit"].is_string(),
                "{version}"
            );
            let metrics = answers(&peers[0], &format!("http://{ip}:9091/metrics"), &[], 200).await?;
            ensure!(metrics.body.contains("# TYPE osm_"), "no metrics of {app}");
            // Debug pages are the replica's own business.
            let debug = peers[0]
                .get(&format!("http://{ip}:9092/debug"), &["--timeout", "2"])
                .await?;
            ensure!(
                debug.status.is_none(),
                "the debug pages of {app} in {NAMESPACE} are open to the network"
            );
        }
    }
    Ok(())
}
