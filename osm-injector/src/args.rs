//! The command line: the original's flags, and the few that are new.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};
use osm_core::{
    api::{duration, labels, names},
    certificate::MIN_LIFETIME,
    identity::TrustDomain,
    injection::{Settings, StartOrder},
};
use osm_runtime::{
    issuer::{Provider, ProviderFlags},
    log::Verbosity,
    serve::any_address,
};

/// Time between the end of a review and the API server's timeout: the answer must still arrive.
const HEADROOM: Duration = Duration::from_secs(2);

/// Whether sidecars are native ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NativeSidecar {
    /// Where Kubernetes has them: 1.29 and later.
    Auto,
    /// In any case.
    Always,
    /// Never: ordinary containers.
    Never,
}

/// The mutating webhook of a service mesh: adds the sidecar to pods.
#[derive(Clone, Debug, Parser)]
#[command(name = "osm-injector", version)]
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
    /// The version put on labels of what the injector makes.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    pub osm_version: String,
    /// The suffix of all names in certificates.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// The MutatingWebhookConfiguration whose CA bundle is filled in.
    #[arg(long, value_parser = not_empty)]
    pub webhook_config_name: String,
    /// The webhook's `timeoutSeconds`: an answer is given before that.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..=30))]
    pub webhook_timeout: u32,
    /// `imagePullPolicy` of the init and probe containers; Kubernetes' default when empty.
    #[arg(long, default_value = "", value_parser = ["", "Always", "IfNotPresent", "Never"])]
    pub osm_container_pull_policy: String,
    /// Whether sidecars are native ones (init containers that go on running).
    #[arg(long, value_enum, default_value = "auto")]
    pub native_sidecar: NativeSidecar,
    /// How long the certificates are valid that sidecars show to the controller. They are renewed at half of it: the
    /// other half is how long the control plane may be away.
    #[arg(long, default_value = "48h", value_parser = go_duration)]
    pub bootstrap_certificate_validity: Duration,
    /// How long a bootstrap Secret may be without a pod before it is deleted.
    #[arg(long, default_value = "10m", value_parser = go_duration)]
    pub bootstrap_grace: Duration,
    /// A kubeconfig, when not run inside a cluster.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// From not ready until listeners close, on termination: time for the endpoint to disappear everywhere.
    #[arg(long, default_value = "5s", value_parser = go_duration)]
    pub shutdown_delay: Duration,

    /// The pod the injector runs in.
    #[arg(long, env = "INJECTOR_POD_NAME", default_value = "osm-injector", hide = true)]
    pub pod_name: String,
    /// The address all listeners bind to, if not any of the kind of the pod's own.
    #[arg(long, env = "OSM_BIND_ADDRESS", hide = true)]
    pub bind_address: Option<IpAddr>,
    /// The injector's own address: pods of the cluster have the same kind.
    #[arg(long, env = "POD_IP", default_value = "", hide = true)]
    pub pod_ip: String,
    /// Image of sidecars, unless MeshConfig names one.
    #[arg(long, env = "OSM_DEFAULT_ENVOY_IMAGE", hide = true, value_parser = not_empty)]
    pub envoy_image: String,
    /// Image of the init container, unless MeshConfig names one.
    #[arg(long, env = "OSM_DEFAULT_INIT_CONTAINER_IMAGE", hide = true, value_parser = not_empty)]
    pub init_image: String,
    /// Image of the probe container; the init container's when empty.
    #[arg(
        long,
        env = "OSM_DEFAULT_HEALTHCHECK_CONTAINER_IMAGE",
        default_value = "",
        hide = true
    )]
    pub healthcheck_image: String,

    /// Where certificates come from.
    #[command(flatten)]
    pub provider: ProviderFlags,

    // What follows is accepted so that manifests written for the original start.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_reconciler: String,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
    enable_mesh_root_certificate: String,
}

impl Args {
    /// The labels of what the injector makes.
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

    /// Longest time for a review.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.webhook_timeout.into()) - HEADROOM
    }

    /// What holds for all pods, in a cluster that can start containers in this order.
    pub fn settings(&self, start_order: StartOrder) -> Settings {
        let helper = [&self.healthcheck_image, &self.init_image];
        Settings {
            mesh_name: self.mesh_name.clone(),
            control_plane_namespace: self.osm_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            envoy_image: self.envoy_image.clone(),
            init_image: self.init_image.clone(),
            healthcheck_image: helper
                .into_iter()
                .find(|image| !image.is_empty())
                .cloned()
                .unwrap_or_default(),
            pull_policy: Some(self.osm_container_pull_policy.clone()).filter(|policy| !policy.is_empty()),
            start_order,
            bind: any_address(&self.pod_ip),
        }
    }

    /// Checks what clap cannot.
    ///
    /// # Errors
    /// When a value makes no sense, with what does.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.bootstrap_certificate_validity >= MIN_LIFETIME,
            "--bootstrap-certificate-validity must be at least {} minutes",
            MIN_LIFETIME.as_secs() / 60
        );
        anyhow::ensure!(
            self.bootstrap_grace >= Duration::from_secs(60),
            "--bootstrap-grace must be at least 1m: a pod may take that long from its admission until it exists"
        );
        Ok(())
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

    const REQUIRED: [&str; 6] = [
        "osm-injector",
        "--mesh-name=osm",
        "--osm-namespace=osm-system",
        "--webhook-config-name=osm-webhook-osm",
        "--envoy-image=envoy:1",
        "--init-image=osm-sidecar:1",
    ];

    fn parse(more: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(REQUIRED.iter().chain(more))
    }

    #[test]
    fn the_charts_arguments_are_accepted() {
        let args = parse(&[
            "--verbosity=info",
            "--osm-config-name=osm-mesh-config",
            "--osm-version=v2.0.0",
            "--ca-bundle-secret-name=osm-ca-bundle",
            "--trust-domain=cluster.local",
            "--certificate-manager=tresor",
            "--webhook-timeout=10",
            "--osm-container-pull-policy=IfNotPresent",
            "--enable-reconciler",
            "--vault-host=vault",
        ])
        .unwrap();
        args.check().unwrap();
        assert_eq!(args.deadline(), Duration::from_secs(8));
        assert_eq!(
            args.settings(StartOrder::NativeSidecar).healthcheck_image,
            "osm-sidecar:1"
        );
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            "--webhook-timeout=0",
            "--webhook-timeout=31",
            "--osm-container-pull-policy=Sometimes",
            "--trust-domain=A B",
            "--verbosity=loud",
            "--native-sidecar=maybe",
            "--bootstrap-certificate-validity=-1h",
            "--unknown",
        ] {
            assert!(parse(&[bad]).is_err(), "{bad}");
        }
        for bad in ["--bootstrap-certificate-validity=1m", "--bootstrap-grace=1s"] {
            assert!(parse(&[bad]).unwrap().check().is_err(), "{bad}");
        }
        assert!(Args::try_parse_from(&REQUIRED[..4]).is_err());
    }
}
