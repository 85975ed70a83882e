//! Where a root comes from.
//!
//! Invariant: two sources are the same when they lead to the same CA, whatever the credentials used to get there.

use std::fmt;

use crate::api::mesh_config::SecretReference;
use crate::api::mesh_root_certificate::{
    CertManagerRoot, RootProvider, SecretKeyReference, TresorCa, TresorRoot, VaultRoot, VaultTokenRoot,
};

/// One key of a Secret in the control plane's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecretKey {
    /// The Secret.
    pub name: String,
    /// The key in it.
    pub key: String,
}

/// Where a root comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// A Secret of the control plane's namespace.
    Tresor {
        /// Its name.
        secret: String,
    },
    /// HashiCorp Vault.
    Vault {
        /// `http` or `https`.
        protocol: String,
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// The role certificates are issued under.
        role: String,
        /// The token; `None` when it is a flag of the process.
        token: Option<SecretKey>,
    },
    /// cert-manager.
    CertManager {
        /// The issuer's name.
        issuer: String,
        /// `Issuer` or `ClusterIssuer`.
        kind: String,
        /// Its API group.
        group: String,
    },
}

impl Source {
    /// Whether both lead to the same CA.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Vault {
                    protocol: a,
                    host: b,
                    port: c,
                    role: d,
                    ..
                },
                Self::Vault {
                    protocol: e,
                    host: f,
                    port: g,
                    role: h,
                    ..
                },
            ) => (a, b, c, d) == (e, f, g, h),
            _ => self == other,
        }
    }

    /// Reads `spec.provider` of an object.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn from(provider: &RootProvider, namespace: &str) -> Result<Self, String> {
        let given = |field: &str, text: &String| match text.trim() {
            "" => Err(format!("spec.provider.{field} is empty")),
            _ => Ok(text.clone()),
        };
        let readable = |field: &str, text: &str| match text == namespace {
            true => Ok(()),
            false => Err(format!(
                "spec.provider.{field}.namespace is {:?}: the control plane reads Secrets of its own namespace only, \
                 {namespace:?}",
                text.chars().take(63).collect::<String>()
            )),
        };
        match (&provider.tresor, &provider.vault, &provider.cert_manager) {
            (Some(TresorRoot { ca }), None, None) => {
                readable("tresor.ca.secretRef", &ca.secret_ref.namespace)?;
                let secret = given("tresor.ca.secretRef.name", &ca.secret_ref.name)?;
                Ok(Self::Tresor { secret })
            }
            (None, Some(vault), None) => {
                let reference = &vault.token.secret_key_ref;
                readable("vault.token.secretKeyRef", &reference.namespace)?;
                if !matches!(vault.protocol.as_str(), "http" | "https") {
                    return Err("spec.provider.vault.protocol is neither http nor https".into());
                }
                let port = u16::try_from(vault.port).ok().filter(|port| *port != 0);
                Ok(Self::Vault {
                    protocol: vault.protocol.clone(),
                    host: given("vault.host", &vault.host)?,
                    port: port.ok_or("spec.provider.vault.port is no port: ports are 1 to 65535")?,
                    role: given("vault.role", &vault.role)?,
                    token: Some(SecretKey {
                        name: given("vault.token.secretKeyRef.name", &reference.name)?,
                        key: given("vault.token.secretKeyRef.key", &reference.key)?,
                    }),
                })
            }
            (None, None, Some(issuer)) => Ok(Self::CertManager {
                issuer: given("certManager.issuerName", &issuer.issuer_name)?,
                kind: given("certManager.issuerKind", &issuer.issuer_kind)?,
                group: given("certManager.issuerGroup", &issuer.issuer_group)?,
            }),
            _ => Err("spec.provider must have exactly one of tresor, vault and certManager".into()),
        }
    }

    /// It as an object has it; `None` where no object can: a Vault whose token is not in a Secret.
    pub fn to_provider(&self, namespace: &str) -> Option<RootProvider> {
        let namespace = namespace.to_owned();
        let mut provider = RootProvider::default();
        match self.clone() {
            Self::Tresor { secret: name } => {
                let secret_ref = SecretReference { name, namespace };
                provider.tresor = Some(TresorRoot {
                    ca: TresorCa { secret_ref },
                });
            }
            Self::Vault {
                protocol,
                host,
                port,
                role,
                token,
            } => {
                let SecretKey { name, key } = token?;
                let secret_key_ref = SecretKeyReference { name, key, namespace };
                provider.vault = Some(VaultRoot {
                    host,
                    port: port.into(),
                    role,
                    protocol,
                    token: VaultTokenRoot { secret_key_ref },
                });
            }
            Self::CertManager { issuer, kind, group } => {
                provider.cert_manager = Some(CertManagerRoot {
                    issuer_name: issuer,
                    issuer_kind: kind,
                    issuer_group: group,
                });
            }
        }
        Some(provider)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tresor { secret } => write!(f, "tresor {secret}"),
            Self::Vault {
                protocol,
                host,
                port,
                role,
                ..
            } => {
                write!(f, "vault {protocol}://{host}:{port} {role}")
            }
            Self::CertManager { issuer, kind, .. } => write!(f, "cert-manager {kind} {issuer}"),
        }
    }
}
