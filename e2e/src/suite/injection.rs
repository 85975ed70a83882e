//! Which pods get a sidecar, and what they get.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::webhook::{Review, injector};
use super::{answered, connected};
use crate::harness::kubernetes::field;
use crate::harness::mesh::NAME;
use crate::harness::runner::has_sidecar;
use crate::harness::wait::SETTLED;
use crate::harness::{Case, Workload, eventually};

const INJECTION: &str = "openservicemesh.io/sidecar-injection";

/// Annotations of the pod and of its namespace, the host network, and the ignore label decide.
pub(super) async fn injection_decisions(case: &Case) -> Result<()> {
    let kubernetes = &case.mesh.kubernetes;
    let enabled = case.namespace("enabled").await?;
    let disabled = case.namespace_name("disabled");
    let labels = json!({ "openservicemesh.io/monitored-by": NAME });
    kubernetes
        .create_namespace(&disabled, labels.clone(), json!({ INJECTION: "disabled" }))
        .await?;
    let silent = case.namespace_name("silent");
    kubernetes.create_namespace(&silent, labels, json!({})).await?;
    let ignored = case.namespace_name("ignored");
    let labels = json!({ "openservicemesh.io/monitored-by": NAME, "openservicemesh.io/ignore": "true" });
    kubernetes
        .create_namespace(&ignored, labels, json!({ INJECTION: "enabled" }))
        .await?;
    let plain = case.plain_namespace("plain").await?;

    let pod = |name: &str| Workload::client(name);
    let asked = |name: &str, answer: &str| Workload::client(name).annotated(INJECTION, answer);
    let host = |name: &str| Workload::client(name).with(json!({ "spec": { "hostNetwork": true } }));
    let cases = [
        (&enabled, pod("default"), true),
        (&enabled, asked("yes", "yes"), true),
        (&enabled, asked("no", "no"), false),
        (&enabled, asked("disabled", "Disabled"), false),
        (&enabled, host("host"), false),
        (&disabled, pod("default"), false),
        (&disabled, asked("true", "TRUE"), true),
        (&silent, pod("default"), false),
        (&silent, asked("enabled", "enabled"), true),
        (&ignored, asked("enabled", "enabled"), false),
        (&plain, asked("enabled", "enabled"), false),
    ];
    // The injector sees namespaces through a watch; the first pod of a new one may have to wait for it.
    for (namespace, workload, expected) in &cases {
        kubernetes.apply(&[workload.service_account(namespace)]).await?;
        let made = eventually("the pod to be admitted", SETTLED, async || {
            kubernetes
                .dry_run(&workload.pod(namespace, &case.mesh.images.demo))
                .await
        })
        .await?;
        let made: Pod = serde_json::from_value(made)?;
        ensure!(
            has_sidecar(&made) == *expected,
            "{} in {namespace} {} a sidecar",
            workload.name,
            if *expected { "did not get" } else { "got" }
        );
    }
    Ok(())
}

/// What cannot be meant is refused, and the refusal names the annotation and the value.
pub(super) async fn invalid_annotations_are_denied(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let kubernetes = &case.mesh.kubernetes;
    kubernetes
        .apply(&[Workload::client("pod").service_account(&namespace)])
        .await?;
    for (annotation, value) in [
        (INJECTION, "perhaps"),
        ("openservicemesh.io/outbound-port-exclusion-list", "80,http"),
        ("openservicemesh.io/outbound-port-exclusion-list", "70000"),
        ("openservicemesh.io/inbound-port-exclusion-list", "-1"),
        (
            "openservicemesh.io/outbound-ip-range-exclusion-list",
            "10.0.0.0/99",
        ),
        (
            "openservicemesh.io/outbound-ip-range-inclusion-list",
            "everywhere",
        ),
    ] {
        let pod = Workload::client("pod")
            .annotated(annotation, value)
            .pod(&namespace, &case.mesh.images.demo);
        let Err(error) = kubernetes.create(&pod).await else {
            bail!("{annotation}={value} was admitted")
        };
        let text = format!("{error:#}");
        let part = value.rsplit(',').next().unwrap_or(value);
        ensure!(
            text.contains(annotation) && text.contains(part),
            "{annotation}={value} was refused with: {text}"
        );
    }
    let secrets = kubernetes.list("v1/Secret", Some(&namespace), "").await?;
    ensure!(secrets.is_empty(), "refused pods left {} Secrets", secrets.len());
    Ok(())
}

/// A dry run answers as the real thing would, and leaves nothing.
pub(super) async fn dry_run_writes_nothing(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let kubernetes = &case.mesh.kubernetes;
    let workload = Workload::client("pod");
    kubernetes.apply(&[workload.service_account(&namespace)]).await?;
    let pod = kubernetes
        .dry_run(&workload.pod(&namespace, &case.mesh.images.demo))
        .await?;
    ensure!(
        has_sidecar(&serde_json::from_value(pod)?),
        "the dry run shows no sidecar"
    );
    let secrets = kubernetes.list("v1/Secret", Some(&namespace), "").await?;
    ensure!(secrets.is_empty(), "the dry run left {} Secrets", secrets.len());
    Ok(())
}

/// The API server may deliver one request several times, to any injector: one Secret, one patch.
pub(super) async fn repeated_delivery_gives_one_secret(case: &Case) -> Result<()> {
    let namespace = case.namespace("all").await?;
    let workload = Workload::client("pod");
    let kubernetes = &case.mesh.kubernetes;
    kubernetes.apply(&[workload.service_account(&namespace)]).await?;
    let pod = workload.pod(&namespace, &case.mesh.images.demo);
    let review = Review::create_pod(&namespace, pod, "6f2cbd2e-91a5-4b53-8f1c-2a8f8d3f0a11");
    let injectors = injector(&case.mesh).await?;
    ensure!(
        injectors.len() >= 2,
        "two injectors are needed, there are {}",
        injectors.len()
    );

    let deliveries = (0..6).map(|delivery| {
        let (injector, review) = (&injectors[delivery % injectors.len()], &review);
        async move { injector.post("/mutate-pod-creation", &review.body).await }
    });
    let mut patches = Vec::new();
    for answer in futures::future::try_join_all(deliveries).await? {
        ensure!(answer.status == 200, "{answer:?}");
        let body: Value = serde_json::from_str(&answer.body)?;
        ensure!(
            body["response"]["uid"] == review.uid.as_str(),
            "the uid is missing in {body}"
        );
        ensure!(body["response"]["allowed"] == true, "{body}");
        let patch = field(&body, "/response/patch").with_context(|| format!("no patch in {body}"))?;
        patches.push(patch.to_owned());
    }
    patches.dedup();
    ensure!(
        patches.len() == 1,
        "six deliveries gave {} different patches",
        patches.len()
    );
    let secrets = kubernetes.list("v1/Secret", Some(&namespace), "").await?;
    let bootstraps = secrets
        .iter()
        .filter(|secret| {
            field(secret, "/metadata/name").is_ok_and(|name| name.starts_with("envoy-bootstrap-config-"))
        })
        .count();
    ensure!(
        bootstraps == 1,
        "six deliveries gave {bootstraps} bootstrap Secrets"
    );
    Ok(())
}

/// Excluded ports go past the sidecar: in plain text, without policy.
pub(super) async fn excluded_ports_bypass_the_sidecar(case: &Case) -> Result<()> {
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    let server = Workload::server("web", "--http 8080 --http 8081 --tcp 9100")
        .annotated("openservicemesh.io/inbound-port-exclusion-list", "8080, 9100");
    let leaver =
        Workload::client("leaver").annotated("openservicemesh.io/outbound-port-exclusion-list", "8080");
    let peers = case
        .run(&[
            (&outside, Workload::client("stranger")),
            (&inside, server),
            (&inside, leaver),
            (&outside, Workload::server("free", "--http 8080 --http 8081")),
        ])
        .await?;
    let [stranger, server, leaver, free] = &peers[..] else {
        unreachable!("four were asked for")
    };
    answered(stranger, &format!("http://{}:8080/", server.ip), &[], 200).await?;
    connected(stranger, &format!("{}:9100", server.ip), "hi").await?;
    let request = "GET / HTTP/1.1\r\n\r\n";
    super::closed(stranger, &format!("{}:8081", server.ip), request).await?;

    // Both arrive, because egress is on: one past the sidecar, the other through it.
    for (port, passed) in [(8080, 0), (8081, 1)] {
        answered(leaver, &format!("http://{}:{port}/", free.ip), &[], 200).await?;
        let stats = leaver.envoy().stats().await?;
        let counter = "cluster.passthrough-outbound.upstream_cx_total";
        let seen = stats.get(counter).copied().unwrap_or_default();
        ensure!(
            seen == passed,
            "after port {port} the sidecar has seen {seen} connections"
        );
    }
    Ok(())
}

/// With metrics on, Prometheus can scrape the sidecar without TLS; a sidecar that runs takes the listener without a
/// rejected update (the original sent resource types in random order).
pub(super) async fn metrics_can_be_scraped(case: &Case) -> Result<()> {
    let kubernetes = &case.mesh.kubernetes;
    let (inside, outside) = (case.namespace("in").await?, case.plain_namespace("out").await?);
    let (stranger, quiet) = case
        .run2(
            (&outside, Workload::client("stranger")),
            (&inside, Workload::server("quiet", "--http 8080")),
        )
        .await?;
    let scrape = |ip: &str| format!("http://{ip}:15010/stats/prometheus");
    let refused = stranger.get(&scrape(&quiet.ip), &["--timeout", "2"]).await?;
    ensure!(refused.status.is_none(), "metrics are off, yet: {refused:?}");

    let change = json!({ "metadata": { "annotations": {
        "prometheus.io/scrape": "true", "prometheus.io/port": "15010", "prometheus.io/path": "/stats/prometheus",
    } } });
    kubernetes
        .merge("v1/Pod", Some(&inside), "quiet", &change)
        .await?;
    answered(&stranger, &scrape(&quiet.ip), &[], 200).await?;

    let change = json!({ "metadata": { "annotations": { "openservicemesh.io/metrics": "enabled" } } });
    kubernetes.merge("v1/Namespace", None, &inside, &change).await?;
    let workload = Workload::client("loud");
    kubernetes.apply(&[workload.service_account(&inside)]).await?;
    let loud = eventually("a pod that is scraped", SETTLED, async || {
        let made = kubernetes
            .dry_run(&workload.pod(&inside, &case.mesh.images.demo))
            .await?;
        ensure!(
            made["metadata"]["annotations"]["prometheus.io/scrape"] == "true",
            "{}",
            made["metadata"]["annotations"]
        );
        case.start(&inside, &workload).await?;
        case.ready(&inside, "loud").await
    })
    .await?;
    let answer = answered(&stranger, &scrape(&loud.ip), &[], 200).await?;
    ensure!(
        answer.body.contains("envoy_"),
        "these are no metrics of Envoy: {}",
        answer.body
    );
    Ok(())
}
