//! Providers of certificates from elsewhere, run in the cluster: a real Vault and a real cert-manager.
//!
//! Owns what a mesh that is to be signed by one needs before it is installed, and what an operator could do to the
//! provider afterwards. The drill itself is in `outage`. Invariant: what is made here is found again by its name or
//! namespace and removed before the next mesh is installed.

mod authority;
mod outage;
mod witness;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use self::authority::Authority;
pub(super) use self::outage::{cert_manager_outage, vault_outage};
use super::node::{self, Frozen};
use crate::checkout::Checkout;
use crate::cluster::programs;
use crate::harness::kubernetes::is_ready;
use crate::harness::mesh::NAMESPACE;
use crate::harness::{Mesh, eventually};

/// Where a provider runs, outside the mesh.
pub(super) const HOME: &str = "d-provider";
const VAULT: &str = include_str!("../../../manifests/providers/vault.yaml");
const CERT_MANAGER: &str = include_str!("../../../manifests/providers/cert-manager.yaml");
/// Vault's token that may ask for certificates and nothing else.
const TOKEN: &str = "osm-drill-issues-only";
/// The issuer of cert-manager, and the Secret of its CA.
const ISSUER: &str = "drill-ca";
/// The kinds of cert-manager that its CA issuer looks at.
const CRDS: [&str; 3] = ["certificaterequests", "clusterissuers", "issuers"];
/// What is made of cert-manager outside namespaces, besides those.
const ROLE: &str = "osm-e2e-cert-manager";
/// How long a provider may take to start or to end.
const STARTED: Duration = Duration::from_secs(120);

/// Who signs for the mesh that a drill finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signer {
    /// The mesh itself.
    BuiltIn,
    /// A Vault of the drill's own.
    Vault,
    /// A cert-manager of the drill's own.
    CertManager,
}

impl Signer {
    /// The program it needs an image of, which is also the name of its Deployment.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::BuiltIn => None,
            Self::Vault => Some("vault"),
            Self::CertManager => Some("cert-manager"),
        }
    }
}

/// A provider that runs in the cluster, with two CAs it can be given.
pub struct Provider {
    signer: Signer,
    name: &'static str,
    first: Authority,
    second: Authority,
}

impl Provider {
    /// Starts it with the first of its CAs, for a mesh that is installed next; `None` if the mesh signs for itself.
    pub async fn start(mesh: &Mesh, signer: Signer, checkout: &Checkout) -> Result<Option<Self>> {
        remove(mesh).await?;
        let Some(name) = signer.program() else {
            return Ok(None);
        };
        let provider = Self {
            signer,
            name,
            first: Authority::new(&format!("{name} root, the first"))?,
            second: Authority::new(&format!("{name} root, another"))?,
        };
        let kubernetes = &mesh.kubernetes;
        kubernetes.create_namespace(HOME, json!({}), json!({})).await?;
        let manifest = match signer {
            Signer::CertManager => {
                let crds = crds(checkout.clone()).await?;
                let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
                kubernetes.kubectl(&apply, &crds).await?;
                // The issuer is where requests are made: in the control plane's namespace, which is there first.
                kubernetes
                    .create_namespace(NAMESPACE, json!({}), json!({}))
                    .await?;
                CERT_MANAGER
            }
            _ => VAULT,
        };
        kubernetes.apply(&provider.setup(&provider.first)).await?;
        let manifest = manifest
            .replace("${NAMESPACE}", HOME)
            .replace("${IMAGE}", &mesh.images.named(name));
        kubernetes.kubectl(&["apply", "-f", "-"], &manifest).await?;
        provider.running(mesh, 1).await?;
        Ok(Some(provider))
    }

    /// Values of the mesh below `OpenServiceMesh.` that make it the mesh's provider.
    pub fn settings(&self) -> Vec<String> {
        let kind = format!("certificateProvider.kind={}", self.name);
        let own = match self.signer {
            Signer::CertManager => vec![format!("certmanager.issuerName={ISSUER}")],
            _ => vec![
                format!("vault.host=vault.{HOME}.svc.cluster.local"),
                format!("vault.token={TOKEN}"),
            ],
        };
        std::iter::once(kind).chain(own).collect()
    }

    /// What an operator would have written before.
    fn setup(&self, authority: &Authority) -> Vec<Value> {
        let (certificate, key) = (&authority.certificate, &authority.key);
        if self.signer == Signer::Vault {
            return vec![json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": { "name": "vault-setup", "namespace": HOME },
                "stringData": { "setup.json": vault_setup(&format!("{certificate}{key}")).to_string() },
            })];
        }
        vec![
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": { "name": ISSUER, "namespace": NAMESPACE },
                "stringData": { "tls.crt": certificate, "tls.key": key },
            }),
            json!({
                "apiVersion": "cert-manager.io/v1", "kind": "Issuer",
                "metadata": { "name": ISSUER, "namespace": NAMESPACE },
                "spec": { "ca": { "secretName": ISSUER } },
            }),
        ]
    }

    /// Takes it away, or brings it back; a Vault has forgotten everything then and reads its setup again.
    async fn scale(&self, mesh: &Mesh, replicas: usize) -> Result<()> {
        let change = json!({ "spec": { "replicas": replicas } });
        let kubernetes = &mesh.kubernetes;
        kubernetes
            .merge("apps/v1/Deployment", Some(HOME), self.name, &change)
            .await?;
        self.running(mesh, replicas).await
    }

    /// Gives it another CA.
    async fn become_of(&self, mesh: &Mesh, authority: &Authority) -> Result<()> {
        self.scale(mesh, 0).await?;
        mesh.kubernetes.apply(&self.setup(authority)).await?;
        self.scale(mesh, 1).await
    }

    /// Lets it stand still until the result is dropped.
    fn freeze(&self) -> Result<Frozen> {
        let processes = node::processes(self.name)?;
        let process = processes.first();
        Frozen::pod_process(process.with_context(|| format!("no {} runs", self.name))?)
    }

    async fn running(&self, mesh: &Mesh, wanted: usize) -> Result<()> {
        let labels = format!("app={}", self.name);
        eventually(&format!("{wanted} of {}", self.name), STARTED, async || {
            let pods = mesh.kubernetes.pods(HOME, &labels).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(
                pods.len() == wanted && ready == wanted,
                "{ready} of {} are ready",
                pods.len()
            );
            Ok(())
        })
        .await
    }
}

/// Removes what an earlier provider left outside namespaces. Those go with everything that is made here.
async fn remove(mesh: &Mesh) -> Result<()> {
    let crds = CRDS.map(|name| format!("crd/{name}.cert-manager.io"));
    let roles = ["clusterrole", "clusterrolebinding"].map(|kind| format!("{kind}/{ROLE}"));
    let mut arguments = vec!["delete", "--ignore-not-found"];
    arguments.extend(crds.iter().chain(&roles).map(String::as_str));
    mesh.kubernetes.kubectl(&arguments, "").await.map(drop)
}

/// What `docs/certificates.md` tells operators to write into a Vault, with a CA from elsewhere.
fn vault_setup(bundle: &str) -> Value {
    let policy = "path \"pki/issue/openservicemesh\" { capabilities = [\"update\"] }";
    json!([
        { "path": "sys/mounts/pki", "data": { "type": "pki", "config": { "max_lease_ttl": "87600h" } } },
        { "path": "pki/config/ca", "data": { "pem_bundle": bundle } },
        { "path": "pki/roles/openservicemesh", "data": {
            "allow_any_name": true, "enforce_hostnames": false, "allowed_uri_sans": ["spiffe://*"],
            "client_flag": true, "server_flag": true, "key_type": "ec", "key_bits": 256, "max_ttl": "720h",
        } },
        { "path": "sys/policies/acl/osm", "data": { "policy": policy } },
        { "path": "auth/token/create", "data": { "id": TOKEN, "policies": ["osm"], "period": "768h" } },
    ])
}

/// cert-manager's own definitions of what its CA issuer handles, without the labels that its chart would fill in.
async fn crds(checkout: Checkout) -> Result<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let module = "github.com/cert-manager/cert-manager";
        for name in CRDS {
            let path = format!("deploy/crds/crd-{name}.yaml");
            let file = programs::module_file(&checkout, "cert-manager", module, &path)?;
            let whole =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let plain = whole.lines().filter(|line| !line.contains("{{"));
            text.extend(plain.flat_map(|line| [line, "\n"]));
            text.push_str("---\n");
        }
        Ok(text)
    })
    .await?
}
