//! `osm proxy`: the admin endpoint of a pod's sidecar, and how the sidecars stand.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use osm_core::api::{labels, ports};

use crate::cluster::Cluster;
use crate::commands::proxy_status::Status;
use crate::{Global, forward, namespace_name, output};

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// Gets something from the sidecar, such as config_dump, clusters, stats or certs
    Get(Query),
    /// Sets something in the sidecar, such as logging?level=debug
    Set(Query),
    /// Shows how each sidecar stands with the controllers: connected where and since when, in step, certificate
    Status(Status),
}

#[derive(Debug, Args)]
pub(crate) struct Query {
    /// Path at Envoy's admin endpoint, without the first slash
    query: String,
    /// Name of the pod
    pod: String,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default", value_parser = namespace_name)]
    namespace: String,
    /// Writes the answer to a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Accepted for compatibility: no local port is opened
    #[arg(short = 'p', long, hide = true)]
    local_port: Option<u16>,
}

impl ProxyCommand {
    pub(crate) async fn run(self, global: &Global) -> Result<()> {
        let (method, query) = match self {
            ProxyCommand::Get(query) => (Method::GET, query),
            ProxyCommand::Set(query) => (Method::POST, query),
            ProxyCommand::Status(status) => return status.run(global).await,
        };
        let cluster = Cluster::connect(global).await?;
        let Query {
            query,
            pod: name,
            namespace,
            file,
            ..
        } = query;
        let pod = Api::<Pod>::namespaced(cluster.client.clone(), &namespace)
            .get_opt(&name)
            .await
            .with_context(|| format!("Could not read pod [{name}] in namespace [{namespace}]"))?
            .ok_or_else(|| anyhow!("There is no pod [{name}] in namespace [{namespace}]: choose the namespace with --namespace"))?;
        if !pod.labels().contains_key(labels::PROXY_UUID) {
            bail!("Pod [{name}] in namespace [{namespace}] is not part of a mesh: it has no sidecar");
        }
        if pod.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Running") {
            bail!("Pod [{name}] in namespace [{namespace}] is not running: its sidecar cannot be asked");
        }
        let path = format!("/{}", query.trim_start_matches('/'));
        let answer = forward::request(&cluster, &namespace, &name, ports::ENVOY_ADMIN, method, &path).await?;
        match file {
            Some(file) => {
                fs::write(&file, answer).with_context(|| format!("Could not write {}", file.display()))
            }
            None => output::print(&answer),
        }
    }
}
