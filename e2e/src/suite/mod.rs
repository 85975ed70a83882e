//! The end-to-end tests: a real Kubernetes, real Envoys, the mesh installed by the real `osm`.
//!
//! Each test makes namespaces of its own and says what it proves. The mesh runs in SMI mode with egress allowed; a test
//! that needs it otherwise runs alone and puts it back. After each test every sidecar it used must have accepted all it
//! was sent.

mod admission;
mod cli;
mod control_plane;
mod failures;
mod flags;
mod http;
mod identity;
mod injection;
mod install;
mod probes;
mod services;
mod settings;
mod split;
mod tcp;
pub(crate) mod webhook;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::ground;
use crate::harness::policy::{any_route, http_rule, traffic_target};
use crate::harness::runner::{Options, Test};
use crate::harness::wait::SETTLED;
use crate::harness::workload::service;
use crate::harness::{Case, Peer, eventually, runner};
use crate::report::Answer;

macro_rules! tests {
    ($($module:ident::$name:ident $(, $alone:ident)?;)*) => {
        &[$(Test { name: stringify!($name), alone: tests!(@ $($alone)?), run: |case| Box::pin($module::$name(case)) }),*]
    };
    (@ alone) => { true };
    (@) => { false };
}

/// All of them, in the order they start; those that run alone come last.
pub const TESTS: &[Test] = tests! {
    http::http_allowed_and_denied;
    http::http_headers_methods_and_paths;
    http::route_group_without_matches;
    http::grpc;
    http::websocket;
    tcp::tcp_allowed_and_denied;
    tcp::tcp_who_speaks_first;
    split::split_http;
    split::split_tcp;
    services::many_ports_and_services;
    services::named_target_ports;
    services::stateful_set;
    services::service_without_selector;
    services::short_and_long_names;
    probes::probes_reach_the_application;
    probes::probe_of_a_wrong_port_fails;
    injection::injection_decisions;
    injection::invalid_annotations_are_denied;
    injection::dry_run_writes_nothing;
    injection::repeated_delivery_gives_one_secret;
    injection::excluded_ports_bypass_the_sidecar;
    injection::metrics_can_be_scraped;
    webhook::bad_admission_bodies;
    webhook::validator_guards_traffic_targets;
    identity::plaintext_from_outside_is_refused;
    identity::certificates_on_the_wire;
    identity::a_certificate_opens_only_its_own_doors;
    control_plane::malformed_objects_harm_nothing_else;
    control_plane::two_controllers_agree;
    control_plane::health_and_version;
    cli::namespaces;
    cli::mesh_list_version_and_proxy;
    cli::check_ha;
    failures::failures_are_kept;
    install::refusals_change_nothing;
    settings::permissive_switch_loses_nothing, alone;
    settings::egress, alone;
    admission::absent_injectors, alone;
    flags::install_flags, alone;
    flags::install_ha, alone;
    install::autoscaling_and_disruption_budget, alone;
};

/// Runs the tests: on a cluster of its own, or on the one of `$KUBECONFIG` if `CLUSTER=current`.
pub fn run(options: &Options) -> Result<()> {
    let ground = ground::prepare()?;
    let failed = ground.block_on(async {
        let mesh = ground.mesh().await?;
        ground::clear(&mesh).await?;
        let arguments = mesh.install_arguments(SETTINGS);
        mesh.osm_ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
            .await?;
        ground::mark(&mesh).await?;
        runner::run(&mesh, TESTS, options).await
    })?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// How the mesh of the tests is installed.
const SETTINGS: &[&str] = &[
    "enablePermissiveTrafficPolicy=false",
    "enableEgress=true",
    "enableDebugServer=true",
    "envoyLogLevel=warning",
];

/// Ports of a Service in front of one HTTP server.
fn http_port() -> Value {
    json!([{ "name": "http", "port": 80, "targetPort": 8080 }])
}

/// A Service `web` with these ports, in front of the server of that name, which `client` may send any HTTP request.
async fn serve_client(case: &Case, namespace: &str, ports: Value) -> Result<()> {
    case.apply(&[
        service(namespace, "web", "web", ports),
        any_route(namespace, "any"),
        traffic_target(
            "web",
            (namespace, "web"),
            &[http_rule("any", &["any"])],
            &[(namespace, "client")],
        ),
    ])
    .await
}

/// Waits until a request is answered with `status`.
async fn answered(client: &Peer, url: &str, options: &[&str], status: u16) -> Result<Answer> {
    eventually(
        &format!("{status} from {url} to {}", client.pod),
        SETTLED,
        async || {
            let answer = client.get(url, options).await?;
            ensure!(
                answer.status == Some(status),
                "{} {}",
                answer.outcome(),
                answer.error.as_deref().unwrap_or(&answer.body)
            );
            Ok(answer)
        },
    )
    .await
}

/// Fails unless a request is answered with `status` now, three times in a row.
async fn answers(client: &Peer, url: &str, options: &[&str], status: u16) -> Result<Answer> {
    let mut last = Answer::default();
    for _ in 0..3 {
        last = client.get(url, options).await?;
        ensure!(
            last.status == Some(status),
            "{} asked for {url} {options:?} and got {} {} instead of {status}",
            client.pod,
            last.outcome(),
            last.error.as_deref().unwrap_or(&last.body)
        );
    }
    Ok(last)
}

/// Fails unless a request is denied now, three times in a row.
async fn denied(client: &Peer, url: &str, options: &[&str]) -> Result<()> {
    for _ in 0..3 {
        let answer = client.get(url, options).await?;
        ensure!(
            answer.is_denied(),
            "{} asked for {url} {options:?} and got {answer:?}",
            client.pod
        );
    }
    Ok(())
}

/// Waits until a request is denied.
async fn denied_at_last(client: &Peer, url: &str) -> Result<()> {
    eventually(
        &format!("{url} to be denied to {}", client.pod),
        SETTLED,
        async || {
            let answer = client.get(url, &[]).await?;
            ensure!(answer.is_denied(), "{answer:?}");
            Ok(())
        },
    )
    .await
}

/// Waits until a TCP server answers.
async fn connected(client: &Peer, address: &str, say: &str) -> Result<Answer> {
    eventually(
        &format!("{address} to answer {}", client.pod),
        SETTLED,
        async || {
            let answer = client
                .tcp(address, &["--send", say, "--timeout", "3"])
                .await?
                .last;
            ensure!(answer.error.is_none(), "{}", answer.error.unwrap_or_default());
            Ok(answer)
        },
    )
    .await
}

/// Fails unless a connection is closed without an answer: neither answered nor left hanging.
async fn closed(client: &Peer, address: &str, say: &str) -> Result<()> {
    let answer = client
        .tcp(address, &["--send", say, "--timeout", "3"])
        .await?
        .last;
    ensure!(
        matches!(answer.outcome().as_str(), "closed" | "reset" | "refused"),
        "{} called {address} and got {} {}",
        client.pod,
        answer.outcome(),
        answer.body
    );
    Ok(())
}

/// What a client without a right says: long enough to be told from the beginning of a TLS handshake at once. Of less
/// than five bytes Envoy waits for the rest.
const HELLO: &str = "hello there";

/// Long enough for a change to arrive where it should not.
const A_WHILE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::TESTS;

    #[test]
    fn names_are_unique_and_fit_into_a_namespace() {
        let names: BTreeSet<&str> = TESTS.iter().map(|test| test.name).collect();
        assert_eq!(names.len(), TESTS.len());
        // `t-<name>-<suffix>` is a label: at most 63 characters, a dozen of them the suffix's.
        assert!(names.iter().all(|name| name.len() <= 48), "{names:?}");
    }
}
