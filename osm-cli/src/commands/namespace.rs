//! `osm namespace`: which namespaces belong to a mesh.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use osm_core::api::{annotations, labels};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::output::{self, Format, table};
use crate::{DEFAULT_MESH, Global, mesh_name, namespace_name};

/// The namespaces of Kubernetes itself, which no webhook of the mesh selects.
pub(crate) const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceCommand {
    /// Adds namespaces to a mesh: pods made from then on get a sidecar
    Add(Add),
    /// Removes a namespace from a mesh
    Remove(Remove),
    /// Has every mesh ignore namespaces
    Ignore(Ignore),
    /// Lists the namespaces of the meshes
    List(List),
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The namespaces
    #[arg(required = true, value_parser = namespace_name)]
    namespaces: Vec<String>,
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
    /// Gives no sidecar to pods that do not ask for one
    #[arg(long)]
    disable_sidecar_injection: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The namespace
    #[arg(value_parser = namespace_name)]
    namespace: String,
    /// Name of the mesh
    #[arg(long, value_name = "NAME", default_value = DEFAULT_MESH, value_parser = mesh_name)]
    mesh_name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Ignore {
    /// The namespaces
    #[arg(required = true, value_parser = namespace_name)]
    namespaces: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Name of the mesh; all when not given
    #[arg(long, value_name = "NAME", value_parser = mesh_name)]
    mesh_name: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl NamespaceCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let cluster = Cluster::connect(global).await?;
        match self {
            NamespaceCommand::Add(command) => command.run(&cluster).await,
            NamespaceCommand::Remove(command) => command.run(&cluster).await,
            NamespaceCommand::Ignore(command) => command.run(&cluster).await,
            NamespaceCommand::List(command) => command.run(&cluster).await,
        }
    }
}

/// Whether and how a namespace can be added to a mesh.
#[derive(Debug, PartialEq, Eq)]
enum Adding {
    /// It can.
    Possible,
    /// It belongs to the mesh already.
    Done,
    /// It cannot, for this reason.
    Refused(String),
}

/// Judges the adding of a namespace. `home` is the mesh whose control plane is in it, if any.
fn adding(name: &str, labels: &BTreeMap<String, String>, mesh: &str, home: Option<&str>) -> Adding {
    if let Some(home) = home {
        return Adding::Refused(format!(
            "Namespace [{name}] has the control plane of mesh [{home}] and cannot be added to mesh [{mesh}]"
        ));
    }
    if SYSTEM.contains(&name) {
        return Adding::Refused(format!(
            "Namespace [{name}] is Kubernetes' own and cannot be added to mesh [{mesh}]"
        ));
    }
    if labels.get(labels::IGNORE).is_some_and(|value| value == "true") {
        return Adding::Refused(format!(
            "Cannot add ignored namespace [{name}]: remove its label first, with `kubectl label namespace {name} {}-`",
            labels::IGNORE
        ));
    }
    match labels.get(labels::MONITORED_BY) {
        Some(other) if other == mesh => Adding::Done,
        Some(other) if !other.is_empty() => Adding::Refused(format!(
            "Namespace [{name}] belongs to mesh [{other}]: remove it there first, with `osm namespace remove {name} \
             --mesh-name {other}`"
        )),
        _ => Adding::Possible,
    }
}

impl Add {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let mesh = &self.mesh_name;
        cluster.mesh(mesh).await?;
        let meshes = cluster.meshes().await?;
        // Judged all before the first is changed.
        let mut possible = Vec::new();
        for name in &self.namespaces {
            let namespace = get(cluster, name).await?;
            let home = meshes
                .iter()
                .find(|mesh| mesh.namespace == *name)
                .map(|mesh| mesh.name.as_str());
            match adding(name, namespace.labels(), mesh, home) {
                Adding::Possible => possible.push(name),
                Adding::Done => println!("Namespace [{name}] already has been added to mesh [{mesh}]"),
                Adding::Refused(why) => bail!(why),
            }
        }
        for name in possible {
            let injection = if self.disable_sidecar_injection {
                "disabled"
            } else {
                "enabled"
            };
            let change = json!({ "metadata": {
                "labels": { labels::MONITORED_BY: mesh },
                "annotations": { annotations::SIDECAR_INJECTION: injection },
            }});
            patch(cluster, name, change).await?;
            println!("Namespace [{name}] successfully added to mesh [{mesh}]");
            if !self.disable_sidecar_injection {
                hint(cluster, name).await;
            }
        }
        Ok(())
    }
}

/// Says which pods have no sidecar, since pods get it only when they are made.
async fn hint(cluster: &Cluster, namespace: &str) {
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    let without = ListParams::default().labels(&format!("!{}", labels::PROXY_UUID));
    if let Ok(list) = pods.list_metadata(&without).await
        && !list.items.is_empty()
    {
        eprintln!(
            "  {} pods of namespace {namespace} have no sidecar yet: restart them, for example with \
             `kubectl rollout restart deployment --namespace {namespace}`",
            list.items.len()
        );
    }
}

impl Remove {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let Remove {
            namespace: name,
            mesh_name: mesh,
        } = &self;
        let namespace = get(cluster, name).await?;
        match namespace.labels().get(labels::MONITORED_BY) {
            None => println!("Namespace [{name}] already does not belong to any mesh"),
            Some(other) if other != mesh => {
                bail!(
                    "Namespace [{name}] belongs to mesh [{other}], not mesh [{mesh}]: say so with --mesh-name {other}"
                )
            }
            Some(_) => {
                patch(cluster, name, removal()).await?;
                println!("Namespace [{name}] successfully removed from mesh [{mesh}]");
            }
        }
        Ok(())
    }
}

/// The patch that takes a namespace out of its mesh.
pub(crate) fn removal() -> Value {
    json!({ "metadata": {
        "labels": { labels::MONITORED_BY: null, labels::IGNORE: null },
        "annotations": { annotations::SIDECAR_INJECTION: null, annotations::METRICS: null },
    }})
}

impl Ignore {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        for name in &self.namespaces {
            get(cluster, name).await?;
        }
        for name in &self.namespaces {
            patch(
                cluster,
                name,
                json!({ "metadata": { "labels": { labels::IGNORE: "true" } } }),
            )
            .await?;
            println!("Successfully configured namespace [{name}] to be ignored");
        }
        Ok(())
    }
}

/// A namespace of a mesh.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    mesh: String,
    sidecar_injection: String,
}

impl List {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let namespaces = cluster.mesh_namespaces(self.mesh_name.as_deref()).await?;
        let rows: Vec<Row> = namespaces.iter().map(row).collect();
        if self.output == Format::Json {
            return output::json(&rows);
        }
        if rows.is_empty() {
            match self.mesh_name {
                Some(mesh) => println!("No namespaces in mesh [{mesh}]"),
                None => println!("No namespaces in any mesh"),
            }
            return Ok(());
        }
        let rows: Vec<Vec<String>> = rows
            .into_iter()
            .map(|row| vec![row.namespace, row.mesh, row.sidecar_injection])
            .collect();
        output::print(&table(&["NAMESPACE", "MESH", "SIDECAR-INJECTION"], &rows))
    }
}

fn row(namespace: &Namespace) -> Row {
    let ignored = namespace
        .labels()
        .get(labels::IGNORE)
        .is_some_and(|value| value == "true");
    let annotation = namespace.annotations().get(annotations::SIDECAR_INJECTION);
    Row {
        namespace: namespace.name_any(),
        mesh: namespace
            .labels()
            .get(labels::MONITORED_BY)
            .cloned()
            .unwrap_or_default(),
        sidecar_injection: match annotation {
            _ if ignored => "disabled (ignored)".to_owned(),
            Some(value) => value.clone(),
            None => "-".to_owned(),
        },
    }
}

/// Reads a namespace that must exist.
pub(crate) async fn get(cluster: &Cluster, name: &str) -> Result<Namespace> {
    Api::<Namespace>::all(cluster.client.clone())
        .get_opt(name)
        .await
        .with_context(|| format!("Could not read namespace [{name}]"))?
        .ok_or_else(|| {
            anyhow!("There is no namespace [{name}]: create it with `kubectl create namespace {name}`")
        })
}

/// Changes a namespace.
pub(crate) async fn patch(cluster: &Cluster, name: &str, change: Value) -> Result<()> {
    Api::<Namespace>::all(cluster.client.clone())
        .patch(name, &PatchParams::default(), &Patch::Strategic(change))
        .await
        .with_context(|| format!("Could not change namespace [{name}]"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(labels: &[(&str, &str)], home: Option<&str>) -> Adding {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        adding("shop", &labels, "osm", home)
    }

    #[test]
    fn adding_is_judged_by_labels_and_control_planes() {
        assert_eq!(judge(&[], None), Adding::Possible);
        assert_eq!(judge(&[(labels::MONITORED_BY, "osm")], None), Adding::Done);
        for (labels, home, why) in [
            (
                &[(labels::MONITORED_BY, "other")][..],
                None,
                "belongs to mesh [other]",
            ),
            (&[(labels::IGNORE, "true")], None, "Cannot add ignored namespace"),
            (&[], Some("second"), "control plane of mesh [second]"),
        ] {
            let Adding::Refused(text) = judge(labels, home) else {
                panic!("{why}: not refused")
            };
            assert!(text.contains(why), "{text}");
        }
        assert!(matches!(
            adding("kube-system", &BTreeMap::new(), "osm", None),
            Adding::Refused(_)
        ));
    }
}
