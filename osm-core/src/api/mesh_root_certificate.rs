//! `config.openservicemesh.io/v1alpha2` MeshRootCertificate: a root of trust of the mesh.
//!
//! The fields are the original's. The status is read leniently: whatever stands in it, the object itself stays
//! readable.

use kube_derive::CustomResource;
use serde::{Deserialize, Serialize};

use super::mesh_config::SecretReference;

/// A root of trust; two of them, with roles, make a rotation.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "config.openservicemesh.io",
    version = "v1alpha2",
    kind = "MeshRootCertificate",
    plural = "meshrootcertificates",
    shortname = "mrc",
    namespaced,
    status = "MeshRootCertificateStatus",
    schema = "disabled",
    crates(
        kube_core = "::kube_core",
        k8s_openapi = "::k8s_openapi",
        serde = "::serde",
        serde_json = "::serde_json"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshRootCertificateSpec {
    /// The suffix of all names in certificates.
    #[serde(default = "cluster_local")]
    pub trust_domain: String,
    /// What it does.
    pub role: RootRole,
    /// Accepted for compatibility: certificates always carry SPIFFE ids.
    #[serde(default)]
    pub spiffe_enabled: bool,
    /// Who signs.
    pub provider: RootProvider,
}

fn cluster_local() -> String {
    super::names::CLUSTER_DOMAIN.to_owned()
}

/// What a root does in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootRole {
    /// Neither trusted nor signing.
    Inactive,
    /// Trusted.
    Passive,
    /// Trusted and signing.
    Active,
}

impl std::fmt::Display for RootRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inactive => "inactive",
            Self::Passive => "passive",
            Self::Active => "active",
        })
    }
}

/// Who signs: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootProvider {
    /// cert-manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_manager: Option<CertManagerRoot>,
    /// HashiCorp Vault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultRoot>,
    /// The built-in CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tresor: Option<TresorRoot>,
}

/// An issuer of cert-manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertManagerRoot {
    /// Its name.
    pub issuer_name: String,
    /// `Issuer` or `ClusterIssuer`.
    pub issuer_kind: String,
    /// Its API group.
    pub issuer_group: String,
}

/// A Vault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VaultRoot {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: i32,
    /// The role certificates are issued under.
    pub role: String,
    /// `http` or `https`.
    pub protocol: String,
    /// The token.
    pub token: VaultTokenRoot,
}

/// Where Vault's token is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VaultTokenRoot {
    /// The Secret, and the key in it.
    pub secret_key_ref: SecretKeyReference,
}

/// One key of a Secret, by reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretKeyReference {
    /// The Secret's name.
    pub name: String,
    /// The key.
    pub key: String,
    /// The Secret's namespace.
    pub namespace: String,
}

/// The built-in CA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TresorRoot {
    /// Where its root and key are.
    pub ca: TresorCa,
}

/// Where the built-in CA's root and key are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TresorCa {
    /// The Secret; made with a new root in it when there is none.
    pub secret_ref: SecretReference,
}

/// What became of it: free-form for the API server, read by [`crate::certificate::rotation`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshRootCertificateStatus(pub serde_json::Value);
