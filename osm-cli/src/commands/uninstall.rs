//! `osm uninstall mesh`.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use osm_core::api::{MeshConfig, labels, names};
use serde::de::DeserializeOwned;

use crate::chart::Chart;
use crate::cluster::{Cluster, Mesh};
use crate::commands::{confirm::confirm, namespace};
use crate::helm::Helm;
use crate::progress::Step;
use crate::rollout::wait_for_deletion;
use crate::{DEFAULT_CA_SECRET, Global, crds, mesh_name};

/// How long the control plane's pods may take to go.
const GONE: Duration = Duration::from_secs(120);

/// Uninstalls a mesh.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Name of the mesh; each mesh in turn when not given
    #[arg(long, value_name = "NAME", value_parser = mesh_name)]
    mesh_name: Option<String>,
    /// Does not ask
    #[arg(short, long)]
    force: bool,
    /// Removes what the whole cluster shares, too: custom resource definitions, webhook configurations and the root Secret
    #[arg(short = 'a', long)]
    delete_cluster_wide_resources: bool,
    /// Removes the control plane's namespace, too
    #[arg(long)]
    delete_namespace: bool,
    /// Secret of the root certificate
    #[arg(long, value_name = "NAME", default_value = DEFAULT_CA_SECRET)]
    ca_bundle_secret_name: String,
    /// Accepted for compatibility: no local port is opened
    #[arg(short = 'p', long, hide = true)]
    local_port: Option<u16>,
}

impl Uninstall {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        global.config.refuse_if_managed("uninstalled")?;
        let helm = Helm::find(global).await?;
        let cluster = Cluster::connect(global).await?;
        let meshes = self.chosen(global, &helm, cluster.meshes().await?).await?;
        if meshes.is_empty() {
            println!("No OSM control planes found");
        }
        for mesh in &meshes {
            let question = format!(
                "Uninstall OSM [mesh name: {}] in namespace [{}] ? [y/n]: ",
                mesh.name, mesh.namespace
            );
            if self.force || confirm(&question, "--force", &mut std::io::stdin().lock())? {
                self.uninstall(&helm, &cluster, mesh).await?;
            }
        }
        if self.delete_cluster_wide_resources {
            self.delete_shared(global, &cluster).await?;
        }
        Ok(())
    }

    /// The meshes to uninstall: those asked for, or a release that never became a mesh.
    async fn chosen(&self, global: &Global, helm: &Helm, meshes: Vec<Mesh>) -> Result<Vec<Mesh>> {
        let Some(name) = &self.mesh_name else {
            if self.force && meshes.len() > 1 {
                let known: Vec<&str> = meshes.iter().map(|mesh| mesh.name.as_str()).collect();
                bail!(
                    "There are several meshes, [{}]: choose one with --mesh-name",
                    known.join("], [")
                );
            }
            return Ok(meshes);
        };
        let mut chosen: Vec<Mesh> = meshes.into_iter().filter(|mesh| mesh.name == *name).collect();
        if let Some(mesh) = chosen.first()
            && global
                .osm_namespace
                .as_ref()
                .is_some_and(|namespace| *namespace != mesh.namespace)
        {
            bail!(
                "Mesh [{name}] is in namespace [{}], not [{}]",
                mesh.namespace,
                global.namespace()
            );
        }
        if chosen.is_empty() && helm.release(name, global.namespace()).await?.is_some() {
            chosen.push(Mesh {
                name: name.clone(),
                namespace: global.namespace().to_owned(),
                version: String::new(),
                single: false,
            });
        }
        Ok(chosen)
    }

    async fn uninstall(&self, helm: &Helm, cluster: &Cluster, mesh: &Mesh) -> Result<()> {
        let Mesh { name, namespace, .. } = mesh;
        if helm.release(name, namespace).await?.is_none() {
            bail!(
                "Mesh [{name}] in namespace [{namespace}] is no Helm release: remove it as it was installed"
            );
        }
        let step = Step::begin(format!("Uninstalling mesh {name}"));
        helm.run(["uninstall", name, "--namespace", namespace]).await?;
        step.done();
        wait_for_deletion(cluster, namespace, GONE).await?;
        for member in cluster.mesh_namespaces(Some(name)).await? {
            namespace::patch(cluster, &member.name_any(), namespace::removal()).await?;
        }
        // Made at run time, so Helm does not know of them.
        delete(
            Api::<MeshConfig>::namespaced(cluster.client.clone(), namespace),
            names::MESH_CONFIG,
        )
        .await?;
        let leases = Api::<Lease>::namespaced(cluster.client.clone(), namespace);
        for lease in leases.list_metadata(&ours()).await?.items {
            delete(leases.clone(), &lease.name_any()).await?;
        }
        println!("OSM [mesh name: {name}] in namespace [{namespace}] uninstalled");
        if self.delete_namespace {
            delete(Api::<Namespace>::all(cluster.client.clone()), namespace).await?;
            println!("OSM namespace [{namespace}] deleted successfully");
        }
        Ok(())
    }

    /// Removes what the whole cluster shares, unless a mesh is left that needs it.
    async fn delete_shared(&self, global: &Global, cluster: &Cluster) -> Result<()> {
        let client = &cluster.client;
        let left = cluster.meshes().await?;
        if let Some(mesh) = left.first() {
            bail!(
                "Mesh [{}] in namespace [{}] is still there and needs the custom resource definitions: uninstall it, too",
                mesh.name,
                mesh.namespace
            );
        }
        for definition in crds::read(&Chart::open(None)?)? {
            report(
                "CRD",
                &definition.name_any(),
                Api::<CustomResourceDefinition>::all(client.clone()),
            )
            .await?;
        }
        let mutating = Api::<MutatingWebhookConfiguration>::all(client.clone());
        for config in mutating.list_metadata(&ours()).await?.items {
            report(
                "MutatingWebhookConfiguration",
                &config.name_any(),
                mutating.clone(),
            )
            .await?;
        }
        let validating = Api::<ValidatingWebhookConfiguration>::all(client.clone());
        for config in validating.list_metadata(&ours()).await?.items {
            report(
                "ValidatingWebhookConfiguration",
                &config.name_any(),
                validating.clone(),
            )
            .await?;
        }
        let secrets = Api::<Secret>::namespaced(client.clone(), global.namespace());
        report("Secret", &self.ca_bundle_secret_name, secrets).await
    }
}

/// Everything the mesh labels as its own.
fn ours() -> ListParams {
    ListParams::default().labels(&format!("{}={}", labels::APP_NAME, labels::APP_NAME_VALUE))
}

/// Deletes an object and says so.
async fn report<K>(kind: &str, name: &str, api: Api<K>) -> Result<()>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    if delete(api, name).await? {
        println!("Successfully deleted OSM {kind}: {name}");
    } else {
        println!("Ignoring - did not find OSM {kind}: {name}");
    }
    Ok(())
}

/// Deletes an object; false when there is none.
async fn delete<K>(api: Api<K>, name: &str) -> Result<bool>
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(anyhow!(error)).with_context(|| format!("Found but failed to delete {name}")),
    }
}
