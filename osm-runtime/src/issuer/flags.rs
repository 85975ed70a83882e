//! The command line flags that choose the certificate provider: the original's, the same for both binaries.
//!
//! Owns their names, defaults and what must go together. Must not reach the provider. Invariant: the token is in no
//! `Debug` output.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use clap::{Args, ValueEnum};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use osm_core::api::names;
use zeroize::Zeroizing;

use super::{CertManagerOptions, Provider, RootSecret, Token, VaultOptions};

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

/// The flags; flatten them into a binary's own.
#[derive(Clone, Args)]
pub struct ProviderFlags {
    /// Where certificates come from.
    #[arg(long, value_enum, default_value = "tresor")]
    pub certificate_manager: CertificateManager,
    /// The Secret of the root certificate, and of its key with the built-in CA.
    #[arg(long, default_value = names::CA_BUNDLE_SECRET)]
    pub ca_bundle_secret_name: String,
    /// Vault: http or https.
    #[arg(long, default_value = "http")]
    pub vault_protocol: String,
    /// Vault: its host.
    #[arg(long, default_value = "vault.default.svc.cluster.local")]
    pub vault_host: String,
    /// Vault: its port.
    #[arg(long, default_value_t = 8200, value_parser = clap::value_parser!(u16).range(1..))]
    pub vault_port: u16,
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
    /// Vault: a PEM file of the CAs that may have signed its own certificate, with https; the system's when not given.
    #[arg(long, env = "VAULT_CACERT")]
    pub vault_ca_file: Option<PathBuf>,
    /// cert-manager: the issuer's name.
    #[arg(long, default_value = "osm-ca")]
    pub cert_manager_issuer_name: String,
    /// cert-manager: Issuer or ClusterIssuer.
    #[arg(long, default_value = "Issuer")]
    pub cert_manager_issuer_kind: String,
    /// cert-manager: the issuer's API group.
    #[arg(long, default_value = "cert-manager.io")]
    pub cert_manager_issuer_group: String,
    /// The pod this runs in.
    #[arg(long, env = "POD_NAME", default_value = "", hide = true)]
    pub owner_pod: String,
    /// Its uid.
    #[arg(long, env = "POD_UID", default_value = "", hide = true)]
    pub owner_uid: String,
}

impl fmt::Debug for ProviderFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderFlags")
            .field("certificate_manager", &self.certificate_manager)
            .finish_non_exhaustive()
    }
}

/// Why the flags make no provider.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Not an address.
    #[error(
        "--vault-protocol, --vault-host and --vault-port make {0:?}, which is not the address of a Vault"
    )]
    Address(String),
    /// Something else than HTTP.
    #[error("--vault-protocol is {0:?}: it must be http or https")]
    Protocol(String),
    /// No token at all.
    #[error("--certificate-manager=vault needs --vault-token-secret-name (or --vault-token)")]
    NoToken,
    /// A Secret, but not where in it.
    #[error("--vault-token-secret-name needs --vault-token-secret-key")]
    NoKey,
}

impl ProviderFlags {
    /// The provider, for a control plane in `namespace`; `labels` are put on a root's Secret that is made.
    ///
    /// # Errors
    /// [`FlagError`] when flags that belong together do not fit.
    pub fn provider(&self, namespace: &str, labels: BTreeMap<String, String>) -> Result<Provider, FlagError> {
        let memory = RootSecret {
            namespace: namespace.to_owned(),
            name: self.ca_bundle_secret_name.clone(),
            labels,
        };
        Ok(match self.certificate_manager {
            CertificateManager::Tresor => Provider::Tresor {
                namespace: memory.namespace,
                secret: memory.name,
                labels: memory.labels,
            },
            CertificateManager::Vault => Provider::Vault {
                options: self.vault(namespace)?,
                memory: Some(memory),
            },
            CertificateManager::CertManager => {
                let options = CertManagerOptions {
                    namespace: namespace.to_owned(),
                    issuer: self.cert_manager_issuer_name.clone(),
                    kind: self.cert_manager_issuer_kind.clone(),
                    group: self.cert_manager_issuer_group.clone(),
                    owner: self.owner(),
                };
                Provider::CertManager {
                    options,
                    memory: Some(memory),
                }
            }
        })
    }

    /// The file of the CAs that may have signed a Vault's own certificate.
    pub fn authorities(&self) -> Option<PathBuf> {
        let file = self.vault_ca_file.clone();
        file.filter(|file| !file.as_os_str().is_empty())
    }

    /// The pod this runs in, if it runs in one: what is left of its work when it is gone goes with it.
    pub fn owner(&self) -> Option<OwnerReference> {
        (!self.owner_pod.is_empty() && !self.owner_uid.is_empty()).then(|| OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: self.owner_pod.clone(),
            uid: self.owner_uid.clone(),
            ..OwnerReference::default()
        })
    }

    fn vault(&self, namespace: &str) -> Result<VaultOptions, FlagError> {
        let protocol = self.vault_protocol.as_str();
        if !matches!(protocol, "http" | "https") {
            return Err(FlagError::Protocol(protocol.to_owned()));
        }
        let address = format!("{protocol}://{}:{}", self.vault_host, self.vault_port);
        let parsed: Option<http::Uri> = address.parse().ok();
        let address = parsed
            .filter(|uri| uri.host().is_some_and(|host| !host.is_empty()) && uri.path() == "/")
            .ok_or(FlagError::Address(address))?;
        let secret = (
            self.vault_token_secret_name.as_str(),
            self.vault_token_secret_key.as_str(),
        );
        let token = match secret {
            ("", _) if self.vault_token.is_empty() => return Err(FlagError::NoToken),
            ("", _) => Token::Literal(Zeroizing::new(self.vault_token.clone())),
            (_, "") => return Err(FlagError::NoKey),
            (name, key) => Token::Secret {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                key: key.to_owned(),
            },
        };
        Ok(VaultOptions {
            address,
            role: self.vault_role.clone(),
            token,
            authorities: self.authorities(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Binary {
        #[command(flatten)]
        provider: ProviderFlags,
    }

    fn provider(flags: &[&str]) -> Result<Provider, FlagError> {
        let binary = Binary::try_parse_from([&["binary"], flags].concat()).unwrap();
        binary.provider.provider("osm-system", BTreeMap::new())
    }

    #[test]
    fn what_the_chart_passes_makes_a_provider() {
        assert!(matches!(provider(&[]), Ok(Provider::Tresor { secret, .. }) if secret == "osm-ca-bundle"));
        let flags = [
            "--certificate-manager=vault",
            "--vault-host=vault.infra",
            "--vault-port=8300",
            "--vault-protocol=https",
            "--vault-role=mesh",
            "--vault-token-secret-name=token",
            "--vault-token-secret-key=key",
        ];
        let Ok(Provider::Vault {
            options,
            memory: Some(memory),
        }) = provider(&flags)
        else {
            panic!("not Vault")
        };
        assert_eq!(options.address, "https://vault.infra:8300/");
        assert_eq!(
            (options.role.as_str(), memory.name.as_str()),
            ("mesh", "osm-ca-bundle")
        );
        assert!(matches!(&options.token, Token::Secret { namespace, name, key }
                if (namespace.as_str(), name.as_str(), key.as_str()) == ("osm-system", "token", "key")));
        let flags = [
            "--certificate-manager=cert-manager",
            "--cert-manager-issuer-kind=ClusterIssuer",
            "--owner-pod=osm-injector-1",
            "--owner-uid=u",
        ];
        let Ok(Provider::CertManager { options, .. }) = provider(&flags) else {
            panic!("not cert-manager")
        };
        assert_eq!(
            (options.issuer.as_str(), options.kind.as_str()),
            ("osm-ca", "ClusterIssuer")
        );
        let owner = options.owner.unwrap();
        assert_eq!(
            (owner.kind.as_str(), owner.name.as_str(), owner.uid.as_str()),
            ("Pod", "osm-injector-1", "u")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_token_is_not_shown() {
        let vault = "--certificate-manager=vault";
        let refused = |flags: &[&str]| provider(&[&[vault], flags].concat()).unwrap_err();
        assert_eq!(refused(&[]), FlagError::NoToken);
        assert_eq!(refused(&["--vault-token-secret-name=x"]), FlagError::NoKey);
        let token = "--vault-token=hvs.secret";
        assert!(matches!(
            refused(&[token, "--vault-protocol=ftp"]),
            FlagError::Protocol(_)
        ));
        for host in ["--vault-host=", "--vault-host=a b", "--vault-host=a/b"] {
            assert!(matches!(refused(&[token, host]), FlagError::Address(_)), "{host}");
        }
        let binary = Binary::try_parse_from(["binary", vault, token]).unwrap();
        let shown = format!("{binary:?} {:?}", binary.provider.provider("n", BTreeMap::new()));
        assert!(!shown.contains("hvs.secret"), "{shown}");
    }
}
