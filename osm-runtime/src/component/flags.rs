//! The command line flags that every component has: the original's, and the few that are new.
//!
//! Owns their names and defaults. What only one component has is in its own `args`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use osm_core::{
    api::{duration, labels, names},
    certificate::rotation::Home,
    identity::TrustDomain,
};

use crate::{
    issuer::{FlagError, ProviderFlags},
    log::Verbosity,
    roots::Setting,
    serve::any_address,
};

/// The flags; flatten them into a component's own.
#[derive(Clone, Debug, Args)]
pub struct Flags {
    /// Log level: disabled, trace, debug, info, warn, error, fatal or panic.
    #[arg(short, long, default_value = "info")]
    pub verbosity: Verbosity,
    /// Name of the mesh, as in the namespaces' `openservicemesh.io/monitored-by` label.
    #[arg(long, value_parser = not_empty)]
    pub mesh_name: String,
    /// The control plane's namespace.
    #[arg(long, value_parser = not_empty)]
    pub osm_namespace: String,
    /// Name of the MeshConfig object.
    #[arg(long, default_value = names::MESH_CONFIG)]
    pub osm_config_name: String,
    /// The version put on labels of what is made in the cluster.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    pub osm_version: String,
    /// The suffix of all names in certificates.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// A kubeconfig, when not run inside a cluster.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// From not ready until listeners close, on termination: time for the endpoint to disappear everywhere.
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub shutdown_delay: Duration,
    /// The address all listeners bind to, if not any of the kind of the pod's own.
    #[arg(long, env = "OSM_BIND_ADDRESS", hide = true)]
    pub bind_address: Option<IpAddr>,
    /// The pod's own address: pods of the cluster have the same kind.
    #[arg(long, env = "POD_IP", default_value = "", hide = true)]
    pub pod_ip: String,

    /// Where certificates come from.
    #[command(flatten)]
    pub provider: ProviderFlags,

    // What follows is accepted so that manifests written for the original start.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_reconciler: String,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_mesh_root_certificate: String,
}

impl Flags {
    /// The address that listeners bind to.
    pub fn address(&self) -> IpAddr {
        self.bind_address.unwrap_or_else(|| any_address(&self.pod_ip))
    }

    /// The labels of what is made in the cluster.
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            (labels::APP_NAME, labels::APP_NAME_VALUE),
            (labels::APP_INSTANCE, &self.mesh_name),
            (labels::APP_VERSION, &self.osm_version),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// What roots are opened with.
    ///
    /// # Errors
    /// [`FlagError`] when the flags of the provider do not fit.
    pub fn setting(&self) -> Result<Setting, FlagError> {
        let configured = self.provider.provider(&self.osm_namespace, self.labels())?;
        Ok(Setting {
            home: Home {
                namespace: self.osm_namespace.clone(),
                trust_domain: self.trust_domain.clone(),
                configured: configured.source(),
            },
            configured,
            labels: self.labels(),
            authorities: self.provider.authorities(),
            owner: self.provider.owner(),
        })
    }
}

/// Reads a flag that must have a value.
///
/// # Errors
/// What to say when it has none.
pub fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("it must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Reads a duration as Go writes them, such as `1h30m`.
///
/// # Errors
/// What is wrong with it.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}
