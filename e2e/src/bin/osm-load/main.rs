//! `osm-load`: load on the control plane. Thousands of fake Envoys, a real API server, and what the mesh's programs cost.
//!
//! ```text
//! population -> api (etcd, kube-apiserver) -> osm-controller -> connection, sidecar (fake Envoys) -> tally
//!                    plan: what is done, in which order; measure, phase: what it took; report: for people and programs
//! ```
//!
//! Invariant: fake Envoys say what Envoy says and prove who they are as sidecars do, the API server is the real one, and
//! costs are read from the kernel's accounts. What an API server cannot be told fast enough is written beneath it (etcd). Only
//! traffic, kubelets and the controller manager are missing.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
mod bench;
mod comparison;
mod connection;
mod etcd;
mod fleet;
mod injection;
mod istiod;
mod library;
mod measure;
mod paced;
mod phase;
mod plan;
mod population;
mod reference;
mod report;
mod server;
mod sidecar;
mod soak;
mod tally;
mod unrelated;
mod wire;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use osm_e2e::progress::Progress;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    plan::{ControlPlane, Plan, Stage, Step},
    population::Size,
    report::Report,
    sidecar::Variant,
};

// Thousands of buffers come and go: the allocator of the C library spends a tenth of the fake Envoys' time on them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Load on the control plane: thousands of fake Envoys over real mutual TLS, a real API server.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Where to write the report as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Threads of the fake Envoys. One leaves a core of two to the server.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
}

#[derive(Subcommand)]
enum Verb {
    /// What is judged by ratios within the run. Under ten minutes on two cores.
    Bench,
    /// Everything, to the limit. An hour and more.
    Full,
    /// Ours and the best peer, one after the other, in the case that meshes are compared in. Builds the peer.
    Peer,
    /// One mesh, and the steps that are named.
    Run(Run),
    /// The injector alone.
    Inject {
        /// Seconds of each phase.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
}

#[derive(Args)]
struct Run {
    /// Services.
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Pods with a proxy, over all services.
    #[arg(long, default_value_t = 1_000)]
    proxies: usize,
    /// Services that each may call.
    #[arg(long, default_value_t = 5)]
    upstreams: usize,
    /// Services that may call the hub.
    #[arg(long, default_value_t = 50)]
    hub_callers: usize,
    /// Everyone may call everyone.
    #[arg(long)]
    permissive: bool,
    /// What the proxies speak.
    #[arg(long, value_enum, default_value = "delta")]
    variant: Variant,
    /// Controller replicas.
    #[arg(long, default_value_t = 1)]
    controllers: usize,
    /// What to do, in order: `connect`, `idle=10`, `endpoint=5`, `churn=60@100` ...
    #[arg(default_values = ["connect", "idle=5", "endpoint=3", "target=3", "restart"])]
    steps: Vec<Step>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let progress = Progress::new();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (plans, injection) = match &arguments.verb {
        Verb::Bench => (bench::short(), Some(10)),
        Verb::Full => (bench::full(), Some(60)),
        Verb::Peer => (vec![comparison::plan()], None),
        Verb::Run(run) => (vec![run.plan()], None),
        Verb::Inject { seconds } => (Vec::new(), Some(*seconds)),
    };
    let mut phases = Vec::new();
    // What was measured before something failed is reported all the same.
    let measured = runtime.block_on(unless_stopped(async {
        for plan in &plans {
            phases.extend(plan.run(arguments.threads, &progress).await?);
        }
        if let Some(seconds) = injection {
            phases.extend(bench::injector(Duration::from_secs(seconds), &progress).await?);
        }
        Ok(())
    }));
    let verdicts = match &arguments.verb {
        Verb::Peer => comparison::judge(&phases),
        _ => bench::judge(&phases),
    };
    let report = Report::new(phases, verdicts);
    println!("{}", report.text());
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.json()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    measured?;
    Ok(report.holds())
}

/// Does the work unless it is told to stop: what it has started and written is gone then, too.
async fn unless_stopped<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and_then(|()| bail!("interrupted")),
        _ = terminate.recv() => bail!("told to stop"),
    }
}

impl Run {
    fn plan(&self) -> Plan {
        let mode = if self.permissive { "permissive" } else { "SMI" };
        Plan {
            size: Size {
                services: self.services,
                proxies: self.proxies,
                upstreams: self.upstreams,
                hub_callers: self.hub_callers,
            },
            stages: vec![Stage {
                name: format!("{mode} {:?} {}/{}", self.variant, self.proxies, self.services).to_lowercase(),
                permissive: self.permissive,
                variant: self.variant,
                control_plane: ControlPlane::Osm,
                controllers: self.controllers,
                steps: self.steps.clone(),
            }],
        }
    }
}
