//! The command line: the flags that every component has, and the controller's own.

use std::time::Duration;

use clap::{ArgAction, Parser};
use osm_runtime::component::{Flags, go_duration};

/// The control plane of a service mesh: watches Kubernetes and configures the mesh's sidecars.
#[derive(Clone, Parser)]
#[command(name = "osm-controller", version)]
pub struct Args {
    /// What every component has.
    #[command(flatten)]
    pub component: Flags,
    /// The ValidatingWebhookConfiguration whose CA bundle is filled in.
    #[arg(long, default_value = "")]
    pub validator_webhook_config: String,
    /// Whether TrafficTargets are validated.
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub validate_traffic_target: bool,
    /// The pod the controller runs in.
    #[arg(
        long,
        env = "CONTROLLER_POD_NAME",
        default_value = "osm-controller",
        hide = true
    )]
    pub pod_name: String,
    /// Asks each sidecar to reconnect after about this time, which spreads them over the replicas. Off when 0.
    #[arg(long, default_value = "0s", value_parser = go_duration)]
    pub max_connection_age: Duration,
    /// New discovery streams that are let in each second and processor core.
    #[arg(long, default_value_t = 400)]
    pub new_streams_per_second: u32,

    // Accepted so that manifests written for the original start.
    #[arg(long, hide = true, default_value = "")]
    osm_service_account: String,
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
        assert_eq!(args.component.shutdown_delay, Duration::from_secs(5));
        assert!(args.component.setting().is_ok());
        assert_eq!(args.component.bind_address, None);
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
