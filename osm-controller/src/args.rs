//! The command line: the original's flags, and the few that are new.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::{ArgAction, Parser, ValueEnum};
use osm_core::{
    api::{duration, labels, names},
    identity::TrustDomain,
};
use osm_runtime::{
    issuer::{CertManagerOptions, Provider, Token, VaultOptions},
    log::Verbosity,
};

/// Where certificates come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CertificateManager {
    /// The built-in CA: a root in a Secret.
    Tresor,
    /// HashiCorp Vault.
    Vault,
    /// cert-manager.
    CertManager,
}

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
    /// Where certificates come from.
    #[arg(long, value_enum, default_value = "tresor")]
    pub certificate_manager: CertificateManager,
    /// The Secret that holds the built-in CA.
    #[arg(long, default_value = names::CA_BUNDLE_SECRET)]
    pub ca_bundle_secret_name: String,
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

    /// Vault: http or https.
    #[arg(long, default_value = "http")]
    pub vault_protocol: String,
    /// Vault: its host.
    #[arg(long, default_value = "vault.default.svc.cluster.local")]
    pub vault_host: String,
    /// Vault: its port.
    #[arg(long, default_value = "8200")]
    pub vault_port: String,
    /// Vault: the role certificates are issued under.
    #[arg(long, default_value = "openservicemesh")]
    pub vault_role: String,
    /// Vault: the token, unless it is in a Secret.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub vault_token: String,
    /// Vault: the Secret of the token, in the control plane's namespace.
    #[arg(long, default_value = "")]
    pub vault_token_secret_name: String,
    /// Vault: the key of the token in its Secret.
    #[arg(long, default_value = "")]
    pub vault_token_secret_key: String,
    /// cert-manager: the issuer's name.
    #[arg(long, default_value = "osm-ca")]
    pub cert_manager_issuer_name: String,
    /// cert-manager: Issuer or ClusterIssuer.
    #[arg(long, default_value = "Issuer")]
    pub cert_manager_issuer_kind: String,
    /// cert-manager: the issuer's API group.
    #[arg(long, default_value = "cert-manager.io")]
    pub cert_manager_issuer_group: String,

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
        Ok(match self.certificate_manager {
            CertificateManager::Tresor => Provider::Tresor {
                namespace: self.osm_namespace.clone(),
                secret: self.ca_bundle_secret_name.clone(),
                labels: self.labels(),
            },
            CertificateManager::Vault => Provider::Vault(self.vault()?),
            CertificateManager::CertManager => Provider::CertManager(CertManagerOptions {
                namespace: self.osm_namespace.clone(),
                issuer: self.cert_manager_issuer_name.clone(),
                kind: self.cert_manager_issuer_kind.clone(),
                group: self.cert_manager_issuer_group.clone(),
            }),
        })
    }

    fn vault(&self) -> anyhow::Result<VaultOptions> {
        let (protocol, host, port) = (&self.vault_protocol, &self.vault_host, &self.vault_port);
        anyhow::ensure!(
            !host.is_empty(),
            "--vault-host is needed with --certificate-manager=vault"
        );
        let address = format!("{protocol}://{host}:{port}");
        let token = match (
            self.vault_token_secret_name.as_str(),
            self.vault_token_secret_key.as_str(),
        ) {
            ("", _) => Token::Literal(self.vault_token.clone().into()),
            (_, "") => anyhow::bail!("--vault-token-secret-key is needed with --vault-token-secret-name"),
            (name, key) => Token::Secret {
                namespace: self.osm_namespace.clone(),
                name: name.to_owned(),
                key: key.to_owned(),
            },
        };
        Ok(VaultOptions {
            address: address
                .parse()
                .with_context(|| format!("{address:?} is not the address of a Vault"))?,
            role: self.vault_role.clone(),
            token,
        })
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
