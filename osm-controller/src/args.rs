//! The command line: the original's flags, and the few that are new.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};
use osm_core::{
    api::{duration, labels, names},
    identity::TrustDomain,
};
use osm_runtime::{
    issuer::{Provider, ProviderFlags},
    log::Verbosity,
};

/// The control plane of a service mesh: watches Kubernetes and configures the mesh's sidecars.
#[derive(Clone, Parser)]
#[command(name = "osm-controller", version)]
pub struct Args {
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
    /// The version put on labels of what the controller makes.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    pub osm_version: String,
    /// The suffix of all names in certificates.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// The ValidatingWebhookConfiguration whose CA bundle is filled in.
    #[arg(long, default_value = "")]
    pub validator_webhook_config: String,
    /// Whether TrafficTargets are validated.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub validate_traffic_target: bool,
    /// A kubeconfig, when not run inside a cluster.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// The pod the controller runs in.
    #[arg(
        long,
        env = "CONTROLLER_POD_NAME",
        default_value = "osm-controller",
        hide = true
    )]
    pub pod_name: String,
    /// The address all listeners bind to, if not any of the kind of the pod's own.
    #[arg(long, env = "OSM_BIND_ADDRESS", hide = true)]
    pub bind_address: Option<IpAddr>,
    /// The controller's own address.
    #[arg(long, env = "POD_IP", default_value = "", hide = true)]
    pub pod_ip: String,
    /// From not ready until listeners close, on termination: time for the endpoint to disappear everywhere.
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub shutdown_delay: Duration,
    /// Asks each sidecar to reconnect after about this time, which spreads them over the replicas. Off when 0.
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub max_connection_age: Duration,
    /// New discovery streams that are let in each second and processor core.
    #[arg(long, default_value_t = 400)]
    pub new_streams_per_second: u32,

    /// Where certificates come from.
    #[command(flatten)]
    pub provider: ProviderFlags,

    // What follows is accepted so that manifests written for the original start.
    #[arg(long, hide = true, default_value = "")]
    osm_service_account: String,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_reconciler: String,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_mesh_root_certificate: String,
}

impl Args {
    /// The labels of what the controller makes.
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            (labels::APP_NAME, labels::APP_NAME_VALUE),
            (labels::APP_INSTANCE, &self.mesh_name),
            (labels::APP_VERSION, &self.osm_version),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Where certificates come from.
    ///
    /// # Errors
    /// When the flags of the provider do not make sense.
    pub fn provider(&self) -> anyhow::Result<Provider> {
        Ok(self.provider.provider(&self.osm_namespace, self.labels())?)
    }
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("it must not be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn go_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_charts_arguments_are_accepted() {
        let args = Args::try_parse_from([
            "osm-controller",
            "--verbosity=info",
            "--mesh-name=osm",
            "--osm-namespace=osm-system",
            "--osm-config-name=osm-mesh-config",
            "--osm-version=v2.0.0",
            "--ca-bundle-secret-name=osm-ca-bundle",
            "--trust-domain=cluster.local",
            "--certificate-manager=tresor",
            "--osm-service-account=osm-controller",
            "--validator-webhook-config=osm-validator-mesh-osm",
            "--validate-traffic-target=false",
            "--enable-reconciler",
            "--vault-host=vault",
        ])
        .unwrap();
        assert!(!args.validate_traffic_target);
        assert_eq!(args.shutdown_delay, Duration::from_secs(5));
        assert!(args.provider().is_ok());
        assert_eq!(args.bind_address, None);
    }

    #[test]
    fn what_is_required_is_required() {
        for bad in [
            &["osm-controller"][..],
            &["osm-controller", "--mesh-name=osm"],
            &["osm-controller", "--mesh-name=", "--osm-namespace=x"],
            &[
                "osm-controller",
                "--mesh-name=osm",
                "--osm-namespace=x",
                "--trust-domain=A B",
            ],
            &[
                "osm-controller",
                "--mesh-name=osm",
                "--osm-namespace=x",
                "--verbosity=loud",
            ],
            &[
                "osm-controller",
                "--mesh-name=osm",
                "--osm-namespace=x",
                "--certificate-manager=none",
            ],
            &[
                "osm-controller",
                "--mesh-name=osm",
                "--osm-namespace=x",
                "--unknown",
            ],
        ] {
            assert!(Args::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
