//! The command line: the flags that every component has, and the injector's own.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use osm_core::{
    certificate::MIN_LIFETIME,
    envoy::bootstrap::Templates,
    injection::{Settings, StartOrder},
};
use osm_runtime::{
    component::{Flags, go_duration, not_empty},
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
    /// What every component has.
    #[command(flatten)]
    pub component: Flags,
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

    /// The pod the injector runs in.
    #[arg(long, env = "INJECTOR_POD_NAME", default_value = "osm-injector", hide = true)]
    pub pod_name: String,
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
}

impl Args {
    /// Longest time for a review.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(self.webhook_timeout.into()) - HEADROOM
    }

    /// What holds for all pods, in a cluster that can start containers in this order.
    pub fn settings(&self, start_order: StartOrder) -> Settings {
        let helper = [&self.healthcheck_image, &self.init_image];
        Settings {
            mesh_name: self.component.mesh_name.clone(),
            control_plane_namespace: self.component.osm_namespace.clone(),
            trust_domain: self.component.trust_domain.clone(),
            envoy_image: self.envoy_image.clone(),
            init_image: self.init_image.clone(),
            healthcheck_image: helper
                .into_iter()
                .find(|image| !image.is_empty())
                .cloned()
                .unwrap_or_default(),
            pull_policy: Some(self.osm_container_pull_policy.clone()).filter(|policy| !policy.is_empty()),
            start_order,
            bind: any_address(&self.component.pod_ip),
            templates: Templates::default(),
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
