//! The mesh's helper in each pod.
//!
//! `redirect` runs once, before everything else in the pod, and leads its traffic to Envoy. `healthcheck` answers the
//! probes Envoy cannot: for TCP and gRPC. Must stay small, it is in every pod: no async runtime, no TLS, no Kubernetes
//! client.

mod healthcheck;
mod redirect;

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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Redirect(arguments) => redirect::run(arguments),
        Command::Healthcheck(arguments) => healthcheck::run(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("osm-sidecar: {error:#}");
            ExitCode::FAILURE
        }
    }
}
