//! The mesh's helper in each pod.
//!
//! `redirect` runs once, before everything else in the pod, and leads its traffic to Envoy. `healthcheck` answers the
//! probes Envoy cannot: for TCP and gRPC. `relay` keeps the sidecar's last good configuration, where that is switched
//! on. Must stay small, it is in every pod: no Kubernetes client, and no async runtime but in `relay`.

mod healthcheck;
mod redirect;
mod relay;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "The mesh's helper in each pod")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Redirects the TCP traffic of this network namespace to Envoy, and ends.
    Redirect(redirect::Arguments),
    /// Answers rewritten TCP and gRPC probes until it is told to end.
    Healthcheck(healthcheck::Arguments),
    /// Passes Envoy's configuration on, keeps it, and serves what it kept while no controller answers.
    Relay(relay::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Redirect(arguments) => redirect::run(arguments),
        Command::Healthcheck(arguments) => healthcheck::run(arguments),
        Command::Relay(arguments) => relay::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("osm-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}
