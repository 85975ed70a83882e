//! `osm metrics`: whether Prometheus scrapes the sidecars of a namespace.

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use osm_core::api::{annotations, labels, ports};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::commands::namespace;
use crate::{Global, namespace_name};

#[derive(Debug, Subcommand)]
pub(crate) enum MetricsCommand {
    /// Has the sidecars of namespaces scraped
    Enable(Namespaces),
    /// Has the sidecars of namespaces no longer scraped
    Disable(Namespaces),
}

#[derive(Debug, Args)]
pub(crate) struct Namespaces {
    /// The namespaces, separated by commas; repeatable
    #[arg(long = "namespace", required = true, value_delimiter = ',', value_parser = namespace_name)]
    namespaces: Vec<String>,
}

impl MetricsCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let (enable, names) = match self {
            MetricsCommand::Enable(names) => (true, names.namespaces),
            MetricsCommand::Disable(names) => (false, names.namespaces),
        };
        let cluster = Cluster::connect(global).await?;
        for name in &names {
            if !namespace::get(&cluster, name)
                .await?
                .labels()
                .contains_key(labels::MONITORED_BY)
            {
                bail!(
                    "Namespace [{name}] does not belong to a mesh, missing label {}: add it with `osm namespace add {name}`",
                    labels::MONITORED_BY
                );
            }
        }
        for name in &names {
            switch(&cluster, name, enable).await?;
            println!(
                "Metrics successfully {} in namespace [{name}]",
                if enable { "enabled" } else { "disabled" }
            );
        }
        Ok(())
    }
}

/// Marks the namespace for pods to come, and the pods that are there.
async fn switch(cluster: &Cluster, name: &str, enable: bool) -> Result<()> {
    let mark = if enable { json!("enabled") } else { Value::Null };
    namespace::patch(
        cluster,
        name,
        json!({ "metadata": { "annotations": { annotations::METRICS: mark } } }),
    )
    .await?;
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), name);
    let meshed = pods
        .list_metadata(&ListParams::default().labels(labels::PROXY_UUID))
        .await
        .with_context(|| format!("Could not list the pods of namespace [{name}]"))?;
    let value = |text: String| if enable { Value::String(text) } else { Value::Null };
    let change = json!({ "metadata": { "annotations": {
        annotations::PROMETHEUS_SCRAPE: value("true".to_owned()),
        annotations::PROMETHEUS_PORT: value(ports::PROMETHEUS.to_string()),
        annotations::PROMETHEUS_PATH: value("/stats/prometheus".to_owned()),
    }}});
    for pod in &meshed.items {
        pods.patch_metadata(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&change))
            .await
            .with_context(|| format!("Could not change pod [{}] in namespace [{name}]", pod.name_any()))?;
    }
    Ok(())
}
