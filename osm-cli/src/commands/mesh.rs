//! `osm mesh list` and `osm mesh upgrade`.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use kube::ResourceExt;
use osm_core::api::{labels, names, ports};
use serde::Serialize;

use crate::cluster::{Cluster, Mesh};
use crate::commands::plan::{ChartArgs, Plan};
use crate::helm::Helm;
use crate::output::{self, Format, table};
use crate::progress::Step;
use crate::{Global, check, crds, forward, mesh_name};

/// Lists the meshes.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Accepted for compatibility: no local port is opened
    #[arg(short = 'p', long, hide = true)]
    local_port: Option<u16>,
}

/// A mesh, its namespaces, and what it supports.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    mesh: Mesh,
    added_namespaces: Vec<String>,
    smi_supported: Vec<String>,
    /// How long its pods go on without a control plane, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    outage_budget_seconds: Option<u64>,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        let meshes = cluster.meshes().await?;
        let namespaces = cluster.mesh_namespaces(None).await?;
        let mut rows = Vec::new();
        for mesh in meshes {
            let belongs = |labels: &std::collections::BTreeMap<String, String>| {
                labels
                    .get(labels::MONITORED_BY)
                    .is_some_and(|name| *name == mesh.name)
            };
            let added_namespaces = namespaces
                .iter()
                .filter(|namespace| belongs(namespace.labels()))
                .map(ResourceExt::name_any)
                .collect();
            let smi_supported = smi(&cluster, &mesh).await.unwrap_or_default();
            let budget = check::outage_budget(&cluster, &mesh.namespace).await;
            rows.push(Row {
                mesh,
                added_namespaces,
                smi_supported,
                outage_budget_seconds: budget.map(|budget| budget.as_secs()),
            });
        }
        if self.output == Format::Json {
            return output::json(&rows);
        }
        if rows.is_empty() {
            println!("No osm mesh control planes found");
            return Ok(());
        }
        print!("{}", tables(&rows));
        for row in &rows {
            if let Some(seconds) = row.outage_budget_seconds {
                let line = check::budget_line(&Duration::from_secs(seconds));
                println!("\nMesh [{}]: {line}", row.mesh.name);
            }
        }
        println!(
            "\nTo list the OSM controller pods for a mesh, please run the following command passing in the mesh's \
             namespace\n\tkubectl get pods -n <osm-mesh-namespace> -l app=osm-controller"
        );
        Ok(())
    }
}

fn tables(rows: &[Row]) -> String {
    let list = |items: &[String], none: &str| {
        if items.is_empty() {
            none.to_owned()
        } else {
            items.join(",")
        }
    };
    let first: Vec<Vec<String>> = rows
        .iter()
        .map(
            |Row {
                 mesh,
                 added_namespaces,
                 ..
             }| {
                vec![
                    mesh.name.clone(),
                    mesh.namespace.clone(),
                    mesh.version.clone(),
                    list(added_namespaces, ""),
                ]
            },
        )
        .collect();
    let second: Vec<Vec<String>> = rows
        .iter()
        .map(
            |Row {
                 mesh, smi_supported, ..
             }| {
                vec![
                    mesh.name.clone(),
                    mesh.namespace.clone(),
                    list(smi_supported, "Unknown"),
                ]
            },
        )
        .collect();
    format!(
        "{}\n{}",
        table(
            &["MESH NAME", "MESH NAMESPACE", "VERSION", "ADDED NAMESPACES"],
            &first
        ),
        table(&["MESH NAME", "MESH NAMESPACE", "SMI SUPPORTED"], &second)
    )
}

/// The SMI kinds and versions a mesh's controller supports, as `Kind:group/version`.
async fn smi(cluster: &Cluster, mesh: &Mesh) -> Result<Vec<String>> {
    let pod = cluster.component_pod(&mesh.namespace, names::CONTROLLER).await?;
    let text = forward::request(
        cluster,
        &mesh.namespace,
        &pod,
        ports::ADMIN,
        http::Method::GET,
        "/smi/version",
    )
    .await?;
    let kinds: std::collections::BTreeMap<String, String> = serde_json::from_str(&text)?;
    Ok(kinds
        .into_iter()
        .map(|(kind, version)| format!("{kind}:{version}"))
        .collect())
}

/// Upgrades a mesh.
#[derive(Debug, Args)]
pub(crate) struct Upgrade {
    /// Name of the mesh [default: osm]
    #[arg(long, value_name = "NAME", value_parser = mesh_name)]
    mesh_name: Option<String>,
    #[command(flatten)]
    chart: ChartArgs,
}

impl Upgrade {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        global.config.refuse_if_managed("upgraded")?;
        let asked = self.mesh_name.clone();
        let plan = self.chart.plan(asked, global.namespace(), &[])?;
        let helm = Helm::find(global).await?;
        let cluster = Cluster::connect(global).await?;
        cluster.check_version()?;
        let mesh = cluster.mesh(&plan.mesh).await?;
        if mesh.namespace != global.namespace() {
            bail!(
                "Mesh [{}] is in namespace [{}], not [{}]: say so with --osm-namespace {}",
                mesh.name,
                mesh.namespace,
                global.namespace(),
                mesh.namespace
            );
        }
        if helm.release(&mesh.name, &mesh.namespace).await?.is_none() {
            bail!(
                "Mesh [{}] in namespace [{}] was not installed by Helm as release [{}]: upgrade it as it was installed",
                mesh.name,
                mesh.namespace,
                mesh.name
            );
        }
        plan.check_hosts(&cluster).await?;
        if plan.dry_run {
            return plan.print(&helm, &mesh.namespace).await;
        }
        if let Err(error) = upgrade(&plan, &helm, &cluster, &mesh).await {
            if !plan.atomic {
                return Err(error.context(format!(
                    "Mesh [{}] was not upgraded; `helm rollback {} --namespace {}` brings the old one back",
                    mesh.name, mesh.name, mesh.namespace
                )));
            }
            let step = Step::begin("Rolling back");
            helm.run(["rollback", &mesh.name, "--namespace", &mesh.namespace])
                .await?;
            step.done();
            return Err(error.context(format!(
                "Mesh [{}] was not upgraded, and is rolled back",
                mesh.name
            )));
        }
        println!(
            "OSM successfully upgraded mesh [{}] in namespace [{}]",
            mesh.name, mesh.namespace
        );
        Ok(())
    }
}

async fn upgrade(plan: &Plan, helm: &Helm, cluster: &Cluster, mesh: &Mesh) -> Result<()> {
    crds::apply(cluster, &crds::read(&plan.chart)?).await?;
    let step = Step::begin("Upgrading the chart");
    let chart = plan.chart.path().display().to_string();
    let mut args = vec![
        "upgrade",
        &mesh.name,
        &chart,
        "--namespace",
        &mesh.namespace,
        "--reset-values",
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
    plan.rollout(cluster, &mesh.namespace).wait(plan.timeout).await
}
