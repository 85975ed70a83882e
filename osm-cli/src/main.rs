//! `osm`: installs and operates the mesh.
//!
//! Owns the operator's side: checking what was asked, driving Helm and the Kubernetes API, and saying what happened.
//! Invariant: bad input is refused in one sentence before anything is changed; results go to standard output, progress,
//! warnings and errors to standard error; the exit status is 0 or 1.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chart;
mod check;
mod cluster;
mod commands;
mod config;
mod crds;
mod duration;
mod forward;
mod helm;
mod output;
mod progress;
mod rollout;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use osm_core::api::names;

use crate::commands::{
    certificate, check as check_command, completion, env, install, mesh, metrics, namespace, proxy,
    uninstall, version,
};
use crate::config::Config;

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Namespace of the control plane [default: osm-system, or install.namespace of ~/.osm/config.yaml]
    #[arg(long, global = true, value_name = "NAMESPACE", value_parser = namespace_name)]
    osm_namespace: Option<String>,
    /// Says more
    #[arg(long, global = true)]
    verbose: bool,
    /// Context of the kubeconfig
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig [default: $KUBECONFIG, ~/.kube/config, or the pod's own]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The helm program [default: the one on the PATH]
    #[arg(long, global = true, value_name = "FILE")]
    helm: Option<PathBuf>,
    #[arg(skip)]
    config: Config,
}

impl Global {
    /// Namespace of the control plane.
    fn namespace(&self) -> &str {
        self.osm_namespace
            .as_deref()
            .unwrap_or(&self.config.install.namespace)
    }
}

/// Installs and operates the mesh.
#[derive(Debug, Parser)]
#[command(name = "osm", version, propagate_version = false, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Installs a mesh
    Install(install::Install),
    /// Uninstalls a mesh
    #[command(subcommand, visible_alias = "delete", alias = "del")]
    Uninstall(UninstallCommand),
    /// Lists and upgrades meshes
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// Adds namespaces to a mesh, and removes them
    #[command(subcommand, visible_alias = "ns")]
    Namespace(namespace::NamespaceCommand),
    /// Has Prometheus scrape the pods of namespaces, or not
    #[command(subcommand)]
    Metrics(metrics::MetricsCommand),
    /// Judges a running mesh: what is wrong, why, and what to do
    Check(check_command::CheckCommand),
    /// Asks a pod's sidecar, and how the sidecars stand
    #[command(subcommand)]
    Proxy(proxy::ProxyCommand),
    /// Shows and rotates the root certificate
    #[command(subcommand, visible_alias = "mrc")]
    Certificate(certificate::CertificateCommand),
    /// Accepted for compatibility: what was experimental once
    #[command(subcommand, hide = true)]
    Alpha(AlphaCommand),
    /// Shows the versions of this program and of the meshes
    Version(version::Version),
    /// Shows the settings in force
    Env,
    /// Writes a completion script for a shell
    Completion(completion::Completion),
}

#[derive(Debug, Subcommand)]
enum UninstallCommand {
    /// Uninstalls a mesh
    Mesh(uninstall::Uninstall),
}

#[derive(Debug, Subcommand)]
enum AlphaCommand {
    /// Shows and rotates the root certificate
    #[command(subcommand, visible_alias = "mrc")]
    Certificate(certificate::CertificateCommand),
}

#[derive(Debug, Subcommand)]
enum MeshCommand {
    /// Lists the meshes in the cluster
    List(mesh::List),
    /// Upgrades a mesh to this program's chart; values given before do not count
    Upgrade(mesh::Upgrade),
    /// Uninstalls a mesh
    Uninstall(uninstall::Uninstall),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap prints those to standard output.
            let code = u8::from(error.use_stderr());
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let mut global = cli.global;
    global.config = Config::read()?;
    match cli.command {
        Command::Install(command) => command.run(&global).await,
        Command::Uninstall(UninstallCommand::Mesh(command)) => command.run(&global).await,
        Command::Mesh(MeshCommand::List(command)) => command.run(&global).await,
        Command::Mesh(MeshCommand::Upgrade(command)) => command.run(&global).await,
        Command::Mesh(MeshCommand::Uninstall(command)) => command.run(&global).await,
        Command::Namespace(command) => command.run(&global).await,
        Command::Metrics(command) => command.run(&global).await,
        Command::Check(command) => command.run(&global).await,
        Command::Proxy(command) => command.run(&global).await,
        Command::Certificate(command) | Command::Alpha(AlphaCommand::Certificate(command)) => {
            command.run(&global).await
        }
        Command::Version(command) => command.run(&global).await,
        Command::Env => env::run(&global),
        Command::Completion(command) => command.run(Cli::command()),
    }
}

/// Reads the name of a mesh: it is a label's value and a Helm release's name.
pub(crate) fn mesh_name(text: &str) -> Result<String, String> {
    dns_label(text, 53)
}

/// Reads the name of a namespace.
pub(crate) fn namespace_name(text: &str) -> Result<String, String> {
    dns_label(text, 63)
}

fn dns_label(text: &str, longest: usize) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !text.is_empty()
        && text.len() <= longest
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    good.then(|| text.to_owned()).ok_or_else(|| {
        format!("give lower case letters, digits and dashes, at most {longest} of them, with a letter or digit at both ends")
    })
}

/// The name of a mesh's default.
pub(crate) const DEFAULT_MESH: &str = "osm";
/// The Secret of the root certificate, unless another one is named.
pub(crate) const DEFAULT_CA_SECRET: &str = names::CA_BUNDLE_SECRET;
