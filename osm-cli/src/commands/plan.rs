//! What `osm install` and `osm mesh upgrade` share: a chart, its values, and their checks.
//!
//! Invariant: a [`Plan`] exists only for values that passed every check that needs no cluster.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use osm_core::api::names;

use crate::chart::Chart;
use crate::cluster::Cluster;
use crate::helm::Helm;
use crate::output::{self, warn};
use crate::rollout::Rollout;
use crate::values::{Component, Scaling, Schema, Values};
use crate::{DEFAULT_MESH, duration};

/// What is installed, and with which values.
#[derive(Debug, Args)]
pub(crate) struct ChartArgs {
    /// Folder of a chart to use instead of the one inside this program
    #[arg(long, value_name = "FOLDER")]
    osm_chart_path: Option<PathBuf>,
    /// Sets a value of the chart, such as OpenServiceMesh.enableEgress=false; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Takes values from a YAML file; repeatable
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Highly available: 3 replicas on different hosts, an autoscaler and a disruption budget for each component
    #[arg(long)]
    ha: bool,
    /// How long to wait until the control plane is usable
    #[arg(long, default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
    /// Undoes everything when it fails
    #[arg(long)]
    atomic: bool,
    /// Checks everything, changes nothing, prints the manifests
    #[arg(long)]
    dry_run: bool,
}

/// A chart with values that passed every check that needs no cluster.
pub(crate) struct Plan {
    pub(crate) chart: Chart,
    pub(crate) values: Values,
    pub(crate) mesh: String,
    pub(crate) timeout: Duration,
    pub(crate) atomic: bool,
    pub(crate) dry_run: bool,
    /// Helm's flags for the values.
    pub(crate) flags: Vec<String>,
}

impl ChartArgs {
    /// Reads the chart and the values and checks them. `own` are values that the command itself sets.
    pub(crate) fn plan(self, mesh: Option<String>, namespace: &str, own: &[String]) -> Result<Plan> {
        let chart = Chart::open(self.osm_chart_path.as_deref())?;
        let schema = Schema::read(&chart.read("values.schema.json")?)?;
        let mut files = Vec::new();
        let mut flags = Vec::new();
        for path in &self.values {
            let text = fs::read_to_string(path)
                .with_context(|| format!("Could not read --values {}", path.display()))?;
            files.push((path.display().to_string(), text));
            flags.push(format!("--values={}", path.display()));
        }
        let mut sets = self.set;
        sets.extend_from_slice(own);
        if self.ha {
            sets.push("OpenServiceMesh.ha=true".to_owned());
        }
        let given = Values::read(&chart.read("values.yaml")?, &files, &sets)?;
        let named = given
            .explicit("meshName")
            .and_then(|name| name.as_str())
            .map(str::to_owned);
        if let (Some(flag), Some(value)) = (&mesh, &named)
            && flag != value
        {
            bail!(
                "--mesh-name is {flag}, but the value OpenServiceMesh.meshName is {value}: give one of them only"
            );
        }
        let mesh = mesh.or(named).unwrap_or_else(|| DEFAULT_MESH.to_owned());
        sets.push(format!("OpenServiceMesh.meshName={mesh}"));
        let home = given.get("osmNamespace");
        if home
            .as_str()
            .is_some_and(|home| !home.is_empty() && home != namespace)
        {
            bail!(
                "The value OpenServiceMesh.osmNamespace is {home}, but the namespace is {namespace}: give --osm-namespace instead"
            );
        }
        let values = Values::read(&chart.read("values.yaml")?, &files, &sets)?;
        for warning in values.check(&schema)? {
            warn(&warning);
        }
        flags.extend(sets.into_iter().map(|set| format!("--set={set}")));
        Ok(Plan {
            chart,
            values,
            mesh,
            timeout: self.timeout,
            atomic: self.atomic,
            dry_run: self.dry_run,
            flags,
        })
    }
}

impl Plan {
    /// The components and the fewest replicas of each.
    pub(crate) fn rollout<'a>(&self, cluster: &'a Cluster, namespace: &'a str) -> Rollout<'a> {
        let components = [Component::Controller, Component::Injector].map(|component| {
            let fewest = Scaling::read(&self.values, component).fewest();
            (component.deployment(), i32::try_from(fewest).unwrap_or(1))
        });
        let text = |path: &str| self.values.get(path).as_str().unwrap_or_default().to_owned();
        let validating = text("validatorWebhook.webhookConfigurationName");
        Rollout {
            cluster,
            namespace,
            components: components.to_vec(),
            mutating_webhook: names::mutating_webhook(&text("webhookConfigNamePrefix"), &self.mesh),
            validating_webhook: if validating.is_empty() {
                names::validating_webhook(&self.mesh)
            } else {
                validating
            },
        }
    }

    /// Refuses a spread over hosts that the cluster does not have.
    pub(crate) async fn check_hosts(&self, cluster: &Cluster) -> Result<()> {
        let spread = self.values.get("hostSpread");
        let ha = self.values.get("ha") == true;
        let required = spread == "required" || (ha && spread != "preferred");
        let nodes = if required {
            cluster.schedulable_nodes().await?
        } else {
            2
        };
        if nodes < 2 {
            bail!(
                "Replicas must be on different hosts, but the nodes of the cluster that take pods are {nodes}: add some, or accept \
                 one host with --set OpenServiceMesh.hostSpread=preferred"
            );
        }
        Ok(())
    }

    /// Prints the manifests as they would be applied.
    pub(crate) async fn print(&self, helm: &Helm, namespace: &str) -> Result<()> {
        let chart = self.chart.path().display().to_string();
        let mut args = vec![
            "template",
            &self.mesh,
            &chart,
            "--namespace",
            namespace,
            "--include-crds",
            "--validate",
        ];
        // Objects of the mesh that is upgraded exist, and that is well.
        args.push("--is-upgrade");
        args.extend(self.flags.iter().map(String::as_str));
        output::print(&helm.run(args).await?)
    }
}
