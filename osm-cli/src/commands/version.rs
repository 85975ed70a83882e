//! `osm version`.

use anyhow::{Result, anyhow};
use clap::Args;
use osm_core::api::{names, ports};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Mesh};
use crate::output::{self, Format, table};
use crate::{Global, forward};

/// The versions of this program and of the meshes.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Shows this program's only
    #[arg(long)]
    client_only: bool,
    /// Shows versions only, without commits and dates
    #[arg(long)]
    version_only: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What was built when from what.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Build {
    version: String,
    git_commit: String,
    build_date: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Remote {
    mesh_name: String,
    mesh_namespace: String,
    #[serde(flatten)]
    build: Option<Build>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: Build,
    #[serde(skip_serializing_if = "Option::is_none")]
    meshes: Option<Vec<Remote>>,
}

impl Version {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let client = Build {
            version: concat!("v", env!("CARGO_PKG_VERSION")).to_owned(),
            git_commit: option_env!("OSM_GIT_COMMIT").unwrap_or("unknown").to_owned(),
            build_date: option_env!("OSM_BUILD_DATE").unwrap_or("unknown").to_owned(),
        };
        if self.output == Format::Json {
            let meshes = if self.client_only {
                None
            } else {
                Some(remote(&Cluster::connect(global).await?).await?)
            };
            return output::json(&Versions { client, meshes });
        }
        if self.version_only {
            println!("CLI Version: {}", client.version);
        } else {
            println!(
                "CLI Version: {}; Commit: {}; Date: {}",
                client.version, client.git_commit, client.build_date
            );
        }
        if self.client_only {
            return Ok(());
        }
        let meshes = remote(&Cluster::connect(global).await?).await?;
        if meshes.is_empty() {
            println!("\nNo control plane found in the cluster");
            return Ok(());
        }
        println!("\n{}", text(&meshes, self.version_only).trim_end());
        // What could not be asked is an error of the command, after everything else was shown.
        match meshes
            .into_iter()
            .find_map(|mesh| mesh.error.map(|error| (mesh.mesh_name, error)))
        {
            Some((mesh, error)) => Err(anyhow!(
                "The controllers of mesh [{mesh}] did not say their version: {error}"
            )),
            None => Ok(()),
        }
    }
}

fn text(meshes: &[Remote], version_only: bool) -> String {
    let mut header = vec!["MESH NAME", "MESH NAMESPACE", "VERSION"];
    if !version_only {
        header.extend(["GIT COMMIT", "BUILD DATE"]);
    }
    let rows: Vec<Vec<String>> = meshes
        .iter()
        .map(|mesh| {
            let build = mesh.build.clone().unwrap_or_default();
            let known = |text: String| {
                if text.is_empty() {
                    "Unknown".to_owned()
                } else {
                    text
                }
            };
            let mut row = vec![
                mesh.mesh_name.clone(),
                mesh.mesh_namespace.clone(),
                known(build.version),
            ];
            if !version_only {
                row.extend([known(build.git_commit), known(build.build_date)]);
            }
            row
        })
        .collect();
    table(&header, &rows)
}

async fn remote(cluster: &Cluster) -> Result<Vec<Remote>> {
    let mut remotes = Vec::new();
    for mesh in cluster.meshes().await? {
        let (build, error) = match ask(cluster, &mesh).await {
            Ok(build) => (Some(build), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        remotes.push(Remote {
            mesh_name: mesh.name,
            mesh_namespace: mesh.namespace,
            build,
            error,
        });
    }
    Ok(remotes)
}

async fn ask(cluster: &Cluster, mesh: &Mesh) -> Result<Build> {
    let pod = cluster.component_pod(&mesh.namespace, names::CONTROLLER).await?;
    let text = forward::request(
        cluster,
        &mesh.namespace,
        &pod,
        ports::ADMIN,
        http::Method::GET,
        "/version",
    )
    .await?;
    Ok(serde_json::from_str(&text)?)
}
