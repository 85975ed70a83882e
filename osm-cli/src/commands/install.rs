//! `osm install`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams};

use crate::check::{budget_line, outage_budget};
use crate::cluster::{Cluster, Mesh};
use crate::commands::namespace::SYSTEM;
use crate::commands::plan::{ChartArgs, Plan};
use crate::helm::Helm;
use crate::progress::Step;
use crate::rollout::wait_for_deletion;
use crate::{Global, crds, mesh_name};

/// How long a rollback may take.
const ROLLBACK: Duration = Duration::from_secs(120);

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
        if let Some(budget) = outage_budget(&cluster, namespace).await {
            println!("{}", budget_line(&budget));
        }
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
