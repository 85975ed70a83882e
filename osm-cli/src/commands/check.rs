//! `osm check`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::check::{self, Facts, Finding, Scope, Verdict};
use crate::cluster::Cluster;
use crate::progress::Step;
use crate::{DEFAULT_MESH, Global, duration, mesh_name, output};

/// Time between two looks, while waiting.
const POLL: Duration = Duration::from_secs(2);

/// How findings are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// All findings, in groups.
    #[default]
    Table,
    /// All findings, for programs.
    Json,
    /// What is wrong, one line each.
    Short,
}

/// Judges a running mesh.
#[derive(Debug, Args)]
pub(crate) struct CheckCommand {
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
    /// Judges high availability, too: replicas, their spread, budgets, autoscalers, connections
    #[arg(long)]
    ha: bool,
    /// Judges each sidecar, too: what it rejects, what it has not confirmed, its certificate
    #[arg(long)]
    proxy: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Judges again until nothing is broken, for this long at most
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "5m",
          value_parser = duration::parse)]
    wait: Option<Duration>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    mesh: &'a str,
    namespace: &'a str,
    success: bool,
    /// How long pods go on without a control plane, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    outage_budget_seconds: Option<i64>,
    findings: &'a [Finding],
}

impl CheckCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        let mesh = cluster.mesh(&self.mesh_name).await?;
        let scope = Scope {
            ha: self.ha,
            proxy: self.proxy,
        };
        let deadline = Instant::now() + self.wait.unwrap_or_default();
        let mut step = Step::begin("Asking the cluster and the replicas");
        let (facts, findings) = loop {
            let facts = Box::pin(check::gather(&cluster, &mesh, scope)).await;
            let findings = check::judge(&facts, scope);
            if failures(&findings) == 0 || Instant::now() >= deadline {
                break (facts, findings);
            }
            step.update(&format!("waiting for {} checks", failures(&findings)));
            sleep(POLL).await;
        };
        step.done();
        self.print(&facts, &findings)?;
        match failures(&findings) {
            0 => Ok(()),
            1 => bail!("1 check failed in mesh [{}]", mesh.name),
            count => bail!("{count} checks failed in mesh [{}]", mesh.name),
        }
    }

    fn print(&self, facts: &Facts, findings: &[Finding]) -> Result<()> {
        match self.output {
            Format::Table => output::print(&check::lines(findings)),
            Format::Short => output::print(&check::short(findings)),
            Format::Json => output::json(&Report {
                mesh: &facts.mesh,
                namespace: &facts.namespace,
                success: failures(findings) == 0,
                outage_budget_seconds: facts
                    .lifetime
                    .as_ref()
                    .ok()
                    .copied()
                    .flatten()
                    .map(check::promise),
                findings,
            }),
        }
    }
}

fn failures(findings: &[Finding]) -> usize {
    let broken = |finding: &&Finding| finding.verdict == Verdict::Failure;
    findings.iter().filter(broken).count()
}
