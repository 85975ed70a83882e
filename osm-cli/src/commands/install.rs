//! `osm install`, and what `osm mesh upgrade` shares with it: the chart, its values, and their checks.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams};
use osm_core::api::names;

use crate::chart::Chart;
use crate::cluster::{Cluster, Mesh};
use crate::commands::namespace::SYSTEM;
use crate::helm::Helm;
use crate::output::{self, warn};
use crate::progress::Step;
use crate::rollout::{Rollout, wait_for_deletion};
use crate::values::{Component, Scaling, Schema, Values};
use crate::{DEFAULT_MESH, Global, crds, duration, mesh_name};

/// How long a rollback may take.
const ROLLBACK: Duration = Duration::from_secs(120);

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

/// Installs a mesh.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Name of the mesh [default: osm]
    #[arg(long, value_name = "NAME", value_parser = mesh_name)]
    mesh_name: Option<String>,
    /// Whether the cluster may have one mesh only [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enforce_single_mesh: Option<bool>,
    #[command(flatten)]
    chart: ChartArgs,
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

impl Install {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        global.config.refuse_if_managed("installed")?;
        let namespace = global.namespace();
        let own = self
            .enforce_single_mesh
            .map(|enforce| format!("OpenServiceMesh.enforceSingleMesh={enforce}"));
        let plan = self.chart.plan(self.mesh_name, namespace, own.as_slice())?;
        let helm = Helm::find(global).await?;
        let cluster = Cluster::connect(global).await?;
        cluster.check_version()?;
        check_meshes(&plan, namespace, &cluster.meshes().await?)?;
        let existed = check_namespace(&cluster, namespace).await?;
        if let Some(release) = helm.release(&plan.mesh, namespace).await? {
            bail!(
                "Helm has a release [{}] in namespace [{namespace}] already (it is {}): remove it first, with \
                 `osm uninstall mesh --mesh-name {} --osm-namespace {namespace}`",
                release.name,
                release.status,
                plan.mesh
            );
        }
        plan.check_hosts(&cluster).await?;
        if plan.dry_run {
            return plan.print(&helm, namespace).await;
        }

        let result = install(&plan, &helm, &cluster, namespace).await;
        if let Err(error) = result {
            if !plan.atomic {
                return Err(error.context(format!(
                    "OSM was not installed; what is there of it goes with `osm uninstall mesh --mesh-name {} \
                     --osm-namespace {namespace}`",
                    plan.mesh
                )));
            }
            roll_back(&plan, &helm, &cluster, namespace, existed).await?;
            return Err(error.context(
                "OSM was not installed, and everything but the custom resource definitions is removed again",
            ));
        }
        println!(
            "OSM installed successfully in namespace [{namespace}] with mesh name [{}]",
            plan.mesh
        );
        Ok(())
    }
}

async fn install(plan: &Plan, helm: &Helm, cluster: &Cluster, namespace: &str) -> Result<()> {
    crds::apply(cluster, &crds::read(&plan.chart)?).await?;
    let step = Step::begin(format!("Installing the chart in namespace {namespace}"));
    let chart = plan.chart.path().display().to_string();
    let mut args = vec![
        "install",
        &plan.mesh,
        &chart,
        "--namespace",
        namespace,
        "--create-namespace",
        "--skip-crds",
    ];
    args.extend(plan.flags.iter().map(String::as_str));
    match helm.run(args).await {
        Ok(_) => step.done(),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    plan.rollout(cluster, namespace).wait(plan.timeout).await
}

async fn roll_back(
    plan: &Plan,
    helm: &Helm,
    cluster: &Cluster,
    namespace: &str,
    existed: bool,
) -> Result<()> {
    if helm.release(&plan.mesh, namespace).await?.is_some() {
        let step = Step::begin("Removing what was installed");
        helm.run(["uninstall", &plan.mesh, "--namespace", namespace])
            .await?;
        step.done();
        wait_for_deletion(cluster, namespace, ROLLBACK).await?;
    }
    if !existed {
        let namespaces = Api::<Namespace>::all(cluster.client.clone());
        if namespaces.get_opt(namespace).await?.is_some() {
            namespaces.delete(namespace, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// Refuses a mesh that cannot be beside those that are there.
fn check_meshes(plan: &Plan, namespace: &str, meshes: &[Mesh]) -> Result<()> {
    let name = &plan.mesh;
    for mesh in meshes {
        if mesh.name == *name && mesh.namespace == namespace {
            bail!(
                "Mesh [{name}] is installed in namespace [{namespace}] already: change it with `osm mesh upgrade --mesh-name {name}`"
            );
        }
        if mesh.namespace == namespace {
            bail!(
                "Namespace [{namespace}] has mesh [{}] already: choose another one with --osm-namespace",
                mesh.name
            );
        }
        if mesh.name == *name {
            bail!(
                "A mesh [{name}] exists already, in namespace [{}]: choose another name with --mesh-name",
                mesh.namespace
            );
        }
        if mesh.single {
            bail!(
                "Mesh [{}] in namespace [{}] enforces that it is the only mesh in the cluster: uninstall it, or upgrade it \
                 with --set OpenServiceMesh.enforceSingleMesh=false",
                mesh.name,
                mesh.namespace
            );
        }
    }
    if let Some(mesh) = meshes.first()
        && plan.values.get("enforceSingleMesh") == true
    {
        bail!(
            "The new mesh is to be the only one in the cluster, but mesh [{}] is in namespace [{}]: pass \
             --enforce-single-mesh=false to have both",
            mesh.name,
            mesh.namespace
        );
    }
    Ok(())
}

/// Whether the namespace exists; refuses one that is Kubernetes' own or on its way out.
async fn check_namespace(cluster: &Cluster, namespace: &str) -> Result<bool> {
    if SYSTEM.contains(&namespace) {
        bail!("Namespace [{namespace}] is Kubernetes' own: choose another one with --osm-namespace");
    }
    let found = Api::<Namespace>::all(cluster.client.clone())
        .get_opt(namespace)
        .await
        .with_context(|| format!("Could not read namespace [{namespace}]"))?;
    if found
        .as_ref()
        .is_some_and(|found| found.metadata.deletion_timestamp.is_some())
    {
        bail!(
            "Namespace [{namespace}] is being deleted: wait until it is gone, or choose another one with --osm-namespace"
        );
    }
    Ok(found.is_some())
}
