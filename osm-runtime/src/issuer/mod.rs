//! Who signs the mesh's certificates: Tresor (built in), Vault or cert-manager.
//!
//! Owns the providers behind one type. Invariant: every replica of every binary ends with the same roots; a provider's
//! expired or different root is reported, never taken over silently.

mod authority;
mod cert_manager;
mod gate;
mod leaf;
#[cfg(test)]
mod tests;
pub mod tresor;
mod vault;
#[cfg(test)]
mod vault_tests;
mod verify;

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use osm_core::certificate::{Root, RootError, TrustBundle};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use tokio::sync::watch;

pub use authority::{Authority, StoredRoot};
use cert_manager::CertManager;
pub use cert_manager::CertManagerOptions;
pub use leaf::{KeyKind, Leaf, LeafRequest};
use tresor::{RootStore, SecretStore, StoreError};
use vault::Vault;
pub use vault::{Token, VaultOptions};

use crate::metrics::Metrics;

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The root is not fit for use.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What is stored in place of a root is incomplete.
    #[error("{0}")]
    Store(String),
    /// Signing failed.
    #[error("a certificate cannot be signed: {0}")]
    Signing(String),
    /// The provider cannot be reached, or refuses.
    #[error("the certificate provider failed: {0}")]
    Provider(String),
    /// The provider's answer does not serve.
    #[error("the certificate provider's answer does not serve: {0}")]
    Answer(String),
    /// The provider failed a moment ago, and is left alone for a while.
    #[error("the certificate provider failed and is left alone for a while: {0}")]
    Closed(String),
    /// It took too long.
    #[error("no certificate after {} seconds", .0.as_secs())]
    Timeout(Duration),
}

/// How the root in use compares with the one that is stored, or that the provider names, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootState {
    /// The same.
    Same,
    /// Another one, none, or something unfit; with what to tell the operator. The one in use stays in use.
    Differs(String),
    /// Could not be found out (the API server or the provider does not answer): no reason to worry yet.
    Unknown(String),
}

/// Where certificates come from.
#[derive(Clone, Debug)]
pub enum Provider {
    /// The root in a Secret.
    Tresor {
        /// The control plane's namespace.
        namespace: String,
        /// The Secret, `osm-ca-bundle` unless the chart says otherwise.
        secret: String,
        /// Labels of the Secret, when it is made here.
        labels: BTreeMap<String, String>,
    },
    /// HashiCorp Vault.
    Vault(VaultOptions),
    /// cert-manager.
    CertManager(CertManagerOptions),
}

/// The mesh's source of certificates. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    signer: Signer,
    roots: watch::Sender<TrustBundle>,
    metrics: IssueMetrics,
}

struct IssueMetrics {
    issued: Counter,
    failed: Counter,
    time: Histogram,
}

impl Default for IssueMetrics {
    fn default() -> Self {
        let time = Histogram::new([0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 90.0]);
        Self {
            issued: Counter::default(),
            failed: Counter::default(),
            time,
        }
    }
}

enum Signer {
    Local {
        authority: Arc<Authority>,
        store: Option<Box<SecretStore>>,
    },
    Vault(Arc<Vault>),
    CertManager(Box<CertManager>),
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner.signer {
            Signer::Local { .. } => "Issuer(tresor)",
            Signer::Vault(_) => "Issuer(vault)",
            Signer::CertManager(_) => "Issuer(cert-manager)",
        })
    }
}

impl Issuer {
    /// Opens the provider and learns its root. With Tresor it goes on while the API server is away, for as long as it
    /// takes, and `waiting` is told why: the caller sets the limit by dropping the future.
    ///
    /// # Errors
    /// [`IssueError`] when an outside provider does not answer, or a root is not fit for use. Nothing was replaced:
    /// the caller tells somebody, is not ready, and tries again after a while.
    pub async fn open(
        client: kube::Client,
        provider: &Provider,
        mut waiting: impl FnMut(&str),
    ) -> Result<Self, IssueError> {
        match provider {
            Provider::Tresor {
                namespace,
                secret,
                labels,
            } => {
                let store = SecretStore::new(client, namespace, secret, labels.clone());
                let waiting = |error: &StoreError| waiting(&error.to_string());
                let authority =
                    tresor::load_or_create(&store, KeyKind::P256, Timestamp::now, waiting).await?;
                Ok(Self::local(authority, Some(store)))
            }
            Provider::Vault(options) => Ok(Self::vault(Vault::open(Some(client), options.clone()).await?)),
            Provider::CertManager(options) => Ok(Self::cert_manager(
                CertManager::open(client, options.clone()).await?,
            )),
        }
    }

    fn new(signer: Signer, roots: TrustBundle) -> Self {
        let (roots, metrics) = (watch::channel(roots).0, IssueMetrics::default());
        Self {
            inner: Arc::new(Inner {
                signer,
                roots,
                metrics,
            }),
        }
    }

    fn cert_manager(signer: CertManager) -> Self {
        let roots = signer.roots().clone();
        Self::new(Signer::CertManager(Box::new(signer)), roots)
    }

    fn vault(signer: Vault) -> Self {
        let roots = signer.roots().clone();
        let signer = Arc::new(signer);
        tokio::spawn(vault::keep_token(Arc::downgrade(&signer)));
        Self::new(Signer::Vault(signer), roots)
    }

    /// An issuer that signs with `authority` alone: for tests and for a mesh without Kubernetes.
    pub fn from_authority(authority: Authority) -> Self {
        Self::local(authority, None)
    }

    fn local(authority: Authority, store: Option<SecretStore>) -> Self {
        let roots = TrustBundle::new([authority.root().clone()]);
        Self::new(
            Signer::Local {
                authority: Arc::new(authority),
                store: store.map(Box::new),
            },
            roots,
        )
    }

    /// Shows in `metrics` how many certificates are issued and how long that takes; the names are the original's.
    pub fn register(&self, metrics: &Metrics) {
        let IssueMetrics { issued, failed, time } = &self.inner.metrics;
        metrics.register(|registry| {
            registry.register("osm_cert_issued_count", "Certificates issued", issued.clone());
            registry.register(
                "osm_cert_issue_failures",
                "Certificates that could not be issued",
                failed.clone(),
            );
            registry.register(
                "osm_cert_issued_time",
                "Seconds it took to issue a certificate",
                time.clone(),
            );
        });
    }

    /// The roots to trust.
    pub fn roots(&self) -> TrustBundle {
        self.inner.roots.borrow().clone()
    }

    /// The roots to trust, as they change.
    pub fn watch_roots(&self) -> watch::Receiver<TrustBundle> {
        self.inner.roots.subscribe()
    }

    /// Issues a leaf with a new key.
    ///
    /// # Errors
    /// [`IssueError`]; the caller goes on with what it has and tries again ([`crate::renewal`] does).
    pub async fn issue(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let begun = Instant::now();
        let outcome = self.issue_once(request).await;
        match &outcome {
            Ok(_) => {
                self.inner.metrics.issued.inc();
                self.inner.metrics.time.observe(begun.elapsed().as_secs_f64());
            }
            Err(_) => {
                self.inner.metrics.failed.inc();
            }
        }
        outcome
    }

    async fn issue_once(&self, request: &LeafRequest) -> Result<Leaf, IssueError> {
        let leaf = match &self.inner.signer {
            Signer::Vault(vault) => vault.issue(request).await?,
            Signer::CertManager(issuer) => issuer.issue(request).await?,
            Signer::Local { authority, .. } => {
                if !authority.is_slow() && request.key == KeyKind::P256 {
                    return authority.sign(request, Timestamp::now());
                }
                let (authority, request) = (authority.clone(), request.clone());
                let sign = move || authority.sign(&request, Timestamp::now());
                let signed = tokio::task::spawn_blocking(sign).await;
                return signed.unwrap_or_else(|error| Err(IssueError::Signing(error.to_string())));
            }
        };
        verify::check(&leaf, request, &self.roots(), Timestamp::now())?;
        Ok(leaf)
    }

    /// Compares the root in use with the stored one.
    pub async fn check(&self) -> RootState {
        match &self.inner.signer {
            Signer::Vault(vault) => vault.check().await,
            Signer::CertManager(issuer) => issuer.check(),
            Signer::Local { store: None, .. } => RootState::Same,
            Signer::Local { authority, store: Some(store) } => match store.read().await {
                Ok(Some(stored)) => match Root::from_pem(&stored.certificate) {
                    Ok(root) if root == *authority.root() => RootState::Same,
                    Ok(_) => RootState::Differs(
                        "the stored root is not the one in use; rotate roots with a MeshRootCertificate, or restart \
                         the control plane and all meshed pods"
                            .into(),
                    ),
                    Err(error) => RootState::Differs(format!("the stored root is unfit: {error}")),
                },
                Ok(None) => RootState::Differs("the stored root is gone; restore it from a backup".into()),
                Err(StoreError::Malformed(message)) => RootState::Differs(message),
                Err(StoreError::Temporary(message)) => RootState::Unknown(message),
            },
        }
    }
}
